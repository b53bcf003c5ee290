"""Feed-forward bodies that look back: a causal Transformer and SNAIL.

Both map features (batch, time, width) to features of the same shape, and step t sees steps 0 .. t.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

POSITIONS = ("sincos", "alibi", "relative")


def sincos(positions: Float[Tensor, " time"], width: int) -> Float[Tensor, "time width"]:
    """Code positions by sines and cosines of geometric wavelengths up to 10000 steps."""
    half = (width + 1) // 2
    rate = torch.exp(torch.arange(half, device=positions.device) * (-math.log(1e4) / half))
    angle = positions[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=1)[:, :width]


def alibi_bias(heads: int, time: int, device: torch.device) -> Float[Tensor, "heads time time"]:
    """Penalise distance linearly, with slopes in geometric series from 2**(-8/heads) to 2**-8."""
    slope = 2.0 ** (-8.0 / heads * torch.arange(1, heads + 1, device=device))
    step = torch.arange(time, device=device)
    return -slope[:, None, None] * (step[:, None] - step[None, :]).clamp(min=0)


class CausalAttention(nn.Module):
    """Multi-head causal attention whose scores know positions in one of three ways.

    ``sincos`` leaves positions to the input, ``alibi`` adds a linear penalty, and ``relative``
    adds a learned product of the query with the coded distance (dai2019transformerxl).
    """

    def __init__(self, width: int, heads: int, positions: str) -> None:
        super().__init__()
        self.heads, self.positions = heads, positions
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        if positions == "relative":
            self.distance = nn.Linear(width, width, bias=False)
            self.content_bias = nn.Parameter(torch.zeros(heads, 1, width // heads))
            self.distance_bias = nn.Parameter(torch.zeros(heads, 1, width // heads))

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        """Let every step attend to itself and the steps before it."""
        batch, time, width = x.shape
        split = self.qkv(x).view(batch, time, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        if self.positions == "sincos":
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            later = torch.ones(time, time, dtype=torch.bool, device=x.device).triu(1)
            bias, q = self._bias(x, q)
            mask = bias.masked_fill(later, -math.inf)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).reshape(batch, time, width))

    def _bias(self, x: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is added to the scaled scores, and the query that makes the scores."""
        time, width = x.shape[1:]
        if self.positions == "alibi":
            return alibi_bias(self.heads, time, x.device).to(x.dtype), q
        step = torch.arange(time, device=x.device)
        coded = self.distance(sincos(step.to(x.dtype), width))
        keys = coded.view(time, self.heads, -1).transpose(0, 1)  # (heads, distance, head width)
        score = (q + self.distance_bias) @ keys.mT / math.sqrt(q.shape[-1])
        away = (step[:, None] - step[None, :]).clamp(min=0).expand(score.shape)
        return score.gather(3, away), q + self.content_bias


class Transformer(nn.Module):
    """A causal Transformer with layer normalisation after each residual, as in the paper.

    Parameters
    ----------
    width : int
        Features per step, divisible by ``heads``.
    layers, heads, widening : int
        Blocks; heads per block; hidden width of the feed-forward part over ``width``.
    dropout : float in [0, 1)
        Dropped from each block's two updates.
    positions : str
        ``sincos``, ``alibi`` or ``relative``.
    """

    def __init__(
        self, width: int, layers: int, heads: int, widening: int, dropout: float, positions: str
    ) -> None:
        super().__init__()
        self.positions = positions
        self.drop = nn.Dropout(dropout)
        self.attend = nn.ModuleList(CausalAttention(width, heads, positions) for _ in range(layers))
        self.feed = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, widening * width), nn.ReLU(), nn.Linear(widening * width, width)
            )
            for _ in range(layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        """Run all blocks."""
        if self.positions == "sincos":
            step = torch.arange(x.shape[1], device=x.device).to(x.dtype)
            x = x + sincos(step, x.shape[2])
        for i, (attend, feed) in enumerate(zip(self.attend, self.feed, strict=True)):
            x = self.norms[2 * i](x + self.drop(attend(x)))
            x = self.norms[2 * i + 1](x + self.drop(feed(x)))
        return x


class _Dilated(nn.Module):
    """One gated convolution over steps t and t - dilation; its features join the input's."""

    def __init__(self, width: int, features: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.both = nn.Conv1d(width, 2 * features, kernel_size=2, dilation=dilation)

    def forward(self, x: Float[Tensor, "batch width time"]) -> Float[Tensor, "batch wider time"]:
        value, gate = self.both(F.pad(x, (self.dilation, 0))).chunk(2, dim=1)
        return torch.cat([x, torch.tanh(value) * torch.sigmoid(gate)], dim=1)


class _Look(nn.Module):
    """One head of causal attention; what it reads joins the input's features."""

    def __init__(self, width: int, key: int, value: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, key), nn.Linear(width, key)
        self.value = nn.Linear(width, value)

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time wider"]:
        read = F.scaled_dot_product_attention(
            self.query(x), self.key(x), self.value(x), is_causal=True
        )
        return torch.cat([x, read], dim=2)


class SNAIL(nn.Module):
    """Alternate dilated convolutions that reach far back with attention that picks out steps.

    Each of ``layers`` rounds runs convolutions of dilation 1, 2, 4, ... until they reach
    ``reach`` steps back, then one attention; every part adds features to what it read, and a
    last linear map returns to ``width``. Written from mishra2018snail; no code was used.

    Parameters
    ----------
    width : int
        Features per step in and out.
    layers : int
        Rounds.
    features : int
        Features that each convolution and each attention adds.
    reach : int
        Steps back that one round's convolutions cover; attention covers all.
    """

    def __init__(self, width: int, layers: int, features: int, reach: int) -> None:
        super().__init__()
        self.dilated, self.looks = nn.ModuleList(), nn.ModuleList()
        wide = width
        for _ in range(layers):
            convolutions = []
            for power in range(max(1, (reach - 1).bit_length())):
                convolutions.append(_Dilated(wide, features, 2**power))
                wide += features
            self.dilated.append(nn.Sequential(*convolutions))
            self.looks.append(_Look(wide, features, features))
            wide += features
        self.out = nn.Linear(wide, width)

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        """Run all rounds."""
        for dilated, look in zip(self.dilated, self.looks, strict=True):
            x = look(dilated(x.mT).mT)
        return self.out(x)
