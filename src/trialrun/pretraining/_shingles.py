"""Hashes of all n-grams of many texts at once.

The hash of an n-gram is a polynomial in its units, modulo 2**64, built by doubling: the hash of
2m units is that of the first m times B**m plus that of the second m, so that 13 units take five
passes over the array in place of twelve. Units are characters or whole words.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trialrun.core.errors import UsageError
from trialrun.pretraining._normalise import fold

UNITS = ("character", "word")
Hashes = NDArray[np.uint64]

_BASE = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_NOTHING = 0x110000  # above every code point: fills texts shorter than an n-gram


def mix(values: Hashes) -> Hashes:
    """Spread 64-bit numbers over all 64 bits, in place and one to one (splitmix64's finish)."""
    with np.errstate(over="ignore"):
        values ^= values >> np.uint64(30)
        values *= np.uint64(0xBF58476D1CE4E5B9)
        values ^= values >> np.uint64(27)
        values *= np.uint64(0x94D049BB133111EB)
        values ^= values >> np.uint64(31)
    return values


_ASCII_CODES = mix(np.arange(1, 129, dtype=np.uint64) * np.uint64(_BASE))


class Shingles(NamedTuple):
    """Hashes of n-grams, text after text.

    ``hashes`` holds every n-gram's hash, repeats included; ``counts[i]`` of them belong to text i.
    A text shorter than n units has one shingle, itself; an empty one has none.
    """

    hashes: Hashes
    counts: NDArray[np.int64]


def _character_codes(folded: Sequence[str]) -> tuple[Hashes, NDArray[np.int64]]:
    lengths = np.fromiter(map(len, folded), np.int64, len(folded))
    joined = "".join(folded)
    if joined.isascii():
        return _ASCII_CODES[np.frombuffer(joined.encode(), np.uint8)], lengths
    points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    return mix((points.astype(np.uint64) + np.uint64(1)) * np.uint64(_BASE)), lengths


def _word_codes(folded: Sequence[str]) -> tuple[Hashes, NDArray[np.int64]]:
    split = [text.split() for text in folded]
    lengths = np.fromiter(map(len, split), np.int64, len(split))
    # Each distinct word is hashed once a batch: two checksums make its 64 bits.
    seen: dict[str, int] = {}
    places = np.fromiter(
        (seen.setdefault(word, len(seen)) for words in split for word in words),
        np.int64,
        int(lengths.sum()),
    )
    table = np.fromiter(
        (
            zlib.crc32(raw) << 32 | zlib.adler32(raw)
            for raw in (word.encode("utf-8", "surrogatepass") for word in seen)
        ),
        np.uint64,
        len(seen),
    )
    return mix(table)[places], lengths


def rolling(codes: Hashes, size: int) -> Hashes:
    """Return the hash of every run of ``size`` neighbouring codes."""
    if len(codes) < size:
        return np.empty(0, np.uint64)
    part, width = codes, 1  # hashes of `width` units
    whole: Hashes | None = None
    done, left = 0, size
    with np.errstate(over="ignore"):
        while True:
            if left & 1:
                if whole is None:
                    whole, done = part, width
                else:
                    power = np.uint64(pow(_BASE, done, 1 << 64))
                    count = len(codes) - done - width + 1
                    whole = part[:count] * power + whole[width : width + count]
                    done += width
            left >>= 1
            if not left:
                assert whole is not None
                return whole
            power = np.uint64(pow(_BASE, width, 1 << 64))
            part = part[:-width] * power + part[width:]
            width *= 2


def shingles(texts: Sequence[str], *, ngram: int, unit: str = "character") -> Shingles:
    """Return the hashes of all n-grams of texts, which are folded first.

    Parameters
    ----------
    texts : sequence of str
    ngram : int, at least 1
        Units in an n-gram.
    unit : {"character", "word"}
        Words are separated by white space: take characters for scripts without it.
    """
    folded = [fold(text) for text in texts]
    return shingles_of_folded(folded, ngram=ngram, unit=unit)


def shingles_of_folded(folded: Sequence[str], *, ngram: int, unit: str) -> Shingles:
    """Return the hashes of all n-grams of texts that are folded already."""
    if unit not in UNITS:
        raise UsageError(f"unit must be one of {', '.join(UNITS)}, got {unit!r}")
    codes, lengths = _character_codes(folded) if unit == "character" else _word_codes(folded)
    codes, lengths = _filled(codes, lengths, ngram)
    counts = np.where(lengths > 0, lengths - ngram + 1, 0)
    hashes = mix(rolling(codes, ngram))
    if len(folded) == 1:
        return Shingles(hashes, counts)
    # Runs that reach over the end of a text belong to none.
    spans = np.stack([counts, lengths - counts], axis=1).reshape(-1)
    inside = np.repeat(np.tile([True, False], len(folded)), spans)
    return Shingles(hashes[inside[: len(hashes)]], counts)


def _filled(
    codes: Hashes, lengths: NDArray[np.int64], least: int
) -> tuple[Hashes, NDArray[np.int64]]:
    """Lengthen texts that have some units but fewer than ``least``."""
    short = (lengths > 0) & (lengths < least)
    if not short.any():
        return codes, lengths
    nothing = mix(np.array([_NOTHING * _BASE & _MASK], np.uint64))
    ends = np.cumsum(lengths)[short]
    lacking = (least - lengths)[short]
    filled = np.insert(codes, np.repeat(ends, lacking), nothing[0])
    return filled, np.where(short, least, lengths)


def jaccard(one: Hashes, other: Hashes) -> float:
    """Return the share of shingles that two sets have in common; both sorted and without repeats.

    Two empty sets are alike.
    """
    if not len(one) and not len(other):
        return 1.0
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)
