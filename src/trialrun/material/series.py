"""Recorded series from ``.ts`` files, the format of the sets that come with the package aeon.

A file has a head of lines that begin with ``@``, then after ``@data`` one case a line: channels
separated by ``:``, numbers by ``,``, and the class as the last part where the head says so. Files
are read as text; aeon's own code is not imported, so its other requirements are not needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trialrun.core.errors import NotRunnable, UsageError


@dataclass(frozen=True, eq=False)
class Series:
    """Signals of any lengths, each with mean 0 and variance 1."""

    signals: tuple[NDArray[np.float64], ...]

    def __len__(self) -> int:
        return len(self.signals)

    def sampled(self, length: int) -> NDArray[np.float64]:
        """Return (signals, length), linearly interpolated at the middles of equal steps.

        Raises
        ------
        UsageError
            If ``length`` is below 1.
        """
        if length < 1:
            raise UsageError(f"length must be at least 1 sample, got {length!r}")
        at = (np.arange(length) + 0.5) / length
        return np.stack([np.interp(at * len(s) - 0.5, np.arange(len(s)), s) for s in self.signals])

    def block(self, number: int, count: int) -> tuple[Series, Series]:
        """Return the signals of one of ``count`` disjoint blocks, and all others.

        Raises
        ------
        UsageError
            If there are fewer signals than blocks.
        """
        size = len(self) // count
        if not size:
            raise UsageError(f"the file must hold at least {count} signals, got {len(self)}")
        first, last = number * size, (number + 1) * size
        return Series(self.signals[first:last]), Series(self.signals[:first] + self.signals[last:])


@dataclass(frozen=True, eq=False)
class Cases:
    """A ``.ts`` file: each case an array (channels, time), and its class or an empty text."""

    values: tuple[NDArray[np.float64], ...]
    labels: tuple[str, ...]

    def series(self) -> Series:
        """Return every channel of every case as a signal; those that never change are left out."""
        found = []
        for channel in (c[np.isfinite(c)] for case in self.values for c in case):
            if len(channel) > 1 and channel.std() > 0:
                found.append((channel - channel.mean()) / channel.std())
        return Series(tuple(found))


def read_ts(path: str | Path) -> Cases:
    """Read a ``.ts`` file without time stamps.

    Parameters
    ----------
    path : str or Path

    Raises
    ------
    UsageError
        If the file cannot be read, has no data, or a line is not what the format says; the
        message names the line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UsageError(f"{path} must be a readable .ts file: {why}") from error
    head = {}
    values, labels = [], []
    begun = False
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if not begun:
            word, _, rest = text.lower().partition(" ")
            begun = word == "@data"
            head[word.removeprefix("@")] = rest
            continue
        if head.get("timestamps", "false").startswith("true"):
            raise UsageError(f"{path} must be a .ts file without time stamps: it says timestamps")
        parts = text.split(":")
        labelled = head.get("classlabel", "false").startswith("true")
        labels.append(parts.pop().strip() if labelled else "")
        values.append(_case(path, number, parts))
    if not values:
        raise UsageError(f"{path} must hold cases after a line @data, got none")
    return Cases(tuple(values), tuple(labels))


def _case(path: str | Path, number: int, parts: list[str]) -> NDArray[np.float64]:
    try:
        rows = [
            [math.nan if word.strip() == "?" else float(word) for word in part.split(",")]
            for part in parts
        ]
    except ValueError as error:
        raise UsageError(f"{path}, line {number}: {error}, expected numbers or ?") from error
    if not rows or len({len(row) for row in rows}) != 1:
        raise UsageError(f"{path}, line {number}: channels must be equally long and at least one")
    return np.array(rows)


def aeon_set(name: str, part: str = "TRAIN") -> Cases:
    """Read a set that comes with aeon, such as ``GunPoint``, where that package is installed.

    Parameters
    ----------
    name : str
    part : str
        ``TRAIN`` or ``TEST``.

    Raises
    ------
    NotRunnable
        If aeon is not installed: it is no requirement of this package.
    UsageError
        Listing the sets there are, if it has none of that name.
    """
    spec = find_spec("aeon")
    if spec is None or spec.origin is None:
        raise NotRunnable(
            "aeon is not installed, and only its own sets need it: run pip install aeon==1.6.0"
        )
    folder = Path(spec.origin).parent / "datasets" / "data"
    file = folder / name / f"{name}_{part}.ts"
    if not file.is_file():
        known = sorted(p.parent.name for p in folder.glob(f"*/*_{part}.ts"))
        raise UsageError(f"aeon has no set {name} with a part {part}: it has {', '.join(known)}")
    return read_ts(file)
