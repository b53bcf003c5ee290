"""How big each budget's models, kernels and samples are."""

from __future__ import annotations

from dataclasses import dataclass

from trialrun.blocks.bytelm import Schedule, Shape
from trialrun.claims.contract import Budget, Context
from trialrun.dossiers.ntkeval.worlds import ALPHABET
from trialrun.evaluation.ntkeval import GradientStep


@dataclass(frozen=True, kw_only=True)
class Own:
    """Sizes for a model of the user's own: problems per cell, draws, LoRA steps, shots."""

    train: int
    test: int
    samples: int
    steps: int
    shots: int


@dataclass(frozen=True, kw_only=True)
class Sizes(Budget):
    """Settings of a run.

    ``told`` (a round of up to ``told_rounds``) and ``hidden`` train the hosts of the two worlds;
    ``train`` and ``test`` count operands a cell; ``step`` is the tuning; ``long_step`` is the
    training on the way to whose end answers move by a given size; ``shots`` stand before a
    question, one fewer than the hidden host's training texts hold; ``repeats`` and ``samples`` are
    of the estimators.
    """

    told_shape: Shape
    told: Schedule
    hidden_shape: Shape
    hidden: Schedule
    step: GradientStep
    long_step: GradientStep
    repeats: int
    own: Own
    told_rounds: int = 40
    train: int = 20
    test: int = 24
    shots: int = 3
    samples: int = 64


_TOLD = Shape(layers=2, width=64, heads=2, length=32, vocabulary=len(ALPHABET))
_HIDDEN = Shape(layers=2, width=64, heads=2, length=64, vocabulary=len(ALPHABET))
_BIG = Shape(layers=8, width=512, heads=8, length=128, vocabulary=len(ALPHABET))
_STEP = GradientStep(rate=1e-3, steps=10, optimiser="adamw")
_LONG_STEP = GradientStep(rate=1e-3, steps=60, optimiser="adamw")


def sizes_of(ctx: Context) -> Sizes:
    """Return the budget as this dossier's settings."""
    assert isinstance(ctx.budget, Sizes)
    return ctx.budget


BUDGETS = {
    "smoke": Sizes(
        seeds=2,
        told_shape=Shape(layers=1, width=16, heads=1, length=32, vocabulary=len(ALPHABET)),
        told=Schedule(steps=5, batch=16),
        told_rounds=1,
        hidden_shape=Shape(layers=1, width=16, heads=1, length=64, vocabulary=len(ALPHABET)),
        hidden=Schedule(steps=5, batch=16),
        step=GradientStep(rate=1e-3, steps=2, optimiser="adamw"),
        long_step=GradientStep(rate=1e-3, steps=4, optimiser="adamw"),
        repeats=2,
        train=5,
        test=4,
        shots=2,
        samples=4,
        own=Own(train=4, test=2, samples=2, steps=1, shots=1),
    ),
    # Seeds not looked at when the sizes were settled; the same holds for full.
    "quick": Sizes(
        seeds=3,
        first_seed=50,
        told_shape=_TOLD,
        told=Schedule(steps=20, batch=64),
        hidden_shape=_HIDDEN,
        hidden=Schedule(steps=300, batch=32),
        step=_STEP,
        long_step=_LONG_STEP,
        repeats=8,
        own=Own(train=16, test=4, samples=8, steps=4, shots=2),
    ),
    "full": Sizes(
        seeds=5,
        first_seed=100,
        told_shape=_TOLD,
        told=Schedule(steps=20, batch=64),
        hidden_shape=_HIDDEN,
        hidden=Schedule(steps=600, batch=32),
        step=_STEP,
        long_step=_LONG_STEP,
        repeats=32,
        own=Own(train=32, test=16, samples=16, steps=8, shots=4),
    ),
    "gpu": Sizes(
        seeds=5,
        told_shape=_BIG,
        told=Schedule(steps=20, batch=256, rate=1e-3),
        hidden_shape=_BIG,
        hidden=Schedule(steps=3000, batch=256, rate=1e-3),
        step=GradientStep(rate=1e-4, steps=10, optimiser="adamw"),
        long_step=GradientStep(rate=1e-4, steps=60, optimiser="adamw"),
        repeats=200,
        own=Own(train=64, test=32, samples=64, steps=16, shots=4),
    ),
}
