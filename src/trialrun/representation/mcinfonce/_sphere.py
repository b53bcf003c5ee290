"""The unit sphere: its area, rows brought to length 1, directions around a mean, and checks."""

from __future__ import annotations

import math
from typing import Any

from trialrun.representation.mcinfonce import _stack  # noqa: F401

# isort: split
import numpy as np
import torch
from torch import Tensor


def log_area(dim: int) -> float:
    """Return the log of the area of the unit sphere in R^dim."""
    return math.log(2) + 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim)


def normalised(points: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows brought to length 1, and which of them are finite and not zero.

    The largest entry is divided out first, lest squares of 1e-30 or 1e30 leave float32. It carries
    no gradient: the direction does not depend on it.
    """
    scale = points.detach().abs().amax(-1, keepdim=True)
    scaled = points / scale
    good = torch.isfinite(scale) & (scale > 0)
    return scaled / scaled.norm(dim=-1, keepdim=True), good.squeeze(-1)


def broadcast(*shapes: torch.Size) -> torch.Size:
    """Return the shape that shapes broadcast to. Torch's own takes longer than a draw."""
    return torch.Size(np.broadcast_shapes(*shapes))


def checked(mu: Any, kappa: Any) -> tuple[Tensor, Tensor]:
    """Return mu and kappa as tensors of one dtype, once their shapes go together."""
    if not isinstance(mu, Tensor) or not mu.is_floating_point() or mu.ndim < 1 or mu.shape[-1] < 2:
        got = f"shape {tuple(mu.shape)}, {mu.dtype}" if isinstance(mu, Tensor) else repr(mu)
        raise ValueError(
            f"mu must be a floating-point tensor of shape (..., dim) with dim at least 2, got {got}"
        )
    try:
        kappa = torch.as_tensor(kappa, dtype=mu.dtype, device=mu.device)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"kappa must be a tensor or a number, got {kappa!r}") from None
    try:
        broadcast(mu.shape[:-1], kappa.shape)
    except ValueError:
        raise ValueError(
            f"kappa must have the shape of mu without its last axis, {tuple(mu.shape[:-1])}, "
            f"got {tuple(kappa.shape)}: squeeze a trailing 1"
        ) from None
    return mu, kappa


def around(
    shape: torch.Size, dim: int, like: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Draw vectors of dim - 1 coordinates, uniform in direction, with their lengths."""
    normal = torch.randn(
        (*shape, dim - 1), generator=generator, dtype=like.dtype, device=like.device
    )
    if dim == 2:
        normal = torch.where(normal < 0, -1.0, 1.0).to(normal.dtype)
        return normal, normal[..., 0].abs()
    return normal, normal.norm(dim=-1).clamp(min=torch.finfo(normal.dtype).tiny)
