"""Transition matrices of the online projections, and how they are made discrete (gu2020hippo).

All are in the form x' = A x + B u, with ``legs`` to be read as x' = (A x + B u) / t. The measures
with a window have it of length 1 and Laguerre's decays per unit of time; a step of 1 / window makes
the unit ``window`` samples. The released S4 code halves A and B of ``legt`` and ``fout``, which
makes their window 2 long.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from trialrun.core.shapes import check_range
from trialrun.sequence.hippo._checks import Number, number, one_of, whole

MEASURES = ("legs", "legt", "lmu", "lagt", "glagt", "fout", "foud", "legsd")
METHODS = ("forward", "backward", "bilinear", "zoh", "gbt")
# zoh is exact and uses no share; it stands here with bilinear's.
_IMPLICIT = {"forward": 0.0, "bilinear": 0.5, "backward": 1.0, "zoh": 0.5}


class Transition(NamedTuple):
    """A (order, order) and B (order,) of a linear system, in float64."""

    A: Tensor
    B: Tensor


def transition(
    measure: str, order: int, *, alpha: Number | None = None, beta: Number | None = None
) -> Transition:
    """Return A and B of a measure (gu2020hippo; fout, foud and legsd: gu2022train).

    Parameters
    ----------
    measure : str
        ``legs`` weighs the whole past alike (scaled Legendre, used with 1 / t); ``legt`` and
        ``lmu`` weigh a window of length 1 alike, in an orthonormal basis and in the Legendre Memory
        Unit's; ``lagt`` and ``glagt`` let the past decay (Laguerre); ``fout`` is a window of length
        1 in a Fourier basis, ``foud`` a decaying one; ``legsd`` is the normal part of ``legs``.
    order : int, at least 1
        Numbers remembered. Even for ``fout`` and ``foud``, whose second one stays unused: it stands
        where the sine of frequency 0 would.
    alpha : float in (-1, 1), or None
        Exponent of ``glagt``; None is 0.
    beta : float above 0, or None
        Scale of B for ``lagt`` (None is 1), tilt of ``glagt`` (None is 0.01).

    Returns
    -------
    Transition
        ``A`` (order, order) and ``B`` (order,) in float64; unpacks as a pair.

    Raises
    ------
    ValueError
        For an unknown measure, an order out of range, or a parameter the measure does not have.

    Examples
    --------
    >>> A, B = transition("legs", 2)
    >>> A.tolist()
    [[-1.0, -0.0], [-1.7320508075688772, -2.0]]
    """
    one_of("measure", measure, MEASURES)
    order = whole("order", order, low=1)
    if measure in ("fout", "foud") and order % 2:
        raise ValueError(
            f"order must be even for {measure}, a cosine and a sine a frequency, got {order}: "
            f"use {order + 1}"
        )
    if alpha is not None and measure != "glagt":
        raise ValueError(f"alpha belongs to the measure glagt, got {alpha!r} for {measure}")
    if beta is not None and measure not in ("lagt", "glagt"):
        raise ValueError(f"beta belongs to the measures lagt and glagt, got {beta!r} for {measure}")
    alpha = None if alpha is None else number("alpha", alpha)
    beta = None if beta is None else number("beta", beta)
    if measure == "lagt":
        return _laguerre(order, 1.0 if beta is None else beta)
    if measure == "glagt":
        return _generalised(order, alpha or 0.0, 0.01 if beta is None else beta)
    return _PLAIN[measure](order)


def _degrees(order: int) -> Tensor:
    return torch.arange(order, dtype=torch.float64)


def _legs(order: int) -> Transition:
    n = _degrees(order)
    root = torch.sqrt(2 * n + 1)
    below = torch.tril(root[:, None] * root, diagonal=-1)
    return Transition(-below - torch.diag(n + 1), root)


def _legsd(order: int) -> Transition:
    A, B = _legs(order)
    return Transition(A + 0.5 * torch.outer(B, B), 0.5 * B)


def _legt(order: int) -> Transition:
    n = _degrees(order)
    root = torch.sqrt(2 * n + 1)
    sign = torch.where(n[:, None] < n, (-1.0) ** (n[:, None] - n), 1.0)
    return Transition(-root[:, None] * sign * root, root)


def _lmu(order: int) -> Transition:
    n = _degrees(order)
    sign = torch.where(n[:, None] < n, -1.0, (-1.0) ** (n[:, None] - n + 1))
    odd = 2 * n + 1
    return Transition(odd[:, None] * sign, odd * (-1.0) ** n)


def _laguerre(order: int, beta: Number) -> Transition:
    check_range("beta", beta, low=1e-300)
    ones = torch.ones(order, order, dtype=torch.float64)
    half = 0.5 * torch.eye(order, dtype=torch.float64)
    return Transition(half - torch.tril(ones), beta * torch.ones(order, dtype=torch.float64))


def _generalised(order: int, alpha: Number, beta: Number) -> Transition:
    check_range("beta", beta, low=1e-300)
    if not -1 < alpha < 1:
        raise ValueError(f"alpha must be above -1 and below 1, got {alpha!r}")
    ones = torch.ones(order, order, dtype=torch.float64)
    A = -0.5 * (1 + beta) * torch.eye(order, dtype=torch.float64) - torch.tril(ones, diagonal=-1)
    log_norm = laguerre_log_norm(order, alpha)
    # L_n(0) is binomial(n + alpha, n); in logarithms it does not overflow.
    log_start = 2 * log_norm - math.lgamma(alpha + 1)
    return Transition(
        torch.exp(log_norm[None, :] - log_norm[:, None]) * A,
        laguerre_scale(alpha, beta) * torch.exp(log_start - log_norm),
    )


def laguerre_log_norm(order: int, alpha: Number) -> Float[Tensor, " order"]:
    """Return half the logarithm of Gamma(n + alpha + 1) / n!, the norm of each polynomial."""
    n = _degrees(order)
    return 0.5 * (torch.lgamma(n + alpha + 1) - torch.lgamma(n + 1))


def laguerre_scale(alpha: Number, beta: Number) -> float:
    """Return the constant that normalises the tilted measure of ``glagt``."""
    return math.exp(-0.5 * math.lgamma(1 - alpha)) * beta ** ((1 - alpha) / 2)


def frequencies(order: int) -> Float[Tensor, " order"]:
    """Return the frequency of each entry of a Fourier basis, in cycles per unit of time."""
    return (torch.arange(order) // 2).double()


def _turning(order: int) -> Transition:
    """Return the rotation of cosines into sines, and the basis at lag 0."""
    A = torch.zeros(order, order, dtype=torch.float64)
    even = torch.arange(0, order, 2)
    A[even, even + 1] = -2 * math.pi * frequencies(order)[even]
    A[even + 1, even] = -A[even, even + 1]
    start = torch.zeros(order, dtype=torch.float64)
    start[even] = math.sqrt(2)
    start[0] = 1.0
    return Transition(A, start)


def _fout(order: int) -> Transition:
    A, start = _turning(order)
    # A Fourier series meets the mean of both ends there, so u(t - 1) is twice the sum less u(t).
    return Transition(A - 2 * torch.outer(start, start), 2 * start)


def _foud(order: int) -> Transition:
    A, start = _turning(order)
    return Transition(A - 0.5 * torch.eye(order, dtype=torch.float64), start)


_PLAIN: dict[str, Callable[[int], Transition]] = {
    "legs": _legs,
    "legsd": _legsd,
    "legt": _legt,
    "lmu": _lmu,
    "fout": _fout,
    "foud": _foud,
}


def implicit_share(method: str, share: Number | None = None) -> float:
    """Return how much of a step the new state drives: 0 forward, 1/2 bilinear, 1 backward.

    Raises
    ------
    ValueError
        If ``share`` is missing for ``gbt``, given for another method, or outside [0, 1].
    """
    if method != "gbt":
        if share is not None:
            raise ValueError(f"share belongs to the method gbt, got {share!r} for {method}")
        return _IMPLICIT[method]
    if not isinstance(share, Real) or not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1] for the method gbt, got {share!r}")
    return float(share)


def discretise(
    A: Float[Tensor, "order order"],
    B: Float[Tensor, " order"],
    step: Number | Float[Tensor, "*steps"],
    method: str = "bilinear",
    *,
    share: Number | None = None,
) -> Transition:
    """Return the matrices of x[k] = A' x[k - 1] + B' u[k] for a step of time (gu2020hippo).

    Parameters
    ----------
    A : tensor of shape (order, order)
    B : tensor of shape (order,)
    step : float above 0, or tensor of shape (...) of such
        Length of a step in the system's unit of time. For ``legs`` under its 1 / t it is 1 / k.
    method : str
        ``forward``, ``backward`` and ``bilinear`` let the new state drive none, all and half of the
        step, ``gbt`` a ``share`` of it; ``zoh`` is exact for an input that stays as it is.
        ``forward`` is unstable unless steps are short: for ``legt`` and ``lmu``, far below
        1 / order**2.
    share : float in [0, 1]
        For ``gbt`` only.

    Returns
    -------
    Transition
        ``A`` of shape (..., order, order) and ``B`` of shape (..., order).

    Raises
    ------
    ValueError
        For an unknown method, a step that is not above 0, or shapes that do not fit.

    Examples
    --------
    >>> A, B = transition("legs", 1)
    >>> [round(float(x), 6) for x in discretise(A, B, 0.5)]
    [0.6, 0.4]
    """
    one_of("method", method, METHODS)
    for name, value in (("A", A), ("B", B)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name} must be a tensor of real floating-point numbers, got {got}")
    if A.ndim != 2 or A.shape[0] != A.shape[1] or B.shape != A.shape[:1]:
        raise ValueError(
            f"A must have shape (order, order) and B (order,), got {tuple(A.shape)} and "
            f"{tuple(B.shape)}"
        )
    if not isinstance(step, Tensor):
        step = number("step", step)
    h = torch.as_tensor(step, dtype=A.dtype, device=A.device)
    if not bool(((h > 0) & h.isfinite()).all()):
        raise ValueError(f"step must be above 0 and finite, got {float(h.min())!r} at least")
    eye, h = torch.eye(len(B), dtype=A.dtype, device=A.device), h[..., None, None]
    if method == "zoh":
        implicit_share(method, share)
        # One exponential of the system with its held input, so a singular A needs no care.
        padded = torch.zeros(len(B) + 1, len(B) + 1, dtype=A.dtype, device=A.device)
        padded[:-1, :-1], padded[:-1, -1] = A, B
        whole_step = torch.linalg.matrix_exp(h * padded)
        return Transition(whole_step[..., :-1, :-1], whole_step[..., :-1, -1])
    new = implicit_share(method, share)
    right = torch.cat([eye + (1 - new) * h * A, h * B[:, None]], dim=-1)
    solved = torch.linalg.solve(eye - new * h * A, right)
    return Transition(solved[..., :-1], solved[..., -1])
