"""The checks of a call to ``rerope_attention``, and calls at positions of the user's own."""

from __future__ import annotations

import torch
from torch import Tensor

from trialrun.attention._rectified import Row, Scheme, attend_run
from trialrun.attention._scattered import attend_scattered
from trialrun.blocks.rotary import Rotary
from trialrun.core.errors import UsageError


def check_call(
    q: Tensor,
    k: Tensor,
    rotary: Rotary,
    positions: Tensor | None,
    logn_train_len: int | None,
    padding: Tensor | None,
) -> None:
    """Raise unless a call's settings fit its tensors, whose own shapes are already checked."""
    if not isinstance(rotary, Rotary):
        raise UsageError(f"rotary must be a trialrun Rotary, got {type(rotary).__name__}")
    if rotary.dim > q.shape[3]:
        raise UsageError(f"rotary turns {rotary.dim} features, and q has only {q.shape[3]}")
    batch, keys = k.shape[0], k.shape[2]
    if positions is not None and tuple(positions.shape) not in ((keys,), (1, keys), (batch, keys)):
        raise UsageError(
            f"positions must give every key's position, shape ({keys},) or ({batch}, {keys}), "
            f"got {tuple(positions.shape)}"
        )
    if logn_train_len is not None and logn_train_len < 2:
        raise UsageError(f"logn_train_len must be at least 2 tokens, got {logn_train_len}")
    if padding is not None and (padding.dtype != torch.bool or padding.shape != (batch, keys)):
        raise UsageError(
            f"padding must be bool of shape ({batch}, {keys}), True for real tokens, got "
            f"{padding.dtype} of shape {tuple(padding.shape)}"
        )


def attend_at_positions(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scheme: Scheme,
    positions: Tensor,
    rows: tuple[Row, ...] | None,
) -> Tensor:
    """Attend at given positions (batch, keys): runs of consecutive ones, or any."""
    steps = positions.diff(dim=1) == 1
    offset = k.shape[2] - q.shape[2]
    if rows is None and bool(steps.all()) and bool((positions[:, 0] == positions[0, 0]).all()):
        return attend_run(q, k, v, scheme, position=float(positions[0, 0]))
    parts = []
    for b in range(k.shape[0]):
        one = slice(b, b + 1)
        row = rows[b] if rows is not None else Row(0, k.shape[2])
        at = row.take(positions[one, None, :, None])[0, 0, :, 0]
        mine, keys, values = row.take(q[one], offset), row.take(k[one]), row.take(v[one])
        if not mine.shape[2]:
            found = mine.new_zeros((*mine.shape[:3], v.shape[3]))
        elif bool((at.diff() == 1).all()):
            found = attend_run(mine, keys, values, scheme, position=float(at[0]))
        else:
            found = attend_scattered(mine, keys, values, at, scheme)
        parts.append(row.put(q[one], found, offset))
    return torch.cat(parts)
