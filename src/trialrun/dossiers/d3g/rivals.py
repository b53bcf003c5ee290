"""The rivals of D3G in its claims: one model for all domains, with and without metadata."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from trialrun.claims.contract import Context, Measurement
from trialrun.core.seeds import split
from trialrun.dossiers.d3g.worlds import Array, World, size, worlds
from trialrun.shift._baselines import PooledNetwork
from trialrun.shift.d3g import Training

STRENGTHS = {"erm": (0.0,), "groupdro": (0.01, 0.1), "vrex": (1.0, 10.0), "coral": (1.0, 0.1)}
"""Strengths tried by a budget that tunes; the first is used where none is tuned."""


def fit_seed(ctx: Context, point: str) -> int:
    """Return the seed that every arm's fit at this point starts from."""
    # numpy's RandomState, behind scikit-learn's random_state, takes 32 bits.
    return split(ctx.seed, "fit", point) % 2**32


def training_of(ctx: Context) -> Training:
    """Return the optimiser's settings, alike in every arm."""
    return Training(steps=size(ctx).steps, device=ctx.device)


def measurement(scores: dict[str, dict[int, float]], world: World, **extra: float) -> Measurement:
    """Report the mean over held-out domains, and the worst of them beside it."""
    worst = max if world.unit == "mse" else min
    kept = {f"worst domain, {point}": worst(found.values()) for point, found in scores.items()}
    points = {point: float(np.mean(list(found.values()))) for point, found in scores.items()}
    return Measurement(points, int(world.test_rows.sum()), {**kept, **extra})


def _predict(model: Any, X: Array, _: int, rows: NDArray[np.bool_]) -> NDArray:
    return model.predict(X[rows])


def _newest(X: Array, _: int, rows: NDArray[np.bool_]) -> NDArray:
    return X[rows, 0]


def _pooled_scores(
    world: World, ctx: Context, point: str, objective: str, strength: float, with_metadata: bool
) -> dict[int, float]:
    X = world.with_metadata() if with_metadata else world.X
    rows = world.training_rows
    model = PooledNetwork(
        objective=objective,
        strength=strength,
        classes=world.classes,
        training=training_of(ctx),
        random_state=fit_seed(ctx, point),
    ).fit(X[rows], world.y[rows], world.domains[rows])
    return world.score(partial(_predict, model, X))


def pooled(
    ctx: Context, *, material: str, objective: str = "erm", with_metadata: bool = False
) -> Measurement:
    """Train one network for all domains; a penalty's strength is chosen where the budget tunes."""
    scores, extra = {}, {}
    for point, world in worlds(ctx, material).items():
        run = partial(
            _pooled_scores, ctx=ctx, point=point, objective=objective, with_metadata=with_metadata
        )
        tried = STRENGTHS[objective]
        strength = tried[0]
        if size(ctx).tune and len(tried) > 1:
            parts = world.folds(size(ctx).folds)
            mean = [
                np.mean([v for part in parts for v in run(part, strength=s).values()])
                for s in tried
            ]
            strength = tried[int(np.argmin(mean) if world.unit == "mse" else np.argmax(mean))]
        scores[point] = run(world, strength=strength)
        extra[f"strength, {point}"] = strength
    return measurement(scores, world, **extra)


def ridge(ctx: Context, *, material: str, with_metadata: bool) -> Measurement:
    """Fit ridge regression; with metadata, on all products of two columns as well."""
    scores = {}
    for point, world in worlds(ctx, material).items():
        X = world.with_metadata() if with_metadata else world.X
        model = make_pipeline(
            StandardScaler(),
            PolynomialFeatures(2 if with_metadata else 1, include_bias=False),
            RidgeClassifier() if world.classes else Ridge(),
        )
        model.fit(X[world.training_rows], world.y[world.training_rows])
        scores[point] = world.score(partial(_predict, model, X))
    return measurement(scores, world)


def persistence(ctx: Context) -> Measurement:
    """Predict that next month's ozone is this month's."""
    found = worlds(ctx, "ozone")
    scores = {point: world.score(partial(_newest, world.X)) for point, world in found.items()}
    return measurement(scores, next(iter(found.values())))
