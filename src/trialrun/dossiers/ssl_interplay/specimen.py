"""Smallest working instances of ssl_interplay, for the conformance suite."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from trialrun.core.seeds import rng, split
from trialrun.dossiers.specimen import BlockSpecimen, EstimatorSpecimen, FunctionSpecimen
from trialrun.representation.ssl_interplay import (
    KernelVCReg,
    VCRegLoss,
    interplay_path,
    interplay_spectrum,
    jitter,
)

_MODULE = "trialrun.representation.ssl_interplay"


def _rows(seed: int) -> dict[str, Any]:
    return {"X": rng(seed, "specimen").normal(size=(20, 3))}


def _model(seed: int = 0, **settings: Any) -> KernelVCReg:
    augment = partial(jitter, scale=0.2)
    told = {"n_components": 3, "reg": 1e-2, "random_state": seed, "augment": augment}
    return KernelVCReg(**{**told, **settings})


def _fit(**settings: Any) -> KernelVCReg:
    return _model(**settings).fit(**_rows(0))


def _products(z: np.ndarray) -> np.ndarray:
    return z @ z.T


def _reordered(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rows = rng(seed, "views").normal(size=(24, 2))
    groups = np.repeat(np.arange(8), 3)
    order = rng(seed, "order").permutation(24)
    plain = _model(augment=None).fit(rows, groups=groups)
    other = _model(augment=None).fit(rows[order], groups=groups[order])
    return _products(plain.transform(rows)), _products(other.transform(rows))


def _operators(seed: int) -> dict[str, Any]:
    random = rng(seed, "operators")
    turn = np.linalg.qr(random.normal(size=(5, 5)))[0]
    return {
        "augmentation": turn @ np.diag(random.uniform(size=5)) @ turn.T,
        "kernel": np.diag(random.uniform(0.1, 1.0, size=5)),
    }


def _spectrum(inputs: Any, **settings: Any) -> Any:
    found = interplay_spectrum(**inputs, **{"reg": 0.1, **settings})
    return found.eigenvalues, found.functions, found.invariance, found.norms


def _turned(seed: int) -> tuple[Any, Any]:
    inputs = _operators(seed)
    turn = np.linalg.qr(rng(seed, "turn").normal(size=(5, 5)))[0]
    other = {name: turn @ matrix @ turn.T for name, matrix in inputs.items()}
    return _spectrum(inputs)[0], _spectrum(other)[0]


def _path(inputs: Any, **settings: Any) -> Any:
    told = {"regs": [1e-3, 1e-1, 10.0], "model": _model(), **settings}
    found = interplay_path(**inputs, **told)
    return found.eigenvalues, found.loss, found.kernel_share


def _views(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(split(seed, "views"))
    first, second = torch.randn(2, 8, 3, generator=generator)
    return {"first": first, "second": second}


def _rotated(seed: int) -> tuple[Any, Any]:
    inputs = {name: z.double() for name, z in _views(seed).items()}
    turn = np.linalg.qr(rng(seed, "turn").normal(size=(3, 3)))[0]
    other = {name: z @ torch.from_numpy(turn) for name, z in inputs.items()}
    return VCRegLoss()(**inputs), VCRegLoss()(**other)


def _unequal() -> Any:
    return VCRegLoss()(torch.zeros(4, 2), torch.zeros(4, 3))


SPECIMENS = (
    EstimatorSpecimen(
        entry=f"{_MODULE}:KernelVCReg",
        make=_model,
        inputs=_rows,
        run=lambda fitted, inputs: fitted.transform(inputs["X"]),
        check=KernelVCReg,
        bad=(
            ("reg must be a finite number", lambda: _fit(reg=-1.0)),
            ("n_components must be a whole number", lambda: _fit(n_components=0)),
            ("kernel must be one of", lambda: _fit(kernel="cosine kernel")),
            ("gamma must be above 0", lambda: _fit(gamma=0.0)),
            ("solver must be one of", lambda: _fit(solver="arpack")),
            ("pairs must be one of", lambda: _fit(pairs="some")),
            ("at least 2 views of every input", lambda: _fit(pairs="distinct", n_views=1)),
            ("augment must return one view per row", lambda: _fit(augment=lambda X, _: X[:3])),
            ("augment returned NaN", lambda: _fit(augment=lambda X, _: X * np.nan)),
            ("knows the kernels rbf and laplacian",
             lambda: _fit(kernel="polynomial", solver="random_features")),
            ("one label per row", lambda: KernelVCReg().fit(np.eye(3), groups=[0, 1])),
            (r"views must have shape \(inputs, views, features\)",
             lambda: KernelVCReg().fit(views=np.eye(3))),
            ("square Gram matrix",
             lambda: KernelVCReg(kernel="precomputed").fit(np.ones((3, 2)))),
            ("kernel must be positive semi-definite",
             lambda: KernelVCReg(kernel="precomputed").fit(np.diag([1.0, -1.0, 2.0]))),
        ),
        expected_failed_checks={},
        save=lambda fitted, folder: fitted.save(folder),
        load=KernelVCReg.load,
        invariances=(("the order of the views does not matter", _reordered),),
    ),
    FunctionSpecimen(
        entry=f"{_MODULE}:interplay_spectrum",
        run=_spectrum,
        inputs=_operators,
        bad=(
            ("must have one basis", lambda: interplay_spectrum([0.5, 0.2], [1.0])),
            ("no negative eigenvalue", lambda: interplay_spectrum([0.5, 0.2], [1.0, -1.0])),
            ("must be symmetric", lambda: interplay_spectrum([[0, 1], [0, 0]], [1.0, 1.0])),
            ("reg must be a finite number", lambda: interplay_spectrum([0.5], [1.0], reg=-1)),
        ),
        invariances=(("a rotation of the basis does not matter", _turned),),
    ),
    FunctionSpecimen(
        entry=f"{_MODULE}:interplay_path",
        run=_path,
        inputs=_rows,
        bad=(
            ("regs must be finite numbers", lambda: _path(_rows(0), regs=[-1.0])),
            ("fit takes X, or views", lambda: interplay_path(regs=[1.0])),
        ),
    ),
    BlockSpecimen(
        entry=f"{_MODULE}:VCRegLoss",
        make=lambda _: VCRegLoss(),
        inputs=_views,
        run=lambda loss, inputs: loss(**inputs),
        bad=(
            ("beta must be a finite number of at least 0", lambda: VCRegLoss(-1.0)),
            ("cross must be one of", lambda: VCRegLoss(cross="both")),
            ("views of the same inputs", _unequal),
            ("at least 2 inputs", lambda: VCRegLoss()(torch.zeros(1, 2), torch.zeros(1, 2))),
        ),
        differentiable=True,
        invariances=(("a rotation of the components does not matter", _rotated),),
    ),
)  # fmt: skip
