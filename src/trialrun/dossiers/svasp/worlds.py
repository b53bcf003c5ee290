"""Letters as classes, drawers as pictures: one clean source, and targets in other styles.

Base, validation and novel characters are disjoint. A drawer's shapes occur on both sides, a
character's never do. Targets are novel characters restyled, and two kinds of pictures that nobody
restyled: handwritten digits, and emoji by three drawers, whose classes are Unicode's sub-categories
and whose pictures are code points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from trialrun.claims.contract import Budget, Context
from trialrun.core.seeds import rng
from trialrun.dossiers.svasp.styles import SHIFTED, STYLES, Ink
from trialrun.fewshot.svasp import Pictures
from trialrun.material.digits import load_digits
from trialrun.material.emoji import load_emoji
from trialrun.material.glyphs import load_glyphs

SIDE = 32
DIGITS = 40
DRAWERS = ("openmoji", "twemoji", "noto-line")
FEW = ("animal-mammal", "clothing", "geometric", "time", "transport-ground")
"""The sub-categories that a smoke run draws."""
LEAST, MOST = 16, 24
"""Code points that a sub-category has to be a class, and of which no more are taken."""


@dataclass(frozen=True, kw_only=True)
class SVasPBudget(Budget):
    """Size of a run: characters, warm-start batches, training and test episodes, directions.

    ``whole`` takes digits and every sub-category of emoji, else five of those alone.
    """

    characters: int
    warm: int
    episodes: int
    test_episodes: int
    directions: int
    probe: int
    whole: bool


def size(ctx: Context) -> SVasPBudget:
    """Return the budget as this dossier's own kind."""
    return cast(SVasPBudget, ctx.budget)


@dataclass(frozen=True, eq=False)
class World:
    """Base classes in the source's style, and novel classes in every target by name.

    ``judged`` are the targets whose mean the accuracy claims are about.
    """

    base: Pictures
    targets: dict[str, Pictures]
    judged: tuple[str, ...] = SHIFTED


def _digits(seed: int) -> Pictures:
    """Some handwritten digits of each class, dark on white: a target that nobody restyled."""
    digits, random = load_digits(), rng(seed, "digits")
    rows = np.concatenate(
        [random.permutation(np.flatnonzero(digits.y == y))[:DIGITS] for y in range(10)]
    )
    pixels = torch.from_numpy(digits.pixels[rows]).view(-1, 1, 28, 28)
    paper = 1 - torch.nn.functional.pad(pixels, (2, 2, 2, 2))
    return Pictures(paper.expand(-1, 3, -1, -1).contiguous(), np.repeat(np.arange(10), DIGITS))


def _emoji(ctx: Context) -> dict[str, Pictures]:
    """One target for each drawer: the same code points as the others draw them."""
    emoji = load_emoji(DRAWERS, size=SIDE, subgroups=None if size(ctx).whole else FEW)
    names, counts = np.unique(emoji.subgroups, return_counts=True)
    random, groups = rng(ctx.seed, "emoji"), np.array(emoji.subgroups)
    chosen = [
        random.permutation(np.flatnonzero(groups == name))[:MOST] for name in names[counts >= LEAST]
    ]
    rows = np.concatenate(chosen)
    labels = np.repeat(np.arange(len(chosen)), [len(part) for part in chosen])
    pixels = torch.from_numpy(emoji.images[rows]).permute(1, 0, 4, 2, 3)
    return {drawer: Pictures(drawn.contiguous(), labels) for drawer, drawn in zip(DRAWERS, pixels)}


def restyled(ink: Ink, labels: NDArray[np.int64], style: str, seed: int) -> Pictures:
    """Return pictures of some ink, (n, 1 or 3, side, side), in a style."""
    found = STYLES[style](ink, rng(seed, "style", style))
    return Pictures(torch.from_numpy(found), labels)


def letter_world(ctx: Context) -> World:
    """Draw the world of a seed: other characters on every side of the split, other colours."""
    glyphs = load_glyphs(size=SIDE, limit=size(ctx).characters, seed=ctx.seed)
    split = glyphs.split(seed=ctx.seed)
    drawers = len(glyphs.drawers)

    def pictures(rows: NDArray[np.int64], style: str) -> Pictures:
        ink = 1 - glyphs.images[rows].reshape(-1, 1, SIDE, SIDE).astype(np.float32) / 255
        return restyled(ink, np.repeat(np.arange(len(rows)), drawers), style, ctx.seed)

    base, _, novel = split  # nothing is chosen by validation here
    targets = {style: pictures(novel, style) for style in STYLES}
    if size(ctx).whole:
        targets["digits"] = _digits(ctx.seed)
    return World(pictures(base, "clean"), {**targets, **_emoji(ctx)})
