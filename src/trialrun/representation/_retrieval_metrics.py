"""Recall and average precision of ranked galleries, and the rank of one target."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trialrun.representation._ranking import DECIMALS, mask_of, matrix, one_hot, ranking

Ks = Sequence[int]


def _hits(
    scores: ArrayLike, relevant: ArrayLike, exclude: ArrayLike | None
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return relevance in ranked order, and how many items are relevant, for each query."""
    wide = matrix("scores", scores)
    mask = mask_of(relevant, wide.shape)
    if exclude is not None:
        mask = mask & ~one_hot(exclude, wide.shape)
    total = mask.sum(axis=1)
    if not len(wide) or not total.all():
        where = f"query {int(np.flatnonzero(total == 0)[0])}" if len(wide) else "an empty table"
        raise ValueError(f"every query needs a relevant item in its gallery, got none for {where}")
    order = ranking(wide, relevant=mask, exclude=exclude)
    return np.take_along_axis(mask, order, axis=1), total


def check_ks(ks: Ks) -> tuple[int, ...]:
    """Return ``ks`` as plain numbers, or raise a ValueError that says what came."""
    whole = [
        isinstance(k, int | np.integer) and not isinstance(k, bool | np.bool_) and k >= 1
        for k in ks
    ]
    if not whole or not all(whole):
        raise ValueError(f"ks must be whole numbers from 1 on, got {list(ks)}")
    return tuple(int(k) for k in ks)


def recall_at_k(
    scores: ArrayLike,
    relevant: ArrayLike,
    ks: Ks = (1, 5, 10),
    *,
    exclude: ArrayLike | None = None,
) -> dict[int, float]:
    """Return the mean over queries of the share of relevant items among the first k.

    With several relevant items the best possible value is k / relevant where that is below 1, as in
    the published protocol of domain conversion.

    Parameters
    ----------
    scores : array (queries, items)
    relevant : bool array (queries, items)
    ks : sequence of int
    exclude : int array (queries,), optional
        See `ranking`.

    Raises
    ------
    ValueError
        If shapes differ, scores are not finite, or a query has nothing to find.

    Examples
    --------
    >>> recall_at_k([[0.9, 0.1], [0.2, 0.8]], [[True, False], [True, False]], ks=(1, 2))
    {1: 0.5, 2: 1.0}
    """
    ks = check_ks(ks)
    hits, total = _hits(scores, relevant, exclude)
    return {int(k): float((hits[:, :k].sum(axis=1) / total).mean()) for k in ks}


def map_at_r(scores: ArrayLike, relevant: ArrayLike, *, exclude: ArrayLike | None = None) -> float:
    """Return MAP@R: precision at each right place among the first R, averaged over R and queries.

    R is a query's own number of relevant items.

    Parameters
    ----------
    scores : array (queries, items)
    relevant : bool array (queries, items)
    exclude : int array (queries,), optional

    Examples
    --------
    >>> map_at_r([[0.9, 0.8, 0.1]], [[True, False, True]])
    0.5
    """
    hits, total = _hits(scores, relevant, exclude)
    places = np.arange(1, hits.shape[1] + 1)
    precision = hits.cumsum(axis=1) / places
    within = hits & (places <= total[:, None])
    return float(((precision * within).sum(axis=1) / total).mean())


def true_ranks(
    scores: ArrayLike, target: ArrayLike, *, exclude: ArrayLike | None = None
) -> NDArray[np.int64]:
    """Return the rank of each query's one target, from 1; ties count against it.

    Parameters
    ----------
    scores : array (queries, items)
    target : int array (queries,)
    exclude : int array (queries,), optional
    """
    wide = np.round(matrix("scores", scores), DECIMALS)
    wanted = np.asarray(target)
    if not one_hot(wanted, wide.shape).any(axis=1).all():
        raise ValueError("target must name an item for every query, got -1")
    own = np.take_along_axis(wide, wanted[:, None], axis=1)
    better = wide >= own
    if exclude is not None:
        better &= ~one_hot(exclude, wide.shape)
        if (np.asarray(exclude) == wanted).any():
            row = int(np.flatnonzero(np.asarray(exclude) == wanted)[0])
            raise ValueError(f"target and exclude must differ, got the same item for query {row}")
    return better.sum(axis=1)
