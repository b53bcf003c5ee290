"""Measure the claims on Moxin-7B's recipe (zhao2024moxin).

The rules stand in the card and were fixed before a run. Data claims are measured in ``data.py``,
those that train or run a model in ``training.py``.
"""

from __future__ import annotations

from trialrun.claims.contract import Trial
from trialrun.dossiers.moxin import data, training
from trialrun.dossiers.moxin._sizes import BUDGETS

TRIAL = Trial(
    budgets=BUDGETS,
    arms={**training.ARMS, **data.ARMS},
    prepare=training.PREPARE,
    needs=training.NEEDS,
)
