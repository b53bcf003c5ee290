"""Measure D3G: weighted against averaged heads, learned relations, the consistency term.

The weighting arms share one set of heads per seed, trained without the consistency term, so that
they differ in the weights alone. The relation's sharpness is chosen on held-out training domains,
never on test domains; beta, R and lam are the module's defaults, fixed beforehand.
"""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trialrun.claims.contract import Arm, Context, Measurement, Trial
from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng
from trialrun.dossiers.d3g.rivals import (
    STRENGTHS,
    fit_seed,
    measurement,
    persistence,
    pooled,
    ridge,
    training_of,
)
from trialrun.dossiers.d3g.worlds import (
    KEEP_FOLDS,
    Array,
    D3GBudget,
    World,
    check_on,
    read_on,
    resplit,
    size,
    worlds,
)
from trialrun.shift.d3g import (
    D3GClassifier,
    D3GRegressor,
    Relation,
    ZeroRelationWarning,
    relation_matrix,
    select_by_leaving_domains_out,
)

SHARPNESS = (1.0, 5.0, 50.0)
LAM = 0.5
WEIGHTINGS = ("relation", "average", "nearest", "shuffled")


def _estimator(
    world: World, ctx: Context, point: str, relation: Relation, lam: float
) -> D3GClassifier | D3GRegressor:
    make = D3GClassifier if world.classes else D3GRegressor
    return make(
        relation=relation, lam=lam, training=training_of(ctx), random_state=fit_seed(ctx, point)
    )


def _fit(
    estimator: D3GClassifier | D3GRegressor,
    world: World,
    metadata: Array | None = None,
    adjacency: Array | None = None,
) -> D3GClassifier | D3GRegressor:
    rows = world.training_rows
    return estimator.fit(
        world.X[rows],
        world.y[rows],
        domains=world.domains[rows],
        metadata=(world.metadata if metadata is None else metadata)[world.train],
        adjacency=adjacency,
    )


def kernel_rows(world: World, of: NDArray[np.int64], sharpness: float) -> Array:
    """Return relations of the domains ``of`` to the world's training domains."""
    metadata = world.metadata
    if world.kernel == "distance":
        spread = metadata[world.train].std(axis=0)
        metadata = metadata / np.where(spread > 0, spread, 1.0)
    return relation_matrix(
        metadata[of], metadata[world.train], kernel=world.kernel, sharpness=sharpness
    )


def _score_by_rows(
    estimator: D3GClassifier | D3GRegressor, world: World, rows: Array
) -> dict[int, float]:
    weights = dict(zip(world.test.tolist(), rows))
    return world.score(
        lambda domain, chosen: estimator.predict(world.X[chosen], relations=weights[domain])
    )


def _better(world: World, score: float, best: float) -> bool:
    return score < best if world.unit == "mse" else score > best


def train_heads(ctx: Context, folder: Path, *, material: str) -> None:
    """Train heads without the consistency term and choose the sharpness of their relation."""
    for point, world in worlds(ctx, material).items():
        plain = partial(
            _estimator, ctx=ctx, point=point, relation=Relation("fixed", kernel=world.kernel),
            lam=0.0,
        )  # fmt: skip
        scores: dict[float, list[float]] = {sharpness: [] for sharpness in SHARPNESS}
        for part in world.folds(size(ctx).folds):
            heads = _fit(plain(part), part)
            for sharpness, seen in scores.items():
                rows = kernel_rows(part, part.test, sharpness)
                seen.extend(_score_by_rows(heads, part, rows).values())
        best = SHARPNESS[0]
        for sharpness in SHARPNESS[1:]:
            if _better(world, float(np.mean(scores[sharpness])), float(np.mean(scores[best]))):
                best = sharpness
        _fit(plain(world), world).save(folder / point)
        (folder / f"{point}.json").write_text(json.dumps({"sharpness": best}), encoding="utf-8")


def _sharpness(ctx: Context, step: str, point: str) -> float:
    file = ctx.prepared(step) / f"{point}.json"
    return json.loads(file.read_text(encoding="utf-8"))["sharpness"]


def _heads(ctx: Context, step: str, point: str, world: World) -> D3GClassifier | D3GRegressor:
    kind = D3GClassifier if world.classes else D3GRegressor
    return kind.load(ctx.prepared(step) / point)


def shuffle_columns(rows: Array, seed: int) -> Array:
    """Give every row its own values in a random order of the training domains."""
    return rng(seed, "shuffled relations").permuted(rows, axis=1)


def by_weights(ctx: Context, *, material: str, step: str, how: str) -> Measurement:
    """Combine the prepared heads by relation, evenly, by the nearest, or by shuffled relations."""
    scores, extra = {}, {}
    for point, world in worlds(ctx, material).items():
        sharpness = _sharpness(ctx, step, point)
        rows = kernel_rows(world, world.test, sharpness)
        if how == "average":
            rows = np.ones_like(rows)
        elif how == "nearest":
            rows = np.eye(rows.shape[1])[rows.argmax(axis=1)]
        elif how == "shuffled":
            rows = shuffle_columns(rows, ctx.seed)
        scores[point] = _score_by_rows(_heads(ctx, step, point, world), world, rows)
        extra[f"sharpness, {point}"] = sharpness
    return measurement(scores, world, **extra)


def by_graph(ctx: Context, *, kind: str, shuffled: bool = False) -> Measurement:
    """Train with the given graph, alone or with the relation learned from metadata."""
    scores, extra = {}, {}
    for point, world in worlds(ctx, "ring").items():
        metadata = world.metadata
        if shuffled:
            metadata = metadata[rng(ctx.seed, "shuffled metadata").permutation(len(metadata))]
        estimator = _estimator(world, ctx, point, Relation(kind), LAM)
        given = world.graph[:, world.train]
        _fit(estimator, world, metadata, adjacency=given[world.train])
        scores[point], fell_back = _score_unseen(estimator, world, metadata, given)
        extra[f"domains without relation, {point}"] = fell_back
    return measurement(scores, world, **extra)


def _score_unseen(
    estimator: D3GClassifier | D3GRegressor, world: World, metadata: Array, given: Array
) -> tuple[dict[int, float], int]:
    """Score held-out domains by their graph rows, and count the domains that fell back."""
    told = {d: {"metadata": metadata[d], "relations": given[d]} for d in world.test.tolist()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZeroRelationWarning)
        fell_back = sum(
            bool(estimator.domain_weights(**told[domain]).fell_back[0]) for domain in told
        )
        scores = world.score(lambda domain, rows: estimator.predict(world.X[rows], **told[domain]))
    return scores, fell_back


def by_consistency(ctx: Context, *, related: str) -> Measurement:
    """Train with the consistency term; predict by the same relation rows in every arm.

    ``related`` says how the term weighs the other heads: by the ``kernel``, evenly
    (``uniform``), or by ``shuffled`` relations.
    """
    scores = {}
    for point, world in worlds(ctx, "ring").items():
        sharpness = _sharpness(ctx, "heads", point)
        between = kernel_rows(world, world.train, sharpness)
        if related == "uniform":
            between = np.ones_like(between)
        elif related == "shuffled":
            between = shuffle_columns(between, ctx.seed)
        estimator = _estimator(world, ctx, point, Relation("fixed", kernel=world.kernel), LAM)
        _fit(estimator, world, adjacency=between)
        rows = kernel_rows(world, world.test, sharpness)
        scores[point] = _score_by_rows(estimator, world, rows)
    return measurement(scores, world)


def keep(ctx: Context, folder: Path) -> str:
    """Fit D3G on the whole table, settings chosen by leaving domains out, and save it."""
    if ctx.on is None:
        raise UsageError("keep needs the user's own table: pass --on")
    table = read_on(ctx.on)
    make = D3GRegressor if table.task == "regression" else D3GClassifier
    found = select_by_leaving_domains_out(
        make(
            relation=Relation("fixed", kernel="distance"),
            training=training_of(ctx),
            random_state=ctx.seed,
        ),
        table.X,
        table.y,
        {"relation__sharpness": SHARPNESS, "lam": (0.0, LAM)},
        domains=table.domains,
        metadata=table.metadata,
        folds=KEEP_FOLDS,
    )
    found.best_estimator.save(folder / "model")
    return (
        f"from trialrun.shift.d3g import {make.__name__}\n"
        f"model = {make.__name__}.load({str(folder / 'model')!r})\n"
        f"# model.predict(X, metadata=vector) with the columns {', '.join(table.features)} in X"
    )


def _weighting(material: str, step: str) -> dict[str, Arm]:
    arms: dict[str, Arm] = {
        how: partial(by_weights, material=material, step=step, how=how) for how in WEIGHTINGS
    }
    arms["erm-metadata"] = partial(pooled, material=material, with_metadata=True)
    for objective in STRENGTHS:
        arms[objective] = partial(pooled, material=material, objective=objective)
    return arms


TRIAL = Trial(
    budgets={
        "smoke": D3GBudget(seeds=2, steps=4, points=10, ozone_rows=10, folds=2, tune=False),
        "quick": D3GBudget(seeds=10, steps=200, points=60, ozone_rows=60, folds=3, tune=False),
        # Seeds that nobody had looked at when the number of seeds and the worlds were settled.
        "full": D3GBudget(
            seeds=10, first_seed=200, steps=400, points=100, ozone_rows=200, folds=4, tune=True
        ),
        "gpu": D3GBudget(seeds=10, steps=1000, points=1000, ozone_rows=700, folds=4, tune=True),
    },
    arms={
        "weighting": _weighting("ring", "heads"),
        "weighting-ozone": {
            **_weighting("ozone", "ozone-heads"),
            "ridge": partial(ridge, material="ozone", with_metadata=False),
            "ridge-metadata": partial(ridge, material="ozone", with_metadata=True),
            "persistence": persistence,
        },
        "learned": {
            "both": partial(by_graph, kind="both"),
            "fixed": partial(by_graph, kind="fixed"),
            "kernel": partial(by_consistency, related="kernel"),
            "both-shuffled": partial(by_graph, kind="both", shuffled=True),
        },
        "consistency": {
            "consistency": partial(by_consistency, related="kernel"),
            "none": partial(by_weights, material="ring", step="heads", how="relation"),
            "uniform": partial(by_consistency, related="uniform"),
            "shuffled": partial(by_consistency, related="shuffled"),
        },
    },
    prepare={
        "heads": partial(train_heads, material="ring"),
        "ozone-heads": partial(train_heads, material="ozone"),
    },
    needs={
        **{
            f"weighting/{how}": ("heads",) for how in ("relation", "average", "nearest", "shuffled")
        },
        **{
            f"weighting-ozone/{how}": ("ozone-heads",)
            for how in ("relation", "average", "nearest", "shuffled")
        },
        "learned/kernel": ("heads",),
        "consistency": ("heads",),
    },
    check_on=check_on,
    resplit=resplit,
    keep=keep,
)
