"""The user's own drawings: a folder for each style, pictures of the same names in all of them.

``STYLE/NAME.png`` (or another usual ending, in folders below as well). A name that some style lacks
is left out, and so is one whose picture cannot be read in some style; both are counted and named.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trialrun.core.errors import UsageError
from trialrun.dossiers.pic2word.drawings import SIZE, Drawings, Things
from trialrun.representation.pic2word import Preprocess, find_pictures, open_picture

LEAST = 60
"""Names that all styles must share: with fewer, hardly more than ten are held out to be found."""
MOST_WORDS = 8
"""Words of a style's name, so that a sentence with it fits the text tower."""
_WORD = re.compile(r"[^\W_]+")
_AS_IS = Preprocess(SIZE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Own(NamedTuple):
    """The user's drawings, a first picture for an example, and what was left out, in sentences."""

    drawings: Drawings
    example: Path
    left_out: tuple[str, ...]


def _spoken(name: str) -> str:
    return " ".join(_WORD.findall(name))


def _opening(style: str) -> str:
    said = _spoken(style)
    return f"{'an' if said[0].lower() in 'aeiou' else 'a'} {said} drawing"


def _styles(root: Path) -> tuple[str, ...]:
    """Return the names of the style folders, which must differ as words do."""
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder: give one that holds a folder for each style")
    names = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != "."))
    if len(names) < 2:
        raise UsageError(
            f"{root} must hold a folder of pictures for each of at least two styles, got "
            f"{len(names)}"
        )
    words: dict[str, str] = {}
    for name in names:
        said = _spoken(name).lower()
        if not 1 <= len(said.split()) <= MOST_WORDS:
            raise UsageError(
                f"the style folder {name!r} must be named in 1 to {MOST_WORDS} words, got "
                f"{len(said.split())}: rename it"
            )
        if said in words:
            raise UsageError(
                f"the style folders {words[said]!r} and {name!r} read as the same words, {said!r}: "
                "rename one"
            )
        words[said] = name
    return names


def _named_files(folder: Path) -> tuple[dict[str, Path], list[Path]]:
    """Return a style's pictures by name, and those whose name another one has already."""
    found: dict[str, Path] = {}
    doubles = []
    if any(folder.iterdir()):
        for path in find_pictures(folder):
            name = _within(folder, path.with_suffix(""))
            key = unicodedata.normalize("NFC", name).casefold()
            if key in found:
                doubles.append(path)
            found.setdefault(key, path)
    return found, doubles


def _square(path: str) -> NDArray[np.uint8]:
    """Read a picture as the kept CLIP's own preparation would."""
    pixels = _AS_IS(open_picture(path)).numpy() * 255
    return np.round(pixels).astype(np.uint8).transpose(1, 2, 0)


@lru_cache(maxsize=1)
def _read(files: tuple[tuple[str, int], ...]) -> tuple[NDArray[np.uint8] | str, ...]:
    """Return each file's picture, or why it cannot be read; files come with their time of change.

    The arms and seeds that one worker process runs share them.
    """
    out: list[NDArray[np.uint8] | str] = []
    for path, _ in files:
        try:
            out.append(_square(path))
        except OSError as error:
            out.append(str(error))
    return tuple(out)


def _within(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _told(what: str, named: Sequence[str]) -> tuple[str, ...]:
    if not named:
        return ()
    some = ", ".join(named[:3]) + (", ..." if len(named) > 3 else "")
    return (f"{what}: {len(named)} ({some})",)


def read_own(folder: str | Path) -> Own:
    """Read the drawings that every style of a folder has.

    Raises
    ------
    UsageError
        If it is no folder, holds fewer than two styles, their names do not tell them apart in
        words, or they share fewer than `LEAST` names of readable pictures.
    """
    root = Path(folder)
    styles = _styles(root)
    listed = [_named_files(root / style) for style in styles]
    every = set().union(*(found for found, _ in listed))
    shared = sorted(every.intersection(*(found for found, _ in listed)))
    files = [[found[name] for found, _ in listed] for name in shared]
    paths = [path for row in files for path in row]
    read = _read(tuple((str(path), path.stat().st_mtime_ns) for path in paths))
    rows = [read[i : i + len(styles)] for i in range(0, len(read), len(styles))]
    whole = [i for i, row in enumerate(rows) if not any(isinstance(part, str) for part in row)]
    broken = [f"{_within(root, p)} ({w})" for p, w in zip(paths, read) if isinstance(w, str)]
    doubles = [_within(root, path) for _, more in listed for path in more]
    left_out = (
        *_told("pictures that cannot be read, whose names are left out", broken),
        *_told("names left out because some style lacks them", sorted(every.difference(shared))),
        *_told("pictures left out because another has their name", doubles),
    )
    if len(whole) < LEAST:
        each = ", ".join(f"{style} {len(found)}" for style, (found, _) in zip(styles, listed))
        raise UsageError(
            f"the styles in {root} must share at least {LEAST} names of pictures that can be read, "
            f"got {len(whole)} (pictures: {each}{''.join('; ' + told for told in left_out[:1])})"
        )
    images = np.stack([np.stack(rows[i]) for i in whole])
    names = tuple(shared[i] for i in whole)
    things = Things(names, tuple(map(_spoken, names)), (), styles, tuple(map(_opening, styles)))
    return Own(Drawings(things, images), files[whole[0]][0], left_out)
