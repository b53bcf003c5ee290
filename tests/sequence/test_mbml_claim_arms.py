"""mbml's arms: which predictor each one scores, on what, and which steps its points average."""

from dataclasses import replace

import pytest
import torch

from trialrun.claims.contract import Context, On
from trialrun.core.seeds import split
from trialrun.dossiers.mbml import _file, claim
from trialrun.sequence.mbml import (
    KT,
    LIN,
    PTW,
    KTWindow,
    MetaPredictor,
    NetShape,
    PTWSource,
    RandomShiftSource,
    Regret,
    Sample,
    code_lengths,
    regret,
)

TRIAL = claim.TRIAL
NETS = {
    "lstm": ("lstm", "sincos"),
    "rnn": ("rnn", "sincos"),
    "mlp": ("mlp-window", "sincos"),
    "transformer": ("transformer", "sincos"),
    "alibi": ("transformer", "alibi"),
}
LOADED = [
    ("memory", "lstm", ["lstm"]),
    ("memory", "mlp", ["mlp"]),
    ("memory", "lstm-last-8", ["lstm"]),
    ("length", "lstm", ["lstm"]),
    ("length", "transformer", ["transformer"]),
    ("length", "alibi", ["alibi"]),
    ("near-bayes", "nets", ["lstm", "rnn", "transformer"]),
    ("near-bayes", "nets-shuffled-past", ["lstm", "rnn", "transformer"]),
]


@pytest.fixture
def ctx(tmp_path):
    """Untrained nets, each with weights of its own, where the preparation leaves the trained."""
    found = Context(budget=TRIAL.budgets["smoke"], seed=1, prepared_root=tmp_path)
    for number, (name, (architecture, positions)) in enumerate(NETS.items()):
        shape = NetShape(width=16, heads=4, positions=positions)
        MetaPredictor(architecture, 2, shape, seed=number).save(found.prepared(name))
    return found


@pytest.fixture
def scored(monkeypatch):
    """Record every predictor and sample that is scored; windows cost what ``COST`` says."""
    found = []

    def fake(predictor, sample):
        found.append((predictor, sample))
        cost = COST.get(predictor.window, 9.0) if isinstance(predictor, KTWindow) else 4.0
        return Regret(torch.full(sample.x.shape, cost, dtype=torch.float64))

    monkeypatch.setattr(claim, "regret", fake)
    return found


COST = {4: 3.0, 8: 2.0, 16: 7.0, 32: 1.0, 64: 5.0, 256: 0.5, 1024: 6.0}


def test_the_best_window_is_the_least_regret_of_all_windows_in_hindsight():
    sample = RandomShiftSource(0.03).sample(6, 256, seed=0)
    windows = (2, 8, 32, 128)
    each = [regret(KTWindow(window), sample).average().mean for window in windows]
    best = claim._best_window(sample, windows).average().mean
    assert best == min(each)
    assert each.index(best) in (1, 2)


@pytest.mark.parametrize(
    ("name", "windows", "best"),
    [
        ("crossed", (4, 8, 16, 32, 64), 1.0),
        ("memory", (4, 8, 16, 32, 64), 1.0),
        ("length", (4, 8, 16, 32, 64), 1.0),
        ("near-bayes", (4, 8, 16, 32, 64), 1.0),
        ("switching", (16, 64, 256, 1024), 0.5),
    ],
)
def test_the_window_arm_of_every_claim_tries_all_windows_and_scores_the_best(
    ctx, scored, name, windows, best
):
    points = TRIAL.arms[name]["window"](ctx).points
    tried = [predictor.window for predictor, _ in scored if isinstance(predictor, KTWindow)]
    assert tried == list(windows) * (len(tried) // len(windows))
    time = scored[-1][1].x.shape[1]
    wanted = {
        "crossed": best * time,
        "memory": best * time,
        "length": best - 4.0,
        "near-bayes": best / 4.0 - 1,
        "switching": best * time / (time - 1) / torch.log(torch.tensor(2.0)).item(),
    }[name]
    assert list(points.values()) == pytest.approx([wanted] * len(points))


def test_the_window_arm_on_a_file_codes_with_its_best_window(tmp_path):
    # A bias that turns every 256 symbols: 16 are too few to learn it, 1024 too many to follow it.
    bias = torch.where(torch.arange(2048) // 256 % 2 == 0, 0.3, 0.7)[None]
    x = (torch.rand(1, 2048, generator=torch.Generator().manual_seed(0)) < bias).long()
    file = tmp_path / "bits.txt"
    file.write_text("".join(map(str, x[0].tolist())))
    budget = replace(TRIAL.budgets["quick"], seeds=1, first_seed=0)
    ctx = Context(budget=budget, seed=0, on=On("symbols", str(file), {"as": "bits"}))
    found = claim.switching(ctx, arm="window")
    lengths = [float(code_lengths([KTWindow(w)], x)[0]) / 2048 for w in _file.WINDOWS]
    assert found.points["value"] == pytest.approx(min(lengths), rel=1e-12)
    assert found.extra["window"] == _file.WINDOWS[lengths.index(min(lengths))]
    assert lengths[0] > min(lengths) < lengths[-1]


@pytest.mark.parametrize(
    ("name", "arm", "wanted"),
    [
        ("crossed", "own", [PTW, LIN]),
        ("crossed", "other", [LIN, PTW]),
        ("crossed", "own-shuffled", [PTW, LIN]),
        ("switching", "ptw", [PTW]),
        ("switching", "ptw-shuffled", [PTW]),
        ("switching", "kt", [KT]),
        ("switching", "lin", [LIN]),
        ("memory", "ptw", [PTW]),
    ],
)
def test_exact_arms_score_the_predictor_of_their_name(ctx, scored, name, arm, wanted):
    TRIAL.arms[name][arm](ctx)
    assert [type(predictor) for predictor, _ in scored] == wanted


@pytest.mark.parametrize(
    ("name", "plain", "shuffled"),
    [("crossed", "own", "own-shuffled"), ("switching", "ptw", "ptw-shuffled")],
)
def test_shuffled_controls_keep_each_sequences_symbols_with_their_truths(
    ctx, scored, name, plain, shuffled
):
    ctx = replace(ctx, budget=replace(ctx.budget, exact_sequences=64))
    TRIAL.arms[name][plain](ctx)
    TRIAL.arms[name][shuffled](ctx)
    samples = [sample for _, sample in scored]
    half = len(samples) // 2
    for own, mixed in zip(samples[:half], samples[half:], strict=True):
        assert (own.x != mixed.x).any(1).float().mean() > 0.5
        for b in range(len(own.x)):
            steps = [
                sorted(zip(s.x[b].tolist(), map(tuple, s.theta[b].tolist()), strict=True))
                for s in (own, mixed)
            ]
            assert steps[0] == steps[1]


def test_every_sequence_is_shuffled_in_an_order_of_its_own():
    one = PTWSource(6).sample(1, 64, seed=2)
    many = Sample(one.x.expand(8, -1), torch.arange(64.0)[None, :, None].expand(8, -1, 2))
    assert len({tuple(row.tolist()) for row in claim._shuffled(many, 0).theta[:, :, 0]}) == 8


@pytest.mark.parametrize("name", TRIAL.arms)
def test_arms_of_a_claim_score_the_same_sequences(ctx, scored, name):
    seen = []
    for arm, run in TRIAL.arms[name].items():
        scored.clear()
        run(ctx)
        if "shuffled" not in arm:
            seen.append({sample.x.numpy().tobytes() for _, sample in scored})
    assert seen == [seen[0]] * len(seen)


@pytest.mark.parametrize(("name", "arm", "nets"), LOADED)
def test_net_arms_read_the_net_of_their_name_and_ask_for_its_preparation(
    ctx, monkeypatch, name, arm, nets
):
    read = []
    load = MetaPredictor.load
    monkeypatch.setattr(
        MetaPredictor, "load", lambda folder: read.append(folder.name) or load(folder)
    )
    TRIAL.arms[name][arm](ctx)
    assert read == [f"{net}-1" for net in nets]
    assert TRIAL.needs[f"{name}/{arm}"] == tuple(nets)


@pytest.mark.parametrize("name", NETS)
def test_each_preparation_trains_the_net_of_its_name_on_the_prior_it_is_tested_on(
    tmp_path, monkeypatch, name
):
    asked = []
    train_meta = claim.train_meta

    def spy(architecture, source, **settings):
        asked.append((source, settings))
        return train_meta(architecture, source, **settings)

    monkeypatch.setattr(claim, "train_meta", spy)
    budget = replace(TRIAL.budgets["smoke"], layers=2)
    ctx = Context(budget=budget, seed=5)
    TRIAL.prepare[name](ctx, tmp_path)
    ((source, settings),) = asked
    assert isinstance(source, PTWSource)
    assert (source.depth, settings["length"], settings["steps"]) == (4, 16, 3)
    net = MetaPredictor.load(tmp_path)
    assert (net.architecture, net.shape.positions) == NETS[name]
    assert net.shape.layers == (2 if net.architecture == "transformer" else 1)
    assert net.shape.window == 8
    blank = MetaPredictor(net.architecture, 2, net.shape, seed=split(5, "net"))
    moved = [
        (now - then).abs().max().item()
        for now, then in zip(net.net.parameters(), blank.net.parameters(), strict=True)
    ]
    # Three steps of Adam move a weight by three times the rate at most.
    assert 0 < max(moved) < 0.01


def lively_lstm():
    """Return an untrained LSTM that forgets little, so that all of a past shows."""
    net = MetaPredictor("lstm", 2, NetShape(width=8), seed=0)
    with torch.no_grad():
        for key, values in net.net.named_parameters():
            if "bias_ih" in key:
                values[8:16] += 3.0
    return net


@pytest.fixture
def last_eight(ctx, scored):
    """The predictor that the control of ``memory`` scores."""
    lively_lstm().save(ctx.prepared("lstm"))
    TRIAL.arms["memory"]["lstm-last-8"](ctx)
    return scored[-1][0]


def test_the_control_without_memory_sees_the_last_eight_symbols_at_every_step(last_eight):
    x = torch.randint(0, 2, (4, 40), generator=torch.Generator().manual_seed(0))
    given = last_eight.predict(x)
    for s in range(40):
        other = x.clone()
        other[:, s] = 1 - x[:, s]
        moved = (last_eight.predict(other) - given).abs().amax((0, 2)) > 1e-6
        assert moved.nonzero()[:, 0].tolist() == list(range(s + 1, min(s + 9, 40))), s


@pytest.mark.parametrize("time", [1, 7, 8, 9, 23])
def test_the_control_without_memory_runs_the_net_anew_on_what_it_sees(last_eight, time):
    x = torch.randint(0, 2, (3, time), generator=torch.Generator().manual_seed(1))
    given = last_eight.predict(x)
    net = lively_lstm()
    for t in range(time):
        # The symbol to be predicted closes the sequence and is not read.
        alone = net.predict(x[:, max(0, t - 8) : t + 1])[:, -1]
        torch.testing.assert_close(given[:, t], alone, atol=1e-6, rtol=0)


def test_the_lstm_it_is_compared_with_remembers_more(ctx, scored):
    lively_lstm().save(ctx.prepared("lstm"))
    TRIAL.arms["memory"]["lstm"](ctx)
    x = torch.zeros(1, 40, dtype=torch.long)
    other = x.clone()
    other[:, 0] = 1
    net = scored[-1][0]
    assert (net.predict(x) - net.predict(other)).abs()[0, 30].max() > 1e-6


class Stub:
    """Stands for a net whose excess at step t is t nats."""


def test_length_averages_the_excess_beyond_once_and_twice_the_training_length(ctx, monkeypatch):
    def fake(predictor, sample):
        steps = torch.arange(sample.x.shape[1], dtype=torch.float64)
        exact = steps.flip(0).expand(sample.x.shape)
        if isinstance(predictor, PTW):
            assert predictor.depth == 6
            return Regret(exact)
        assert isinstance(predictor, Stub)
        return Regret(exact + steps + torch.arange(len(sample.x))[:, None])

    monkeypatch.setattr(claim, "regret", fake)
    monkeypatch.setattr(claim, "_net", lambda *_: Stub())
    found = TRIAL.arms["length"]["lstm"](ctx)
    # Trained on 16 symbols, scored on 64; the sequence's number adds its mean.
    mean = (found.n - 1) / 2
    assert found.n == 8
    assert dict(found.points) == {"2x": 23.5 + mean, "4x": 47.5 + mean}
    assert dict(found.extra) == {"inside": 8.0 + mean}


def test_near_bayes_is_the_excess_as_a_fraction_of_the_exact_regret(ctx, monkeypatch):
    costs = {"lstm": 3.0, "rnn": 5.0, "transformer": 2.0}

    def fake(predictor, sample):
        cost = 2.0 if isinstance(predictor, PTW) else costs[predictor.architecture]
        return Regret(torch.full(sample.x.shape, cost / 16, dtype=torch.float64))

    monkeypatch.setattr(claim, "regret", fake)
    found = TRIAL.arms["near-bayes"]["nets"](ctx)
    assert dict(found.points) == {"lstm": 0.5, "rnn": 1.5, "transformer": 0.0}
    assert found.extra["bayes_nats"] == 2.0


def test_the_untrained_control_of_length_is_the_trained_nets_beginning(ctx, scored):
    TRIAL.arms["length"]["lstm-untrained"](ctx)
    blank = scored[-1][0]
    kept = MetaPredictor.load(ctx.prepared("lstm"))
    assert (blank.architecture, blank.shape) == (kept.architecture, kept.shape)
    start = MetaPredictor("lstm", 2, kept.shape, seed=split(1, "net"))
    x = torch.tensor([[0, 1, 1, 0]])
    assert torch.equal(blank.predict(x), start.predict(x))
    assert not torch.equal(blank.predict(x), kept.predict(x))
