"""The cosine of a von Mises-Fisher draw with its mean: exact draws, gradient, distribution.

The variable is y = (1 - cos) / 2, not the cosine: its density is proportional to
y^(a-1) (1-y)^(a-1) exp(-2 kappa y) with a = (d-1)/2, and nothing cancels where cosines round to 1.

Draws: rejection with wood1994's envelope (ulrich1984 corrected), rewritten in y, its symmetric beta
proposals in closed form (one coordinate of a uniform point on a sphere), and only the draws that
were refused are made again. In three dimensions the distribution function is inverted.

Gradient: implicit (figurnov2018), dy/dkappa = -(dF/dkappa) / density. An accepted proposal has
no unbiased pathwise gradient of its own, since whether it was accepted depends on kappa. Ours: the
part -(2m/a) y (1-y), with m the mean of y, is exact both for kappa -> 0 and for kappa -> infinity;
only what remains is integrated, by Gauss nodes made for a.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

from trialrun.representation.mcinfonce import _stack  # noqa: F401

# isort: split
import numpy as np
import torch
from torch import Tensor

from trialrun.representation.mcinfonce._bessel import log_mean_of, shortfall_of

_BISECTIONS = 64
_LARGEST_JACOBI = 16.0
_LEGENDRE = 48
_BLOCK = 2048


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _uniform(shape: torch.Size, like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=like.dtype, device=like.device)


def symmetric_beta(
    shape: torch.Size, a: float | int, like: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Draw from Beta(a, a), a at least 1/2: (1 + t) / 2, t one coordinate of a uniform point."""
    angle = torch.cos((2 * math.pi) * _uniform(shape, like, generator))
    if a > 0.5:
        # 1 - U lies in (0, 1], so that its log is finite.
        log_u = torch.log1p(-_uniform(shape, like, generator))
        angle = angle * torch.sqrt(-torch.expm1(log_u / (a - 0.5)))
    return 0.5 * (1 + angle)


def _accepted(dim: int, kappa: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Make one proposal per kappa; return it with whether it is accepted."""
    b = (dim - 1) / (2 * kappa + torch.sqrt(4 * kappa * kappa + (dim - 1) ** 2))
    x = symmetric_beta(kappa.shape, 0.5 * (dim - 1), kappa, generator)
    rest = 1 - (1 - b) * x
    y = b * x / rest
    bound = 2 * kappa * (b / (1 + b) - y) + (dim - 1) * torch.log((1 + b) / (2 * rest))
    return y, bound >= torch.log1p(-_uniform(kappa.shape, kappa, generator))


def draw_half_gap(dim: int, kappa: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw y = (1 - cos) / 2 for every finite kappa; no gradient."""
    flat = kappa.detach().to(_wide(kappa)).reshape(-1)
    if dim == 3:
        u = _uniform(flat.shape, flat, generator)
        scale = flat.clamp(min=1e-6)
        y = -torch.log1p(u * torch.expm1(-2 * scale)) / (2 * scale)
        return torch.where(flat > 1e-6, y, u).clamp(0.0, 1.0).reshape(kappa.shape)
    y, accepted = _accepted(dim, flat, generator)
    waiting = (~accepted).nonzero().squeeze(-1)
    while waiting.numel():
        again, accepted = _accepted(dim, flat[waiting], generator)
        y[waiting[accepted]] = again[accepted]
        waiting = waiting[~accepted]
    return y.clamp(0.0, 1.0).reshape(kappa.shape)


class _Rule(NamedTuple):
    """Places u in [0, 1] of integrals with u^power, their weights, and logs that go with these."""

    u: tuple[float, ...]
    weight: tuple[float, ...]
    log_weight: tuple[float, ...]


@cache
def _rule(power: float) -> _Rule:
    """Return the rule for integrals over [0, 1] of u^power times a function.

    Gauss-Jacobi (Golub and Welsch) for small powers. For large ones its far weights drown in
    rounding, and the bulk is a bell of width 1 / sqrt(power) below u = 1: Gauss-Legendre on fifteen
    such widths.
    """
    if power > _LARGEST_JACOBI:
        places, weights = np.polynomial.legendre.leggauss(_LEGENDRE)
        window = min(1.0, 15 / math.sqrt(power))
        u = 1 - 0.5 * window * (1 - places)
        return _Rule(
            *(tuple(row.tolist()) for row in (u, 0.5 * window * weights, power * np.log(u)))
        )
    n = np.arange(12 + math.ceil(4 * math.sqrt(power + 1)), dtype=np.float64)
    twice, k = 2 * n + power, n[1:]
    diagonal = np.zeros_like(n)
    if power:
        diagonal[0] = power / (power + 2)
        diagonal[1:] = power**2 / (twice[1:] * (twice[1:] + 2))
    off = 4 * k**2 * (k + power) ** 2 / (twice[1:] ** 2 * (twice[1:] ** 2 - 1))
    matrix = np.diag(diagonal) + np.diag(np.sqrt(off), 1) + np.diag(np.sqrt(off), -1)
    places, vectors = np.linalg.eigh(matrix)
    rows = (0.5 * (1 + places), vectors[0] ** 2 / (power + 1), np.zeros_like(n))
    return _Rule(*(tuple(row.tolist()) for row in rows))


def _integral(
    a: float, near: Tensor, tilt: Tensor, start: Tensor, sign: Tensor, line: Any
) -> Tensor:
    """Integrate density(u near) / density(near) from 0 to 1, times t (curve t - offset) if asked.

    ``start`` and ``sign`` give t = start + sign u near; ``line`` is (curve, offset) or None. The
    nodes are one axis, and rows are taken in blocks that fit a processor's cache.
    """
    rule = _rule(a - 1)
    u, weight, log_weight = (torch.tensor(r, dtype=near.dtype, device=near.device) for r in rule)
    given = [near, tilt, start, sign, *(line or ())]
    flat = [value.expand(near.shape).reshape(-1, 1) for value in given]
    parts = []
    for rows in zip(*(value.split(_BLOCK) for value in flat)):
        close, lean = rows[:2]
        gap = close * (1 - u)
        exponent = torch.log1p(gap / (1 - close)).mul_(a - 1).add_(gap.mul_(2 * lean))
        mass = exponent.add_(log_weight).exp_()
        if line:
            t = torch.addcmul(rows[2], rows[3] * close, u)
            mass = mass.mul_(t).mul_(torch.addcmul(-rows[5], rows[4], t))
        parts.append(mass @ weight)
    return torch.cat(parts).reshape(near.shape) if parts else torch.zeros_like(near)


def half_gap_slope(dim: int, kappa: Tensor, y: Tensor) -> Tensor:
    """Return (dy/dkappa) / (y (1-y)) along the draw's own quantile, in float64."""
    a = 0.5 * (dim - 1)
    short = shortfall_of(dim, kappa)
    x, mean = kappa.to(short.dtype), 0.5 * short
    # What is left over is curve * t (t - zero) on [0, 1] under the density, and integrates to 0.
    curve = 4 * x * mean / a
    offset = curve - 2 + 4 * mean  # curve * zero
    y = y.to(x.dtype)
    mirrored = y > 0.5
    near = torch.where(mirrored, 1 - y, y)
    tilt = torch.where(mirrored, -x, x)
    start, sign = mirrored.to(y.dtype), torch.where(mirrored, -1.0, 1.0).to(y.dtype)
    total = _integral(a, near, tilt, start, sign, (curve, offset))
    # Each side integrates from its own end of [0, 1], the mirrored one against the sign.
    return sign * total / (1 - near) - 2 * mean / a


def half_gap_below(dim: int, kappa: Tensor, y: Tensor, log_mean: Tensor | None = None) -> Tensor:
    """Return the probability that a draw of y = (1 - cos) / 2 is below ``y``, in float64.

    ``log_mean`` is that of `log_mean_of` for kappa, where the caller has it.
    """
    a = 0.5 * (dim - 1)
    x, y = kappa.to(_wide(kappa)), y.to(_wide(kappa))
    mirrored = y > 0.5
    near = torch.where(mirrored, 1 - y, y)
    tilt = torch.where(mirrored, -x, x)
    total = _integral(a, near, tilt, near, near, None)
    log_beta = 2 * math.lgamma(a) - math.lgamma(2 * a)
    log_density = (
        torch.xlogy(torch.full_like(near, a - 1), near)
        + (a - 1) * torch.log1p(-near)
        - 2 * x * y
        - log_beta
        - (log_mean_of(dim, kappa) if log_mean is None else log_mean)
    )
    part = torch.where(near > 0, torch.exp(log_density + torch.log(near)) * total, 0.0)
    return torch.where(mirrored, 1 - part, part).clamp(0.0, 1.0)


def half_gap_quantile(dim: int, kappa: Tensor, probability: float) -> Tensor:
    """Return the y below which a draw lies with the given probability, by bisection."""
    x = kappa.to(_wide(kappa))
    log_low = torch.full_like(x, math.log(1e-300 if x.dtype == torch.float64 else 1e-35))
    log_high = torch.zeros_like(x)
    log_mean = log_mean_of(dim, x)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (log_low + log_high)
        under = half_gap_below(dim, x, torch.exp(middle), log_mean) < probability
        log_low = torch.where(under, middle, log_low)
        log_high = torch.where(under, log_high, middle)
    return torch.exp(0.5 * (log_low + log_high))


class _HalfGap(torch.autograd.Function):
    """y and sqrt(y (1-y)) with their implicit gradient by kappa; both finite at y = 0 and 1."""

    @staticmethod
    def forward(ctx: Any, kappa: Tensor, y: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        spread = torch.sqrt(y * (1 - y))
        ctx.dim = dim
        ctx.save_for_backward(kappa, y, spread)
        return y.to(kappa.dtype), spread.to(kappa.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        kappa, y, spread = ctx.saved_tensors
        slope = half_gap_slope(ctx.dim, kappa, y)
        by_y, by_spread = (grad.to(slope.dtype) for grad in grads)
        total = slope * (by_y * y * (1 - y) + by_spread * 0.5 * (1 - 2 * y) * spread)
        return total.sum_to_size(kappa.shape).to(kappa.dtype), None, None


def reparametrised(kappa: Tensor, y: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return y and sqrt(y (1-y)) in the dtype of kappa, whose shape ends that of y."""
    return _HalfGap.apply(kappa, y, dim)
