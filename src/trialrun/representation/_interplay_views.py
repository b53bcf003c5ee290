"""Views that come in groups, and the averaging operator T between views of one input."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from trialrun.core.errors import UsageError
from trialrun.representation._interplay_checks import read_labels

Array = NDArray[np.float64]
PAIRS = ("all", "distinct")
ROWS = 256


class Groups:
    """Which input every view comes from, and what averaging over an input's views does.

    With ``pairs="all"`` T averages over all views of the input, a view itself included, and is a
    projection. With ``"distinct"`` it averages over the other views only, which is what a pair of
    fresh views estimates without bias; its eigenvalue is 1 on functions that are constant within
    inputs and -1/(m - 1) on functions whose mean within an input of m views is 0.
    """

    def __init__(self, labels: Any, pairs: str = "all") -> None:
        labels = read_labels(labels)
        if pairs not in PAIRS:
            raise UsageError(f"pairs must be one of {', '.join(PAIRS)}, got {pairs!r}")
        names, self.index = np.unique(labels, return_inverse=True)
        counts = np.bincount(self.index, minlength=len(names))
        self.n, self.n_groups = len(labels), len(names)
        if pairs == "distinct" and counts.min() < 2:
            raise UsageError(
                f"pairs='distinct' needs at least 2 views of every input, got 1 of input "
                f"{names[counts.argmin()]!r}: add views or use pairs='all'"
            )
        own = counts[self.index].astype(float)
        rows = (self.index, np.arange(self.n))
        self._mean = sparse.csr_array((1 / np.sqrt(own), rows), shape=(self.n_groups, self.n))
        self.within = np.zeros(self.n) if pairs == "all" else -1 / (own - 1)
        """Eigenvalue of T, per view, on functions whose mean within the input is 0."""
        self.counts = counts.astype(float)
        self.order = np.argsort(self.index, kind="stable")
        self._starts = np.append(0, np.cumsum(counts)[:-1])
        self._root = 1 / np.sqrt(counts)
        self._blocks = [slice(start, start + ROWS) for start in range(0, self.n, ROWS)]

    def average(self, f: Array) -> Array:
        """Return every column of f (views, columns) averaged within inputs."""
        return (self._mean @ f * self._root[:, None])[self.index]

    def spectral(self, f: Array, between: float, within: Array) -> Array:
        """Multiply what is constant within inputs by ``between``, the rest by ``within``."""
        scaled = (self._mean @ f) * self._root[:, None]
        out = f * within[:, None]
        for rows in self._blocks:
            out[rows] += (between - within[rows])[:, None] * scaled[self.index[rows]]
        return out

    def sums_of_rows(self, f: Array) -> Array:
        """Return sums (functions, inputs) over the views of every input, for rows f."""
        return np.add.reduceat(f[:, self.order], self._starts, axis=1)

    def spectral_rows(self, f: Array, between: float, within: Array) -> Array:
        """Do what ``spectral`` does to functions given as rows (functions, views)."""
        out = (self.sums_of_rows(f) / self.counts)[:, self.index]
        out *= between - within
        if within.any():
            out += f * within
        return out

    def add_blocks(self, matrix: NDArray[Any], weights: Array) -> None:
        """Add ``weights`` times the projection on means of an input to ``matrix``, in place."""
        sizes = self.counts.astype(int)
        for size in np.unique(sizes):
            starts = self._starts[sizes == size]
            views = self.order[starts[:, None] + np.arange(size)]
            added = (weights[views[:, 0]] / size).astype(matrix.dtype)
            matrix[views[:, :, None], views[:, None, :]] += added[:, None, None]

    def apply(self, f: Array) -> Array:
        """Return T f for every column of f (views, columns)."""
        return self.spectral(f, 1.0, self.within)


def read_views(views: Any) -> tuple[Array, NDArray[np.int64]]:
    """Return grouped views (inputs, views, features) as rows, and the input of every row.

    Raises
    ------
    ValueError
        If the array has not three axes, or inputs have unequal numbers of views.
    """
    try:
        stacked = np.asarray(views)
    except ValueError as error:
        raise UsageError(
            "views must have shape (inputs, views, features), got lists of unequal lengths: for "
            "inputs with unequal numbers of views pass the rows as X and say groups"
        ) from error
    if stacked.ndim != 3:
        raise UsageError(
            f"views must have shape (inputs, views, features), got shape {stacked.shape}: for "
            "inputs with unequal numbers of views pass the rows as X and say groups"
        )
    n, m, width = stacked.shape
    return stacked.reshape(n * m, width), np.repeat(np.arange(n), m)


def draw_views(X: Array, augment: Any, n_views: int, random: np.random.Generator) -> Array:
    """Return views (inputs, views, features), each call of ``augment`` giving one of every row.

    Every call gets a copy of X, and what it returns is copied, so that an ``augment`` may work in
    place.

    Raises
    ------
    ValueError
        If ``augment`` returns another number of rows, another width each time, or no number.
    """
    drawn: list[Array] = []
    for _ in range(n_views):
        view = np.array(augment(X.copy(), random), dtype=float)
        if view.ndim != 2 or len(view) != len(X):
            raise UsageError(
                f"augment must return one view per row, shape ({len(X)}, features), got shape "
                f"{view.shape}"
            )
        if drawn and view.shape != drawn[0].shape:
            raise UsageError(
                f"augment must return views of one width, got {drawn[0].shape[1]} and "
                f"{view.shape[1]}"
            )
        if not np.isfinite(view).all():
            raise UsageError("augment returned NaN or infinity: its views must be finite numbers")
        drawn.append(view)
    return np.stack(drawn, axis=1)


def jitter(X: Array, random: np.random.Generator, *, scale: float = 0.1) -> Array:
    """Return X with normal noise of standard deviation ``scale`` added, as an ``augment``.

    Examples
    --------
    >>> jitter(np.zeros((2, 1)), np.random.default_rng(0), scale=0.0).tolist()
    [[0.0], [0.0]]
    """
    return X + scale * random.normal(size=np.shape(X))
