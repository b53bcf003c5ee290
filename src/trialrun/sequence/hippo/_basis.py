"""What a memory's numbers stand for: the basis functions, as functions of age."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from trialrun.sequence.hippo._checks import Number
from trialrun.sequence.hippo._transition import (
    frequencies,
    laguerre_log_norm,
    laguerre_scale,
)

READABLE = ("legs", "legt", "lmu", "lagt", "glagt", "fout")


def legendre(x: Float[Tensor, " points"], order: int) -> Float[Tensor, "points order"]:
    """Return the Legendre polynomials P_0, ..., P_{order-1} at points of [-1, 1]."""
    columns = [torch.ones_like(x), x]
    for n in range(1, order - 1):
        columns.append(((2 * n + 1) * x * columns[n] - n * columns[n - 1]) / (n + 1))
    return torch.stack(columns[:order], dim=-1)


def laguerre(
    y: Float[Tensor, " points"], order: int, alpha: Number
) -> Float[Tensor, "points order"]:
    """Return generalised Laguerre polynomials times exp(-y / 2), at points y >= 0.

    The factor is part of the recurrence's start, so that large y do not overflow.
    """
    weight = torch.exp(-0.5 * y)
    columns = [weight, (1 + alpha - y) * weight]
    for n in range(1, order - 1):
        ahead = (2 * n + 1 + alpha - y) * columns[n] - (n + alpha) * columns[n - 1]
        columns.append(ahead / (n + 1))
    return torch.stack(columns[:order], dim=-1)


def reading(
    measure: str,
    order: int,
    ages: Float[Tensor, " points"],
    *,
    scaled: bool,
    alpha: Number = 0.0,
    beta: Number = 1.0,
) -> Float[Tensor, "points order"]:
    """Return the matrix that turns a state into the input at the given ages, in float64.

    Ages are in the measure's unit of time; for scaled ``legs`` they are fractions of the whole
    past.
    """
    ages = ages.to(torch.float64)
    if measure in ("legs", "legt"):
        # Scaled, and in a window, the place is linear in age; at a fixed step LegS bends it.
        place = 1 - ages if scaled or measure == "legt" else torch.exp(-ages)
        return legendre(2 * place - 1, order) * torch.sqrt(2 * torch.arange(order).double() + 1)
    if measure == "lmu":
        return legendre(2 * ages - 1, order)
    if measure == "lagt":
        return laguerre(ages, order, 0.0) / beta
    if measure == "glagt":
        norm = torch.exp(-laguerre_log_norm(order, alpha)) / laguerre_scale(alpha, beta)
        tilt = ages**alpha * torch.exp(0.5 * beta * ages)
        return laguerre(ages, order, alpha) * tilt[:, None] * norm
    turn = 2 * math.pi * frequencies(order) * ages[:, None]
    wave = math.sqrt(2) * torch.where(torch.arange(order) % 2 == 0, turn.cos(), turn.sin())
    wave[:, 0] = 1.0
    return wave


def longest_age(measure: str, order: int) -> float:
    """Return the age, in units of time, up to which a measure's basis can be trusted to say much.

    A window ends at 1; exponentially decaying memories follow about as far as their highest
    polynomial oscillates.
    """
    if measure in ("legt", "lmu", "fout"):
        return 1.0
    return float(order) if measure in ("lagt", "glagt") else 2 * math.log(order + 1)
