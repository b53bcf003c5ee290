"""Sizes of runs, and the settings that more than one claim uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from trialrun.claims.contract import Budget, Context

GAMMA = 1 / (2 * 0.3**2)
N_VIEWS, COMPONENTS = 4, 6


@dataclass(frozen=True, kw_only=True)
class Size(Budget):
    """Size of a run.

    ``inputs`` half-moon points to learn from, ``prediction`` to call collapse from, ``pretraining``
    inputs of the bit worlds, ``test`` half-moon points, ``draws`` of labels,
    ``steps`` of the trained features and ``grid`` values of lambda for the switch points.
    """

    inputs: int
    prediction: int
    pretraining: int
    test: int
    draws: int
    steps: int
    grid: int


def size_of(ctx: Context) -> Size:
    """Return the budget of a run."""
    return cast(Size, ctx.budget)
