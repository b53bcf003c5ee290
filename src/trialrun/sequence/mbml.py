"""Memory-based meta-learning on non-stationary sources (genewein2023mbml).

Exact Bayesian predictors of switching sources (`KT`, `PTW`, `LIN`), the sources they are optimal
for, neural predictors meta-trained on draws of those sources, and the regret that compares them.

What was read: the abstract and a digest of genewein2023mbml, and notes on its released code. No
code was used. PTW is written from the recursion of veness2013ptw, LIN from the segment prior of
willems1996lin as the released code has it (a segment ends after its n-th symbol with probability
1 / (2 n)), SNAIL and the stack from mishra2018snail and joulin2015stack.

Ours, not theirs: prediction over tree heights in place of a loop over time, alphabets larger than
two in all exact predictors, log-space throughout (the released LIN overflows on a run of 256 equal
symbols), the posterior of switch points, `PrunedLIN`, independent switch points for every
sequence, and outputs that line up with the symbols they predict.

What differs: nets are small by default and trained with a decaying learning rate; the stack has
a fixed number of cells; regret leaves the first symbol unscored, as the paper does.
"""

from __future__ import annotations

import json
from pathlib import Path

from trialrun.sequence import _stack  # noqa: F401

# isort: split
from trialrun.core.errors import UsageError
from trialrun.sequence._alphabet import ExactPredictor
from trialrun.sequence._counting import KT, KTWindow
from trialrun.sequence._lin import LIN, PrunedLIN
from trialrun.sequence._nets import ARCHITECTURES, NetShape
from trialrun.sequence._ptw import PTW
from trialrun.sequence._regret import Average, Predictor, Regret, code_lengths, regret
from trialrun.sequence._sources import (
    LINSource,
    PTWSource,
    RandomShiftSource,
    RegularShiftSource,
    Sample,
)
from trialrun.sequence._training import MetaPredictor, Training, train_meta

__all__ = [
    "ARCHITECTURES",
    "KT",
    "LIN",
    "PTW",
    "Average",
    "KTWindow",
    "LINSource",
    "MetaPredictor",
    "NetShape",
    "PTWSource",
    "Predictor",
    "PrunedLIN",
    "RandomShiftSource",
    "Regret",
    "RegularShiftSource",
    "Sample",
    "Training",
    "code_lengths",
    "load_predictor",
    "regret",
    "train_meta",
]

_EXACT: dict[str, type[ExactPredictor]] = {
    kind.__name__: kind for kind in (KT, KTWindow, PTW, LIN, PrunedLIN)
}


def load_predictor(folder: str | Path) -> ExactPredictor | MetaPredictor:
    """Read back a predictor, exact or trained, from the folder its ``save`` wrote.

    Parameters
    ----------
    folder : str or Path

    Raises
    ------
    UsageError
        If the folder holds no predictor, or one of an unknown kind.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     PTW(depth=8).save(folder)
    ...     load_predictor(folder)
    PTW(depth=8, symbols=2, alpha=0.5)
    """
    spot = Path(folder) / "predictor.json"
    try:
        kept = json.loads(spot.read_text(encoding="utf-8"))
        kind, settings = kept["predictor"], kept["settings"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{spot} must be a predictor's settings, got {type(error).__name__}: {error}: "
            "give a folder that a predictor's save wrote"
        ) from error
    if kind == "MetaPredictor":
        return MetaPredictor.load(folder)
    if kind not in _EXACT:
        known = ", ".join((*_EXACT, "MetaPredictor"))
        raise UsageError(f"{spot} must name one of {known}, got {kind!r}: was it edited by hand?")
    return _EXACT[kind](**settings)
