"""hippo's arms: what each memory is given, controls that lack what they say, nets that match."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from trialrun.catalogue.card import parse_card
from trialrun.claims.contract import Context, On
from trialrun.core.errors import UsageError
from trialrun.dossiers.hippo import claim
from trialrun.dossiers.hippo.memories import (
    RandomScaled,
    change_of_state,
    merged_bins,
    read_back,
    state_after,
)
from trialrun.dossiers.hippo.nets import Classifier, accuracy, build, lstm, size_of, train
from trialrun.material.curves import band_limited_noise
from trialrun.sequence.hippo import HiPPO, transition

TRIAL = claim.TRIAL
NOISE = band_limited_noise(6, seed=3)


def test_the_trial_has_the_cards_claims_and_arms():
    card = parse_card(Path(claim.__file__).with_name("card.toml").read_text())
    assert {c.id: set(c.arms) for c in card.claims} == {
        name: set(arms) for name, arms in TRIAL.arms.items()
    }


def test_the_random_memory_has_the_spectrum_of_legs_and_its_bilinear_recurrence():
    memory, order = RandomScaled(6, seed=0), 6
    spectrum = -torch.arange(1.0, order + 1, dtype=torch.float64)
    basis = memory.basis.double()
    A = basis @ torch.diag(spectrum) @ basis.T
    torch.testing.assert_close(basis @ basis.T, torch.eye(6).double(), atol=1e-6, rtol=0)
    u = torch.from_numpy(NOISE.sampled(50))
    eye, x = torch.eye(order).double(), u[:, :1] * torch.eye(order).double()[0]
    for k in range(2, 51):
        inverse = torch.linalg.inv(eye - A / (2 * k))
        x = x @ (inverse @ (eye + A / (2 * k))).T
        x = x + u[:, k - 1, None] * (inverse @ memory.drive.double() / k)
    found = memory.encode(u.float())
    torch.testing.assert_close(found.double(), x, rtol=1e-4, atol=1e-5)
    assert not torch.equal(found, RandomScaled(6, seed=1).encode(u.float()))


def test_only_the_control_and_the_window_mind_the_rate():
    change = {
        arm: change_of_state(arm, NOISE, usual=256, order=16, seed=0)
        for arm in ("legs", "legt", "legt-told", "legs-fixed", "random-scaled")
    }
    for point in ("half", "double"):
        steady = [change[a][point] for a in ("legs", "legt-told", "random-scaled")]
        assert max(steady) < 0.1
        assert min(change["legt"][point], change["legs-fixed"][point]) > 0.5


def test_the_control_of_timescale_is_legs_without_its_division_by_time():
    u = torch.from_numpy(NOISE.sampled(128)).float()
    fixed = HiPPO("legs", 16, window=256).encode(u).coefficients
    assert torch.equal(state_after("legs-fixed", NOISE, 128, 256, 16, 0), fixed)
    free = HiPPO("legs", 16).encode(u).coefficients
    assert torch.equal(state_after("legs", NOISE, 128, 256, 16, 0), free)


def test_a_window_gives_back_its_window_and_nothing_before_it():
    back = read_back("legt", NOISE, 500, others=NOISE, window=200, order=48, seed=0)
    u = torch.from_numpy(NOISE.sampled(500)).float()
    assert back.shape == u.shape
    assert not back[:, :300].any()
    assert float((back - u)[:, 300:].square().mean()) < 0.05
    told = read_back("legt-told", NOISE, 500, others=NOISE, window=200, order=48, seed=0)
    assert float((told - u).square().mean()) < 0.05


@pytest.mark.parametrize(("length", "size"), [(60, 1), (64, 1), (65, 2), (1000, 16), (1024, 16)])
def test_merged_bins_are_at_most_as_many_as_coefficients(length, size):
    ramp = torch.arange(length, dtype=torch.float32)[None]
    back = merged_bins(ramp, 64)
    inside = slice(size, length - 2 * size)
    torch.testing.assert_close(back[0, inside].float(), ramp[0, inside], atol=1e-3, rtol=0)
    whole = merged_bins(torch.eye(length), 64)
    assert np.linalg.matrix_rank(whole.numpy()) <= 64


def test_the_random_memory_is_read_by_a_map_that_recovers_what_it_can():
    u = torch.from_numpy(NOISE.sampled(400)).float()
    others = band_limited_noise(512, seed=11)
    errors = {}
    for arm in ("legs", "random"):
        back = read_back(arm, NOISE, 400, others=others, window=400, order=64, seed=0)
        errors[arm] = float((back - u).square().mean())
    assert errors["legs"] < 0.01 < errors["random"] < 0.5


def test_what_the_control_of_memory_lacks_is_precision_and_not_information():
    others = torch.from_numpy(band_limited_noise(512, seed=11).sampled(400))
    u, memory, errors = torch.from_numpy(NOISE.sampled(400)), RandomScaled(64, seed=0), {}
    for kind in (torch.float64, torch.float32):
        states = memory.encode(others.to(kind)).double().numpy()
        read, *_ = np.linalg.lstsq(states, others.numpy(), rcond=None)
        back = torch.from_numpy(memory.encode(u.to(kind)).double().numpy() @ read)
        errors[kind] = float((back - u).square().mean())
    assert errors[torch.float64] < 1e-6
    assert errors[torch.float32] > 0.01


@pytest.fixture
def small():
    budget = replace(TRIAL.budgets["smoke"], pixel_steps=0, stroke_steps=0, width=8)
    return Context(budget=budget, seed=1)


def test_digits_of_training_and_scoring_are_disjoint_and_differ_by_seed(small):
    budget = replace(TRIAL.budgets["full"], pool=4)
    x, y, other_x, other_y = claim._digits(replace(small, budget=budget))
    assert (len(x), len(other_x), x.shape[1]) == (4000, 1000, 49)
    again = claim._digits(replace(small, budget=budget, seed=2))
    assert not torch.equal(y, again[1])
    whole = {row.numpy().tobytes() for row in x} & {row.numpy().tobytes() for row in other_x}
    assert len(whole) < 5  # two digits may be the same once pooled
    assert len(other_y) == 1000


def test_the_control_of_pixels_forgets_and_stays_so():
    net = claim._pixel_net("s4d-short", 8, 50, 0)
    free = claim._pixel_net("s4d", 8, 50, 0)
    assert size_of(net) < size_of(free)
    kernel = net.body.layers[0].kernel(50).detach()
    assert float(kernel[:, 12:].abs().max()) < 0.01 * float(kernel.abs().max())
    assert float(free.body.layers[0].kernel(50).detach()[:, 12:].abs().max()) > 0.01
    before = net.body.layers[0].log_dt.clone()
    x, y = torch.randn(20, 30, 1), torch.arange(20) % 10
    train(net, x, y, steps=2, rate=0.01, seed=0, batch=10)
    assert torch.equal(net.body.layers[0].log_dt, before)


def test_the_net_of_random_frequencies_differs_in_them_alone():
    ours, random = (claim._pixel_net(arm, 8, 50, 0) for arm in ("s4d", "s4d-random"))
    legs = torch.linalg.eigvals(transition("legsd", 32).A).imag.max()
    for one, other in zip(ours.body.layers, random.body.layers, strict=True):
        assert float(one.frequency.detach().max()) == pytest.approx(float(legs), rel=1e-4)
        assert not torch.equal(one.frequency, other.frequency)
        drawn = other.frequency.detach()
        assert 0 <= float(drawn.min()) <= float(drawn.max()) <= float(legs)
        for name in ("log_dt", "log_decay", "C", "D"):
            assert torch.equal(getattr(one, name), getattr(other, name))


def test_lstms_on_strokes_train_as_long_in_quick_as_in_full():
    assert TRIAL.budgets["quick"].lstm_steps == TRIAL.budgets["full"].lstm_steps


def test_rivals_are_not_smaller_than_ours():
    for width in (8, 32, 64):
        s4d, plain = (size_of(claim._pixel_net(arm, width, 50, 0)) for arm in ("s4d", "lstm"))
        assert plain >= s4d or width != 32
        hippo, plain = (size_of(claim._stroke_net(kind, width, 0)) for kind in ("hippo", "lstm"))
        assert plain > hippo or width != 32


def test_chrono_gates_start_with_memories_up_to_the_longest():
    made = build(lambda: lstm(2, 500, longest=64), 0)
    forget = made.bias_hh_l0[500:1000].detach().exp()
    assert 1 <= float(forget.min()) < float(forget.max()) <= 63
    torch.testing.assert_close(made.bias_hh_l0[:500], -made.bias_hh_l0[500:1000])
    assert not made.bias_ih_l0.any()


def test_rate_arms_read_the_net_of_their_name(small, tmp_path, monkeypatch):
    ctx = replace(small, prepared_root=tmp_path)
    for kind, prepare in TRIAL.prepare.items():
        folder = ctx.prepared(kind)
        folder.mkdir()
        prepare(ctx, folder)
    read = []
    load = claim.load_file
    monkeypatch.setattr(claim, "load_file", lambda f: read.append(f.parent.name) or load(f))
    for arm, run in TRIAL.arms["rate"].items():
        read.clear()
        found = run(ctx)
        assert read == [f"{TRIAL.needs[f'rate/{arm}'][0]}-1"]
        assert set(found.points) == {"half", "double"}


def test_resampling_undoes_a_change_of_rate():
    line = torch.linspace(0, 1, 33)[None, :, None].expand(1, 33, 2)
    torch.testing.assert_close(claim.resampled(line, 65)[0, :, 0], torch.linspace(0, 1, 65))
    assert claim.resampled(line, 64).shape == (1, 64, 2)


def test_nets_of_a_seed_begin_alike_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    made = [build(lambda: Classifier(torch.nn.LSTM(1, 4), 4, 2, pooled=True), 7) for _ in "ab"]
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(made[0].head.weight, made[1].head.weight)


def test_accuracy_is_the_share_of_hits_in_percent():
    class Echo(torch.nn.Module):
        def forward(self, x):
            return x

    logits = torch.eye(4)[torch.tensor([0, 1, 2, 3])]
    assert accuracy(Echo(), logits, torch.tensor([0, 1, 2, 0]), batch=3) == 75.0


def test_a_users_series_are_scored_in_disjoint_blocks(tmp_path):
    waves = band_limited_noise(12, seed=2, cycles=4).sampled(200)
    rows = [",".join(map(str, row.round(6))) for row in waves]
    file = tmp_path / "own.ts"
    file.write_text("@timeStamps false\n@classLabel false\n@data\n" + "\n".join(rows) + "\n")
    budget = replace(TRIAL.budgets["quick"], seeds=3, first_seed=0, order=32)
    ctx = Context(budget=budget, seed=1, on=On("series", str(file)))
    claim.check_on(ctx)
    mine, others = claim._signals(ctx)
    assert (len(mine), len(others)) == (4, 8)
    found = claim.memory(ctx, arm="legs")
    assert found.n == 4
    assert max(found.points.values()) < 0.01
    assert max(claim.timescale(ctx, arm="legs").points.values()) < 0.1
    with pytest.raises(UsageError, match=r"at least 16 signals that change, .* got 12"):
        claim.check_on(replace(ctx, budget=replace(budget, seeds=4)))
