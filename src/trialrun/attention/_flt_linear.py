"""Normalised linear attention over sized features: all at once, in chunks, or a token at a time.

Keys carry log sizes b_j. Sums over keys are kept relative to the largest b so far, in causal mode
the running one, so that neither value nor rounding of an output depends on later tokens. Within a
chunk the products q_i . k_j are formed (a square of ``CHUNK`` tokens) and weighted by
exp(b_j - b_max(i)), at most 1; across chunks a state of constant size is handed on. Queries need
no log sizes: they cancel between numerator and denominator.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trialrun.attention._flt_features import NOTHING, Sized

CHUNK = 128
LEAST = 1e-30


class Sums(NamedTuple):
    """What past keys leave: sum of k (v, 1)^T exp(b - peak), and peak.

    Shapes (batch, heads, features, value + 1) and (batch, heads).
    """

    total: Tensor
    peak: Tensor


def no_sums(query: Tensor, value: Tensor) -> Sums:
    """Return the sums of no keys at all."""
    batch, heads, _, features = query.shape
    total = query.new_zeros(batch, heads, features, value.shape[-1] + 1)
    return Sums(total, query.new_full((batch, heads), NOTHING))


def _with_ones(value: Tensor) -> Tensor:
    return torch.cat((value, torch.ones_like(value[..., :1])), dim=-1)


def _normalised(total: Tensor) -> Tensor:
    """Divide by the last column; a query whose weights all vanish gets 0.

    Weights are relative to the largest that features can give, so sums below ``LEAST`` mean that
    no key shares a feature with the query; dividing by them would overflow on the way back.
    """
    weight = total[..., -1:]
    return total[..., :-1] / torch.where(weight > LEAST, weight, torch.ones_like(weight))


def add_keys(key: Sized, value: Tensor, past: Sums) -> Sums:
    """Return the sums with these keys added; their peak is one of its batch row and head alone."""
    peak = torch.maximum(past.peak, key.log_size.amax(-1))
    kept = past.total * (past.peak - peak).exp()[..., None, None]
    mine = key.values * (key.log_size - peak.unsqueeze(-1)).exp().unsqueeze(-1)
    return Sums(kept + mine.transpose(-1, -2) @ _with_ones(value), peak)


def look(query: Tensor, sums: Sums) -> Tensor:
    """Let every query see all the keys in the sums."""
    return _normalised(query @ sums.total)


def attend_causal(query: Tensor, key: Sized, value: Tensor, past: Sums) -> tuple[Tensor, Sums]:
    """Let every query see the keys up to its own and those in ``past``, in time linear in length.

    Returns the outputs, and the sums with these keys added.
    """
    time = query.shape[2]
    if not time:
        return value, past
    chunk = min(CHUNK, time)
    spare = -time % chunk
    if spare:
        query, value = (torch.nn.functional.pad(x, (0, 0, 0, spare)) for x in (query, value))
        key = Sized(
            torch.nn.functional.pad(key.values, (0, 0, 0, spare)),
            torch.nn.functional.pad(key.log_size, (0, spare), value=NOTHING),
        )
    running = torch.maximum(key.log_size.cummax(-1).values, past.peak.unsqueeze(-1))
    cut = (-1, chunk)
    query, keys, wide = (x.unflatten(2, cut) for x in (query, key.values, _with_ones(value)))
    size, top = key.log_size.unflatten(2, cut), running.unflatten(2, cut)
    ends = top[..., -1]
    starts = torch.cat((past.peak.unsqueeze(-1), ends[..., :-1]), dim=-1)

    own = (keys * (size - ends.unsqueeze(-1)).exp().unsqueeze(-1)).transpose(-1, -2) @ wide
    before, last = _hand_on(own, past.total, (starts - ends).exp())
    out = (query @ before) * (starts.unsqueeze(-1) - top).exp().unsqueeze(-1)

    later = torch.ones(chunk, chunk, dtype=torch.bool, device=query.device).triu(1)
    gap = (size.unsqueeze(-2) - top.unsqueeze(-1)).masked_fill(later, -torch.inf)
    out = out + ((query @ keys.transpose(-1, -2)) * gap.exp()) @ wide
    return _normalised(out).flatten(2, 3)[:, :, :time], Sums(last, ends[..., -1])


def _hand_on(own: Tensor, first: Tensor, shrink: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums before each chunk, and after the last."""
    state, states = first, []
    for part, factor in zip(own.unbind(2), shrink.unbind(2), strict=True):
        states.append(state)
        state = state * factor[..., None, None] + part
    return torch.stack(states, dim=2), state
