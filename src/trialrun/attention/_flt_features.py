"""Random feature maps whose numbers stay in range, token by token.

A feature vector is kept as ``values * exp(log_size)``, the largest exponent of each token taken
out, so that no token's numbers depend on another's: not on its batch mates' and not on the
future's. The sizes carry no gradient, because they cancel wherever they are put back.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MAPS = ("softmax", "relu")
RELU_FLOOR = 1e-3
NOTHING = -1e30
"""The log size of a token that is not there."""


class Sized(NamedTuple):
    """Features ``values * exp(log_size)``: (batch, heads, time, features), (batch, heads, time)."""

    values: Tensor
    log_size: Tensor


def orthogonal_rows(rows: int, width: int, generator: torch.Generator) -> Tensor:
    """Draw standard normal rows that are orthogonal in blocks of ``width`` (float64)."""
    blocks = []
    for start in range(0, rows, width):
        plain = torch.randn(width, width, generator=generator, dtype=torch.float64)
        # The signs of R make Q uniform over rotations, as QR alone does not.
        turned, upper = torch.linalg.qr(plain)
        turned = turned * upper.diagonal().sign()
        blocks.append(turned[: min(width, rows - start)])
    lengths = torch.randn(rows, width, generator=generator, dtype=torch.float64).norm(dim=1)
    return torch.cat(blocks) * lengths[:, None]


def softmax_features(logits: Tensor, length: Tensor) -> Sized:
    """Return positive features exp(logits - length / 2); ``length`` is the vector's, squared."""
    exponents = logits - length.unsqueeze(-1) / 2
    top = exponents.detach().amax(-1)
    return Sized((exponents - top.unsqueeze(-1)).exp(), top)


def relu_features(logits: Tensor) -> Sized:
    """Return max(logits, 0) and a small number, so that no token is without weight."""
    return Sized(logits.relu() + RELU_FLOOR, torch.zeros_like(logits[..., 0]))


def leave_out(features: Sized, real: Tensor) -> Sized:
    """Return features without weight wherever ``real`` (batch, time) is false."""
    seen = real.unsqueeze(1)
    return Sized(
        features.values * seen.unsqueeze(-1),
        features.log_size.masked_fill(~seen, NOTHING),
    )
