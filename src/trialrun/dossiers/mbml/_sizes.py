"""Sizes of a run of mbml's claims, by budget."""

from __future__ import annotations

from dataclasses import dataclass

from trialrun.claims.contract import Budget, Context


@dataclass(frozen=True, kw_only=True)
class MbmlBudget(Budget):
    """Sizes of a run.

    Parameters
    ----------
    depth : int
        Nets are trained on ``2**depth`` symbols of the PTW prior of this depth.
    steps : int
        Gradient steps for every net.
    batch : int
        Sequences per step.
    layers : int
        Transformer blocks.
    sequences : int
        Sequences scored per seed with nets.
    exact_depth : int
        The exact predictors are compared on ``2**exact_depth`` symbols.
    exact_sequences : int
        Sequences scored per seed without nets.
    file_symbols : int
        Symbols read from each block of a user's file, from its beginning.
    """

    depth: int
    steps: int
    batch: int = 64
    layers: int = 1
    sequences: int
    exact_depth: int = 8
    exact_sequences: int
    file_symbols: int


def sizes_of(ctx: Context) -> MbmlBudget:
    assert isinstance(ctx.budget, MbmlBudget)
    return ctx.budget


_SMOKE = MbmlBudget(
    seeds=2,
    depth=4,
    steps=3,
    batch=8,
    sequences=16,
    exact_depth=5,
    exact_sequences=16,
    file_symbols=1024,
)
_QUICK = MbmlBudget(
    seeds=3, depth=6, steps=200, sequences=512, exact_sequences=256, file_symbols=16_384
)
_FULL = MbmlBudget(
    seeds=5,
    first_seed=100,
    depth=6,
    steps=1400,
    sequences=1024,
    exact_sequences=512,
    file_symbols=65_536,
)
# Sized for one H200: about 25k LSTM-sized steps in ten minutes over all seeds and nets.
_GPU = MbmlBudget(
    seeds=3,
    depth=8,
    steps=8000,
    batch=128,
    layers=5,
    sequences=1024,
    exact_depth=10,
    exact_sequences=512,
    file_symbols=65_536,
)

BUDGETS = {"smoke": _SMOKE, "quick": _QUICK, "full": _FULL, "gpu": _GPU}
