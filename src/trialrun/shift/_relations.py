"""How a domain relates to the training domains (yao2023d3g).

The relation is a = beta * given + (1 - beta) * learned. *Given* is a matrix the user has (a graph,
an interaction score), or else a kernel of the metadata. *Learned* is the mean over R heads of
cos(w_r * g(m_i), w_r * g(m_j)), with g a two-layer network on metadata. Negative relations, which
the method leaves undefined, count as 0.

Ours, not theirs: the kernels and their ``sharpness``, the defaults, and the fallbacks for a domain
that is related to no training domain.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from trialrun.core.errors import UsageError
from trialrun.core.shapes import check_axes, check_range
from trialrun.shift._heads import mlp

KINDS = ("fixed", "learned", "both")
KERNELS = ("cosine", "distance")
FALLBACKS = ("uniform", "nearest", "error")

Array = NDArray[np.float64]


class ZeroRelationWarning(UserWarning):
    """Say that a domain is related to no training domain, so that the fallback was used."""


class Relation(BaseEstimator):
    """Settings of the relation between domains.

    Parameters
    ----------
    kind : {"fixed", "learned", "both"}, default="both"
        ``fixed`` uses the given relation (``adjacency``, or else the kernel of the metadata),
        ``learned`` a network on the metadata, ``both`` their mixture.
    beta : float in [0, 1], default=0.8
        Share of the given relation in ``both``.
    kernel : {"cosine", "distance"}, default="cosine"
        Given relation where there is no adjacency: exp(sharpness * (cos - 1)) of the angle
        between metadata rows, or exp(-sharpness * d**2 / 2) with d their distance after each
        column is divided by its standard deviation over the training domains. The cosine takes
        metadata as they come: give an angle as its cosine and sine. Coordinates want
        ``distance``.
    sharpness : float, at least 0, default=5.0
        The main knob: 0 averages all heads, a large number takes the nearest.
    heads : int, at least 1, default=4
        R, the number of cosines averaged in the learned relation.
    width : int, at least 1, default=32
        Width of the two layers of the network on metadata.
    fallback : {"uniform", "nearest", "error"}, default="uniform"
        What to do for a domain whose relation to every training domain is 0: weigh all alike,
        take the training domain nearest in metadata, or raise. The first two warn.

    Examples
    --------
    >>> Relation(kernel="distance", sharpness=2.0).sharpness
    2.0
    """

    def __init__(
        self,
        kind="both",
        *,
        beta=0.8,
        kernel="cosine",
        sharpness=5.0,
        heads=4,
        width=32,
        fallback="uniform",
    ):
        self.kind = kind
        self.beta = beta
        self.kernel = kernel
        self.sharpness = sharpness
        self.heads = heads
        self.width = width
        self.fallback = fallback

    def check(self) -> None:
        """Raise ``ValueError`` naming the first setting out of range."""
        words = {"kind": KINDS, "kernel": KERNELS, "fallback": FALLBACKS}
        for name, allowed in words.items():
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"relation {name} must be one of {', '.join(allowed)}, "
                    f"got {getattr(self, name)!r}"
                )
        check_range("relation beta", self.beta, low=0, high=1)
        check_range("relation sharpness", self.sharpness, low=0)
        check_range("relation heads", self.heads, low=1)
        check_range("relation width", self.width, low=1)


def log_kernel(a: Array, b: Array, kernel: str, sharpness: float) -> Array:
    """Return the logarithm of the kernel between rows of ``a`` and rows of ``b``."""
    if kernel == "distance":
        return -0.5 * sharpness * ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2)
    lengths = [np.linalg.norm(rows, axis=1, keepdims=True) for rows in (a, b)]
    if min(length.min(initial=np.inf) for length in lengths) == 0:
        raise UsageError(
            "metadata holds a row of zeros, which has no direction for the cosine kernel: use "
            "Relation(kernel='distance'), or give an angle as its cosine and sine"
        )
    cosine = (a / lengths[0]) @ (b / lengths[1]).T
    return sharpness * (np.clip(cosine, -1, 1) - 1)


def relation_matrix(
    metadata: ArrayLike,
    others: ArrayLike,
    *,
    kernel: str = "cosine",
    sharpness: float = 5.0,
) -> NDArray[np.float64]:
    """Compute the kernel between the rows of two metadata tables.

    Parameters
    ----------
    metadata : array of shape (n, m)
    others : array of shape (n_domains, m)
    kernel : {"cosine", "distance"}
        exp(sharpness * (cos - 1)), or exp(-sharpness * d**2 / 2); rows are taken as they come.
        On rows of length 1 the two agree.
    sharpness : float, at least 0

    Returns
    -------
    array of shape (n, n_domains), in [0, 1]

    Raises
    ------
    ValueError
        For tables that do not fit each other, or a row of zeros with ``cosine``.

    Examples
    --------
    >>> relation_matrix([[1.0, 0.0]], [[2.0, 0.0], [0.0, 1.0]], sharpness=1.0).round(3)
    array([[1.   , 0.368]])
    """
    a, b = np.asarray(metadata, dtype=float), np.asarray(others, dtype=float)
    check_axes("metadata", a, ("n", "m"))
    check_axes("others", b, ("domains", "m"))
    if a.shape[1] != b.shape[1]:
        raise UsageError(f"metadata must have {b.shape[1]} columns as others, got {a.shape[1]}")
    if kernel not in KERNELS:
        raise UsageError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    check_range("sharpness", sharpness, low=0)
    return np.exp(log_kernel(a, b, kernel, sharpness))


class LearnedRelation(nn.Module):
    """Learn a relation between domains from their metadata: the mean of R weighted cosines.

    Parameters
    ----------
    n_metadata : int
        Columns of the metadata.
    heads : int, default=4
        R, the number of cosines.
    width : int, default=32
        Width of the two layers of g.
    seed : int, default=0

    Notes
    -----
    yao2023d3g. Returns values in [-1, 1]; `normalise_relations` clips the negative ones. It
    learns through the consistency term alone.

    Examples
    --------
    >>> learned = LearnedRelation(2)
    >>> learned(torch.eye(2), torch.eye(2)).diagonal().round(decimals=4).tolist()
    [1.0, 1.0]
    """

    def __init__(self, n_metadata: int, *, heads: int = 4, width: int = 32, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        # The last ReLU is dropped: with it no cosine could be negative, and no relation zero.
        self.g = mlp((n_metadata, width, width), generator)[:-1]
        self.w = nn.Parameter(torch.rand(heads, width, generator=generator) + 0.5)

    def forward(
        self, metadata: Float[Tensor, "rows meta"], others: Float[Tensor, "domains meta"]
    ) -> Float[Tensor, "rows domains"]:
        """Relate every row of ``metadata`` to every row of ``others``."""
        unit = nn.functional.normalize
        left = unit(self.w[:, None] * self.g(metadata), dim=2, eps=1e-12)
        right = unit(self.w[:, None] * self.g(others), dim=2, eps=1e-12)
        return torch.bmm(left, right.transpose(1, 2)).mean(dim=0)


class DomainWeights(NamedTuple):
    """Weights of the training domains' heads, one row per domain to predict.

    ``fell_back`` marks the rows whose relation to every training domain was 0.
    """

    domains: NDArray
    weights: Array
    fell_back: NDArray[np.bool_]


def weigh(relations: Array, distances: Array | None, fallback: str, names: NDArray) -> Array:
    """Normalise relation rows over the training domains; rows of zeros take the fallback.

    Raises
    ------
    UsageError
        If a row is zero and the fallback is ``error``, or ``nearest`` without metadata.
    """
    clipped = np.clip(relations, 0, None)
    total = clipped.sum(axis=1, keepdims=True)
    lonely = total[:, 0] == 0
    if not lonely.any():
        return clipped / total
    who = ", ".join(str(name) for name in names[lonely][:5])
    if fallback == "error":
        raise UsageError(
            f"domain {who} has no relation to any training domain: give it a relation, or choose "
            "Relation(fallback='uniform') or 'nearest'"
        )
    weights = np.divide(clipped, total, out=np.zeros_like(clipped), where=total > 0)
    if fallback == "uniform":
        weights[lonely] = 1 / relations.shape[1]
    elif distances is None:
        raise UsageError(
            f"domain {who} has no relation to any training domain, and fallback='nearest' needs "
            "metadata: pass metadata to fit and predict"
        )
    else:
        weights[lonely] = np.eye(relations.shape[1])[distances[lonely].argmin(axis=1)]
    warnings.warn(
        f"{lonely.sum()} of {len(lonely)} domains ({who}) have no relation to any training "
        f"domain: fallback {fallback!r} was used",
        ZeroRelationWarning,
        stacklevel=4,
    )
    return weights
