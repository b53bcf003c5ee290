"""Smallest working instances of tcs, for the conformance suite."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trialrun.core.seeds import rng, split
from trialrun.dossiers.specimen import BlockSpecimen, EstimatorSpecimen, FunctionSpecimen
from trialrun.fewshot.tcs import (
    Distilled,
    ELSHLoss,
    FewRowsWarning,
    LSHLoss,
    TailoredCoordinates,
    Tailoring,
    TCSHead,
    distill,
)

_MODULE = "trialrun.fewshot.tcs"


def _features(seed: int) -> np.ndarray:
    return rng(seed, "features").normal(size=(30, 5)) * [5.0, 3.0, 2.0, 1.0, 0.5] + 1.0


def _coords(seed: int, count: int = 3) -> TailoredCoordinates:
    return TailoredCoordinates(n_components=count).fit(_features(seed))


def _fitted(**settings: Any) -> TailoredCoordinates:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewRowsWarning)
        return TailoredCoordinates(**settings).fit(_features(0))


def _moved(seed: int) -> tuple[np.ndarray, np.ndarray]:
    X = _features(seed)
    return _coords(seed).transform(X), TailoredCoordinates(n_components=3).fit(X + 7).transform(
        X + 7
    )


def _x(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(split(seed, "x"))
    return {"x": torch.randn(4, 6, generator=generator)}


def _head(seed: int) -> TCSHead:
    return TCSHead(6, _coords(seed), 3, tailoring=Tailoring(keep=2), seed=seed)


def _folded(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    head, x = _head(seed), _x(seed)["x"]
    return head(x), head.fold()(x)


def _six(seed: int, whose: str) -> torch.Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(split(seed, whose)))


def _lsh(seed: int, **settings: Any) -> LSHLoss:
    return LSHLoss(_features(seed).astype("float32"), n_hashes=16, seed=seed, **settings)


def _stretched(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    loss, student, teacher = _lsh(seed), _six(seed, "student"), _six(seed, "teacher")
    loss.bias.zero_()
    # Through the origin the bits know the side, and not the distance, that a teacher lies on.
    return loss(student, teacher), loss(student, 3 * teacher)


def _numbered(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(split(seed, "numbered"))
    coordinates = torch.randn(4, 3, generator=generator)
    return {"coordinates": coordinates, "index": torch.tensor([3, 0, 29, 3])}


def _elsh(seed: int, **settings: Any) -> ELSHLoss:
    return ELSHLoss(_coords(0), _features(0), n_hashes=20, seed=seed, **settings)


def _pictures(seed: int, classes: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(split(seed, "pictures"))
    x = torch.randn(24, 6, generator=generator)
    return {"x": x, "y": torch.arange(24) % classes}


def _networks(seed: int, width: int = 5) -> tuple[nn.Module, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(split(seed, "networks"))
        return nn.Linear(6, 4), nn.Linear(6, width)


def _made(given: Any, *, seed: int = 0, width: int = 5, **settings: Any) -> Distilled:
    student, teacher = _networks(seed, width)
    loader = DataLoader(TensorDataset(given["x"], given["y"]), batch_size=8, shuffle=True)
    return distill(student, teacher, loader, epochs=1, n_components=3, seed=seed, **settings)


def _distilled(given: Any, **settings: Any) -> torch.Tensor:
    return _made(given, **settings).model(given["x"]).detach()


def _seen(seed: int) -> tuple[Any, Any]:
    given = _pictures(seed)
    teacher = _networks(seed)[1]
    return _made(given, seed=seed).features, teacher(given["x"]).detach().numpy()


SPECIMENS = (
    EstimatorSpecimen(
        entry=f"{_MODULE}:TailoredCoordinates",
        make=lambda _: TailoredCoordinates(n_components=3),
        inputs=lambda seed: {"X": _features(seed)},
        run=lambda fitted, inputs: fitted.transform(inputs["X"]),
        check=lambda: TailoredCoordinates(),
        bad=(
            ("n_components must be 1 to 5", lambda: _fitted(n_components=6)),
            ("basis must be one of pca, random", lambda: _fitted(basis="ica")),
            ("equal rows", lambda: TailoredCoordinates().fit(np.ones((9, 3)))),
            ("NaN", lambda: TailoredCoordinates().fit(np.full((9, 3), np.nan))),
        ),
        expected_failed_checks={},
        save=lambda fitted, folder: fitted.save(folder),
        load=TailoredCoordinates.load,
        invariances=(("the place of the origin does not matter", _moved),),
    ),
    BlockSpecimen(
        entry=f"{_MODULE}:TCSHead",
        make=_head,
        inputs=_x,
        run=lambda head, inputs: head(**inputs),
        bad=(
            (r"x must have shape \(batch, 6\)", lambda: _head(0)(torch.zeros(2, 5))),
            ("n_classes must be at least 2", lambda: TCSHead(6, _coords(0), 1)),
            ("without an adapter", lambda: TCSHead(6, _coords(0), 2, adapter=False)),
            ("coords must be fitted", lambda: TCSHead(6, TailoredCoordinates(), 2)),
            (
                "keep must be at most the 3 axes",
                lambda: TCSHead(6, _coords(0), 2, tailoring=Tailoring(keep=4)),
            ),
        ),
        batched=("x",),
        differentiable=True,
        invariances=(("folded into one layer, it gives the same", _folded),),
    ),
    BlockSpecimen(
        entry=f"{_MODULE}:LSHLoss",
        make=_lsh,
        inputs=lambda seed: {"student": _six(seed, "student")},
        run=lambda loss, inputs: loss(
            inputs["student"], _six(0, "teacher").to(inputs["student"].dtype)
        ),
        bad=(
            (
                r"teacher must have shape \(batch, 5\)",
                lambda: _lsh(0)(torch.zeros(2, 5), torch.zeros(2, 4)),
            ),
            ("n_hashes must be at least 1", lambda: LSHLoss(np.eye(3), n_hashes=0)),
            ("std must be above 0", lambda: LSHLoss(np.eye(3), std=0.0)),
        ),
        differentiable=True,
        invariances=(("how far the teacher lies from a plane does not matter", _stretched),),
    ),
    BlockSpecimen(
        entry=f"{_MODULE}:ELSHLoss",
        make=_elsh,
        inputs=_numbered,
        run=lambda loss, inputs: loss(**inputs),
        bad=(
            (
                "index must hold numbers from 0 to 29",
                lambda: _elsh(0)(torch.zeros(1, 3), torch.tensor([30])),
            ),
            (
                r"coordinates must have shape \(batch, 3\)",
                lambda: _elsh(0)(torch.zeros(1, 4), torch.tensor([0])),
            ),
            (
                r"teacher_features must have shape \(images, 5\)",
                lambda: ELSHLoss(_coords(0), np.eye(4)),
            ),
        ),
        differentiable=True,
    ),
    FunctionSpecimen(
        entry=f"{_MODULE}:distill",
        run=_distilled,
        inputs=_pictures,
        bad=(
            ("at least two classes, got 1", lambda: _distilled(_pictures(0, classes=1))),
            (
                "class 0 has 12 images, fewer than the 13",
                lambda: _distilled(_pictures(0), shots=13),
            ),
            ("has no layer 'head'", lambda: _distilled(_pictures(0), layer="head")),
            ("n_components must be 1 to 2", lambda: _distilled(_pictures(0), width=2)),
        ),
        invariances=(("the teacher's features stay in the order of the images", _seen),),
    ),
)
