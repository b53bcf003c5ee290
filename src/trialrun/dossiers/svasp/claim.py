"""Measure SVasP: adversarial styles against none and against noise, steadiness, flatness.

All arms of a seed start from one supervised network, see the same episodes, crops and jitter, and
are tested on the same episodes. Nothing is chosen on a target; the last state is taken.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from trialrun.claims.contract import Arm, Context, Measurement, Trial
from trialrun.core.seeds import rng, split
from trialrun.dossiers.svasp.worlds import SHIFTED, STYLES, SVasPBudget, World, make_world, size
from trialrun.fewshot.svasp import (
    PRESETS,
    Conv4,
    EpisodeSampler,
    EpisodicTraining,
    FewShotModel,
    LossWeights,
    Moments,
    StyleAttack,
    StyleStep,
    SVasPLoss,
    episode_accuracies,
    extract_features,
    gradient_agreement,
    loss_rise,
    mix_gradients,
    random_crops,
    train_episodes,
    train_supervised,
)

WIDTHS = (16, 32, 64, 64)
STAGES = Conv4.stages
CROPS = 2
ENSEMBLES = ("paper", "single", "restarts", "others", "code")
HELD_OUT = 8
"""Random starts whose mean gradient the others are judged by."""
SHOT, QUERY = 1, 7
RADIUS = 0.2
WARM_LR = 3e-3
FLAT = 1e-3
"""A rise in nats below which a minimum counts as flat; ratios need a number above 0."""
PLAIN = LossWeights(fsl_adv=0, fsl_kl=0, dom=0, crop=0)
STYLE_ONLY = LossWeights(dom=0, crop=0)


class Descent(StyleAttack):
    """The same steps, in the direction in which the classifier does better."""

    def _loss(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return -super()._loss(logits, y)


class Strangers(StyleAttack):
    """The same ensemble, with the gradients of another class's crops in place of the picture's."""

    def _step(self, stage: str, own: Moments, raw: Moments, seed: int) -> StyleStep:
        # An episode comes class by class, shot + query pictures of each.
        moved = [torch.cat([part[:-1].roll(SHOT + QUERY, dims=1), part[-1:]]) for part in raw]
        return super()._step(stage, own, Moments(*moved), seed)


def _attack(preset: str, **changes: object) -> StyleAttack:
    return StyleAttack(stages=STAGES, preset=preset, **changes)  # type: ignore[arg-type]


class Recipe(NamedTuple):
    """How a network is trained: its attack, its loss, and how often a stage's swap is applied."""

    attack: StyleAttack | None
    weights: LossWeights
    p_apply: float = 0.8


def arms_of_training() -> dict[str, Recipe]:
    """Return the recipe of every network that is trained."""
    return {
        "none": Recipe(None, PLAIN),
        "unmoved": Recipe(_attack("noise"), LossWeights(), p_apply=0.0),
        "noise": Recipe(_attack("noise"), LossWeights()),
        "descent": Recipe(Descent(stages=STAGES), LossWeights()),
        "styleadv": Recipe(_attack("styleadv"), STYLE_ONLY),
        "svasp": Recipe(_attack("code"), LossWeights()),
        "single": Recipe(_attack("code", crop_decay=0.0), LossWeights()),
        "strangers": Recipe(Strangers(stages=STAGES), LossWeights()),
        "svasp-plus": Recipe(_attack("paper"), LossWeights()),
        "no-dom": Recipe(_attack("code"), LossWeights(dom=0)),
    }


def _model(ctx: Context, world: World) -> FewShotModel:
    net = Conv4(widths=WIDTHS, seed=split(ctx.seed, "net"))
    classes = int(world.base.labels.max()) + 1
    return FewShotModel(net, classes=classes, seed=split(ctx.seed, "heads")).to(ctx.device)


def _plan(ctx: Context) -> EpisodicTraining:
    # Mirrored letters are other letters, so nothing is flipped.
    return EpisodicTraining(
        shot=SHOT, query=QUERY, episodes=size(ctx).episodes, crops=CROPS, flip=False
    )


def put_on_trial(ctx: Context, folder: Path) -> None:
    """Train every network from one warm start, and write down all that the claims ask of it."""
    torch.set_num_threads(1)
    world = make_world(ctx)
    warm = _model(ctx, world)
    train_supervised(
        warm,
        world.base,
        steps=size(ctx).warm,
        lr=WARM_LR,
        flip=False,
        seed=split(ctx.seed, "warm"),
    )
    found = {"steady": _steadiness(ctx, world, warm)}
    for name, recipe in arms_of_training().items():
        model = copy.deepcopy(warm)
        train_episodes(
            model,
            world.base,
            attack=recipe.attack,
            loss=SVasPLoss(weights=recipe.weights),
            training=replace(_plan(ctx), p_apply=recipe.p_apply),
            seed=split(ctx.seed, "train"),
        )
        found[name] = {**_accuracies(ctx, world, model), **_flatness(ctx, world, model)}
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


def _found(ctx: Context, name: str) -> dict[str, float]:
    text = (ctx.prepared("networks") / "found.json").read_text(encoding="utf-8")
    return json.loads(text)[name]


def _accuracies(ctx: Context, world: World, model: FewShotModel) -> dict[str, float]:
    found = {}
    for target, pictures in world.targets.items():
        draw = EpisodeSampler(pictures.labels, seed=split(ctx.seed, "test", target))
        features = extract_features(model.backbone, pictures)
        scores = episode_accuracies(model.head, features, draw(size(ctx).test_episodes))
        found[target] = float(scores.mean())
    return found


def _flatness(ctx: Context, world: World, model: FewShotModel) -> dict[str, float]:
    """The rise of the base-class loss along filter-normalised random directions.

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


def accuracy(ctx: Context, *, name: str) -> Measurement:
    """Return a network's mean accuracy over the restyled targets, and each target beside it."""
    found = _found(ctx, name)
    value = float(np.mean([found[target] for target in SHIFTED]))
    extra = {target: found[target] for target in (*STYLES, "digits") if target in found}
    return Measurement.of(value, n=size(ctx).test_episodes * len(SHIFTED), **extra)


def flatness(ctx: Context, *, name: str) -> Measurement:
    """Return the mean rise of the base-class loss, in nats, and no less than ``FLAT``."""
    found = _found(ctx, name)
    return Measurement.of(
        max(found["rise"], FLAT),
        n=size(ctx).directions,
        loss=found["loss"],
        worst=found["worst"],
    )


def steadiness(ctx: Context, *, ensemble: str) -> Measurement:
    """Return 100 x the mean cosine with the picture's mean gradient over held-out starts.

    Every arm mixes the gradients of the same walks. ``paper`` adds the crops' and ``code`` takes
    them off; ``others`` adds those of other pictures' crops; ``restarts`` adds the picture's own
    from as many further random starts; ``single`` adds nothing. Beside it stands ``agreement``:
    the cosine between two draws, which anything added to both would raise.
    """
    found = _found(ctx, "steady")
    stages = {stage: found[f"{ensemble}, {stage}"] for stage in STAGES}
    return Measurement.of(
        float(np.mean(list(stages.values()))),
        n=size(ctx).probe,
        agreement=found[f"{ensemble}, agreement"],
        **stages,
    )


def _steadiness(ctx: Context, world: World, model: FewShotModel) -> dict[str, float]:
    rows = rng(ctx.seed, "steady").permutation(len(world.base.labels))[: size(ctx).probe]
    x = world.base.take(rows).to(ctx.device)
    y = torch.from_numpy(world.base.labels[rows]).to(ctx.device)

    def walk(draw: int, crops: int) -> list[StyleStep]:
        seed = split(ctx.seed, "draw", draw)
        cut = random_crops(x, crops, seed=seed) if crops else None
        decay = None if crops else 0.0
        attack = _attack("paper", crop_decay=decay, gradient_at="start")
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
                mixed = _mixed([walk[i].raw[kind] for walk in walks], ensemble)
                truth = torch.stack([walk[i].raw[kind][-1] for walk in held]).mean(dim=0)
                cosines += [gradient_agreement(draw, truth) for draw in mixed]
                agreements.append(gradient_agreement(*mixed))
            found[f"{ensemble}, {stage}"] = 100 * float(np.mean(cosines))
        found[f"{ensemble}, agreement"] = 100 * float(np.mean(agreements))
    return found


def _mixed(raws: list[torch.Tensor], ensemble: str) -> tuple[torch.Tensor, torch.Tensor]:
    settings = PRESETS["code" if ensemble == "code" else "paper"]
    if ensemble == "single":
        raws = [raw[-1:] for raw in raws[:2]]
    elif ensemble == "others":  # other pictures in each draw, else what is added would agree
        raws = [torch.cat([raws[i][:-1].roll(i + 1, dims=1), raws[i][-1:]]) for i in (0, 1)]
    elif ensemble == "restarts":
        own = [raw[-1] for raw in raws]
        raws = [torch.stack([*own[i + 2 :: 2], own[i]]) for i in (0, 1)]
    return mix_gradients(raws[0], settings), mix_gradients(raws[1], settings)


def _scored(*names: str) -> dict[str, Arm]:
    return {name: partial(accuracy, name=name) for name in names}


TRIAL = Trial(
    budgets={
        "smoke": SVasPBudget(
            seeds=2,
            characters=60,
            warm=3,
            episodes=1,
            test_episodes=4,
            directions=2,
            probe=8,
            digits=False,
        ),
        "quick": SVasPBudget(
            seeds=4,
            first_seed=60,
            characters=150,
            warm=150,
            episodes=12,
            test_episodes=150,
            directions=6,
            probe=48,
            digits=True,
        ),
        "full": SVasPBudget(
            seeds=5,
            first_seed=100,
            characters=300,
            warm=400,
            episodes=80,
            test_episodes=600,
            directions=20,
            probe=128,
            digits=True,
        ),
        "gpu": SVasPBudget(
            seeds=5,
            first_seed=200,
            characters=2500,
            warm=5000,
            episodes=4000,
            test_episodes=2000,
            directions=20,
            probe=512,
            digits=True,
        ),
    },
    arms={
        "attack": _scored("svasp", "none", "noise", "unmoved", "svasp-plus", "no-dom"),
        "direction": _scored("svasp", "noise", "styleadv", "descent"),
        "styleadv": _scored("svasp", "styleadv", "noise", "unmoved", "svasp-plus", "single"),
        "steady": {name: partial(steadiness, ensemble=name) for name in ENSEMBLES},
        "flat": {
            name: partial(flatness, name=name)
            for name in ("svasp", "single", "noise", "strangers", "none", "styleadv", "svasp-plus")
        },
    },
    prepare={"networks": put_on_trial},
    needs=dict.fromkeys(("attack", "styleadv", "direction", "steady", "flat"), ("networks",)),
)
