"""What svasp's claims are about: accuracy on targets, flatness, and steadiness of gradients."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch.nn import functional

from trialrun.claims.contract import Context
from trialrun.core.seeds import rng, split
from trialrun.dossiers.svasp.networks import CROPS, STAGES, attack_of
from trialrun.dossiers.svasp.worlds import World, size
from trialrun.fewshot.svasp import (
    PRESETS,
    EpisodeSampler,
    FewShotModel,
    StyleStep,
    episode_accuracies,
    extract_features,
    gradient_agreement,
    loss_rise,
    mix_gradients,
    random_crops,
)

ENSEMBLES = ("paper", "single", "restarts", "others", "code")
HELD_OUT = 8
"""Random starts whose mean gradient the others are judged by."""
RADIUS = 0.2


def accuracies_of(ctx: Context, world: World, model: FewShotModel) -> dict[str, float]:
    """Return the mean accuracy on every target, in points, over the same episodes for all arms."""
    found = {}
    for target, pictures in world.targets.items():
        draw = EpisodeSampler(pictures.labels, seed=split(ctx.seed, "test", target))
        features = extract_features(model.backbone, pictures)
        scores = episode_accuracies(model.head, features, draw(size(ctx).test_episodes))
        found[target] = float(scores.mean())
    return found


def flatness_of(ctx: Context, world: World, model: FewShotModel) -> dict[str, float]:
    """Return the rise of the base-class loss along filter-normalised random directions.

    Each batch is normalised by its own statistics: stored ones belong to the weights that they
    were stored for, and arms store those of other mixtures of clean, restyled and cropped pictures.
    """
    rows = rng(ctx.seed, "flat").integers(len(world.base.labels), size=2 * size(ctx).probe)
    x, y = world.base.take(rows).to(ctx.device), torch.from_numpy(world.base.labels[rows])
    probed = copy.deepcopy(model).train()

    def loss() -> torch.Tensor:
        return functional.cross_entropy(probed(x).cpu(), y)

    rises = loss_rise(
        probed.backbone,
        loss,
        radius=RADIUS,
        directions=size(ctx).directions,
        seed=split(ctx.seed, "directions"),
    )
    with torch.no_grad():
        return {"rise": float(rises.mean()), "worst": float(rises.max()), "loss": float(loss())}


def steadiness_of(ctx: Context, world: World, model: FewShotModel) -> dict[str, float]:
    """Return 100 x the cosines of every ensemble with held-out starts, and between two draws."""
    rows = rng(ctx.seed, "steady").permutation(len(world.base.labels))[: size(ctx).probe]
    x = world.base.take(rows).to(ctx.device)
    y = torch.from_numpy(world.base.labels[rows]).to(ctx.device)

    def walk(draw: int, crops: int) -> list[StyleStep]:
        seed = split(ctx.seed, "draw", draw)
        cut = random_crops(x, crops, seed=seed) if crops else None
        decay = None if crops else 0.0
        attack = attack_of("paper", crop_decay=decay, gradient_at="start")
        return attack.steps(model.backbone, model.classifier, x, cut, y, seed=seed)

    used = 2 * (1 + CROPS)
    walks = [walk(draw, CROPS) for draw in range(used)]
    held = [walk(used + draw, 0) for draw in range(HELD_OUT)]
    found: dict[str, float] = {}
    for ensemble in ENSEMBLES:
        agreements = []
        for i, stage in enumerate(STAGES):
            cosines = []
            for kind in range(2):
                draws = mixed([walk[i].raw[kind] for walk in walks], ensemble)
                truth = torch.stack([walk[i].raw[kind][-1] for walk in held]).mean(dim=0)
                cosines += [gradient_agreement(draw, truth) for draw in draws]
                agreements.append(gradient_agreement(*draws))
            found[f"{ensemble}, {stage}"] = 100 * float(np.mean(cosines))
        found[f"{ensemble}, agreement"] = 100 * float(np.mean(agreements))
    return found


def mixed(raws: list[torch.Tensor], ensemble: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two draws of an ensemble from the raw gradients of all walks."""
    settings = PRESETS["code" if ensemble == "code" else "paper"]
    if ensemble == "single":
        raws = [raw[-1:] for raw in raws[:2]]
    elif ensemble == "others":  # other pictures in each draw, else what is added would agree
        raws = [torch.cat([raws[i][:-1].roll(i + 1, dims=1), raws[i][-1:]]) for i in (0, 1)]
    elif ensemble == "restarts":
        own = [raw[-1] for raw in raws]
        raws = [torch.stack([*own[i + 2 :: 2], own[i]]) for i in (0, 1)]
    return mix_gradients(raws[0], settings), mix_gradients(raws[1], settings)
