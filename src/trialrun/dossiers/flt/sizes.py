"""How big each budget's models and tests are."""

from __future__ import annotations

from dataclasses import dataclass

from trialrun.blocks.bytelm import Schedule, Shape
from trialrun.claims.contract import Budget, Context


@dataclass(frozen=True, kw_only=True)
class Sizes(Budget):
    """Settings of a run.

    Parameters
    ----------
    shape, schedule : Shape, Schedule
        The byte model and its training.
    features : int
        Random features for each head of the byte model.
    windows : int
        Held-out windows scored for each model, of the training length.
    steps : int
        Training steps of a head that names the symbol k places back.
    mask_features : int
        Random features of that head.
    scored : int
        Sequences on which it is scored.
    lengths : tuple of int
        Lengths between which time and memory are compared.
    repeats : int
        Timings of each length, of which the fastest counts.
    """

    shape: Shape
    schedule: Schedule
    features: int = 64
    windows: int
    steps: int
    mask_features: int = 256
    scored: int
    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384)
    repeats: int = 3


def sizes_of(ctx: Context) -> Sizes:
    """Return the budget as this dossier's settings."""
    assert isinstance(ctx.budget, Sizes)
    return ctx.budget


_SMALL = Shape(layers=2, width=64, heads=2, length=64)
_TINY = Shape(layers=1, width=32, heads=1, length=16)
_BIG = Shape(layers=6, width=512, heads=8, length=1024)

BUDGETS = {
    "smoke": Sizes(
        seeds=2,
        shape=_TINY,
        schedule=Schedule(steps=3, batch=4),
        features=16,
        windows=4,
        steps=3,
        mask_features=16,
        scored=8,
        lengths=(128, 256),
        repeats=1,
    ),
    # Seeds not looked at when the sizes were settled; the same holds for full.
    "quick": Sizes(
        seeds=3,
        first_seed=60,
        shape=_SMALL,
        schedule=Schedule(steps=60, batch=8),
        windows=96,
        steps=120,
        scored=64,
    ),
    "full": Sizes(
        seeds=5,
        first_seed=100,
        shape=_SMALL,
        schedule=Schedule(steps=400, batch=8),
        windows=400,
        steps=450,
        scored=128,
    ),
    "gpu": Sizes(
        seeds=3,
        first_seed=100,
        shape=_BIG,
        schedule=Schedule(steps=800, batch=16, rate=1e-3),
        features=256,
        windows=64,
        steps=600,
        scored=256,
        lengths=(1024, 2048, 4096, 8192, 16384, 32768, 65536),
    ),
}
