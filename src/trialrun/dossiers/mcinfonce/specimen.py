"""Smallest working instances of mcinfonce, for the conformance suite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trialrun.core.seeds import split
from trialrun.dossiers.specimen import BlockSpecimen, FunctionSpecimen
from trialrun.representation.mcinfonce import (
    ELKLoss,
    HIBLoss,
    MCInfoNCELoss,
    VMFEncoder,
    VMFWorld,
    VonMisesFisher,
    credible_coverage,
    credible_retrieval,
    procrustes,
)

_MODULE = "trialrun.representation.mcinfonce"


def _random(seed: int, name: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(split(seed, name)))


def _posterior(seed: int) -> dict[str, Any]:
    return {"mu": _random(seed, "mu", 3, 4), "kappa": _random(seed, "kappa", 3).exp() * 10}


def _post(inputs: Mapping[str, Any], name: str = "") -> VonMisesFisher:
    return VonMisesFisher(inputs[f"{name}mu"], inputs[f"{name}kappa"])


def _describe(inputs: Mapping[str, Any]) -> Any:
    post = _post(inputs)
    draws = post.rsample((5,), generator=torch.Generator().manual_seed(1))
    return {
        "draws": draws,
        "log_prob": post.log_prob(draws),
        "entropy": post.entropy(),
        "length": post.mean_resultant_length,
        "variance": post.variance,
    }


def _turn(seed: int) -> Tensor:
    return torch.linalg.qr(_random(seed, "turn", 4, 4).double()).Q


def _turned_density(seed: int) -> tuple[Any, Any]:
    mu, kappa = (value.double() for value in _posterior(seed).values())
    z = torch.nn.functional.normalize(_random(seed, "z", 3, 4).double(), dim=-1)
    turn = _turn(seed)
    return (
        VonMisesFisher(mu @ turn, kappa).log_prob(z @ turn),
        VonMisesFisher(mu, kappa).log_prob(z),
    )


def _triples(seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, shape in (("r_", (4,)), ("p_", (4,)), ("n_", (4, 3))):
        found[f"{name}mu"] = _random(seed, f"{name}mu", *shape, 5)
        found[f"{name}kappa"] = _random(seed, f"{name}kappa", *shape).exp() * 10
    return found


def _apply(loss: Any, inputs: Mapping[str, Any]) -> Any:
    return loss(*(_post(inputs, name) for name in ("r_", "p_", "n_")))


def _of(size: int, dim: int = 3) -> VonMisesFisher:
    return VonMisesFisher(_random(0, "any", size, dim), 5.0)


def _pair_form(seed: int) -> tuple[Any, Any]:
    inputs = _triples(seed)
    triple = [_post(inputs, name) for name in ("r_", "p_", "n_")]
    loss = MCInfoNCELoss(seed=seed).eval()
    return loss(*triple), loss(triple[0], triple[1][:, None], triple[2])


def _turned_kernel(seed: int) -> tuple[Any, Any]:
    inputs = {key: value.double() for key, value in _triples(seed).items()}
    turn = torch.linalg.qr(_random(seed, "turn", 5, 5).double()).Q
    turned = {key: value @ turn if key.endswith("mu") else value for key, value in inputs.items()}
    return _apply(ELKLoss(), inputs), _apply(ELKLoss(), turned)


def _encoder(seed: int) -> VMFEncoder:
    return VMFEncoder(nn.Identity(), 3, width=6, head="mlps", hidden=(8,), seed=seed)


def _encode(encoder: VMFEncoder, inputs: Mapping[str, Any]) -> Any:
    post = encoder(inputs["x"])
    return post.mu, post.kappa


def _retrieve(inputs: Mapping[str, Any]) -> Any:
    ids, thresholds = credible_retrieval(_post(inputs), inputs["gallery"], 0.1)
    return [*ids, thresholds]


def _turned_sets(seed: int) -> tuple[Any, Any]:
    inputs = {key: value.double() for key, value in _gallery(seed).items()}
    turn = _turn(seed)
    turned = {key: value @ turn if value.ndim == 2 else value for key, value in inputs.items()}
    return tuple(_retrieve(given)[-1] for given in (inputs, turned))


def _gallery(seed: int) -> dict[str, Any]:
    return {**_posterior(seed), "gallery": _random(seed, "gallery", 30, 4)}


def _world(inputs: Mapping[str, Any]) -> Any:
    world = VMFWorld(3, positives="reference", seed=inputs["seed"])
    return [*world.pairs(4, 2, seed=inputs["seed"]), world.inputs(4, 2, seed=1).latents]


_LOSS_BAD = (
    ("n_samples must be a whole number", lambda: MCInfoNCELoss(n_samples=0)),
    ("kappa must be a finite number above 0", lambda: MCInfoNCELoss(-1.0)),
    (
        "ref must be a VonMisesFisher",
        lambda: MCInfoNCELoss()(torch.zeros(2, 3), _of(2)),
    ),
    (r"pos must have batch shape \(4,\)", lambda: MCInfoNCELoss()(_of(4), _of(3))),
    (
        r"neg must have batch shape \(4, negatives\)",
        lambda: MCInfoNCELoss()(_of(4), _of(4), _of(4)),
    ),
    ("at least 2 rows", lambda: MCInfoNCELoss()(_of(1), _of(1))),
)

SPECIMENS = (
    FunctionSpecimen(
        entry=f"{_MODULE}:VonMisesFisher",
        run=_describe,
        inputs=_posterior,
        bad=(
            ("dim at least 2", lambda: VonMisesFisher(torch.ones(3, 1), 1.0)),
            ("mu must hold finite rows", lambda: VonMisesFisher(torch.zeros(3, 2), 1.0)),
            ("kappa must be at least 0", lambda: VonMisesFisher(torch.ones(3, 2), -1.0)),
            (
                r"kappa must have the shape of mu without its last axis, \(3,\)",
                lambda: VonMisesFisher(torch.ones(3, 2), torch.ones(3, 1, 2)),
            ),
            (
                "value must have 2 coordinates",
                lambda: VonMisesFisher(torch.ones(3, 2), 1.0).log_prob(torch.ones(3)),
            ),
            (
                "probability must be between 0 and 1",
                lambda: VonMisesFisher(torch.ones(3, 2), 1.0).gap_quantile(1.0),
            ),
        ),
        invariances=(("turning mean and point changes nothing", _turned_density),),
    ),
    BlockSpecimen(
        entry=f"{_MODULE}:MCInfoNCELoss",
        make=lambda seed: MCInfoNCELoss(8.0, 4, learnable=True, seed=seed),
        inputs=_triples,
        run=_apply,
        bad=_LOSS_BAD,
        differentiable=True,
        invariances=(("a positive may carry an axis of one", _pair_form),),
    ),
    BlockSpecimen(
        entry=f"{_MODULE}:HIBLoss",
        make=lambda seed: HIBLoss(n_samples=4, beta=0.1, seed=seed),
        inputs=_triples,
        run=_apply,
        bad=(
            ("a must be a finite number above 0", lambda: HIBLoss(0.0)),
            ("beta must be a finite number at least 0", lambda: HIBLoss(beta=-1.0)),
        ),
        differentiable=True,
    ),
    BlockSpecimen(
        entry=f"{_MODULE}:ELKLoss",
        make=lambda _: ELKLoss(),
        inputs=_triples,
        run=_apply,
        bad=(
            ("temperature must be a finite number above 0", lambda: ELKLoss(math.nan)),
            ("rolled must be a whole number", lambda: ELKLoss(rolled=0)),
        ),
        differentiable=True,
        invariances=(("turning all posteriors changes nothing", _turned_kernel),),
    ),
    BlockSpecimen(
        entry=f"{_MODULE}:VMFEncoder",
        make=_encoder,
        inputs=lambda seed: {"x": _random(seed, "x", 4, 6)},
        run=_encode,
        bad=(
            ("width must be given", lambda: VMFEncoder(nn.ReLU(), 3)),
            ("head must be one of norm, mlps", lambda: VMFEncoder(nn.ReLU(), 3, head="x", width=2)),
            ("dim must be a whole number", lambda: VMFEncoder(nn.ReLU(), 1, width=2)),
            (
                r"backbone must return shape \(rows, 6\)",
                lambda: _encoder(0)(torch.zeros(4, 5)),
            ),
            (
                "low at most high",
                lambda: VMFEncoder(nn.ReLU(), 3, width=2, kappa=(2.0, 1.0)),
            ),
        ),
        batched=("x",),
        differentiable=True,
    ),
    FunctionSpecimen(
        entry=f"{_MODULE}:VMFWorld",
        run=_world,
        inputs=lambda seed: {"seed": seed},
        bad=(
            ("positives must be one of", lambda: VMFWorld(3, positives="x")),
            ("x_dim must be a whole number", lambda: VMFWorld(20)),
            ("is known for dim 10", lambda: VMFWorld(3, constant="published")),
        ),
    ),
    FunctionSpecimen(
        entry=f"{_MODULE}:credible_retrieval",
        run=_retrieve,
        inputs=_gallery,
        bad=(
            (
                "alpha must be between 0 and 1",
                lambda: credible_retrieval(_of(2), torch.ones(3, 3), 0.0),
            ),
            (
                "gallery must have 3 coordinates",
                lambda: credible_retrieval(_of(2), torch.ones(3, 2)),
            ),
            ("gallery must have shape", lambda: credible_retrieval(_of(2), torch.ones(3))),
        ),
        invariances=(("turning queries and gallery changes nothing", _turned_sets),),
    ),
    FunctionSpecimen(
        entry=f"{_MODULE}:credible_coverage",
        run=lambda inputs: credible_coverage(_post(inputs), inputs["latents"]),
        inputs=lambda seed: {**_posterior(seed), "latents": _random(seed, "z", 3, 6, 4)},
        bad=(
            ("latents must have shape", lambda: credible_coverage(_of(2), torch.ones(3, 3))),
            ("alpha must be", lambda: credible_coverage(_of(2), torch.ones(2, 3), 1.5)),
        ),
    ),
    FunctionSpecimen(
        entry=f"{_MODULE}:procrustes",
        run=lambda inputs: procrustes(inputs["found"], inputs["truth"]),
        inputs=lambda seed: {
            "found": _random(seed, "found", 9, 3),
            "truth": _random(seed, "truth", 9, 3),
        },
        bad=(("must have one shape", lambda: procrustes(torch.ones(3, 2), torch.ones(4, 2))),),
    ),
)
