"""One episode of training: the passes and the objective (li2025svasp).

The order of things is that of the project's notes on the published code: styles are attacked with
the networks in eval mode, then clean pictures, restyled pictures and crops go through in train
mode.
"""

from __future__ import annotations

from dataclasses import dataclass

from trialrun.fewshot import _svasp_stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Float
from torch import Tensor

from trialrun.core.errors import UsageError
from trialrun.core.seeds import split
from trialrun.core.shapes import check_range
from trialrun.fewshot._svasp_attack import StyleAttack
from trialrun.fewshot._svasp_loss import SVasPLoss
from trialrun.fewshot._svasp_model import FewShotModel
from trialrun.fewshot._svasp_pictures import jitter, random_crops
from trialrun.fewshot._svasp_style import forward_with_styles
from trialrun.fewshot._svasp_terms import DomainLogits, LossWeights, SVasPParts


@dataclass(frozen=True, kw_only=True)
class EpisodicTraining:
    """Settings of `train_episodes`; the defaults are the paper's, 120 episodes x 200 epochs."""

    way: int = 5
    shot: int = 5
    query: int = 15
    episodes: int = 24_000
    crops: int = 2
    crop_area: tuple[float, float] = (0.2, 0.4)
    p_apply: float = 0.8
    lr: float = 1e-3
    jitter: float = 0.4
    flip: bool = True
    validate_every: int = 0
    validation_episodes: int = 100

    def __post_init__(self) -> None:
        for name in ("shot", "query", "episodes", "crops", "validation_episodes"):
            check_range(name, getattr(self, name), low=1)
        check_range("way", self.way, low=2, unit="classes")
        check_range("p_apply", self.p_apply, low=0, high=1)
        check_range("lr", self.lr, low=1e-12)
        check_range("jitter", self.jitter, low=0, high=0.999)
        check_range("validate_every", self.validate_every, low=0)


def few_shot_logits(model: FewShotModel, features: Tensor, plan: EpisodicTraining) -> Tensor:
    """Return the head's logits for features that come class by class, support first."""
    whole = features.unflatten(0, (plan.way, plan.shot + plan.query))
    query = whole[:, plan.shot :].transpose(0, 1).flatten(0, 1)  # one of each class in turn
    return model.head(whole[:, : plan.shot], query)


def episode_loss(
    model: FewShotModel,
    x: Float[Tensor, "batch channels height width"],
    y: Tensor,
    *,
    attack: StyleAttack | None,
    loss: SVasPLoss,
    plan: EpisodicTraining,
    seed: int,
) -> SVasPParts:
    """Return the objective of one episode, whose pictures come class by class, support first.

    Parameters
    ----------
    model : FewShotModel
        Left in train mode.
    x : tensor of shape (way x (shot + query), channels, height, width)
    y : integer tensor of shape (way x (shot + query),)
        Base classes.
    attack, loss, plan, seed
        As in `train_episodes`.
    """
    weights = loss.weights or LossWeights()
    if attack is None and weights.dom:
        raise UsageError(
            "loss must have weight 0 for dom where there is no attack: the discriminator would be "
            "told both answers for the same pictures"
        )
    attacked = attack is not None and attack.settings.crop_decay > 0
    crops = None
    if attacked or weights.crop:  # cut from the picture as it is: crops are not jittered
        crops = random_crops(x, plan.crops, area=plan.crop_area, seed=split(seed, "crops"))
    x = jitter(x, strength=plan.jitter, flip=plan.flip, seed=split(seed, "jitter"))
    styles = None
    if attack is not None:
        model.train()
        styles = attack(model.backbone, model.classifier, x, crops, y, seed=split(seed, "attack"))
    model.train()
    clean = model.backbone(x)
    adv = clean
    if styles is not None:
        adv = forward_with_styles(
            model.backbone, x, styles, plan.p_apply, seed=split(seed, "apply")
        )
    cut = None if crops is None or not weights.crop else model.backbone(crops.flatten(0, 1))
    fsl = few_shot_logits(model, clean, plan)
    domains = None
    if weights.dom:
        domains = DomainLogits(
            None if cut is None else model.discriminator(cut),
            model.discriminator(clean),
            model.discriminator(adv),
        )
    return loss.parts(
        fsl,
        few_shot_logits(model, adv, plan),
        model.classifier(clean),
        None if cut is None else model.classifier(cut),
        domains,
        y,
        torch.arange(plan.way, device=y.device).repeat(plan.query),
        model.classifier(adv) if weights.cls_adv or weights.cls_kl else None,
    )
