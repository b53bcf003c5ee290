"""Measure TCS: whose coordinate system helps a student, how accurate it gets, and what it costs.

One preparation step a seed trains the teacher without labels, runs it once over the training
pictures, and trains every arm's student on the same batches; the arms read their accuracies. The
two claims on cost need no trained teacher and time their own steps.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trialrun.claims.contract import Arm, Context, Measurement, Trial
from trialrun.core.errors import UsageError
from trialrun.dossiers.tcs.arms import ARMS
from trialrun.dossiers.tcs.cost import memory, step_time
from trialrun.dossiers.tcs.lessons import (
    BEFORE,
    FROZEN,
    coordinates,
    make_lesson,
    pass_of,
    read_frozen,
)
from trialrun.dossiers.tcs.nets import train_teacher
from trialrun.dossiers.tcs.students import learn, train
from trialrun.dossiers.tcs.world import (
    ALL,
    TCSBudget,
    World,
    check_on,
    make_world,
    points,
    resplit,
    size,
)
from trialrun.fewshot.tcs import TCSHead


def _accuracy_by(linear: tuple[Tensor, Tensor], found: Tensor, world: World) -> float:
    """Return the mean over classes of what a linear classifier gets right, in percent."""
    weight, bias = linear
    right = (found @ weight.T + bias).argmax(1)
    y = world.y_test.repeat_interleave(world.test.shape[1])
    each = [right[y == c].eq(c).float().mean() for c in range(world.classes)]
    return 100 * float(torch.stack(each).mean())


def school(ctx: Context, folder: Path) -> None:
    """Train the teacher and every student of a seed, and write down their accuracies."""
    world = make_world(ctx)
    teacher = train_teacher(ctx, world)
    found: dict[str, dict[str, float]] = {arm: {} for arm in (*ARMS, *FROZEN, "teacher")}
    seen = torch.from_numpy(pass_of(teacher, world.test.flatten(0, 1), ctx.device))
    for point in points(ctx):
        lesson = make_lesson(ctx, world, teacher, point)
        found["teacher"][point] = _accuracy_by(lesson.probed, seen, world)
        for arm, (kind, axes) in FROZEN.items():
            read = read_frozen(lesson, kind, ctx.seed, axes)
            found[arm][point] = _accuracy_by(read, seen, world)
        for arm in ARMS:
            found[arm][point] = learn(ctx, world, lesson, arm)
    told = {"accuracies": found, "items": len(world.test)}
    (folder / "accuracies.json").write_text(json.dumps(told), encoding="utf-8")


def accuracy_of(ctx: Context, *, arm: str) -> Measurement:
    """Read an arm's accuracy at every point."""
    path = ctx.prepared("school") / "accuracies.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    teacher = {
        f"teacher's probe, {point}": value for point, value in told["accuracies"]["teacher"].items()
    }
    return Measurement(told["accuracies"][arm], told["items"], teacher)


def beside(ctx: Context, *, arm: str) -> Measurement:
    """Read an arm's accuracy at every point twice: beside each of two things to be better than.

    The arm ``references`` is logit distillation at the one, and at the other the same tailored
    student in axes of a shuffled teacher. Every other arm has its own accuracy at both. So a rule
    against ``references`` asks for both at once, and a student that does as well without the
    teacher's axes cannot satisfy it, however weak distillation is.
    """
    parts = [(name, accuracy_of(ctx, arm=arm or name)) for name in REFERENCES]
    found = {
        f"{point}, beside {name}": value
        for name, part in parts
        for point, value in part.points.items()
    }
    return Measurement(found, parts[0][1].n, parts[0][1].extra)


def keep(ctx: Context, folder: Path) -> str:
    """Distil a student from all of the user's pictures and save it with its coordinate system."""
    if ctx.on is None:
        raise UsageError("keep needs pictures of your own: pass --on")
    world = make_world(ctx, everything=True)
    lesson = make_lesson(ctx, world, train_teacher(ctx, world), ALL)
    pupil = ARMS["tailored"](ctx, lesson)
    train(ctx, pupil, lesson)
    head = pupil.head
    assert isinstance(head, TCSHead)
    model = nn.Sequential(pupil.student, head.fold()).cpu()
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "student.safetensors")
    coordinates(lesson, "pca", ctx.seed, BEFORE).save(folder / "coordinates")
    width, classes = size(ctx).width, world.classes
    return (
        "from safetensors.torch import load_file\n"
        "from torch import nn\n"
        "from trialrun.dossiers.tcs.nets import WIDTH, make_student\n"
        f"model = nn.Sequential(make_student(0, {width}), nn.Linear(WIDTH, {classes}))\n"
        f"model.load_state_dict(load_file({str(folder / 'student.safetensors')!r}))\n"
        f"# model.eval()(images) with images in [-1, 1] of shape (n, 3, {size(ctx).size}, "
        f"{size(ctx).size}); classes are your folders in order of name"
    )


def _read(*names: str) -> dict[str, Arm]:
    return {name: partial(accuracy_of, arm=name) for name in names}


REFERENCES = ("kd", "shuffled-again")
_BESIDE = (
    "tailored", "kd", "ce", "shuffled-tailored", "feature-mse", "lshl2", "elsh", "pca",
)  # fmt: skip
_COST = ("tailored", "kd", "ce", "lshl2", "elsh", "feature-mse")

TRIAL = Trial(
    budgets={
        "smoke": TCSBudget(
            seeds=2, classes=2, size=16, teacher_steps=2, teacher_batch=16, steps=1, batch=8,
            shots=2, timed=1,
        ),
        "quick": TCSBudget(
            seeds=2, first_seed=60, classes=20, size=32, teacher_steps=60, teacher_batch=96,
            steps=25, batch=48, shots=5, timed=10,
        ),
        # Seeds that nobody had looked at when the check was settled.
        "full": TCSBudget(
            seeds=5, first_seed=100, classes=20, size=32, teacher_steps=150, teacher_batch=96,
            steps=100, batch=48, shots=5, timed=30,
        ),
        "gpu": TCSBudget(
            seeds=5, first_seed=100, classes=20, size=64, teacher_steps=2000, teacher_batch=256,
            steps=1000, batch=64, shots=5, timed=100, width=2.0,
        ),
    },
    arms={
        "basis": _read(
            "pca", "random", "bottleneck", "shuffled", "ce", "no-adapter", "tailored",
            "tailored-grad", "tailored-weight", "aligned", "aligned-random", "pca-few",
            "random-few", "frozen-pca", "frozen-random", "frozen-shuffled", "frozen-pca-few",
            "frozen-random-few",
        ),
        "domain": _read(
            "pca", "foreign", "random", "shuffled", "frozen-pca", "frozen-foreign",
        ),
        "accuracy": {
            "references": partial(beside, arm=""),
            **{name: partial(beside, arm=name) for name in _BESIDE},
        },
        "step-time": {arm: partial(step_time, arm=arm) for arm in _COST},
        "memory": {arm: partial(memory, arm=arm) for arm in _COST},
    },
    prepare={"school": school},
    needs=dict.fromkeys(("basis", "domain", "accuracy"), ("school",)),
    check_on=check_on,
    resplit=resplit,
    keep=keep,
)  # fmt: skip
