"""Banded and shifted causal attention through PyTorch's FlexAttention.

FlexAttention gives a log-sum-exp whose gradient is right on CUDA. On CPU (torch 2.13) it gives
one only when not compiled, which stores the whole score matrix, and has no backward pass there:
use it on CPU to compare, and the ``sdpa`` back end to work.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import (
    AuxRequest,
    BlockMask,
    create_block_mask,
    flex_attention,
)


@lru_cache(maxsize=1)
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)


@lru_cache(maxsize=64)
def _mask(rows: int, keys: int, nearest: int, window: int | None, device: str) -> BlockMask:
    """Query i at key position p = keys - rows + i sees p - nearest - window < j <= p - nearest."""
    offset = keys - rows - nearest

    # Lambdas, because the mask's maker counts its arguments and takes no wrapped function.
    if window is None:
        return create_block_mask(
            lambda _b, _h, i, j: j <= i + offset, None, None, rows, keys, device=device
        )
    return create_block_mask(
        lambda _b, _h, i, j: (j <= i + offset) & (j > i + offset - window),
        *(None, None, rows, keys),
        device=device,
    )


def flex(
    q: Tensor, k: Tensor, v: Tensor, *, nearest: int, window: int | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Return output and log-sum-exp; the queries are the last of the keys.

    Raises
    ------
    ValueError
        If a gradient is wanted on a device where FlexAttention has none.
    """
    wants = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if q.device.type != "cuda" and wants:
        raise ValueError(
            f"backend 'flex' has no gradient on {q.device.type}: choose backend 'sdpa' or 'eager', "
            f"or call it under torch.no_grad()"
        )
    if not wants:
        q, k, v = q.detach(), k.detach(), v.detach()
    mask = _mask(q.shape[2], k.shape[2], nearest, window, str(q.device))
    call = _compiled() if q.device.type == "cuda" else flex_attention
    out, aux = call(
        q,
        k,
        v,
        block_mask=mask,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    return out, aux.lse
