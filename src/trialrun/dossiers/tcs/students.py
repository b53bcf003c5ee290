"""The students of the tcs check: one architecture, one start, one series of batches, many losses.

Every arm gets the same student, the same pictures in the same order with the same augmentation and
as many steps; arms differ in the head and in what is added to the cross-entropy.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

from trialrun.claims.contract import Context
from trialrun.core.seeds import rng, split
from trialrun.dossiers.tcs.nets import WIDTH, augment, generator, make_student, rates
from trialrun.dossiers.tcs.world import World, size
from trialrun.fewshot.tcs import (
    ELSHLoss,
    FewRowsWarning,
    LSHLoss,
    TailoredCoordinates,
    Tailoring,
    TCSHead,
)

AXES = 32
"""Axes of every coordinate system, a quarter of the teacher's features: with all of them a basis
would restrict nothing."""
BEFORE = 64
BETA = 6.0
SOFT, TEMPERATURE = 0.9, 4.0
HASHES = 512
Extra = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Lesson:
    """Pictures and labels of one point, and what the teacher's one pass made of them."""

    images: Tensor
    y: Tensor
    teacher: nn.Module
    features: NDArray[np.float32]
    foreign: NDArray[np.float32]
    classes: int

    def __post_init__(self) -> None:
        if len(self.images) != len(self.features):
            raise ValueError("a lesson needs one row of features an image")


def pass_of(teacher: nn.Module, images: Tensor, device: str = "cpu") -> NDArray[np.float32]:
    """Run a teacher once over pictures as they are."""
    with torch.no_grad():
        blocks = [teacher(part.to(device)).cpu() for part in images.split(256)]
    return torch.cat(blocks).numpy()


def make_lesson(ctx: Context, world: World, teacher: nn.Module, point: str) -> Lesson:
    """Choose the pictures of a point and run the teacher over them once."""
    images, y = world.shots(ctx, point)
    features = pass_of(teacher, images, ctx.device)
    foreign = pass_of(teacher, world.foreign[: len(images)], ctx.device)
    return Lesson(images, y, teacher, features, foreign, world.classes)


def shuffle_features(features: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Shuffle every feature over the images on its own.

    Shuffling whole rows would leave the principal axes as they are; this keeps what each feature
    is worth alone and takes away how features go together, which is what the axes are.
    """
    return rng(seed, "shuffled teacher").permuted(features, axis=0)


def coordinates(lesson: Lesson, kind: str, seed: int, axes: int = AXES) -> TailoredCoordinates:
    """Fit the coordinate system of an arm."""
    count = min(axes, len(lesson.features) - 1)
    table = {"foreign": lesson.foreign, "shuffled": shuffle_features(lesson.features, seed)}
    basis = "random" if kind == "random" else "pca"
    fit = TailoredCoordinates(
        n_components=count, basis=basis, random_state=split(seed, "b") % 2**32
    )
    with warnings.catch_warnings():
        # A few shots are one of the points, and the same for every arm.
        warnings.simplefilter("ignore", FewRowsWarning)
        return fit.fit(table.get(kind, lesson.features))


def probe(lesson: Lesson) -> tuple[Tensor, Tensor]:
    """Fit a linear classifier on the teacher's features; returns its weights and biases."""
    fitted = LogisticRegression(C=1.0, max_iter=300).fit(lesson.features, lesson.y.numpy())
    weight, bias = (torch.from_numpy(part).float() for part in (fitted.coef_, fitted.intercept_))
    if len(weight) == 1:
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    return weight, bias


class _Plain(nn.Module):
    """A linear classifier, and where asked for a linear map to the teacher's features."""

    def __init__(self, classes: int, seed: int, *, middle: int = 0, adapter: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(split(seed, "plain"))
            self.down = nn.Linear(WIDTH, middle, bias=False) if middle else nn.Identity()
            self.classifier = nn.Linear(middle or WIDTH, classes)
        self.adapter = nn.Parameter(torch.eye(WIDTH)) if adapter else None

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.down(x))

    def adapted(self, x: Tensor) -> Tensor:
        return x if self.adapter is None else x @ self.adapter


@dataclass(frozen=True, eq=False)
class Pupil:
    """A student with its head, and the part of the loss beside the cross-entropy.

    ``extra`` takes features (batch, width), augmented pictures and their numbers; ``soft`` is the
    share it takes from the cross-entropy.
    """

    student: nn.Module
    head: nn.Module
    extra: Extra | None = None
    soft: float = 0.0

    def loss(self, images: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """Return the loss of a batch."""
        features = self.student(images)
        logits = self.head(features)
        loss = (1 - self.soft) * functional.cross_entropy(logits, y)
        if self.extra is not None:
            given = logits if self.soft else features
            loss = loss + self.extra(given, images, index)
        return loss


def _soft_labels(teacher: nn.Module, weight: Tensor, bias: Tensor) -> Extra:
    def extra(logits: Tensor, images: Tensor, _: Tensor) -> Tensor:
        with torch.no_grad():
            told = functional.log_softmax(
                (teacher(images) @ weight.T + bias) / TEMPERATURE, dim=1
            )  # fmt: skip
        own = functional.log_softmax(logits / TEMPERATURE, dim=1)
        kl = functional.kl_div(own, told, reduction="batchmean", log_target=True)
        return SOFT * TEMPERATURE**2 * kl

    return extra


def _mse(adapted: Any, targets: Tensor) -> Extra:
    def extra(features: Tensor, _: Tensor, index: Tensor) -> Tensor:
        return functional.mse_loss(adapted(features), targets[index])

    return extra


def _lshl2(adapted: Any, mimic: LSHLoss, teacher: nn.Module) -> Extra:
    def extra(features: Tensor, images: Tensor, _: Tensor) -> Tensor:
        with torch.no_grad():
            told = teacher(images)
        return BETA * mimic(adapted(features), told)

    return extra


def _elsh(head: TCSHead, mimic: ELSHLoss) -> Extra:
    def extra(_: Tensor, __: Tensor, index: Tensor) -> Tensor:
        assert head.features_ is not None
        return BETA * mimic(head.features_, index)

    return extra


def _in_coordinates(
    ctx: Context, lesson: Lesson, *, kind: str = "pca", score: str = "", adapter: bool = True
) -> Pupil:
    coords = coordinates(lesson, kind, ctx.seed, BEFORE if score else AXES)
    tailoring = None
    if score:
        # All axes have gone by three quarters of the steps, before the rate is small.
        tailoring = Tailoring(
            keep=min(AXES, coords.n_components_), every=max(size(ctx).steps // 8, 1),
            fraction=0.125, score=score,
        )  # fmt: skip
    head = TCSHead(
        WIDTH, coords, lesson.classes, adapter=adapter, tailoring=tailoring, seed=ctx.seed
    )
    return Pupil(make_student(ctx.seed, size(ctx).width), head)


def _plain(ctx: Context, lesson: Lesson, *, middle: int = 0) -> Pupil:
    head = _Plain(lesson.classes, ctx.seed, middle=middle)
    return Pupil(make_student(ctx.seed, size(ctx).width), head)


def _mimicking(ctx: Context, lesson: Lesson, *, how: str) -> Pupil:
    student = make_student(ctx.seed, size(ctx).width)
    device = ctx.device
    if how == "kd":
        weight, bias = (part.to(device) for part in probe(lesson))
        head = _Plain(lesson.classes, ctx.seed)
        return Pupil(student, head, _soft_labels(lesson.teacher, weight, bias), SOFT)
    if how == "feature-mse":
        head = _Plain(lesson.classes, ctx.seed, adapter=True)
        return Pupil(
            student, head, _mse(head.adapted, torch.from_numpy(lesson.features).to(device))
        )
    std = float(probe(lesson)[0].std())
    hashed: dict[str, Any] = {"n_hashes": HASHES, "std": std, "seed": ctx.seed}
    if how == "lshl2":
        head = _Plain(lesson.classes, ctx.seed, adapter=True)
        mimic = LSHLoss(lesson.features, l2=True, **hashed).to(device)
        return Pupil(student, head, _lshl2(head.adapted, mimic, lesson.teacher))
    pupil = _in_coordinates(ctx, lesson)
    assert isinstance(pupil.head, TCSHead)
    coords = coordinates(lesson, "pca", ctx.seed)
    elsh = ELSHLoss(coords, lesson.features, **hashed).to(device)
    return Pupil(pupil.student, pupil.head, _elsh(pupil.head, elsh))


ARMS: dict[str, Callable[[Context, Lesson], Pupil]] = {
    "ce": _plain,
    "bottleneck": partial(_plain, middle=AXES),
    "pca": _in_coordinates,
    "random": partial(_in_coordinates, kind="random"),
    "foreign": partial(_in_coordinates, kind="foreign"),
    "shuffled": partial(_in_coordinates, kind="shuffled"),
    "no-adapter": partial(_in_coordinates, adapter=False),
    "tailored": partial(_in_coordinates, score="taylor"),
    "tailored-grad": partial(_in_coordinates, score="grad"),
    "tailored-weight": partial(_in_coordinates, score="weight"),
    "shuffled-tailored": partial(_in_coordinates, kind="shuffled", score="taylor"),
    "feature-mse": partial(_mimicking, how="feature-mse"),
    "lshl2": partial(_mimicking, how="lshl2"),
    "elsh": partial(_mimicking, how="elsh"),
    "kd": partial(_mimicking, how="kd"),
}


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
