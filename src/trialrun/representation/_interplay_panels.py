"""A Cholesky factor cut into panels, for solves with a few columns.

Such a solve costs what it takes to read the factor. LAPACK's reads the two halves of the matrix
that hold it at the speed of one column after another; panels that lie together in memory, each
with the inverse of its diagonal block, are read by plain products, which also use every core. The
inverses are rounded as blocks of `WIDTH`, so this is for preconditioners, not for last digits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import linalg

WIDTH = 64


class Panels:
    """L of a positive definite matrix L L^T, as panels of `WIDTH` columns.

    Parameters
    ----------
    matrix : array of shape (n, n), by columns in memory
        Its lower half is read, and the whole is overwritten.

    Raises
    ------
    numpy.linalg.LinAlgError
        If the matrix is not positive definite.
    """

    def __init__(self, matrix: Any) -> None:
        factor, _ = linalg.cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False)
        (inverse,) = linalg.get_lapack_funcs(("trtri",), (factor,))
        (self._times,) = linalg.get_blas_funcs(("gemm",), (factor,))
        n, self.dtype = len(factor), factor.dtype
        self._panels = []
        for low in range(0, n, WIDTH):
            rows = slice(low, min(low + WIDTH, n))
            corner = np.asfortranarray(np.tril(factor[rows, rows]))
            below = np.asfortranarray(factor[rows.stop :, rows])
            self._panels.append((rows, inverse(corner, lower=1)[0], below))

    def solve(self, right: Any) -> Any:
        """Return (L L^T)^-1 right, shape (n, columns), for ``right`` of the factor's type."""
        times = self._times
        x = np.array(right, order="F")
        for rows, corner, below in self._panels:
            x[rows] = times(1.0, corner, x[rows])
            x[rows.stop :] -= times(1.0, below, x[rows])
        for rows, corner, below in reversed(self._panels):
            rest = x[rows] - times(1.0, below, x[rows.stop :], trans_a=True)
            x[rows] = times(1.0, corner, rest, trans_a=True)
        return x
