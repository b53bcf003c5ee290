"""Near-duplicates of one corpus: MinHash, bands, verification, groups (broder1997minhash).

Exact copies (of the folded text) are found first, by a 128-bit digest, so that a page repeated a
million times costs a million digests and no pairs. The rest are joined band by band: only one
band's keys are looked at at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray

from trialrun.core.errors import UsageError
from trialrun.pretraining._checks import check_real, check_whole
from trialrun.pretraining._components import (
    Pairs,
    all_pairs,
    nearest_kept,
    star_pairs,
    union,
)
from trialrun.pretraining._documents import Stream, as_documents, chunks
from trialrun.pretraining._minhash import (
    _BATCH,
    Bands,
    MinHasher,
    bands_for,
)
from trialrun.pretraining._normalise import fold
from trialrun.pretraining._shingles import Hashes, jaccard, shingles, shingles_of_folded
from trialrun.pretraining._spool import Spool

LINKS = ("component", "verified", "kept")
_CHUNK = 1024  # texts handed to a worker at a time
_NEIGHBOURS = 64  # pairs looked at for each text of a bucket
_VERIFIED_AT_ONCE = 2048


@dataclass(frozen=True, eq=False)
class Duplicates:
    """What was found, by place in the corpus.

    Parameters
    ----------
    stands_for : int array of shape (texts,)
        The place of the text that stays in this one's stead; its own where it stays itself.
    pairs : int array of shape (pairs, 2)
        Candidate pairs of distinct texts that were linked, the earlier place first; with
        ``link="component"`` only as many as connect each bucket.
    similarity : float array of shape (pairs,)
        Exact Jaccard similarity of each pair; NaN where it was not asked for.
    copies : int
        Texts that are exact copies, once folded, of an earlier one.
    left_out : int
        Pairs that share a bucket of more than 65 texts and were not compared there, of the band
        where they are most. Each text of such a bucket is compared with the 64 before it, the 64
        after it, and the bucket's first; so what is alike to the first is found, whatever the
        bucket's size, and of two others that stand far apart it may be missed.
    bands : Bands
    """

    stands_for: NDArray[np.int64]
    pairs: Pairs
    similarity: NDArray[np.float64]
    copies: int
    left_out: int
    bands: Bands

    @property
    def kept(self) -> NDArray[np.int64]:
        """Return the places of the texts that stay, rising."""
        return np.flatnonzero(self.stands_for == np.arange(len(self.stands_for)))


def digest_and_keys(texts: Sequence[str], hasher: MinHasher, bands: Bands) -> tuple[Hashes, Hashes]:
    """Return 128-bit digests, shape (texts, 2), and band keys, shape (texts, bands)."""
    digests = np.empty((len(texts), 2), np.uint64)
    keys = np.empty((len(texts), bands.count), np.uint64)
    for start in range(0, len(texts), _BATCH):
        part = [fold(text) for text in texts[start : start + _BATCH]]
        raw = b"".join(
            hashlib.blake2b(t.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            for t in part
        )
        stop = start + len(part)
        digests[start:stop] = np.frombuffer(raw, "<u8").reshape(-1, 2)
        grams = shingles_of_folded(part, ngram=hasher.ngram, unit=hasher.unit)
        keys[start:stop] = hasher.keys(hasher.of_shingles(grams), bands)
    return digests, keys


class MinHashDedup:
    """Find near-duplicate texts, and let one of each group through (broder1997minhash).

    Called on a stream it is a step of a pipeline: it reads the stream to its end, then yields the
    documents that stay, in their order. Give ``spool`` a folder for streams that do not fit in
    memory: documents and band keys then lie on disk, and memory holds some 100 bytes a document.

    Parameters
    ----------
    threshold : float in (0, 1)
        Jaccard similarity of sets of n-grams from which texts count as duplicates. It sets the
        bands, whose S-curve ``bands.probability`` tells how many pairs are found at a similarity;
        with the links "verified" and "kept" it is also asked of every pair exactly.
    hashes, ngram, unit, seed
        Of the signatures; see `MinHasher`.
    link : {"component", "verified", "kept"}
        How candidate pairs make groups. "component": all that are connected, pairs taken as they
        come (SlimPajama's way; chains may join texts that are not alike). "verified": connected by
        pairs whose exact similarity reaches the threshold; chains A-B-C remain. "kept": no chains
        at all: a text goes only if it is that similar to a text that stays.
    jobs : int
        Worker processes for the signatures (joblib's loky backend).
    spool : str, Path or None
        Folder for temporary files; they are removed at the end.

    Attributes
    ----------
    bands : Bands
    found : Duplicates
        Of the last stream.

    Raises
    ------
    ValueError
        If a setting lies outside its range.

    Examples
    --------
    >>> page = "All work and no play makes Jack a dull boy. " * 3
    >>> dedup = MinHashDedup(threshold=0.8, link="kept")
    >>> [d.id for d in dedup([page, "Something else.", page.upper()])]
    ['0', '1']
    >>> dedup.found.stands_for.tolist()
    [0, 1, 0]
    """

    def __init__(
        self,
        *,
        threshold: float = 0.8,
        hashes: int = 128,
        ngram: int = 13,
        unit: str = "character",
        link: str = "component",
        jobs: int = 1,
        spool: str | Path | None = None,
        seed: int = 0,
    ):
        check_real("threshold", threshold, low=1e-3, high=1 - 1e-3)
        if link not in LINKS:
            raise UsageError(f"link must be one of {', '.join(LINKS)}, got {link!r}")
        check_whole("jobs", jobs, low=1)
        self.hasher = MinHasher(hashes=hashes, ngram=ngram, unit=unit, seed=seed)
        self.threshold, self.link, self.jobs, self.spool = threshold, link, jobs, spool
        # Verified pairs can afford false candidates: fewer true ones are missed.
        self.bands = bands_for(threshold, hashes, misses=0.5 if link == "component" else 0.9)

    def __call__(self, stream: Stream, _rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Yield the documents of ``stream`` that stay.

        Raises
        ------
        UsageError
            If ``world_size`` is above 1: one task would not see the others' duplicates.
        """
        if world_size != 1:
            raise UsageError(
                f"MinHashDedup sees one task's documents and there are {world_size} tasks: use "
                "WriteKeys in them, then join_keys, then DropDuplicates"
            )
        with Spool(self.spool, self.bands.count) as spool:
            self._read(as_documents(stream), spool)
            self.found = self._find(spool.digests(), spool.keys, spool.texts)
            stays = self.found.stands_for == np.arange(len(self.found.stands_for))
            yield from spool.documents(stays)

    def find(self, texts: Sequence[str]) -> Duplicates:
        """Return the duplicates among ``texts``.

        Raises
        ------
        UsageError
            If there is no text, or ``texts`` is one string.
        """
        with Spool(None, self.bands.count) as spool:
            self._read(as_documents(texts), spool)
            if not spool.count:
                raise UsageError("texts must hold at least one text, got an empty collection")
            return self._find(spool.digests(), spool.keys, spool.texts)

    def _read(self, documents: Iterable[Any], spool: Spool) -> None:
        def noted() -> Iterator[list[str]]:
            for chunk in chunks(documents, _CHUNK):
                spool.add_documents(chunk)
                yield [document.text for document in chunk]

        if self.jobs == 1:
            for texts in noted():
                spool.add_keys(*digest_and_keys(texts, self.hasher, self.bands))
            return
        pool = Parallel(self.jobs, return_as="generator", pre_dispatch="2*n_jobs", batch_size=1)
        for made in pool(delayed(digest_and_keys)(t, self.hasher, self.bands) for t in noted()):
            spool.add_keys(*made)

    def _find(
        self,
        digests: Hashes,
        keys: Callable[[int], Hashes],
        texts: Callable[[NDArray[np.int64]], list[str]],
    ) -> Duplicates:
        first, copy_of = first_of_equal(digests)
        if self.link == "component":
            # A signature that equals another's agrees with it in every band.
            stands = np.arange(len(first))
            linked = []
            for band in range(self.bands.count):
                pairs = star_pairs(keys(band)[first])
                pairs = pairs[stands[pairs[:, 0]] != stands[pairs[:, 1]]]
                stands = union(len(first), pairs, stands)
                linked.append(pairs)
            pairs = np.concatenate(linked)
            similarity, left_out = np.full(len(pairs), np.nan), 0
        else:
            pairs, left_out = self._candidates(len(first), lambda band: keys(band)[first])
            similarity = self._similarity(pairs, lambda places: texts(first[places]))
            close = similarity >= self.threshold
            pairs, similarity = pairs[close], similarity[close]
            joined = union if self.link == "verified" else nearest_kept
            stands = joined(len(first), pairs)
        return Duplicates(
            stands_for=first[stands][copy_of],
            pairs=first[pairs],
            similarity=similarity,
            copies=len(copy_of) - len(first),
            left_out=left_out,
            bands=self.bands,
        )

    def _candidates(self, count: int, keys: Callable[[int], Hashes]) -> tuple[Pairs, int]:
        codes, left_out = np.empty(0, np.int64), 0
        for band in range(self.bands.count):
            of_band = keys(band)
            found = all_pairs(of_band, _NEIGHBOURS)
            both = np.concatenate([found.pairs, star_pairs(of_band)])
            here = np.unique(both[:, 0] * count + both[:, 1])
            codes = np.union1d(codes, here)
            left_out = max(left_out, found.left_out - (len(here) - len(found.pairs)))
        return np.stack([codes // max(1, count), codes % max(1, count)], axis=1), left_out

    def _similarity(
        self, pairs: Pairs, texts: Callable[[NDArray[np.int64]], list[str]]
    ) -> NDArray[np.float64]:
        """Return the exact similarity of each pair; few texts are in memory at a time."""
        parts = []
        for start in range(0, len(pairs), _VERIFIED_AT_ONCE):
            some = pairs[start : start + _VERIFIED_AT_ONCE]
            places, which = np.unique(some, return_inverse=True)
            sets = self._sets(texts(places))
            which = which.reshape(-1, 2)
            parts.append(np.array([jaccard(sets[a], sets[b]) for a, b in which]))
        return np.concatenate(parts) if parts else np.empty(0)

    def _sets(self, texts: Sequence[str]) -> list[Hashes]:
        made: list[Hashes] = []
        for batch in chunks(texts, _BATCH):
            grams = shingles(batch, ngram=self.hasher.ngram, unit=self.hasher.unit)
            made += [np.unique(s) for s in np.split(grams.hashes, np.cumsum(grams.counts)[:-1])]
        return made


def first_of_equal(rows: Hashes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the places of the first of equal rows, rising, and each row's place among those."""
    order = np.lexsort(rows.T)  # stable: equal rows stay in their order
    new = np.ones(len(rows), bool)
    new[1:] = (rows[order[1:]] != rows[order[:-1]]).any(axis=1)
    heads = np.empty(len(rows), np.int64)
    heads[order] = order[new][np.cumsum(new) - 1]
    first = np.flatnonzero(heads == np.arange(len(rows)))
    return first, np.searchsorted(first, heads)
