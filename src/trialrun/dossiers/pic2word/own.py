"""The user's own drawings: a folder for each style, pictures of the same names in all of them.

``STYLE/NAME.png`` (or another usual ending, in folders below as well). A name that some style
lacks is left out, and so is one whose picture cannot be read in some style. Things are told apart
by the words of their names, which is all that sentences say: of names that read as the same words
the first is taken. What is left out is counted and named, and so are pictures that two names share.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trialrun.core.errors import UsageError
from trialrun.dossiers.pic2word.drawings import SIZE, Drawings, Things
from trialrun.representation.pic2word import Preprocess, find_pictures, open_picture

LEAST = 60
"""Names, apart in their words, that all styles must share: of fewer hardly ten are held out."""
MOST_WORDS = 8
"""Words of a style's name, so that a sentence with it fits the text tower."""
_WORD = re.compile(r"[^\W_]+")
_AS_IS = Preprocess(SIZE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Own(NamedTuple):
    """The user's drawings, a first picture for an example, and what is to be said of the rest."""

    drawings: Drawings
    example: Path
    remarks: tuple[str, ...]


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


def _in_words(root: Path, shared: Sequence[str]) -> dict[str, str]:
    """Return names with their words, of which each must have one."""
    words = {name: _spoken(name) for name in shared}
    silent = [name for name, said in words.items() if not said]
    if silent:
        some = ", ".join(map(repr, silent[:3])) + (", ..." if len(silent) > 3 else "")
        raise UsageError(
            f"pictures in {root} must be named in words, as sentences name them, got {len(silent)} "
            f"without a letter or digit ({some}): rename them or take them out"
        )
    return words


def _whole(
    root: Path, files: dict[str, list[Path]]
) -> tuple[dict[str, NDArray[np.uint8]], list[str]]:
    """Return the pictures of names that can be read in every style, and what cannot be, and why."""
    paths = [path for row in files.values() for path in row]
    read = iter(_read(tuple((str(path), path.stat().st_mtime_ns) for path in paths)))
    whole, broken = {}, []
    for name, row in files.items():
        pictures = []
        for path, got in zip(row, read):
            if isinstance(got, str):
                broken.append(f"{_within(root, path)} ({got})")
            else:
                pictures.append(got)
        if len(pictures) == len(row):
            whole[name] = np.stack(pictures)
    return whole, broken


def _first_of_each(names: Collection[str], words: dict[str, str]) -> tuple[list[str], list[str]]:
    """Return names that say what none before says, and of the others which is said again."""
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(words[name], name)
    again = [f"{name} as {first[words[name]]}" for name in names if first[words[name]] != name]
    return list(first.values()), again


def _under_two_names(names: Sequence[str], images: NDArray[np.uint8]) -> list[str]:
    """Return names of which some picture is the very same as one of a name before."""
    first: dict[bytes, str] = {}
    found: dict[str, str] = {}
    for name, styles in zip(names, images):
        for picture in styles:
            other = first.setdefault(picture.tobytes(), name)
            if other != name:
                found.setdefault(name, f"{name} as {other}")
    return list(found.values())


def read_own(folder: str | Path) -> Own:
    """Read the drawings that every style of a folder has.

    Raises
    ------
    UsageError
        If it is no folder, holds fewer than two styles, their names do not tell them apart in
        words, a name that they share has no words, or they share fewer than `LEAST` names of
        readable pictures, counting those that read as the same words once.
    """
    root = Path(folder)
    styles = _styles(root)
    listed = [_named_files(root / style) for style in styles]
    every = set().union(*(found for found, _ in listed))
    shared = sorted(every.intersection(*(found for found, _ in listed)))
    words = _in_words(root, shared)
    files = {name: [found[name] for found, _ in listed] for name in shared}
    pictures, broken = _whole(root, files)
    names, alike = _first_of_each(pictures, words)
    doubles = [_within(root, path) for _, more in listed for path in more]
    lost = (
        *_told("pictures that cannot be read, whose names are left out", broken),
        *_told("names left out because another reads as the same words", alike),
        *_told("names left out because some style lacks them", sorted(every.difference(shared))),
        *_told("pictures left out because another has their name", doubles),
    )
    if len(names) < LEAST:
        each = ", ".join(f"{style} {len(found)}" for style, (found, _) in zip(styles, listed))
        raise UsageError(
            f"the styles in {root} must share at least {LEAST} names of pictures that can be read, "
            f"no two of the same words, got {len(names)} (pictures: {'; '.join((each, *lost))})"
        )
    images = np.stack([pictures[name] for name in names])
    twice = _told(
        "names with a picture that another name has too, so that what is held out may have been "
        "seen",
        _under_two_names(names, images),
    )
    said = tuple(words[name] for name in names)
    things = Things(tuple(names), said, (), styles, tuple(map(_opening, styles)))
    return Own(Drawings(things, images), files[names[0]][0].resolve(), (*lost, *twice))
