"""How far apart the means of two posteriors of one latent lie, by sampling.

With uniform latents, the latent z of a query is spread around its mean by kappa, and the mean m of
another input of the same latent is spread around z by that input's own concentration. The cosine of
both means depends on the two concentrations alone: w1 w2 + sqrt(1 - w1^2) sqrt(1 - w2^2) t, with w1
and w2 the cosines of the two steps and t one coordinate of a uniform direction around z.
"""

from __future__ import annotations

import math
from typing import Any

from trialrun.representation.mcinfonce import _stack  # noqa: F401

# isort: split
import torch
from torch import Tensor

from trialrun.core.seeds import split
from trialrun.representation.mcinfonce._cosines import draw_half_gap, symmetric_beta
from trialrun.representation.mcinfonce._draws import whole
from trialrun.representation.mcinfonce._vmf import VonMisesFisher

_KNOTS = 32
_LEAST, _LARGEST = 1e-6, 1e12
"""Beyond these a concentration is uniform, or a point, to rounding."""


def check_spread(kappa: Any, gallery: Tensor) -> Tensor:
    """Return the gallery's concentrations, or raise unless there is a good one for every item."""
    if not isinstance(kappa, Tensor):
        raise ValueError(  # noqa: TRY004 - one kind of error for all input
            f"gallery_kappa must be a torch tensor, got {type(kappa).__name__}"
        )
    if tuple(kappa.shape) != (len(gallery),):
        raise ValueError(
            f"gallery_kappa must have shape ({len(gallery)},) like the gallery's rows, "
            f"got {tuple(kappa.shape)}"
        )
    if not bool((kappa >= 0).all()):
        raise ValueError("gallery_kappa must be at least 0: see its NaN or negative number")
    return kappa


def _knots(kappa: Tensor) -> Tensor:
    """Return rising concentrations: all that occur, or evenly spaced logs where they are many."""
    found = torch.unique(kappa)
    if len(found) <= _KNOTS:
        return found
    ends = math.log(float(found[0])), math.log(float(found[-1]))
    return torch.linspace(*ends, _KNOTS, dtype=kappa.dtype, device=kappa.device).exp()


def _between(logs: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Read values (queries, knots) off straight lines in the log of the concentration."""
    if len(knots) == 1:
        return values.expand(len(values), len(logs))
    at = knots.log()
    right = torch.searchsorted(at, logs).clamp(1, len(at) - 1)
    part = ((logs - at[right - 1]) / (at[right] - at[right - 1])).clamp(0.0, 1.0)
    return torch.lerp(values[:, right - 1], values[:, right], part)


def _coordinate(dim: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one coordinate of uniform directions in dim - 1 dimensions, one for each of ``like``."""
    if dim == 2:
        sign = torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)
        return torch.where(sign < 0.5, -1.0, 1.0).to(like.dtype)
    return 2 * symmetric_beta(like.shape, 0.5 * (dim - 2), like, generator) - 1


def joint_gap_quantile(
    query: VonMisesFisher, kappa: Tensor, probability: float, n_samples: int, seed: int
) -> Tensor:
    """Return the g (queries, items) below which 1 - cos of both means lies with this probability.

    The order statistic is the one that is right on average over draws, not in the limit alone.
    """
    samples = whole("n_samples", n_samples, low=100)
    generator = torch.Generator(query.mu.device).manual_seed(
        split(whole("seed", seed, low=0), "joint gap")
    )
    if not len(kappa):
        return query.mu.new_zeros(len(query.mu), 0)
    mine, theirs = (k.to(query.mu).clamp(_LEAST, _LARGEST) for k in (query.kappa, kappa))
    mine, theirs = mine.double(), theirs.double()
    knots = _knots(theirs)
    wide = knots[:, None].expand(len(knots), samples)
    second = draw_half_gap(query.dim, wide, generator)
    turn = 2 * torch.sqrt(second * (1 - second)) * _coordinate(query.dim, wide[0], generator)
    place = min(samples, math.ceil(probability * (samples + 1)))
    rows = []
    for one in mine:
        first = draw_half_gap(query.dim, one.expand(samples), generator)
        # (1 - cos) / 2 of both steps, in a form that keeps its digits where they are small.
        both = torch.addcmul(first + second * (1 - 2 * first), turn, (first * (1 - first)).sqrt())
        rows.append(2 * both.kthvalue(place).values)
    found = torch.stack(rows) if rows else knots.new_zeros(0, len(knots))
    return _between(theirs.log(), knots, found).to(query.mu.dtype)
