"""The regime map: what is learnt at every regularisation, and who decided it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from trialrun.core.errors import UsageError
from trialrun.core.extras import need
from trialrun.representation._interplay_estimator import KernelVCReg
from trialrun.representation._interplay_solvers import TINY
from trialrun.representation._interplay_views import Array

REGS = tuple(np.logspace(-6, 0, 13).tolist())
NEARLY = 0.9
REGIMES = ("agreement", "augmentation", "architecture", "both", "collapse")


@dataclass(frozen=True, eq=False)
class InterplayPath:
    """What is learnt along a path of ``regs`` (n,), smallest first.

    ``eigenvalues``, ``invariance`` and ``norms`` have shape (n, k). ``loss`` and ``alive`` are the
    minimum and the components that do not collapse. ``augmentation_share`` and
    ``kernel_share`` (n,) say how much of the living components lies in the top k functions of
    the augmentation alone (reg near 0, whatever ``regs`` holds), and of the kernel alone; NaN
    where none lives. ``regimes`` (n,) names who
    decided: "augmentation" or "architecture" where that share is at least 0.9, "agreement" where
    both are, "both" where neither is, "collapse" where nothing lives.
    """

    regs: Array
    eigenvalues: Array
    invariance: Array
    norms: Array
    loss: Array
    alive: NDArray[np.int64]
    augmentation_share: Array
    kernel_share: Array
    regimes: tuple[str, ...]


def _regime(alive: int, by_augmentation: float, by_kernel: float) -> str:
    if not alive:
        return "collapse"
    if min(by_augmentation, by_kernel) >= NEARLY:
        return "agreement"
    if by_augmentation >= NEARLY:
        return "augmentation"
    return "architecture" if by_kernel >= NEARLY else "both"


def interplay_path(
    X: Any = None,
    augment: Any = None,
    *,
    regs: Any = REGS,
    model: KernelVCReg | None = None,
    views: Any = None,
    groups: Any = None,
) -> InterplayPath:
    """Solve for every regularisation on the same views (cabannes2023interplay).

    Parameters
    ----------
    X, views, groups
        As for ``KernelVCReg.fit``.
    augment : callable or None
        As for ``KernelVCReg``; None keeps the model's.
    regs : array of shape (n,)
        Values of lambda, in any order. What augmentation alone chooses is solved for besides, at
        1e-8 of the kernel's trace per view, the least lambda that needs no cut of its range.
    model : KernelVCReg or None
        Its kernel, components, solver and all other settings but ``reg``; None for the defaults.

    Raises
    ------
    ValueError
        For regs that are not numbers of at least 0, a model that is none, and for anything that
        ``fit`` refuses.

    Examples
    --------
    >>> from functools import partial
    >>> from trialrun.representation.ssl_interplay import jitter
    >>> X = np.linspace(-1, 1, 30)[:, None]
    >>> path = interplay_path(X, partial(jitter, scale=0.2), regs=[0.001, 0.1, 10.0],
    ...                       model=KernelVCReg(gamma=4.0, n_components=4, random_state=0))
    >>> path.alive.tolist(), path.regimes[-1]
    ([4, 3, 0], 'collapse')
    """
    try:
        values = np.sort(np.atleast_1d(np.asarray(regs, dtype=float)))
    except (TypeError, ValueError) as error:
        raise UsageError(f"regs must be finite numbers of at least 0, got {regs!r}") from error
    if model is not None and not isinstance(model, KernelVCReg):
        raise UsageError(f"model must be a KernelVCReg or None, got {model!r}")
    if values.ndim != 1 or not len(values) or not (np.isfinite(values) & (values >= 0)).all():
        raise UsageError(f"regs must be finite numbers of at least 0, got {regs!r}")
    made = KernelVCReg() if model is None else clone(model)
    if augment is not None:
        made.set_params(augment=augment)
    solver = made._problem(X, views, groups).solver
    k = made.n_components
    kernel = solver.kernel_choice(k)
    limit = solver.solve(TINY * solver.scale, k)
    weakest = limit.coef[:, np.isfinite(limit.eigenvalues)]
    rows = []
    for reg in values:
        found = solver.solve(float(reg), k)
        alive = int((found.eigenvalues > 0).sum())
        living = found.coef[:, :alive]
        shares = [
            float((solver.products(choice, living) ** 2).sum() / alive) if alive else np.nan
            for choice in (weakest, kernel)
        ]
        best = np.maximum(found.eigenvalues, 0.0)
        rows.append((found, k - float((best**2).sum()), alive, *shares))
    found_all, loss, living_all, by_augmentation, by_kernel = zip(*rows)
    return InterplayPath(
        regs=values,
        eigenvalues=np.array([f.eigenvalues for f in found_all]),
        invariance=np.array([f.invariance for f in found_all]),
        norms=np.array([f.norms for f in found_all]),
        loss=np.array(loss),
        alive=np.array(living_all),
        augmentation_share=np.array(by_augmentation),
        kernel_share=np.array(by_kernel),
        regimes=tuple(map(_regime, living_all, by_augmentation, by_kernel)),
    )


_SHADES = {
    "agreement": "#e8e8e8",
    "augmentation": "#d6e6f5",
    "architecture": "#f7e3cf",
    "both": "#dff0dc",
    "collapse": "#c9c9c9",
}


def _edges(regs: Array, best: Array) -> Array:
    """Return borders between regs on a logarithmic axis, half way between neighbours.

    Where the ``best`` mu falls below 0 the border is where the line between the two crosses 0.
    """
    logs = np.log10(regs)
    middle = (logs[1:] + logs[:-1]) / 2
    first = logs[:1] - (middle[:1] - logs[:1] if len(middle) else 0.5)
    last = logs[-1:] + (logs[-1:] - middle[-1:] if len(middle) else 0.5)
    for i in np.flatnonzero((best[:-1] > 0) & (best[1:] <= 0) & np.isfinite(best[1:])):
        middle[i] = logs[i] + (logs[i + 1] - logs[i]) * best[i] / (best[i] - best[i + 1])
    return 10 ** np.concatenate([first, middle, last])


def plot_interplay(path: InterplayPath) -> Any:
    """Draw a regime map and return the matplotlib figure.

    Above, mu of every component over lambda, with the regimes as bands of colour; below, the
    two shares and how far the living components agree between views.

    Parameters
    ----------
    path : InterplayPath
        With at least one reg above 0; a reg of 0 has no place on the logarithmic axis.

    Raises
    ------
    ValueError
        If every reg is 0.
    MissingExtra
        Without matplotlib.
    """
    figure_kind = need("matplotlib.figure", extra="plots").Figure
    shown = path.regs > 0
    if not shown.any():
        raise UsageError("path must have a reg above 0 to be drawn, got zeros only")
    regs = path.regs[shown]
    figure = figure_kind(figsize=(6.8, 5.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    edges = _edges(regs, path.eigenvalues[shown].max(axis=1))
    regimes = [r for r, s in zip(path.regimes, shown) if s]
    for axes in (upper, lower):
        named = set()
        for regime, low, high in zip(regimes, edges, edges[1:]):
            label = None if regime in named or axes is lower else regime
            axes.axvspan(low, high, color=_SHADES[regime], linewidth=0, label=label)
            named.add(regime)
    for column in path.eigenvalues[shown].T:
        upper.plot(regs, column, color="0.2", marker="o", markersize=3, linewidth=1)
    upper.axhline(0.0, color="#b03030", linewidth=1)
    upper.set_ylim(-0.3, 1.08)
    upper.set_ylabel("mu of each component\n(below 0: collapsed)")
    upper.legend(
        title="decided by", ncols=len(set(regimes)), frameon=False, fontsize=8, title_fontsize=8,
        loc="lower center", bbox_to_anchor=(0.5, 1.0),
    )  # fmt: skip
    living = np.where(path.eigenvalues > 0, path.invariance, np.nan)[shown]
    some = np.isfinite(living).any(axis=1)
    agreement = np.full(len(regs), np.nan)
    agreement[some] = np.nanmean(living[some], axis=1)
    lower.plot(
        regs, path.augmentation_share[shown], label="in the views' own choice", color="#2b6cb0"
    )
    lower.plot(regs, path.kernel_share[shown], label="in the kernel's own choice", color="#c05621")
    lower.plot(regs, agreement, label="agreement between views", color="0.3", linestyle="--")
    lower.set_ylim(0, 1.05)
    lower.set_xscale("log")
    lower.set_xlim(edges[0], edges[-1])
    lower.set_xlabel("regularisation lambda")
    lower.set_ylabel("share of what lives")
    lower.legend(frameon=False, fontsize=8, loc="lower left")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
