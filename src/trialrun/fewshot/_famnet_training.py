"""Episodic training with the two published schedules (bo2024famnet)."""

from __future__ import annotations

from trialrun.fewshot import _famnet_stack  # noqa: F401

# isort: split
from collections.abc import Callable
from dataclasses import dataclass

import torch

from trialrun.fewshot._famnet_episodes import EpisodeSampler
from trialrun.fewshot._famnet_model import famnet_loss
from trialrun.fewshot._famnet_prototype import PrototypeSegmenter


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long to train and how fast.

    Parameters
    ----------
    steps : int
        Updates.
    lr : float
        Learning rate at the start, multiplied by ``decay`` every ``every`` steps.
    momentum, weight_decay : float
        Of SGD; ``adam`` takes the weight decay alone.
    batch : int
        Episodes per update.
    keep : int or None
        The step whose weights are kept; None is the last.
    optimiser : {"sgd", "adam"}
        The paper uses SGD on a pretrained encoder; adam is for small ones from scratch.

    Raises
    ------
    ValueError
        If a setting is out of range.

    Examples
    --------
    >>> SCHEDULES["paper"].decay, SCHEDULES["code_scripts"].decay
    (0.95, 0.98)
    """

    steps: int
    lr: float = 1e-3
    decay: float = 0.95
    every: int = 1000
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int = 1
    keep: int | None = None
    optimiser: str = "sgd"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.every < 1 or not self.lr > 0:
            raise ValueError(
                "steps, batch and every must be at least 1 and lr above 0, got "
                f"{self.steps}, {self.batch}, {self.every}, {self.lr}"
            )
        if self.keep is not None and not 1 <= self.keep <= self.steps:
            raise ValueError(f"keep must be between 1 and {self.steps}, got {self.keep}")
        if self.optimiser not in ("sgd", "adam"):
            raise ValueError(f"optimiser must be sgd or adam, got {self.optimiser!r}")


SCHEDULES = {
    "code_scripts": Schedule(steps=40_001, decay=0.98, every=3000, keep=39_000),
    "paper": Schedule(steps=40_001, decay=0.95, every=1000),
}
"""The authors' scripts and the paper's text disagree about the decay; both train for as long."""


@dataclass(frozen=True)
class TrainingRun:
    """What training did: the loss of every step, and the step whose weights the model has."""

    losses: tuple[float, ...]
    kept: int


def _optimiser(model: torch.nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    if schedule.optimiser == "adam":
        return torch.optim.AdamW(
            model.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay, foreach=True
        )
    return torch.optim.SGD(
        model.parameters(),
        lr=schedule.lr,
        momentum=schedule.momentum,
        weight_decay=schedule.weight_decay,
        foreach=True,
    )


def train_episodes(
    model: PrototypeSegmenter,
    sampler: EpisodeSampler,
    schedule: Schedule,
    *,
    first_step: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> TrainingRun:
    """Train a segmenter on episodes and leave it in eval mode.

    Parameters
    ----------
    model : FAMNet or PrototypeSegmenter
        Trained in place, on the device where it lies.
    sampler : EpisodeSampler
        Step k draws the same episodes for every model.
    schedule : Schedule
        `SCHEDULES` has the published ones.
    first_step : int
        Number of the first step's episodes, for training that goes on.
    progress : callable or None
        Takes the step and its loss.

    Raises
    ------
    ValueError
        If a loss is not finite, naming the step.

    Examples
    --------
    >>> import numpy as np
    >>> volume = np.random.default_rng(0).normal(size=(3, 16, 16))
    >>> sampler = EpisodeSampler([volume], [np.ones((3, 16, 16), int)], min_pixels=9)
    >>> net = PrototypeSegmenter("small", channels=8)
    >>> len(train_episodes(net, sampler, Schedule(steps=2)).losses)
    2
    """
    device = next(model.parameters()).device
    optimiser = _optimiser(model, schedule)
    slower = torch.optim.lr_scheduler.StepLR(optimiser, schedule.every, schedule.decay)
    losses: list[float] = []
    kept = None
    model.train()
    for step in range(1, schedule.steps + 1):
        episode = sampler.batch(first_step + step, schedule.batch)
        support, mask, query, truth = (part.to(device) for part in episode)
        pred, aux = model(support, mask, query)
        loss = famnet_loss(pred, aux["coarse"], truth)
        losses.append(float(loss.detach()))
        if losses[-1] != losses[-1]:
            raise ValueError(
                f"the loss of step {step} is not a number: lower lr, now {schedule.lr}"
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        slower.step()
        if progress is not None:
            progress(step, losses[-1])
        if step == schedule.keep and step < schedule.steps:
            kept = {name: value.clone() for name, value in model.state_dict().items()}
    if kept is not None:
        model.load_state_dict(kept)
    model.eval()
    return TrainingRun(tuple(losses), schedule.keep or schedule.steps)
