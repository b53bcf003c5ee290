"""Smallest working instances of ntkeval, for the conformance suite."""

from __future__ import annotations

from typing import Any

import numpy as np

from trialrun.core.seeds import rng
from trialrun.dossiers.specimen import FunctionSpecimen
from trialrun.evaluation.ntkeval import ntkeval


def _inputs(seed: int) -> dict[str, Any]:
    words = np.array(["red", "green", "blue"])
    drawn = rng(seed, "texts").integers(0, 3, size=(20, 3))
    return {"texts": [" ".join(words[row]) for row in drawn], "least_words": 2}


def _repeated(seed: int) -> tuple[np.ndarray, np.ndarray]:
    texts = _inputs(seed)["texts"]
    return ntkeval(texts), ntkeval(texts + texts)


SPECIMENS = (
    FunctionSpecimen(
        entry="trialrun.evaluation.ntkeval:ntkeval",
        run=lambda inputs: ntkeval(**inputs),
        inputs=_inputs,
        bad=(
            ("texts must be a sequence", lambda: ntkeval("one text")),
            ("least_words must be at least 1", lambda: ntkeval(["a"], least_words=0)),
        ),
        invariances=(("repeating all texts does not matter", _repeated),),
    ),
)
