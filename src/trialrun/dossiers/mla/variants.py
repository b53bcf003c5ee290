"""Byte models that differ in their attention alone, at caches that are equal where they should be.

All start from the house's byte model; every linear map of an attention starts from a normal
distribution of standard deviation half the inverse root of its inputs, in every variant.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trialrun.attention.mla import MultiHeadLatentAttention
from trialrun.blocks.bytelm import Shape, make_model
from trialrun.blocks.rotary import Rotary
from trialrun.core.seeds import split

VARIANTS = ("mla", "mha", "gqa", "gqa-wide", "gqa-wide-full", "gqa-partial", "frozen")


class GroupedAttention(nn.Module):
    """Grouped-query attention of any head width, whose last ``rope_dim`` features are rotated.

    Parameters
    ----------
    width, heads, kv_heads, head_dim, rope_dim : int
    base : float
    shared : bool
        Take the key for the value, so that a token is cached once: its unrotated features, or
        where all are rotated the key before rotation, which is then what the cache holds.

    Examples
    --------
    >>> attention = GroupedAttention(8, heads=2, kv_heads=1, head_dim=4, rope_dim=2)
    >>> attention(torch.ones(1, 3, 8)).shape
    torch.Size([1, 3, 8])
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        rope_dim: int,
        base: float = 10000.0,
        shared: bool = False,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.plain = head_dim - rope_dim
        self.repeats = heads // kv_heads
        self.rotary = Rotary(rope_dim, base)
        value_dim = self.plain if shared and self.plain else head_dim
        self.q_proj = nn.Linear(width, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.v_proj = None if shared else nn.Linear(width, kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * value_dim, width, bias=False)

    @property
    def cached_values(self) -> int:
        """Values kept of a token."""
        return self.k_proj.out_features + (self.v_proj.out_features if self.v_proj else 0)

    def forward(self, x: Tensor) -> Tensor:
        """Attend causally; ``x`` is (batch, time, width)."""
        positions = torch.arange(x.shape[1], device=x.device)
        q, k = (self._heads(project(x)) for project in (self.q_proj, self.k_proj))
        v = k[..., : self.plain or None] if self.v_proj is None else self._heads(self.v_proj(x))
        q, k = (
            torch.cat(
                (part[..., : self.plain], self.rotary(part[..., self.plain :], positions)), -1
            )
            for part in (q, k)
        )
        k, v = (part.repeat_interleave(self.repeats, dim=1) for part in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class _InPlace(nn.Module):
    """Answer as a transformers decoder layer asks its attention."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        return self.attention(hidden_states), None


def cached_values(shape: Shape) -> dict[str, int]:
    """Return the values that each variant caches per token and layer.

    Examples
    --------
    >>> sizes = cached_values(Shape(width=96, heads=6))
    >>> sizes.pop("mha"), set(sizes.values())
    (192, {32})
    """
    dim = shape.width // shape.heads
    return {name: 2 * (shape.width if name == "mha" else dim) for name in VARIANTS}


def _attention(name: str, shape: Shape) -> nn.Module:
    dim = shape.width // shape.heads
    rope = dim // 2
    if name.startswith("gqa"):
        wide = name.startswith("gqa-wide")
        head = 2 * dim if wide else dim
        partial = name in ("gqa-wide", "gqa-partial")
        return GroupedAttention(
            shape.width,
            heads=shape.heads,
            kv_heads=1,
            head_dim=head,
            rope_dim=rope if partial else head,
            base=shape.base,
            shared=wide,
        )
    return MultiHeadLatentAttention(
        shape.width,
        shape.heads,
        2 * dim - rope,
        nope_dim=dim,
        rope_dim=rope,
        v_dim=dim,
        rope_theta=shape.base,
    )


def make_variant(name: str, shape: Shape, *, seed: int) -> Any:
    """Make an untrained byte model with the named attention."""
    model = make_model(shape, seed=seed)
    if name == "mha":
        return model
    draw = torch.Generator().manual_seed(split(seed, "attention"))
    for layer in model.model.layers:
        attention = _attention(name, shape)
        for module in attention.modules():
            if isinstance(module, nn.Linear):
                spread = 0.5 * module.in_features**-0.5
                nn.init.normal_(module.weight, std=spread, generator=draw)
        if name == "frozen":
            _freeze_latent(attention)
        layer.self_attn = _InPlace(attention)
    return model


def _freeze_latent(attention: Any) -> None:
    down = attention.kv_a_proj_with_mqa.weight
    learned = torch.zeros(len(down), 1)
    learned[attention.kv_rank :] = 1.0
    down.register_hook(lambda gradient: gradient * learned.to(gradient))


def attention_parameters(model: Any) -> int:
    """Count the parameters of one layer's attention."""
    return sum(p.numel() for p in model.model.layers[0].self_attn.parameters())
