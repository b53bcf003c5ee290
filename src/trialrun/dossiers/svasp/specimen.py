"""Smallest working instances of svasp, for the conformance suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from trialrun.dossiers.specimen import BlockSpecimen, FunctionSpecimen
from trialrun.dossiers.svasp.episode_specimens import (
    EPISODE_SPECIMENS,
    MODULE,
    random_numbers,
    small_model,
)
from trialrun.fewshot.svasp import (
    Conv4,
    DomainLogits,
    LossWeights,
    ResNet10,
    Style,
    StyleAttack,
    SVasPLoss,
    adain,
    forward_with_styles,
    svasp_loss,
)


def _pictures(seed: int) -> dict[str, Any]:
    return {
        "x": random_numbers(seed, "x", 3, 3, 32, 32),
        "crops": random_numbers(seed, "crops", 2, 3, 3, 32, 32),
        "y": torch.tensor([0, 3, 4]),
    }


def _attacked(attack: StyleAttack, inputs: Mapping[str, Any]) -> Any:
    model = small_model().to(inputs["x"].dtype)
    styles = attack(model.backbone, model.classifier, **inputs, seed=0)
    return [(style.mean, style.std) for style in styles]


def _still(_: int = 0) -> StyleAttack:
    # Without the random start, whose draws depend on the batch, a picture is attacked alone.
    return StyleAttack(stages=Conv4.stages, eps=(0.1,), start="none")


def _alone(seed: int) -> tuple[Any, Any]:
    inputs = _pictures(seed)
    model = small_model().double()
    x, crops, y = inputs["x"].double(), inputs["crops"].double(), inputs["y"]
    many = _still()(model.backbone, model.classifier, x, crops, y)
    one = _still()(model.backbone, model.classifier, x[1:2], crops[:, 1:2], y[1:2])
    return [s.std[1:2] for s in many], [s.std for s in one]


def _logits(seed: int) -> dict[str, Any]:
    return {
        "fsl_ori": random_numbers(seed, "a", 6, 3),
        "fsl_adv": random_numbers(seed, "b", 6, 3),
        "cls_ori": random_numbers(seed, "c", 6, 4),
        "cls_crop": random_numbers(seed, "d", 12, 4),
        "crop": random_numbers(seed, "e", 12, 2),
        "clean": random_numbers(seed, "f", 6, 2),
        "adv": random_numbers(seed, "g", 6, 2),
    }


def _loss(inputs: Mapping[str, Any], of: Callable[..., Any] = svasp_loss) -> Any:
    dom = DomainLogits(inputs["crop"], inputs["clean"], inputs["adv"])
    four = (inputs[name] for name in ("fsl_ori", "fsl_adv", "cls_ori", "cls_crop"))
    return of(*four, dom, torch.arange(6) % 4, torch.arange(6) % 3)


def _shifted(seed: int) -> tuple[Any, Any]:
    inputs = {name: value.double() for name, value in _logits(seed).items()}
    moved = {name: value + 3 for name, value in inputs.items()}
    return _loss(inputs), _loss(moved)


SPECIMENS = (
    BlockSpecimen(
        entry=f"{MODULE}:StyleAttack",
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
        entry=f"{MODULE}:SVasPLoss",
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
        entry=f"{MODULE}:svasp_loss",
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
        entry=f"{MODULE}:adain",
        run=lambda inputs: adain(**inputs),
        inputs=lambda seed: {
            "features": random_numbers(seed, "f", 2, 3, 4, 5),
            "mean": random_numbers(seed, "m", 2, 3),
            "std": random_numbers(seed, "s", 2, 3).abs(),
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
        entry=f"{MODULE}:forward_with_styles",
        run=lambda inputs: forward_with_styles(
            small_model().backbone, inputs["x"], [Style(inputs["mean"], inputs["std"], "layer2")]
        ),
        inputs=lambda seed: {
            "x": random_numbers(seed, "x", 2, 3, 32, 32),
            "mean": random_numbers(seed, "m", 2, 4),
            "std": random_numbers(seed, "s", 2, 4).abs(),
        },
        bad=(
            (
                r"p_apply must be at least 0 and at most 1",
                lambda: forward_with_styles(
                    small_model().backbone, torch.zeros(1, 3, 32, 32), [], 2.0
                ),
            ),
            (
                r"x must have 3 channels, got 1",
                lambda: forward_with_styles(small_model().backbone, torch.zeros(1, 1, 32, 32), []),
            ),
        ),
    ),
    BlockSpecimen(
        entry=f"{MODULE}:ResNet10",
        make=lambda seed: ResNet10(widths=(4, 6, 6, 8), seed=seed),
        inputs=lambda seed: {"x": random_numbers(seed, "x", 2, 3, 64, 64)},
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
    *EPISODE_SPECIMENS,
)
