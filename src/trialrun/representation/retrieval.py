"""Retrieval metrics, and the four protocols that composed retrieval is scored by.

The protocols are those of saito2023pic2word, read in the authors' evaluation code. Ours: the rule
for ties. Scores that agree to six decimals tie, and in a tie what is wrong stands before what is
right, so that a model that maps everything to one point scores nothing, and the order of the
gallery does not matter. Scores are never compared in half precision.

Everything takes numpy arrays or tensors and returns plain numbers in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trialrun.representation._ranking import DECIMALS, cosine_scores, matrix, ranking
from trialrun.representation._retrieval_metrics import (
    Ks,
    check_ks,
    map_at_r,
    recall_at_k,
    true_ranks,
)

__all__ = [
    "DECIMALS",
    "BothWays",
    "check_ks",
    "cirr_recall",
    "cosine_scores",
    "domain_conversion",
    "fashion_iq_recall",
    "map_at_r",
    "paired_recall",
    "ranking",
    "recall_at_k",
    "true_ranks",
]

_CHUNK = 512


def _recall_of_ranks(ranks: NDArray[np.int64], ks: Ks) -> dict[int, float]:
    return {int(k): float((ranks <= k).mean()) for k in ks}


def _ranks_in_chunks(
    queries: ArrayLike, gallery: ArrayLike, target: Any, exclude: Any = None
) -> NDArray[np.int64]:
    """Rank targets without ever holding more than a slice of the score table."""
    left, target = matrix("queries", queries), np.asarray(target)
    if target.shape != (len(left),) or not len(left):
        raise ValueError(f"target must name one item for each of {len(left)} queries")
    parts = []
    for begin in range(0, len(left), _CHUNK):
        rows = slice(begin, begin + _CHUNK)
        out = None if exclude is None else np.asarray(exclude)[rows]
        parts.append(true_ranks(cosine_scores(left[rows], gallery), target[rows], exclude=out))
    return np.concatenate(parts)


def domain_conversion(
    queries: ArrayLike,
    query_classes: ArrayLike,
    target_domain: Any,
    gallery: ArrayLike,
    gallery_classes: ArrayLike,
    gallery_domains: ArrayLike,
    ks: Ks = (10, 50),
) -> dict[int, float]:
    """Score domain conversion (ImageNet to ImageNet-R): same class *and* the domain asked for.

    Parameters
    ----------
    queries : array (queries, embed)
        Composed from real pictures and the target domain's sentence.
    query_classes : array (queries,)
    target_domain : object
        The domain the sentence asks for, as in ``gallery_domains``.
    gallery : array (items, embed)
        Pictures of all domains.
    gallery_classes, gallery_domains : array (items,)
    ks : sequence of int

    Returns
    -------
    dict of int to float
        Relevant items in the first k over all relevant items, averaged over queries. A query whose
        class has no picture in the target domain counts 0, as published.

    Raises
    ------
    ValueError
        If numbers do not match, or no query at all has anything to find.
    """
    ks = check_ks(ks)
    items, domains = np.asarray(gallery_classes), np.asarray(gallery_domains)
    if len(items) != len(domains):
        raise ValueError(
            f"gallery_classes and gallery_domains must be as many, got {len(items)} and "
            f"{len(domains)}"
        )
    left, classes = matrix("queries", queries), np.asarray(query_classes)
    if len(left) != len(classes) or not len(left):
        raise ValueError(
            f"query_classes must be one for each of {len(left)} queries, got {len(classes)}"
        )
    there = np.flatnonzero(np.isin(classes, items[domains == target_domain]))
    if not len(there):
        raise ValueError(f"no query has a picture of its class in the domain {target_domain!r}")
    sums = dict.fromkeys(ks, 0.0)
    for begin in range(0, len(there), _CHUNK):
        rows = there[begin : begin + _CHUNK]
        right = (classes[rows, None] == items[None]) & (domains == target_domain)[None]
        found = recall_at_k(cosine_scores(left[rows], gallery), right, ks)
        for k in ks:
            sums[k] += found[k] * len(rows)
    return {int(k): sums[k] / len(left) for k in ks}


class BothWays(NamedTuple):
    """Recall of partners, from either side."""

    query_to_target: dict[int, float]
    target_to_query: dict[int, float]


def paired_recall(queries: ArrayLike, targets: ArrayLike, ks: Ks = (1, 5, 10)) -> BothWays:
    """Score object composition (COCO): row i of either side has row i of the other as its one hit.

    Parameters
    ----------
    queries, targets : array (pairs, embed)
    ks : sequence of int
    """
    ks = check_ks(ks)
    left, right = matrix("queries", queries), matrix("targets", targets)
    if len(left) != len(right):
        raise ValueError(f"queries and targets must be as many, got {len(left)} and {len(right)}")
    own = np.arange(len(left))
    return BothWays(
        _recall_of_ranks(_ranks_in_chunks(left, right, own), ks),
        _recall_of_ranks(_ranks_in_chunks(right, left, own), ks),
    )


def cirr_recall(
    queries: ArrayLike,
    gallery: ArrayLike,
    references: ArrayLike,
    targets: ArrayLike,
    ks: Ks = (1, 5, 10, 50),
) -> dict[int, float]:
    """Score CIRR: one target for each query, the reference picture taken out of the gallery.

    Parameters
    ----------
    queries : array (queries, embed)
    gallery : array (items, embed)
    references, targets : int array (queries,)
        Places in the gallery.
    ks : sequence of int
    """
    ks = check_ks(ks)
    return _recall_of_ranks(_ranks_in_chunks(queries, gallery, targets, references), ks)


def fashion_iq_recall(
    garments: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]], ks: Ks = (10, 50)
) -> dict[str, dict[int, float]]:
    """Score Fashion-IQ: each garment in its own gallery, and their plain average.

    The reference stays in the gallery, as published.

    Parameters
    ----------
    garments : mapping of str to (queries, gallery, targets)
        ``targets`` are places in the gallery, which is the validation split's list.
    ks : sequence of int

    Returns
    -------
    dict
        Garment to recalls, with ``average`` last.
    """
    ks = check_ks(ks)
    if not garments:
        raise ValueError("garments must hold at least one, such as dress, shirt or toptee")
    found = {
        name: _recall_of_ranks(_ranks_in_chunks(queries, gallery, targets), ks)
        for name, (queries, gallery, targets) in garments.items()
    }
    found["average"] = {int(k): float(np.mean([r[k] for r in found.values()])) for k in ks}
    return found
