"""How big each budget's models and tests are."""

from __future__ import annotations

from dataclasses import dataclass

from trialrun.blocks.bytelm import Schedule, Shape
from trialrun.claims.contract import Budget


@dataclass(frozen=True, kw_only=True)
class Sizes(Budget):
    """Settings of a run.

    ``scored`` counts windows of held-out text of ``shape.length`` bytes, ``calibration`` windows of
    training text that a conversion sees, ``healing`` the steps of its short training; ``decoded``
    the tokens that the absorbed claim decodes. The host of a conversion is trained for
    ``host_steps`` and has ``host_base`` for its rotary base, where many pairs turn slowly, as they
    do in large models. A model of the user's own is scored on ``model_windows`` and calibrated on
    ``model_calibration`` windows of ``model_length`` tokens.
    """

    shape: Shape
    schedule: Schedule
    scored: int
    calibration: int
    healing: int
    decoded: int
    host_steps: int
    host_base: float = 10000.0
    model_windows: int = 4
    model_calibration: int = 8
    model_length: int = 256
    model_healing: int = 5


# A rotary base that suits the length: at 10000, two of a narrow key's four pairs would stand still.
_SMALL = Shape(layers=2, width=96, heads=6, length=64, base=100.0)
_TINY = Shape(layers=1, width=32, heads=2, length=16, base=100.0)
_BIG = Shape(layers=12, width=768, heads=12, length=512)

BUDGETS = {
    "smoke": Sizes(
        seeds=2,
        shape=_TINY,
        schedule=Schedule(steps=4, batch=4),
        scored=4,
        calibration=4,
        healing=1,
        decoded=3,
        host_steps=4,
        model_windows=1,
        model_calibration=1,
        model_length=64,
        model_healing=1,
    ),
    # Seeds not looked at when the sizes were settled; the same holds for full.
    "quick": Sizes(
        seeds=3,
        first_seed=60,
        shape=_SMALL,
        schedule=Schedule(steps=60, batch=16),
        scored=128,
        calibration=64,
        healing=20,
        decoded=12,
        host_steps=200,
        model_windows=2,
    ),
    "full": Sizes(
        seeds=5,
        first_seed=100,
        shape=_SMALL,
        schedule=Schedule(steps=350, batch=16),
        scored=512,
        calibration=64,
        healing=40,
        decoded=24,
        host_steps=350,
        model_windows=8,
        model_calibration=16,
        model_healing=20,
    ),
    "gpu": Sizes(
        seeds=5,
        shape=_BIG,
        schedule=Schedule(steps=2000, batch=64, rate=1e-3),
        scored=512,
        calibration=128,
        healing=200,
        decoded=24,
        host_steps=2000,
        model_windows=32,
        model_calibration=64,
        model_length=512,
        model_healing=100,
    ),
}
