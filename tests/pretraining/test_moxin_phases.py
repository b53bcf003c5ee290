"""Phases, mixtures and token files: budgets, rates, shares, and an order without memory."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.naive.moxin_training import naive_mixture, naive_rate
from trialrun.core.errors import UsageError
from trialrun.pretraining._documents import Pipeline
from trialrun.pretraining._mixing import Mixture, TokenSource, shuffled, write_tokens
from trialrun.pretraining._normalise import Normalise
from trialrun.pretraining._phases import Phase, Phases, Place, Rate
from trialrun.pretraining._sources import byte_vocabulary, open_source, rows_of

FLAT = Rate(peak=1.0, shape="constant")


def _phase(**changes):
    plain = {"name": "a", "context": 4, "tokens": 64, "batch_tokens": 16, "mixture": {"web": 1.0}}
    return Phase(**{**plain, "rate": FLAT, **changes})


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 7, 63])
@pytest.mark.parametrize("warmup", [0.0, 0.3])
def test_rates_match_the_slow_twin(shape, steps, warmup):
    end = None if shape == "constant" else 0.25
    rate = Rate(peak=2.0, end=end, warmup=warmup, shape=shape)
    for step in range(steps):
        expected = naive_rate(step, steps, 2.0, 0.25, warmup, shape)
        assert math.isclose(rate.at(step, steps), expected, rel_tol=1e-12)


def test_two_straight_phases_can_carry_one_straight_rate():
    whole = Rate(peak=1.0, warmup=0.1, shape="linear")
    middle = whole.at(75, 100)
    parts = (
        Rate(peak=1.0, end=middle, warmup=10 / 75, shape="linear"),
        Rate(peak=middle, shape="linear"),
    )
    for step in range(100):
        found = parts[0].at(step, 75) if step < 75 else parts[1].at(step - 75, 25)
        assert math.isclose(found, whole.at(step, 100), rel_tol=1e-12)


def test_a_batch_is_told_in_tokens_so_a_longer_context_means_fewer_sequences():
    short, long = _phase(), _phase(name="b", context=16, tokens=40)
    plan = Phases([short, long])
    assert (short.sequences, long.sequences) == (4, 1)
    assert (short.steps, long.steps, plan.steps) == (4, 3, 7)
    assert plan.tokens == 64 + 48
    assert [plan.place(i) for i in (0, 3, 4, 6)] == [
        Place(0, 0),
        Place(0, 3),
        Place(1, 0),
        Place(1, 2),
    ]


@given(st.integers(1, 200), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_the_keyed_order_is_a_permutation_at_every_size(size, seed):
    found = shuffled(np.arange(size), size, seed=seed)
    assert sorted(found.tolist()) == list(range(size))
    one_by_one = [int(shuffled(np.array([i]), size, seed=seed)[0]) for i in range(size)]
    assert one_by_one == found.tolist()


def test_the_keyed_order_looks_like_chance():
    size = 1009
    orders = np.stack([shuffled(np.arange(size), size, seed=s) for s in range(200)])
    # The correlation of place and index over 200 keys has spread 1 / sqrt(size).
    places = np.arange(size)
    correlations = [np.corrcoef(places, row)[0, 1] for row in orders]
    assert abs(np.mean(correlations)) < 4 / np.sqrt(200 * size)
    assert 0.8 < np.std(correlations) * np.sqrt(size) < 1.2
    neighbours = np.abs(np.diff(orders, axis=1)) == 1
    assert neighbours.mean() < 3 * 2 / size
    assert len(np.unique(orders[:, 0])) > 170


def test_a_billion_blocks_are_ordered_without_a_table():
    found = shuffled(np.arange(5), 10**9 + 7, seed=1)
    assert len(set(found.tolist())) == 5
    assert ((found >= 0) & (found < 10**9 + 7)).all()


@pytest.mark.parametrize(
    "shares", [{"a": 1.0}, {"a": 0.5, "b": 0.3, "c": 0.2}, {"a": 0.97, "b": 0.03}]
)
def test_mixtures_keep_their_shares_as_well_as_whole_sequences_can(shares):
    phase = _phase(context=2, batch_tokens=14, tokens=14 * 30, mixture=shares)
    sources = {name: range(10) for name in shares}
    mixture = Mixture(phase, sources, seed=0)
    order = [name for _ in range(30) for name, _ in mixture.step()]
    assert order == naive_mixture(phase.shares, 210)
    for count in range(1, 211):
        for name, share in phase.shares.items():
            assert abs(order[:count].count(name) - share * count) < 1 + 1e-9


def test_every_row_comes_once_an_epoch_and_epochs_differ():
    phase = _phase(context=2, batch_tokens=14, tokens=14 * 6)
    mixture = Mixture(phase, {"web": range(21)}, seed=0)
    rows = [row for _ in range(6) for _, row in mixture.step()]
    assert sorted(rows[:21]) == sorted(rows[21:]) == list(range(21))
    assert rows[:21] != rows[21:]


def test_a_mixture_goes_on_from_its_state():
    phase = _phase(mixture={"web": 2.0, "code": 1.0}, tokens=16 * 20)
    sources = {"web": range(11), "code": range(7)}
    whole = Mixture(phase, sources, seed=3)
    steps = [whole.step() for _ in range(20)]
    half = Mixture(phase, sources, seed=3)
    for _ in range(9):
        half.step()
    other = Mixture(phase, sources, seed=3)
    other.restore(half.state())
    assert [other.step() for _ in range(11)] == steps[9:]


def test_sources_of_weight_zero_are_not_needed():
    assert _phase(mixture={"web": 1, "code": 0}).shares == {"web": 1.0}


def test_token_files_are_read_as_written_with_an_end_after_each_document(tmp_path):
    words = byte_vocabulary()
    path = tmp_path / "web.npy"
    count = write_tokens(["ab", "", "é"], path, words.encode, end=words.end, vocabulary=words.size)
    source = TokenSource.open(path)
    assert source.tokens.tolist() == [97, 98, 256, 256, 195, 169, 256]
    assert count == 7
    assert isinstance(source.tokens, np.memmap)
    assert source.tokens.dtype == np.uint16
    assert [p.name for p in tmp_path.iterdir()] == ["web.npy"]


def test_a_large_vocabulary_takes_four_bytes(tmp_path):
    path = tmp_path / "web.npy"
    write_tokens(["a"], path, lambda _: [70_000], end=1, vocabulary=100_000)
    assert TokenSource.open(path).tokens.tolist() == [70_000, 1]


def test_blocks_predict_every_token_but_the_first_once():
    source = TokenSource(np.arange(14))
    rows = rows_of("text", source, 3, byte_vocabulary())
    targets = [i for row in range(len(rows)) for i in rows[row][0].labels[1:]]
    assert targets == list(range(1, 13))


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("peak must be a positive", lambda: Rate(peak=0.0)),
        ("shape must be one of", lambda: Rate(peak=1.0, shape="step")),
        ("end must be in 0..1.0", lambda: Rate(peak=1.0, end=2.0)),
        ("left out for a constant", lambda: Rate(peak=1.0, end=0.5, shape="constant")),
        (r"warmup must be in \[0, 1\)", lambda: Rate(peak=1.0, warmup=1.0)),
        ("context must be at least 2", lambda: _phase(context=1)),
        ("tokens must be at least 16", lambda: _phase(tokens=15)),
        ("multiple of the context 4", lambda: _phase(batch_tokens=18)),
        ("at least one source", lambda: _phase(mixture={})),
        ("all are 0", lambda: _phase(mixture={"web": 0, "code": 0.0})),
        ("from 0 up", lambda: _phase(mixture={"web": -1})),
        ("from 0 up", lambda: _phase(mixture={"web": float("nan")})),
        ("objective must be one of", lambda: _phase(objective="grpo")),
        ("reference must be given", lambda: _phase(objective="preference")),
        ("reference must be given", lambda: _phase(reference="x")),
        ("beta must be", lambda: _phase(beta=0.0)),
        ("at least one phase", lambda: Phases([])),
        ("different names", lambda: Phases([_phase(), _phase()])),
        ("step must be in 0..3", lambda: Phases([_phase()]).place(4)),
        (
            "not among the sources: web",
            lambda: Mixture(_phase(mixture={"x": 1}), {"web": [1]}, seed=0),
        ),
        ("saved order is of", lambda: Mixture(_phase(), {"web": [1]}, seed=0).restore({"b": 1})),
        ("is empty", lambda: TokenSource(np.zeros(0, int))),
        ("must be integers", lambda: TokenSource(np.zeros(3))),
        ("more than 4 tokens", lambda: TokenSource(np.zeros(4, int)).blocks(4)),
        ("reads .npy tokens", lambda: rows_of("text", [{}], 4, byte_vocabulary())),
        (
            "reads .jsonl",
            lambda: rows_of("chat", TokenSource(np.zeros(9, int)), 4, byte_vocabulary()),
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_settings_get_one_clear_sentence(words, call):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.usefixtures("unchecked")
def test_bad_files_get_one_clear_sentence(tmp_path):
    with pytest.raises(UsageError, match="at least one text, got none"):
        write_tokens([], tmp_path / "x.npy", lambda _: [], end=0, vocabulary=2)
    with pytest.raises(UsageError, match=r"tokens must be in 0..255"):
        write_tokens(["a"], tmp_path / "x.npy", lambda _: [300], end=0, vocabulary=256)
    with pytest.raises(UsageError, match=r"in a folder that is there, got .*x\.npy: make .*web"):
        write_tokens(["a"], tmp_path / "web" / "x.npy", lambda _: [0], end=0, vocabulary=2)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="no token file"):
        TokenSource.open(tmp_path / "x.npy")
    (tmp_path / "x.npy").write_bytes(b"no tokens")
    with pytest.raises(UsageError, match=r"must be a .npy file"):
        TokenSource.open(tmp_path / "x.npy")
    with pytest.raises(UsageError, match=r"must end in .npy"):
        open_source(tmp_path / "x.txt")
    (tmp_path / "x.jsonl").write_text("\n \n")
    with pytest.raises(UsageError, match="is empty"):
        open_source(tmp_path / "x.jsonl")


def test_a_pipelines_documents_are_written_as_their_texts(tmp_path):
    words = byte_vocabulary()
    settings = {"end": words.end, "vocabulary": words.size}
    clean = Pipeline([Normalise()])
    write_tokens(clean(["one", "two"]), tmp_path / "a.npy", words.encode, **settings)
    write_tokens(["one", "two"], tmp_path / "b.npy", words.encode, **settings)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


@pytest.mark.usefixtures("unchecked")
def test_tokens_go_to_npy_files_and_come_from_texts(tmp_path):
    words = byte_vocabulary()
    settings = {"end": words.end, "vocabulary": words.size}
    with pytest.raises(UsageError, match=r"path must end in \.npy"):
        write_tokens(["one"], tmp_path / "web.bin", words.encode, **settings)
    with pytest.raises(UsageError, match="document 0 must be a string or have a text"):
        write_tokens([3], tmp_path / "web.npy", words.encode, **settings)
    assert not list(tmp_path.iterdir())
