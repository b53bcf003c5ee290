"""Smallest working instances of svasp, for the conformance suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from trialrun.core.seeds import split
from trialrun.dossiers.specimen import BlockSpecimen, FunctionSpecimen
from trialrun.fewshot.svasp import (
    Conv4,
    DomainLogits,
    EpisodeSampler,
    EpisodicTraining,
    Features,
    FewShotModel,
    InductiveGNNHead,
    LossWeights,
    Pictures,
    ProtoNetHead,
    ResNet10,
    Style,
    StyleAttack,
    SVasPLoss,
    TransductiveGNNHead,
    adain,
    evaluate_episodes,
    forward_with_styles,
    svasp_loss,
    train_episodes,
)

_MODULE = "trialrun.fewshot.svasp"


def _random(seed: int, name: str, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(split(seed, name)))


def _net() -> FewShotModel:
    return FewShotModel(Conv4(widths=(4, 4, 4, 6)), classes=5)


def _pictures(seed: int) -> dict[str, Any]:
    return {
        "x": _random(seed, "x", 3, 3, 32, 32),
        "crops": _random(seed, "crops", 2, 3, 3, 32, 32),
        "y": torch.tensor([0, 3, 4]),
    }


def _attacked(attack: StyleAttack, inputs: Mapping[str, Any]) -> Any:
    model = _net().to(inputs["x"].dtype)
    styles = attack(model.backbone, model.classifier, **inputs, seed=0)
    return [(style.mean, style.std) for style in styles]


def _still(_: int = 0) -> StyleAttack:
    # Without the random start, whose draws depend on the batch, a picture is attacked alone.
    return StyleAttack(stages=Conv4.stages, eps=(0.1,), start="none")


def _alone(seed: int) -> tuple[Any, Any]:
    inputs = _pictures(seed)
    model = _net().double()
    x, crops, y = inputs["x"].double(), inputs["crops"].double(), inputs["y"]
    many = _still()(model.backbone, model.classifier, x, crops, y)
    one = _still()(model.backbone, model.classifier, x[1:2], crops[:, 1:2], y[1:2])
    return [s.std[1:2] for s in many], [s.std for s in one]


def _logits(seed: int) -> dict[str, Any]:
    return {
        "fsl_ori": _random(seed, "a", 6, 3),
        "fsl_adv": _random(seed, "b", 6, 3),
        "cls_ori": _random(seed, "c", 6, 4),
        "cls_crop": _random(seed, "d", 12, 4),
        "crop": _random(seed, "e", 12, 2),
        "clean": _random(seed, "f", 6, 2),
        "adv": _random(seed, "g", 6, 2),
    }


def _loss(inputs: Mapping[str, Any], of: Callable[..., Any] = svasp_loss) -> Any:
    dom = DomainLogits(inputs["crop"], inputs["clean"], inputs["adv"])
    four = (inputs[name] for name in ("fsl_ori", "fsl_adv", "cls_ori", "cls_crop"))
    return of(*four, dom, torch.arange(6) % 4, torch.arange(6) % 3)


def _shifted(seed: int) -> tuple[Any, Any]:
    inputs = {name: value.double() for name, value in _logits(seed).items()}
    moved = {name: value + 3 for name, value in inputs.items()}
    return _loss(inputs), _loss(moved)


def _episode(seed: int) -> dict[str, Any]:
    return {"support": _random(seed, "s", 2, 3, 2, 4), "query": _random(seed, "q", 2, 6, 4)}


def _reordered(make: Callable[[int], nn.Module]) -> Callable[[int], tuple[Any, Any]]:
    def both(seed: int) -> tuple[Any, Any]:
        head, inputs = make(seed).double(), _episode(seed)
        support, query = inputs["support"].double(), inputs["query"].double()
        return head(support, query), head(support.flip(2), query)

    return both


def _head(name: str, make: Callable[[int], nn.Module]) -> BlockSpecimen:
    inputs = _episode(0)
    return BlockSpecimen(
        entry=f"{_MODULE}:{name}",
        make=make,
        inputs=_episode,
        run=lambda head, inputs: head(**inputs),
        bad=(
            (
                r"support must have shape \(\.\.\., way, shot, width\)",
                lambda: make(0)(inputs["support"], inputs["query"][..., :3]),
            ),
            (
                r"support must have shape \(\.\.\., way, shot, width\)",
                lambda: make(0)(inputs["query"], inputs["query"]),
            ),
        ),
        batched=("support", "query"),
        differentiable=True,
        invariances=(("the order of the shots does not matter", _reordered(make)),),
    )


def _features(seed: int) -> dict[str, Any]:
    return {"features": _random(seed, "features", 40, 6)}


def _score(inputs: Mapping[str, Any]) -> Any:
    labels = np.repeat(np.arange(8), 5)
    found = evaluate_episodes(None, Features(inputs["features"], labels), query=3, episodes=9)
    return torch.tensor(found)


def _labels(seed: int) -> dict[str, Any]:
    return {"labels": np.repeat(np.arange(7), 6 + seed % 3)}


def _trained(inputs: Mapping[str, Any], weights: LossWeights | None = None) -> Any:
    model = _net()
    log = train_episodes(
        model,
        Pictures(inputs["images"], np.repeat(np.arange(5), 4)),
        attack=StyleAttack(stages=Conv4.stages),
        loss=SVasPLoss(weights=weights),
        training=EpisodicTraining(way=3, shot=1, query=2, episodes=2),
    )
    return [torch.tensor(log.losses), dict(model.state_dict())]


SPECIMENS = (
    BlockSpecimen(
        entry=f"{_MODULE}:StyleAttack",
        make=lambda _: StyleAttack(stages=Conv4.stages),
        inputs=_pictures,
        run=_attacked,
        bad=(
            (r"stages must list at least one name", lambda: StyleAttack(stages=())),
            (r"preset must be one of code", lambda: StyleAttack(stages=("a",), preset="x")),
            (
                r"stages must name submodules of Conv4, got 'layer7'",
                lambda: _attacked(StyleAttack(stages=("layer7",)), _pictures(0)),
            ),
            (
                r"crops must have shape \(crops, 3, 3, 32, 32\)",
                lambda: _attacked(_still(), {**_pictures(0), "crops": torch.zeros(2, 1, 3, 9, 9)}),
            ),
        ),
        invariances=(("a picture is attacked alike in any batch", _alone),),
    ),
    BlockSpecimen(
        entry=f"{_MODULE}:SVasPLoss",
        make=lambda _: SVasPLoss(),
        inputs=_logits,
        run=lambda loss, inputs: _loss(inputs, loss),
        bad=(
            (r"lambda_crop must be at least 0", lambda: SVasPLoss(lambda_crop=-1)),
            (r"weight dom must be at least 0", lambda: SVasPLoss(weights=LossWeights(dom=-1))),
        ),
        differentiable=True,
        invariances=(("a constant on all logits does not matter", _shifted),),
    ),
    FunctionSpecimen(
        entry=f"{_MODULE}:svasp_loss",
        run=_loss,
        inputs=_logits,
        bad=(
            (
                r"fsl_adv must have the shape of fsl_ori",
                lambda: _loss({**_logits(0), "fsl_adv": torch.zeros(5, 3)}),
            ),
            (
                r"cls_crop must have a whole number of rows",
                lambda: _loss({**_logits(0), "cls_crop": torch.zeros(11, 4)}),
            ),
        ),
        invariances=(("a constant on all logits does not matter", _shifted),),
    ),
    FunctionSpecimen(
        entry=f"{_MODULE}:adain",
        run=lambda inputs: adain(**inputs),
        inputs=lambda seed: {
            "features": _random(seed, "f", 2, 3, 4, 5),
            "mean": _random(seed, "m", 2, 3),
            "std": _random(seed, "s", 2, 3).abs(),
        },
        bad=(
            (
                r"mean must have shape \(2, 3\)",
                lambda: adain(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4), torch.ones(2, 3)),
            ),
            (
                r"at least two positions",
                lambda: adain(torch.zeros(2, 3, 1, 1), torch.zeros(2, 3), torch.ones(2, 3)),
            ),
        ),
    ),
    FunctionSpecimen(
        entry=f"{_MODULE}:forward_with_styles",
        run=lambda inputs: forward_with_styles(
            _net().backbone, inputs["x"], [Style(inputs["mean"], inputs["std"], "layer2")]
        ),
        inputs=lambda seed: {
            "x": _random(seed, "x", 2, 3, 32, 32),
            "mean": _random(seed, "m", 2, 4),
            "std": _random(seed, "s", 2, 4).abs(),
        },
        bad=(
            (
                r"p_apply must be at least 0 and at most 1",
                lambda: forward_with_styles(_net().backbone, torch.zeros(1, 3, 32, 32), [], 2.0),
            ),
            (
                r"x must have 3 channels, got 1",
                lambda: forward_with_styles(_net().backbone, torch.zeros(1, 1, 32, 32), []),
            ),
        ),
    ),
    BlockSpecimen(
        entry=f"{_MODULE}:ResNet10",
        make=lambda seed: ResNet10(widths=(4, 6, 6, 8), seed=seed),
        inputs=lambda seed: {"x": _random(seed, "x", 2, 3, 64, 64)},
        run=lambda net, inputs: net(inputs["x"]),
        bad=(
            (r"widths must be four numbers", lambda: ResNet10(widths=(4, 4))),
            (
                r"x must have 3 channels, got 4",
                lambda: ResNet10(widths=(4, 4, 4, 4))(torch.zeros(2, 4, 64, 64)),
            ),
        ),
        batched=("x",),
        differentiable=True,
    ),
    _head("ProtoNetHead", lambda _: ProtoNetHead()),
    _head("InductiveGNNHead", lambda seed: InductiveGNNHead(4, way=3, seed=seed)),
    _head("TransductiveGNNHead", lambda seed: TransductiveGNNHead(4, way=3, seed=seed)),
    BlockSpecimen(
        entry=f"{_MODULE}:EpisodeSampler",
        make=lambda seed: EpisodeSampler(np.repeat(np.arange(7), 6), query=4, seed=seed),
        inputs=_labels,
        run=lambda _, inputs: tuple(EpisodeSampler(inputs["labels"], query=4)(5)),
        bad=(
            (
                r"every class must have 16 pictures .* class 0 has 6",
                lambda: EpisodeSampler(**_labels(0)),
            ),
            (
                r"at least 5 classes for episodes of 5, got 1",
                lambda: EpisodeSampler(np.zeros(50, dtype=np.int64)),
            ),
        ),
    ),
    FunctionSpecimen(
        entry=f"{_MODULE}:evaluate_episodes",
        run=_score,
        inputs=_features,
        bad=(
            (
                r"episodes of 5 x 9 need at least 45 pictures, got 40",
                lambda: evaluate_episodes(
                    None, Features(_features(0)["features"], np.repeat(np.arange(8), 5)), shot=9
                ),
            ),
            (
                r"model must be given for pictures",
                lambda: evaluate_episodes(
                    None,
                    Pictures(torch.zeros(40, 3, 8, 8), np.repeat(np.arange(8), 5)),
                    query=2,
                ),
            ),
        ),
    ),
    FunctionSpecimen(
        entry=f"{_MODULE}:train_episodes",
        run=_trained,
        inputs=lambda seed: {"images": _random(seed, "images", 20, 3, 32, 32).sigmoid()},
        bad=(
            (
                r"labels must lie between 0 and 4",
                lambda: train_episodes(
                    _net(),
                    Pictures(torch.zeros(24, 3, 32, 32), np.repeat(np.arange(6), 4)),
                    attack=None,
                ),
            ),
        ),
    ),
)
