"""Landmark views: K nearly L L^T, and what the search makes of it.

A partial Cholesky factor with random pivots, chosen in blocks in proportion to what is still
missing of K's diagonal. The missing part of K is positive semi-definite and its trace is known
exactly. Where its norm is not far above reg N, the problem within the landmarks' span, solved
whole, is a good start and gives good corrections: (mu - A)^-1 with L L^T in place of K has

    alpha = [rho - (mu - T_beta) L (reg N + L^T (mu - T_beta) L)^-1 L^T rho] / (reg N).
"""

from __future__ import annotations

import numpy as np
from scipy import linalg

from trialrun.representation._interplay_products import eigh, times
from trialrun.representation._interplay_search import Operator, Pairs, certified
from trialrun.representation._interplay_views import Array, Groups

BLOCK = 48
SHARE, MOST = 4, 600
"""At most one landmark in four views, and 600."""
LESS, FAST = 8, 0.5
"""One in eight unless a block of landmarks halves what is missing."""
STEEP = 0.03
"""What a block leaves where K falls so fast that the whole of it is soon there."""
NEAR, FAR = 0.5, 8.0
"""Norm of what is missing in units of reg N: enough, and the most that corrections can bear."""
HOPELESS, POWERS = 3000.0, 3
"""A trace, in the same units, at which slow growth is given up at once; products for the norm."""
ROUNDING = 1e-13
RANDOM = 2
"""Functions at random among those to start from."""
APART = 1e-3
"""Share of a block's largest pivot, or of 1 in a denominator, that is not gone below."""


class Landmarks:
    """L as rows (landmarks, views), grown on demand."""

    def __init__(self, gram: Array) -> None:
        n = len(gram)
        self.gram, self.left = gram, gram.diagonal().copy()
        self.floor = ROUNDING * float(self.left.max())
        self.most = max(min(n // SHARE, MOST), min(n, 2 * BLOCK))
        self._rows, self.size = np.empty((self.most, n)), 0
        self._random = np.random.default_rng(0)

    @property
    def rows(self) -> Array:
        """Return L^T."""
        return self._rows[: self.size]

    @property
    def missing(self) -> float:
        """Return the trace of K - L L^T, at least its norm."""
        return float(self.left.sum())

    @property
    def whole(self) -> bool:
        """Tell whether L L^T is K up to rounding."""
        return bool(self.left.max() <= self.floor)

    def grow(self, weight: float) -> None:
        """Add landmarks until little is missing in units of ``weight``, or too slowly gets less."""
        fewer = max(self.most * SHARE // LESS, 2 * BLOCK)
        fell = 1.0
        while self.size < self.most and not self.whole:
            before = self.missing
            if before <= NEAR * weight and fell > STEEP:
                return
            self._add(min(BLOCK, self.most - self.size))
            fell = self.missing / before
            if fell > FAST and (self.size >= fewer or self.missing > HOPELESS * weight):
                return

    def near(self, weight: float) -> bool:
        """Tell whether the norm of K - L L^T is below `FAR` of ``weight``, by a power iteration."""
        if self.missing <= FAR * weight:
            return True
        x = self._random.normal(size=(2, len(self.gram)))
        for _ in range(POWERS):
            x /= np.sqrt(np.einsum("ij,ij->i", x, x))[:, None]
            x = times(x, self.gram) - times(times(x, self.rows, turned=True), self.rows)
            norm = float(np.sqrt(np.einsum("ij,ij->i", x, x)).max())
            if norm > FAR * weight:
                return False
        return True

    def _add(self, count: int) -> None:
        left = np.where(self.left > self.floor, self.left, 0.0)
        count = min(count, int((left > 0).sum()))
        some = self._random.choice(len(left), count, replace=False, p=left / left.sum())
        fresh = self.gram[some] - times(self.rows[:, some].T, self.rows)
        among = fresh[:, some]
        # Of candidates that are alike one does; what is dropped may be drawn again.
        factor, pivots, rank, _ = linalg.lapack.dpstrf(
            among, tol=max(APART * among.diagonal().max(), self.floor), lower=1
        )
        order, lower = pivots[:rank] - 1, factor[:rank, :rank]
        fresh = linalg.solve_triangular(lower, fresh[order], lower=True, check_finite=False)
        self._rows[self.size : self.size + rank] = fresh
        self.size += rank
        self.left -= np.einsum("ij,ij->j", fresh, fresh)
        self.left[some[order]] = 0.0
        np.maximum(self.left, 0.0, out=self.left)


def solved_whole(operator: Operator, rows: Array, k: int) -> Pairs | None:
    """Return the top functions, at most k, of a K that landmarks have whole, or None as search.

    In the basis V of K = V S V^T nothing but S is small or large:

        (c - A)^-1 = V S^1/2 [reg N + S^1/2 (c - V^T T_beta V) S^1/2]^-1 S^1/2 V^T.
    """
    q, lower = linalg.qr(rows.T, mode="economic", check_finite=False)
    turn, root, _ = linalg.svd(lower, check_finite=False)
    some = root > np.sqrt(ROUNDING) * root[0]
    v, root = times(turn[:, some].T, q.T), root[some]
    system = operator.shift * np.eye(len(v)) - times(v, operator.t_beta(v), turned=True)
    system = root[:, None] * (system + system.T) / 2 * root
    system.flat[:: len(v) + 1] += operator.weight
    factor = linalg.cho_factor(system, lower=True, check_finite=False)
    inverse = root[:, None] * linalg.cho_solve(factor, np.diag(root), check_finite=False)
    theta, c = eigh((inverse + inverse.T) / 2)
    theta, c = theta[::-1][:k], c[:, ::-1][:, :k]
    alpha = linalg.cho_solve(factor, root[:, None] * c, check_finite=False) / root[:, None]
    return certified(operator, times((alpha / theta).T, v), span=v)


class Reduced:
    """The problem within the landmarks' span, solved whole."""

    def __init__(self, operator: Operator, landmarks: Landmarks) -> None:
        self.of, self.rows = operator, landmarks.rows
        second = times(self.rows, self.rows, turned=True)
        resisting = operator.shift * second - _form(self.rows, operator.groups, operator.within)
        resisting.flat[:: len(second) + 1] += operator.weight
        theta, vectors = linalg.eigh(
            (second + second.T) / 2, (resisting + resisting.T) / 2, check_finite=False
        )
        self.theta, self.vectors = theta[::-1], np.ascontiguousarray(vectors[:, ::-1])
        """1 / (shift - mu), largest first, and L's coefficients of the functions."""
        self.rank = int((self.theta > len(theta) * np.finfo(float).eps * self.theta[0]).sum())

    def start(self, count: int) -> Array:
        """Return alpha of the best ``count`` functions and of a few at random."""
        op, n = self.of, self.of.n
        theta = self.theta[: min(count, self.rank)]
        f = times(self.vectors[:, : len(theta)].T, self.rows)
        alpha = op.t_beta(f) - (op.shift - 1 / theta)[:, None] * f
        # Not in the span of landmarks that happen to share a symmetry.
        extra = np.random.default_rng(0).normal(size=(RANDOM, n))
        return np.vstack([alpha, extra])

    def corrections(self, count: int) -> _Correction:
        """Return the search's corrections, the best ``count`` functions left to the search."""
        return _Correction(self, count)


class _Correction:
    """(mu - A)^-1 as the landmarks see it, without the functions that are searched already."""

    def __init__(self, reduced: Reduced, count: int) -> None:
        self.of, self.rows = reduced.of, reduced.rows
        self.theta = reduced.theta[count:]
        self.vectors = times(reduced.vectors[:, count:].T, self.rows)

    def __call__(self, rho: Array, mu: Array) -> Array:
        """Return alpha of corrections for residuals (functions, views)."""
        away = np.maximum(1 - (self.of.shift - mu[:, None]) * self.theta, APART)
        inside = times(times(rho, self.vectors, turned=True) / away, self.vectors)
        return (rho - mu[:, None] * inside + self.of.t_beta(inside)) / self.of.weight


def _form(rows: Array, groups: Groups, within: Array) -> Array:
    """Return <f, T_beta g> for all pairs of functions given as rows."""
    means = groups.sums_of_rows(rows * np.sqrt(1 - within)) / np.sqrt(groups.counts)
    out = times(means, means, turned=True)
    if within.any():
        out += times(rows * within, rows, turned=True)
    return out
