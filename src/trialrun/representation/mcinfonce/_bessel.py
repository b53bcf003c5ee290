"""Modified Bessel functions of a von Mises-Fisher density, in log space, for any order.

Everything goes through M(kappa) = 0F1(; d/2; kappa^2 / 4), the mean of exp(kappa cos) over the
uniform sphere: with it the density against the uniform one is exp(kappa cos) / M(kappa), nothing
large cancels in high dimensions, and kappa = 0 is no special case. In Bessel functions,
M = Gamma(nu + 1) (2 / kappa)^nu I_nu(kappa) with nu = d/2 - 1.

Method (ours; the pieces are textbook: Olver's uniform expansion, DLMF 10.41, and the recurrence
of ratios in its stable direction): orders below 24 are raised to 24 or more, where fourteen terms
of the uniform expansion are exact to rounding for *every* kappa, and the ratios are then taken down
again one order at a time. One fixed, short, branch-free computation serves kappa from 0 to beyond
1e6.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

from trialrun.representation.mcinfonce import _stack  # noqa: F401

# isort: split
import torch
from torch import Tensor

_ORDER = 24
_TERMS = 14
_Poly = list[Fraction]


class SphereBessel(NamedTuple):
    """What M(kappa) is made of, elementwise over kappa.

    Attributes
    ----------
    log_mean : Tensor
        log M(kappa) - kappa.
    length : Tensor
        A = I_{nu+1} / I_nu, the mean resultant length.
    shortfall : Tensor
        1 - A, exact also where A rounds to 1.
    slope : Tensor
        dA / dkappa.
    """

    log_mean: Tensor
    length: Tensor
    shortfall: Tensor
    slope: Tensor


def _times(left: _Poly, right: _Poly) -> _Poly:
    out = [Fraction(0)] * (len(left) + len(right) - 1)
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            out[i + j] += a * b
    return out


def _plus(left: _Poly, right: _Poly) -> _Poly:
    size = max(len(left), len(right))
    padded = [p + [Fraction(0)] * (size - len(p)) for p in (left, right)]
    return [a + b for a, b in zip(*padded)]


@cache
def _polynomials() -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...]]:
    """Return u_0..u_K of the uniform expansion, and u_{k-1} / 2 + p u'_{k-1} for k = 1..K."""
    u: list[_Poly] = [[Fraction(1)]]
    slopes: list[_Poly] = []
    for _ in range(_TERMS):
        last = u[-1]
        derivative = [i * c for i, c in enumerate(last)][1:] or [Fraction(0)]
        slopes.append(_plus([c / 2 for c in last], _times([Fraction(0), Fraction(1)], derivative)))
        half = [Fraction(0), Fraction(0), Fraction(1, 2), Fraction(0), Fraction(-1, 2)]
        inner = _times([Fraction(1), Fraction(0), Fraction(-5)], last)
        integral = [Fraction(0)] + [c / (8 * (i + 1)) for i, c in enumerate(inner)]
        u.append(_plus(_times(half, derivative), integral))
    return tuple(tuple(map(float, p)) for p in u), tuple(tuple(map(float, p)) for p in slopes)


@cache
def _merged(order: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return sum u_k / order^k and the sum of slopes / order^k, as coefficients of powers of p."""
    u, slopes = _polynomials()
    merged = []
    for polynomials, first in ((u, 0), (slopes, 1)):
        row = [0.0] * len(u[-1])
        for k, polynomial in enumerate(polynomials):
            for i, c in enumerate(polynomial):
                row[i] += c / order ** (first + k)
        merged.append(tuple(row))
    return merged[0], merged[1]


def _high_order(order: float, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log M - x, the ratio I_{order+1} / I_order and 1 minus it, by uniform expansion."""
    coefficients = _merged(order)
    z = x / order
    s = torch.sqrt(1 + z * z)
    p = 1 / s
    powers = p[..., None] ** torch.arange(len(coefficients[0]), dtype=x.dtype, device=x.device)
    both = powers @ torch.tensor(coefficients, dtype=x.dtype, device=x.device).T
    series = both[..., 0]
    bend = both[..., 1] / series
    log_mean = (
        -order * (z * (1 + z / (1 + s)) / (s + z) + torch.log1p(0.5 * z * (z / (1 + s))))
        - 0.5 * torch.log(s)
        + torch.log(series / math.fsum(coefficients[0]))
    )
    ratio = z * (1 / (1 + s) - p * p * bend)
    shortfall = (1 + 1 / (s + z)) / (1 + s) + z * p * p * bend
    return log_mean, ratio, shortfall


def sphere_bessel(dim: int, kappa: Tensor) -> SphereBessel:
    """Compute M(kappa) and its derivatives on the sphere in R^dim; no gradient is tracked.

    Parameters
    ----------
    dim : int, at least 2
    kappa : Tensor, not negative and finite

    Returns
    -------
    SphereBessel
        In float64 (float32 on devices without it), whatever the dtype of kappa.
    """
    x, log_mean, ratio, shortfall = _lowered(dim, kappa)
    # Riccati's equation; ratio / x from x = 0 on, by the power series' first two terms.
    below = x < 1e-3
    per_x = torch.where(below, 1 / dim - x * x / (dim * dim * (dim + 2)), ratio / x.clamp(min=1e-3))
    slope = shortfall * (2 - shortfall) - (dim - 1) * per_x
    return SphereBessel(log_mean, ratio, shortfall, slope.clamp(min=0.0))


def _lowered(
    dim: int, kappa: Tensor, *, mean: bool = True, length: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return kappa in float64, log M - kappa, A and 1 - A, by taking a high order down.

    Without ``mean`` the first, and without ``length`` the two others, stay at the high order's
    values: most callers need one of them, and the steps down are what takes the time.
    """
    x = kappa.detach().to(torch.float32 if kappa.device.type == "mps" else torch.float64)
    nu = dim / 2 - 1
    raised = max(0, math.ceil(_ORDER - nu))
    log_mean, ratio, shortfall = _high_order(nu + raised, x)
    turn = max(1.0, nu)  # below it the ratio is the accurate one, above it the shortfall
    per_safe = x.clamp(min=turn).reciprocal()
    product, buffer = torch.ones_like(x), torch.empty_like(x)
    for step in range(raised, 0, -1):
        twice = 2 * (nu + step)
        factor = torch.addcmul(buffer.fill_(twice), x, ratio)
        ratio = x / factor
        if mean:
            product.mul_(factor.div_(twice))
        if length:
            lead = torch.mul(per_safe, twice).sub_(shortfall)
            shortfall = lead / (1 + lead)
    if mean:
        log_mean = log_mean + torch.log(product)
    if length:
        large = x >= turn
        shortfall = torch.where(large, shortfall, 1 - ratio)
        ratio = torch.where(large, 1 - shortfall, ratio)
    return x, log_mean, ratio, shortfall


def log_mean_of(dim: int, kappa: Tensor) -> Tensor:
    """Return `sphere_bessel`'s ``log_mean`` alone, in less time."""
    return _lowered(dim, kappa, length=False)[1]


def shortfall_of(dim: int, kappa: Tensor) -> Tensor:
    """Return `sphere_bessel`'s ``shortfall`` alone, in less time."""
    return _lowered(dim, kappa, mean=False)[3]


class _LogMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kappa: Tensor, dim: int) -> Tensor:
        ctx.dim = dim
        ctx.save_for_backward(kappa)
        return log_mean_of(dim, kappa).to(kappa.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (kappa,) = ctx.saved_tensors
        return -grads[0] * shortfall(kappa, ctx.dim), None


class _Shortfall(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kappa: Tensor, dim: int) -> Tensor:
        found = sphere_bessel(dim, kappa)
        ctx.save_for_backward(found.slope.to(kappa.dtype))
        return found.shortfall.to(kappa.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return -grads[0] * ctx.saved_tensors[0], None


def log_mean_exp(kappa: Tensor, dim: int) -> Tensor:
    """Return log M(kappa) - kappa, differentiable twice: minus the log of exp(kappa) over M."""
    return _LogMean.apply(kappa, dim)


def shortfall(kappa: Tensor, dim: int) -> Tensor:
    """Return 1 - A(kappa), one minus the mean resultant length, differentiable once."""
    return _Shortfall.apply(kappa, dim)


def log_ive(order: float | int, kappa: Tensor) -> Tensor:
    """Return the log of I_order(kappa) exp(-kappa) for orders -1/2 < order, a multiple of 1/2.

    Differentiable; at kappa = 0 it is 0 for order 0 and minus infinity above.

    Examples
    --------
    >>> round(float(log_ive(0.0, torch.tensor(1.0, dtype=torch.float64))), 6)
    -0.764086
    """
    power = torch.xlogy(torch.full_like(kappa, order), kappa / 2)
    return log_mean_exp(kappa, round(2 * order + 2)) + power - math.lgamma(order + 1)
