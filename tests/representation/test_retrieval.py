"""Retrieval metrics and the four published protocols."""

import numpy as np
import pytest
import torch

from tests.naive.pic2word import naive_map_at_r, naive_recall
from trialrun.representation.retrieval import (
    cirr_recall,
    cosine_scores,
    domain_conversion,
    fashion_iq_recall,
    map_at_r,
    paired_recall,
    ranking,
    recall_at_k,
    true_ranks,
)


def table(queries, items, seed=0, decimals=1):
    """Scores with many ties, and at least two relevant items each."""
    rng = np.random.default_rng(seed)
    relevant = rng.random((queries, items)) < 0.3
    relevant[:, :2] = True
    exclude = rng.integers(2, max(items, 3), queries) if items > 2 else np.full(queries, -1)
    return rng.normal(size=(queries, items)).round(decimals), relevant, exclude


@pytest.mark.parametrize("items", [2, 7, 63])
@pytest.mark.parametrize("queries", [1, 7])
def test_recall_and_map_match_the_slow_twin(queries, items):
    scores, relevant, exclude = table(queries, items)
    for k, value in recall_at_k(scores, relevant, (1, 5, 100)).items():
        assert value == pytest.approx(naive_recall(scores, relevant, k), abs=1e-12)
    assert map_at_r(scores, relevant) == pytest.approx(naive_map_at_r(scores, relevant), abs=1e-12)
    if items > 2:
        for k, value in recall_at_k(scores, relevant, (1, 5), exclude=exclude).items():
            assert value == pytest.approx(naive_recall(scores, relevant, k, exclude), abs=1e-12)
        found = map_at_r(scores, relevant, exclude=exclude)
        assert found == pytest.approx(naive_map_at_r(scores, relevant, exclude), abs=1e-12)


@pytest.mark.parametrize("items", [2, 7, 63])
def test_ranks_of_one_target_are_those_of_the_ordering(items):
    scores, _, _ = table(9, items)
    target = np.arange(9) % items
    relevant = np.arange(items) == target[:, None]
    order = ranking(scores, relevant=relevant)
    assert true_ranks(scores, target).tolist() == [
        int(np.flatnonzero(row == t)[0]) + 1 for row, t in zip(order, target)
    ]


def test_a_collapsed_model_finds_nothing():
    one_point = np.ones((6, 4))
    target = np.arange(6)
    assert paired_recall(one_point, one_point, (1, 5)).query_to_target == {1: 0.0, 5: 0.0}
    relevant = np.eye(6, dtype=bool)
    assert recall_at_k(cosine_scores(one_point, one_point), relevant, (5,)) == {5: 0.0}
    assert true_ranks(cosine_scores(one_point, one_point), target).tolist() == [6] * 6


def test_rounding_noise_below_the_sixth_decimal_is_a_tie():
    scores = np.array([[0.5 + 3e-8, 0.5, 0.1]])
    assert true_ranks(scores, [0]).tolist() == [2]
    assert ranking(scores).tolist() == [[0, 1, 2]]


def test_half_precision_is_widened_before_scores_are_compared():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(40, 256))
    near = base + 0.02 * rng.normal(size=base.shape)
    half = torch.tensor(near, dtype=torch.float16), torch.tensor(base, dtype=torch.float16)
    assert cosine_scores(*half).dtype == np.float32
    assert paired_recall(*half, (1,)).query_to_target == {1: 1.0}


def test_excluded_items_are_neither_found_nor_counted():
    scores = [[0.9, 0.8, 0.1]]
    relevant = np.array([[True, True, False]])
    assert recall_at_k(scores, relevant, (1,)) == {1: 0.5}
    assert recall_at_k(scores, relevant, (1,), exclude=[0]) == {1: 1.0}
    assert ranking(scores, exclude=[0]).tolist() == [[1, 2, 0]]
    assert recall_at_k(scores, relevant, (1,), exclude=[-1]) == {1: 0.5}


def test_domain_conversion_wants_class_and_domain():
    gallery = np.eye(4)
    classes, domains = ["cat", "cat", "dog", "cat"], ["toy", "cartoon", "toy", "toy"]
    queries = np.array([[1.0, 0.9, 0.0, 0.5], [0.0, 0.0, 1.0, 0.0], [1.0, 0, 0, 0]])
    found = domain_conversion(
        queries, ["cat", "dog", "fish"], "toy", gallery, classes, domains, (1, 2)
    )
    # cat: 1 of its 2 toys first, the cartoon second; dog: its only toy; fish has none and counts 0.
    assert found == {1: pytest.approx(0.5), 2: pytest.approx(0.5)}
    with pytest.raises(ValueError, match="no query has a picture of its class in the domain 'ice'"):
        domain_conversion(queries, ["cat"] * 3, "ice", gallery, classes, domains)


def test_coco_is_scored_both_ways():
    left = np.eye(3)
    right = np.array([[1.0, 0, 0], [1.0, 0.9, 0], [0.9, 0.8, 0.1]])
    found = paired_recall(left, right, (1, 3))
    assert found.query_to_target == {1: 1.0, 3: 1.0}
    assert found.target_to_query == {1: pytest.approx(1 / 3), 3: 1.0}


def test_cirr_takes_the_reference_out():
    gallery = np.eye(3)
    queries = np.array([[1.0, 0.5, 0.1]])
    assert cirr_recall(queries, gallery, [0], [1], (1,)) == {1: 1.0}
    assert cirr_recall(queries, gallery, [2], [1], (1,)) == {1: 0.0}
    with pytest.raises(ValueError, match="target and exclude must differ"):
        cirr_recall(queries, gallery, [1], [1])


def test_fashion_iq_averages_garments_of_unlike_sizes_evenly():
    gallery = np.eye(3)
    good, bad = np.eye(3)[[0]], np.eye(3)[[1, 1, 1]]
    found = fashion_iq_recall(
        {"dress": (good, gallery, [0]), "shirt": (bad, gallery, [0, 0, 0])}, (1,)
    )
    assert found == {"dress": {1: 1.0}, "shirt": {1: 0.0}, "average": {1: 0.5}}


def test_long_tables_are_scored_in_slices():
    rows = np.random.default_rng(0).normal(size=(1100, 8))
    assert paired_recall(rows, rows, (1,)).target_to_query == {1: 1.0}
    found = domain_conversion(rows, np.arange(1100), "x", rows, np.arange(1100), ["x"] * 1100, (1,))
    assert found == {1: 1.0}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: recall_at_k(np.ones(3), np.ones(3, bool)), "scores must have shape"),
        (lambda: recall_at_k([[1.0, 2.0]], [[True]]), "relevant must be truth values of shape"),
        (lambda: recall_at_k(np.ones((0, 2)), np.ones((0, 2), bool)), "for an empty table"),
        (lambda: ranking([[1.0]], exclude=[3]), "exclude must be in -1"),
        (lambda: ranking([[1.0]], exclude=[0.5]), "exclude must hold one item's number"),
        (lambda: cosine_scores(np.ones((1, 2)), np.ones((1, 3))), "must have equal widths"),
        (lambda: paired_recall(np.ones((1, 2)), np.ones((2, 2))), "must be as many"),
        (lambda: cirr_recall(np.ones((2, 2)), np.ones((2, 2)), [0, 0], [1]), "one item for each"),
        (lambda: fashion_iq_recall({}), "garments must hold at least one"),
        (lambda: true_ranks([[1.0]], [-1]), "target must name an item"),
    ],
)
def test_wrong_input_is_one_sentence(call, said):
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.parametrize("ks", [(), (0, -1), (1.5,), (True,)])
def test_ks_are_checked_by_every_metric(ks, no_annotation_checks):
    rows, own = np.eye(4), np.arange(4)
    for asked in (
        lambda: recall_at_k(rows, rows > 0, ks),
        lambda: paired_recall(rows, rows, ks),
        lambda: cirr_recall(rows, rows, (own + 1) % 4, own, ks),
        lambda: fashion_iq_recall({"dress": (rows, rows, own)}, ks),
        lambda: domain_conversion(rows, own, "x", rows, own, ["x"] * 4, ks),
    ):
        with pytest.raises(ValueError, match="ks must be whole numbers from 1 on"):
            asked()
