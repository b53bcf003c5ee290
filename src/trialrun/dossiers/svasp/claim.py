"""Measure SVasP: adversarial styles against none and against noise, steadiness, flatness.

All arms of a seed start from one supervised network, see the same episodes, crops and jitter, and
are tested on the same episodes. Nothing is chosen on a target; the last state is taken.
"""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path

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
    StyleAttack,
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
RADIUS = 0.2
WARM_LR = 3e-3
FLAT = 1e-3
"""A rise in nats below which a minimum counts as flat; ratios need a number above 0."""
PLAIN = LossWeights(fsl_adv=0, fsl_kl=0, dom=0, crop=0)
STYLE_ONLY = LossWeights(dom=0, crop=0)


def _attack(preset: str, **changes: object) -> StyleAttack:
    return StyleAttack(stages=STAGES, preset=preset, **changes)  # type: ignore[arg-type]


def arms_of_training() -> dict[str, tuple[StyleAttack | None, LossWeights]]:
    """Return attack and loss of every network that is trained."""
    still = _attack("noise", eps=(0.0,), start="none")
    return {
        "none": (None, PLAIN),
        "unmoved": (still, LossWeights()),
        "noise": (_attack("noise"), LossWeights()),
        "styleadv": (_attack("styleadv"), STYLE_ONLY),
        "svasp": (_attack("code"), LossWeights()),
        "single": (_attack("code", crop_decay=0.0), LossWeights()),
        "svasp-plus": (_attack("paper"), LossWeights()),
        "no-dom": (_attack("code"), LossWeights(dom=0)),
        "no-crop": (_attack("code"), LossWeights(crop=0)),
    }


def _model(ctx: Context, world: World) -> FewShotModel:
    net = Conv4(widths=WIDTHS, seed=split(ctx.seed, "net"))
    classes = int(world.base.labels.max()) + 1
    return FewShotModel(net, classes=classes, seed=split(ctx.seed, "heads")).to(ctx.device)


def _plan(ctx: Context) -> EpisodicTraining:
    # Mirrored letters are other letters, so nothing is flipped.
    return EpisodicTraining(shot=1, query=7, episodes=size(ctx).episodes, crops=CROPS, flip=False)


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
    for name, (attack, weights) in arms_of_training().items():
        model = copy.deepcopy(warm)
        train_episodes(
            model,
            world.base,
            attack=attack,
            loss=SVasPLoss(weights=weights),
            training=_plan(ctx),
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
    """Return 100 x the mean cosine between the gradients of one picture under two draws.

    Every arm mixes the gradients of the same walks. ``paper`` adds the crops' and ``code`` takes
    them off; ``others`` adds those of another picture's crops; ``restarts`` adds the picture's
    own from as many further random starts; ``single`` adds nothing.
    """
    found = _found(ctx, "steady")
    stages = {stage: found[f"{ensemble}, {stage}"] for stage in STAGES}
    return Measurement.of(float(np.mean(list(stages.values()))), n=size(ctx).probe, **stages)


def _steadiness(ctx: Context, world: World, model: FewShotModel) -> dict[str, float]:
    rows = rng(ctx.seed, "steady").permutation(len(world.base.labels))[: size(ctx).probe]
    x = world.base.take(rows).to(ctx.device)
    y = torch.from_numpy(world.base.labels[rows]).to(ctx.device)
    attack = _attack("paper", gradient_at="start")
    walks = []
    for draw in range(2 * (1 + CROPS)):
        seed = split(ctx.seed, "draw", draw)
        crops = random_crops(x, CROPS, seed=seed)
        walks.append(attack.steps(model.backbone, model.classifier, x, crops, y, seed=seed))
    found = {}
    for ensemble in ENSEMBLES:
        for i, stage in enumerate(STAGES):
            cosines = [
                gradient_agreement(*_mixed([walk[i].raw[kind] for walk in walks], ensemble))
                for kind in range(2)
            ]
            found[f"{ensemble}, {stage}"] = 100 * float(np.mean(cosines))
    return found


def _mixed(raws: list[torch.Tensor], ensemble: str) -> tuple[torch.Tensor, torch.Tensor]:
    settings = PRESETS["code" if ensemble == "code" else "paper"]
    if ensemble == "single":
        raws = [raw[-1:] for raw in raws[:2]]
    elif ensemble == "others":
        raws = [torch.cat([raw[:-1].roll(1, dims=1), raw[-1:]]) for raw in raws[:2]]
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
            episodes=100,
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
        "attack": _scored("svasp", "none", "noise", "unmoved", "svasp-plus", "no-dom", "no-crop"),
        "direction": _scored("svasp", "noise", "styleadv", "unmoved"),
        "styleadv": _scored("svasp", "styleadv", "noise", "unmoved", "svasp-plus", "single"),
        "steady": {name: partial(steadiness, ensemble=name) for name in ENSEMBLES},
        "flat": {
            name: partial(flatness, name=name)
            for name in ("svasp", "single", "noise", "unmoved", "none", "styleadv", "svasp-plus")
        },
    },
    prepare={"networks": put_on_trial},
    needs=dict.fromkeys(("attack", "styleadv", "direction", "steady", "flat"), ("networks",)),
)
