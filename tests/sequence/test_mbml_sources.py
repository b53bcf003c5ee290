"""Sources: the priors they draw from, and regret against the truth they give."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from tests.naive import mbml as naive
from trialrun.sequence.mbml import (
    KT,
    LIN,
    PTW,
    LINSource,
    PTWSource,
    RandomShiftSource,
    RegularShiftSource,
    Sample,
    code_lengths,
    regret,
)


def starts_of(theta):
    """Where segments begin; two segments never have equal probabilities."""
    changed = (theta[:, 1:] != theta[:, :-1]).any(2).numpy()
    return [(0, *(np.flatnonzero(row) + 1).tolist()) for row in changed]


def assert_drawn_from(prior, drawn):
    """Each partition's share lies within five standard deviations of its prior weight."""
    total = sum(drawn.values())
    assert sum(prior.values()) == pytest.approx(1)
    assert set(drawn) <= set(prior)
    for starts, weight in prior.items():
        spread = math.sqrt(weight * (1 - weight) / total)
        assert abs(drawn[starts] / total - weight) < 5 * spread + 1e-12, starts


def test_ptw_source_draws_partitions_by_the_prior():
    drawn = Counter(starts_of(PTWSource(3).sample(20_000, 8, seed=1).theta))
    assert_drawn_from({tuple(s): w for w, s in naive.ptw_partitions(3)}, drawn)


def test_ptw_source_cut_short_draws_the_cut_prior():
    prior = Counter()
    for weight, starts in naive.ptw_partitions(3):
        prior[tuple(s for s in starts if s < 5)] += weight
    assert_drawn_from(prior, Counter(starts_of(PTWSource(3).sample(20_000, 5, seed=1).theta)))


def test_lin_source_draws_segmentations_by_the_prior():
    drawn = Counter(starts_of(LINSource().sample(20_000, 6, seed=1).theta))
    prior = {tuple(s): naive.lin_prior(s, 6) for s in naive.segmentations(6)}
    assert_drawn_from(prior, drawn)


@pytest.mark.parametrize(
    ("source", "predictor"), [(PTWSource(3), PTW(3)), (LINSource(), LIN())], ids=["ptw", "lin"]
)
def test_every_word_comes_as_often_as_its_predictor_says(source, predictor):
    x = source.sample(40_000, 4, seed=2).x.numpy()
    share = np.bincount(x @ [8, 4, 2, 1], minlength=16) / len(x)
    words = (np.arange(16)[:, None] >> [3, 2, 1, 0]) & 1
    expected = np.exp(predictor.log_prob(words))
    assert (np.abs(share - expected) < 5 * np.sqrt(expected / len(x))).all()


def test_symbols_follow_theta():
    sample = RandomShiftSource(0.2, symbols=3).sample(3000, 10, seed=0)
    hits = torch.nn.functional.one_hot(sample.x, 3).double()
    spread = (sample.theta * (1 - sample.theta)).sum((0, 1)).sqrt()
    assert ((hits - sample.theta).sum((0, 1)).abs() < 5 * spread).all()


def test_theta_follows_the_given_dirichlet():
    theta = RegularShiftSource(1, 3, prior=(4.0, 1.0, 1.0)).sample(50, 400, seed=0).theta
    assert theta.mean((0, 1)).tolist() == pytest.approx([4 / 6, 1 / 6, 1 / 6], abs=0.01)


def test_regular_shifts_come_every_period():
    theta = RegularShiftSource(5).sample(3, 13, seed=0).theta
    assert set(starts_of(theta)) == {(0, 5, 10)}


@pytest.mark.parametrize("make", [lambda **k: PTWSource(6, **k), LINSource])
def test_switch_points_are_shared_only_on_request(make):
    own = make().sample(20, 64, seed=0)
    shared = make(shared=True).sample(20, 64, seed=0)
    assert len(set(starts_of(own.theta))) > 1
    assert len(set(starts_of(shared.theta))) == 1
    assert not torch.equal(shared.theta[0], shared.theta[1])


def test_draws_leave_global_random_state_alone():
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    LINSource().sample(2, 9, seed=4)
    assert (np.random.get_state()[1] == before[0]).all()
    assert torch.equal(torch.get_rng_state(), before[1])


def test_regret_is_the_divergence_summed_and_leaves_the_first_symbol_out():
    theta = torch.tensor([[[0.9, 0.1], [0.9, 0.1], [1.0, 0.0]]], dtype=torch.float64)
    sample = Sample(torch.tensor([[0, 0, 1]]), theta)
    expected = [
        sum(p * math.log(p / q) for p, q in zip(true, said, strict=True) if p)
        for true, said in zip(theta[0].tolist(), KT().predict([[0, 0, 1]])[0], strict=True)
    ]
    assert float(regret(KT(), sample).total) == pytest.approx(sum(expected[1:]), rel=1e-12)
    assert float(regret(KT(), sample, first=True).total) == pytest.approx(sum(expected), rel=1e-12)


@pytest.mark.parametrize(
    ("source", "own", "other"),
    [(PTWSource(7), PTW(7), LIN()), (LINSource(), LIN(), PTW(7))],
    ids=["ptw", "lin"],
)
def test_a_prior_is_predicted_best_by_its_own_predictor(source, own, other):
    sample = source.sample(300, 128, seed=0)
    excess = regret(own, sample).excess_over(regret(other, sample))
    assert excess.mean + 3 * excess.stderr < 0


def test_code_length_of_uniform_bits_is_one_bit_or_more():
    x = RegularShiftSource(1, prior=1e6).sample(4, 256, seed=0).x
    for bits in code_lengths([KT(), PTW(8), LIN()], x):
        assert (bits > 255).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PTWSource(3).sample(1, 9, 0), "length must be at most 8 .* got 9: use depth=4"),
        (lambda: LINSource().sample(0, 9, 0), "batch must be a whole number of at least 1, got 0"),
        (lambda: LINSource().sample(1, 9, -1), "seed must be a non-negative integer, got -1"),
        (lambda: LINSource(prior=(0.5,) * 3), "one number for each of 2 symbols, got 3"),
        (lambda: LINSource(prior=0.0), "prior must be a positive number, got 0.0"),
        (lambda: RandomShiftSource(1.5), "rate must be a probability from 0 to 1, got 1.5"),
        (lambda: RegularShiftSource(0), "period must be a whole number of at least 1, got 0"),
        (
            lambda: regret(KT(3), PTWSource(2).sample(1, 4, 0)),
            r"predictions must have shape \(1, 4, 2\)",
        ),
        (
            lambda: regret(KT(), PTWSource(2).sample(2, 4, 0)).excess_over(
                regret(KT(), PTWSource(2).sample(2, 3, 0))
            ),
            r"regret on the same sample, got shape \(2, 3\)",
        ),
    ],
)
def test_bad_input_is_one_clear_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
