"""Letters as classes, drawers as pictures: one clean source, and targets in other styles.

Base, validation and novel characters are disjoint. A drawer's shapes occur on both sides, a
character's never do. Targets are novel characters restyled, and handwritten digits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from trialrun.claims.contract import Budget, Context
from trialrun.core.seeds import rng
from trialrun.fewshot.svasp import Pictures
from trialrun.material.digits import load_digits
from trialrun.material.glyphs import load_glyphs

SIDE = 32
DIGITS = 40
SHIFTED = ("texture", "inverted", "outline", "noise")
Ink = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class SVasPBudget(Budget):
    """Size of a run: characters, warm-start batches, training and test episodes, directions."""

    characters: int
    warm: int
    episodes: int
    test_episodes: int
    directions: int
    probe: int
    digits: bool


def size(ctx: Context) -> SVasPBudget:
    """Return the budget as this dossier's own kind."""
    return cast(SVasPBudget, ctx.budget)


@dataclass(frozen=True, eq=False)
class World:
    """Base characters in the source's style, and novel characters in every style by name."""

    base: Pictures
    targets: dict[str, Pictures]


def _smoothed(ink: Ink, passes: int = 1) -> Ink:
    for _ in range(passes):
        wide = np.pad(ink, ((0, 0), (1, 1), (1, 1)), mode="edge")
        rows = (wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]) / 4
        ink = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4
    return ink


def _grown(ink: Ink) -> Ink:
    wide = np.pad(ink, ((0, 0), (1, 1), (1, 1)))
    shifts = [
        wide[:, i : i + ink.shape[1], j : j + ink.shape[2]] for i in range(3) for j in range(3)
    ]
    return np.max(shifts, axis=0)


def clean(ink: Ink, _: np.random.Generator) -> NDArray[np.float32]:
    """Dark ink on white paper, as (n, 3, side, side)."""
    return np.repeat(1 - ink[:, None], 3, axis=1)


def texture(ink: Ink, random: np.random.Generator) -> NDArray[np.float32]:
    """Coloured ink on coloured waves, every picture in colours of its own."""
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
    mask = ink[:, None]
    return np.clip((paper + waves) * (1 - mask) + colour * mask, 0, 1)


def inverted(ink: Ink, _: np.random.Generator) -> NDArray[np.float32]:
    """Light ink on dark paper, with three tenths of the contrast."""
    return np.repeat(0.35 + 0.3 * ink[:, None], 3, axis=1)


def outline(ink: Ink, _: np.random.Generator) -> NDArray[np.float32]:
    """Leave the edge of the ink alone."""
    return np.repeat(1 - (_grown(ink) - ink)[:, None], 3, axis=1)


def noise(ink: Ink, random: np.random.Generator) -> NDArray[np.float32]:
    """Blur the picture and add grain."""
    blurred = 1 - _smoothed(ink, 4)[:, None]
    grain = 0.15 * random.standard_normal((len(ink), 3, *ink.shape[1:]), dtype=np.float32)
    return np.clip(blurred + grain, 0, 1).astype(np.float32)


STYLES: dict[str, Callable[[Ink, np.random.Generator], NDArray[np.float32]]] = {
    "clean": clean,
    "texture": texture,
    "inverted": inverted,
    "outline": outline,
    "noise": noise,
}


def _digits(seed: int) -> Pictures:
    """Some handwritten digits of each class, dark on white: a target that nobody restyled."""
    digits, random = load_digits(), rng(seed, "digits")
    rows = np.concatenate(
        [random.permutation(np.flatnonzero(digits.y == y))[:DIGITS] for y in range(10)]
    )
    pixels = torch.from_numpy(digits.pixels[rows]).view(-1, 1, 28, 28)
    paper = 1 - torch.nn.functional.pad(pixels, (2, 2, 2, 2))
    return Pictures(paper.expand(-1, 3, -1, -1).contiguous(), np.repeat(np.arange(10), DIGITS))


def make_world(ctx: Context) -> World:
    """Draw the world of a seed: other characters on every side of the split, other colours."""
    glyphs = load_glyphs(size=SIDE, limit=size(ctx).characters, seed=ctx.seed)
    split = glyphs.split(seed=ctx.seed)
    drawers = len(glyphs.drawers)

    def pictures(rows: NDArray[np.int64], style: str) -> Pictures:
        ink = 1 - glyphs.images[rows].reshape(-1, SIDE, SIDE).astype(np.float32) / 255
        found = STYLES[style](ink, rng(ctx.seed, "style", style))
        return Pictures(torch.from_numpy(found), np.repeat(np.arange(len(rows)), drawers))

    base, _, novel = split  # nothing is chosen by validation here
    targets = {style: pictures(novel, style) for style in STYLES}
    if size(ctx).digits:
        targets["digits"] = _digits(ctx.seed)
    return World(pictures(base, "clean"), targets)
