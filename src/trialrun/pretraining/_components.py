"""Candidate pairs from band keys, and groups from pairs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trialrun.pretraining._shingles import Hashes

Pairs = NDArray[np.int64]


class BandPairs(NamedTuple):
    """Pairs of places that agree in a band, and how many more do but were left out."""

    pairs: Pairs
    left_out: int


def star_pairs(keys: Hashes) -> Pairs:
    """Return one band's pairs (first of its bucket, other): enough to connect every bucket."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    begins = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])[: len(keys)]
    heads = np.repeat(begins, np.diff(np.r_[begins, len(keys)]))
    joined = heads != np.arange(len(keys))
    return np.stack([order[heads[joined]], order[joined]], axis=1)


def all_pairs(keys: Hashes, most: int) -> BandPairs:
    """Return one band's pairs within ``most`` neighbours, in order of arrival, of a bucket.

    Buckets of up to ``most + 1`` texts are complete. Time and memory stay linear in the number of
    texts however large a bucket grows.
    """
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    found, distance, count = [], 1, 0
    while distance <= most:
        same = np.flatnonzero(ordered[distance:] == ordered[:-distance])
        if not len(same):
            break
        found.append(np.stack([order[same], order[same + distance]], axis=1))
        count += len(same)
        distance += 1
    _, sizes = np.unique(ordered, return_counts=True)
    whole = int((sizes * (sizes - 1) // 2).sum())
    pairs = np.concatenate(found) if found else np.empty((0, 2), np.int64)
    return BandPairs(pairs, whole - count)


def union(count: int, pairs: Pairs, parents: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Return every place's least place among those it is connected to.

    Union-find on arrays: each round hooks the larger root of every pair under the smaller and
    halves all paths, until no pair joins two roots; a few rounds do.

    Parameters
    ----------
    count : int
        Number of places.
    pairs : int array of shape (pairs, 2)
    parents : int array of shape (count,) or None
        What an earlier call returned, to go on from.
    """
    roots = np.arange(count) if parents is None else parents.copy()
    left, right = pairs.reshape(-1, 2).T
    while True:
        one, other = roots[left], roots[right]
        apart = one != other
        if not apart.any():
            return roots
        left, right = left[apart], right[apart]
        low, high = np.minimum(one, other)[apart], np.maximum(one, other)[apart]
        np.minimum.at(roots, high, low)
        while True:  # until every place points at a root
            above = roots[roots]
            if np.array_equal(above, roots):
                break
            roots = above


def nearest_kept(count: int, pairs: Pairs) -> NDArray[np.int64]:
    """Return for every place the earliest *kept* place paired with it, or itself if there is none.

    A place is kept when no earlier kept place is paired with it; so nobody is dropped on account
    of somebody who was dropped, and chains do not form.
    """
    stands = np.arange(count)
    low, high = np.sort(pairs.reshape(-1, 2), axis=1).T
    order = np.lexsort((low, high))  # a place is settled before it is asked about
    for a, b in zip(low[order].tolist(), high[order].tolist()):
        if stands[b] == b and stands[a] == a:
            stands[b] = a
    return stands
