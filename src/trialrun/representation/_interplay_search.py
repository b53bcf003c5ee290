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
STEADY = 60.0
"""How far above 1 the search inverts, in units of reg over K's scale."""
GUARDS, GUARDED = 2, 1e4
"""Functions behind the k-th that are corrected too, lest one of them belongs before it, and the
residual, in units of what is accepted, that they may keep."""
STEPS, ROOM = 60, 100
"""Most steps, functions before a restart."""
TRIES, BURIED, LOST, DEPENDENT = 2, 1e-3, 1e-6, 1e-5
"""Products per addition, and the new share of a function that calls for the second, that is too
little to be kept, and that two additions must not have in common."""
STUCK, SLACK = 1e2, 3.0
"""Residuals, in units of what is accepted: from which one that stands still is looked into, and
what may come of one when it is measured again."""


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
        self.nearest = 1 + min(reg / self.scale, 0.1)
        """Above every mu by no more than the kernel's scale asks for."""
        self.shift = 1 + min(STEADY * reg / self.scale, 0.1)
        """Somewhat farther above: the nearer, the better mu near 1 are told apart, and the more
        digits (shift - A)^-1 costs."""

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
        return max(share * (self.nearest - mu), FLOOR)


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
        image = self.of.t_beta(f) - self.of.weight * alpha
        first, last = self.size, self.size + len(f)
        self.f[first:last], self.alpha[first:last], self.image[first:last] = f, alpha, image
        self.size = last
        self.among[first:last, :last] = times(image, self.f[:last], turned=True)
        self.among[:last, first:last] = self.among[first:last, :last].T

    def _apart(self, f: Array, alpha: Array) -> tuple[Array, Array, float]:
        """Return the new part of functions f = K alpha, orthonormal, and the least share kept."""
        old_f, old_alpha = self.f[: self.size], self.alpha[: self.size]
        whole = _norms(f)
        some = whole > 0
        f, alpha, whole = f[some], alpha[some], whole[some]
        f /= whole[:, None]
        alpha /= whole[:, None]
        known = np.zeros((len(f), self.size))
        for _ in range(2):
            more = times(f, old_f, turned=True)
            f -= times(more, old_f)
            known += more
        share = _norms(f)
        some = share > LOST
        f, share = f[some] / share[some, None], share[some]
        alpha = (alpha[some] - times(known[some], old_alpha)) / share[:, None]
        w, v = eigh(times(f, f, turned=True))
        turn = (v[:, w > DEPENDENT] / np.sqrt(w[w > DEPENDENT])).T
        return times(turn, f), times(turn, alpha), float(share.min(initial=1.0))

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


def _norms(rows: Array) -> Array:
    return np.sqrt(np.einsum("ij,ij->i", rows, rows))


Correct = Callable[[Array, Array], Array]
"""From residuals (functions, views) and their mu to the alpha of corrections."""


def search(
    operator: Operator, start: Array, k: int, correct: Correct, *, patience: int = 12
) -> Pairs | None:
    """Return the top k functions, or None where they are not found to the accuracy stated.

    Parameters
    ----------
    start : array of shape (functions, views)
        alpha of functions to start from, more than k.
    correct : callable
        Approximately (mu - A)^-1, from (functions, views) to the alpha of functions.
    patience : int
        Steps in which the residual must fall to a third.
    """
    wanted = k + GUARDS
    keep, more = max(len(start), wanted) + k, max(3 * wanted, ROOM)
    space = _Space(operator, keep + more + wanted)
    space.add(start)
    worst: list[float] = []
    nearest: Array | None = None
    for _ in range(STEPS):
        if space.size < k:
            return None
        values, turn = space.best()
        mu, top = values[:wanted], turn[:wanted]
        f, image = times(top, space.f[: space.size]), times(top, space.image[: space.size])
        rho = image - mu[:, None] * f
        size = _norms(rho)
        enough = operator.enough(mu[k - 1])
        least = min(worst, default=np.inf)
        worst.append(float(size[:k].max() / enough))
        if (size[k:] <= GUARDED * enough).all() and worst[-1] <= STUCK:
            alpha = times(top[:k], space.alpha[: space.size])
            if worst[-1] <= 1:
                return certified(operator, alpha)
            if worst[-1] < least:
                nearest = alpha
            if worst[-1] > least / 2 and nearest is not None:
                # What is left may be in alpha, in directions that K all but deletes.
                tries = [nearest] if least <= SLACK else []
                for told in [*tries, alpha + correct(rho[:k], mu[:k])]:
                    found = certified(operator, told)
                    if found is not None:
                        return found
        if len(worst) > patience and not worst[-1] < worst[-1 - patience] / 3:
            return None
        if space.size > keep + more:
            space.narrow(values[:keep], turn[:keep])
        left = size > enough / 10
        before = space.size
        space.add(correct(rho[left], mu[left]))
        if space.size == before:
            return None
    return None


def certified(operator: Operator, alpha: Array, span: Array | None = None) -> Pairs | None:
    """Return the functions K alpha if, computed afresh, they are still eigenfunctions.

    Where ``span``, orthonormal rows, is all that K leaves, residuals count within it.
    """
    f = times(alpha, operator.gram)
    image = operator.t_beta(f) - operator.weight * alpha
    among, second = times(f, image, turned=True), times(f, f, turned=True)
    mu = np.diag(among) / np.diag(second)
    rho = image - mu[:, None] * f
    worst = _norms(rho if span is None else times(rho, span, turned=True)).max()
    straight = np.abs(second - np.eye(len(f))).max() <= SHARE
    if worst > SLACK * operator.enough(mu.min()) or not straight:
        return None
    return Pairs(f, alpha)
