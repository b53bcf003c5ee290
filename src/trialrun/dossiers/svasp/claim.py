"""Measure the claims of svasp.

The rules stand in the card and are fixed before a run.
"""

from __future__ import annotations

from dataclasses import dataclass

from trialrun.claims.contract import Budget, Trial


@dataclass(frozen=True, kw_only=True)
class Size(Budget):
    """How much of everything a run takes."""

    items: int


TRIAL = Trial(
    budgets={
        "smoke": Size(seeds=2, items=20),
        "quick": Size(seeds=3, items=200),
        "full": Size(seeds=5, items=2000),
    },
    arms={},
)
