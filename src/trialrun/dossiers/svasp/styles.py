"""Four ways to draw a picture anew: what was trained on is clean, what is tested on is not.

All take ink, which is 1 less the brightness, as (n, 1 or 3, side, side) and give pictures of shape
(n, 3, side, side) from 0 to 1. Letters have one plane of ink, pictures of the user's own three.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ink = NDArray[Any]
SHIFTED = ("texture", "inverted", "outline", "noise")


def _three(planes: Ink) -> NDArray[np.float32]:
    return planes if planes.shape[1] == 3 else np.repeat(planes, 3, axis=1)


def _smoothed(ink: Ink, passes: int = 1) -> Ink:
    for _ in range(passes):
        wide = np.pad(ink, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
        rows = (wide[:, :, :-2] + 2 * wide[:, :, 1:-1] + wide[:, :, 2:]) / 4
        ink = (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 4
    return ink


def _grown(ink: Ink) -> Ink:
    wide = np.pad(ink, ((0, 0), (0, 0), (1, 1), (1, 1)))
    high, across = ink.shape[-2:]
    shifts = [wide[..., i : i + high, j : j + across] for i in range(3) for j in range(3)]
    return np.max(shifts, axis=0)


def clean(ink: Ink, _: np.random.Generator) -> NDArray[np.float32]:
    """Leave the picture as it is: dark ink on white paper."""
    return _three(1 - ink)


def texture(ink: Ink, random: np.random.Generator) -> NDArray[np.float32]:
    """Put coloured ink on coloured waves, every picture in colours of its own."""
    n, side = len(ink), ink.shape[-1]
    grid = (
        np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), dtype=np.float32)
        / side
    )
    waves = np.zeros((n, 3, side, side), dtype=np.float32)
    for _ in range(3):
        ways = random.uniform(-18, 18, size=(n, 2)).astype(np.float32)
        phase = random.uniform(0, 2 * np.pi, size=(n, 3, 1, 1)).astype(np.float32)
        waves += 0.08 * np.sin(np.tensordot(ways, grid, 1)[:, None] + phase)
    paper = random.uniform(0.45, 0.9, size=(n, 3, 1, 1)).astype(np.float32)
    colour = paper - random.uniform(0.35, 0.45, size=(n, 3, 1, 1)).astype(np.float32)
    return np.clip((paper + waves) * (1 - ink) + colour * ink, 0, 1)


def inverted(ink: Ink, _: np.random.Generator) -> NDArray[np.float32]:
    """Turn to light ink on dark paper, with three tenths of the contrast."""
    return _three(0.35 + 0.3 * ink)


def outline(ink: Ink, _: np.random.Generator) -> NDArray[np.float32]:
    """Leave the edge of the ink alone."""
    return _three(1 - (_grown(ink) - ink))


def noise(ink: Ink, random: np.random.Generator) -> NDArray[np.float32]:
    """Blur the picture and add grain."""
    blurred = 1 - _smoothed(ink, 4)
    shape = (len(ink), 3, *ink.shape[2:])
    grain = 0.15 * random.standard_normal(shape, dtype=np.float32)
    return np.clip(blurred + grain, 0, 1).astype(np.float32)


STYLES: dict[str, Callable[[Ink, np.random.Generator], NDArray[np.float32]]] = {
    "clean": clean,
    "texture": texture,
    "inverted": inverted,
    "outline": outline,
    "noise": noise,
}
