"""What a training step costs: time in turns with a plain step, and memory at its peak.

Loading and augmenting pictures is left out, as every arm does the same of it. The teacher's one
pass is not part of a step; what it costs is shown beside.
"""

from __future__ import annotations

import inspect
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trialrun.claims.contract import Context, Measurement
from trialrun.dossiers.tcs.arms import ARMS, Pupil
from trialrun.dossiers.tcs.lessons import BEFORE, Lesson, pass_of
from trialrun.dossiers.tcs.nets import WIDTH, generator, make_teacher
from trialrun.dossiers.tcs.world import size
from trialrun.fewshot.tcs import TCSHead

LIVE = ("kd", "lshl2")
"""Arms that run the teacher in every step."""


def _lesson(ctx: Context) -> Lesson:
    """Make noise pictures and an untrained teacher: what a step costs does not depend on them."""
    budget = size(ctx)
    draw = generator(ctx.seed, "noise")
    count = max(4 * budget.batch, BEFORE + 1, 2 * budget.classes)
    images = torch.rand(count, 3, budget.size, budget.size, generator=draw) * 2 - 1
    y = torch.arange(count) % budget.classes
    teacher = make_teacher(ctx.seed, budget.width).eval().requires_grad_(False).to(ctx.device)
    features = pass_of(teacher, images, ctx.device)
    lesson = Lesson(images, y, teacher, features, features, budget.classes)
    # Noise teaches a probe nothing: any weights of its shape cost a step the same.
    weight = torch.randn(budget.classes, WIDTH, generator=draw) / WIDTH**0.5
    lesson.probed = (weight, torch.zeros(budget.classes))
    return lesson


class _Step:
    """One arm's training step on a fixed batch."""

    def __init__(self, ctx: Context, lesson: Lesson, arm: str) -> None:
        budget = size(ctx)
        self.device, self.arm, self.lesson = ctx.device, arm, lesson
        self.pupil: Pupil = ARMS[arm](ctx, lesson)
        self.pupil.student.to(ctx.device).train()
        self.pupil.head.to(ctx.device)
        self.index = torch.arange(budget.batch) % len(lesson.images)
        self.index = self.index.to(ctx.device)
        self.images = lesson.images[self.index.cpu()].to(ctx.device)
        self.y = lesson.y[self.index.cpu()].to(ctx.device)
        learned = [*self.pupil.student.parameters(), *self.pupil.head.parameters()]
        self.optimiser = torch.optim.AdamW(learned, lr=1e-3)
        self.done = 0

    def __call__(self) -> None:
        loss = self.pupil.loss(self.images, self.y, self.index)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        head = self.pupil.head
        if isinstance(head, TCSHead):
            head.accumulate_scores()
        self.optimiser.step()
        self.done += 1
        if isinstance(head, TCSHead):
            head.prune(self.done)

    def modules(self) -> Iterator[nn.Module]:
        yield self.pupil.student
        yield self.pupil.head
        if self.arm in LIVE:
            yield self.lesson.teacher

    def held(self) -> int:
        """Return the bytes that stay between steps: weights, buffers, optimiser state, targets."""
        tensors = [t for m in self.modules() for t in (*m.parameters(), *m.buffers())]
        tensors += [
            value
            for state in self.optimiser.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ]
        # What the extra part of the loss holds on to: hash directions, bits, cached features.
        for function in (self.pupil.extra, self.pupil.prepare):
            inner = inspect.unwrap(function) if function is not None else None
            for cell in getattr(inner, "__closure__", None) or ():
                part = cell.cell_contents
                if isinstance(part, Tensor):
                    tensors.append(part)
                elif isinstance(part, nn.Module) and part is not self.lesson.teacher:
                    tensors += [*part.parameters(), *part.buffers()]
        return _bytes(tensors)

    def parts(self) -> dict[str, float]:
        """Return the megabytes that the head holds, by what they are for; after a step."""
        head = self.pupil.head
        learned = {
            "adapter": [p for name, p in head.named_parameters() if name == "adapter"],
            "other weights": [p for name, p in head.named_parameters() if name != "adapter"],
        }
        found = {"head's buffers": _bytes(head.buffers())}
        for name, weights in learned.items():
            state = [
                value
                for p in weights
                for value in self.optimiser.state.get(p, {}).values()
                if isinstance(value, Tensor)
            ]
            found[f"head's {name}"] = _bytes(weights)
            found[f"gradient of head's {name}"] = _bytes(
                p.grad for p in weights if p.grad is not None
            )
            found[f"optimiser state of head's {name}"] = _bytes(state)
        return {f"{name}, MB": value / 1e6 for name, value in found.items()}


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Add up what tensors take, each piece of memory once."""
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())


def _seconds(call: Callable[[], None], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def step_time(ctx: Context, *, arm: str) -> Measurement:
    """Time an arm's step and a plain cross-entropy step in turn; the median of their ratios."""
    lesson = _lesson(ctx)
    plain, ours = _Step(ctx, lesson, "ce"), _Step(ctx, lesson, arm)
    for _ in range(3):
        plain()
        ours()
    pairs = [
        (_seconds(ours, ctx.device), _seconds(plain, ctx.device)) for _ in range(size(ctx).timed)
    ]
    # Arms without a live teacher never ran it: warm it, then take the middle.
    passes = [
        _seconds(lambda: _no_grad_pass(lesson, ours.images), ctx.device)
        for _ in range(2 + min(size(ctx).timed, 9))
    ]
    once = statistics.median(passes[2:])
    return Measurement.of(
        statistics.median(a / b for a, b in pairs),
        n=len(pairs),
        step_milliseconds=1000 * statistics.median(a for a, _ in pairs),
        teacher_pass_milliseconds_a_batch=1000 * once,
    )


@torch.no_grad()
def _no_grad_pass(lesson: Lesson, images: Tensor) -> None:
    functional.normalize(lesson.teacher(images)[:, :WIDTH])


class Peak(TorchDispatchMode):
    """Count the bytes of tensors made within, and the most there were at once.

    Scratch space inside single operations is not seen, so that the number is the same on every
    machine.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._there: dict[int, int] = {}

    def _meet(self, value: Any, size_of: Callable[[Any], int]) -> None:
        for tensor in tree_leaves(value):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._there:
                self._there[key] = size_of(storage)
                self.now += self._there[key]
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._leave, key)

    def _leave(self, key: int) -> None:
        self.now -= self._there.pop(key, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # What an operation is given was there before, or was counted when it was made.
        self._meet((args, kwargs), lambda _: 0)
        made = func(*args, **(kwargs or {}))
        self._meet(made, lambda storage: storage.nbytes())
        return made


def _transient(step: _Step) -> int:
    """Return the most bytes that a step has allocated at once beyond what was there before it."""
    if step.device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with Peak() as watched:
        step()
    return watched.most


def _needed(ctx: Context, arm: str) -> tuple[int, int, dict[str, float]]:
    """Return the bytes that stay between steps, those that a step adds, and what the head holds."""
    step = _Step(ctx, _lesson(ctx), arm)
    step()
    parts = step.parts()
    # Gradients are freed and made again within a step, so they belong to what it adds.
    step.optimiser.zero_grad(set_to_none=True)
    return step.held(), _transient(step), parts


def memory(ctx: Context, *, arm: str) -> Measurement:
    """Return the peak megabytes of an arm's step: what stays, and what the step adds to it.

    Shown beside it is the peak at twice the batch: what stays does not grow with the batch, and
    what a step adds does, so that any ratio of two arms depends on it.
    """
    held, added, parts = _needed(ctx, arm)
    budget = size(ctx)
    twice = replace(ctx, budget=replace(budget, batch=2 * budget.batch))
    told = {
        "held, MB": held / 1e6,
        "added by the step, MB": added / 1e6,
        "peak at twice the batch, MB": sum(_needed(twice, arm)[:2]) / 1e6,
        **parts,
    }
    return Measurement.of((held + added) / 1e6, n=1, **told)
