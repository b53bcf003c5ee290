"""D3G: parity with the slow twin, relations to unseen domains, and life inside scikit-learn."""

import numpy as np
import pytest
import sklearn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from tests.naive.d3g import (
    naive_head_outputs,
    naive_kernel,
    naive_learned,
    naive_loss,
)
from trialrun.shift.d3g import (
    D3GClassifier,
    D3GLoss,
    D3GRegressor,
    LearnedRelation,
    Relation,
    RelationWeightedHeads,
    Training,
    ZeroRelationWarning,
    combine_heads,
    relation_matrix,
    select_by_leaving_domains_out,
)

QUICK = Training(steps=60)


def turned_planes(n_domains=5, per_domain=40, seed=0):
    """Domains that differ in the direction of the boundary; metadata is that direction."""
    rng = np.random.default_rng(seed)
    angles = np.linspace(0, 1.6, n_domains)
    metadata = np.column_stack([np.cos(angles), np.sin(angles)])
    domains = np.repeat(np.arange(n_domains), per_domain)
    X = rng.normal(size=(len(domains), 2))
    return X, ((X * metadata[domains]).sum(axis=1) > 0).astype(int), domains, metadata


def fitted(**changes):
    X, y, domains, metadata = turned_planes()
    options = {"relation": "fixed", "training": QUICK, "random_state": 0, **changes}
    return D3GClassifier(**options).fit(X, y, domains=domains, metadata=metadata)


@parametrize_with_checks(
    [
        D3GClassifier(training=Training(steps=150)),
        D3GRegressor(training=Training(steps=150)),
    ]
)
def test_scikit_learn_accepts_the_estimators(estimator, check):
    check(estimator)


@pytest.mark.parametrize("batch", [1, 7, 63])
@pytest.mark.parametrize("rank", [None, 2])
def test_heads_match_the_slow_twin(batch, rank):
    net = RelationWeightedHeads(nn.Linear(3, 5), 4, 2, rank=rank, seed=1).double()
    x = torch.randn(batch, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = net.weight if rank is None else torch.einsum("dr,rcw->dcw", net.mix, net.weight)
    torch.testing.assert_close(net(x), naive_head_outputs(net.encoder(x), weight, net.bias))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("batch", [1, 7, 63])
@pytest.mark.parametrize("target", ["logits", "prob", "numbers"])
def test_loss_and_gradients_match_the_slow_twin(target, batch, dtype, tolerance):
    generator = torch.Generator().manual_seed(batch)
    n_domains, n_out = 4, 3
    outputs = torch.randn(batch, n_domains, n_out, generator=generator, dtype=dtype)
    relations = torch.randn(n_domains, n_domains, generator=generator, dtype=dtype)
    relations[2] = -1.0  # a domain related to no other
    domains = torch.randint(n_domains, (batch,), generator=generator)
    y = torch.randint(n_out, (batch,), generator=generator)
    if target == "numbers":
        y = torch.randn(batch, n_out, generator=generator, dtype=dtype)
    combine = "prob" if target == "prob" else "logits"
    grads = []
    for loss_of in (D3GLoss(0.7, combine=combine), None):
        f = outputs.clone().requires_grad_()
        a = relations.clone().requires_grad_()
        loss = (
            loss_of(f, y, domains, a)
            if loss_of
            else naive_loss(f, y, domains, a, 0.7, combine=combine)
        )
        of_f, of_a = torch.autograd.grad(loss, (f, a), allow_unused=True)
        grads.append((loss.detach(), of_f, torch.zeros_like(a) if of_a is None else of_a))
    for ours, slow in zip(*grads):
        torch.testing.assert_close(ours, slow, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("kernel", ["cosine", "distance"])
def test_kernels_match_the_slow_twin(kernel):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 3)), rng.normal(size=(4, 3))
    slow = [[naive_kernel(u, v, kernel, 2.5) for v in b] for u in a]
    np.testing.assert_allclose(relation_matrix(a, b, kernel=kernel, sharpness=2.5), slow)


def test_learned_relation_matches_the_slow_twin():
    learned = LearnedRelation(3, heads=4, width=6, seed=0).double()
    rows = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    g = learned.g(rows)
    slow = torch.stack(
        [torch.stack([naive_learned(g[i], g[j], learned.w) for j in range(5)]) for i in range(5)]
    )
    torch.testing.assert_close(learned(rows, rows), slow)


@given(
    weights=arrays(float, 4, elements=st.floats(0.01, 10)),
    factor=st.floats(0.01, 100),
    order=st.permutations(range(4)),
)
@settings(max_examples=30, deadline=None)
def test_combining_ignores_the_scale_of_relations_and_the_order_of_domains(weights, factor, order):
    model = MODEL
    X = np.random.default_rng(0).normal(size=(9, 2))
    plain = model.predict_proba(X, relations=np.append(weights, 0.0))
    np.testing.assert_allclose(
        plain, model.predict_proba(X, relations=np.append(weights * factor, 0.0)), rtol=1e-9
    )
    outputs = model.network_(torch.zeros(3, 2))[:, :4]
    rows = torch.from_numpy(weights / weights.sum()).float().expand(3, 4)
    torch.testing.assert_close(
        combine_heads(outputs, rows), combine_heads(outputs[:, list(order)], rows[:, list(order)])
    )


MODEL = fitted()


def test_a_sharp_relation_is_the_nearest_head_and_a_flat_one_the_average():
    X = np.random.default_rng(0).normal(size=(50, 2))
    near = turned_planes()[3][3] + [0.01, 0.0]
    sharp = clone(MODEL).set_params(relation=Relation("fixed", sharpness=1e5))
    flat = clone(MODEL).set_params(relation=Relation("fixed", sharpness=0.0))
    train = turned_planes()
    for model in (sharp, flat):
        model.set_params(lam=0.0).fit(*train[:2], domains=train[2], metadata=train[3])
    np.testing.assert_allclose(
        sharp.predict_proba(X, metadata=near), sharp.predict_proba(X, domains=np.full(50, 3))
    )
    np.testing.assert_allclose(flat.domain_weights(near).weights, np.full((1, 5), 0.2))


def test_a_sharp_kernel_far_from_all_training_domains_does_not_fall_back():
    train = turned_planes()
    model = D3GClassifier(
        relation=Relation("fixed", kernel="distance", sharpness=1e4, fallback="error"),
        training=QUICK,
        random_state=0,
    ).fit(*train[:2], domains=train[2], metadata=train[3])
    found = model.domain_weights(metadata=train[3][4] * 50)
    assert found.weights[0].sum() == pytest.approx(1)
    assert not found.fell_back.any()


def test_a_domain_seen_in_training_is_predicted_by_its_own_head():
    X = np.random.default_rng(0).normal(size=(20, 2))
    own = MODEL.predict_proba(X, domains=np.full(20, 2))
    np.testing.assert_allclose(own, MODEL.predict_proba(X, relations=np.eye(5)[2]))


def test_several_domains_at_once_equal_one_at_a_time():
    X = np.random.default_rng(1).normal(size=(30, 2))
    unseen = {"north": [0.9, 0.4], "south": [0.2, 1.0]}
    names = np.array(["south", "north", "north"] * 10)
    together = MODEL.predict_proba(X, domains=names, metadata=unseen)
    for name, vector in unseen.items():
        apart = MODEL.predict_proba(X[names == name], metadata=vector)
        np.testing.assert_allclose(together[names == name], apart)
    in_order = MODEL.predict_proba(X, domains=names, metadata=[unseen["north"], unseen["south"]])
    np.testing.assert_array_equal(together, in_order)


def test_a_mapping_and_rows_in_sorted_order_fit_the_same_model():
    X, y, domains, metadata = turned_planes()
    names = np.array(["e", "b", "a", "d", "c"])[domains]
    by_name = dict(zip(["e", "b", "a", "d", "c"], metadata))
    in_order = np.array([by_name[name] for name in sorted(by_name)])
    models = [
        D3GClassifier(training=QUICK, random_state=0).fit(X, y, domains=names, metadata=given)
        for given in (by_name, in_order)
    ]
    for a, b in zip(*(m.network_.parameters() for m in models)):
        assert torch.equal(a, b)


def graph_model(fallback):
    X, y, domains, metadata = turned_planes()
    return D3GClassifier(
        relation=Relation("fixed", fallback=fallback), training=QUICK, random_state=0
    ).fit(X, y, domains=domains, metadata=metadata, adjacency=np.eye(5))


def test_a_domain_without_relation_takes_the_stated_fallback_and_says_so():
    nothing = np.array([0.0, -3.0, 0.0, 0.0, 0.0])  # negative relations count as none
    meta = turned_planes()[3][4] * 2.0
    with pytest.warns(ZeroRelationWarning, match=r"1 of 1 domains .* fallback 'uniform'"):
        uniform = graph_model("uniform").domain_weights(relations=nothing)
    np.testing.assert_allclose(uniform.weights, np.full((1, 5), 0.2))
    assert uniform.fell_back.tolist() == [True]
    with pytest.warns(ZeroRelationWarning):
        nearest = graph_model("nearest").domain_weights(meta, relations=nothing)
    assert nearest.weights.argmax() == 4
    with pytest.raises(ValueError, match="no relation to any training domain: give it a relation"):
        graph_model("error").predict(np.zeros((2, 2)), relations=nothing)
    with pytest.raises(ValueError, match="fallback='nearest' needs metadata"):
        graph_model("nearest").predict(np.zeros((2, 2)), relations=nothing)


def test_training_domains_without_relation_are_counted_and_leave_the_consistency_term():
    model = graph_model("uniform")
    assert model.n_isolated_domains_ == 5
    X, y, domains, metadata = turned_planes()
    alone = clone(model).set_params(lam=0.0)
    alone.fit(X, y, domains=domains, metadata=metadata, adjacency=np.eye(5))
    assert torch.equal(model.network_.weight, alone.network_.weight)


@pytest.mark.filterwarnings("ignore:lam=0 leaves")
def test_the_learned_relation_is_trained_by_the_consistency_term_only():
    X, y, domains, metadata = turned_planes()
    start, moved = (
        D3GClassifier(
            relation="learned", lam=lam, training=Training(steps=30, weight_decay=0), random_state=0
        ).fit(X, y, domains=domains, metadata=metadata)
        for lam in (0.0, 0.5)
    )
    assert not torch.equal(start.relation_network_.w, moved.relation_network_.w)
    again = D3GClassifier(
        relation="learned", lam=0.0, training=Training(steps=3, weight_decay=0), random_state=0
    ).fit(X, y, domains=domains, metadata=metadata)
    assert torch.equal(start.relation_network_.w, again.relation_network_.w)


def test_the_relation_beats_averaging_between_domains_that_disagree():
    X, y, domains, metadata = turned_planes(n_domains=8)
    metadata = np.column_stack([np.cos(np.arange(8) * 0.8), np.sin(np.arange(8) * 0.8)])
    y = ((X * metadata[domains]).sum(axis=1) > 0).astype(int)
    model = D3GClassifier(relation="fixed", training=Training(steps=200), random_state=0).fit(
        X, y, domains=domains, metadata=metadata
    )
    unseen = np.array([np.cos(2.0), np.sin(2.0)])
    X_new = np.random.default_rng(9).normal(size=(500, 2))
    truth = (X_new @ unseen > 0).astype(int)
    related = model.score(X_new, truth, metadata=unseen)
    average = model.score(X_new, truth, relations=np.ones(8))
    assert related > 0.85
    assert related > average + 0.1


def test_every_test_row_order_and_batch_gives_the_same_prediction():
    X = np.random.default_rng(2).normal(size=(20_001, 2))
    whole = MODEL.predict_proba(X, metadata=[1.0, 0.2])
    np.testing.assert_allclose(MODEL.predict_proba(X[-3:], metadata=[1.0, 0.2]), whole[-3:])


def test_the_users_encoder_is_copied_and_comes_back_from_disk(tmp_path):
    encoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh())
    before = encoder[0].weight.clone()
    model = fitted(encoder=encoder, rank=2)
    assert torch.equal(encoder[0].weight, before)
    assert not torch.equal(model.network_.encoder[0].weight, before)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="encoder of your own: pass load"):
        D3GClassifier.load(tmp_path / "model")
    again = D3GClassifier.load(tmp_path / "model", encoder=encoder)
    X = np.random.default_rng(0).normal(size=(9, 2))
    np.testing.assert_array_equal(
        again.predict_proba(X, metadata=[1, 0.5]), model.predict_proba(X, metadata=[1, 0.5])
    )


@pytest.mark.parametrize("relation", ["fixed", "both", Relation("learned", kernel="distance")])
def test_a_saved_model_keeps_names_relations_and_predictions(tmp_path, relation):
    X, y, domains, metadata = turned_planes()
    names = np.array(["a", "b", "c", "d", "é"])[domains]
    model = D3GClassifier(relation=relation, training=QUICK, random_state=3)
    model.fit(X, np.array(["no", "yes"])[y], domains=names, metadata=metadata)
    model.save(tmp_path)
    again = D3GClassifier.load(tmp_path)
    for told in ({"metadata": [0.4, 0.4]}, {"domains": np.full(len(X), "é")}):
        np.testing.assert_array_equal(
            model.predict_proba(X, **told), again.predict_proba(X, **told)
        )
    assert again.classes_.tolist() == ["no", "yes"]
    refit = clone(again).fit(X, np.array(["no", "yes"])[y], domains=names, metadata=metadata)
    assert torch.equal(refit.network_.weight, model.network_.weight)


def test_a_damaged_or_foreign_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no saved model"):
        D3GClassifier.load(tmp_path / "nowhere")
    MODEL.save(tmp_path)
    with pytest.raises(ValueError, match="must hold a D3GRegressor"):
        D3GRegressor.load(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="damaged model"):
        D3GClassifier.load(tmp_path)


def test_a_pipeline_routes_domains_and_metadata():
    X, y, domains, metadata = turned_planes()
    by_name = dict(enumerate(metadata))
    with sklearn.config_context(enable_metadata_routing=True):
        step = D3GClassifier(relation="fixed", training=QUICK, random_state=0)
        step.set_fit_request(domains=True, metadata=True)
        step.set_predict_request(domains=True, metadata=True)
        pipe = make_pipeline(StandardScaler(), step)
        pipe.fit(X, y, domains=domains, metadata=by_name)
        told = pipe.predict(X, domains=np.full(len(X), 9), metadata={9: [0.3, 0.9]})
    direct = D3GClassifier(relation="fixed", training=QUICK, random_state=0)
    direct.fit(StandardScaler().fit_transform(X), y, domains=domains, metadata=by_name)
    expected = direct.predict(StandardScaler().fit_transform(X), metadata=[0.3, 0.9])
    np.testing.assert_array_equal(told, expected)


def test_grid_search_over_left_out_domains_agrees_with_the_helper():
    X, y, domains, metadata = turned_planes()
    grid = {"relation__sharpness": [0.0, 5.0, 50.0]}
    model = D3GClassifier(relation=Relation("fixed"), training=QUICK, random_state=0)
    helper = select_by_leaving_domains_out(model, X, y, grid, domains=domains, metadata=metadata)
    with sklearn.config_context(enable_metadata_routing=True):
        routed = clone(model).set_fit_request(domains=True, metadata=True)
        routed.set_score_request(domains=True, metadata=True)
        search = GridSearchCV(routed, grid, cv=LeaveOneGroupOut())
        search.fit(X, y, domains=domains, metadata=dict(enumerate(metadata)), groups=domains)
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], helper.scores.mean(axis=1))
    assert helper.best_setting == search.best_params_


def test_selection_with_a_graph_relates_held_out_domains_by_their_own_rows():
    X, y, domains, metadata = turned_planes()
    graph = (metadata @ metadata.T > 0.6).astype(float)
    found = select_by_leaving_domains_out(
        D3GClassifier(relation="fixed", training=QUICK, random_state=0),
        X, y, {"lam": [0.0, 0.5]}, domains=domains, adjacency=graph, by="worst", folds=2,
    )  # fmt: skip
    assert found.scores.shape == (2, 5)
    assert found.scores.min() > 0.6
    assert found.best_estimator.domains_.tolist() == [0, 1, 2, 3, 4]


BAD_FITS = {
    "input X contains NaN": lambda X, y, d, m: (np.where(X > 1, np.nan, X), y, d, m),
    "at least two classes, got one class, 0: ": lambda X, y, d, m: (X, y * 0, d, m),
    r"metadata must have one vector per domain, 5 .* got shape \(4, 2\)": (
        lambda X, y, d, m: (X, y, d, m[:4])
    ),
    "metadata has no vector for domain 3": (
        lambda X, y, d, m: (X, y, d, {k: m[k] for k in (0, 1, 2, 4)})
    ),
    "metadata must be finite, got nan for domain 2, column 1": (
        lambda X, y, d, m: (X, y, d, np.where(np.arange(10).reshape(5, 2) == 5, np.nan, m))
    ),
    "domains must hold one label per row of X": lambda X, y, d, m: (X, y, d[:9], m),
    "domains must hold a label in every row, row 0 has none": (
        lambda X, y, d, m: (X, y, np.where(d == 0, np.nan, d), m)
    ),
    "relation 'both' over 5 domains needs metadata": lambda X, y, d, m: (X, y, d, None),
    "a row of zeros, which has no direction": lambda X, y, d, m: (X, y, d, m * (m < 0.99)[:, :1]),
}


@pytest.mark.parametrize("message", BAD_FITS)
def test_bad_training_input_is_named(message):
    X, y, domains, metadata = BAD_FITS[message](*turned_planes())
    with pytest.raises(ValueError, match=message if "NaN" not in message else "NaN"):
        D3GClassifier(training=QUICK).fit(X, y, domains=domains, metadata=metadata)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({}, "the domain of X was not seen in training: pass its metadata, or relations="),
        ({"metadata": [1.0]}, "metadata must have 2 entries per domain, got 1"),
        ({"metadata": {7: [1, 0]}}, "a mapping needs domains="),
        ({"domains": [7, 7], "metadata": {8: [1, 0]}}, "metadata has no vector for domain 7"),
        ({"domains": [7, 8], "metadata": [[1, 0]]}, "one vector per domain, 2 in the sorted order"),
        ({"relations": [1, 0]}, "relations must have 5 entries per domain, got 2"),
    ],
)
def test_bad_prediction_input_is_named(told, message):
    with pytest.raises(ValueError, match=message):
        MODEL.predict(np.zeros((2, 2)), **told)


def test_a_graph_model_asks_for_the_relations_of_a_new_domain():
    with pytest.raises(ValueError, match="pass relations=, its 5 relations to the training"):
        graph_model("uniform").predict(np.zeros((2, 2)), metadata=[1.0, 0.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relation": "graph"}, "relation kind must be one of fixed, learned, both, got 'graph'"),
        ({"relation": Relation(beta=2)}, "relation beta must be at least 0 and at most 1, got 2"),
        ({"lam": -1.0}, "lam must be at least 0, got -1"),
        ({"combine": "votes"}, "combine must be one of logits, prob, got 'votes'"),
        ({"encoder": ()}, "encoder must be a module or a tuple of layer widths"),
        ({"training": Training(learning_rate=0)}, "learning_rate must be above 0"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        fitted(**changes)


@pytest.mark.usefixtures("no_annotation_checks")
def test_a_loss_of_misfitting_shapes_is_refused():
    outputs, y, domains = torch.zeros(4, 3, 2), torch.zeros(4, dtype=torch.long), torch.arange(4)
    with pytest.raises(ValueError, match=r"relations must have shape \(3, 3\)"):
        D3GLoss()(outputs, y, domains, torch.ones(4, 4))
    with pytest.raises(ValueError, match="domains must be numbers from 0 to 2, got 0 to 3"):
        D3GLoss()(outputs, y, domains, torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"y must have shape \(4,\), got \(3,\)"):
        D3GLoss()(outputs, y[:3], domains % 3, torch.ones(3, 3))
