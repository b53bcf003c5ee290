"""Time KernelVCReg against scikit-learn's KernelPCA, and many views against ten seconds.

Run as ``python benchmarks/bench_ssl_interplay.py [N ...]``; N are numbers of views, by default
1000 2000 4000. KernelPCA is timed as it comes (``auto``: Lanczos for 6 components of more than 200
rows), on a smooth kernel (2 features, numerically of low rank) and a rough one (20 features, of
full rank), and at reg 1e-3 also with its dense solver, which, like ours before it had a search,
decomposes the whole matrix.
"""

from __future__ import annotations

import sys
import time
from functools import partial

import numpy as np
from sklearn.decomposition import KernelPCA
from threadpoolctl import threadpool_limits

from _bench import Row, compare, emit, figure
from trialrun.core.seeds import rng
from trialrun.dossiers.ssl_interplay.worlds import half_moons, jittered
from trialrun.representation.ssl_interplay import KernelVCReg

CORES = 2
REGS = (1e-6, 1e-4, 1e-3, 1e-1)
REST = 0.1
"""Seconds in which the threads of NumPy's and SciPy's BLAS go to sleep."""
LIMIT = (
    "exact: the N x N Gram matrix and some 10 products of it with 8 columns where landmarks come "
    "near the kernel, else one Cholesky factor, N^3 / 3 in single precision, 20 solves and 5 to 20 "
    "products; two or three matrices of 8 N^2 bytes. Below 2000 views the factor's share and some "
    "30 ms of small steps show, and KernelPCA takes 15 ms: up to 3 times that. landmarks: "
    "1.9 N r^2 products in all and O(r^2) memory besides the views"
)


def views(inputs: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return four jittered views of every input as rows, and the input of every row."""
    if width == 2:
        points, scale = half_moons(inputs, 0, "benchmark").points, 0.1
        return jittered(points, scale=scale, n_views=4, seed=0).reshape(-1, 2), _owners(inputs)
    random = rng(0, "views")
    points = np.repeat(random.normal(size=(inputs, width)), 4, axis=0)
    return points + 0.2 * random.normal(size=points.shape), _owners(inputs)


def _owners(inputs: int) -> np.ndarray:
    return np.repeat(np.arange(inputs), 4)


def exact(n: int) -> list[Row]:
    """Compare at n views and 6 components."""
    found = []
    for name, width, gamma in (("smooth", 2, 5.6), ("rough", 20, 0.05)):
        rows, groups = views(n // 4, width)
        pca = {"kernel": "rbf", "gamma": gamma, "random_state": 0}
        for reg in REGS:
            model = KernelVCReg(gamma=gamma, n_components=6, reg=reg)
            for solver in ("auto", "dense") if reg == 1e-3 else ("auto",):
                other = KernelPCA(6, eigen_solver=solver, **pca)
                found.append(
                    compare(
                        f"ssl_interplay fit / KernelPCA {solver}, {n}, {name}, reg {reg:g}",
                        partial(model.fit, rows, groups=groups), partial(other.fit, rows),
                        repeats=9 if n <= 2000 else 3, at_most=1.5, rest=REST,
                    )
                )  # fmt: skip
    return found


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
    sizes = [int(word) for word in sys.argv[1:]] or [1000, 2000, 4000]
    with threadpool_limits(CORES):
        rows = [row for n in sizes for row in exact(n)]
        rows += [many("nystroem"), many("random_features")]
    emit(rows, limit=LIMIT)
    return rows


if __name__ == "__main__":
    main()
