"""Smallest working instances of svasp's heads, episodes and training."""

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
    EpisodeSampler,
    EpisodicTraining,
    Features,
    FewShotModel,
    InductiveGNNHead,
    LossWeights,
    Pictures,
    ProtoNetHead,
    StyleAttack,
    SVasPLoss,
    TransductiveGNNHead,
    evaluate_episodes,
    train_episodes,
)

MODULE = "trialrun.fewshot.svasp"


def random_numbers(seed: int, name: str, *shape: int) -> torch.Tensor:
    """Return normal numbers of a shape, in a stream of this name."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(split(seed, name)))


def small_model() -> FewShotModel:
    """Return a network of a few channels with five base classes."""
    return FewShotModel(Conv4(widths=(4, 4, 4, 6)), classes=5)


def _episode(seed: int) -> dict[str, Any]:
    return {
        "support": random_numbers(seed, "s", 2, 3, 2, 4),
        "query": random_numbers(seed, "q", 2, 6, 4),
    }


def _reordered(make: Callable[[int], nn.Module]) -> Callable[[int], tuple[Any, Any]]:
    def both(seed: int) -> tuple[Any, Any]:
        head, inputs = make(seed).double(), _episode(seed)
        support, query = inputs["support"].double(), inputs["query"].double()
        return head(support, query), head(support.flip(2), query)

    return both


def _head(name: str, make: Callable[[int], nn.Module]) -> BlockSpecimen:
    inputs = _episode(0)
    return BlockSpecimen(
        entry=f"{MODULE}:{name}",
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
    return {"features": random_numbers(seed, "features", 40, 6)}


def _score(inputs: Mapping[str, Any]) -> Any:
    labels = np.repeat(np.arange(8), 5)
    found = evaluate_episodes(None, Features(inputs["features"], labels), query=3, episodes=9)
    return torch.tensor(found)


def _labels(seed: int) -> dict[str, Any]:
    return {"labels": np.repeat(np.arange(7), 6 + seed % 3)}


def _trained(inputs: Mapping[str, Any], weights: LossWeights | None = None) -> Any:
    model = small_model()
    log = train_episodes(
        model,
        Pictures(inputs["images"], np.repeat(np.arange(5), 4)),
        attack=StyleAttack(stages=Conv4.stages),
        loss=SVasPLoss(weights=weights),
        training=EpisodicTraining(way=3, shot=1, query=2, episodes=2),
    )
    return [torch.tensor(log.losses), dict(model.state_dict())]


EPISODE_SPECIMENS = (
    _head("ProtoNetHead", lambda _: ProtoNetHead()),
    _head("InductiveGNNHead", lambda seed: InductiveGNNHead(4, way=3, seed=seed)),
    _head("TransductiveGNNHead", lambda seed: TransductiveGNNHead(4, way=3, seed=seed)),
    BlockSpecimen(
        entry=f"{MODULE}:EpisodeSampler",
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
        entry=f"{MODULE}:evaluate_episodes",
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
        entry=f"{MODULE}:train_episodes",
        run=_trained,
        inputs=lambda seed: {"images": random_numbers(seed, "images", 20, 3, 32, 32).sigmoid()},
        bad=(
            (
                r"labels must lie between 0 and 4",
                lambda: train_episodes(
                    small_model(),
                    Pictures(torch.zeros(24, 3, 32, 32), np.repeat(np.arange(6), 4)),
                    attack=None,
                ),
            ),
        ),
    ),
)
