"""Smallest working instances of moxin, for the conformance suite."""

from __future__ import annotations

from typing import Any

import numpy as np

from trialrun.core.seeds import rng
from trialrun.dossiers.specimen import FunctionSpecimen
from trialrun.pretraining.moxin import moxin


def _inputs(seed: int) -> dict[str, Any]:
    words = np.array(["red", "green", "blue"])
    drawn = rng(seed, "texts").integers(0, 3, size=(20, 3))
    return {"texts": [" ".join(words[row]) for row in drawn], "least_words": 2}


def _repeated(seed: int) -> tuple[np.ndarray, np.ndarray]:
    texts = _inputs(seed)["texts"]
    return moxin(texts), moxin(texts + texts)


SPECIMENS = (
    FunctionSpecimen(
        entry="trialrun.pretraining.moxin:moxin",
        run=lambda inputs: moxin(**inputs),
        inputs=_inputs,
        bad=(
            ("texts must be a sequence", lambda: moxin("one text")),
            ("least_words must be at least 1", lambda: moxin(["a"], least_words=0)),
        ),
        invariances=(("repeating all texts does not matter", _repeated),),
    ),
)
