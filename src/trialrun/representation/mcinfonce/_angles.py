"""Angles from a direction by any density, and points at these angles."""

from __future__ import annotations

import math
from collections.abc import Callable

from trialrun.representation.mcinfonce import _stack  # noqa: F401

# isort: split
import torch
from torch import Tensor
from torch.nn import functional as F

_GRID = 4096


class Angles:
    """Draws of angles by the inverse of tabulated distribution functions, one per row."""

    def __init__(self, dim: int, log_density: Callable[[Tensor], Tensor]) -> None:
        self.angle = torch.linspace(0, math.pi, _GRID + 1, dtype=torch.float64)
        middle = 0.5 * (self.angle[1:] + self.angle[:-1])
        log = torch.atleast_2d(log_density(middle) + (dim - 2) * torch.log(torch.sin(middle)))
        mass = torch.exp(log - log.amax(-1, keepdim=True)).cumsum(-1)
        self.cdf = F.pad(mass / mass[:, -1:], (1, 0))
        # One rising line of all rows: row r's function lies between r and r + 1.
        self.ladder = (self.cdf + torch.arange(len(self.cdf))[:, None]).reshape(-1)

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw from the one density there is."""
        row = torch.zeros(math.prod(shape), dtype=torch.long)
        return self.draw_row(row, generator).reshape(shape)

    def draw_row(self, row: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one angle from the density of every row number in ``row`` (n,)."""
        u = torch.rand(len(row), generator=generator, dtype=torch.float64)
        cell = torch.searchsorted(self.ladder, u + row, right=True) - row * (_GRID + 1)
        cell = cell.clamp(1, _GRID)
        low, high = self.cdf[row, cell - 1], self.cdf[row, cell]
        part = ((u - low) / (high - low).clamp(min=1e-300)).clamp(0.0, 1.0)
        return self.angle[cell - 1] + part * (math.pi / _GRID)


def turned(center: Tensor, angle: Tensor, generator: torch.Generator) -> Tensor:
    """Return points at the given angles from ``center`` (..., dim), otherwise uniform."""
    n = torch.randn(center.shape, generator=generator, dtype=torch.float64)
    n = n - (n * center).sum(-1, keepdim=True) * center
    return torch.cos(angle)[..., None] * center + torch.sin(angle)[..., None] * F.normalize(
        n, dim=-1
    )
