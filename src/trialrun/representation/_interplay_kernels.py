"""Kernels between views, and the features that stand in for a kernel at many views."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse
from sklearn.metrics.pairwise import pairwise_kernels

from trialrun.core.errors import UsageError
from trialrun.representation._interplay_checks import (
    check_gamma,
    check_gram,
    check_kernel,
    doubtful,
    floor,
    read_params,
)
from trialrun.representation._interplay_products import times
from trialrun.representation._interplay_views import Array, Groups

NAMED = ("rbf", "laplacian", "polynomial")
ROWS_AT_ONCE = 4096
COLUMNS = 128
MIRRORED = 24


@dataclass(frozen=True)
class Kernel:
    """A kernel with its settings; ``gamma`` is a number by now."""

    kernel: Any
    gamma: float
    params: dict[str, Any]

    @classmethod
    def read(cls, kernel: Any, gamma: Any, params: Any, features: int) -> Kernel:
        """Check the settings of a kernel and settle gamma (None: 1 / features)."""
        check_kernel(kernel, (*NAMED, "precomputed"))
        check_gamma(gamma)
        told = read_params(kernel, params)
        return cls(kernel, 1 / features if gamma is None else float(gamma), told)

    def check(self, gram: Array, views: Array) -> None:
        """Raise unless the kernel is one, where its name does not say so already.

        Raises
        ------
        ValueError
            If the Gram matrix of ``views`` is not symmetric and positive semi-definite.
        """
        if not doubtful(self.kernel, self.params):
            return
        if callable(self.kernel):  # of the matrix of one set of rows, half is mirrored, not asked
            few = views[:MIRRORED]
            check_gram(self(few, few.copy()))
        check_gram(gram)

    def __call__(self, left: Array, right: Array) -> Array:
        """Return the Gram matrix (rows of left, rows of right)."""
        if self.kernel == "precomputed":
            return left
        if callable(self.kernel):
            return pairwise_kernels(left, right, metric=self.kernel, **self.params)
        if self.kernel == "rbf":
            return rbf(left, right, self.gamma)
        return pairwise_kernels(left, right, metric=self.kernel, gamma=self.gamma, **self.params)


def rbf(left: Array, right: Array, gamma: float) -> Array:
    """Return exp(-gamma |x - y|^2) of all rows (rows of left, rows of right).

    scikit-learn's, which multiplies with NumPy, would leave NumPy's threads in the way of what
    follows (see ``_interplay_products``), and goes over the matrix more often.
    """
    middle = right.mean(axis=0)
    x, y = left - middle, right - middle
    x_size, y_size = (-gamma * np.einsum("ij,ij->i", rows, rows) for rows in (x, y))
    x = np.column_stack([2 * gamma * x, x_size, np.ones(len(x))])
    y = np.column_stack([y, np.ones(len(y)), y_size])
    out = times(x, y, turned=True)
    np.minimum(out, 0.0, out=out)
    if right is left:
        out.flat[:: len(out) + 1] = 0.0
    return np.exp(out, out=out)


@dataclass(frozen=True, eq=False)
class Nystroem:
    """Features k(x, landmarks) L^-T, L L^T being the landmarks' Gram matrix.

    Landmarks that depend on others are left out, so that L has a safe inverse.
    """

    kernel: Kernel
    landmarks: Array
    root: Array

    @classmethod
    def draw(
        cls, kernel: Kernel, views: Array, count: int, tol: float, random: np.random.Generator
    ) -> Nystroem:
        """Choose landmarks among the views, without repeats."""
        count = min(count, len(views))
        landmarks = views[np.sort(random.choice(len(views), count, replace=False))]
        gram = kernel(landmarks, landmarks)
        kernel.check(gram, landmarks)
        largest = gram.diagonal().max()
        if not largest > 0:
            raise UsageError("kernel must be above 0 between a view and itself, got 0 at every one")
        factor, pivots, rank, _ = linalg.lapack.dpstrf(
            gram, tol=floor(tol, count) * largest, lower=1
        )
        lower = np.tril(factor[:rank, :rank])
        inverse = linalg.solve_triangular(lower, np.eye(rank), lower=True)
        return cls(kernel, landmarks[pivots[:rank] - 1], np.ascontiguousarray(inverse.T))

    def __call__(self, x: Array) -> Array:
        """Return the features of every row of x."""
        near = self.kernel(x, self.landmarks)
        out = np.empty_like(near)
        for start in range(0, len(self.root), COLUMNS):  # the root is upper triangular
            stop = min(start + COLUMNS, len(self.root))
            out[:, start:stop] = near[:, :stop] @ self.root[:stop, start:stop]
        return out


@dataclass(frozen=True, eq=False)
class Fourier:
    """Random cosines whose mean product is the kernel: rbf and laplacian only."""

    frequencies: Array
    phases: Array

    @classmethod
    def draw(cls, kernel: Kernel, width: int, count: int, random: np.random.Generator) -> Fourier:
        """Draw frequencies from the kernel's own spectral density."""
        if kernel.kernel == "rbf":
            frequencies = np.sqrt(2 * kernel.gamma) * random.normal(size=(width, count))
        elif kernel.kernel == "laplacian":
            frequencies = kernel.gamma * random.standard_cauchy(size=(width, count))
        else:
            raise UsageError(
                "solver='random_features' knows the kernels rbf and laplacian, got "
                f"{kernel.kernel!r}: use solver='nystroem'"
            )
        return cls(frequencies, random.uniform(0, 2 * np.pi, count))

    def __call__(self, x: Array) -> Array:
        """Return the features of every row of x."""
        waves = x @ self.frequencies
        waves += self.phases
        np.cos(waves, out=waves)
        waves *= np.sqrt(2 / len(self.phases))
        return waves


@dataclass(frozen=True, eq=False)
class Moments:
    """Means over the views: of the features (r,), of their products, and of those in pairs."""

    mean: Array
    second: Array
    paired: Array


def chunks(n: int) -> Iterator[slice]:
    """Cut n rows into slices that fit the cache and memory."""
    return (slice(start, start + ROWS_AT_ONCE) for start in range(0, n, ROWS_AT_ONCE))


def moments(features: Callable[[Array], Array], views: Array, groups: Groups) -> Moments:
    """Accumulate moments over the views without keeping their features.

    The mean product over pairs of one input is that of the inputs' sums, so all it takes besides
    the second moment is a sum per input; views of one input need not be neighbours.
    """
    order = np.argsort(groups.index, kind="stable")
    index, within = groups.index[order], groups.within[order]
    alike = bool((within == within[0]).all())
    mean: Any = 0.0
    second: Any = 0.0
    paired: Any = 0.0
    edges = _whole_inputs(index)
    for low, high in pairwise(edges):
        phi = features(views[order[low:high]])
        own = index[low:high] - index[low]
        eigen = within[low:high]
        # T is (1 - eigen) times the projection on means of an input, plus eigen.
        counts = np.bincount(own)
        weights = np.sqrt((1 - eigen) / counts[own])
        sums = sparse.csr_array((weights, (own, np.arange(high - low)))) @ phi
        product = phi.T @ phi
        mean = mean + phi.sum(axis=0)
        second = second + product
        paired = paired + sums.T @ sums
        if alike:
            paired = paired + eigen[0] * product
        else:
            less = phi * np.sqrt(-eigen)[:, None]
            paired = paired - less.T @ less
    n = len(views)
    return Moments(mean / n, second / n, paired / n)


def _whole_inputs(index: NDArray[np.int64]) -> list[int]:
    """Cut sorted views between inputs, into runs of about `ROWS_AT_ONCE`; returns all edges."""
    ends = np.append(np.flatnonzero(np.diff(index)) + 1, len(index))
    edges = [0]
    while edges[-1] < len(index):
        fitting = np.searchsorted(ends, edges[-1] + ROWS_AT_ONCE, side="right") - 1
        first = np.searchsorted(ends, edges[-1], side="right")
        edges.append(int(ends[max(fitting, first)]))
    return edges
