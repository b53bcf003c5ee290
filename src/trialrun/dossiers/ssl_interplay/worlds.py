"""The material of the claims: bits with known eigenvalues, half-moons, and who is whose view."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from trialrun.core.seeds import rng

Array = NDArray[np.float64]

INVARIANCE = np.array([0.9, 0.75, 0.5])
NORMS = np.array([0.4, 0.25, 0.125])
"""The paper's illustration, as a third party quotes it: eigenvalues of T, squared kernel norms."""

KEPT_BITS, NOISY_BITS, FLIP = 3, 5, 0.3


@dataclass(frozen=True, eq=False)
class Views:
    """Views as rows, and which input each is said to come from."""

    rows: Array
    groups: NDArray[np.int64]


def flipped(inputs: Array, chance: Array, n_views: int, random: np.random.Generator) -> Array:
    """Return views (inputs, views, bits) with every bit turned round with its own chance."""
    shape = (len(inputs), n_views, inputs.shape[1])
    return inputs[:, None, :] * np.where(random.random(shape) < chance, -1.0, 1.0)


def grouped(views: Array, *, shuffled: bool, seed: int) -> Views:
    """Return views as rows; ``shuffled`` deals them to inputs anew, so that pairs mean nothing."""
    n, m, width = views.shape
    groups = np.repeat(np.arange(n), m)
    if shuffled:
        groups = rng(seed, "shuffled pairs").permutation(groups)
    return Views(views.reshape(n * m, width), groups)


def three_functions(*, inputs: int, n_views: int, seed: int) -> Array:
    """Return views of three bits that have the illustration's eigenvalues.

    A bit that turns round with chance p has the eigenvalue (1 - 2 p)^2 between two views; scaled by
    1 / norm it has that norm in the linear kernel's space.
    """
    random = rng(seed, "three functions")
    bits = random.choice([-1.0, 1.0], size=(inputs, 3))
    chance = (1 - np.sqrt(INVARIANCE)) / 2
    return flipped(bits, chance, n_views, random) / np.sqrt(NORMS)


def cube() -> Array:
    """Return all points of the cube of kept and noisy bits, the kept ones first."""
    return np.array(list(product([-1.0, 1.0], repeat=KEPT_BITS + NOISY_BITS)))


def cube_views(*, inputs: int, n_views: int, seed: int) -> Array:
    """Return views of random corners whose noisy bits turn round with chance `FLIP`."""
    random = rng(seed, "cube")
    bits = random.choice([-1.0, 1.0], size=(inputs, KEPT_BITS + NOISY_BITS))
    chance = np.repeat([0.0, FLIP], [KEPT_BITS, NOISY_BITS])
    return flipped(bits, chance, n_views, random)


def kept_parities(points: Array) -> Array:
    """Return the 8 products of kept bits at points (n, bits), the constant one first."""
    chosen = [s for size in range(KEPT_BITS + 1) for s in combinations(range(KEPT_BITS), size)]
    return np.column_stack([points[:, list(s)].prod(axis=1) for s in chosen])


@dataclass(frozen=True, eq=False)
class Moons:
    """Points of two interleaved half circles and which of the two each is on."""

    points: Array
    side: NDArray[np.int64]


def half_moons(n: int, seed: int, what: str, *, noise: float = 0.1) -> Moons:
    """Draw n points, half of them on either half-moon."""
    random = rng(seed, "half-moons", what)
    side = np.arange(n) % 2
    turn = np.pi * random.random(n)
    points = np.column_stack([np.cos(turn), np.sin(turn)])
    points[side == 1] = [1.0, 0.5] - points[side == 1]
    return Moons(points + noise * random.normal(size=(n, 2)), side)


def jittered(points: Array, *, scale: float, n_views: int, seed: int) -> Array:
    """Return views (n, views, 2) with normal noise."""
    noise = rng(seed, "jitter").normal(size=(len(points), n_views, points.shape[1]))
    return points[:, None, :] + scale * noise


def label_draws(side: NDArray[np.int64], count: int, draws: int, seed: int) -> list[NDArray]:
    """Return ``draws`` choices of ``count`` labelled inputs, half of either class."""
    random = rng(seed, "labels")
    return [
        np.concatenate(
            [random.choice(np.flatnonzero(side == c), count // 2, replace=False) for c in (0, 1)]
        )
        for _ in range(draws)
    ]
