"""Measure the claims about the SSL interplay: regimes, collapse, interaction and rate.

Every arm of a seed sees the same inputs, views and labels. The control deals the views to inputs
anew; nothing else about it differs.
"""

from __future__ import annotations

from functools import partial

from trialrun.claims.contract import Trial
from trialrun.dossiers.ssl_interplay._sizes import Size
from trialrun.dossiers.ssl_interplay.bits import rate, switches
from trialrun.dossiers.ssl_interplay.collapse import collapse, train
from trialrun.dossiers.ssl_interplay.moons import GRIDS, together, tuning

TRIAL = Trial(
    budgets={
        "smoke": Size(
            seeds=2, inputs=12, prediction=12, pretraining=40, test=20, draws=2, steps=2, grid=10
        ),
        "quick": Size(
            seeds=10, first_seed=60, inputs=80, prediction=150,
            pretraining=4000, test=200, draws=10, steps=600, grid=250
        ),
        "full": Size(
            seeds=30, first_seed=100, inputs=80, prediction=150,
            pretraining=10000, test=400, draws=20, steps=1000, grid=400
        ),
        "gpu": Size(
            seeds=30, first_seed=200, inputs=80, prediction=150,
            pretraining=40000, test=2000, draws=20, steps=4000, grid=400
        ),
    },
    arms={
        "switches": {
            how: partial(switches, how=how)
            for how in ("sampled", "all-pairs", "kernel-alone", "shuffled")
        },
        "collapse": {
            how: partial(collapse, how=how)
            for how in ("predicted", "augmentation-alone", "kernel-alone", "shuffled")
        },
        "together": {
            how: partial(together, how=how) for how in ("both", "better-alone", "shuffled", *GRIDS)
        },
        "tuning": {how: partial(tuning, how=how) for how in ("ssl", "augmented-ridge", "shuffled")},
        "rate": {
            how: partial(rate, how=how) for how in ("ssl", "kernel-ridge", "kernel-pca", "shuffled")
        },
    },
    prepare={"networks": train},
    needs={"collapse": ("networks",)},
)  # fmt: skip
