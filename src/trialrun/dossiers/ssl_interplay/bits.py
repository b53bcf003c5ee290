"""Worlds of bits, whose eigenvalues are known: switch points, and the rate of the risk."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import KernelPCA
from sklearn.kernel_ridge import KernelRidge

from trialrun.claims.contract import Context, Measurement
from trialrun.core.seeds import rng, split
from trialrun.dossiers.ssl_interplay._sizes import N_VIEWS, size_of
from trialrun.dossiers.ssl_interplay.worlds import (
    INVARIANCE,
    NORMS,
    Array,
    cube,
    cube_views,
    grouped,
    kept_parities,
    three_functions,
)
from trialrun.representation.ssl_interplay import KernelVCReg, interplay_path, switch_points

DOWN = (64, 128, 256, 512)
NAMES = ("first to second", "second to third", "all collapse")


def switches(ctx: Context, *, how: str) -> Measurement:
    """Find where the best function changes, as the error in percent of the exact value."""
    size = size_of(ctx)
    exact = dict(zip(NAMES, (s.reg for s in switch_points(INVARIANCE, NORMS))))
    regs = np.linspace(0.02, 5.0, size.grid)
    views = three_functions(inputs=size.pretraining, n_views=N_VIEWS, seed=ctx.seed)
    made = grouped(views, shuffled=how == "shuffled", seed=ctx.seed)
    model = KernelVCReg(
        kernel="polynomial", gamma=1.0, kernel_params={"degree": 1, "coef0": 0}, n_components=1,
        solver="nystroem", landmarks=20, pairs="all" if how == "all-pairs" else "distinct",
        random_state=split(ctx.seed, "landmarks") % 2**31,
    )  # fmt: skip
    if how == "kernel-alone":  # T = 1: every view is an input of its own
        alone = np.arange(len(made.rows))
        path = interplay_path(
            made.rows, regs=regs, model=model.set_params(pairs="all"), groups=alone
        )
    else:
        path = interplay_path(made.rows, regs=regs, model=model, groups=made.groups)
    norms = np.where(np.isfinite(path.norms[:, :1]), path.norms[:, :1], np.inf)
    best = np.abs(norms - NORMS).argmin(axis=1)
    best = np.where(path.alive > 0, best, 3)
    found = {name: regs[best > step][0] if (best > step).any() else np.inf
             for step, name in enumerate(NAMES)}  # fmt: skip
    errors = {n: min(100.0, 100 * abs(found[n] / exact[n] - 1)) for n in NAMES}
    return Measurement(errors, len(made.rows))


def _slope(risks: list[float]) -> float:
    return float(np.polyfit(np.log(DOWN), np.log(risks), 1)[0])


def rate(ctx: Context, *, how: str) -> Measurement:
    """Return the slope of log excess risk over log labels, least squares on 8 components."""
    size, corners = size_of(ctx), cube()
    views = cube_views(inputs=size.pretraining, n_views=N_VIEWS, seed=ctx.seed)
    made = grouped(views, shuffled=how == "shuffled", seed=ctx.seed)
    gamma, count = 0.1, kept_parities(corners).shape[1]
    if how == "kernel-pca":
        whole = KernelPCA(count, kernel="rbf", gamma=gamma, eigen_solver="dense")
        z = np.column_stack(
            [whole.fit(views[:, 0][:500]).transform(corners)[:, : count - 1], np.ones(len(corners))]
        )
    else:
        model = KernelVCReg(
            gamma=gamma, n_components=count, reg=1e-3, pairs="distinct", solver="nystroem",
            landmarks=256, random_state=0,
        )  # fmt: skip
        z = model.fit(made.rows, groups=made.groups).transform(corners)
    random = rng(ctx.seed, "tasks")
    risks = np.zeros(len(DOWN))
    for _ in range(size.draws):
        mix = random.normal(size=count)
        truth = kept_parities(corners) @ (mix / np.linalg.norm(mix))
        for i, n in enumerate(DOWN):
            rows = random.integers(len(corners), size=n)
            y = truth[rows] + random.normal(size=n)
            risks[i] += _excess(z, corners, truth, rows, y, gamma, how)
    risks /= size.draws
    return Measurement.of(_slope(risks.tolist()), n=size.draws, **dict(zip(map(str, DOWN), risks)))


def _excess(
    z: Array, corners: Array, truth: Array, rows: NDArray, y: Array, gamma: float, how: str
) -> float:
    """Return the mean squared distance to the truth; a ridge gets the best of its penalties."""
    if how != "kernel-ridge":
        found = z @ np.linalg.lstsq(z[rows], y, rcond=1e-8)[0]
        return float(((found - truth) ** 2).mean())
    risks = []
    for alpha in (0.1, 1.0, 10.0):
        ridge = KernelRidge(kernel="rbf", gamma=gamma, alpha=alpha).fit(corners[rows], y)
        risks.append(float(((ridge.predict(corners) - truth) ** 2).mean()))
    return min(risks)
