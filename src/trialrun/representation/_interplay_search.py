"""Top components of A = T_beta - reg N K^-1 by products with K, each accepted by its residual.

A function f = K alpha is kept as the pair (f, alpha), so that A f = T_beta f - reg N alpha needs
neither K^-1 nor a solve. The search (block generalised Davidson) adds corrections of the residuals
rho = A f - mu f to a space of such pairs and takes the best functions in it. How good a correction
is decides how many steps it takes: what comes back has |rho| at most ``SHARE`` of the distance from
mu_k to 1 (more where reg N is so small that rounding in K alpha forbids it), and at most 3 times
that measured once more on fresh products. An eigenvalue is off by |rho|^2 over its gap, so by far
less; the span of the functions by |rho| over the gap behind the last one. Residuals do not prove
that no better function was missed; a block of more than k functions, some of them random, guards
against it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from trialrun.representation._interplay_products import eigh, times
from trialrun.representation._interplay_views import Array, Groups

SHARE, FLOOR, ROUNDING = 1e-8, 1e-12, 5e-15
"""Accepted residual: relative, absolute, and relative times K's scale over reg."""
GUARDS = 2
"""Functions behind the k-th that are corrected too, lest one of them belongs before it."""
STEPS, PATIENCE, ROOM = 60, 12, 100
"""Most steps, steps in which the residual must fall to a third, functions before a restart."""
TRIES, BURIED, LOST, DEPENDENT = 2, 1e-3, 1e-6, 1e-5
"""Products per addition, and the new share of a function that calls for the second, that is too
little to be kept, and that two additions must not have in common."""


class Pairs(NamedTuple):
    """Functions f = K alpha as rows (functions, views), orthonormal, best first."""

    f: Array
    alpha: Array


class Operator:
    """A on functions of the views; ``weight`` is reg N."""

    def __init__(self, gram: Array, groups: Groups, beta: float, reg: float) -> None:
        self.gram, self.groups, self.n = gram, groups, len(gram)
        self.weight = reg * self.n
        self.scale = float(gram.trace()) / self.n
        self.within = 1 - beta + beta * groups.within
        """Eigenvalue of T_beta, per view, on functions of mean 0 within the input."""
        self.shift = 1 + min(reg / self.scale, 0.1)
        """Just above 1, and so above every mu; the nearer, the better mu near 1 are told apart."""

    def t_beta(self, f: Array) -> Array:
        """Return T_beta f for rows f."""
        return self.groups.spectral_rows(f, 1.0, self.within)

    def resolved(self, f: Array) -> Array:
        """Return (shift - T_beta)^-1 f for rows f."""
        return self.groups.spectral_rows(f, *self.resolvent)

    @property
    def resolvent(self) -> tuple[float, Array]:
        """Eigenvalues of (shift - T_beta)^-1, between inputs and within them."""
        return 1 / (self.shift - 1), 1 / (self.shift - self.within)

    def enough(self, mu: float) -> float:
        """Return the residual that is accepted at a k-th eigenvalue ``mu``."""
        share = max(SHARE, ROUNDING * self.scale * self.n / self.weight)
        return max(share * (self.shift - mu), FLOOR)


class _Space:
    """Orthonormal functions with their alpha and image under A, and A among them."""

    def __init__(self, operator: Operator, room: int) -> None:
        self.of, self.size = operator, 0
        self.f, self.alpha, self.image = (np.empty((room, operator.n)) for _ in range(3))
        self.among = np.zeros((room, room))

    def add(self, alpha: Array) -> None:
        """Add what functions K alpha bring that is new."""
        for _ in range(TRIES):
            f = times(alpha, self.of.gram)
            f, alpha, kept = self._apart(f, alpha)
            # Smooth kernels bury what is new. Dug out, it is multiplied by K afresh: else alpha
            # and f would agree to so many digits fewer.
            if kept > BURIED:
                break
        first, last = self.size, self.size + len(f)
        self.f[first:last], self.alpha[first:last] = f, alpha
        self.image[first:last] = self.of.t_beta(f) - self.of.weight * alpha
        self.size = last
        self.among[first:last, :last] = times(self.image[first:last], self.f[:last], turned=True)
        self.among[:last, first:last] = self.among[first:last, :last].T

    def _apart(self, f: Array, alpha: Array) -> tuple[Array, Array, float]:
        """Return the new part of functions f = K alpha, orthonormal, and the least share kept."""
        old_f, old_alpha = self.f[: self.size], self.alpha[: self.size]
        whole = np.sqrt(np.einsum("ij,ij->i", f, f))
        share = np.ones(len(f))
        for _ in range(2):
            some = whole > 0
            f, alpha, share = (
                f[some] / whole[some, None],
                alpha[some] / whole[some, None],
                share[some],
            )
            known = times(f, old_f, turned=True)
            f -= times(known, old_f)
            alpha -= times(known, old_alpha)
            whole = np.sqrt(np.einsum("ij,ij->i", f, f))
            share *= whole
            whole[share < LOST] = 0.0
        some = whole > 0
        f, alpha = f[some] / whole[some, None], alpha[some] / whole[some, None]
        w, v = eigh(times(f, f, turned=True))
        turn = (v[:, w > DEPENDENT] / np.sqrt(w[w > DEPENDENT])).T
        return times(turn, f), times(turn, alpha), float(share[some].min(initial=1.0))

    def best(self) -> tuple[Array, Array]:
        """Return the eigenvalues of A in this space, largest first, and the turns as rows."""
        values, turn = eigh(self.among[: self.size, : self.size])
        return values[::-1], np.ascontiguousarray(turn[:, ::-1].T)

    def narrow(self, values: Array, turn: Array) -> None:
        """Keep only what ``turn`` says of the space."""
        old, self.size = self.size, len(turn)
        for part in (self.f, self.alpha, self.image):
            part[: self.size] = times(turn, part[:old])
        self.among[: self.size, : self.size] = np.diag(values)


Correct = Callable[[Array, Array], Array]
"""From residuals (functions, views) and their mu to the alpha of corrections."""


def search(operator: Operator, start: Array, k: int, correct: Correct) -> Pairs | None:
    """Return the top k functions, or None where they are not found to the accuracy stated.

    Parameters
    ----------
    start : array of shape (functions, views)
        alpha of functions to start from, more than k.
    correct : callable
        Approximately (mu - A)^-1, from (functions, views) to the alpha of functions.
    """
    wanted = k + GUARDS
    keep, more = max(len(start), wanted) + k, max(3 * wanted, ROOM)
    space = _Space(operator, keep + more + wanted)
    space.add(start)
    worst: list[float] = []
    for _ in range(STEPS):
        if space.size < k:
            return None
        values, turn = space.best()
        mu, top = values[:wanted], turn[:wanted]
        f, image = times(top, space.f[: space.size]), times(top, space.image[: space.size])
        rho = image - mu[:, None] * f
        size = np.sqrt(np.einsum("ij,ij->i", rho, rho))
        enough = operator.enough(mu[k - 1])
        worst.append(float(size[:k].max() / enough))
        if worst[-1] <= 1 and (size[k:] <= 1e4 * enough).all():
            return _certified(operator, times(top[:k], space.alpha[: space.size]))
        if len(worst) > PATIENCE and not worst[-1] < worst[-1 - PATIENCE] / 3:
            return None
        if space.size > keep + more:
            space.narrow(values[:keep], turn[:keep])
        left = size > enough / 10
        before = space.size
        space.add(correct(rho[left], mu[left]))
        if space.size == before:
            return None
    return None


def _certified(operator: Operator, alpha: Array) -> Pairs | None:
    """Return the functions K alpha if, computed afresh, they are still eigenfunctions."""
    f = times(alpha, operator.gram)
    image = operator.t_beta(f) - operator.weight * alpha
    among, second = times(f, image, turned=True), times(f, f, turned=True)
    mu = np.diag(among) / np.diag(second)
    rho = image - mu[:, None] * f
    worst = np.sqrt(np.einsum("ij,ij->i", rho, rho)).max()
    straight = np.abs(second - np.eye(len(f))).max() <= SHARE
    if worst > 3 * operator.enough(mu.min()) or not straight:
        return None
    return Pairs(f, alpha)
