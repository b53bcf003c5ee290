"""The first-order linear recurrence over time, in parallel, with gradients (blelloch1990prefix).

Written from the definition of an associative scan over pairs: doing (a1, b1) and then (a2, b2) is
doing (a2 a1, a2 b1 + b2). Neighbours are joined, the half as long sequence is scanned, and the
steps between are filled in: about twice the work of the plain loop, in log2(time) rounds. Ours: the
gradient is the same scan backwards in time, so the memory is that of ``a``, ``b`` and the output.
"""

from __future__ import annotations

from typing import Any

from trialrun.core.extras import need

need("torch", extra="sequence")
need("jaxtyping", extra="sequence")

import torch  # noqa: E402
from jaxtyping import Shaped  # noqa: E402
from torch import Tensor  # noqa: E402

_SHORT = 8


def linear_scan(
    a: Tensor,
    b: Shaped[Tensor, "batch time *rest"],
    initial: Tensor | None = None,
) -> Shaped[Tensor, "batch time *rest"]:
    """Return h with ``h[:, t] = a[:, t] * h[:, t - 1] + b[:, t]`` (blelloch1990prefix).

    Products are elementwise. Stable where no ``|a|`` is above 1; where some are, products of many
    steps can overflow though the loop would not. Any gradient, also a second one, is available.

    Parameters
    ----------
    a : tensor that broadcasts to the shape of ``b``
        Factors, real or complex. A time axis of size 1, or none, means the same factor at all
        times, and takes no memory per step.
    b : tensor of shape (batch, time, ...)
        Inputs, real or complex.
    initial : tensor that broadcasts to (batch, ...), or None
        The value before the first step; None is zero.

    Returns
    -------
    tensor of shape (batch, time, ...)
        In the type that ``a``, ``b`` and ``initial`` promote to.

    Raises
    ------
    ValueError
        If something is no tensor, ``b`` has no time axis or no step, or a shape does not broadcast.

    Examples
    --------
    >>> linear_scan(torch.tensor(0.5), torch.ones(1, 4)).tolist()
    [[1.0, 1.5, 1.75, 1.875]]
    """
    for name, value in (("a", a), ("b", b), ("initial", initial)):
        if not isinstance(value, Tensor) and (name != "initial" or value is not None):
            raise ValueError(f"{name} must be a tensor, got {type(value).__name__}")
    if b.ndim < 2 or not b.shape[1]:
        raise ValueError(
            f"b must have shape (batch, time, ...) with at least one step, got {tuple(b.shape)}"
        )
    a = _fitted("a", a, b.shape)
    dtype = torch.promote_types(a.dtype, b.dtype)
    if initial is not None:
        first = (b.shape[0], *b.shape[2:])
        initial = _fitted("initial", initial, first).expand(first)
        dtype = torch.promote_types(dtype, initial.dtype)
        b = b.to(dtype)
        head = b[:, :1] + (a[:, :1].to(dtype) * initial.to(dtype)[:, None])
        b = torch.cat([head, b[:, 1:]], dim=1)
    out: Tensor = _Scan.apply(a.to(dtype), b.to(dtype))
    return out


def _fitted(name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Give ``value`` as many axes as ``shape``, or say that it does not broadcast to it."""
    missing = len(shape) - value.ndim
    fits = missing >= 0 and all(
        have in (1, want) for have, want in zip(reversed(value.shape), reversed(shape))
    )
    if not fits:
        raise ValueError(
            f"{name} must broadcast to the shape {tuple(shape)}, got {tuple(value.shape)}"
        )
    return value.reshape(*(1,) * missing, *value.shape)


def _steps(a: Tensor, start: int, stop: int | None = None, step: int = 1) -> Tensor:
    """Slice the time axis, unless there is one factor for all times."""
    return a if a.shape[1] == 1 else a[:, start:stop:step]


def _scan(a: Tensor, b: Tensor) -> Tensor:
    time = b.shape[1]
    out = torch.empty_like(b, memory_format=torch.contiguous_format)
    if time <= _SHORT:
        last = out[:, 0] = b[:, 0]
        for t in range(1, time):
            last = torch.addcmul(b[:, t], _steps(a, t, t + 1)[:, 0], last)
            out[:, t] = last
        return out
    half = time // 2
    # With one factor for all times, a pair of steps has its square.
    second = _steps(a, 1, None, 2)
    joined = torch.addcmul(b[:, 1::2], second, b[:, : 2 * half : 2])
    odd = _scan(second * _steps(a, 0, 2 * half, 2), joined)
    out[:, 1::2] = odd
    out[:, 0] = b[:, 0]
    out[:, 2::2] = torch.addcmul(b[:, 2::2], _steps(a, 2, None, 2), odd[:, : (time - 1) // 2])
    return out


class _Scan(torch.autograd.Function):
    """The scan as one operation of the autograd graph; ``a`` and ``b`` have one type."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return _scan(a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor]:
        a, out = ctx.saved_tensors
        back = a.conj()
        if a.shape[1] > 1:
            # The gradient of a step comes from the next one, by the next one's factor.
            back = torch.cat([back[:, 1:], torch.zeros_like(back[:, :1])], dim=1).flip(1)
        flowing: Tensor = _Scan.apply(back, grad.flip(1)).flip(1)
        if not ctx.needs_input_grad[0]:
            return None, flowing
        to_a = flowing[:, 1:] * out[:, :-1].conj()
        if a.shape[1] > 1:
            to_a = torch.cat([torch.zeros_like(flowing[:, :1]), to_a], dim=1)
        return _summed(to_a, a.shape), flowing


def _summed(grad: Tensor, shape: torch.Size) -> Tensor:
    """Sum over the axes along which a factor was shared."""
    shared = [i for i, size in enumerate(shape) if size == 1]
    return grad.sum(shared, keepdim=True) if shared else grad
