"""Training: a supervised warm start, and episodes with adversarial styles (li2025svasp)."""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng, split
from trialrun.core.shapes import check_range
from trialrun.fewshot._svasp_attack import StyleAttack
from trialrun.fewshot._svasp_episode import EpisodicTraining, episode_loss
from trialrun.fewshot._svasp_features import PictureSource, check_source
from trialrun.fewshot._svasp_loss import SVasPLoss
from trialrun.fewshot._svasp_model import FewShotModel, own_randomness
from trialrun.fewshot._svasp_pictures import jitter
from trialrun.fewshot._svasp_sampler import EpisodeSampler
from trialrun.fewshot._svasp_terms import LossWeights
from trialrun.fewshot.episodes import evaluate_episodes

WITHOUT_ATTACK = LossWeights(fsl_adv=0, fsl_kl=0, dom=0)
"""The parts that are left where no picture is restyled: clean episodes, base classes and crops."""


class TrainingLog(NamedTuple):
    """Total loss of every episode, and where the best state on source validation was found.

    ``best_episode`` and ``best_accuracy`` are None where nothing was validated.
    """

    losses: list[float]
    best_episode: int | None
    best_accuracy: float | None


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
    with own_randomness(model, seed) as device:
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
    check_source("pictures", pictures)
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
    with own_randomness(model, seed) as device:
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
