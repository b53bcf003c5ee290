"""Smallest working instances of flt, for the conformance suite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from trialrun.attention.flt import FLTAttention, SpectralRPE
from trialrun.dossiers.specimen import BlockSpecimen

_MODULE = "trialrun.attention.flt"


def _mask(seed: int) -> SpectralRPE:
    return SpectralRPE(2, "mixture", heads=2, freqs=8, blobs=4, seed=seed)


def _attention(seed: int, *, causal: bool = True) -> FLTAttention:
    return FLTAttention(8, 2, rpe=_mask(seed), features=16, causal=causal, seed=seed)


def _points(seed: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    return {"coords": torch.randn(3, 11, 2, generator=draw)}


def _tokens(seed: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(3, 11, 8, generator=draw), **_points(seed)}


def _places(rpe: Any, inputs: Mapping[str, Any]) -> Any:
    query, key = rpe(**inputs)
    return (query @ key.transpose(-1, -2)).transpose(0, 1)


def _attend(attn: Any, inputs: Mapping[str, Any]) -> Any:
    return attn(**inputs)


def _moved(seed: int) -> tuple[Any, Any]:
    coords = _points(seed)["coords"]
    return _places(_mask(seed), {"coords": coords}), _places(_mask(seed), {"coords": coords + 5})


def _cut_short(seed: int) -> tuple[Any, Any]:
    inputs = _tokens(seed)
    short = {name: value[:, :6] for name, value in inputs.items()}
    return _attention(seed)(**inputs)[:, :6], _attention(seed)(**short)


def _mixed(seed: int) -> tuple[Any, Any]:
    inputs, attn = _tokens(seed), _attention(seed, causal=False)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(seed))
    mixed = {name: value[:, order] for name, value in inputs.items()}
    return attn(**inputs)[:, order], attn(**mixed)


SPECIMENS = (
    BlockSpecimen(
        entry=f"{_MODULE}:SpectralRPE",
        make=_mask,
        inputs=_points,
        run=_places,
        bad=(
            ("dim must be a whole number", lambda: SpectralRPE(0)),
            ("kind must be one of", lambda: SpectralRPE(1, "sinc")),
            ("sides must be one of", lambda: SpectralRPE(sides="left")),
            ("scale must be a positive", lambda: SpectralRPE(scale=0.0)),
            ("coords must be scaled", lambda: _mask(0)(100 * _points(0)["coords"])),
            (r"coords must have shape", lambda: _mask(0)(torch.zeros(5, 3))),
        ),
        batched=("coords",),
        differentiable=True,
        invariances=(("a common shift of all points leaves the mask", _moved),),
    ),
    BlockSpecimen(
        entry=f"{_MODULE}:FLTAttention",
        make=_attention,
        inputs=_tokens,
        run=_attend,
        bad=(
            ("width must be a multiple of heads", lambda: FLTAttention(7, 2)),
            ("feature_map must be one of", lambda: FLTAttention(8, 2, feature_map="elu")),
            ("rpe must have 1 or 4 heads", lambda: FLTAttention(8, 4, rpe=_mask(0))),
            ("coords are needed", lambda: _attention(0)(_tokens(0)["x"])),
            ("needs causal=True", lambda: _attention(0, causal=False).step(torch.ones(1, 8))),
            (
                "state must come from this very module",
                lambda: _attention(0).step(
                    torch.ones(1, 8),
                    _attention(0).step(torch.ones(1, 8), None, torch.zeros(2))[1],
                    torch.zeros(2),
                ),
            ),
        ),
        batched=("x", "coords"),
        differentiable=True,
        invariances=(
            ("what follows is not felt", _cut_short),
            ("without causality the order of points is not felt", _mixed),
        ),
    ),
)
