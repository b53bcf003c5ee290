"""Rectified attention at positions with gaps or repeats, where index and distance part ways.

Both rotations are scored for every causal pair and the right one is kept, a block of queries at a
time. It costs twice the products of the two-pass form and no quadratic memory: with gradients,
each block is computed again on the way back.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trialrun.attention._rectified import Scheme, logn_factor

ROWS = 128


def attend_scattered(q: Tensor, k: Tensor, v: Tensor, at: Tensor, scheme: Scheme) -> Tensor:
    """Attend at any positions ``at`` (keys,); the queries are the last of the keys."""
    rule, rotary = scheme.rule, scheme.rotary
    kind = torch.float64 if q.dtype == torch.float64 else torch.float32
    at = at.to(kind)
    offset = k.shape[2] - q.shape[2]
    mine = at[offset:]
    if scheme.train_len is not None:
        q = (q * logn_factor(mine, scheme.train_len).unsqueeze(-1)).to(q.dtype)
    sides = (
        (rotary(q, mine), rotary(k, at)),
        (rotary(q, rule.query_angle(mine)), rotary(k, rule.key_angle(at))),
    )
    blocks = []
    for first in range(0, q.shape[2], ROWS):
        rows = slice(first, first + ROWS)
        seen = k.shape[2] if first + ROWS >= q.shape[2] else offset + first + ROWS
        parts = [(a[:, :, rows], b[:, :, :seen]) for a, b in sides]
        arguments = (*parts[0], *parts[1], v[:, :, :seen], mine[rows], at[:seen])
        settings = (offset + first, rule.window)
        blocks.append(checkpoint(_block, *arguments, *settings, use_reentrant=False))
    return torch.cat(blocks, dim=2)


def _block(
    near_q: Tensor,
    near_k: Tensor,
    far_q: Tensor,
    far_k: Tensor,
    v: Tensor,
    mine: Tensor,
    at: Tensor,
    first: int,
    window: int,
) -> Tensor:
    kind = torch.float64 if v.dtype == torch.float64 else torch.float32
    heads = (near_k.shape[1], -1)

    def scores(a: Tensor, b: Tensor) -> Tensor:
        return a.unflatten(1, heads).to(kind) @ b.unsqueeze(2).to(kind).transpose(-1, -2)

    index = torch.arange(len(at), device=v.device)
    later = index > torch.arange(first, first + len(mine), device=v.device)[:, None]
    far = mine[:, None] - at >= window
    both = torch.where(far, scores(far_q, far_k), scores(near_q, near_k))
    both = (both * near_q.shape[-1] ** -0.5).masked_fill(later, float("-inf"))
    out = both.softmax(-1) @ v.unsqueeze(2).to(kind)
    return out.flatten(1, 2).to(v.dtype)
