"""Two ways to attend to latents, and the query length at which one becomes cheaper.

With ``d_c``, ``d_n``, ``d_v`` the widths of the latent, of a key's unrotated part and of a value,
count the products of one head, q new and s cached tokens (the rotary part costs both ways alike):
expanding first takes E s + q s (d_n + d_v) with E = d_c (d_n + d_v), absorbing takes
E q + 2 q s d_c. Absorbing is cheaper exactly where 1/q > 1/s + (2 d_c - d_n - d_v)/E, whatever the
number of heads. For a long cache that is q < E/(2 d_c - d_n - d_v), 171 tokens at DeepSeek's
widths; where 2 d_c <= d_n + d_v the latent is so narrow that absorbing is always cheaper, and no
widths make it never so. A causal triangle among the new tokens favours neither and is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from trialrun.attention import _mla_stack  # noqa: F401

# isort: split
import torch
from torch import Tensor

BLOCK_SCORES = 4_194_304
"""Scores held at a time without autograd: 16 MiB of float32."""


class Mixed(NamedTuple):
    """Latents mixed by attention (batch, heads, query, rank), and the weights where whole."""

    latent: Tensor
    weights: Tensor | None


def crossover_of(rank: int, nope: int, value: int, cached: int | float = math.inf) -> float:
    """Return the number of new tokens below which absorbing takes fewer products."""
    expanding = rank * (nope + value)
    inverse = (2 * rank - nope - value) / expanding + (1 / cached if cached else math.inf)
    return 1 / inverse if inverse > 0 else math.inf


def absorbing_is_cheaper(rank: int, nope: int, value: int, *, query: int, cached: int) -> bool:
    """Tell whether ``query`` new tokens on ``cached`` ones, themselves included, are absorbed."""
    return query < crossover_of(rank, nope, value, cached)


def per_head(up: Tensor, heads: int, nope: int) -> tuple[Tensor, Tensor]:
    """Split an up-projection (heads * (nope + value), rank) into key and value parts per head."""
    split = up.unflatten(0, (heads, -1))
    return split[:, :nope], split[:, nope:]


def as_given(x: Tensor) -> AbstractContextManager[object]:
    """Leave dtypes alone: autocast would round float32 scores, and refuses mixed products."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def into_latent(q_nope: Tensor, up_key: Tensor) -> Tensor:
    """Move queries (batch, heads, query, nope) into the latent's space."""
    batch, _, time, _ = q_nope.shape
    rows = q_nope.transpose(0, 1).flatten(1, 2)
    with as_given(rows):
        moved = torch.bmm(rows, up_key.to(rows.dtype))
    return moved.unflatten(1, (batch, time)).transpose(0, 1)


def out_of_latent(mixed: Tensor, up_value: Tensor) -> Tensor:
    """Turn mixed latents (batch, heads, query, rank) into each head's values."""
    batch, _, time, _ = mixed.shape
    rows = mixed.transpose(0, 1).flatten(1, 2)
    with as_given(rows):
        out = torch.bmm(rows, up_value.to(rows.dtype).transpose(1, 2))
    return out.unflatten(1, (batch, time)).transpose(0, 1)


def mix_latents(
    q: tuple[Tensor, Tensor],
    cache: tuple[Tensor, Tensor],
    *,
    scale: float,
    mask: Tensor | None = None,
    sinks: Tensor | None = None,
    whole: bool = False,
) -> Mixed:
    """Attend as one key head shared by all query heads, in float32 at least.

    ``q`` holds latent and rotary queries (batch, heads, query, .), ``cache`` latents and rotary
    keys (batch, key, .). ``mask`` (batch or 1, heads or 1, query, key) is boolean, True where a
    key is seen, or is added to the scores; a query that sees no key by a boolean mask gives 0.
    ``sinks`` (heads,) are scores of keys without value. ``whole`` keeps the weights.
    """
    with as_given(q[0]):
        return _mixed(q, cache, scale, mask, sinks, whole)


def _mixed(
    q: tuple[Tensor, Tensor],
    cache: tuple[Tensor, Tensor],
    scale: float,
    mask: Tensor | None,
    sinks: Tensor | None,
    whole: bool,
) -> Mixed:
    batch, heads, time, _ = q[0].shape
    total = cache[0].shape[1]
    kind = torch.float64 if q[0].dtype == torch.float64 else torch.float32
    rows = [(part.to(kind) * scale).flatten(1, 2) for part in q]
    size = max(64, BLOCK_SCORES // (batch * heads * time))

    def score(start: int, stop: int) -> tuple[Tensor, Tensor]:
        latent, turned = (part[:, start:stop].to(kind) for part in cache)
        scores = torch.bmm(rows[0], latent.transpose(1, 2))
        if turned.shape[-1]:
            scores.baddbmm_(rows[1], turned.transpose(1, 2))
        if mask is not None:
            _hide(scores.unflatten(1, (heads, time)), mask[..., start:stop])
        return scores, latent

    weights = None
    if whole or (torch.is_grad_enabled() and any(x.requires_grad for x in (*q, *cache))):
        scores, latent = score(0, total)
        lse = scores.logsumexp(-1, keepdim=True) if sinks is not None else None
        weights = scores.softmax(-1)
        mixed = torch.bmm(weights, latent)
    else:
        mixed, lse = _in_blocks(score(n, min(n + size, total)) for n in range(0, total, size))
    factor = _factor(lse, mask, sinks, (batch, heads, time))
    found = [mixed, weights] if whole else [mixed]
    shaped = [x.unflatten(1, (heads, time)) for x in found if x is not None]
    shaped = [x * factor for x in shaped] if factor is not None else shaped
    return Mixed(shaped[0], shaped[1] if whole else None)


def _hide(scores: Tensor, mask: Tensor) -> None:
    """Take from scores, in place, what a mask hides."""
    lowest = torch.finfo(scores.dtype).min
    # Finite numbers keep a query without any key, or a block without any, free of NaN.
    if mask.dtype == torch.bool:
        scores.masked_fill_(~mask, lowest)
    else:
        scores += mask.to(scores.dtype).clamp(min=lowest / 2)


def _in_blocks(blocks: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mix block after block, with a running maximum, so that few scores are held at a time."""
    peak, total, mixed = _block(*next(blocks))
    for block in blocks:
        top, more, part = _block(*block)
        new = torch.maximum(peak, top)
        old_share, new_share = (peak - new).exp_(), (top - new).exp_()
        total = total * old_share + more * new_share
        mixed = mixed * old_share + part * new_share
        peak = new
    return mixed / total, peak + total.log()


def _block(scores: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    peak = scores.amax(-1, keepdim=True)
    part = scores.sub_(peak).exp_()
    return peak, part.sum(-1, keepdim=True), torch.bmm(part, keys)


def _factor(
    lse: Tensor | None, mask: Tensor | None, sinks: Tensor | None, shape: tuple[int, int, int]
) -> Tensor | None:
    """Return what a query's output is multiplied with: 0 without a key, less beside a sink."""
    factor = None
    if sinks is not None:
        assert lse is not None
        factor = torch.sigmoid(lse.reshape(*shape, 1) - sinks.to(lse.dtype).reshape(1, -1, 1, 1))
    if mask is not None and mask.dtype == torch.bool:
        seen = mask.any(-1, keepdim=True)
        factor = seen if factor is None else factor * seen
    return factor
