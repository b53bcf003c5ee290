"""The students of the tcs check: one architecture, one start, one series of batches, many losses.

Every arm gets the same student, the same pictures in the same order with the same augmentation and
as many steps; arms differ in the head and in what is added to the cross-entropy.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
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
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Inverse penalties among which the teacher's probe is chosen, on training pictures alone."""
Prepare = Callable[[Tensor], Tensor]
Extra = Callable[[Tensor, Tensor | None, Tensor], Tensor]


@dataclass(eq=False)
class Lesson:
    """Pictures and labels of one point, and what the teacher's one pass made of them.

    ``drawings`` successive pictures show one item. ``basis_rows`` names the pictures that
    coordinate systems are computed from: as many as there are foreign ones.
    """

    images: Tensor
    y: Tensor
    teacher: nn.Module
    features: NDArray[np.float32]
    foreign: NDArray[np.float32]
    classes: int
    drawings: int = 1
    basis_rows: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if len(self.images) != len(self.features):
            raise ValueError("a lesson needs one row of features an image")
        if self.basis_rows is None:
            self.basis_rows = np.arange(len(self.features))
        if len(self.basis_rows) != len(self.foreign):
            raise ValueError(
                "bases are computed from equally many pictures of either kind, got "
                f"{len(self.basis_rows)} and {len(self.foreign)} foreign ones"
            )

    @cached_property
    def probed(self) -> tuple[Tensor, Tensor]:
        """Weights and biases of a linear classifier on the teacher's features."""
        return _probe(self.features, self.y.numpy(), self.drawings)


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
    rows = rng(ctx.seed, "basis rows").permutation(len(images))[: len(foreign)]
    return Lesson(
        images, y, teacher, features, foreign, world.classes, world.train.shape[1], np.sort(rows)
    )


def shuffle_features(features: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Shuffle every feature over the images on its own.

    Shuffling whole rows would leave the principal axes as they are; this keeps what each feature
    is worth alone and takes away how features go together, which is what the axes are.
    """
    return rng(seed, "shuffled teacher").permuted(features, axis=0)


def coordinates(lesson: Lesson, kind: str, seed: int, axes: int = AXES) -> TailoredCoordinates:
    """Fit the coordinate system of an arm."""
    assert lesson.basis_rows is not None
    own = lesson.features[lesson.basis_rows]
    count = min(axes, len(own) - 1)
    table = {
        "foreign": lesson.foreign,
        "shuffled": shuffle_features(own, seed),
        "shuffled again": shuffle_features(own, split(seed, "again")),
    }
    basis = "random" if kind == "random" else "pca"
    fit = TailoredCoordinates(
        n_components=count, basis=basis, random_state=split(seed, "b") % 2**32
    )
    with warnings.catch_warnings():
        # A few shots are one of the points, and the same for every arm.
        warnings.simplefilter("ignore", FewRowsWarning)
        return fit.fit(table.get(kind, own))


def _probe(
    features: NDArray[np.float32], y: NDArray[np.int64], drawings: int
) -> tuple[Tensor, Tensor]:
    """Fit a linear classifier on features; its penalty is chosen by inner cross-validation.

    Drawings of one item are never on both sides of an inner split.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=100))
    items = np.arange(len(y)) // drawings
    folds = min(3, int(np.bincount(y[::drawings]).min()))
    with warnings.catch_warnings():
        # A weak penalty may not converge within its steps; then it is seldom the one chosen.
        warnings.simplefilter("ignore", ConvergenceWarning)
        if folds > 1:
            grid = {"logisticregression__C": list(STRENGTHS)}
            inner = StratifiedGroupKFold(folds)
            search = GridSearchCV(model, grid, cv=inner, scoring="neg_log_loss")
            model = search.fit(features, y, groups=items).best_estimator_
        else:
            model.fit(features, y)
    scaler, fitted = model[0], model[1]
    coef = fitted.coef_ / scaler.scale_
    intercept = fitted.intercept_ - coef @ scaler.mean_
    weight, bias = (torch.from_numpy(part).float() for part in (coef, intercept))
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

    ``prepare`` asks the teacher about augmented pictures, before the student sees them, so that
    what the teacher needs for it is free again when the student's graph is built. ``extra`` takes
    features (batch, width), what was prepared, and the pictures' numbers; ``soft`` is the share it
    takes from the cross-entropy.
    """

    student: nn.Module
    head: nn.Module
    extra: Extra | None = None
    soft: float = 0.0
    prepare: Prepare | None = None

    def loss(self, images: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """Return the loss of a batch."""
        told = None if self.prepare is None else self.prepare(images)
        features = self.student(images)
        logits = self.head(features)
        loss = (1 - self.soft) * functional.cross_entropy(logits, y)
        if self.extra is not None:
            given = logits if self.soft else features
            loss = loss + self.extra(given, told, index)
        return loss


def _ask(teacher: nn.Module) -> Prepare:
    @torch.no_grad()
    def prepare(images: Tensor) -> Tensor:
        return teacher(images)

    return prepare


def _ask_for_labels(teacher: nn.Module, weight: Tensor, bias: Tensor) -> Prepare:
    @torch.no_grad()
    def prepare(images: Tensor) -> Tensor:
        return functional.log_softmax((teacher(images) @ weight.T + bias) / TEMPERATURE, dim=1)

    return prepare


def _soft_labels(logits: Tensor, told: Tensor | None, _: Tensor) -> Tensor:
    assert told is not None
    own = functional.log_softmax(logits / TEMPERATURE, dim=1)
    kl = functional.kl_div(own, told, reduction="batchmean", log_target=True)
    return SOFT * TEMPERATURE**2 * kl


def _mse(adapted: Any, targets: Tensor) -> Extra:
    def extra(features: Tensor, _: Tensor | None, index: Tensor) -> Tensor:
        return functional.mse_loss(adapted(features), targets[index])

    return extra


def _lshl2(adapted: Any, mimic: LSHLoss) -> Extra:
    def extra(features: Tensor, told: Tensor | None, _: Tensor) -> Tensor:
        assert told is not None
        return BETA * mimic(adapted(features), told)

    return extra


def _elsh(head: TCSHead, mimic: ELSHLoss) -> Extra:
    def extra(_: Tensor, __: Tensor | None, index: Tensor) -> Tensor:
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
        weight, bias = (part.to(device) for part in lesson.probed)
        head = _Plain(lesson.classes, ctx.seed)
        ask = _ask_for_labels(lesson.teacher, weight, bias)
        return Pupil(student, head, _soft_labels, SOFT, ask)
    if how == "feature-mse":
        head = _Plain(lesson.classes, ctx.seed, adapter=True)
        return Pupil(
            student, head, _mse(head.adapted, torch.from_numpy(lesson.features).to(device))
        )
    std = float(lesson.probed[0].std())
    hashed: dict[str, Any] = {"n_hashes": HASHES, "std": std, "seed": ctx.seed}
    if how == "lshl2":
        head = _Plain(lesson.classes, ctx.seed, adapter=True)
        mimic = LSHLoss(lesson.features, l2=True, **hashed).to(device)
        extra = _lshl2(head.adapted, mimic)
        return Pupil(student, head, extra, prepare=_ask(lesson.teacher))
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
    "shuffled-again": partial(_in_coordinates, kind="shuffled again", score="taylor"),
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
