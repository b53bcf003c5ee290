"""Time deduplication against datasketch, the library one would reach for, and against plain loops.

Documents are 2 kB of words from the standard library's source, a tenth of them near-copies. The
throughput target is for two processes. Run as ``python benchmarks/bench_moxin.py``.
"""

import string
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the slow twin

import numpy as np
from datasketch import MinHash, MinHashLSH

from _bench import Row, compare, emit, figure
from _moxin_training import rows as training_rows
from tests.naive.moxin import naive_jaccard
from trialrun.core.seeds import rng
from trialrun.material.stdlib_text import load_stdlib_text
from trialrun.pretraining.moxin import MinHashDedup, MinHasher, contamination

BYTES = 2000
_BARE = str.maketrans("", "", string.punctuation)


def corpus(count: int, seed: int = 0) -> list[str]:
    """Return documents of 2 kB; one in ten is an earlier one with two words changed."""
    words = bytes(load_stdlib_text().train).decode("ascii", "ignore").split()
    draw, texts = rng(seed, "corpus"), []
    for place in range(count):
        if place % 10 == 9:
            copied = texts[int(draw.integers(0, place))].split()
            copied[5], copied[-5] = "changed", "twice"
            texts.append(" ".join(copied))
            continue
        start = int(draw.integers(0, len(words) - 500))
        texts.append(" ".join(words[start : start + 500])[:BYTES])
    return texts


def by_datasketch(texts: list[str]) -> list[int]:
    """Return the places that stay: lower-cased 13-grams of characters, 128 hashes, first wins."""
    index, kept = MinHashLSH(threshold=0.8, num_perm=128), []
    for place, text in enumerate(texts):
        plain = " ".join(text.lower().translate(_BARE).split())
        signature = MinHash(num_perm=128)
        signature.update_batch({plain[i : i + 13].encode() for i in range(len(plain) - 12)})
        if not index.query(signature):
            index.insert(place, signature)
            kept.append(place)
    return kept


def throughput(texts: list[str], jobs: int) -> float:
    """Return documents a second of the fastest of three runs; pools are warm."""
    dedup = MinHashDedup(jobs=jobs)
    dedup.find(texts[:2048])
    best = 0.0
    for _ in range(3):
        began = time.perf_counter()
        dedup.find(texts)
        best = max(best, len(texts) / (time.perf_counter() - began))
    return best


def agreement(texts: list[str]) -> float:
    """Return the share of texts on which datasketch and ours agree whether they stay."""
    ours = set(MinHashDedup().find(texts).kept.tolist())
    theirs = set(by_datasketch(texts))
    return 1 - len(ours ^ theirs) / len(texts)


def main() -> None:
    """Time every row and print the ratios."""
    few, many = corpus(400), corpus(20_000)
    hasher = MinHasher()
    chinese = [
        "".join(chr(0x4E00 + c) for c in rng(i, "zh").integers(0, 5000, 700)) for i in range(400)
    ]
    rows: list[Row] = [
        figure(
            "dedup, 2 kB documents, 2 processes", throughput(many, 2), "documents/s", at_least=5000
        ),
        figure("dedup, 2 kB documents, 1 process", throughput(many, 1), "documents/s"),
        compare(
            "dedup, 400 documents, against datasketch 2",
            lambda: MinHashDedup().find(few),
            lambda: by_datasketch(few),
            repeats=5,
            faster=True,
        ),
        figure("agreement with datasketch, 2000 documents", agreement(many[:2000]), "of documents"),
        compare(
            "verified pairs (link='kept') against candidates alone",
            lambda: MinHashDedup(link="kept").find(many[:4000]),
            lambda: MinHashDedup().find(many[:4000]),
            repeats=5,
        ),
        compare(
            "signatures of Chinese against ASCII, by bytes of UTF-8",
            lambda: hasher.signatures(chinese),
            lambda: hasher.signatures(few),
            repeats=5,
        ),
        compare(
            "8 pairs by signature against the slow twin's sets",
            lambda: hasher.similarity(hasher.signatures(few[:8]), hasher.signatures(few[8:16])),
            lambda: [naive_jaccard(a, b, 13, "character") for a, b in zip(few[:8], few[8:16])],
            repeats=5,
            faster=True,
        ),
        figure(
            "contamination, 1000 items of 40 words, 2 kB documents",
            _scan(many[:2000]),
            "documents/s",
        ),
    ]
    sizes = [2500, 5000, 10_000, 20_000]
    seconds = [1 / (throughput(many[:n], 1) / n) for n in sizes]
    slope = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
    rows.append(figure("dedup: growth of time with documents", slope, "exponent", at_most=1.15))
    rows += training_rows()
    emit(
        rows,
        limit="deduplication folds and hashes every character once: about 40 passes of 8 bytes "
        "over the text; time grows with the documents, memory by 8 bytes a band and document",
    )


def _scan(texts: list[str]) -> float:
    items = [" ".join(text.split()[:40]) for text in corpus(1000, seed=1)]
    began = time.perf_counter()
    contamination(texts, {"items": items})
    return len(texts) / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
