"""Corrections and a start from one Cholesky factor, in single precision where that is enough.

With c just above every mu and D = c I - T_beta,

    (c - A)^-1 g = K alpha,   alpha = [D^-1 + K / (reg N)]^-1 D^-1 g / (reg N),

and D^-1 is a number times the identity plus a block per input. The factor only steers the search,
which measures its residuals with K itself: a rounded factor costs a step, never a digit. Since
K alpha = D^-1 (g - reg N alpha) as well, the factor by itself, without K, spans a Krylov space:
rounded too, but at half the price of a step, so the search starts from the best of that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import linalg

from trialrun.core.errors import UsageError
from trialrun.representation._interplay_panels import Panels
from trialrun.representation._interplay_products import eigh, times
from trialrun.representation._interplay_search import Operator
from trialrun.representation._interplay_views import Array

SINGLE = 3e-7
"""Share of K's scale from which reg leaves single precision room."""
STEPS, CHECKS = 20, 5
"""Most steps of the Krylov space, and steps between looks at what it has found."""
WIDTHS, ROOM = 3, 160
"""Most functions in it: so many blocks, or so many if that is more."""
GOOD = 1e-4
"""Residual of (c - A)^-1, relative to its eigenvalue, that a start need not go below."""
DEPENDENT = 1e-4
"""Share of a block's largest function below which another brings nothing new."""


class Factor:
    """(c - A)^-1 by one N x N factor.

    Raises
    ------
    ValueError
        If K has a negative eigenvalue that reg does not make up for.
    """

    def __init__(self, operator: Operator) -> None:
        self.of = operator
        single = operator.weight >= SINGLE * operator.scale * operator.n
        kinds: tuple[Any, ...] = (np.float32, np.float64) if single else (np.float64,)
        for kind in kinds:
            try:
                self.factor = Panels(self._system(kind).T)
                return
            except linalg.LinAlgError:
                continue
        raise UsageError(
            "kernel must be positive semi-definite on the views: its Gram matrix has a negative "
            f"eigenvalue below -{operator.weight:.3g}; use another kernel or a larger reg"
        )

    def _system(self, kind: Any) -> Any:
        op = self.of
        system = np.multiply(op.gram, 1 / op.weight, dtype=kind, casting="same_kind")
        between, within = op.resolvent
        system.flat[:: op.n + 1] += within.astype(kind)
        op.groups.add_blocks(system, between - within)
        return system

    def _resolved(self, f: Any) -> Any:
        """Return D^-1 f for rows f, in the factor's precision."""
        return self.of.resolved(f.astype(float)).astype(self.factor.dtype, copy=False)

    def _solved(self, g: Any) -> Any:
        return self.factor.solve(g.T).T

    def __call__(self, rho: Array, mu: Array) -> Array:  # noqa: ARG002
        """Return alpha of corrections for residuals (functions, views)."""
        size = np.abs(rho).max(axis=1, keepdims=True)
        return self._solved(self._resolved(rho / size)) * (size / self.of.weight)

    def start(self, block: int, count: int) -> Array:
        """Return alpha of the best ``count`` functions of a Krylov space, or of all it has.

        The space is spanned by powers of (c - A)^-1 on ``block`` functions at random.
        """
        n, kind = self.of.n, self.factor.dtype
        most = min(STEPS * block, max(WIDTHS * block, ROOM), n)
        f, solved = np.empty((most, n), kind), np.empty((most, n), kind)
        among = np.zeros((most, most))
        rest, size = np.random.default_rng(0).normal(size=(block, n)).astype(kind), 0
        theta, turn = np.empty(0), np.empty((0, 0))
        for step in range(1, STEPS + 1):
            fresh = _orthonormal(_orthonormal(rest))[: most - size]
            first, size = size, size + len(fresh)
            f[first:size] = fresh
            g = self._resolved(fresh)
            solved[first:size] = self._solved(g)
            rest = g - self._resolved(solved[first:size])
            for _ in range(2):
                known = times(rest, f[:size], turned=True)
                rest -= times(known, f[:size])
                among[first:size, :size] += known
            among[:size, first:size] = among[first:size, :size].T
            last = len(fresh) < block or size == most or step == STEPS
            if last or step % CHECKS == 0:
                theta, turn = eigh(among[:size, :size])
                wanted = turn[first:, -block:]
                missed = times(rest, rest, turned=True).astype(float)
                residual = np.einsum("ji,jk,ki->i", wanted, missed, wanted)
                if last or (residual <= (GOOD * theta[-block:]) ** 2).all():
                    break
        turn = np.ascontiguousarray(turn[:, -count:][:, theta[-count:] > 0].T, dtype=kind)
        return times(turn, solved[:size]).astype(float)


def _orthonormal(rows: Any) -> Any:
    """Return what rows span, orthonormal, without what is all but among the others."""
    w, v = eigh(times(rows, rows, turned=True))
    some = w > DEPENDENT**2 * w[-1]
    return times(np.ascontiguousarray((v[:, some] / np.sqrt(w[some])).T), rows)
