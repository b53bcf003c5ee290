"""The networks of svasp's claims: one supervised start, and what each arm trains it by.

All arms of a seed see the same episodes, crops and jitter. Nothing is chosen on a target; the last
state is taken.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch

from trialrun.claims.contract import Context
from trialrun.core.seeds import split
from trialrun.dossiers.svasp.worlds import size
from trialrun.fewshot.svasp import (
    Conv4,
    CosineHead,
    EpisodicTraining,
    FewShotModel,
    LossWeights,
    Moments,
    Pictures,
    StyleAttack,
    StyleStep,
    SVasPLoss,
    train_episodes,
    train_supervised,
)

WIDTHS = (16, 32, 64, 64)
STAGES = Conv4.stages
WAY, SHOT, QUERY = 5, 1, 7
TRAINED = SHOT + QUERY
"""Pictures that a class must have to be trained on."""
CROPS = 2
WARM_LR = 3e-3
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


def attack_of(preset: str, **changes: object) -> StyleAttack:
    """Return a preset's attack on the stages of the check's network."""
    return StyleAttack(stages=STAGES, preset=preset, **changes)  # type: ignore[arg-type]


class Recipe(NamedTuple):
    """How a network is trained: its attack, its loss, how often stages are swapped, its head."""

    attack: StyleAttack | None
    weights: LossWeights
    p_apply: float = 0.8
    cosine: bool = False


def arms_of_training() -> dict[str, Recipe]:
    """Return the recipe of every network that is trained."""
    return {
        "none": Recipe(None, PLAIN),
        "unmoved": Recipe(attack_of("noise"), LossWeights(), p_apply=0.0),
        "noise": Recipe(attack_of("noise"), LossWeights()),
        "descent": Recipe(Descent(stages=STAGES), LossWeights()),
        "styleadv": Recipe(attack_of("styleadv"), STYLE_ONLY),
        "svasp": Recipe(attack_of("code"), LossWeights()),
        "single": Recipe(attack_of("code", crop_decay=0.0), LossWeights()),
        "strangers": Recipe(Strangers(stages=STAGES), LossWeights()),
        "svasp-plus": Recipe(attack_of("paper"), LossWeights()),
        "no-dom": Recipe(attack_of("code"), LossWeights(dom=0)),
        "svasp-cosine": Recipe(attack_of("code"), LossWeights(), cosine=True),
    }


def warm_started(ctx: Context, base: Pictures) -> FewShotModel:
    """Return the network that every arm starts from: supervised on the base classes."""
    net = Conv4(widths=WIDTHS, seed=split(ctx.seed, "net"))
    classes = int(base.labels.max()) + 1
    model = FewShotModel(net, classes=classes, seed=split(ctx.seed, "heads")).to(ctx.device)
    train_supervised(
        model, base, steps=size(ctx).warm, lr=WARM_LR, flip=False, seed=split(ctx.seed, "warm")
    )
    return model


def train(ctx: Context, model: FewShotModel, base: Pictures, recipe: Recipe) -> None:
    """Train a network in place by a recipe. Mirrored letters are other letters: none is flipped."""
    plan = EpisodicTraining(
        way=WAY, shot=SHOT, query=QUERY, episodes=size(ctx).episodes, crops=CROPS, flip=False
    )
    if recipe.cosine:
        model.head = CosineHead().to(ctx.device)
    train_episodes(
        model,
        base,
        attack=recipe.attack,
        loss=SVasPLoss(weights=recipe.weights),
        training=replace(plan, p_apply=recipe.p_apply),
        seed=split(ctx.seed, "train"),
    )
