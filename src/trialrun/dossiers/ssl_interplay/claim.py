"""Measure the claims about the SSL interplay: regimes, collapse, interaction and rate.

Every arm of a seed sees the same inputs, views and labels. The control deals the views to inputs
anew; nothing else about it differs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import KernelPCA
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.semi_supervised import LabelSpreading

from trialrun.claims.contract import Budget, Context, Measurement, Trial
from trialrun.core.seeds import rng, split
from trialrun.dossiers.ssl_interplay.worlds import (
    INVARIANCE,
    NORMS,
    Array,
    Moons,
    cube,
    cube_views,
    grouped,
    half_moons,
    jittered,
    kept_parities,
    label_draws,
    three_functions,
)
from trialrun.representation.ssl_interplay import (
    KernelVCReg,
    interplay_path,
    switch_points,
    vcreg_loss,
)

GAMMA = 1 / (2 * 0.3**2)
LABELS, N_VIEWS, COMPONENTS = 8, 4, 6
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
DECAYS = (0.01, 0.02, 0.03, 0.05, 0.08)
STRONG = 0.4
ALIVE = 0.02
FEATURES, BATCH = 128, 128
DOWN = (64, 128, 256, 512)
NAMES = ("first to second", "second to third", "all collapse")


@dataclass(frozen=True, kw_only=True)
class Size(Budget):
    """Size of a run.

    ``inputs`` half-moon points to learn from, ``prediction`` to call collapse from, ``pretraining``
    inputs of the bit worlds, ``test`` half-moon points, ``draws`` of labels,
    ``steps`` of the trained features and ``grid`` values of lambda for the switch points.
    """

    inputs: int
    prediction: int
    pretraining: int
    test: int
    draws: int
    steps: int
    grid: int


def _size(ctx: Context) -> Size:
    return cast(Size, ctx.budget)


def switches(ctx: Context, *, how: str) -> Measurement:
    """Find where the best function changes, as the error in percent of the exact value."""
    size = _size(ctx)
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
        path = interplay_path(made.rows, regs=regs, model=model.set_params(pairs="all"))
    else:
        path = interplay_path(made.rows, regs=regs, model=model, groups=made.groups)
    norms = np.where(np.isfinite(path.norms[:, :1]), path.norms[:, :1], np.inf)
    best = np.abs(norms - NORMS).argmin(axis=1)
    best = np.where(path.alive > 0, best, 3)
    found = {name: regs[best > step][0] if (best > step).any() else np.inf
             for step, name in enumerate(NAMES)}  # fmt: skip
    errors = {n: min(100.0, 100 * abs(found[n] / exact[n] - 1)) for n in NAMES}
    return Measurement(errors, len(made.rows))


def _cosines(rows: Array, seed: int) -> Array:
    """Return random features of the kernel, drawn for the trained map alone."""
    random = rng(seed, "network")
    frequencies = np.sqrt(2 * GAMMA) * random.normal(size=(rows.shape[-1], FEATURES))
    phases = random.uniform(0, 2 * np.pi, FEATURES)
    return np.sqrt(2 / FEATURES) * np.cos(rows @ frequencies + phases)


def train(ctx: Context, folder: Path) -> None:
    """Train linear maps of random features by mini-batches at every weight decay."""
    steps = _size(ctx).steps
    moons = half_moons(2000, ctx.seed, "training").points
    generator = torch.Generator().manual_seed(split(ctx.seed, "batches"))
    start = torch.randn(len(DECAYS), FEATURES, COMPONENTS, generator=generator)
    weights = (0.1 * start).requires_grad_()
    optimiser = torch.optim.Adam([weights], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    random = rng(ctx.seed, "fresh views")
    with torch.enable_grad():
        for _ in range(steps):
            rows = moons[random.integers(len(moons), size=BATCH)]
            pair = rows + STRONG * random.normal(size=(2, *rows.shape))
            first, second = torch.from_numpy(_cosines(pair, ctx.seed)).float()
            total = torch.zeros(())
            for reg, w in zip(DECAYS, weights):
                apart = vcreg_loss(first @ w, second @ w, cross="pairs")
                total = total + apart + 2 * reg * (w**2).sum()
            optimiser.zero_grad()
            total.backward()
            optimiser.step()
            schedule.step()
    fresh = half_moons(2000, ctx.seed, "held out").points
    phi = _cosines(fresh + STRONG * random.normal(size=fresh.shape), ctx.seed)
    psi = phi @ weights.detach().double().numpy()
    spectra = [np.linalg.eigvalsh(p.T @ p / len(p))[::-1].tolist() for p in psi]
    (folder / "spectra.json").write_text(json.dumps(spectra), encoding="utf-8")


def collapse(ctx: Context, *, how: str) -> Measurement:
    """Call which components live and count the calls that training bears out, in percent."""
    text = (ctx.prepared("networks") / "spectra.json").read_text(encoding="utf-8")
    lived = np.array(json.loads(text)) > ALIVE
    points = half_moons(_size(ctx).prediction, ctx.seed, "prediction").points
    views = jittered(points, scale=STRONG, n_views=N_VIEWS, seed=ctx.seed)
    made = grouped(views, shuffled=how == "shuffled", seed=ctx.seed)
    model = KernelVCReg(gamma=GAMMA, n_components=COMPONENTS, pairs="distinct")
    if how == "kernel-alone":  # T = 1: a component lives where K's eigenvalue is above lambda
        path = interplay_path(made.rows, regs=DECAYS, model=model.set_params(pairs="all"))
    elif how == "augmentation-alone":  # the same reg, however strong the decay is
        path = interplay_path(
            made.rows, regs=np.full(len(DECAYS), 1e-6), model=model, groups=made.groups
        )
    else:
        path = interplay_path(made.rows, regs=DECAYS, model=model, groups=made.groups)
    called = path.eigenvalues > 0
    living = {f"{reg}": float(n) for reg, n in zip(DECAYS, lived.sum(axis=1))}
    return Measurement.of(100 * float((called == lived).mean()), n=lived.size, **living)


def _probes(z: Array, z_test: Array, moons: Moons, test: Moons, draws: list[NDArray]) -> float:
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


def _moons(ctx: Context) -> tuple[Moons, Moons, list[NDArray]]:
    moons = half_moons(_size(ctx).inputs, ctx.seed, "inputs")
    test = half_moons(_size(ctx).test, ctx.seed, "test")
    return moons, test, label_draws(moons.side, LABELS, _size(ctx).draws, ctx.seed)


def _ssl_accuracy(
    ctx: Context, *, scale: float, gamma: float = GAMMA, reg: float = REG, deal: str = "given"
) -> float:
    """Probe the closed form on jittered views; ``deal`` says who is whose view.

    "given" is as drawn, "shuffled" at random, and with "apart" every view is an input of its own:
    then T = 1 and nothing is learnt from the augmentation.
    """
    moons, test, draws = _moons(ctx)
    model = KernelVCReg(gamma=gamma, n_components=COMPONENTS, reg=reg)
    if scale:
        views = jittered(moons.points, scale=scale, n_views=N_VIEWS, seed=ctx.seed)
        made = grouped(views, shuffled=deal == "shuffled", seed=ctx.seed)
        model.fit(made.rows, groups=None if deal == "apart" else made.groups)
    else:
        model.fit(moons.points)
    z, z_test = model.transform(moons.points), model.transform(test.points)
    return _probes(z, z_test, moons, test, draws)


def _augmented_ridge(ctx: Context, scale: float, regs: tuple[float, ...]) -> list[float]:
    """Fit kernel ridge to the labelled inputs' views; lambda is scaled by their number."""
    moons, test, draws = _moons(ctx)
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
    moons, test, draws = _moons(ctx)
    found = []
    for rows in draws:
        if how == "spreading":
            y = np.full(_size(ctx).inputs, -1)
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
    return Measurement.of(100 * found, n=_size(ctx).test * _size(ctx).draws)


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
        n=_size(ctx).test * _size(ctx).draws,
        **{f"best log lambda at {scale}": float(b) for scale, b in zip(JITTERS, best)},
    )


def _slope(risks: list[float]) -> float:
    return float(np.polyfit(np.log(DOWN), np.log(risks), 1)[0])


def rate(ctx: Context, *, how: str) -> Measurement:
    """Return the slope of log excess risk over log labels, least squares on 8 components."""
    size, corners = _size(ctx), cube()
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


TRIAL = Trial(
    budgets={
        "smoke": Size(
            seeds=2, inputs=12, prediction=12, pretraining=40, test=20, draws=2, steps=2, grid=10
        ),
        "quick": Size(
            seeds=10, first_seed=60, inputs=80, prediction=150,
            pretraining=4000, test=200, draws=10, steps=600, grid=250
        ),
        "full": Size(
            seeds=30, first_seed=100, inputs=80, prediction=150,
            pretraining=10000, test=400, draws=20, steps=1000, grid=400
        ),
        "gpu": Size(
            seeds=30, first_seed=200, inputs=80, prediction=150,
            pretraining=40000, test=2000, draws=20, steps=4000, grid=400
        ),
    },
    arms={
        "switches": {
            how: partial(switches, how=how)
            for how in ("sampled", "all-pairs", "kernel-alone", "shuffled")
        },
        "collapse": {
            how: partial(collapse, how=how)
            for how in ("predicted", "augmentation-alone", "kernel-alone", "shuffled")
        },
        "together": {
            how: partial(together, how=how) for how in ("both", "better-alone", "shuffled", *GRIDS)
        },
        "tuning": {how: partial(tuning, how=how) for how in ("ssl", "augmented-ridge", "shuffled")},
        "rate": {
            how: partial(rate, how=how) for how in ("ssl", "kernel-ridge", "kernel-pca", "shuffled")
        },
    },
    prepare={"networks": train},
    needs={"collapse": ("networks",)},
)  # fmt: skip
