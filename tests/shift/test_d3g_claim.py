"""D3G's claims: arms share their material, selection sees training domains only, --on works."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from trialrun.claims.contract import Context, On
from trialrun.dossiers.d3g.claim import TRIAL, kernel_rows, shuffle_columns
from trialrun.dossiers.d3g.worlds import World, table_world, worlds
from trialrun.material.tables import read_domain_table
from trialrun.shift.d3g import D3GClassifier, D3GRegressor

SMOKE = TRIAL.budgets["smoke"]


@pytest.fixture
def table(tmp_path):
    """Nine places whose boundary turns with the place's angle."""
    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2.5, 9)
    names = np.array([f"place {i}" for i in range(9)])
    place = np.repeat(np.arange(9), 30)
    X = rng.normal(size=(270, 2))
    along = X[:, 0] * np.cos(angles[place]) + X[:, 1] * np.sin(angles[place])
    frame = pd.DataFrame({"u": X[:, 0], "v": X[:, 1], "place": names[place], "level": along})
    frame["wet"] = np.where(along > 0, "yes", "no")
    frame.drop(columns="wet").to_csv(tmp_path / "numbers.csv", index=False)
    frame.drop(columns="level").to_csv(tmp_path / "classes.csv", index=False)
    meta = pd.DataFrame({"place": names, "cos": np.cos(angles), "sin": np.sin(angles)})
    meta.to_csv(tmp_path / "places.csv", index=False)
    return tmp_path


def on(folder, name, column, **changes):
    options = {"target": column, "domain": "place", "metadata": str(folder / "places.csv")}
    return On("table", str(folder / name), {**options, **changes})


def context(folder, told=None, seed=0, **changes):
    budget = dataclasses.replace(SMOKE, **changes)
    return Context(budget=budget, seed=seed, on=told, prepared_root=folder)


@pytest.mark.parametrize("material", ["ring", "ozone"])
def test_no_training_row_comes_from_a_held_out_domain_nor_from_its_months(material, tmp_path):
    for world in worlds(context(tmp_path), material).values():
        assert not set(world.domains[world.training_rows]) & set(world.test.tolist())
        assert not (world.training_rows & world.test_rows).any()
        for part in world.folds(3):
            used = set(world.domains[part.training_rows | part.test_rows].tolist())
            assert used == set(world.train.tolist())
            assert not set(part.train) & set(part.test)


def test_the_graph_of_a_table_reaches_training_domains_only(table):
    world = table_world(read_domain_table(
        table / "numbers.csv", target="level", domain="place", metadata=table / "places.csv"
    ), seed=1)  # fmt: skip
    assert not world.graph[:, world.test].any()
    assert (world.graph.sum(axis=1) == 3).all()
    assert not np.diag(world.graph).any()


def test_shuffled_relations_keep_every_rows_values_and_move_most(tmp_path):
    world = worlds(context(tmp_path), "ring")["interpolate"]
    rows = kernel_rows(world, world.test, 5.0)
    shuffled = shuffle_columns(rows, 0)
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.sort(shuffled, axis=1))
    assert (rows != shuffled).mean() > 0.5


@pytest.mark.parametrize(
    ("name", "target", "kind"),
    [("classes.csv", "wet", D3GClassifier), ("numbers.csv", "level", D3GRegressor)],
)
def test_every_claim_for_tables_runs_on_the_users_own_and_the_model_is_kept(
    table, tmp_path, name, target, kind
):
    ctx = context(tmp_path / "prepared", on(table, name, target), steps=60)
    TRIAL.check_on(ctx)
    folder = ctx.prepared("heads")
    folder.mkdir(parents=True)
    TRIAL.prepare["heads"](ctx, folder)
    found = {
        claim: {arm: run(ctx) for arm, run in TRIAL.arms[claim].items()}
        for claim in ("weighting", "learned", "consistency")
    }
    for arms in found.values():
        assert {tuple(m.points) for m in arms.values()} == {("table",)}
        assert len({m.n for m in arms.values()}) == 1
    weighting = found["weighting"]
    assert weighting["relation"].points["table"] > weighting["average"].points["table"]
    kept = tmp_path / "kept"
    kept.mkdir()
    lines = TRIAL.keep(ctx, kept)
    spoken: dict = {}
    exec(lines, spoken)
    assert isinstance(spoken["model"], kind)
    assert len(spoken["model"].predict(np.zeros((2, 2)), metadata=[0.5, 0.8])) == 2


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"metadata": ""}, "needs --metadata: --target and --domain name columns"),
        ({"target": "", "domain": ""}, "needs --target, --domain"),
        ({"target": "depth"}, "has no column 'depth'"),
        ({"domain": "u2"}, "has no column 'u2'"),
    ],
)
def test_options_are_checked_before_any_unit_runs(table, tmp_path, told, message):
    with pytest.raises(ValueError, match=message):
        TRIAL.check_on(context(tmp_path, on(table, "classes.csv", "wet", **told)))


def test_a_class_that_lives_in_one_domain_alone_is_refused_at_the_start(table, tmp_path):
    frame = pd.read_csv(table / "classes.csv")
    frame["wet"] = np.where(frame["place"] == "place 4", frame["wet"], "no")
    frame.to_csv(table / "classes.csv", index=False)
    with pytest.raises(ValueError, match=r"one class only once the domains .*place 4.* held out"):
        TRIAL.check_on(context(tmp_path, on(table, "classes.csv", "wet"), seeds=20))


def test_few_domains_are_refused_with_the_number_wanted(table, tmp_path):
    frame = pd.read_csv(table / "classes.csv")
    frame[frame["place"] < "place 5"].to_csv(table / "classes.csv", index=False)
    with pytest.raises(ValueError, match=r"5 domain\(s\) .* expected at least 6"):
        TRIAL.check_on(context(tmp_path, on(table, "classes.csv", "wet")))


def test_scores_are_points_of_r2_over_all_held_out_rows():
    y = np.array([0.0, 2.0, 4.0, 6.0, 9.0])
    domains = np.array([0, 0, 1, 1, 2])
    rows = domains < 2
    world = World(
        y[:, None], y, domains, np.eye(3), np.eye(3), np.array([2]), np.array([0, 1]),
        "distance", "r2", ~rows, rows,
    )  # fmt: skip
    scores = world.score(lambda domain, chosen: y[chosen] + domain)
    assert scores == {0: 100.0, 1: pytest.approx(100 * (1 - 1 / 5))}
