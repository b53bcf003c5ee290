"""D3G's arms: what each is trained on, what it is told, and where its settings are chosen."""

import dataclasses
import json

import numpy as np
import pytest

from trialrun.claims.contract import Context
from trialrun.dossiers.d3g import claim, rivals
from trialrun.dossiers.d3g.claim import TRIAL, kernel_rows
from trialrun.dossiers.d3g.worlds import worlds
from trialrun.shift.d3g import D3GClassifier

SMOKE = TRIAL.budgets["smoke"]
STEPS = {"ring": "heads", "ozone": "ozone-heads"}
CLAIM = {"ring": "weighting", "ozone": "weighting-ozone"}


@pytest.fixture
def ctx(tmp_path):
    return Context(budget=SMOKE, seed=4, prepared_root=tmp_path)


def prepare(ctx, material):
    folder = ctx.prepared(STEPS[material])
    folder.mkdir(parents=True)
    TRIAL.prepare[STEPS[material]](ctx, folder)
    return folder


def contents(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def poisoned(world):
    """Return a world whose held-out domains have no usable number left."""
    held_out = np.isin(world.domains, world.test)
    X, metadata, graph, y = (a.copy() for a in (world.X, world.metadata, world.graph, world.y))
    X[held_out], metadata[world.test] = np.nan, np.nan
    graph[world.test], graph[:, world.test] = np.nan, np.nan
    y[held_out] = 99
    return dataclasses.replace(world, X=X, y=y, metadata=metadata, graph=graph)


@pytest.mark.parametrize("material", STEPS)
def test_heads_and_sharpness_never_look_at_held_out_domains(material, ctx, tmp_path, monkeypatch):
    before = contents(prepare(ctx, material))
    real = worlds
    monkeypatch.setattr(
        claim, "worlds", lambda *args: {k: poisoned(w) for k, w in real(*args).items()}
    )
    other = dataclasses.replace(ctx, prepared_root=tmp_path / "other")
    assert contents(prepare(other, material)) == before
    assert sum(name.endswith(".json") and "/" not in name for name in before) == 2


@pytest.mark.parametrize("material", STEPS)
@pytest.mark.parametrize("best", claim.SHARPNESS)
def test_the_sharpness_chosen_is_the_best_on_the_held_out_training_domains(
    material, best, ctx, monkeypatch
):
    sign = 1 if material == "ring" else -1
    monkeypatch.setattr(claim, "kernel_rows", lambda part, of, sharpness: sharpness)
    monkeypatch.setattr(
        claim,
        "_score_by_rows",
        lambda heads, part, tried: {int(d): sign * (tried == best) for d in part.test},
    )
    folder = prepare(ctx, material)
    for point in worlds(ctx, material):
        assert json.loads((folder / f"{point}.json").read_text()) == {"sharpness": best}


@pytest.mark.parametrize("objective", ["groupdro", "vrex", "coral"])
@pytest.mark.parametrize("material", STEPS)
def test_a_baselines_strength_is_the_best_on_training_domains_alone(
    objective, material, ctx, monkeypatch
):
    ctx = dataclasses.replace(ctx, budget=dataclasses.replace(SMOKE, tune=True))
    best = rivals.STRENGTHS[objective][1]
    sign = 1 if material == "ring" else -1
    asked = []

    def fake(world, ctx, point, objective, strength, with_metadata):
        asked.append((world, strength))
        return {int(d): float(sign * (strength == best)) for d in world.test}

    monkeypatch.setattr(rivals, "_pooled_scores", fake)
    found = TRIAL.arms[CLAIM[material]][objective](ctx)
    for number, (point, whole) in enumerate(worlds(ctx, material).items()):
        assert found.extra[f"strength, {point}"] == best
        calls = asked[number * 5 : number * 5 + 5]
        first, second = rivals.STRENGTHS[objective]
        assert [strength for _, strength in calls] == [first, first, second, second, best]
        for part, _ in calls[:-1]:
            used = part.training_rows | part.test_rows
            assert not (used & ~whole.training_rows).any()
        assert np.array_equal(calls[-1][0].test, whole.test)


def _inputs(world, rows, with_metadata):
    parts = [world.X[rows]]
    if with_metadata:
        parts.append([world.metadata[domain] for domain in world.domains[rows]])
    return np.hstack(parts)


@pytest.mark.parametrize(
    ("arm", "told"), [("erm-metadata", True), ("erm", False), ("coral", False)]
)
@pytest.mark.parametrize("material", STEPS)
def test_the_pooled_network_reads_metadata_beside_the_features_only_where_named(
    material, arm, told, ctx, monkeypatch
):
    read = []

    class Recorder:
        def __init__(self, **settings):
            self.settings = settings

        def fit(self, X, y, domains):
            read.append([(X, y, domains)])
            return self

        def predict(self, X):
            read[-1].append(X)
            return np.zeros(len(X))

    monkeypatch.setattr(rivals, "PooledNetwork", Recorder)
    TRIAL.arms[CLAIM[material]][arm](ctx)
    for ((X, y, domains), *tested), world in zip(read, worlds(ctx, material).values(), strict=True):
        rows = world.training_rows
        np.testing.assert_array_equal(X, _inputs(world, rows, told))
        np.testing.assert_array_equal(y, world.y[rows])
        np.testing.assert_array_equal(domains, world.domains[rows])
        for domain, given in zip(world.test, tested, strict=True):
            np.testing.assert_array_equal(
                given, _inputs(world, world.test_rows & (world.domains == domain), told)
            )


@pytest.fixture
def rows_given(monkeypatch):
    """Record the relation rows that a prediction is made with."""
    found = []

    def fake(estimator, world, rows):
        found.append((estimator, rows))
        return dict.fromkeys(world.test.tolist(), 0.0)

    return found, lambda: monkeypatch.setattr(claim, "_score_by_rows", fake)


@pytest.mark.parametrize("material", STEPS)
def test_weights_are_the_relation_even_the_nearest_or_shuffled_as_the_arm_is_called(
    material, ctx, rows_given
):
    folder = prepare(ctx, material)
    found, start = rows_given
    start()
    given, heads = {}, {}
    for point in worlds(ctx, material):
        (folder / f"{point}.json").write_text('{"sharpness": 3.0}')
    for how in claim.WEIGHTINGS:
        found.clear()
        measured = TRIAL.arms[CLAIM[material]][how](ctx)
        given[how] = [rows for _, rows in found]
        heads[how] = [estimator.get_params()["lam"] for estimator, _ in found]
        assert all(measured.extra[f"sharpness, {point}"] == 3.0 for point in measured.points)
    assert heads == {how: [0.0, 0.0] for how in claim.WEIGHTINGS}
    for number, world in enumerate(worlds(ctx, material).values()):
        rows = {how: given[how][number] for how in given}
        relation = rows["relation"]
        np.testing.assert_array_equal(relation, kernel_rows(world, world.test, 3.0))
        assert (rows["average"] == rows["average"][0, 0]).all()
        assert rows["average"][0, 0] > 0
        assert (rows["nearest"].sum(axis=1) == 1).all()
        np.testing.assert_array_equal(rows["nearest"].argmax(axis=1), relation.argmax(axis=1))
        shuffled = rows["shuffled"]
        np.testing.assert_array_equal(np.sort(shuffled, axis=1), np.sort(relation, axis=1))
        moved = (shuffled != relation).any(axis=1)
        varied = [len(np.unique(row)) > 1 for row in relation]
        assert moved[varied].mean() > 0.8
        if number == 0:
            # Rows are shuffled apart: one order for all would leave domains their neighbours.
            pairs = zip(shuffled, relation, strict=True)
            assert len({tuple((a[:, None] == b).argmax(axis=1)) for a, b in pairs}) > 1


def test_the_consistency_term_weighs_as_named_and_all_arms_predict_by_one_relation(
    ctx, rows_given, monkeypatch
):
    prepare(ctx, "ring")
    found, start = rows_given
    start()
    trained = []
    monkeypatch.setattr(
        claim,
        "_fit",
        lambda estimator, world, metadata=None, adjacency=None: trained.append(
            (estimator.get_params()["lam"], adjacency)
        ),
    )
    arms = {**TRIAL.arms["consistency"]}
    none = arms.pop("none")
    between = {}
    predicted = []
    for arm, run in arms.items():
        trained.clear()
        found.clear()
        run(ctx)
        assert [lam for lam, _ in trained] == [claim.LAM] * 2
        between[arm] = [adjacency for _, adjacency in trained]
        predicted.append([rows for _, rows in found])
    found.clear()
    none(ctx)
    predicted.append([rows for _, rows in found])
    for number in range(2):
        for rows in predicted:
            np.testing.assert_array_equal(rows[number], predicted[0][number])
        kernel, even, mixed = (between[a][number] for a in ("consistency", "uniform", "shuffled"))
        assert (even == even[0, 0]).all()
        assert even[0, 0] > 0
        assert np.ptp(kernel) > 0
        np.testing.assert_array_equal(np.sort(mixed, axis=1), np.sort(kernel, axis=1))
        assert (mixed != kernel).any(axis=1).mean() > 0.8


def test_the_control_of_learned_relations_mixes_up_metadata_alone(ctx, monkeypatch):
    asked = []

    def fit(estimator, world, metadata=None, adjacency=None):
        asked.append([estimator.get_params()["relation"].kind, metadata, adjacency])

    def score(estimator, world, metadata, given):
        asked[-1] += [metadata, given]
        return dict.fromkeys(world.test.tolist(), 0.0), 0

    monkeypatch.setattr(claim, "_fit", fit)
    monkeypatch.setattr(claim, "_score_unseen", score)
    seen = {}
    for arm in ("both", "fixed", "both-shuffled"):
        asked.clear()
        TRIAL.arms["learned"][arm](ctx)
        seen[arm] = [*asked]
    for number, world in enumerate(worlds(ctx, "ring").values()):
        for arm in seen:
            kind, trained, graph, tested, given = seen[arm][number]
            assert kind == arm.removesuffix("-shuffled")
            np.testing.assert_array_equal(trained, tested)
            np.testing.assert_array_equal(given, world.graph[:, world.train])
            np.testing.assert_array_equal(graph, given[world.train])
            if arm != "both-shuffled":
                np.testing.assert_array_equal(trained, world.metadata)
        mixed = seen["both-shuffled"][number][1]
        assert sorted(map(tuple, mixed)) == sorted(map(tuple, world.metadata))
        assert (mixed != world.metadata).any(axis=1).mean() > 0.6


@pytest.mark.parametrize("name", TRIAL.arms)
def test_arms_of_one_seed_share_one_world_and_other_seeds_have_others(name, ctx, monkeypatch):
    for material in STEPS:
        prepare(ctx, material)
    drawn = []

    def spy(asked, material):
        found = worlds(asked, material)
        drawn.append(
            {
                point: [a.tobytes() for a in (w.X, w.y, w.metadata, w.graph, w.test)]
                + [w.training_rows.tobytes(), w.test_rows.tobytes(), w.unit]
                for point, w in found.items()
            }
        )
        return found

    monkeypatch.setattr(claim, "worlds", spy)
    monkeypatch.setattr(rivals, "worlds", spy)
    measured = [run(ctx) for run in TRIAL.arms[name].values()]
    assert len(drawn) == len(measured)
    assert all(one == drawn[0] for one in drawn)
    assert len({(tuple(m.points), m.n) for m in measured}) == 1
    material = "ozone" if name.endswith("ozone") else "ring"
    spy(dataclasses.replace(ctx, seed=5), material)
    assert all(drawn[-1][point] != drawn[0][point] for point in drawn[0])


def test_every_networks_fit_starts_from_one_seed_and_takes_the_same_steps(ctx, monkeypatch):
    settings = []

    def spied(kind):
        def make(**given):
            settings.append((given["random_state"], given["training"].steps))
            return kind(**given)

        return make

    monkeypatch.setattr(rivals, "PooledNetwork", spied(rivals.PooledNetwork))
    monkeypatch.setattr(claim, "D3GClassifier", spied(D3GClassifier))
    monkeypatch.setattr(claim, "_heads", lambda ctx, step, point, world: None)
    monkeypatch.setattr(claim, "_score_by_rows", lambda *_: {0: 0.0})
    monkeypatch.setattr(claim, "_sharpness", lambda *_: 5.0)
    for name in ("weighting", "learned", "consistency"):
        for arm, run in TRIAL.arms[name].items():
            settings.clear()
            run(ctx)
            wanted = [(rivals.fit_seed(ctx, point), 4) for point in worlds(ctx, "ring")]
            prepared = arm == "none" or (name == "weighting" and arm in claim.WEIGHTINGS)
            assert settings == ([] if prepared else wanted), (name, arm)
