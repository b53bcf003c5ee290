"""Which gallery items lie in a query's credible set, and how often such sets hold the truth."""

from __future__ import annotations

from typing import NamedTuple

from trialrun.representation.mcinfonce import _stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Float
from torch import Tensor

from trialrun.representation.mcinfonce._joint_gap import check_spread, joint_gap_quantile
from trialrun.representation.mcinfonce._sphere import normalised
from trialrun.representation.mcinfonce._vmf import VonMisesFisher

_ROWS = 4096


class CredibleSets(NamedTuple):
    """What `credible_retrieval` returns.

    Attributes
    ----------
    ids : list of Tensor
        Per query, the gallery rows in its set, nearest first (ties by row number).
    thresholds : Tensor (queries,), or (queries, items) with ``gallery_kappa``
        Least cosine with the query's mu that a member has.
    """

    ids: list[Tensor]
    thresholds: Tensor


def _check(query: VonMisesFisher, name: str, points: Tensor, alpha: float) -> None:
    if not isinstance(query, VonMisesFisher) or len(query.batch_shape) != 1:
        got = getattr(query, "batch_shape", type(query).__name__)
        raise ValueError(f"query must be a VonMisesFisher of batch shape (queries,), got {got}")
    if not isinstance(points, Tensor):
        raise ValueError(  # noqa: TRY004 - one kind of error for all input
            f"{name} must be a torch tensor, got {type(points).__name__}: use torch.as_tensor"
        )
    if points.shape[-1] != query.dim:
        raise ValueError(
            f"{name} must have {query.dim} coordinates on its last axis like query, "
            f"got shape {tuple(points.shape)}"
        )
    if not points.is_floating_point():
        raise ValueError(f"{name} must be a floating-point tensor, got {points.dtype}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha!r}")


def _unit(name: str, points: Tensor, like: Tensor) -> Tensor:
    unit, good = normalised(points.to(like))
    if not bool(good.all()):
        first = ", ".join(str(place) for place in (~good).nonzero()[0].tolist())
        raise ValueError(f"{name} must hold finite rows of a length above 0: see row {first}")
    return unit


def _gaps(mu: Tensor, points: Tensor) -> Tensor:
    """Return 1 - cos through the distance, which keeps its digits where cosines round to 1."""
    return 0.5 * torch.cdist(mu, points, compute_mode="donot_use_mm_for_euclid_dist").square()


@torch.no_grad()
def credible_retrieval(
    query: VonMisesFisher,
    gallery: Float[Tensor, "items dim"],
    alpha: float = 0.05,
    *,
    gallery_kappa: Tensor | None = None,
    n_samples: int = 4096,
    seed: int = 0,
) -> CredibleSets:
    """Return the gallery items in each query's credible set (kirchhof2023mcinfonce).

    The set is the cap around mu that holds the query's latent with probability 1 - alpha, as far
    as the posterior is right. The level is for that latent: the *predicted mean* of another
    ambiguous picture of it is off by that picture's own spread and lies inside less often. The size
    is computed exactly from the distribution function; the paper takes a quantile of 10,000 draws.

    ``gallery_kappa`` (ours) says how spread the gallery's own posteriors are. An item is then in
    the set unless another of its spread and of the query's own latent would be nearer with
    probability 1 - alpha. So the level holds for predicted means too, if both posteriors are right
    and latents are uniform. Each item then has a threshold of its own, found by sampling.

    Parameters
    ----------
    query : VonMisesFisher of batch shape (queries,)
    gallery : Tensor (items, dim)
        Latents or mean directions; brought to length 1 here.
    alpha : float in (0, 1)
        How often the truth may lie outside.
    gallery_kappa : Tensor (items,) or None
        Concentrations of the gallery's posteriors, at least 0, inf allowed; the gallery then holds
        their mean directions. None takes the gallery for latents.
    n_samples : int, at least 100
        Draws behind a threshold, with ``gallery_kappa``. The level is off by about
        sqrt(alpha (1 - alpha) / n_samples), and alike for all queries, which share draws.
    seed : int
        Seed of these draws.

    Returns
    -------
    CredibleSets
        ``ids, thresholds``.

    Raises
    ------
    ValueError
        If shapes do not go together, alpha or n_samples is out of range, a row of the gallery is
        zero or not finite, or a concentration is negative or not a number.

    Examples
    --------
    >>> query = VonMisesFisher(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([50.0]))
    >>> gallery = torch.tensor([[0.0, 1.0, 0.0], [0.9, 0.1, 0.0], [1.0, 0.0, 0.0]])
    >>> ids, thresholds = credible_retrieval(query, gallery, alpha=0.05)
    >>> ids[0].tolist(), round(thresholds.item(), 2)
    ([2, 1], 0.94)
    >>> spread = torch.tensor([3.0, 50.0, 50.0])  # the first item is as ambiguous as it is far off
    >>> credible_retrieval(query, gallery, gallery_kappa=spread).ids[0].tolist()
    [2, 1, 0]
    """
    _check(query, "gallery", gallery, alpha)
    if gallery.ndim != 2:
        raise ValueError(f"gallery must have shape (items, dim), got {tuple(gallery.shape)}")
    gallery = _unit("gallery", gallery, query.mu)
    if gallery_kappa is None:
        limits = query.gap_quantile(1 - alpha)
    else:
        spread = check_spread(gallery_kappa, gallery)
        limits = joint_gap_quantile(query, spread, 1 - alpha, n_samples, seed)
    # A point keeps itself in spite of rounding.
    allowed = limits + 4 * torch.finfo(limits.dtype).eps
    ids = []
    for start in range(0, len(limits), _ROWS):
        gaps = _gaps(query.mu[start : start + _ROWS], gallery)
        for row, limit in zip(gaps, allowed[start : start + _ROWS]):
            inside = (row <= limit).nonzero().squeeze(-1)
            ids.append(inside[torch.sort(row[inside], stable=True).indices])
    return CredibleSets(ids, 1 - limits)


@torch.no_grad()
def credible_coverage(
    query: VonMisesFisher, latents: Float[Tensor, "queries *draws dim"], alpha: float = 0.05
) -> Tensor:
    """Return the share of true latents inside each query's credible set.

    Parameters
    ----------
    query : VonMisesFisher of batch shape (queries,)
    latents : Tensor (queries, dim) or (queries, draws, dim)
        The query's true latent, or draws from its true posterior, in the *aligned* space: an
        encoder's space is known up to a rotation or reflection only (see `procrustes`). Brought to
        length 1 here.
    alpha : float in (0, 1)

    Returns
    -------
    Tensor (queries,)
        1 - alpha on average where the posteriors are right.

    Raises
    ------
    ValueError
        If shapes do not go together, there are no draws, alpha is out of range, or a latent is zero
        or not finite.

    Examples
    --------
    >>> post = VonMisesFisher(torch.eye(3), torch.tensor([5.0, 50.0, 500.0]))
    >>> truth = post.sample((4000,), generator=torch.Generator().manual_seed(0))
    >>> [round(c, 1) for c in credible_coverage(post, truth.transpose(0, 1), 0.1).tolist()]
    [0.9, 0.9, 0.9]
    """
    _check(query, "latents", latents, alpha)
    if latents.shape[0] != query.batch_shape[0] or latents.ndim not in (2, 3):
        raise ValueError(
            f"latents must have shape ({query.batch_shape[0]}, [draws,] {query.dim}), "
            f"got {tuple(latents.shape)}"
        )
    if latents.ndim == 3 and latents.shape[1] == 0:
        raise ValueError(f"latents must hold at least 1 draw per query, got {tuple(latents.shape)}")
    latents = _unit("latents", latents, query.mu)
    latents = latents[:, None] if latents.ndim == 2 else latents
    gaps = 0.5 * (latents - query.mu[:, None]).square().sum(-1)
    inside = gaps <= query.gap_quantile(1 - alpha)[:, None] + 4 * torch.finfo(gaps.dtype).eps
    return inside.to(gaps.dtype).mean(-1)


@torch.no_grad()
def procrustes(
    found: Float[Tensor, "rows dim"], truth: Float[Tensor, "rows dim"]
) -> Float[Tensor, "dim dim"]:
    """Return the rotation or reflection R that brings ``found @ R`` nearest to ``truth``.

    Fit it on some rows and score on others: fitted on few rows it flatters.

    Parameters
    ----------
    found, truth : Tensor (rows, dim)
        Mean directions of an encoder and the true ones.

    Raises
    ------
    ValueError
        If shapes or dtypes differ, or numbers are not finite.

    Examples
    --------
    >>> truth = torch.randn(50, 3)
    >>> turned = truth @ torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
    >>> torch.allclose(turned @ procrustes(turned, truth), truth, atol=1e-5)
    True
    """
    if found.ndim != 2 or found.shape != truth.shape:
        raise ValueError(
            f"found and truth must have one shape (rows, dim), got {tuple(found.shape)} "
            f"and {tuple(truth.shape)}"
        )
    if found.dtype != truth.dtype or not found.is_floating_point():
        raise ValueError(
            f"found and truth must have one floating-point dtype, got {found.dtype} "
            f"and {truth.dtype}: convert one, as by found.to(truth.dtype)"
        )
    for name, rows in (("found", found), ("truth", truth)):
        if not bool(torch.isfinite(rows).all()):
            raise ValueError(f"{name} must hold finite numbers: see its NaN or infinity")
    left, _, right = torch.linalg.svd(found.T @ truth)
    return left @ right
