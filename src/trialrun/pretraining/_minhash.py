"""MinHash signatures and their bands (broder1997minhash).

Signatures come from one-permutation hashing with optimal densification (shrivastava2017oph): each
n-gram is hashed once, its hash says in which of K bins it falls, and a bin keeps the least hash in
it. A bin left empty takes over the value of the first filled bin along a random walk of its own,
the same walk for every text. As with K permutations, two texts agree in a bin with probability
equal to the Jaccard similarity of their sets of n-grams, at a K-th of the work. Written from the
definitions; no author code was used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng, split
from trialrun.pretraining._checks import check_real, check_whole
from trialrun.pretraining._shingles import UNITS, Hashes, Shingles, mix, shingles

_EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)
_BATCH = 32  # texts at a time: their arrays stay in the cache


@dataclass(frozen=True)
class Bands:
    """How a signature is cut: ``count`` bands of ``rows`` values each.

    Two texts are a candidate pair when they agree in all rows of at least one band.
    """

    count: int
    rows: int

    def probability(self, similarity: Any) -> Any:
        """Return the chance that a pair of a given Jaccard ``similarity`` becomes a candidate.

        The S-curve 1 - (1 - s**rows)**count, of a number or of every number of an array.
        """
        s = np.asarray(similarity, float)
        return -np.expm1(self.count * np.log1p(-np.minimum(s**self.rows, 1 - 1e-16)))

    @property
    def middle(self) -> float:
        """Return the similarity at which a pair becomes a candidate in one case of two."""
        return float((-np.expm1(-np.log(2) / self.count)) ** (1 / self.rows))


def bands_for(threshold: float, hashes: int = 128, *, misses: float = 0.5) -> Bands:
    """Choose the bands whose S-curve fits a threshold best.

    Parameters
    ----------
    threshold : float in (0, 1)
        Jaccard similarity from which texts count as duplicates.
    hashes : int
        Values in a signature; bands use at most this many.
    misses : float in [0, 1]
        Weight of the area under missed pairs above the threshold; the rest is the weight of the
        area of false candidates below it. Verified pairs can afford 0.9.

    Returns
    -------
    Bands

    Raises
    ------
    ValueError
        If a value lies outside its range.

    Examples
    --------
    >>> bands_for(0.8)
    Bands(count=9, rows=13)
    >>> bands_for(0.8).probability([0.5, 0.8, 0.95]).round(2).tolist()
    [0.0, 0.4, 1.0]
    """
    check_real("threshold", threshold, low=1e-3, high=1 - 1e-3)
    check_whole("hashes", hashes, low=1)
    check_real("misses", misses, low=0, high=1)
    grid = (np.arange(2000) + 0.5) / 2000
    below = grid < threshold
    best, chosen = np.inf, Bands(1, 1)
    for count in range(1, hashes + 1):
        for rows in range(1, hashes // count + 1):
            curve = Bands(count, rows).probability(grid)
            error = (1 - misses) * curve[below].sum() + misses * (1 - curve[~below]).sum()
            if error < best:
                best, chosen = error, Bands(count, rows)
    return chosen


class MinHasher:
    """Turn texts into signatures and band keys.

    Parameters
    ----------
    hashes : int, 1 to 4096
        Values in a signature. The standard error of an estimated similarity s is
        sqrt(s(1-s)/hashes) or a little less.
    ngram : int, at least 1
        Units in an n-gram. SlimPajama takes 13 characters (from memory).
    unit : {"character", "word"}
    seed : int
        Signatures are comparable only where these four agree.

    Raises
    ------
    ValueError
        If a setting lies outside its range.

    Examples
    --------
    >>> hasher = MinHasher(hashes=512)
    >>> one, other = hasher.signatures(["the cat sat on the mat", "the cat sat on the mat!"])
    >>> bool((one == other).all())
    True
    """

    def __init__(
        self, *, hashes: int = 128, ngram: int = 13, unit: str = "character", seed: int = 0
    ):
        check_whole("hashes", hashes, low=1, high=4096)
        check_whole("ngram", ngram, low=1)
        if unit not in UNITS:
            raise UsageError(f"unit must be one of {', '.join(UNITS)}, got {unit!r}")
        self.hashes, self.ngram, self.unit, self.seed = hashes, ngram, unit, seed
        self._salt = np.uint64(split(seed, "shingles"))
        walks = rng(seed, "walks").random((hashes, hashes))
        np.fill_diagonal(walks, -1.0)  # every walk begins at its own bin
        self._walks = walks.argsort(axis=1).astype(np.int32)

    def signatures(self, texts: Sequence[str]) -> Hashes:
        """Return the signatures of texts, shape (texts, hashes); an empty text has all ones."""
        texts = list(texts)
        parts = [
            self.of_shingles(
                shingles(texts[start : start + _BATCH], ngram=self.ngram, unit=self.unit)
            )
            for start in range(0, len(texts), _BATCH)
        ]
        return np.concatenate(parts) if parts else np.empty((0, self.hashes), np.uint64)

    def of_shingles(self, grams: Shingles) -> Hashes:
        """Return the signatures of texts given by their ``grams``."""
        texts, bins = len(grams.counts), np.uint64(self.hashes)
        # The salt makes seeds independent; hashing n-grams anew for each would cost more.
        values = mix(grams.hashes ^ self._salt)
        place = ((values >> np.uint64(32)) * bins >> np.uint64(32)).astype(np.int64)
        place += np.repeat(np.arange(texts) * self.hashes, grams.counts)
        least = np.full(texts * self.hashes, _EMPTY)
        np.minimum.at(least, place, values)
        return self._filled(least.reshape(texts, self.hashes))

    def _filled(self, least: Hashes) -> Hashes:
        """Let every empty bin take over the value of the first filled bin of its walk."""
        has = least != _EMPTY
        text, empty = np.nonzero(~has & has.any(axis=1, keepdims=True))
        signatures, step = least.copy(), 1
        while len(text):
            source = self._walks[empty, step]
            found = has[text, source]
            signatures[text[found], empty[found]] = least[text[found], source[found]]
            text, empty, step = text[~found], empty[~found], step + 1
        return signatures

    def similarity(self, one: Hashes, other: Hashes) -> NDArray[np.float64]:
        """Return the estimated Jaccard similarity of signatures, row by row."""
        return np.mean(np.atleast_2d(one) == np.atleast_2d(other), axis=1)

    def keys(self, signatures: Hashes, bands: Bands) -> Hashes:
        """Return one 64-bit key for each band of each signature, shape (texts, bands).

        Texts agree in a band when their keys do, but for a chance of 2**-64 a pair.
        """
        if bands.count * bands.rows > self.hashes:
            raise UsageError(
                f"bands need {bands.count * bands.rows} hashes, the signature has {self.hashes}: "
                "take fewer bands or more hashes"
            )
        cut = signatures[:, : bands.count * bands.rows].reshape(-1, bands.count, bands.rows)
        key = np.zeros(cut.shape[:2], np.uint64)
        with np.errstate(over="ignore"):
            for row in range(bands.rows):
                key = mix((key ^ cut[:, :, row]) * np.uint64(0x9E3779B97F4A7C15))
        return key
