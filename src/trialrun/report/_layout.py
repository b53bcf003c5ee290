"""Text in columns where a Chinese character is two cells wide."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_NEVER_FIRST = frozenset("，。；：、！？）」』》〉”’…,.;:!?)]}%")
_NEVER_LAST = frozenset("（「『《〈“‘([{")


def clean(text: str) -> str:
    """Return text on one line without control characters, which could steer a terminal."""
    shown = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in str(text))
    return " ".join(shown.split())


def _cells(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def width(text: str) -> int:
    """Return how many terminal cells a text takes.

    Examples
    --------
    >>> width("ab"), width("成立")
    (2, 4)
    """
    return sum(_cells(character) for character in text)


def pad(text: str, cells: int) -> str:
    """Return text filled with spaces on the right up to ``cells``."""
    return text + " " * max(0, cells - width(text))


def _pieces(text: str) -> list[str]:
    # A wide character is a piece of its own; other characters hold together up to a space.
    pieces: list[str] = []
    glue = True
    for character in text:
        wide = _cells(character) == 2
        starts = glue is False and (
            character == " " or pieces[-1] == " " or wide or _cells(pieces[-1][-1]) == 2
        )
        bound = pieces and (character in _NEVER_FIRST or pieces[-1][-1] in _NEVER_LAST)
        if not pieces or (starts and not (bound and character != " ")):
            pieces.append(character)
        else:
            pieces[-1] += character
        glue = False
    return pieces


def _cut(piece: str, cells: int) -> list[str]:
    parts = [""]
    for character in piece:
        if parts[-1] and width(parts[-1]) + _cells(character) > cells:
            parts.append("")
        parts[-1] += character
    return parts


def wrap(text: str, cells: int) -> list[str]:
    """Break text into lines of at most ``cells`` cells; an empty text is one empty line.

    Lines break at spaces and between Chinese characters, but not before closing punctuation.
    """
    lines = [""]
    for whole in _pieces(clean(text)):
        for piece in _cut(whole, cells) if width(whole) > cells else [whole]:
            if width(lines[-1]) + width(piece) <= cells:
                lines[-1] += piece
            else:
                lines[-1] = lines[-1].rstrip()
                lines.append(piece.lstrip())
    lines[-1] = lines[-1].rstrip()
    return lines


def labelled(label: str, text: str, *, indent: int, cells: int) -> list[str]:
    """Return a label with wrapped text hanging beside it."""
    lines = wrap(text, cells - indent)
    return [pad(label, indent) + lines[0], *(" " * indent + line for line in lines[1:])]


def _column_widths(rows: Sequence[Sequence[str]], room: int, gives_way: int | None) -> list[int]:
    widths = [max(1, *(width(row[i]) for row in rows)) for i in range(len(rows[0]))]
    if gives_way is not None:
        excess = sum(widths) - room
        widths[gives_way] = max(min(widths[gives_way], 16), widths[gives_way] - max(0, excess))
    while sum(widths) > room and max(widths) > 4:
        widths[widths.index(max(widths))] -= 1
    return widths


def grid(
    rows: Sequence[Sequence[str]], *, cells: int, gap: int = 2, gives_way: int | None = None
) -> list[str]:
    """Return rows of wrapped cells in columns no wider together than ``cells``.

    Columns take what they need. When that is too much, the column ``gives_way`` shrinks first,
    down to 16 cells, and then the widest ones.
    """
    if not rows:
        return []
    rows = [[clean(cell) or cell for cell in row] for row in rows]
    widths = _column_widths(rows, cells - gap * (len(rows[0]) - 1), gives_way)
    lines = []
    for row in rows:
        parts = [wrap(cell, widths[i]) for i, cell in enumerate(row)]
        for depth in range(max(map(len, parts))):
            cut = [part[depth] if depth < len(part) else "" for part in parts]
            lines.append((" " * gap).join(pad(c, w) for c, w in zip(cut, widths)).rstrip())
    return lines


def indented(lines: Sequence[str], indent: int, label: str = "") -> list[str]:
    """Return lines moved right, the first with a label in the space."""
    heads = [label, *[""] * len(lines)]
    return [(pad(head, indent) + line).rstrip() for head, line in zip(heads, lines)]
