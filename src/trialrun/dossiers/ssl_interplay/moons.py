"""Half-moons with few labels: the two together, and how lambda and jitter interact."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.semi_supervised import LabelSpreading

from trialrun.claims.contract import Context, Measurement
from trialrun.dossiers.ssl_interplay._sizes import COMPONENTS, GAMMA, N_VIEWS, size_of
from trialrun.dossiers.ssl_interplay.worlds import (
    Array,
    Moons,
    grouped,
    half_moons,
    jittered,
    label_draws,
)
from trialrun.representation.ssl_interplay import KernelVCReg

LABELS = 8
JITTER, REG, PENALTY = 0.1, 1e-4, 1e-3
GAMMAS = tuple(1 / (2 * width**2) for width in (0.1, 0.2, 0.3, 0.5, 1.0))
RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
GRIDS = {
    "augmentation-alone": (1e-7, 1e-6, 1e-5),
    "kernel-alone": GAMMAS,
    "kernel-alone-on-views": GAMMAS,
    "augmented-ridge": RIDGES,
    "spreading": (1.0, GAMMA, 20.0, 50.0, 100.0, 200.0),
    "kernel-ridge": (1.0, GAMMA, 20.0, 50.0, 100.0, 200.0),
}
"""What every other arm of `together` may choose from: reg, gamma or the ridge's lambda."""
CHOSEN = {
    "augmentation-alone": 1e-5,
    "kernel-alone": GAMMAS[3],
    "kernel-alone-on-views": GAMMAS[3],
    "augmented-ridge": 1e-2,
    "spreading": 200.0,
    "kernel-ridge": 20.0,
}
BETTER = "augmentation-alone"
"""The choices, and the best of the halves, by `chosen` on seeds 0 to 5, which judge nothing."""
JITTERS, LAMBDAS = (0.05, 0.2, 0.6), (1e-6, 1e-4, 1e-3, 1e-2, 1e-1)
WEAKEST, STRONGEST, SMALL, LARGE = 0, 2, 0, 3
"""Where the interaction of `tuning` is read off: places in the two tuples above."""


def probes(z: Array, z_test: Array, moons: Moons, test: Moons, draws: list[NDArray]) -> float:
    """Return the mean accuracy of ridge classifiers with an intercept, one per draw of labels.

    Features are scaled to mean square 1 over the inputs, so that the penalty means the same
    however small the regularisation before it has made them.
    """
    size = float(np.sqrt((z**2).mean()))
    z, z_test = (part / (size or 1.0) for part in (z, z_test))
    rows = np.stack(draws)
    seen, side = z[rows], 2.0 * moons.side[rows] - 1
    middle = seen.mean(axis=1, keepdims=True)
    seen = seen - middle
    second = seen.transpose(0, 2, 1) @ seen + PENALTY * np.eye(z.shape[1])
    slopes = np.linalg.solve(second, (seen * side[:, :, None]).sum(axis=1)[:, :, None])
    # As many labels of one class as of the other: the mean label, and so its intercept, is 0.
    scores = (z_test @ slopes)[:, :, 0] - (middle @ slopes)[:, :, 0]
    return float(((scores > 0) == (test.side == 1)).mean())


def few_moons(ctx: Context) -> tuple[Moons, Moons, list[NDArray]]:
    moons = half_moons(size_of(ctx).inputs, ctx.seed, "inputs")
    test = half_moons(size_of(ctx).test, ctx.seed, "test")
    return moons, test, label_draws(moons.side, LABELS, size_of(ctx).draws, ctx.seed)


def _ssl_accuracy(
    ctx: Context, *, scale: float, gamma: float = GAMMA, reg: float = REG, deal: str = "given"
) -> float:
    """Probe the closed form on jittered views; ``deal`` says who is whose view.

    "given" is as drawn, "shuffled" at random, and with "apart" every view is an input of its own:
    then T = 1 and nothing is learnt from the augmentation.
    """
    moons, test, draws = few_moons(ctx)
    model = KernelVCReg(gamma=gamma, n_components=COMPONENTS, reg=reg)
    rows, groups = moons.points, np.arange(len(moons.points))
    if scale:
        views = jittered(moons.points, scale=scale, n_views=N_VIEWS, seed=ctx.seed)
        made = grouped(views, shuffled=deal == "shuffled", seed=ctx.seed)
        rows, groups = made.rows, made.groups
    if deal == "apart":
        groups = np.arange(len(rows))
    model.fit(rows, groups=groups)
    z, z_test = model.transform(moons.points), model.transform(test.points)
    return probes(z, z_test, moons, test, draws)


def _augmented_ridge(ctx: Context, scale: float, regs: tuple[float, ...]) -> list[float]:
    """Fit kernel ridge to the labelled inputs' views; lambda is scaled by their number."""
    moons, test, draws = few_moons(ctx)
    views = jittered(moons.points, scale=scale, n_views=N_VIEWS, seed=ctx.seed)
    hits = np.zeros(len(regs))
    for rows in draws:
        seen = views[rows].reshape(-1, views.shape[2])
        side = np.repeat(2.0 * moons.side[rows] - 1, views.shape[1])
        w, v = np.linalg.eigh(rbf_kernel(seen, gamma=GAMMA))
        shrunk = (v.T @ side)[:, None] / (w[:, None] + len(seen) * np.array(regs))
        scores = rbf_kernel(test.points, seen, gamma=GAMMA) @ (v @ shrunk)
        hits += ((scores > 0) == (test.side == 1)[:, None]).mean(axis=0)
    return (hits / len(draws)).tolist()


def _few_labels(ctx: Context, how: str, gamma: float) -> float:
    """Score what a user would run without self-supervision."""
    moons, test, draws = few_moons(ctx)
    found = []
    for rows in draws:
        if how == "spreading":
            y = np.full(size_of(ctx).inputs, -1)
            y[rows] = moons.side[rows]
            model = LabelSpreading(gamma=gamma, max_iter=200).fit(moons.points, y)
            found.append((model.predict(test.points) == test.side).mean())
            continue
        ridge = KernelRidge(kernel="rbf", gamma=gamma, alpha=1e-3)
        ridge.fit(moons.points[rows], 2.0 * moons.side[rows] - 1)
        found.append(((ridge.predict(test.points) > 0) == (test.side == 1)).mean())
    return float(np.mean(found))


def score(ctx: Context, how: str, setting: float) -> float:
    """Return the share of fresh points that an arm of `together` gets right at a setting."""
    if how == "augmentation-alone":
        return _ssl_accuracy(ctx, scale=JITTER, reg=setting)
    if how == "kernel-alone":
        return _ssl_accuracy(ctx, scale=0.0, gamma=setting)
    if how == "kernel-alone-on-views":
        return _ssl_accuracy(ctx, scale=JITTER, gamma=setting, deal="apart")
    if how == "augmented-ridge":
        return _augmented_ridge(ctx, JITTER, (setting,))[0]
    return _few_labels(ctx, how, setting)


def chosen(contexts: Sequence[Context]) -> dict[str, tuple[float, float]]:
    """Return every arm's best setting, and its accuracy, over contexts that judge nothing."""
    best = {}
    for how, grid in GRIDS.items():
        means = [float(np.mean([score(ctx, how, one) for ctx in contexts])) for one in grid]
        best[how] = (grid[int(np.argmax(means))], max(means))
    return best


def together(ctx: Context, *, how: str) -> Measurement:
    """Score a linear probe on few labels, in percent of fresh points."""
    if how in ("both", "shuffled"):
        deal = "given" if how == "both" else how
        found = _ssl_accuracy(ctx, scale=JITTER, deal=deal)
    else:
        arm = BETTER if how == "better-alone" else how
        found = score(ctx, arm, CHOSEN[arm])
    return Measurement.of(100 * found, n=size_of(ctx).test * size_of(ctx).draws)


def tuning(ctx: Context, *, how: str) -> Measurement:
    """Return how much more a large lambda helps under strong jitter than under weak, in points.

    The best lambda at every jitter comes beside it, as a decimal logarithm; where several are
    equally good, the mean of their logarithms.
    """
    deal = "shuffled" if how == "shuffled" else "given"
    scores = np.array([
        _augmented_ridge(ctx, scale, LAMBDAS)
        if how == "augmented-ridge"
        else [_ssl_accuracy(ctx, scale=scale, reg=reg, deal=deal) for reg in LAMBDAS]
        for scale in JITTERS
    ])  # fmt: skip
    gains = 100 * (scores[:, LARGE] - scores[:, SMALL])
    top = scores >= scores.max(axis=1, keepdims=True) - 1e-12
    best = (top * np.log10(LAMBDAS)).sum(axis=1) / top.sum(axis=1)
    return Measurement.of(
        gains[STRONGEST] - gains[WEAKEST],
        n=size_of(ctx).test * size_of(ctx).draws,
        **{f"best log lambda at {scale}": float(b) for scale, b in zip(JITTERS, best)},
    )
