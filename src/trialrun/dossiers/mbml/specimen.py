"""Smallest working instances of mbml, for the conformance suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from trialrun.core.seeds import rng
from trialrun.dossiers.specimen import BlockSpecimen, FunctionSpecimen
from trialrun.sequence.mbml import (
    KT,
    LIN,
    PTW,
    KTWindow,
    LINSource,
    NetShape,
    PrunedLIN,
    PTWSource,
    load_predictor,
    regret,
    train_meta,
)

_MODULE = "trialrun.sequence.mbml"


def _words(seed: int) -> dict[str, Any]:
    return {"x": torch.from_numpy(rng(seed, "specimen").integers(0, 2, (3, 16)))}


def _predict(predictor: Any, inputs: Mapping[str, Any]) -> Any:
    return predictor.predict(**inputs)


def _renamed(make: Callable[[], Any]) -> Callable[[int], tuple[Any, Any]]:
    """Swapping the two symbols swaps their probabilities."""

    def both(seed: int) -> tuple[Any, Any]:
        x = _words(seed)["x"]
        return make().predict(1 - x).flip(2), make().predict(x)

    return both


def _predictor(name: str, make: Callable[[], Any], *bad: Any) -> BlockSpecimen:
    return BlockSpecimen(
        entry=f"{_MODULE}:{name}",
        make=lambda _: make(),
        inputs=_words,
        run=_predict,
        bad=(
            (r"x must hold integers 0 to 1", lambda: make().predict(torch.zeros(2, 3))),
            (r"x must have shape \(batch, time\)", lambda: make().predict([0, 1])),
            (r"x must hold symbols 0 to 1, got 2", lambda: make().predict([[0, 2]])),
            (r"at least one sequence", lambda: make().predict(torch.zeros(1, 0).long())),
            *bad,
        ),
        batched=("x",),
        save=lambda predictor, folder: predictor.save(folder),
        load=load_predictor,
        invariances=(("renaming symbols renames predictions", _renamed(make)),),
    )


def _source(name: str, make: Callable[[], Any], *bad: Any) -> BlockSpecimen:
    return BlockSpecimen(
        entry=f"{_MODULE}:{name}",
        make=lambda _: make(),
        inputs=lambda seed: {"batch": 3, "length": 8, "seed": seed},
        run=lambda source, inputs: tuple(source.sample(**inputs)),
        bad=(
            (r"batch must be a whole number", lambda: make().sample(0, 8, 0)),
            (r"length must be a whole number", lambda: make().sample(1, 0, 0)),
            (r"seed must be a non-negative integer", lambda: make().sample(1, 8, -1)),
            *bad,
        ),
    )


def _train(inputs: Mapping[str, Any]) -> Any:
    net = train_meta("gru", PTWSource(4), steps=2, shape=NetShape(width=8), seed=inputs["seed"])
    return net.predict(inputs["x"])


def _regret(inputs: Mapping[str, Any]) -> Any:
    return regret(PTW(4), PTWSource(4).sample(4, 16, inputs["seed"])).per_step


SPECIMENS = (
    _predictor("PTW", lambda: PTW(4), (r"use depth=5", lambda: PTW(4).predict([[0] * 17]))),
    _predictor("LIN", LIN),
    _predictor("KT", KT),
    _predictor("KTWindow", lambda: KTWindow(3), (r"window must be", lambda: KTWindow(0))),
    _predictor(
        "PrunedLIN", lambda: PrunedLIN(keep=2), (r"keep must be", lambda: PrunedLIN(keep=0))
    ),
    _source(
        "PTWSource", lambda: PTWSource(4), (r"use depth=5", lambda: PTWSource(4).sample(1, 17, 0))
    ),
    _source("LINSource", LINSource, (r"prior must be", lambda: LINSource(prior=0.0))),
    FunctionSpecimen(
        entry=f"{_MODULE}:train_meta",
        run=_train,
        inputs=lambda seed: {**_words(seed), "seed": seed},
        bad=(
            (r"architecture must be one of", lambda: train_meta("cnn", PTWSource(2), steps=1)),
            (r"steps must be a whole number", lambda: train_meta("rnn", PTWSource(2), steps=-1)),
        ),
    ),
    FunctionSpecimen(
        entry=f"{_MODULE}:regret",
        run=_regret,
        inputs=lambda seed: {"seed": seed},
        bad=(
            (r"predictions must have shape", lambda: regret(KT(3), PTWSource(2).sample(1, 4, 0))),
        ),
    ),
)
