"""Top eigenpairs of a symmetric operator by restarted block Krylov iteration.

A block finds degenerate eigenvalues with all their multiplicity, which single-vector Lanczos may
miss, and turns solves with one vector into solves with many.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

Array = NDArray[np.float64]
EXTRA = 6
DEPTH = 4
RESTARTS = 40
ACCURACY = 1e-10


def _orthonormal(block: Array, basis: Array) -> Array:
    """Return an orthonormal basis of what ``block`` adds to ``basis``; twice is enough."""
    for _ in range(2):
        block = block - basis @ (basis.T @ block)
        block = linalg.qr(block, mode="economic", check_finite=False)[0]
    return block


def top_eigenpairs(operator: Callable[[Array], Array], n: int, k: int) -> tuple[Array, Array]:
    """Return the k largest eigenvalues, largest first, and their eigenvectors (n, k).

    ``operator`` maps (n, columns) to (n, columns). Where the iteration has not converged after
    its restarts, as between eigenvalues that all but coincide, the matrix is solved whole.
    """
    width = k + EXTRA
    start = np.random.default_rng(0).normal(size=(n, width))
    basis = linalg.qr(start, mode="economic", check_finite=False)[0]
    image = operator(basis)
    for _ in range(RESTARTS):
        for _ in range(DEPTH):
            fresh = _orthonormal(image[:, -width:], basis)
            basis = np.hstack([basis, fresh])
            image = np.hstack([image, operator(fresh)])
        small = basis.T @ image
        values, turn = np.linalg.eigh((small + small.T) / 2)
        values, turn = values[::-1][:width], turn[:, ::-1][:, :width]
        basis, image = basis @ turn, image @ turn
        residual = np.linalg.norm(image[:, :k] - values[:k] * basis[:, :k], axis=0)
        if residual.max() <= ACCURACY * abs(values[0]):
            return values[:k], basis[:, :k]
    whole = operator(np.eye(n))
    values, vectors = linalg.eigh((whole + whole.T) / 2, subset_by_index=(n - k, n - 1))
    return values[::-1], vectors[:, ::-1]
