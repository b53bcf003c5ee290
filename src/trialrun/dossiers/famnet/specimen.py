"""Smallest working instances of famnet, for the conformance suite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from trialrun.core.seeds import rng, split
from trialrun.dossiers.specimen import BlockSpecimen, FunctionSpecimen
from trialrun.fewshot.famnet import (
    FAMNet,
    FrequencyAwareMatching,
    MultiSpectralFusion,
    PrototypeSegmenter,
    SmallEncoder,
    evaluate_volume,
    famnet_loss,
    supervoxels,
)

_MODULE = "trialrun.fewshot.famnet"


def _draw(seed: int, name: str, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(split(seed, name))
    return torch.rand(*shape, generator=generator)


def _mask(seed: int, name: str, *shape: int) -> torch.Tensor:
    mask = _draw(seed, name, *shape) < 0.4
    mask[:, shape[1] // 2] = True
    return mask


def _net(seed: int) -> FAMNet:
    encoder = SmallEncoder(8, seed=seed)
    return FAMNet(encoder, channels=8, n_tokens=30, seed=seed)


def _plain(seed: int) -> PrototypeSegmenter:
    return PrototypeSegmenter(SmallEncoder(8, seed=seed), channels=8, seed=seed)


def _images(seed: int) -> dict[str, Any]:
    return {
        "support_img": _draw(seed, "support", 2, 1, 24, 20),
        "support_mask": _mask(seed, "mask", 2, 24, 20),
        "query_img": _draw(seed, "query", 2, 1, 24, 20),
    }


def _segment(net: Any, inputs: Mapping[str, Any]) -> Any:
    pred, aux = net(**inputs)
    return {"pred": pred, "coarse": aux["coarse"]}


def _maps(seed: int) -> dict[str, Any]:
    return {
        "support_features": _draw(seed, "support", 2, 4, 6, 5),
        "support_mask": _mask(seed, "support mask", 2, 12, 10),
        "query_features": _draw(seed, "query", 2, 4, 6, 5),
        "query_mask": _mask(seed, "query mask", 2, 12, 10),
    }


def _bands(seed: int) -> dict[str, Any]:
    return {name: _draw(seed, name, 2, 4, 9) for name in ("low", "middle", "high")}


def _match(seed: int) -> FrequencyAwareMatching:
    return FrequencyAwareMatching(30, seed=seed)


def _predictions(seed: int) -> dict[str, Any]:
    return {
        "pred": _draw(seed, "pred", 2, 2, 5, 4).softmax(1),
        "coarse": _draw(seed, "coarse", 2, 2, 5, 4).softmax(1),
        "query_mask": _mask(seed, "truth", 2, 5, 4),
    }


def _volumes(seed: int) -> dict[str, Any]:
    random = rng(seed, "volumes")
    support, query = random.normal(size=(2, 4, 16, 16))
    return {
        "support_volume": support,
        "support_label": support > 0.5,
        "query_volume": query,
        "query_label": query > 0.5,
    }


def _evaluate(inputs: Mapping[str, Any]) -> Any:
    result = evaluate_volume(_net(0).eval(), **inputs)
    return {"dice": np.array([result.dice]), "prediction": result.prediction}


def _volume(seed: int) -> dict[str, Any]:
    return {"volume": rng(seed, "volume").normal(size=(3, 6, 6))}


def _cut(inputs: Mapping[str, Any]) -> Any:
    return supervoxels(inputs["volume"], scale=0.5, min_size=3)


def _swapped_bands(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Order of tokens does not matter to the fusion, which attends; it does to the matching."""
    bands = _bands(seed)
    fuse = MultiSpectralFusion(4)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    moved = {**bands, "low": bands["low"][..., order]}
    return fuse(**bands), fuse(**moved)


def _shifted(seed: int) -> tuple[Any, Any]:
    volume = _volume(seed)["volume"]
    return _cut({"volume": volume}), _cut({"volume": volume + 4.0})


_BAD_IMAGES = (
    ("support_img must have shape", lambda: _net(0)(*[torch.zeros(1, 24, 20)] * 3)),
    (
        "no foreground in image 0",
        lambda: _plain(0)(torch.zeros(1, 1, 24, 20), torch.zeros(1, 24, 20),
                          torch.zeros(1, 1, 24, 20)),
    ),
    (
        "support_mask must have the images' size",
        lambda: _plain(0)(torch.zeros(1, 1, 24, 20), torch.ones(1, 20, 24),
                          torch.zeros(1, 1, 24, 20)),
    ),
)  # fmt: skip

SPECIMENS = (
    BlockSpecimen(
        entry=f"{_MODULE}:FAMNet",
        make=_net,
        inputs=_images,
        run=_segment,
        bad=(
            ("fusion must be one of", lambda: FAMNet("small", 8, 4, fusion="max")),
            *_BAD_IMAGES,
        ),
        batched=("support_img", "support_mask", "query_img"),
        differentiable=True,
    ),
    BlockSpecimen(
        entry=f"{_MODULE}:PrototypeSegmenter",
        make=_plain,
        inputs=_images,
        run=_segment,
        bad=(
            ("temperature must be above 0", lambda: PrototypeSegmenter("small", 8, temperature=0)),
            *_BAD_IMAGES,
        ),
        batched=("support_img", "support_mask", "query_img"),
        differentiable=True,
    ),
    BlockSpecimen(
        entry=f"{_MODULE}:FrequencyAwareMatching",
        make=_match,
        inputs=_maps,
        run=lambda block, inputs: block(**inputs)._asdict(),
        bad=(
            ("cutoff must be in", lambda: FrequencyAwareMatching(cutoff=0.7)),
            (
                "support_mask must be bool",
                lambda: _match(0)(**{**_maps(0), "support_mask": torch.ones(2, 12, 10)}),
            ),
        ),
        batched=("support_features", "support_mask", "query_features", "query_mask"),
        differentiable=True,
    ),
    BlockSpecimen(
        entry=f"{_MODULE}:MultiSpectralFusion",
        make=lambda seed: MultiSpectralFusion(4, seed=seed),
        inputs=_bands,
        run=lambda block, inputs: block(**inputs),
        bad=(
            (
                "low must have 4 channels",
                lambda: MultiSpectralFusion(4)(*[_draw(0, "", 1, 3, 9)] * 3),
            ),
        ),
        batched=("low", "middle", "high"),
        differentiable=True,
        compiles=True,
        invariances=(("the order of the tokens asked does not matter", _swapped_bands),),
    ),
    FunctionSpecimen(
        entry=f"{_MODULE}:famnet_loss",
        run=lambda inputs: famnet_loss(**inputs),
        inputs=_predictions,
        bad=(
            (
                "pred must have shape",
                lambda: famnet_loss(torch.ones(1, 2, 4, 4), torch.ones(1, 2, 4, 4),
                                    torch.ones(1, 3, 3)),
            ),
        ),
    ),
    FunctionSpecimen(
        entry=f"{_MODULE}:evaluate_volume",
        run=_evaluate,
        inputs=_volumes,
        bad=(
            (
                "query_label must mark the organ",
                lambda: _evaluate({**_volumes(0), "query_label": np.zeros((4, 16, 16), bool)}),
            ),
        ),
    ),
    FunctionSpecimen(
        entry=f"{_MODULE}:supervoxels",
        run=_cut,
        inputs=_volume,
        bad=(("scale must be above 0", lambda: supervoxels(np.eye(4)[None], scale=0)),),
        invariances=(("a constant added to the brightness does not matter", _shifted),),
    ),
)  # fmt: skip
