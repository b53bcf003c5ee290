"""Time KernelVCReg against scikit-learn's KernelPCA, and many views against ten seconds.

Run as ``python benchmarks/bench_ssl_interplay.py [N ...]``; N are numbers of views (2000 4000).
KernelPCA is timed twice: with the eigensolver that it shares with us in kind (``dense``: every
component to full accuracy) and with what it chooses by itself for 6 components (``auto``: Lanczos).
"""

from __future__ import annotations

import sys
import time

import numpy as np
from sklearn.decomposition import KernelPCA
from threadpoolctl import threadpool_limits

from _bench import Row, compare, emit, figure
from trialrun.core.seeds import rng
from trialrun.representation.ssl_interplay import KernelVCReg

CORES = 2
LIMIT = (
    "exact: one Cholesky factor of the N x N Gram matrix, N^3 / 3 products, and two or three "
    "matrices of 8 N^2 bytes; landmarks: 1.9 N r^2 products in all and O(r^2) memory besides "
    "the views"
)


def views(inputs: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return four jittered views of every input as rows, and the input of every row."""
    random = rng(0, "views")
    points = np.repeat(random.normal(size=(inputs, width)), 4, axis=0)
    return points + 0.2 * random.normal(size=points.shape), np.repeat(np.arange(inputs), 4)


def exact(n: int) -> list[Row]:
    """Compare at n views and 6 components."""
    rows, groups = views(n // 4, 5)
    pca = {"kernel": "rbf", "gamma": 0.2, "random_state": 0}

    def ours() -> None:
        KernelVCReg(gamma=0.2, n_components=6, reg=1e-3).fit(rows, groups=groups)

    repeats = 5 if n <= 2000 else 3
    return [
        compare(
            f"ssl_interplay fit / KernelPCA dense, {n} views",
            ours, lambda: KernelPCA(6, eigen_solver="dense", **pca).fit(rows),
            repeats=repeats, at_most=1.5,
        ),
        compare(
            f"ssl_interplay fit / KernelPCA auto, {n} views",
            ours, lambda: KernelPCA(6, eigen_solver="auto", **pca).fit(rows),
            repeats=repeats, at_most=1.5,
        ),
    ]  # fmt: skip


def many(solver: str) -> Row:
    """Time 100,000 views with 1,000 landmarks or features once."""
    rows, groups = views(25_000, 20)
    model = KernelVCReg(
        n_components=6, reg=1e-3, solver=solver, landmarks=1000, random_state=0
    )  # fmt: skip
    began = time.perf_counter()
    model.fit(rows, groups=groups)
    took = time.perf_counter() - began
    return figure(f"ssl_interplay 100k views, 1k, {solver}", took, "seconds", at_most=10.0)


def main() -> list[Row]:
    """Time all rows on two cores, print them and append them to the results."""
    sizes = [int(word) for word in sys.argv[1:]] or [2000, 4000]
    with threadpool_limits(CORES):
        rows = [row for n in sizes for row in exact(n)]
        rows += [many("nystroem"), many("random_features")]
    emit(rows, limit=LIMIT)
    return rows


if __name__ == "__main__":
    main()
