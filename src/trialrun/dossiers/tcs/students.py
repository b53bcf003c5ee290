"""How the students of the tcs check learn and are tested.

Every arm sees the same pictures in the same order with the same augmentation, for as many steps.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from trialrun.claims.contract import Context
from trialrun.dossiers.tcs.arms import ARMS, Pupil
from trialrun.dossiers.tcs.lessons import Lesson
from trialrun.dossiers.tcs.nets import augment, generator, rates
from trialrun.dossiers.tcs.world import World, size
from trialrun.fewshot.tcs import TCSHead


def stepper(ctx: Context, pupil: Pupil, lesson: Lesson) -> Callable[[], None]:
    """Return a function that does one training step; every arm draws the same batches."""
    budget, device = size(ctx), ctx.device
    student, head = pupil.student.to(device).train(), pupil.head.to(device)
    parameters = [*student.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.02)
    schedule = rates(optimiser, budget.steps)
    draw = generator(ctx.seed, "student batches")
    images, y = lesson.images.to(device), lesson.y.to(device)
    done = 0

    def step() -> None:
        nonlocal done
        index = torch.randint(len(images), (budget.batch,), generator=draw).to(device)
        loss = pupil.loss(augment(images[index], draw, strength=0.7), y[index], index)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if isinstance(head, TCSHead):
            head.accumulate_scores()
        optimiser.step()
        schedule.step()
        done += 1
        if isinstance(head, TCSHead):
            head.prune(done)

    return step


def accuracy(ctx: Context, pupil: Pupil, world: World) -> float:
    """Return the mean over classes of the share of test pictures put in their class, in percent."""
    head = pupil.head.fold() if isinstance(pupil.head, TCSHead) else pupil.head
    model = nn.Sequential(pupil.student, head).to(ctx.device).eval()
    images = world.test.flatten(0, 1)
    y = world.y_test.repeat_interleave(world.test.shape[1])
    with torch.no_grad():
        right = torch.cat(
            [model(part.to(ctx.device)).argmax(1).cpu() for part in images.split(512)]
        ).eq(y)
    each = [float(right[y == c].float().mean()) for c in range(world.classes)]
    return 100 * float(np.mean(each))


def train(ctx: Context, pupil: Pupil, lesson: Lesson) -> None:
    """Do all the steps of a budget."""
    step = stepper(ctx, pupil, lesson)
    for _ in range(size(ctx).steps):
        step()


def learn(ctx: Context, world: World, lesson: Lesson, arm: str) -> float:
    """Train the student of one arm and return its accuracy."""
    pupil = ARMS[arm](ctx, lesson)
    train(ctx, pupil, lesson)
    return accuracy(ctx, pupil, world)
