"""Known operators: the spectrum of T_beta - reg K^-1, and where its best function changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from trialrun.core.errors import UsageError
from trialrun.representation._interplay_checks import check_count, check_number, floor
from trialrun.representation._interplay_views import Array


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Components of known operators, best first.

    ``eigenvalues`` (k,) are mu, ``functions`` (basis, k) the unit functions, ``invariance`` (k,)
    their <f, T f> and ``norms`` (k,) their |f|_H^2. ``loss`` is the minimum with k components and
    ``alive`` how many of them do not collapse.
    """

    eigenvalues: Array
    functions: Array
    invariance: Array
    norms: Array
    loss: float
    alive: int


class Switch(NamedTuple):
    """At ``reg`` the best function changes from ``before`` to ``after``; None: all collapse."""

    reg: float
    before: int
    after: int | None


def _matrix(name: str, value: Any) -> Array:
    matrix = np.asarray(value, dtype=float)
    if matrix.ndim == 1:
        matrix = np.diag(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise UsageError(
            f"{name} must hold eigenvalues, shape (basis,), or a symmetric matrix, got shape "
            f"{matrix.shape}"
        )
    if not np.isfinite(matrix).all() or not np.allclose(matrix, matrix.T):
        raise UsageError(f"{name} must be symmetric with finite numbers, got a matrix that is not")
    return matrix


def interplay_spectrum(
    augmentation: Any,
    kernel: Any,
    *,
    beta: float = 1.0,
    reg: float = 0.0,
    n_components: int | None = None,
    tol: float = 1e-12,
) -> Spectrum:
    """Return the components that known operators lead to (cabannes2023interplay).

    Parameters
    ----------
    augmentation : array of shape (basis,) or (basis, basis)
        T: its eigenvalues where T and K share their eigenfunctions, else its matrix in an
        orthonormal basis of L2.
    kernel : array of shape (basis,) or (basis, basis)
        K in the same basis: the eigenvalue of a function is 1 / |f|_H^2.
    beta : float, at least 0
    reg : float, at least 0
        lambda, with the loss's factor 2.
    n_components : int or None
        None returns every one.
    tol : float
        Functions of which K's eigenvalue is below this share of the largest are out of reach.

    Raises
    ------
    ValueError
        For shapes that do not go together, numbers out of range, or a K with negative
        eigenvalues or none above 0.

    Examples
    --------
    Three functions on which augmentation and kernel disagree; in between, neither has its way.

    >>> t, norms = np.array([0.9, 0.75, 0.5]), np.array([0.4, 0.25, 0.125])
    >>> [int(abs(interplay_spectrum(t, 1 / norms, reg=reg).functions[:, 0]).argmax())
    ...  for reg in (0.5, 1.5, 3.0)]
    [0, 1, 2]
    """
    check_number("beta", beta)
    check_number("reg", reg)
    check_number("tol", tol)
    if n_components is not None:
        check_count("n_components", n_components)
    t, k = _matrix("augmentation", augmentation), _matrix("kernel", kernel)
    if t.shape != k.shape:
        raise UsageError(
            f"augmentation and kernel must have one basis, got {len(t)} and {len(k)} functions"
        )
    w, v = linalg.eigh(k)
    if w[0] < -1e-10 * max(abs(w[-1]), abs(w[0])):
        raise UsageError(f"kernel must have no negative eigenvalue, got {w[0]:.3g}")
    if not w[-1] > 0:
        raise UsageError("kernel must have an eigenvalue above 0, got only zeros")
    kept = w > floor(tol, len(w)) * w[-1]
    w, v = w[kept], v[:, kept]
    t_beta = (1 - beta) * np.eye(len(t)) + beta * t
    reduced = v.T @ t_beta @ v - reg * np.diag(1 / w)
    mu, u = linalg.eigh((reduced + reduced.T) / 2)
    wanted = len(mu) if n_components is None else min(n_components, len(mu))
    mu, u = mu[::-1][:wanted], u[:, ::-1][:, :wanted]
    functions = v @ u
    invariance = np.einsum("ik,ij,jk->k", functions, t, functions, optimize=True)
    norms = (u**2 / w[:, None]).sum(axis=0)
    best = np.maximum(mu, 0.0)
    loss = float((n_components or len(mu)) - (best**2).sum())
    return Spectrum(mu, functions, invariance, norms, loss, int((mu > 0).sum()))


def switch_points(invariance: Any, norms: Any, *, beta: float = 1.0) -> tuple[Switch, ...]:
    """Return the values of lambda at which the best of several functions changes.

    Function i is worth 1 - beta + beta t_i - reg |f_i|^2, a line in reg; the best one follows the
    upper edge of the lines, and everything collapses where that edge reaches 0.

    Parameters
    ----------
    invariance, norms : array of shape (functions,)
        t_i and |f_i|_H^2, which must be above 0.
    beta : float, at least 0

    Raises
    ------
    ValueError
        If the shapes differ, a number is not finite or a norm is not above 0.

    Examples
    --------
    >>> [(round(s.reg, 6), s.before, s.after)
    ...  for s in switch_points([0.9, 0.75, 0.5], [0.4, 0.25, 0.125])]
    [(1.0, 0, 1), (2.0, 1, 2), (4.0, 2, None)]
    """
    check_number("beta", beta)
    t: NDArray[Any] = np.asarray(invariance, dtype=float)
    size: NDArray[Any] = np.asarray(norms, dtype=float)
    if t.shape != size.shape or t.ndim != 1 or not len(t):
        raise UsageError(
            "invariance and norms must hold one number per function, got shapes "
            f"{t.shape} and {size.shape}"
        )
    if not (np.isfinite(t).all() and np.isfinite(size).all()):
        raise UsageError("invariance and norms must be finite numbers, got NaN or infinity")
    if not (size > 0).all():
        raise UsageError(f"norms must be above 0, got {size.min():.3g}")
    worth = 1 - beta + beta * t
    now = int(np.lexsort((size, -worth))[0])
    found: list[Switch] = []
    while worth[now] > 0:
        end = worth[now] / size[now]
        flatter = np.flatnonzero(size < size[now])
        crossings = (worth[now] - worth[flatter]) / (size[now] - size[flatter])
        if not len(flatter) or crossings.min() >= end:
            found.append(Switch(float(end), now, None))
            break
        reg = crossings.min()
        level = flatter[crossings <= reg * (1 + 1e-12)]
        after = int(level[size[level].argmin()])
        found.append(Switch(float(reg), now, after))
        now = after
    return tuple(found)
