"""Training: a supervised warm start, episodes with adversarial styles, and fine-tuning.

The order of things is that of the project's notes on the published code: styles are attacked with
the networks in eval mode, then clean pictures, restyled pictures and crops go through in train
mode. The published fine-tuning script does not run as it stands; `fine_tune` is written from what
it says it does (li2025svasp).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng, split
from trialrun.core.shapes import check_axes, check_range
from trialrun.fewshot._svasp_attack import StyleAttack
from trialrun.fewshot._svasp_heads import ProtoNetHead
from trialrun.fewshot._svasp_loss import DomainLogits, LossWeights, SVasPLoss, SVasPParts
from trialrun.fewshot._svasp_nets import Conv4, ResNet10
from trialrun.fewshot._svasp_pictures import jitter, pseudo_queries, random_crops
from trialrun.fewshot._svasp_style import forward_with_styles
from trialrun.fewshot.episodes import EpisodeSampler, PictureSource, evaluate_episodes


class FewShotModel(nn.Module):
    """Keep backbone, base classifier, few-shot head and discriminator together (li2025svasp).

    Parameters
    ----------
    backbone : torch.nn.Module
        From pictures to features of shape (batch, width).
    classes : int, at least 2
        Base classes.
    head : torch.nn.Module or None
        From support and query features to logits; None is `ProtoNetHead`.
    width : int or None
        Width of the features; None takes the backbone's ``width`` or timm's ``num_features``.
    seed : int
        Start of classifier and discriminator; torch's global generator is left alone.

    Raises
    ------
    ValueError
        For fewer than two classes, a backbone that does not tell its width, or another width than
        that of a backbone made here.

    Examples
    --------
    >>> from trialrun.fewshot.svasp import Conv4
    >>> model = FewShotModel(Conv4(widths=(4, 4, 4, 8)), classes=10)
    >>> model(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        classes: int,
        head: nn.Module | None = None,
        width: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_range("classes", classes, low=2)
        own = getattr(backbone, "width", None) or getattr(backbone, "num_features", None)
        if isinstance(backbone, Conv4 | ResNet10) and width not in (None, own):
            raise UsageError(
                f"width must be {own}, that of {type(backbone).__name__}'s features, got {width}: "
                "leave it out"
            )
        found = own if width is None else width
        if width is not None:
            check_range("width", width, low=1)
        if found is None:
            raise UsageError(
                f"width must be given: {type(backbone).__name__} has neither width nor num_features"
            )
        self.backbone = backbone
        self.head = ProtoNetHead() if head is None else head
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.classifier = nn.Linear(found, classes)
            self.discriminator = nn.Sequential(nn.Dropout(0.4), nn.Linear(found, 2))

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Return base-class logits of pictures ``x``."""
        return self.classifier(self.backbone(x))


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


WITHOUT_ATTACK = LossWeights(fsl_adv=0, fsl_kl=0, dom=0)
"""The parts that are left where no picture is restyled: clean episodes, base classes and crops."""


class TrainingLog(NamedTuple):
    """Total loss of every episode, and where the best state on source validation was found.

    ``best_episode`` and ``best_accuracy`` are None where nothing was validated.
    """

    losses: list[float]
    best_episode: int | None
    best_accuracy: float | None


@contextmanager
def _own_randomness(model: nn.Module, seed: int) -> Iterator[torch.device]:
    """Give dropout a stream of its own, and leave torch's global generators as they were."""
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(split(seed, "dropout"))
        yield device


def train_supervised(
    model: FewShotModel,
    pictures: PictureSource,
    *,
    steps: int,
    batch_size: int = 64,
    lr: int | float = 1e-3,
    strength: int | float = 0.4,
    flip: bool = True,
    seed: int = 0,
) -> list[float]:
    """Warm-start backbone and classifier on the base classes; return the losses in nats.

    Parameters
    ----------
    model : FewShotModel
        Changed in place.
    pictures : Pictures or PictureFolder
        Labels from 0 to the model's classes - 1.
    steps, batch_size : int, at least 1
    lr : float, above 0
    strength : float in [0, 1)
        Of the jitter.
    flip : bool
    seed : int

    Raises
    ------
    ValueError
        For labels that the classifier has not, or a setting out of range.
    """
    check_range("steps", steps, low=1)
    check_range("batch_size", batch_size, low=1, unit="picture")
    check_range("lr", lr, low=1e-12)
    check_range("strength", strength, low=0, high=0.999)
    _check_base(model, pictures)
    random = rng(seed, "batches")
    optimiser = torch.optim.Adam([*model.backbone.parameters(), *model.classifier.parameters()], lr)
    losses = []
    model.train()
    with _own_randomness(model, seed) as device:
        for step in range(steps):
            rows = random.integers(len(pictures.labels), size=batch_size)
            x = jitter(
                pictures.take(rows).to(device), strength=strength, flip=flip,
                seed=split(seed, "jitter", step),
            )  # fmt: skip
            loss = functional.cross_entropy(
                model(x), torch.from_numpy(pictures.labels[rows]).to(device)
            )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
    return losses


def _check_base(model: FewShotModel, pictures: PictureSource) -> None:
    low, high = int(pictures.labels.min()), int(pictures.labels.max())
    classes = model.classifier.out_features
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels must lie between 0 and {classes - 1} for a model of {classes} base classes, "
            f"got {low} to {high}: renumber them, or make the model for more"
        )


def train_episodes(
    model: FewShotModel,
    pictures: PictureSource,
    *,
    attack: StyleAttack | None,
    loss: SVasPLoss | None = None,
    training: EpisodicTraining | None = None,
    validation: PictureSource | None = None,
    seed: int = 0,
) -> TrainingLog:
    """Train on episodes of the base classes, with adversarial styles (li2025svasp).

    Parameters
    ----------
    model : FewShotModel
        Changed in place; the better for a warm start.
    pictures : Pictures or PictureFolder
        Labels from 0 to the model's classes - 1.
    attack : StyleAttack or None
        None trains on clean episodes and crops alone.
    loss : SVasPLoss or None
        None takes the published weights, or `WITHOUT_ATTACK` without an attack. Crops are cut only
        if the attack or the loss uses them.
    training : EpisodicTraining or None
    validation : Pictures, PictureFolder or None
        Source classes held out. With ``validate_every`` the state that classifies their episodes
        best is kept; targets have no part in it.
    seed : int
        Decides episodes, augmentations, crops and styles, each in a stream of its own, so that
        arms that differ in the attack alone see the same episodes and the same crops.

    Raises
    ------
    ValueError
        For labels that the classifier has not, too few classes or pictures for an episode, a
        discriminator without an attack, or a validation that would never take place.

    Examples
    --------
    >>> from trialrun.fewshot.svasp import Conv4, Pictures
    >>> pictures = Pictures(torch.rand(40, 3, 32, 32), np.repeat(np.arange(8), 5))
    >>> model = FewShotModel(Conv4(widths=(4, 4, 4, 8)), classes=8)
    >>> log = train_episodes(
    ...     model, pictures, attack=StyleAttack(stages=model.backbone.stages),
    ...     training=EpisodicTraining(shot=1, query=2, episodes=2))
    >>> len(log.losses)
    2
    """
    plan = training or EpisodicTraining()
    objective = loss or SVasPLoss(weights=None if attack else WITHOUT_ATTACK)
    _check_base(model, pictures)
    _check_validation(plan, validation)
    sampler = EpisodeSampler(
        pictures.labels, way=plan.way, shot=plan.shot, query=plan.query,
        seed=split(seed, "training episodes"), names=getattr(pictures, "class_names", None),
    )  # fmt: skip
    rows = sampler(plan.episodes)
    optimiser = torch.optim.Adam(model.parameters(), plan.lr)
    losses: list[float] = []
    best: tuple[float, int, dict[str, Tensor]] | None = None
    with _own_randomness(model, seed) as device:
        for step in range(plan.episodes):
            chosen = np.concatenate([rows.support[step], rows.query[step]], axis=1)
            x = pictures.take(chosen.ravel()).to(device)
            y = torch.from_numpy(pictures.labels[chosen.ravel()]).to(device)
            parts = episode_loss(
                model, x, y, attack=attack, loss=objective, plan=plan, seed=split(seed, step)
            )
            optimiser.zero_grad(set_to_none=True)
            parts.total.backward()
            optimiser.step()
            losses.append(float(parts.total.detach()))
            if (
                validation is not None
                and plan.validate_every
                and not (step + 1) % plan.validate_every
            ):
                score = evaluate_episodes(
                    model, validation, plan.way, plan.shot, plan.query, plan.validation_episodes,
                    seed=split(seed, "validation"),
                ).acc  # fmt: skip
                if best is None or score > best[0]:
                    best = score, step, copy.deepcopy(model.state_dict())
    if best is None:
        return TrainingLog(losses, None, None)
    model.load_state_dict(best[2])
    return TrainingLog(losses, best[1], best[0])


def _check_validation(plan: EpisodicTraining, validation: PictureSource | None) -> None:
    """Refuse half of a validation: it would be passed over in silence."""
    if validation is None and plan.validate_every:
        raise UsageError(
            f"validation must be given with validate_every {plan.validate_every}: pass held-out "
            "source classes, or leave validate_every at 0"
        )
    if validation is not None and not 1 <= plan.validate_every <= plan.episodes:
        raise UsageError(
            f"validate_every must be from 1 to the {plan.episodes} episodes where validation is "
            f"given, got {plan.validate_every}: set it in EpisodicTraining"
        )


def _few_shot(model: FewShotModel, features: Tensor, plan: EpisodicTraining) -> Tensor:
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
    fsl = _few_shot(model, clean, plan)
    domains = None
    if weights.dom:
        domains = DomainLogits(
            None if cut is None else model.discriminator(cut),
            model.discriminator(clean),
            model.discriminator(adv),
        )
    return loss.parts(
        fsl,
        _few_shot(model, adv, plan),
        model.classifier(clean),
        None if cut is None else model.classifier(cut),
        domains,
        y,
        torch.arange(plan.way, device=y.device).repeat(plan.query),
        model.classifier(adv) if weights.cls_adv or weights.cls_kl else None,
    )


def fine_tune(
    model: FewShotModel,
    support: Float[Tensor, "way shot channels height width"],
    *,
    epochs: int = 10,
    per_class: int = 15,
    lr: int | float = 0.005,
    seed: int = 0,
) -> FewShotModel:
    """Return a copy of the model fitted to one episode's support by pseudo-queries (li2025svasp).

    Parameters
    ----------
    model : FewShotModel
        Left as it is.
    support : tensor of shape (way, shot, channels, height, width)
        Pictures in [0, 1].
    epochs : int, at least 1
        10 for one shot and 50 for five, in the paper.
    per_class : int, at least 1
        Augmented pictures per class, drawn anew every epoch.
    lr : float, above 0
    seed : int

    Raises
    ------
    ValueError
        For a support of another number of axes.

    Examples
    --------
    >>> from trialrun.fewshot.svasp import Conv4
    >>> model = FewShotModel(Conv4(widths=(4, 4, 4, 8)), classes=8)
    >>> tuned = fine_tune(model, torch.rand(5, 1, 3, 32, 32), epochs=1, per_class=2)
    >>> tuned is model
    False
    """
    check_axes("support", support, ("way", "shot", "channels", "height", "width"))
    check_range("epochs", epochs, low=1)
    check_range("per_class", per_class, low=1)
    check_range("lr", lr, low=1e-12)
    tuned = copy.deepcopy(model)
    parameters = [*tuned.backbone.parameters(), *tuned.head.parameters()]
    optimiser = torch.optim.Adam(parameters, lr)
    way, shot = support.shape[:2]
    plan = EpisodicTraining(way=way, shot=shot, query=per_class)
    truth = torch.arange(way, device=support.device).repeat(per_class)
    tuned.train()
    with _own_randomness(tuned, seed):
        for epoch in range(epochs):
            queries = pseudo_queries(support, per_class, seed=split(seed, "epoch", epoch))
            features = tuned.backbone(torch.cat([support, queries], dim=1).flatten(0, 1))
            loss = functional.cross_entropy(_few_shot(tuned, features, plan), truth)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
    return tuned.eval()
