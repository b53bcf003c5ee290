"""The closed form: top eigenpairs of T_beta - reg K^-1, without inverting K.

Functions are scaled to mean square 1 over the N views. On functions f in the range of K,

    mu = <f, T_beta f> - reg ||f||_H^2,   T_beta = (1 - beta) I + beta T,

and K^-1 exists on that range only. Cutting the range at a threshold changes mu, so we do not cut
where reg allows: for c above the largest eigenvalue of T_beta (which is 1), mu is an eigenvalue of
T_beta - reg K^-1 just where 1/(c - mu) is one of the bounded operator

    (c I - T_beta + reg K^-1)^-1 = D^-1/2 [I - (I + D^1/2 K D^1/2 / reg)^-1] D^-1/2,

D = c I - T_beta, in which K stands uninverted. D has two eigenvalues per input, so its roots cost
nothing, and the one Cholesky factor is of a matrix whose eigenvalues are at least 1. Null
directions of K come out as 1/(c - mu) = 0. Only where reg is too small for that (below ``TINY``
of K's own scale) the range is cut at ``tol``.

A few components of many views are searched for (``_interplay_search``), or solved in the range of
a K of low rank (``_interplay_landmarks``), before that operator is formed whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import linalg

from trialrun.core.errors import UsageError
from trialrun.representation._interplay_checks import floor
from trialrun.representation._interplay_factor import Factor
from trialrun.representation._interplay_landmarks import Landmarks, Reduced, solved_whole
from trialrun.representation._interplay_search import GUARDS, Operator, Pairs, search
from trialrun.representation._interplay_views import Array, Groups

ABOVE = 1.1
"""c: just above 1, so that eigenvalues mu near 1 are far apart in 1/(c - mu)."""
TINY = 1e-8
SMALL = 300
PATIENCE = 4
"""Steps in which landmarks must bring a residual to a third, or a factor takes over."""
WIDE, WIDER = 4, 18
"""Functions that the search starts from: so many times those wanted, or so many more if less."""


@dataclass(frozen=True, eq=False)
class Solution:
    """Functions of mean square 1 over the views, best first.

    ``eigenvalues`` (k,) are mu, minus infinity beyond the kernel's rank; ``coef`` (N or features,
    k) gives the functions, ``invariance`` (k,) their <f, T f>, 1 where views of one input agree,
    and ``norms`` (k,) their squared norm in the kernel's space.
    """

    eigenvalues: Array
    coef: Array
    invariance: Array
    norms: Array


def padded(found: Solution, k: int) -> Solution:
    """Add components of value minus infinity where the kernel's rank is below k."""
    lack = k - len(found.eigenvalues)
    if lack <= 0:
        return Solution(*(part[..., :k] for part in vars(found).values()))
    return Solution(
        np.append(found.eigenvalues, np.full(lack, -np.inf)),
        np.pad(found.coef, ((0, 0), (0, lack))),
        np.append(found.invariance, np.full(lack, np.nan)),
        np.append(found.norms, np.full(lack, np.nan)),
    )


def _descending(values: Array, vectors: Array) -> tuple[Array, Array]:
    return values[::-1], vectors[:, ::-1]


class ExactProblem:
    """Views with their whole Gram matrix K (N, N): O(N^3) time, O(N^2) memory."""

    def __init__(self, gram: Array, groups: Groups, *, beta: float, tol: float) -> None:
        self.gram, self.groups, self.beta, self.tol = gram, groups, beta, tol
        self.n = len(gram)
        self.scale = float(np.trace(gram)) / self.n
        """K's eigenvalues as an integral operator add up to this."""

    def solve(self, reg: float, k: int) -> Solution:
        """Return the top k components at regularisation ``reg``."""
        k_here = min(k, self.n)
        if not self.scale > 0:
            empty = np.empty(0)
            return padded(Solution(empty, np.empty((self.n, 0)), empty, empty), k)
        if reg < TINY * self.scale:
            return padded(self._cut(reg, k_here), k)
        if self.n > SMALL and k <= self.n // 8:
            found = self._searched(reg, k)
            if found is not None:
                return padded(self._measured(found.f.T, found.alpha.T, reg), k)
        return padded(self._resolvent(reg, k_here), k)

    @cached_property
    def _landmarks(self) -> Landmarks:
        return Landmarks(self.gram)

    def _searched(self, reg: float, k: int) -> Pairs | None:
        """Return the top functions by products with K, if they are found to full accuracy."""
        operator, landmarks = Operator(self.gram, self.groups, self.beta, reg), self._landmarks
        landmarks.grow(operator.weight)
        count = min(WIDE * k, k + WIDER)
        if landmarks.whole:
            found = solved_whole(operator, landmarks.rows, k)
            if found is not None:
                return found
        elif landmarks.near(operator.weight):
            reduced = Reduced(operator, landmarks)
            start, corrections = reduced.start(count), reduced.corrections(count)
            found = search(operator, start, k, corrections, patience=PATIENCE)
            if found is not None:
                return found
        factor = Factor(operator)
        return search(operator, factor.start(k + GUARDS, count), k, factor)

    def _t_beta(self, f: Array) -> Array:
        return (1 - self.beta) * f + self.beta * self.groups.apply(f)

    def _measured(self, f: Array, alpha: Array, reg: float) -> Solution:
        """Return components from functions f = K alpha at the views, both scaled together."""
        size = np.sqrt((f**2).mean(axis=0))
        f, alpha = f / size, alpha / size
        invariance = (f * self.groups.apply(f)).mean(axis=0)
        norms = (f * alpha).sum(axis=0)
        values = 1 - self.beta + self.beta * invariance - reg * norms
        order = np.argsort(-values, kind="stable")
        return Solution(values[order], alpha[:, order], invariance[order], norms[order])

    def _resolvent(self, reg: float, k: int) -> Solution:
        groups, n = self.groups, self.n
        between = ABOVE - 1.0
        within = ABOVE - (1 - self.beta) - self.beta * groups.within
        into = (np.sqrt(between), np.sqrt(within))
        back = (1 / np.sqrt(between), 1 / np.sqrt(within))
        system = groups.spectral(self.gram * (1 / (reg * n)), *into)
        # D^1/2 (D^1/2 K)^T is D^1/2 K D^1/2, and rows are what lies together in memory.
        system = groups.spectral(np.ascontiguousarray(system.T), *into)
        system.flat[:: n + 1] += 1.0
        try:
            factor = linalg.cholesky(system.T, lower=True, overwrite_a=True, check_finite=False)
        except linalg.LinAlgError as error:
            raise UsageError(
                "kernel must be positive semi-definite on the views: its Gram matrix has a "
                f"negative eigenvalue below -{reg * n:.3g}; use another kernel or a larger reg"
            ) from error

        def inner(f: Array) -> Array:
            return linalg.cho_solve((factor, True), groups.spectral(f, *back), check_finite=False)

        def operator(f: Array) -> Array:
            return groups.spectral(groups.spectral(f, *back) - inner(f), *back)

        whole = operator(np.eye(n))
        theta, f = _descending(*linalg.eigh((whole + whole.T) / 2, subset_by_index=(n - k, n - 1)))
        real = theta > n * np.finfo(float).eps * max(1.0, theta[0])
        theta, f = theta[real], f[:, real]
        # f = K alpha exactly; K is not applied again.
        alpha = groups.spectral(inner(f), *into) / (theta * reg * n)
        return self._measured(f, alpha, reg)

    @cached_property
    def _range(self) -> tuple[Array, Array]:
        """Eigenvalues and eigenvectors of K above ``tol`` of the largest, largest first."""
        w, v = _descending(*linalg.eigh(self.gram, driver="evr", check_finite=False))
        kept = w > floor(self.tol, len(w)) * w[0]
        return w[kept], v[:, kept]

    def _cut(self, reg: float, k: int) -> Solution:
        w, v = self._range
        matrix = v.T @ self._t_beta(v)
        matrix[np.diag_indices_from(matrix)] -= reg * self.n / w
        k, r = min(k, len(w)), len(w)
        matrix = (matrix + matrix.T) / 2
        _, u = _descending(*linalg.eigh(matrix, subset_by_index=(r - k, r - 1)))
        return self._measured(v @ u, v @ (u / w[:, None]), reg)

    def kernel_choice(self, k: int) -> Array:
        """Return coefficients of the kernel's own top k functions, the limit of a large reg."""
        k = min(k, self.n)
        w, v = _descending(*linalg.eigh(self.gram, subset_by_index=(self.n - k, self.n - 1)))
        kept = w > floor(self.tol, self.n) * w[0]
        return np.sqrt(self.n) * v[:, kept] / w[kept]

    def products(self, left: Array, right: Array) -> Array:
        """Return mean products of two sets of functions, given by their coefficients."""
        return (self.gram @ left).T @ (self.gram @ right) / self.n


class PrimalProblem:
    """Functions that are linear in r features: O(N r^2) time, O(r^2) memory.

    ``second`` is the mean of features x features, ``paired`` the mean over pairs of views of one
    input, both (r, r).
    """

    def __init__(self, second: Array, paired: Array, *, beta: float, tol: float) -> None:
        self.second, self.paired, self.beta, self.tol = second, paired, beta, tol
        self.scale = float(np.trace(second))

    def solve(self, reg: float, k: int) -> Solution:
        """Return the top k components at regularisation ``reg``."""
        r = len(self.second)
        if not self.scale > 0:
            empty = np.empty(0)
            return padded(Solution(empty, np.empty((r, 0)), empty, empty), k)
        mixed = (1 - self.beta) * self.second + self.beta * self.paired
        if reg < TINY * self.scale:
            w, v = self._range
            basis = v / np.sqrt(w)
            matrix = basis.T @ mixed @ basis - reg * np.diag(1 / w)
            k_here, rank = min(k, len(w)), len(w)
            matrix = (matrix + matrix.T) / 2
            _, u = _descending(*linalg.eigh(matrix, subset_by_index=(rank - k_here, rank - 1)))
            return padded(self._measured(basis @ u, reg), k)
        resisting = ABOVE * self.second - mixed + reg * np.eye(r)
        k_here = min(k, r)
        theta, w = _descending(
            *linalg.eigh(self.second, resisting, subset_by_index=(r - k_here, r - 1))
        )
        real = theta > r * np.finfo(float).eps * max(1.0, theta[0])
        return padded(self._measured(w[:, real], reg), k)

    def _measured(self, coef: Array, reg: float) -> Solution:
        coef = coef / np.sqrt(np.einsum("ik,ij,jk->k", coef, self.second, coef, optimize=True))
        invariance = np.einsum("ik,ij,jk->k", coef, self.paired, coef, optimize=True)
        norms = (coef**2).sum(axis=0)
        values = 1 - self.beta + self.beta * invariance - reg * norms
        order = np.argsort(-values, kind="stable")
        return Solution(values[order], coef[:, order], invariance[order], norms[order])

    @cached_property
    def _range(self) -> tuple[Array, Array]:
        w, v = _descending(*linalg.eigh(self.second, driver="evr"))
        kept = w > floor(self.tol, len(w)) * w[0]
        return w[kept], v[:, kept]

    def kernel_choice(self, k: int) -> Array:
        """Return coefficients of the kernel's own top k functions, the limit of a large reg."""
        w, v = self._range
        return v[:, :k] / np.sqrt(w[:k])

    def products(self, left: Array, right: Array) -> Array:
        """Return mean products of two sets of functions, given by their coefficients."""
        return left.T @ self.second @ right
