"""Drawn pictures kept as ``.npy`` files, and the checks that the picture loaders share.

A file's name holds what it depends on; four bytes after the array hold the array's CRC-32, so that
a file that was cut off or changed is drawn again. A file is written beside its place and moved
there in one step: two processes that draw the same pictures do not disturb one another.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import warnings
import zlib
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trialrun.core.errors import MissingExtra, NotRunnable, UsageError
from trialrun.material.packs import cache_root

Pixels = NDArray[np.uint8]
Indices = NDArray[np.int64]

SMALLEST, LARGEST = 8, 512
_SUM_BYTES = 4


def installed(package: str, *, pinned: str | None = None) -> str:
    """Return ``package==version`` of an installed package of the ``pictures`` extra.

    Raises
    ------
    MissingExtra
        If it is not installed.
    NotRunnable
        If its version is not the pinned one, whose pictures and order the checks were made with.
    """
    try:
        found = version(package)
    except PackageNotFoundError as error:
        raise MissingExtra(
            f"{package} is needed here and is not installed: run pip install 'trialrun[pictures]'"
        ) from error
    if pinned is not None and found != pinned:
        raise NotRunnable(
            f"{package} must be version {pinned}, got {found}: run pip install {package}=={pinned}"
        )
    return f"{package}=={found}"


def check_size(size: int) -> None:
    """Raise unless a picture's side is a whole number from 8 to 512 pixels.

    Raises
    ------
    UsageError
    """
    whole = isinstance(size, int | np.integer) and not isinstance(size, bool)
    if not whole or not SMALLEST <= size <= LARGEST:
        raise UsageError(f"size must be {SMALLEST} to {LARGEST} whole pixels, got {size!r}")


def check_names(what: str, names: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return names as a tuple after checking that each is known and none comes twice.

    Raises
    ------
    UsageError
        Listing the names there are.
    """
    chosen = (names,) if isinstance(names, str) else tuple(names)
    wrong = [name for name in chosen if name not in known]
    if wrong or not chosen or len(set(chosen)) != len(chosen):
        got = repr(wrong[0]) if wrong else repr(chosen)
        raise UsageError(f"{what} must be different names of {', '.join(known)}; got {got}")
    return chosen


def check_limit(limit: int | None, available: int, what: str) -> None:
    """Raise unless ``limit`` is None or a whole number from 1 to what is there.

    Raises
    ------
    UsageError
    """
    if limit is None:
        return
    whole = isinstance(limit, int | np.integer) and not isinstance(limit, bool)
    if not whole or not 1 <= limit <= available:
        raise UsageError(f"limit must be 1 to {available} {what}, got {limit!r}")


def spread(labels: Sequence[str], count: int, random: np.random.Generator) -> Indices:
    """Choose ``count`` indices evenly over labels: one of every label, then a second, and so on."""
    order = random.permutation(len(labels))
    turn: dict[str, int] = {}
    rank = np.empty(len(labels), np.int64)
    for index in order:
        rank[index] = turn[labels[index]] = turn.get(labels[index], -1) + 1
    # Where the last round is not whole, chance says which labels are in it.
    return np.sort(order[np.argsort(rank[order], kind="stable")][:count])


def parts(
    labels: Sequence[str], fractions: Sequence[float], random: np.random.Generator
) -> tuple[Indices, ...]:
    """Split indices into parts of given fractions that are the same within every label.

    Within a label the parts differ from their fraction by less than one index; what is rounded off
    in one label is made up for in the next, so that labels of one index also reach every part.
    """
    groups: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        groups.setdefault(label, []).append(index)
    line = np.concatenate([random.permutation(np.array(group)) for group in groups.values()])
    # A low-discrepancy walk: at every step the part that is furthest behind its fraction is served.
    wanted = np.asarray(fractions, float)
    served = np.zeros(len(wanted))
    where = np.empty(len(line), np.int64)
    for step in range(len(line)):
        where[step] = np.argmax(wanted * (step + 1) - served)
        served[where[step]] += 1
    return tuple(np.sort(line[where == part]) for part in range(len(wanted)))


def check_fractions(fractions: Sequence[float], least: int) -> None:
    """Raise unless every fraction is above 0, they add up to 1, and each part gets an index.

    Raises
    ------
    UsageError
    """
    fine = all(0 < f < 1 for f in fractions) and abs(sum(fractions) - 1) < 1e-9
    if not fine:
        raise UsageError(f"the parts must each be above 0 and add up to 1, got {tuple(fractions)}")
    if least < 1 / min(fractions):
        raise UsageError(
            f"{least} are too few to split into parts of {tuple(fractions)}: "
            f"at least {int(np.ceil(1 / min(fractions)))} are needed"
        )


def folder_of(cache: str | Path | None) -> Path:
    """Return the folder that pictures are kept in."""
    return cache_root() / "pictures" if cache is None else Path(cache)


def file_name(kind: str, size: int, depends_on: Sequence[str]) -> str:
    """Name the file of pictures that depend on versions and on what is drawn."""
    digest = hashlib.sha256("\n".join(depends_on).encode()).hexdigest()[:16]
    return f"{kind}-{size}-{digest}.npy"


def read(path: Path, shape: tuple[int, ...]) -> Pixels | None:
    """Return the pictures of a file, or None where it is missing or not whole."""
    try:
        raw = path.read_bytes()
        pixels = np.load(io.BytesIO(raw), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if pixels.shape != shape or pixels.dtype != np.uint8:
        return None
    expected = int.from_bytes(raw[-_SUM_BYTES:], "big")
    return pixels if expected == zlib.crc32(pixels.tobytes()) else None


def write(path: Path, pixels: Pixels) -> None:
    """Put pictures into a file in one step; a folder that cannot be written is a warning."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=".drawing-")
        try:
            with os.fdopen(handle, "wb") as sink:
                np.save(sink, pixels, allow_pickle=False)
                sink.write(zlib.crc32(pixels.tobytes()).to_bytes(_SUM_BYTES, "big"))
            Path(scratch).replace(path)
        except BaseException:
            Path(scratch).unlink(missing_ok=True)
            raise
    except OSError as error:
        warnings.warn(f"pictures could not be kept in {path.parent}: {error}", stacklevel=3)


def kept(path: Path, shape: tuple[int, ...], draw: Callable[[], Pixels]) -> Pixels:
    """Read a file of pictures, or draw them and keep them."""
    found = read(path, shape)
    if found is not None:
        return found
    drawn = np.ascontiguousarray(draw())
    write(path, drawn)
    return drawn
