"""Sizes of a run of moxin's claims, by budget."""

from __future__ import annotations

from dataclasses import dataclass

from trialrun.claims.contract import Budget, Context
from trialrun.dossiers.moxin import _lm_sizes
from trialrun.dossiers.moxin._lm_sizes import LmSizes


@dataclass(frozen=True, kw_only=True)
class MoxinBudget(Budget):
    """Sizes of a run.

    Parameters
    ----------
    items : int
        Benchmark items planted under each condition of contamination, and as many that are not.
    lm : LmSizes
        Of the claims that train or run a model.
    """

    items: int
    lm: LmSizes


def sizes_of(ctx: Context) -> MoxinBudget:
    """Return the budget of a context as what it is."""
    assert isinstance(ctx.budget, MoxinBudget)
    return ctx.budget


BUDGETS = {
    "smoke": MoxinBudget(seeds=2, items=10, lm=_lm_sizes.SMOKE),
    "quick": MoxinBudget(seeds=3, first_seed=70, items=100, lm=_lm_sizes.QUICK),
    "full": MoxinBudget(seeds=5, first_seed=200, items=300, lm=_lm_sizes.FULL),
    "gpu": MoxinBudget(seeds=3, first_seed=300, items=300, lm=_lm_sizes.GPU),
}
