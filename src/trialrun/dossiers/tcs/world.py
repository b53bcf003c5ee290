"""What the claims of tcs are tried on: emoji, or the user's own pictures, split by what they show.

An item is a code point with its drawings in three styles, or one picture of the user's own. Items
are split, never drawings, so that nothing of a test item is seen in training, by the teacher
either. Labels are Unicode's sub-categories; the teacher never sees them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trialrun.claims.contract import Budget, Context, On
from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng, split
from trialrun.fewshot.tcs import few_shots
from trialrun.material.class_folders import ClassFolders, read_class_folders
from trialrun.material.emoji import load_emoji
from trialrun.material.glyphs import load_glyphs

CLASSES = (
    "animal-mammal", "transport-ground", "sky & weather", "clothing", "country-flag", "alphanum",
    "food-prepared", "geometric", "time", "person-role", "place-building", "sport",
    "face-concerned", "tool", "heart", "household", "av-symbol", "game", "office", "animal-bird",
)  # fmt: skip
"""The twenty largest sub-categories of the emoji that all three styles draw."""
MOST = 60
HELD_OUT = 0.3
SCRIPTS = ("latin", "greek", "georgian", "hebrew", "thai")
DRAWERS = ("regular-upright", "bold-upright", "medium-slanted")
LETTERS = 900
"""Up to so many characters are drawn alone; above it all that the scripts have."""


@dataclass(frozen=True, kw_only=True)
class TCSBudget(Budget):
    """Sizes of a run: classes, picture side, steps of teacher and students, timed steps."""

    classes: int
    size: int
    teacher_steps: int
    teacher_batch: int
    steps: int
    batch: int
    shots: int
    timed: int
    width: float = 1.0


@dataclass(frozen=True, eq=False)
class World:
    """Pictures in [-1, 1] of shape (items, drawings, 3, size, size), split by item.

    ``pool`` are training items without labels for the teacher; ``train`` and ``test`` are items of
    the classes, with labels ``y_train`` and ``y_test`` (items,). ``foreign`` (n, 3, size, size) are
    pictures of another kind, rendered letters, as many as there are pictures in ``train`` or as
    many as there are letters.
    """

    pool: Tensor
    train: Tensor
    y_train: Tensor
    test: Tensor
    y_test: Tensor
    foreign: Tensor
    classes: int

    def shots(self, ctx: Context, point: str) -> tuple[Tensor, Tensor]:
        """Return training pictures (n, 3, size, size) and labels of a point."""
        chosen = np.arange(len(self.train))
        if point != ALL:
            chosen = few_shots(self.y_train.numpy(), size(ctx).shots, seed=ctx.seed)
        drawings = self.train.shape[1]
        images = self.train[chosen].flatten(0, 1)
        return images, self.y_train[chosen].repeat_interleave(drawings)


ALL = "all"


def size(ctx: Context) -> TCSBudget:
    """Return the budget as what it is."""
    if not isinstance(ctx.budget, TCSBudget):
        raise TypeError(f"tcs needs a TCSBudget, got {type(ctx.budget).__name__}")
    return ctx.budget


def points(ctx: Context) -> tuple[str, ...]:
    """Return the names of the points: a few shots, and all items."""
    return (f"{size(ctx).shots} shots", ALL)


def as_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Turn uint8 (..., size, size, 3) into float32 (..., 3, size, size) in [-1, 1]."""
    return torch.from_numpy(np.moveaxis(images, -1, -3).astype(np.float32) / 127.5 - 1)


def _foreign(ctx: Context, count: int) -> Tensor:
    needed = -(-count // len(DRAWERS))
    glyphs = load_glyphs(
        SCRIPTS, size=size(ctx).size, limit=needed if needed <= LETTERS else None,
        seed=split(ctx.seed, "letters"), drawers=DRAWERS,
    )  # fmt: skip
    letters = glyphs.images.reshape(-1, *glyphs.images.shape[2:])
    letters = letters[rng(ctx.seed, "letters").permutation(len(letters))][:count]
    return as_tensor(np.repeat(letters[..., None], 3, axis=-1))


def _emoji_world(ctx: Context) -> World:
    budget = size(ctx)
    names = CLASSES[: budget.classes]
    whole = budget.classes == len(CLASSES)
    emoji = load_emoji(size=budget.size, subgroups=None if whole else names)
    train, test = emoji.split(HELD_OUT, split(ctx.seed, "items"))
    number = {name: i for i, name in enumerate(names)}
    random = rng(ctx.seed, "most")

    def labelled(part: NDArray[np.int64], most: float) -> tuple[Tensor, Tensor]:
        picked = []
        for name in names:
            own = np.array([i for i in part if emoji.subgroups[i] == name])
            picked.append(np.sort(random.permutation(own)[: round(most)]))
        chosen = np.concatenate(picked)
        y = torch.tensor([number[emoji.subgroups[i]] for i in chosen])
        return as_tensor(emoji.images[chosen]), y

    images, y = labelled(train, (1 - HELD_OUT) * MOST)
    test_images, y_test = labelled(test, HELD_OUT * MOST)
    foreign = _foreign(ctx, len(images) * images.shape[1])
    if len(foreign) != len(images) * images.shape[1]:
        raise ValueError(
            f"a basis from letters needs as many pictures as one from emoji, got {len(foreign)} "
            f"for {len(images) * images.shape[1]}"
        )
    pool = as_tensor(emoji.images[train])
    return World(pool, images, y, test_images, y_test, foreign, len(names))


def read_on(on: On, budget: TCSBudget) -> ClassFolders:
    """Read the user's pictures; every class must be large enough to be split."""
    least = int(np.ceil(budget.shots / (1 - HELD_OUT))) + 1
    return read_class_folders(on.path, size=budget.size, least=least)


def _own_world(ctx: Context, on: On, *, everything: bool) -> World:
    found = read_on(on, size(ctx))
    random = rng(ctx.seed, "own items")
    train, test = [], []
    for label in range(len(found.classes)):
        own = random.permutation(np.flatnonzero(found.labels == label))
        held = max(round(HELD_OUT * len(own)), 1)
        test.append(own[:held])
        train.append(own if everything else own[held:])
    rows, held_rows = np.sort(np.concatenate(train)), np.sort(np.concatenate(test))
    images, labels = as_tensor(found.images)[:, None], torch.from_numpy(found.labels)
    return World(
        images[rows], images[rows], labels[rows], images[held_rows], labels[held_rows],
        _foreign(ctx, len(rows)), len(found.classes),
    )  # fmt: skip


def make_world(ctx: Context, *, everything: bool = False) -> World:
    """Make the world of one seed; ``everything`` trains on the user's test pictures as well."""
    return _emoji_world(ctx) if ctx.on is None else _own_world(ctx, ctx.on, everything=everything)


def check_on(ctx: Context) -> None:
    """Read the user's pictures before anything runs, and say which were skipped."""
    if ctx.on is None:
        raise UsageError("tcs takes pictures of your own with --on FOLDER, not a model")
    said = read_on(ctx.on, size(ctx)).said()
    if said:
        print(f"trialrun: {said}", file=sys.stderr)


def resplit(_: Context) -> float:
    """Return held-out to training items where seeds split one set of pictures anew."""
    return HELD_OUT / (1 - HELD_OUT)
