"""The arms of the tcs check: what stands on the student, and what is added to its loss.

Every arm gets the same student; arms differ in the head and in what is added to the cross-entropy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trialrun.claims.contract import Context
from trialrun.core.seeds import split
from trialrun.dossiers.tcs.lessons import AXES, BEFORE, FEW_AXES, Lesson, coordinates
from trialrun.dossiers.tcs.nets import WIDTH, make_student
from trialrun.dossiers.tcs.world import size
from trialrun.fewshot.tcs import ELSHLoss, LSHLoss, Tailoring, TCSHead

BETA = 6.0
SOFT, TEMPERATURE = 0.9, 4.0
HASHES = 512
RIDGE, MOST_ALIGNED = 0.01, 1024
"""Of the aligned starts: the penalty, in mean variances, and the pictures looked at."""
Prepare = Callable[[Tensor], Tensor]
Extra = Callable[[Tensor, Tensor | None, Tensor], Tensor]


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
    ctx: Context,
    lesson: Lesson,
    *,
    kind: str = "pca",
    score: str = "",
    adapter: bool = True,
    axes: int = AXES,
) -> Pupil:
    coords = coordinates(lesson, kind, ctx.seed, BEFORE if score else axes)
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


@torch.no_grad()
def _align(pupil: Pupil, lesson: Lesson) -> None:
    """Start the adapter at the ridge regression from the student's to the teacher's features.

    The student begins where every other does; its coordinates begin near the teacher's, as near as
    a linear map of an untrained network gets, and are centred as the teacher's are.
    """
    head = pupil.head
    assert isinstance(head, TCSHead)
    assert head.adapter is not None
    # A copy, as batch normalisation would remember what it sees.
    every = -(-len(lesson.images) // MOST_ALIGNED)
    own = copy.deepcopy(pupil.student).train()(lesson.images[::every])
    told = torch.from_numpy(lesson.features)[::every]
    middle = own.mean(0)
    apart = (own - middle).double()
    moment = apart.T @ apart
    moment += RIDGE * moment.diagonal().mean() * torch.eye(len(moment))
    wanted = apart.T @ (told - told.mean(0)).double()
    head.adapter.copy_(torch.linalg.solve(moment, wanted))
    head.offset.copy_(middle @ head.adapter @ head.basis)


def _aligned(ctx: Context, lesson: Lesson, *, kind: str = "pca") -> Pupil:
    pupil = _in_coordinates(ctx, lesson, kind=kind)
    _align(pupil, lesson)
    return pupil


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
    "aligned": _aligned,
    "aligned-random": partial(_aligned, kind="random"),
    "pca-few": partial(_in_coordinates, axes=FEW_AXES),
    "random-few": partial(_in_coordinates, kind="random", axes=FEW_AXES),
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
