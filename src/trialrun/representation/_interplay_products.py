"""Products and eigenvectors from SciPy's BLAS alone.

The wheels of NumPy and SciPy each carry an OpenBLAS with threads of its own, and threads that have
just worked wait for more in a busy loop. Where ``@`` and a SciPy factor take turns, one library's
idle threads hold the cores that the other needs: a product and a solve of 2.5 ms together took
17 ms by turns on two cores. So the search, which needs SciPy's factors, multiplies with SciPy too.
"""

from __future__ import annotations

from typing import Any

from scipy import linalg


def times(left: Any, right: Any, *, turned: bool = False) -> Any:
    """Return left @ right, or left @ right.T if ``turned``, for two matrices of one type."""
    (product,) = linalg.get_blas_funcs(("gemm",), (left, right))
    # What lies by rows in memory is, to BLAS, the transpose by columns: (l r)^T = r^T l^T.
    by_rows, across = right.flags.c_contiguous, left.flags.c_contiguous
    return product(
        1.0,
        right.T if by_rows else right,
        left.T if across else left,
        trans_a=turned == by_rows,
        trans_b=not across,
    ).T


def eigh(matrix: Any) -> Any:
    """Return eigenvalues, smallest first, and eigenvectors as columns, of a symmetric matrix."""
    return linalg.eigh(matrix, driver="evd", check_finite=False)
