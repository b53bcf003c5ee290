"""Small networks of the tcs check, and a teacher trained without labels.

The teacher learns by contrast (SimCLR's loss) that two drawings of one thing are one thing. Ours:
sizes, schedule and augmentation; nothing here is the paper's. A forward pass of the teacher takes
about seven times the multiplications of the student's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from trialrun.claims.contract import Context
from trialrun.core.seeds import split
from trialrun.dossiers.tcs.world import World, size

WIDTH = 128
_STUDENT = ((3, 16, 2), (16, 32, 2), (32, 48, 2), (48, 64, 1))
_TEACHER = ((3, 24, 2), (24, 48, 2), (48, 64, 1), (64, 96, 2), (96, WIDTH, 1), (WIDTH, WIDTH, 1))
TEMPERATURE = 0.2


def generator(seed: int, *names: str | int) -> torch.Generator:
    """Make a torch generator for a named purpose."""
    return torch.Generator().manual_seed(split(seed, *names))


def _convolutions(plan: Sequence[tuple[int, int, int]], width: float) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for into, out, stride in plan:
        into, out = (c if c in (3, WIDTH) else round(c * width) for c in (into, out))
        layers += [nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    return layers


def make_student(seed: int, width: float = 1.0) -> nn.Sequential:
    """Make four convolutions and a layer to as many features as the teacher has."""
    last = round(_STUDENT[-1][1] * width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(split(seed, "student"))
        return nn.Sequential(
            *_convolutions(_STUDENT, width), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(last, WIDTH),
        )  # fmt: skip


def make_teacher(seed: int, width: float = 1.0) -> nn.Sequential:
    """Make six convolutions, averaged over the picture to 128 features."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(split(seed, "teacher"))
        return nn.Sequential(
            *_convolutions(_TEACHER, width), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )  # fmt: skip


def augment(images: Tensor, draw: torch.Generator, *, strength: float = 1.0) -> Tensor:
    """Turn left and right, shift, scale and change the colours of each picture at random."""
    n = len(images)
    scale = 1 + strength * (0.25 * torch.rand(n, generator=draw) - 0.15)
    flip = torch.where(torch.rand(n, generator=draw) < 0.5, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = scale * flip, scale
    theta[:, :, 2] = 0.15 * strength * (2 * torch.rand(n, 2, generator=draw) - 1)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    moved = functional.grid_sample(
        images, grid.to(images.device), padding_mode="border", align_corners=False
    )
    gain = 1 + 0.3 * strength * (2 * torch.rand(n, 3, 1, 1, generator=draw) - 1)
    return ((moved + 1) * gain.to(images.device) - 1).clamp(-1, 1)


def contrast(a: Tensor, b: Tensor) -> Tensor:
    """Return SimCLR's loss of two views (batch, width): each finds the other among all others."""
    views = functional.normalize(torch.cat([a, b]), dim=1)
    alike = (views @ views.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    partner = torch.arange(2 * len(a), device=a.device).roll(len(a))
    return functional.cross_entropy(alike, partner)


def rates(optimiser: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Warm up over a twentieth of the steps, then fall to 0 along a cosine."""
    warm = max(steps // 20, 1)

    def rate(step: int) -> float:
        return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))))

    return torch.optim.lr_scheduler.LambdaLR(optimiser, rate)


def train_teacher(ctx: Context, world: World) -> nn.Sequential:
    """Train a teacher on the pool without labels: two drawings of an item are its views."""
    budget = size(ctx)
    teacher = make_teacher(ctx.seed, budget.width).to(ctx.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(split(ctx.seed, "expander"))
        expander = nn.Sequential(
            nn.Linear(WIDTH, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, WIDTH)
        ).to(ctx.device)
    both = nn.Sequential(teacher, expander)
    optimiser = torch.optim.AdamW(both.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = rates(optimiser, budget.teacher_steps)
    draw = generator(ctx.seed, "teacher batches")
    items, drawings = world.pool.shape[:2]
    pool = world.pool.to(ctx.device)
    for _ in range(budget.teacher_steps):
        rows = torch.randperm(items, generator=draw)[: budget.teacher_batch]
        # Two different drawings where there are several.
        first = torch.randint(drawings, (len(rows),), generator=draw)
        apart = 1 + torch.randint(max(drawings - 1, 1), (len(rows),), generator=draw)
        second = (first + apart) % drawings
        views = torch.cat([pool[rows, first], pool[rows, second]])
        a, b = both(augment(views, draw, strength=0.6)).chunk(2)
        loss = contrast(a, b)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    return teacher.eval().requires_grad_(False)
