"""Smallest working instances of d3g, for the conformance suite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from trialrun.core.seeds import rng, split
from trialrun.dossiers.specimen import BlockSpecimen, EstimatorSpecimen
from trialrun.shift.d3g import D3GClassifier, D3GLoss, D3GRegressor, RelationWeightedHeads, Training

_MODULE = "trialrun.shift.d3g"
_UNSEEN = (0.6, 0.8)
_SHORT = {"encoder": (8,), "training": Training(steps=20)}
_CHECKED = {"training": Training(steps=150)}


def _table(seed: int) -> dict[str, Any]:
    random = rng(seed, "specimen")
    angles = np.array([0.1, 0.7, 1.4])
    metadata = np.column_stack([np.cos(angles), np.sin(angles)])
    domains = np.repeat(["a", "b", "c"], 12)
    X = random.normal(size=(36, 2))
    along = (X * np.repeat(metadata, 12, axis=0)).sum(axis=1)
    return {"X": X, "y": (along > 0).astype(int), "domains": domains, "metadata": metadata}


def _numbers(seed: int) -> dict[str, Any]:
    table = _table(seed)
    return {**table, "y": table["X"][:, 0] + table["y"]}


def _classes_of(fitted: Any, inputs: Mapping[str, Any]) -> Any:
    return fitted.predict_proba(inputs["X"], metadata=_UNSEEN)


def _numbers_of(fitted: Any, inputs: Mapping[str, Any]) -> Any:
    return fitted.predict(inputs["X"], metadata=_UNSEEN)


def _classifier(seed: int) -> D3GClassifier:
    return D3GClassifier(**_SHORT, random_state=seed)


def _regressor(seed: int) -> D3GRegressor:
    return D3GRegressor(**_SHORT, random_state=seed)


def _renamed(seed: int) -> tuple[Any, Any]:
    table = _table(seed)
    other = {**table, "domains": np.char.add("site ", table["domains"])}
    return tuple(_classes_of(_classifier(0).fit(**t), t) for t in (table, other))


def _shifted(seed: int) -> tuple[Any, Any]:
    table = _numbers(seed)
    moved = {**table, "y": 4 * table["y"] - 8}
    plain, other = (_numbers_of(_regressor(0).fit(**t), t) for t in (table, moved))
    return plain, (other + 8) / 4


def _x(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(split(seed, "x"))
    return {"x": torch.randn(5, 3, generator=generator)}


def _heads(seed: int) -> RelationWeightedHeads:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = nn.Linear(3, 4)
    return RelationWeightedHeads(encoder, n_domains=3, n_out=2, seed=seed)


def _outputs(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(split(seed, "outputs"))
    return {
        "outputs": torch.randn(6, 3, 2, generator=generator),
        "y": torch.randint(2, (6,), generator=generator),
        "domains": torch.randint(3, (6,), generator=generator),
        "relations": torch.rand(3, 3, generator=generator),
    }


def _loss(inputs: Mapping[str, Any], **changes: Any) -> Any:
    return D3GLoss(0.5)(**{**inputs, **changes})


def _rescaled(seed: int) -> tuple[Any, Any]:
    inputs = _outputs(seed)
    scale = torch.tensor([[0.5], [3.0], [20.0]])
    return _loss(inputs), _loss(inputs, relations=inputs["relations"] * scale)


SPECIMENS = (
    EstimatorSpecimen(
        entry=f"{_MODULE}:D3GClassifier",
        make=_classifier,
        inputs=_table,
        run=_classes_of,
        check=lambda: D3GClassifier(**_CHECKED),
        bad=(
            ("at least two classes", lambda: _classifier(0).fit(np.eye(3), np.zeros(3))),
            ("NaN", lambda: _classifier(0).fit(np.full((2, 1), np.nan), [0, 1])),
            (
                "metadata must have one vector per domain",
                lambda: _classifier(0).fit(**{**_table(0), "metadata": np.eye(2)}),
            ),
            (
                "the domain of X was not seen in training",
                lambda: _classifier(0).fit(**_table(0)).predict(np.eye(2)),
            ),
        ),
        expected_failed_checks={},
        save=lambda fitted, folder: fitted.save(folder),
        load=D3GClassifier.load,
        invariances=(("names of domains in the same order do not matter", _renamed),),
    ),
    EstimatorSpecimen(
        entry=f"{_MODULE}:D3GRegressor",
        make=_regressor,
        inputs=_numbers,
        run=_numbers_of,
        check=lambda: D3GRegressor(**_CHECKED),
        bad=(
            ("NaN", lambda: _regressor(0).fit(np.full((2, 1), np.nan), [0, 1])),
            ("lam must be at least 0", lambda: D3GRegressor(lam=-1).fit(**_numbers(0))),
            (
                "domains must hold one label per row",
                lambda: _regressor(0).fit(**{**_numbers(0), "domains": ["a"]}),
            ),
        ),
        expected_failed_checks={},
        save=lambda fitted, folder: fitted.save(folder),
        load=D3GRegressor.load,
        invariances=(("the target's unit and origin do not matter", _shifted),),
    ),
    BlockSpecimen(
        entry=f"{_MODULE}:RelationWeightedHeads",
        make=_heads,
        inputs=_x,
        run=lambda net, inputs: net(**inputs),
        bad=(
            ("n_domains must be at least 1", lambda: RelationWeightedHeads(nn.Linear(2, 2), 0, 1)),
            ("width must be given", lambda: RelationWeightedHeads(nn.ReLU(), 2, 1)),
            (
                r"encoder must return shape \(batch, 9\)",
                lambda: RelationWeightedHeads(nn.Linear(2, 4), 2, 1, width=9)(torch.zeros(3, 2)),
            ),
        ),
        batched=("x",),
        differentiable=True,
        compiles=True,
    ),
    BlockSpecimen(
        entry=f"{_MODULE}:D3GLoss",
        make=lambda _: D3GLoss(0.5),
        inputs=_outputs,
        run=lambda loss, inputs: loss(**inputs),
        bad=(
            ("lam must be at least 0", lambda: D3GLoss(-0.1)),
            (
                r"relations must have shape \(3, 3\)",
                lambda: _loss(_outputs(0), relations=torch.ones(2, 2)),
            ),
            (
                "domains must be numbers from 0 to 2",
                lambda: _loss(_outputs(0), domains=torch.arange(6)),
            ),
        ),
        differentiable=True,
        invariances=(("the scale of a relation row does not matter", _rescaled),),
    ),
)
