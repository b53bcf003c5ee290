"""Attention kernels that give the log-sum-exp, with a backward pass that takes it back.

A kernel's ``backward`` is handed the output and the log-sum-exp of the *whole* softmax, of which
its own keys may be a part. With P = exp(S - lse) and delta = rowsum(dO * O) the gradient
dS = P * (dP - delta) is right for every part, so parts never need differentiating through their
merge. All kernels see ``causal`` as "query i sees keys 0..i" and share one query's head group
among fewer key heads without repeating the keys.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

Gradients = tuple[Tensor, Tensor, Tensor]


@runtime_checkable
class Kernel(Protocol):
    """One way to score a rectangle or a triangle of pairs."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Return the output and the log-sum-exp of each query."""

    def backward(
        self,
        grad: Tensor,
        qkv: tuple[Tensor, Tensor, Tensor],
        merged: tuple[Tensor, Tensor],
        causal: bool,
        scale: float,
    ) -> Gradients:
        """Return the gradients of q, k and v given the merged output and log-sum-exp."""


class Eager:
    """Plain matrix products: any device, dtype and value width; memory is the score matrix."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Return the output and the log-sum-exp of each query."""
        scores = self._scores(q, k, causal, scale)
        lse = scores.logsumexp(-1)
        weights = (scores - lse.unsqueeze(-1)).exp()
        out = weights @ v.unsqueeze(2).to(weights.dtype)
        return out.flatten(1, 2), lse.flatten(1, 2)

    def backward(
        self,
        grad: Tensor,
        qkv: tuple[Tensor, Tensor, Tensor],
        merged: tuple[Tensor, Tensor],
        causal: bool,
        scale: float,
    ) -> Gradients:
        """Return the gradients of q, k and v given the merged output and log-sum-exp."""
        q, k, v = qkv
        split = (k.shape[1], -1)
        out, lse = (part.unflatten(1, split) for part in merged)
        scores = self._scores(q, k, causal, scale)
        weights = (scores - lse.unsqueeze(-1)).exp()
        grad = grad.unflatten(1, split).to(weights.dtype)
        wide = v.unsqueeze(2).to(weights.dtype)
        dv = (weights.transpose(-1, -2) @ grad).sum(2)
        delta = (grad * out.to(weights.dtype)).sum(-1, keepdim=True)
        ds = weights * (grad @ wide.transpose(-1, -2) - delta) * scale
        dq = (ds @ k.unsqueeze(2).to(weights.dtype)).flatten(1, 2)
        dk = (ds.transpose(-1, -2) @ q.unflatten(1, split).to(weights.dtype)).sum(2)
        return dq, dk, dv

    @staticmethod
    def _scores(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
        kind = torch.float64 if q.dtype == torch.float64 else torch.float32
        grouped = q.unflatten(1, (k.shape[1], -1)).to(kind)
        scores = grouped @ k.unsqueeze(2).to(kind).transpose(-1, -2) * scale
        if causal:
            unseen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(unseen, float("-inf"))
        return scores


class CpuFlash:
    """The tiled CPU kernel behind ``scaled_dot_product_attention``; memory linear in length."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Return the output and the log-sum-exp of each query."""
        if q.shape[2] == 1 and q.shape[1] != k.shape[1]:
            # A group of one-token queries becomes one short query, so keys are read once.
            grouped = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
            out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                grouped, k, v, 0.0, False, scale=scale
            )
            return out.flatten(1, 2).unsqueeze(2), lse.flatten(1, 2).unsqueeze(2)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, scale=scale
        )

    def backward(
        self,
        grad: Tensor,
        qkv: tuple[Tensor, Tensor, Tensor],
        merged: tuple[Tensor, Tensor],
        causal: bool,
        scale: float,
    ) -> Gradients:
        """Return the gradients of q, k and v given the merged output and log-sum-exp."""
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, *qkv, *merged, 0.0, causal, scale=scale
        )


class CudaFlash:
    """The fused CUDA kernel for float16 and bfloat16; memory linear in length.

    Written from the operator's signature and its use for ring attention in PyTorch itself.
    """

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Return the output and the log-sum-exp of each query."""
        k, v = _repeat(k, q), _repeat(v, q)
        found = torch.ops.aten._scaled_dot_product_flash_attention(
            q, k, v, 0.0, causal, False, scale=scale
        )
        return found[0], found[1]

    def backward(
        self,
        grad: Tensor,
        qkv: tuple[Tensor, Tensor, Tensor],
        merged: tuple[Tensor, Tensor],
        causal: bool,
        scale: float,
    ) -> Gradients:
        """Return the gradients of q, k and v given the merged output and log-sum-exp."""
        q, k, v = qkv
        # Without dropout the kernel draws nothing: the two generator words are placeholders.
        nothing = torch.zeros(2, dtype=torch.uint64, device=q.device)
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_backward(
            grad,
            *(q, _repeat(k, q), _repeat(v, q)),
            *merged,
            *(None, None, q.shape[2], k.shape[2]),
            *(0.0, causal, nothing, nothing[:0]),
            scale=scale,
        )
        heads = (k.shape[1], -1)
        return dq, dk.unflatten(1, heads).sum(2), dv.unflatten(1, heads).sum(2)


def _repeat(x: Tensor, q: Tensor) -> Tensor:
    groups = q.shape[1] // x.shape[1]
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def choose_kernel(name: str, q: Tensor, v: Tensor) -> Kernel:
    """Return the kernel called ``name`` (``eager`` or ``sdpa``) for these tensors.

    Raises
    ------
    ValueError
        If ``sdpa`` has no kernel with a log-sum-exp for this device, dtype or value width.
    """
    if name == "eager":
        return Eager()
    same_width = q.shape[-1] == v.shape[-1]
    if q.device.type == "cpu" and same_width:
        return CpuFlash()
    if q.device.type == "cuda" and q.dtype in (torch.float16, torch.bfloat16) and same_width:
        return CudaFlash()
    raise ValueError(
        f"backend 'sdpa' gives no log-sum-exp on {q.device.type} for {q.dtype} with keys of width "
        f"{q.shape[-1]} and values of width {v.shape[-1]}: choose backend 'flex' or 'eager'"
    )
