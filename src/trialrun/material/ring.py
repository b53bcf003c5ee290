"""Ring worlds: domains on a circle whose class boundary turns with the domain's angle.

Made after the description of the DG-15 toy data (two classes at opposite ends of a diameter, one
diameter per domain); generated anew, no file of others is used. Ours, and so not comparable with
published figures: a constant radius, the angles' distribution, and the ``interpolate`` layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng
from trialrun.core.shapes import check_range

LAYOUTS = ("extrapolate", "interpolate")


@dataclass(frozen=True, eq=False)
class RingWorld:
    """A ring world; domains are numbered 0, 1, ... by angle.

    ``X`` (n, 2) are points in the plane, ``y`` (n,) classes 0 and 1, ``domains`` (n,) the points'
    domains. Per domain: ``angles`` in radians, ``metadata`` (cosine and sine of the angle), and
    ``adjacency``, a symmetric random graph of 0 and 1. ``train`` and ``test`` list domains.
    """

    X: NDArray[np.float64]
    y: NDArray[np.int64]
    domains: NDArray[np.int64]
    angles: NDArray[np.float64]
    metadata: NDArray[np.float64]
    adjacency: NDArray[np.float64]
    train: NDArray[np.int64]
    test: NDArray[np.int64]


class Places(NamedTuple):
    """Angles of all domains in radians, and the training domains' numbers."""

    angles: NDArray[np.float64]
    train: NDArray[np.int64]


def _angles(layout: str, n_train: int, n_test: int, random: np.random.Generator) -> Places:
    """Draw angles in increasing order, and the numbers of the training domains among them."""
    if layout == "interpolate":
        angles = np.sort(random.uniform(0, 2 * np.pi, n_train + n_test))
        return Places(angles, np.sort(random.permutation(n_train + n_test)[:n_train]))
    near = random.uniform(0, np.pi / 2, n_train)
    far = random.uniform(np.pi / 2, np.pi, n_test)
    return Places(np.concatenate([np.sort(near), np.sort(far)]), np.arange(n_train))


def _graph(angles: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """Join two domains with the probability of their cosine, and never where it is below 1/2."""
    cosine = np.cos(angles[:, None] - angles)
    chance = np.where(cosine < 0.5, 0.0, cosine)
    upper = np.triu(random.random(chance.shape) < chance, k=1)
    return (upper | upper.T | np.eye(len(angles), dtype=bool)).astype(float)


def ring_world(
    *,
    seed: int,
    layout: str = "extrapolate",
    n_domains: int = 15,
    points: int = 100,
    radius: float = 1.0,
    spread: float = 0.5,
) -> RingWorld:
    """Generate a ring world.

    Parameters
    ----------
    seed : int
    layout : {"extrapolate", "interpolate"}
        Two fifths of the domains are for training. ``extrapolate`` has them in the first
        quarter of the circle and the others in the second; ``interpolate`` draws all angles from
        the whole circle and the training domains at random among them.
    n_domains : int, at least 4
    points : int, at least 2
        Points per domain, half of each class (the odd one is of class 0).
    radius : float, at least 0
        Distance of the class centres from the origin.
    spread : float, above 0
        Standard deviation, per axis, of a normal cut off at distance 1 from the centre.

    Raises
    ------
    ValueError
        For an unknown layout or a number out of range.

    Examples
    --------
    >>> world = ring_world(seed=0, points=10)
    >>> world.X.shape, world.train.tolist()
    ((150, 2), [0, 1, 2, 3, 4, 5])
    """
    if layout not in LAYOUTS:
        raise UsageError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    check_range("n_domains", n_domains, low=4)
    check_range("points", points, low=2)
    check_range("radius", radius, low=0)
    if not spread > 0:
        raise UsageError(f"spread must be above 0, got {spread!r}")
    random = rng(seed, "ring", layout)
    n_train = max(2, round(0.4 * n_domains))
    angles, train = _angles(layout, n_train, n_domains - n_train, random)
    metadata = np.column_stack([np.cos(angles), np.sin(angles)])
    adjacency = _graph(angles, random)
    domains = np.repeat(np.arange(n_domains), points)
    y = np.tile(np.arange(points) % 2, n_domains)
    centres = radius * metadata[domains] * np.where(y == 1, 1.0, -1.0)[:, None]
    # The squared length of a 2-d normal is exponential, so cutting it off has a closed form.
    inside = 1 - np.exp(-0.5 / spread**2)
    length = spread * np.sqrt(-2 * np.log1p(-random.random(len(y)) * inside))
    turn = random.uniform(0, 2 * np.pi, len(y))
    X = centres + length[:, None] * np.column_stack([np.cos(turn), np.sin(turn)])
    test = np.setdiff1d(np.arange(n_domains), train)
    return RingWorld(X, y, domains, angles, metadata, adjacency, train, test)
