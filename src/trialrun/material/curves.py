"""Generated signals: band-limited noise, and pen strokes in classes, at any sampling rate.

Both are functions of time that can be sampled as densely as one likes, so the same function can be
had at several rates. Ours; no data of others is used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng
from trialrun.core.shapes import check_range


def _whole(name: str, value: int, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise UsageError(f"{name} must be a whole number, got {value!r}")
    check_range(name, value, low=low)


@dataclass(frozen=True, eq=False)
class Noise:
    """Periodic noise on [0, 1]: ``cosines`` and ``sines`` (signals, cycles)."""

    cosines: NDArray[np.float64]
    sines: NDArray[np.float64]

    def sampled(self, length: int) -> NDArray[np.float64]:
        """Return the signals (signals, length) at the middles of ``length`` equal steps.

        Raises
        ------
        UsageError
            If ``length`` is no whole number of at least 1.
        """
        _whole("length", length, 1)
        turn = np.arange(1, self.cosines.shape[1] + 1)[:, None] * (np.arange(length) + 0.5) / length
        angle = 2 * np.pi * turn
        return self.cosines @ np.cos(angle) + self.sines @ np.sin(angle)


def band_limited_noise(signals: int, *, seed: int, cycles: int = 8) -> Noise:
    """Draw signals with independent normal amplitudes at 1 to ``cycles`` cycles and none above.

    Parameters
    ----------
    signals : int, at least 1
    seed : int
    cycles : int, at least 1
        Highest frequency, in cycles over the whole signal. The variance of a sample is 1.

    Raises
    ------
    UsageError
        If a number is out of range.

    Examples
    --------
    >>> band_limited_noise(3, seed=0).sampled(100).shape
    (3, 100)
    """
    _whole("signals", signals, 1)
    _whole("cycles", cycles, 1)
    random = rng(seed, "band-limited noise")
    cosines, sines = random.standard_normal((2, signals, cycles)) / np.sqrt(cycles)
    return Noise(cosines, sines)


@dataclass(frozen=True, eq=False)
class Strokes:
    """Pen strokes: ``control`` (strokes, points, 2) of a smooth curve, ``y`` (strokes,) classes."""

    control: NDArray[np.float64]
    y: NDArray[np.int64]

    def sampled(self, length: int) -> NDArray[np.float64]:
        """Return pen positions (strokes, length, 2) at ``length`` evenly spaced times.

        Raises
        ------
        UsageError
            If ``length`` is no whole number of at least 2.
        """
        _whole("length", length, 2)
        points = self.control.shape[1]
        at = np.linspace(0, points - 3, length)
        piece = np.minimum(at.astype(int), points - 4)
        t = (at - piece)[:, None]
        # Uniform cubic B-spline: positions, velocities and accelerations are continuous.
        weights = np.concatenate(
            [
                (1 - t) ** 3,
                3 * t**3 - 6 * t**2 + 4,
                -3 * t**3 + 3 * t**2 + 3 * t + 1,
                t**3,
            ],
            axis=1,
        )
        near = self.control[:, piece[:, None] + np.arange(4)]
        return np.einsum("lk,slkd->sld", weights / 6, near)


def pen_strokes(
    strokes: int, *, seed: int, draw: str = "train", classes: int = 10, wobble: float = 0.35
) -> Strokes:
    """Draw strokes of random classes; every class is a smooth curve of its own.

    A stroke is its class's curve with control points moved at random, then turned, scaled,
    slanted and shifted a little.

    Parameters
    ----------
    strokes : int, at least 1
    seed : int
        Decides the classes' curves; strokes differ by ``draw`` as well.
    draw : str
        Name of the sample, such as ``train`` or ``test``.
    classes : int, at least 2
    wobble : float, at least 0
        Standard deviation by which control points move; those of a class have 1.

    Raises
    ------
    UsageError
        If a number is out of range.

    Examples
    --------
    >>> strokes = pen_strokes(20, seed=0)
    >>> strokes.sampled(64).shape, len(strokes.y)
    ((20, 64, 2), 20)
    """
    _whole("strokes", strokes, 1)
    _whole("classes", classes, 2)
    check_range("wobble", wobble, low=0)
    letters = rng(seed, "letters").standard_normal((classes, 9, 2))
    random = rng(seed, "strokes", draw)
    y = random.integers(0, classes, strokes)
    control = letters[y] + wobble * random.standard_normal((strokes, 9, 2))
    angle = 0.2 * random.standard_normal(strokes)
    size = np.exp(0.15 * random.standard_normal(strokes))
    slant = 0.2 * random.standard_normal(strokes)
    cos, sin = size * np.cos(angle), size * np.sin(angle)
    matrix = np.stack([np.stack([cos, -sin + slant], 1), np.stack([sin, cos], 1)], axis=1)
    shift = 0.2 * random.standard_normal((strokes, 1, 2))
    return Strokes(control @ matrix.transpose(0, 2, 1) + shift, y)
