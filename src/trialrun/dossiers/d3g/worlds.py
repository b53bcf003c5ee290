"""The material of D3G's claims: ring worlds, ozone, or the user's own table, in one form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from trialrun.claims.contract import Budget, Context, On
from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng
from trialrun.material.ozone import load_ozone, ozone_rows
from trialrun.material.ring import LAYOUTS, ring_world
from trialrun.material.tables import DomainTable, read_domain_table

Array = NDArray[np.float64]

TRAINING_MONTHS = 48
LEAST_DOMAINS = 6
NEIGHBOURS = 3
KEEP_FOLDS = 3


@dataclass(frozen=True, kw_only=True)
class D3GBudget(Budget):
    """Size of a run: updates, points per ring domain, rows per ozone region, and selection.

    ``folds`` groups of training domains choose the relation's sharpness, and with ``tune`` also
    the baselines' strengths.
    """

    steps: int
    points: int
    ozone_rows: int
    folds: int
    tune: bool


@dataclass(frozen=True, eq=False)
class World:
    """Rows of several domains, numbered by their row of ``metadata``; whole domains are held out.

    ``graph`` holds given relations between all domains. ``unit`` says how an arm is scored:
    ``accuracy`` and ``r2`` in points, ``mse`` in the target's unit squared.
    """

    X: Array
    y: NDArray
    domains: NDArray[np.int64]
    metadata: Array
    graph: Array
    train: NDArray[np.int64]
    test: NDArray[np.int64]
    kernel: str
    unit: str
    training_rows: NDArray[np.bool_]
    test_rows: NDArray[np.bool_]

    @property
    def classes(self) -> bool:
        """Return whether the target is a class."""
        return self.unit == "accuracy"

    def without(self, held_out: NDArray[np.int64]) -> World:
        """Return the world of the training domains alone, some of them held out."""
        kept = np.setdiff1d(self.train, held_out)
        return World(
            self.X, self.y, self.domains, self.metadata, self.graph, kept, held_out, self.kernel,
            self.unit, self.training_rows & np.isin(self.domains, kept),
            self.training_rows & np.isin(self.domains, held_out),
        )  # fmt: skip

    def folds(self, n_folds: int) -> list[World]:
        """Deal the training domains into groups, each held out once."""
        n_folds = min(n_folds, len(self.train) - 1)
        return [self.without(self.train[start::n_folds]) for start in range(n_folds)]

    def with_metadata(self) -> Array:
        """Return the features with each row's metadata as further columns."""
        return np.column_stack([self.X, self.metadata[self.domains]])

    def score(self, predict: Callable[[int, NDArray[np.bool_]], NDArray]) -> dict[int, float]:
        """Score ``predict(domain, rows)`` on every held-out domain."""
        spread = 1.0 if self.classes else float(self.y[self.test_rows].var()) or 1.0
        scores = {}
        for domain in self.test.tolist():
            rows = self.test_rows & (self.domains == domain)
            found, truth = predict(domain, rows), self.y[rows]
            if self.classes:
                scores[domain] = 100 * float((found == truth).mean())
                continue
            error = float(((found - truth) ** 2).mean())
            scores[domain] = error if self.unit == "mse" else 100 * (1 - error / spread)
        return scores


def size(ctx: Context) -> D3GBudget:
    """Return the budget as this dossier's own kind."""
    return cast(D3GBudget, ctx.budget)


def _split_rows(
    domains: NDArray[np.int64], train: NDArray[np.int64], test: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    return np.isin(domains, train), np.isin(domains, test)


def _ring(ctx: Context) -> dict[str, World]:
    found = {}
    for layout in LAYOUTS:
        ring = ring_world(seed=ctx.seed, layout=layout, points=size(ctx).points)
        found[layout] = World(
            ring.X, ring.y, ring.domains, ring.metadata, ring.adjacency, ring.train, ring.test,
            "cosine", "accuracy", *_split_rows(ring.domains, ring.train, ring.test),
        )  # fmt: skip
    return found


def neighbour_graph(metadata: Array, train: NDArray[np.int64], count: int = NEIGHBOURS) -> Array:
    """Relate every domain (row) by 1 to the training domains nearest in scaled metadata."""
    spread = metadata[train].std(axis=0)
    scaled = metadata / np.where(spread > 0, spread, 1.0)
    distance = ((scaled[:, None] - scaled[None]) ** 2).sum(axis=2)
    np.fill_diagonal(distance, np.inf)
    distance[:, np.setdiff1d(np.arange(len(metadata)), train)] = np.inf
    graph = np.zeros_like(distance)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, : min(count, len(train) - 1)]
    np.put_along_axis(graph, nearest, 1.0, axis=1)
    return graph


def _ozone(ctx: Context) -> dict[str, World]:
    table = ozone_rows(load_ozone())
    n_domains, random = len(table.metadata), rng(ctx.seed, "ozone")
    turn = random.uniform(0, 2 * np.pi)
    scaled = (table.metadata - table.metadata.mean(axis=0)) / table.metadata.std(axis=0)
    orders = {
        "across": np.argsort(scaled @ [np.cos(turn), np.sin(turn)], kind="stable"),
        "scattered": random.permutation(n_domains),
    }
    # The same random rows of every region serve both splits.
    early = table.months < TRAINING_MONTHS
    rank = random.random(len(table.y)) + ~early
    drawn = np.zeros(len(table.y), dtype=bool)
    for domain in range(n_domains):
        rows = np.flatnonzero(table.domains == domain)
        drawn[rows[np.argsort(rank[rows])[: size(ctx).ozone_rows]]] = True
    found = {}
    for name, order in orders.items():
        train, test = np.sort(order[: n_domains // 2]), np.sort(order[n_domains // 2 :])
        inside, outside = _split_rows(table.domains, train, test)
        found[name] = World(
            table.X, table.y, table.domains, table.metadata,
            neighbour_graph(table.metadata, train), train, test, "distance", "mse",
            inside & early & drawn, outside & ~early,
        )  # fmt: skip
    return found


def read_on(on: On) -> DomainTable:
    """Read the user's table as ``--on`` and its options name it.

    Raises
    ------
    UsageError
        If an option is missing or a file will not do.
    """
    lacking = [f"--{name}" for name in ("target", "domain", "metadata") if not on.options.get(name)]
    if lacking:
        raise UsageError(
            f"--on {on.path} needs {', '.join(lacking)}: --target and --domain name columns of "
            "the table, --metadata a table with one row per domain"
        )
    return read_domain_table(
        on.path,
        target=on.options["target"],
        domain=on.options["domain"],
        metadata=on.options["metadata"],
        task=on.options.get("task") or None,
        least_domains=LEAST_DOMAINS,
    )


def table_world(table: DomainTable, seed: int) -> World:
    """Hold out a third of the table's domains, at least two, drawn by ``seed``."""
    order = rng(seed, "held-out domains").permutation(len(table.labels))
    n_test = held_out_count(len(order))
    test, train = np.sort(order[:n_test]), np.sort(order[n_test:])
    domains = np.searchsorted(table.labels, table.domains)
    return World(
        table.X, table.y, domains, table.metadata, neighbour_graph(table.metadata, train),
        train, test, "distance", "r2" if table.task == "regression" else "accuracy",
        *_split_rows(domains, train, test),
    )  # fmt: skip


def held_out_count(domains: int) -> int:
    """Return how many of a user's domains are held out: a third, at least two."""
    return max(2, round(domains / 3))


def resplit(ctx: Context) -> float:
    """Return held-out per training domain: every seed splits the user's one table anew."""
    assert ctx.on is not None
    domains = len(read_on(ctx.on).labels)
    return held_out_count(domains) / (domains - held_out_count(domains))


def _table(ctx: Context) -> dict[str, World]:
    assert ctx.on is not None
    return {"table": table_world(read_on(ctx.on), ctx.seed)}


def worlds(ctx: Context, material: str) -> Mapping[str, World]:
    """Return the worlds of a claim by point name: ``--on`` first, else ``ring`` or ``ozone``."""
    if ctx.on is not None:
        return _table(ctx)
    return {"ring": _ring, "ozone": _ozone}[material](ctx)


def check_on(ctx: Context) -> None:
    """Check the user's table before any unit runs.

    Raises
    ------
    UsageError
        For anything `read_on` refuses, or a split whose training side has one class only.
    """
    if ctx.on is None:
        return
    table = read_on(ctx.on)
    if table.task == "regression":
        return
    labels = table.labels
    held_out = [labels[start::KEEP_FOLDS] for start in range(KEEP_FOLDS)]
    for seed in ctx.budget.all_seeds:
        world = table_world(table, seed)
        parts = (world, *world.folds(size(ctx).folds))
        held_out += [
            table.labels[np.setdiff1d(np.arange(len(table.labels)), p.train)] for p in parts
        ]
    for gone in held_out:
        if len(np.unique(table.y[~np.isin(table.domains, gone)])) < 2:
            raise UsageError(
                f"{ctx.on.path} has one class only once the domains {', '.join(map(str, gone))} "
                "are held out: give both classes in more domains"
            )
