"""The training loop of a student and its head, once the teacher's pass is over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from trialrun.core.errors import UsageError
from trialrun.fewshot._tcs_batches import batches
from trialrun.fewshot._tcs_head import Tailoring, TCSHead
from trialrun.fewshot._tcs_layers import Features, in_precision
from trialrun.fewshot._tcs_losses import ELSHLoss

Optimiser = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True, kw_only=True, eq=False)
class Course:
    """What a student is trained on, for how long, and with what."""

    loader: DataLoader
    epochs: int
    optimiser: Optimiser | None
    mimicking: ELSHLoss | None
    mimic: float
    device: str | torch.device
    precision: str


def check_plan(tailoring: Tailoring | None, axes: int, steps: int) -> None:
    """Raise unless all axes that are to go have gone when the training ends."""
    if tailoring is None:
        return
    if tailoring.keep > axes:
        raise UsageError(f"keep must be at most the {axes} axes there are, got {tailoring.keep}")
    there, removals = axes, 0
    while there > tailoring.keep:
        there -= min(max(int(tailoring.fraction * there), 1), there - tailoring.keep)
        removals += 1
    needed = removals * tailoring.every
    if needed > steps:
        raise UsageError(
            f"tailoring {axes} axes down to {tailoring.keep} needs {needed} steps, and there are "
            f"{steps}: train for more epochs, or lower every or raise fraction"
        )


def learned(student: nn.Module, head: TCSHead) -> list[nn.Parameter]:
    """Return what is trained, the mask last."""
    parts = [*student.parameters(), *head.parameters()]
    return [p for p in parts if p.requires_grad and p is not head.mask] + [head.mask]


def train(student: nn.Module, head: TCSHead, give: Features, course: Course) -> list[float]:
    """Train a student with its head and return the mean loss of each epoch, in nats."""
    parameters = learned(student, head)
    updates = (course.optimiser or adamw)(parameters)
    steps = course.epochs * len(course.loader)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(updates, steps)
    student.train()
    step, losses = 0, []
    for _ in range(course.epochs):
        # Read at the end of the epoch: reading at every step would wait for the device.
        told: list[Tensor] = []
        counts: list[int] = []
        numbered = batches(course.loader, head.n_classes, course.device, mimic=course.mimic)
        for images, y, index in numbered:
            loss = _loss(give, head, course, images, y, index)
            updates.zero_grad(set_to_none=True)
            loss.backward()
            head.accumulate_scores()
            updates.step()
            rates.step()
            step += 1
            head.prune(step)
            told.append(loss.detach())
            counts.append(len(y))
        each = torch.stack(told).tolist()
        losses.append(sum(a * n for a, n in zip(each, counts, strict=True)) / sum(counts))
    head.features_ = None
    return losses


def _loss(
    give: Features, head: TCSHead, course: Course, images: Tensor, y: Tensor, index: Tensor
) -> Tensor:
    try:
        with in_precision(course.precision, course.device):
            features = give(images)
    except ValueError as error:
        if len(images) > 1:
            raise
        # Batch normalisation has no spread to go by.
        raise UsageError(
            f"the student cannot train on a batch of one image ({error}): give the loader another "
            "batch_size, or drop_last=True"
        ) from error
    # The head and the losses are cheap, and stay in float32.
    loss = functional.cross_entropy(head(features.float()), y)
    if course.mimicking is not None and head.features_ is not None:
        loss = loss + course.mimic * course.mimicking(head.features_, index)
    return loss


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Make the usual optimiser; the mask is not drawn to 0, which is for its scores to decide."""
    *others, mask = parameters
    groups: list[dict[str, Any]] = [{"params": others}, {"params": [mask], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.01)
