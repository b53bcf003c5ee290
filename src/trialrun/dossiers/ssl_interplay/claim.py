"""Measure the claims about the SSL interplay: regimes, collapse, interaction and rate.

Every arm of a seed sees the same inputs, views and labels. The control deals the views to inputs
anew; nothing else about it differs.
"""

from __future__ import annotations

import json
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
NARROW = 1 / (2 * 0.03**2)
LABELS, N_VIEWS, COMPONENTS = 8, 4, 6
JITTER, REG, PENALTY = 0.1, 1e-4, 1e-3
STRENGTHS = {"0.1": 0.1, "0.3": 0.3, "0.6": 0.6}
REGS = tuple(np.logspace(-6, 0, 13).tolist())
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
    if how == "kernel-alone":  # what K says by itself: the third function until lambda |f|^2 is 1
        best = np.where(regs * NORMS[2] < 1, 2, 3)
    else:
        path = interplay_path(made.rows, regs=regs, model=model, groups=made.groups)
        best = np.abs(path.norms[:, :1] - NORMS).argmin(axis=1)
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
    """Return the mean accuracy of ridge classifiers with an intercept, one per draw of labels."""
    rows = np.stack(draws)
    seen, side = z[rows], 2.0 * moons.side[rows] - 1
    middle = seen.mean(axis=1, keepdims=True)
    seen = seen - middle
    second = seen.transpose(0, 2, 1) @ seen + PENALTY * np.eye(z.shape[1])
    slopes = np.linalg.solve(second, (seen * side[:, :, None]).sum(axis=1)[:, :, None])
    # As many labels of one class as of the other: the mean label, and so its intercept, is 0.
    scores = (z_test @ slopes)[:, :, 0] - (middle @ slopes)[:, :, 0]
    return float(((scores > 0) == (test.side == 1)).mean())


def _model(**settings: object) -> KernelVCReg:
    told: dict[str, object] = {"gamma": GAMMA, "n_components": COMPONENTS, "reg": REG}
    return KernelVCReg(**{**told, **settings})  # type: ignore[arg-type]


def _moons(ctx: Context) -> tuple[Moons, Moons, list[NDArray]]:
    moons = half_moons(_size(ctx).inputs, ctx.seed, "inputs")
    test = half_moons(_size(ctx).test, ctx.seed, "test")
    return moons, test, label_draws(moons.side, LABELS, _size(ctx).draws, ctx.seed)


def _ssl_accuracy(ctx: Context, *, gamma: float, augment: bool, shuffled: bool) -> float:
    moons, test, draws = _moons(ctx)
    model = _model(gamma=gamma)
    if augment:
        views = jittered(moons.points, scale=JITTER, n_views=N_VIEWS, seed=ctx.seed)
        made = grouped(views, shuffled=shuffled, seed=ctx.seed)
        model.fit(made.rows, groups=made.groups)
    else:
        model.fit(moons.points)
    z, z_test = model.transform(moons.points), model.transform(test.points)
    return 100 * _probes(z, z_test, moons, test, draws)


def together(ctx: Context, *, how: str) -> Measurement:
    """Score a linear probe on few labels, in percent of fresh points."""
    n = _size(ctx).test * _size(ctx).draws
    kernel = partial(_ssl_accuracy, ctx, gamma=GAMMA, augment=False, shuffled=False)
    narrow = partial(_ssl_accuracy, ctx, gamma=NARROW, augment=True, shuffled=False)
    if how == "kernel-alone":
        return Measurement.of(kernel(), n=n)
    if how == "augmentation-alone":
        return Measurement.of(narrow(), n=n)
    if how == "better-alone":
        return Measurement.of(max(kernel(), narrow()), n=n)
    score = _ssl_accuracy(ctx, gamma=GAMMA, augment=True, shuffled=how == "shuffled")
    return Measurement.of(score, n=n)


def few_labels(ctx: Context, *, how: str) -> Measurement:
    """Score what a user would run without self-supervision, its setting chosen on the test set."""
    moons, test, draws = _moons(ctx)
    scores = []
    for setting in (1.0, GAMMA, 20.0, 50.0):
        found = []
        for rows in draws:
            if how == "spreading":
                y = np.full(_size(ctx).inputs, -1)
                y[rows] = moons.side[rows]
                model = LabelSpreading(gamma=setting, max_iter=200).fit(moons.points, y)
                found.append((model.predict(test.points) == test.side).mean())
                continue
            ridge = KernelRidge(kernel="rbf", gamma=setting, alpha=1e-3)
            ridge.fit(moons.points[rows], 2.0 * moons.side[rows] - 1)
            found.append(((ridge.predict(test.points) > 0) == (test.side == 1)).mean())
        scores.append(100 * float(np.mean(found)))
    return Measurement.of(max(scores), n=_size(ctx).test * len(draws))


def tuning(ctx: Context, *, how: str) -> Measurement:
    """Return the decimal logarithm of the lambda with the best probe, per strength of jitter."""
    moons, test, draws = _moons(ctx)
    best = {}
    for name, scale in STRENGTHS.items():
        views = jittered(moons.points, scale=scale, n_views=N_VIEWS, seed=ctx.seed)
        made = grouped(views, shuffled=how == "shuffled", seed=ctx.seed)
        if how == "augmented-ridge":
            scores = _augmented_ridge(views, moons, test, draws)
        else:
            scores = []
            for reg in REGS:
                model = _model(reg=reg).fit(made.rows, groups=made.groups)
                z, z_test = model.transform(moons.points), model.transform(test.points)
                scores.append(_probes(z, z_test, moons, test, draws))
        best[name] = float(np.log10(REGS[int(np.argmax(scores))]))
    return Measurement(best, _size(ctx).test * len(draws))


def _augmented_ridge(views: Array, moons: Moons, test: Moons, draws: list[NDArray]) -> list[float]:
    """Fit kernel ridge to the labelled inputs' views; lambda is scaled by their number."""
    hits = np.zeros(len(REGS))
    for rows in draws:
        seen = views[rows].reshape(-1, views.shape[2])
        side = np.repeat(2.0 * moons.side[rows] - 1, views.shape[1])
        w, v = np.linalg.eigh(rbf_kernel(seen, gamma=GAMMA))
        shrunk = (v.T @ side)[:, None] / (w[:, None] + len(seen) * np.array(REGS))
        scores = rbf_kernel(test.points, seen, gamma=GAMMA) @ (v @ shrunk)
        hits += ((scores > 0) == (test.side == 1)[:, None]).mean(axis=0)
    return (hits / len(draws)).tolist()


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
            **{
                how: partial(together, how=how)
                for how in (
                    "both", "better-alone", "kernel-alone", "augmentation-alone", "shuffled",
                )
            },
            "spreading": partial(few_labels, how="spreading"),
            "kernel-ridge": partial(few_labels, how="kernel-ridge"),
        },
        "tuning": {how: partial(tuning, how=how) for how in ("ssl", "augmented-ridge", "shuffled")},
        "rate": {
            how: partial(rate, how=how) for how in ("ssl", "kernel-ridge", "kernel-pca", "shuffled")
        },
    },
    prepare={"networks": train},
    needs={"collapse": ("networks",)},
)  # fmt: skip
