"""Corrections from one Cholesky factor, in single precision where that is enough.

With c just above every mu and D = c I - T_beta,

    (c - A)^-1 g = K alpha,   alpha = [D^-1 + K / (reg N)]^-1 D^-1 g / (reg N),

and D^-1 is a number times the identity plus a block per input. The factor only steers the search,
which measures its residuals with K itself: a rounded factor costs a step, never a digit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import linalg

from trialrun.core.errors import UsageError
from trialrun.representation._interplay_search import Operator
from trialrun.representation._interplay_views import Array

SINGLE = 3e-7
"""Share of K's scale from which reg leaves single precision room."""


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
                self.factor = linalg.cholesky(
                    self._system(kind).T, lower=True, overwrite_a=True, check_finite=False
                )
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

    def __call__(self, rho: Array, mu: Array) -> Array:  # noqa: ARG002
        """Return alpha of corrections for residuals (functions, views)."""
        g = self.of.resolved(rho)
        g /= np.abs(g).max(axis=1, keepdims=True)
        told = g.astype(self.factor.dtype, copy=False)
        found = linalg.cho_solve((self.factor, True), told.T, check_finite=False)
        return np.ascontiguousarray(found.T, dtype=float)
