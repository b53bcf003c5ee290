"""Credible sets: parity with the slow twin, coverage in simulation, gallery posteriors."""

import math

import pytest
import torch

from tests.naive import mcinfonce as naive
from trialrun.representation.mcinfonce import (
    VonMisesFisher,
    credible_coverage,
    credible_retrieval,
)
from trialrun.representation.mcinfonce._joint_gap import joint_gap_quantile


def directions(count, dim=5, seed=0):
    raw = torch.randn(count, dim, dtype=torch.float64, generator=stream(seed))
    return raw / raw.norm(dim=-1, keepdim=True)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("items", [1, 7, 63])
def test_credible_sets_match_the_slow_twin(items):
    query = VonMisesFisher(directions(5), torch.linspace(1, 40, 5, dtype=torch.float64))
    gallery = directions(items, seed=2)
    ids, thresholds = credible_retrieval(query, gallery, 0.1)
    for row in range(5):
        slow = naive.naive_credible(
            query.mu[row].tolist(), float(thresholds[row]), gallery.tolist()
        )
        assert ids[row].tolist() == slow


def test_an_empty_gallery_has_empty_sets_with_spreads_too():
    query = VonMisesFisher(directions(2), torch.tensor([3.0, 8.0], dtype=torch.float64))
    nothing = torch.zeros(0, 5, dtype=torch.float64)
    ids, thresholds = credible_retrieval(query, nothing, gallery_kappa=nothing[:, 0])
    assert [len(row) for row in ids] == [0, 0]
    assert thresholds.shape == (2, 0)


def test_coverage_is_nominal_for_the_truth_and_not_for_a_wrong_kappa():
    mu = directions(200, 10)
    truth = VonMisesFisher(mu, torch.linspace(0.1, 100, 200, dtype=torch.float64))
    latents = truth.sample((100,), generator=torch.Generator().manual_seed(0)).transpose(0, 1)
    for alpha in (0.05, 0.5):
        covered = float(credible_coverage(truth, latents, alpha).mean())
        assert covered == pytest.approx(1 - alpha, abs=0.02)
    sure = VonMisesFisher(mu, 4 * truth.kappa)
    assert float(credible_coverage(sure, latents).mean()) < 0.8


def test_a_point_query_finds_itself():
    query = VonMisesFisher(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), math.inf)
    ids, thresholds = credible_retrieval(query, query.mu)
    assert [row.tolist() for row in ids] == [[0], [1], [2]]
    assert thresholds.tolist() == [1.0, 1.0, 1.0]


def test_coverage_does_not_depend_on_the_length_of_latents():
    query = VonMisesFisher(torch.eye(3), 5.0)
    latents = query.sample((50,), generator=torch.Generator().manual_seed(0)).transpose(0, 1)
    assert torch.equal(credible_coverage(query, latents), credible_coverage(query, 3 * latents))


@pytest.mark.parametrize("dim", [2, 3, 10])
@pytest.mark.parametrize("kappas", [(5.0, 20.0), (50.0, 3.0)])
def test_means_of_one_latent_lie_as_far_apart_as_the_slow_twin_walks(dim, kappas):
    query = VonMisesFisher(directions(1, dim), kappas[0])
    spread = torch.tensor([kappas[1]], dtype=torch.float64)
    gaps = naive.naive_joint_gap(dim, *kappas, draws=8000, seed=0)
    for probability in (0.5, 0.95):
        found = float(joint_gap_quantile(query, spread, probability, 8000, 0))
        share = sum(gap <= found for gap in gaps) / len(gaps)
        assert share == pytest.approx(probability, abs=5 * (0.5 / 8000) ** 0.5)


@pytest.mark.parametrize("dim", [2, 3, 10])
def test_sets_hold_the_mean_of_the_same_latent_only_with_the_gallerys_concentrations(dim):
    count, asked, alpha, random = 400, 250, 0.1, stream(dim)
    latents = directions(count, dim, seed=dim)
    mine, theirs = (
        torch.exp(1 + 3 * torch.rand(count, generator=random, dtype=torch.float64)) for _ in "ab"
    )
    query = VonMisesFisher(VonMisesFisher(latents, mine).sample(generator=random), mine)[:asked]
    gallery = VonMisesFisher(latents, theirs).sample(generator=random)
    held = {}
    for name, spread in (("latents", None), ("posteriors", theirs)):
        ids, thresholds = credible_retrieval(
            query, gallery, alpha, gallery_kappa=spread, n_samples=1000
        )
        held[name] = sum(row in found.tolist() for row, found in enumerate(ids)) / asked
    assert held["posteriors"] == pytest.approx(1 - alpha, abs=4 * (alpha / asked) ** 0.5)
    assert held["latents"] < 0.8
    assert thresholds.shape == (asked, count)
    for row in (0, 7, 63):
        cosines = gallery @ query.mu[row]
        assert set(ids[row].tolist()) == set(
            (cosines >= thresholds[row]).nonzero().squeeze(-1).tolist()
        )


def test_items_that_are_points_have_the_plain_threshold_and_points_on_both_sides_find_themselves():
    query = VonMisesFisher(directions(3), torch.tensor([2.0, 20.0, math.inf]).double())
    spread = torch.full((3,), math.inf, dtype=torch.float64)
    ids, joint = credible_retrieval(query, query.mu, gallery_kappa=spread, n_samples=40_000)
    _, plain = credible_retrieval(query, query.mu)
    torch.testing.assert_close(joint[:, 0], plain, atol=0.02, rtol=0.0)
    assert 2 in ids[2].tolist()


def test_more_ambiguous_items_are_looked_for_farther_away():
    query = VonMisesFisher(directions(1), 20.0)
    spread = torch.logspace(-3, 6, 500, dtype=torch.float64)
    found = joint_gap_quantile(query, spread, 0.9, 4000, 0)[0]
    # Uniform items may lie anywhere; points no farther than the query's own latent.
    assert float(found[0]) > 1.3
    assert float(found[-1]) == pytest.approx(float(query.gap_quantile(0.9)), abs=0.02)
    assert float(found.diff().max()) < 0.02
    again = joint_gap_quantile(query, spread[[0, 499]], 0.9, 4000, 0)[0]
    torch.testing.assert_close(found[[0, 499]], again, atol=0.05, rtol=0.0)
