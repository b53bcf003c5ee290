"""Exact predictors: parity with the slow twins, and the priors they claim to be optimal for."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.naive import mbml as naive
from trialrun.sequence.mbml import KT, LIN, PTW, KTWindow, PrunedLIN


def words(length, symbols):
    return np.array(list(product(range(symbols), repeat=length)))


def life(keep):
    return lambda start: keep * (start & -start) if start else math.inf


@pytest.mark.parametrize("length", [1, 7, 23])
@pytest.mark.parametrize(("symbols", "alpha"), [(2, 0.5), (3, 0.5), (4, 1.3)])
def test_every_prediction_matches_the_slow_twin(length, symbols, alpha):
    x = np.random.default_rng(length).integers(0, symbols, (2, length))
    depth = 5
    for row, kt, window, ptw, lin in zip(
        x,
        KT(symbols, alpha=alpha).predict(x),
        KTWindow(3, symbols, alpha=alpha).predict(x),
        PTW(depth, symbols, alpha=alpha).predict(x),
        LIN(symbols, alpha=alpha).predict(x),
        strict=True,
    ):
        past = [row[:t].tolist() for t in range(length)]
        np.testing.assert_allclose(kt, [naive.kt(p, symbols, alpha) for p in past], rtol=1e-13)
        np.testing.assert_allclose(
            window, [naive.kt_window(p, 3, symbols, alpha) for p in past], rtol=1e-13
        )
        np.testing.assert_allclose(
            ptw, [naive.ptw(p, depth, symbols, alpha) for p in past], rtol=1e-11
        )
        np.testing.assert_allclose(lin, naive.lin(row.tolist(), symbols, alpha), rtol=1e-11)


@pytest.mark.parametrize("depth", [6, 7, 9, 40])
def test_levels_above_the_sequence_count_with_their_whole_prior(depth):
    x = np.random.default_rng(0).integers(0, 2, (1, 63))
    above = depth - 6
    whole = naive.ptw_weight(x[0].tolist(), 6, 2)
    for _ in range(above):
        whole = 0.5 * naive.kt_weight(x[0].tolist(), 2) + 0.5 * whole
    assert PTW(depth).log_prob(x)[0] == pytest.approx(math.log(whole), rel=1e-12)
    given_last = PTW(depth).predict(x)[0, np.arange(63), x[0]]
    assert np.log(given_last).sum() == pytest.approx(math.log(whole), rel=1e-12)


@pytest.mark.parametrize(
    "predictor",
    [KT(3), KTWindow(4, 3), PTW(6, 3), PTW(20, 3), LIN(3), PrunedLIN(3, keep=2)],
    ids=repr,
)
@pytest.mark.parametrize("length", [1, 7, 63])
def test_stream_batch_and_log_prob_agree(predictor, length):
    x = np.random.default_rng(length).integers(0, 3, (2, length))
    batched = predictor.predict(x)
    for row, expected, total in zip(x, batched, predictor.log_prob(x), strict=True):
        predictor.reset()
        nats = 0.0
        for t, symbol in enumerate(row):
            np.testing.assert_allclose(predictor.next(), expected[t], rtol=1e-11)
            nats += predictor.update(int(symbol))
        assert nats == pytest.approx(total, rel=1e-11)


@pytest.mark.parametrize(("length", "symbols"), [(1, 2), (5, 2), (8, 2), (5, 3)])
def test_lin_is_the_marginal_of_its_source_over_all_segmentations(length, symbols):
    x = words(length, symbols)
    joint = np.exp(LIN(symbols).log_prob(x))
    assert joint.sum() == pytest.approx(1, abs=1e-12)
    assert sum(naive.lin_prior(s, length) for s in naive.segmentations(length)) == pytest.approx(1)
    np.testing.assert_allclose(
        joint, [naive.lin_weight(row.tolist(), symbols) for row in x], rtol=1e-11
    )


@pytest.mark.parametrize(("depth", "symbols"), [(0, 2), (2, 3), (3, 2)])
def test_ptw_is_the_marginal_of_its_source_over_all_partitions(depth, symbols):
    x = words(2**depth, symbols)
    joint = np.exp(PTW(depth, symbols).log_prob(x))
    partitions = naive.ptw_partitions(depth)
    assert sum(weight for weight, _ in partitions) == pytest.approx(1)
    assert joint.sum() == pytest.approx(1, abs=1e-12)
    mixed = [
        sum(w * naive.segmented_weight(row.tolist(), s, symbols) for w, s in partitions)
        for row in x
    ]
    np.testing.assert_allclose(joint, mixed, rtol=1e-11)


@pytest.mark.parametrize("depth", [3, 4, 5])
def test_ptw_switch_posterior_matches_enumeration(depth):
    x = np.random.default_rng(depth).integers(0, 2, (3, 8))
    begins = PTW(depth).switch_posterior(x)
    for row, given_begins in zip(x, begins, strict=True):
        total, expected = 0.0, np.zeros(8)
        for weight, starts in naive.ptw_partitions(3):
            joint = weight * naive.segmented_weight(row.tolist(), starts, 2)
            total += joint
            expected[starts] += joint
        whole = naive.kt_weight(row.tolist(), 2)
        reach = 0.5 ** (depth - 3)
        chance = reach * total / (reach * total + (1 - reach) * whole)
        expected = chance * expected / total
        expected[0] = 1
        np.testing.assert_allclose(given_begins, expected, rtol=1e-11)


def test_ptw_switch_posterior_of_a_cut_off_sequence_matches_enumeration():
    x = [0, 0, 0, 1, 1]
    total, expected = 0.0, np.zeros(8)
    for weight, starts in naive.ptw_partitions(3):
        inside = [s for s in starts if s < len(x)]
        joint = weight * naive.segmented_weight(x, inside, 2)
        total += joint
        expected[inside] += joint
    np.testing.assert_allclose(PTW(3).switch_posterior([x])[0], expected[:5] / total, rtol=1e-11)


def test_lin_posteriors_match_enumeration():
    x = np.random.default_rng(3).integers(0, 2, (2, 8))
    smoothed, filtered = LIN().switch_posterior(x), LIN().start_posterior(x)
    for b, row in enumerate(x):
        for stop in range(1, 9):
            total, begins, running = 0.0, np.zeros(8), np.zeros(8)
            for starts in naive.segmentations(stop):
                joint = naive.lin_prior(starts, stop)
                joint *= naive.segmented_weight(row[:stop].tolist(), starts, 2)
                total += joint
                begins[starts] += joint
                running[starts[-1]] += joint
            np.testing.assert_allclose(filtered[b, stop - 1], running / total, atol=1e-13)
        np.testing.assert_allclose(smoothed[b], begins / total, rtol=1e-11)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_pruned_lin_is_proper_and_within_its_bound(keep):
    x = words(8, 2)
    pruned = np.exp(PrunedLIN(keep=keep).log_prob(x))
    kept = [naive.lin_weight(row.tolist(), 2, life=life(keep)) for row in x]
    assert pruned.sum() == pytest.approx(1, abs=1e-12)
    assert (pruned >= np.array(kept) * (1 - 1e-12)).all()
    assert max(kept / pruned) < 1  # something was dropped, so the bound is not an identity


def test_pruned_lin_follows_logarithmically_many_starts():
    stream = PrunedLIN(keep=4)
    for t in range(4096):
        stream.update(t % 2)
    stream.next()
    assert stream._used <= 4 * (2 + math.log2(4096))


def test_pruned_lin_stays_close_to_lin_on_switching_symbols():
    x = np.concatenate([np.zeros(200, int), np.ones(120, int), np.zeros(192, int)])[None]
    exact, pruned = LIN().log_prob(x)[0], PrunedLIN(keep=16).log_prob(x)[0]
    assert pruned == pytest.approx(exact, abs=0.5)


@pytest.mark.parametrize("predictor", [PTW(13), LIN()], ids=repr)
def test_long_runs_of_one_symbol_neither_overflow_nor_lose_mass(predictor):
    x = torch.zeros(1, 5000 if isinstance(predictor, PTW) else 1500, dtype=torch.int64)
    given_all = predictor.predict(x)
    assert torch.isfinite(given_all).all()
    torch.testing.assert_close(
        given_all.sum(2), torch.ones_like(given_all[:, :, 0]), rtol=0, atol=1e-12
    )
    assert 0 < given_all[0, -1, 1] < 0.01


def test_predictions_beyond_one_chunk_of_rows_are_those_of_each_row():
    x = torch.randint(0, 2, (70, 1000), generator=torch.Generator().manual_seed(0))
    whole = PTW(10).predict(x)
    assert torch.equal(whole[41:42], PTW(10).predict(x[41:42]))
    assert torch.equal(whole[69:], PTW(10).predict(x[69:]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.permutations(range(3)))
def test_renaming_symbols_renames_predictions(row, names):
    x, renamed = np.array([row]), np.array([[names[s] for s in row]])
    for predictor in (PTW(6, 3), LIN(3), PrunedLIN(3, keep=2)):
        np.testing.assert_allclose(
            predictor.predict(renamed)[:, :, list(names)], predictor.predict(x), rtol=1e-9
        )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 1), min_size=2, max_size=40), st.data())
def test_predictions_never_depend_on_what_comes_later(row, data):
    cut = data.draw(st.integers(1, len(row) - 1))
    flipped = np.array([row[:cut] + [1 - s for s in row[cut:]]])
    for predictor in (KTWindow(3), PTW(6), LIN(), PrunedLIN(keep=1)):
        before = predictor.predict(np.array([row]))[:, : cut + 1]
        np.testing.assert_allclose(
            predictor.predict(flipped)[:, : cut + 1], before, rtol=1e-12, atol=0
        )


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 1), min_size=2, max_size=64), st.randoms())
def test_shuffling_leaves_the_code_length_of_kt_alone(row, random):
    mixed = row.copy()
    random.shuffle(mixed)
    assert KT().log_prob([row])[0] == pytest.approx(KT().log_prob([mixed])[0], rel=1e-12)


def test_tensors_give_tensors_and_arrays_give_arrays():
    x = np.zeros((1, 3), dtype=np.uint8)
    assert isinstance(PTW(2).predict(x), np.ndarray)
    assert isinstance(PTW(2).log_prob(torch.from_numpy(x)), torch.Tensor)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PTW(3).predict(np.zeros((1, 9), int)), r"at most 8 symbols, got 9: use depth=4"),
        (lambda: PTW(3).switch_posterior(np.zeros((1, 9), int)), "use depth=4"),
        (lambda: LIN().predict(np.zeros((2, 3))), "integers 0 to 1, got dtype float64"),
        (lambda: LIN().predict(torch.zeros(2, 3)), "integers 0 to 1, got dtype torch.float32"),
        (lambda: KT().predict([0, 1]), r"shape \(batch, time\), got shape \(2,\): add the batch"),
        (lambda: KT().predict(np.zeros((1, 0), int)), r"got shape \(1, 0\)"),
        (lambda: KT().log_prob([[0, 2]]), "symbols 0 to 1, got 2: .*set symbols=3"),
        (lambda: LIN(3).start_posterior([[0, -1]]), "symbols 0 to 2, got -1"),
        (lambda: KT().update(2), "whole number from 0 to 1, got 2"),
        (lambda: LIN().update(-1), "whole number from 0 to 1, got -1"),
        (lambda: KT(1), "symbols must be a whole number of at least 2, got 1"),
        (lambda: PTW(-1), "depth must be a whole number of at least 0, got -1"),
        (lambda: PTW(True), "depth must be a whole number of at least 0, got True"),
        (lambda: KTWindow(0), "window must be a whole number of at least 1 symbol, got 0"),
        (lambda: LIN(alpha=0.0), "alpha must be a positive number, got 0.0"),
        (lambda: PrunedLIN(keep=0), "keep must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_input_is_one_clear_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_full_ptw_stream_says_which_depth_would_go_on():
    stream = PTW(1)
    stream.update(0)
    stream.update(1)
    with pytest.raises(ValueError, match="use depth=2 or more"):
        stream.next()
