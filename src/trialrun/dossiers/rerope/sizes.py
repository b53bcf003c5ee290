"""How big each budget's models and tests are."""

from __future__ import annotations

from dataclasses import dataclass

from trialrun.blocks.bytelm import Schedule, Shape
from trialrun.claims.contract import Budget


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model to train and what to score it on.

    ``scored`` counts windows of text, or sequences with a repeat, at each length.
    """

    shape: Shape
    schedule: Schedule
    scored: int


@dataclass(frozen=True, kw_only=True)
class Sizes(Budget):
    """Settings of a run.

    ``multiples`` are the tested lengths in training lengths. For a model of the user's own only
    those up to ``model_longest`` tokens are run, on ``model_windows`` windows a seed; where
    ``model_pretends`` is given, which only a budget without a verdict may do, the model is treated
    as if it had been trained at that length.
    """

    text: Task
    copy: Task
    multiples: tuple[int, ...] = (2, 4, 8)
    model_windows: int = 4
    model_longest: int = 8192
    model_pretends: int | None = None


_SMALL = Shape(layers=3, width=96, heads=3, length=64)
_COPIER = Shape(layers=2, width=64, heads=2, length=64)
_TINY = Shape(layers=1, width=32, heads=1, length=16)
_BIG = Shape(layers=12, width=512, heads=8, length=512)
_BIG_COPIER = Shape(layers=2, width=128, heads=4, length=256)

BUDGETS = {
    "smoke": Sizes(
        seeds=2,
        text=Task(shape=_TINY, schedule=Schedule(steps=8, batch=8), scored=2),
        copy=Task(shape=_COPIER, schedule=Schedule(steps=8, batch=8), scored=2),
        model_windows=1,
        model_longest=512,
        model_pretends=32,
    ),
    # Seeds not looked at when the sizes were settled; the same holds for full.
    "quick": Sizes(
        seeds=3,
        first_seed=50,
        text=Task(shape=_SMALL, schedule=Schedule(steps=170, batch=24), scored=48),
        copy=Task(shape=_COPIER, schedule=Schedule(steps=240, batch=16), scored=32),
        model_windows=1,
    ),
    "full": Sizes(
        seeds=5,
        first_seed=100,
        text=Task(shape=_SMALL, schedule=Schedule(steps=700, batch=24), scored=160),
        copy=Task(shape=_COPIER, schedule=Schedule(steps=600, batch=16), scored=192),
        model_windows=4,
        model_longest=16384,
    ),
    "gpu": Sizes(
        seeds=5,
        text=Task(shape=_BIG, schedule=Schedule(steps=1500, batch=64, rate=1e-3), scored=128),
        copy=Task(shape=_BIG_COPIER, schedule=Schedule(steps=1500, batch=64), scored=256),
        model_windows=16,
        model_longest=131072,
    ),
}
