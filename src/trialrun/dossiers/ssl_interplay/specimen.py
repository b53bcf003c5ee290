"""Smallest working instances of ssl_interplay, for the conformance suite."""

from __future__ import annotations

from typing import Any

import numpy as np

from trialrun.core.seeds import rng
from trialrun.dossiers.specimen import EstimatorSpecimen
from trialrun.representation.ssl_interplay import SslInterplay


def _inputs(seed: int) -> dict[str, Any]:
    y = np.arange(20) % 2
    return {"X": rng(seed, "X").normal(size=(20, 3)) + 2.0 * y[:, None], "y": y}


def _shifted(seed: int) -> tuple[np.ndarray, np.ndarray]:
    X, y = _inputs(seed).values()
    return SslInterplay().fit(X, y).predict(X), SslInterplay().fit(X + 1.0, y).predict(X + 1.0)


SPECIMENS = (
    EstimatorSpecimen(
        entry="trialrun.representation.ssl_interplay:SslInterplay",
        make=lambda _: SslInterplay(shrink=0.1),
        inputs=_inputs,
        run=lambda fitted, inputs: fitted.predict(inputs["X"]),
        check=SslInterplay,
        bad=(
            ("shrink must be in", lambda: SslInterplay(shrink=1.0).fit(**_inputs(0))),
            ("at least two classes", lambda: SslInterplay().fit(np.eye(3), np.zeros(3))),
            ("contains NaN", lambda: SslInterplay().fit(np.full((2, 1), np.nan), [0, 1])),
        ),
        expected_failed_checks={},
        save=lambda fitted, folder: fitted.save(folder),
        load=SslInterplay.load,
        invariances=(("a shift of every row does not matter", _shifted),),
    ),
)
