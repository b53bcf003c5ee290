"""Normal plus low rank: the diagonal form in which S4 holds a transition matrix (gu2022s4).

For ``legs``, ``legt`` and ``fout`` there is P with A + P P^T = normal, of rank 1, 2 and 1. The
normal part is a multiple of the identity plus a skew matrix, whose eigenvalues come in conjugate
pairs; one of each pair is kept, and sums over the state are twice the real part.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from trialrun.sequence.hippo._checks import one_of, whole
from trialrun.sequence.hippo._transition import frequencies, transition

NPLR_MEASURES = ("legs", "legt", "fout")


class NPLR(NamedTuple):
    """A = V (diag(poles) - P P*) V* with one of each conjugate pair, in complex128.

    ``poles`` (pairs,), ``P`` (rank, pairs), ``B`` (pairs,) and ``V`` (order, pairs).
    """

    poles: Tensor
    P: Tensor
    B: Tensor
    V: Tensor


def nplr(measure: str, order: int) -> NPLR:
    """Return a measure's transition matrix as diagonal minus low rank (gu2022s4).

    Parameters
    ----------
    measure : str
        ``legs``, ``legt`` or ``fout``.
    order : int, even, at least 2

    Raises
    ------
    ValueError
        For another measure or an odd order.

    Examples
    --------
    >>> form = nplr("legs", 4)
    >>> [round(x, 9) for x in form.poles.real.tolist()]
    [-0.5, -0.5]
    """
    one_of("measure", measure, NPLR_MEASURES)
    order = whole("order", order, low=2)
    if order % 2:
        raise ValueError(f"order must be even, one number a pole and its conjugate, got {order}")
    A, B = transition(measure, order)
    P = _correction(measure, order)
    normal = A + P.T @ P
    shift = float(normal.diagonal().mean())
    poles, V = _turning_pairs(measure, normal - shift * torch.eye(order, dtype=torch.float64))
    back = V.conj().T
    return NPLR(poles + shift, P.to(V.dtype) @ V.conj(), back @ B.to(V.dtype), V)


def _correction(measure: str, order: int) -> Float[Tensor, "rank order"]:
    n = torch.arange(order, dtype=torch.float64)
    if measure == "legs":
        return torch.sqrt(n + 0.5)[None]
    if measure == "legt":
        root = torch.sqrt(2 * n + 1)
        even = (n % 2 == 0).double()
        return torch.stack([root * even, root * (1 - even)])
    # B of fout is twice the basis at lag 0, whose outer product is subtracted twice.
    return (transition("fout", order).B / math.sqrt(2))[None]


def _turning_pairs(measure: str, skew: Tensor) -> tuple[Tensor, Tensor]:
    order = len(skew)
    if measure == "fout":
        # The eigenvalue 0 is double here, so pairs are formed block by block.
        V = torch.zeros(order, order // 2, dtype=torch.complex128)
        place = torch.arange(order // 2)
        V[2 * place, place] = math.sqrt(0.5)
        V[2 * place + 1, place] = torch.tensor(-1j * math.sqrt(0.5), dtype=V.dtype)
        return 2j * math.pi * frequencies(order)[::2], V
    # A Hermitian solver keeps the vectors orthogonal to rounding.
    values, vectors = torch.linalg.eigh(-1j * skew.to(torch.complex128))
    upper = values.argsort()[order // 2 :]
    V = vectors[:, upper]
    # A solver may turn an eigenvector by any phase: take the one with a real first entry.
    return 1j * values[upper], V * (V[0].conj() / V[0].abs())
