"""A contact sheet: the query's pictures on the left, the hits in rows, with rank and score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trialrun.core.extras import need

_CELL = 128
_GAP = 12
_LINE = 15
_INK = (30, 30, 30)
_FAINT = (120, 120, 120)
_FRAME = (205, 205, 205)


def _thumb(picture: Any) -> Any:
    from PIL import Image

    width, height = picture.size
    scale = _CELL / max(width, height)
    # Whole steps keep small drawings crisp; photographs are scaled down smoothly.
    how = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    cell = Image.new("RGB", (_CELL, _CELL), "white")
    small = picture.resize(size, how)
    cell.paste(small, ((_CELL - size[0]) // 2, (_CELL - size[1]) // 2))
    return cell


def _fitting(draw: Any, font: Any, text: str, width: int) -> str:
    """Shorten a text to a width at its end; rank and score stand at its beginning.

    It stays one line: a line break or another mark that cannot be drawn becomes a space.
    """
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    if draw.textlength(text, font=font) <= width:
        return text
    for n in range(len(text) - 1, 0, -1):
        short = text[:n] + "…"
        if draw.textlength(short, font=font) <= width:
            return short
    return "…"


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Any], Sequence[tuple[Any, str]]]], *, columns: int = 6
) -> Any:
    """Draw rows of (title, query pictures, hits with their captions) as one picture.

    Parameters
    ----------
    rows : sequence
        A hit is a PIL picture, or None where it is missing, and the line under it. Hits fill
        ``columns`` and go on below.
    columns : int, at least 1

    Returns
    -------
    PIL.Image.Image
    """
    need("PIL", extra="pictures")
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(12)
    step, tall = _CELL + _GAP, _CELL + _LINE + _GAP
    lead = step if any(queries for _, queries, _ in rows) else 0
    heights = []
    for _, queries, hits in rows:
        lines = max(len(queries), -(-len(hits) // columns), 1)
        heights.append(lines * tall + _LINE + _GAP)
    width = lead + columns * step + _GAP + (_GAP if lead else 0)
    sheet = Image.new("RGB", (width, sum(heights) + _GAP), "white")
    draw = ImageDraw.Draw(sheet)

    def put(picture: Any, caption: str, x: int, y: int, ink: tuple[int, int, int]) -> None:
        if picture is None:
            middle = (x + _CELL // 2, y + _CELL // 2)
            draw.text(middle, "missing", font=font, fill=_FAINT, anchor="mm")
        else:
            sheet.paste(_thumb(picture), (x, y))
        draw.rectangle((x - 1, y - 1, x + _CELL, y + _CELL), outline=_FRAME)
        text = _fitting(draw, font, caption, _CELL)
        draw.text((x, y + _CELL + 1), text, font=font, fill=ink)

    top = _GAP
    for (title, queries, hits), height in zip(rows, heights):
        told = _fitting(draw, font, title, width - 2 * _GAP)
        draw.text((_GAP, top), told, font=font, fill=_INK)
        y = top + _LINE + _GAP // 2
        for i, picture in enumerate(queries):
            put(picture, "the picture asked with", _GAP, y + i * tall, _FAINT)
        left = _GAP + lead + (_GAP if lead else 0)
        for i, (picture, caption) in enumerate(hits):
            put(picture, caption, left + i % columns * step, y + i // columns * tall, _INK)
        top += height
    return sheet
