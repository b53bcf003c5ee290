"""S4, S4D and the net with memory: parity with slow twins, one set of weights for all modes."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.conformance.watch import annotations_unchecked
from tests.naive import hippo as naive
from trialrun.sequence.hippo import S4, S4D, HiPPO, HiPPORNN, nplr, parameter_groups
from trialrun.sequence.hippo import _s4 as s4_module

S4DS = [{"init": i, "disc": d} for i in ("lin", "inv", "legs", "real") for d in ("zoh", "bilinear")]
S4S = [{"measure": m} for m in ("legs", "legt", "fout")]
LAYERS = [(S4D, s) for s in S4DS] + [(S4, s) for s in S4S]


def sequences(*shape, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=random)


def parts(layer):
    poles = torch.complex(-layer.log_decay.exp(), layer.frequency)
    return poles, layer.log_dt.exp(), torch.view_as_complex(layer.C), layer.D


def slow(layer, x):
    poles, dt, C, D = parts(layer)
    rows = []
    for row in x:
        channels = []
        for h in range(layer.d_model):
            u = row[:, h]
            if isinstance(layer, S4):
                P, B = torch.view_as_complex(layer.P[h]), torch.view_as_complex(layer.B[h])
                y = naive.naive_low_rank_layer(u, poles[h], P, B, dt[h], C[h], D[h])
            else:
                y = naive.naive_diagonal_layer(u, poles[h], dt[h], C[h], D[h], layer.disc)
            channels.append(y)
        rows.append(torch.stack(channels, dim=-1))
    return torch.stack(rows)


@pytest.mark.parametrize("time", [1, 7, 63])
@pytest.mark.parametrize(("kind", "chosen"), LAYERS, ids=str)
def test_output_and_gradients_match_the_slow_twin(kind, chosen, time):
    layer, x = kind(2, 8, mix="none", **chosen).double(), sequences(2, time, 2)
    fast, twin = layer(x), slow(layer, x)
    torch.testing.assert_close(fast, twin, rtol=1e-8, atol=1e-9)
    named = [(n, p) for n, p in layer.named_parameters() if p.requires_grad]
    grads = [torch.autograd.grad(out.square().sum(), [p for _, p in named]) for out in (fast, twin)]
    for (name, _), ours, theirs in zip(named, *grads, strict=True):
        scale = float(theirs.abs().max()) + 1e-6
        assert float((ours - theirs).abs().max()) < 1e-6 * scale, name


@pytest.mark.parametrize("mix", ["none", "glu", "linear"])
@pytest.mark.parametrize(("kind", "chosen"), LAYERS, ids=str)
def test_sequence_scan_and_steps_agree_at_any_rate(kind, chosen, mix):
    layer, x = kind(3, 16, mix=mix, **chosen).double(), sequences(2, 50, 3)
    for rate in (1.0, 2.5, 0.4):
        whole, state, outputs = layer(x, rate=rate), None, []
        for t in range(50):
            y, state = layer.step(x[:, t], state, rate=rate)
            outputs.append(y)
        scanned, last = layer.scan(x, rate=rate)
        torch.testing.assert_close(torch.stack(outputs, 1), whole, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(scanned, whole, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(last, state, rtol=1e-9, atol=1e-9)
    first, state = layer.scan(x[:, :17])
    second, _ = layer.scan(x[:, 17:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), layer(x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("measure", ["legs", "legt"])
def test_s4_starts_as_the_dense_hippo_system(measure):
    layer = S4(1, 16, measure=measure, mix="none", dt_range=(0.02, 0.02)).double()
    memory = HiPPO(measure, 16, window=1 / 0.02)
    u = sequences(1, 80)
    V = nplr(measure, 16).V
    _, state = layer.scan(u[..., None])
    real = 2 * (state[:, 0] @ V.T).real
    # Poles of legt are pushed off the axis by 1e-4, and weights are kept in float32.
    torch.testing.assert_close(real, memory.encode(u).coefficients, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("chosen", S4DS, ids=str)
def test_the_float32_kernel_is_accurate_at_64k(chosen):
    layer = S4D(3, 64, **chosen)
    exact = S4D(3, 64, **chosen).double().requires_grad_(False)
    poles, dt, C, _ = parts(exact)
    if chosen["disc"] == "zoh":
        log, weight = dt[:, None] * poles, (torch.exp(dt[:, None] * poles) - 1) / poles
    else:
        half = dt[:, None] * poles / 2
        log, weight = torch.log((1 + half) / (1 - half)), dt[:, None] / (1 - half)
    time = torch.arange(65536)
    direct = sum(
        2 * ((C * weight)[:, n, None] * torch.exp(log[:, n, None] * time)).real for n in range(32)
    )
    found = layer.kernel(65536).detach()
    assert found.dtype == torch.float32
    assert float((found - direct).abs().max() / direct.abs().max()) < 1e-6
    assert float((found - direct).norm() / direct.norm()) < 1e-6
    tail = (found - direct)[:, -4096:].norm() / (direct[:, -4096:].norm() + 1e-30)
    assert float(direct[:, -4096:].abs().max()) < 1e-12 or float(tail) < 1e-4


def test_powers_in_float32_would_not_be():
    layer = S4D(3, 64, dt_range=(1e-5, 1e-4)).double().requires_grad_(False)
    poles, dt, _, _ = parts(layer)
    factor = torch.exp(dt[:, None] * poles).to(torch.complex64)
    time = torch.arange(65536)
    plain = torch.exp(factor.log()[..., None] * time)
    exact = torch.exp((dt[:, None] * poles)[..., None] * time)
    assert float((plain - exact).abs().max()) > 1e-4


@pytest.mark.parametrize("kind", [S4, S4D])
def test_long_kernels_in_blocks_are_those_in_one_piece(kind, monkeypatch):
    layer = kind(2, 8).double()
    whole = layer.kernel(300)
    (before,) = torch.autograd.grad(whole.square().sum(), layer.log_dt)
    monkeypatch.setattr(s4_module, "_BLOCK", 64)
    blocks = layer.kernel(300)
    torch.testing.assert_close(blocks, whole)
    (after,) = torch.autograd.grad(blocks.square().sum(), layer.log_dt)
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(layer.kernel(77), whole[:, :77], rtol=1e-7, atol=1e-9)


def test_uneven_steps_are_those_of_single_steps():
    layer, x = S4D(3, 8).double(), sequences(2, 30, 3)
    rate = 0.2 + torch.rand(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scanned, last = layer.scan(x, rate=rate)
    for b in range(2):
        state = None
        for t in range(30):
            y, state = layer.step(x[b : b + 1, t], state, rate=float(rate[b, t]))
            torch.testing.assert_close(y[0], scanned[b, t])
        torch.testing.assert_close(state[0], last[b])
    even, _ = layer.scan(x, rate=torch.full((2, 30), 1.5))
    torch.testing.assert_close(even, layer(x, rate=1.5))


def test_a_held_input_at_half_the_rate_leaves_the_same_output():
    layer, x = S4D(3, 8, disc="zoh", mix="none").double(), sequences(2, 40, 3)
    dense = layer(x.repeat_interleave(2, dim=1))[:, 1::2]
    torch.testing.assert_close(layer(x, rate=2.0), dense)


@pytest.mark.parametrize("kind", [S4, S4D])
def test_half_precision_and_autocast_run_in_float32_inside(kind):
    layer, x = kind(4, 16), sequences(2, 40, 4).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kernel, y = layer.kernel(40), layer(x)
        stepped, state = layer.step(x[:, 0])
    assert kernel.dtype == torch.float32
    assert state.dtype == torch.complex64
    torch.testing.assert_close(kernel, layer.kernel(40))
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)
    torch.testing.assert_close(stepped.float(), layer(x)[:, 0], rtol=0.05, atol=0.05)
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_optimisers_get_the_dynamics_slower_and_without_decay():
    model = nn.Sequential(S4D(4, 8), nn.Linear(4, 4), S4(4, 8), S4D(4, 8, init="real"))
    ordinary, dynamics = parameter_groups(model, lr=0.01, weight_decay=0.1)
    assert (dynamics["lr"], dynamics["weight_decay"]) == (1e-3, 0.0)
    assert (ordinary["lr"], ordinary["weight_decay"]) == (0.01, 0.1)
    assert len(dynamics["params"]) == 3 + 5 + 2  # frequencies of "real" are not trained
    assert len(dynamics["params"]) + len(ordinary["params"]) == sum(
        p.requires_grad for p in model.parameters()
    )
    assert parameter_groups(model, lr=1e-4)[1]["lr"] == 1e-4
    assert len(parameter_groups(nn.Linear(2, 2), lr=0.1)) == 1
    torch.optim.AdamW([ordinary, dynamics])


def test_a_few_steps_of_training_lower_the_loss_and_keep_poles_stable():
    layer, x = S4D(4, 16), sequences(8, 60, 4).float()
    target = torch.roll(x, 9, dims=1)
    optimiser = torch.optim.AdamW(parameter_groups(layer, lr=0.01))
    losses = []
    for _ in range(30):
        loss = (layer(x) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert bool((layer._poles().real < 0).all())


def test_layers_move_through_a_state_dict_and_differ_by_seed():
    one, other = S4(4, 8, seed=1), S4(4, 8, seed=2)
    x = sequences(1, 20, 4).float()
    assert not torch.equal(one(x), other(x))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x))
    assert not any(v.is_complex() for v in one.state_dict().values())


@pytest.mark.parametrize("time", [1, 7, 33])
@pytest.mark.parametrize("chosen", [{}, {"window": 20.0}, {"method": "zoh"}], ids=str)
def test_the_net_with_memory_matches_the_slow_twin(time, chosen):
    net = HiPPORNN(2, 5, HiPPO("legs", 6, **chosen), channels=2).double()
    x = sequences(2, time, 2)
    fast, state = net(x)
    A, B = net.memory.systems(0.0, time)
    twin = torch.stack([naive.naive_gated_memory(row, net, A, B) for row in x])
    torch.testing.assert_close(fast, twin)
    weights = list(net.parameters())
    # One step writes, and nothing reads what it wrote.
    unused = {"allow_unused": True, "materialize_grads": True}
    for ours, theirs in zip(
        torch.autograd.grad(fast.square().sum(), weights, **unused),
        torch.autograd.grad(twin.square().sum(), weights, **unused),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
    assert state.memory.elapsed == time


def test_the_net_writes_to_the_memory_it_was_given():
    net = HiPPORNN(2, 5, HiPPO("legs", 6)).double()
    x = sequences(1, 25, 2)
    outputs, state = net(x)
    written = net.write(outputs)[..., 0]
    torch.testing.assert_close(state.memory.coefficients, net.memory.encode(written).coefficients)


def test_long_runs_of_the_net_work_in_blocks(monkeypatch):
    net, x = HiPPORNN(2, 5, HiPPO("legs", 6)).double(), sequences(1, 25, 2)
    whole, _ = net(x)
    monkeypatch.setattr("trialrun.sequence.hippo._rnn._CACHED", 36 * 4)
    torch.testing.assert_close(net(x)[0], whole)


def test_the_nets_memory_stays_in_float32_under_autocast_and_in_half_precision():
    net, x = HiPPORNN(1, 8, HiPPO("legs", 32)), sequences(2, 200, 1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, state = net(x)
    kept = state.memory.coefficients
    assert kept.dtype == torch.float32
    # What was written is rounded by autocast; remembering it is not.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        written = net.write(outputs)[..., 0]
    expected = net.memory.encode(written.float()).coefficients
    torch.testing.assert_close(kept, expected, rtol=1e-4, atol=1e-5)
    net.bfloat16()
    outputs, state = net(x.bfloat16())
    assert outputs.dtype == torch.bfloat16
    assert state.memory.coefficients.dtype == torch.float32
    expected = net.memory.encode(net.write(outputs)[..., 0]).coefficients
    torch.testing.assert_close(state.memory.coefficients, expected, rtol=1e-2, atol=1e-2)


def test_kept_matrices_are_those_of_the_memory_and_can_be_trained_through():
    net, x = HiPPORNN(2, 6, HiPPO("legs", 4)).double(), sequences(3, 5, 2)
    with torch.inference_mode():
        net(x)
    net(x)[0].square().sum().backward()
    net.memory = HiPPO("legt", 4, window=5.0)
    swapped = net(x)[0]
    net._kept = None
    assert torch.equal(swapped, net(x)[0])


@pytest.mark.usefixtures("no_annotation_checks")
@pytest.mark.parametrize("kind", [S4, S4D])
def test_a_rate_may_be_any_kind_of_number_and_float64_weights_take_float32(kind):
    layer, x = kind(3, 8), sequences(2, 20, 3).float()
    expected = layer(x, rate=2.0)
    torch.testing.assert_close(layer(x, rate=torch.tensor(2.0)), expected)
    with annotations_unchecked():
        torch.testing.assert_close(layer(x, rate=np.float32(2)), expected)
    layer.double()
    whole, (scanned, _) = layer(x), layer.scan(x)
    torch.testing.assert_close(scanned, whole, rtol=1e-4, atol=1e-4)


def test_a_step_may_have_a_rate_for_each_sequence():
    layer, x = S4D(3, 8).double(), sequences(2, 3)
    rates = torch.tensor([0.5, 2.0], dtype=torch.float64)
    y, _ = layer.step(x, rate=rates)
    for b in range(2):
        one, _ = layer.step(x[b : b + 1], rate=float(rates[b]))
        torch.testing.assert_close(y[b : b + 1], one)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: S4D(0, 8), "d_model must be a whole number of at least 1, got 0"),
        (lambda: S4D(2, 7), "d_state must be even"),
        (lambda: S4D(2, 8, init="x"), "init must be one of lin, inv, legs, real, got 'x'"),
        (lambda: S4D(2, 8, disc="euler"), "disc must be one of zoh, bilinear, got 'euler'"),
        (lambda: S4D(2, 8, dt_range=(0.1, 0.01)), "dt_range must hold 0 < low <= high"),
        (lambda: S4D(2, 8, dt_range=0.1), "dt_range must be a pair 0 < low <= high, got 0.1"),
        (
            lambda: S4D(2, 8)(torch.ones(1, 3, 2).double()),
            "x must be of the layer's type .*float32",
        ),
        (lambda: S4D(2, 8).scan(torch.ones(1, 3, 2).double()), "x must be of the layer's type"),
        (lambda: S4D(2, 8).bfloat16()(torch.ones(1, 3, 2)), "x must be of the layer's type"),
        (
            lambda: S4(2, 8).scan(torch.ones(1, 3, 2), rate=torch.ones(1, 3)),
            r"rate must be a number above 0, got a tensor of shape \(1, 3\)",
        ),
        (
            lambda: S4D(2, 8).step(torch.ones(1, 2), rate=torch.ones(3)),
            r"rate must be a number above 0, or of shape \(batch,\) = \(1,\), got shape",
        ),
        (
            lambda: S4D(2, 8).scan(torch.ones(1, 3, 2), rate=torch.full((1, 3), float("inf"))),
            "rate must be finite",
        ),
        (
            lambda: S4D(2, 8).step(torch.ones(3, 2), torch.ones(3, 2, 4)),
            r"state must be complex .* got torch.float32 \(3, 2, 4\)",
        ),
        (
            lambda: HiPPORNN(2, 4, HiPPO("legs", 4))(torch.ones(1, 3, 2), torch.ones(1, 4)),
            "state must be what an earlier call returned, got Tensor",
        ),
        (
            lambda: HiPPORNN(2, 4, HiPPO("legs", 4))(
                torch.ones(1, 3, 2),
                HiPPORNN(2, 4, HiPPO("legt", 4, window=9))(torch.ones(1, 3, 2))[1],
            ),
            "state must be of a memory 'legs order 4', got one of 'legt order 4 window 9'",
        ),
        (
            lambda: HiPPORNN(2, 4, HiPPO("legs", 4))(torch.ones(1, 3, 2).double()),
            "x must be of the net's type",
        ),
        (lambda: parameter_groups(nn.Linear(1, 1), lr="a"), "lr must be a number above 0, got 'a'"),
        (lambda: S4D(2, 8, mix="x"), "mix must be one of glu, linear, none"),
        (lambda: S4D(2, 8, dropout=1.0), "dropout must be at least 0 and at most"),
        (lambda: S4(2, 8, measure="lagt"), "measure must be one of legs, legt, fout"),
        (lambda: S4D(2, 8)(torch.ones(1, 3)), r"x must be a tensor of shape \(batch, time, width"),
        (lambda: S4D(2, 8)(torch.ones(1, 3, 4)), "x must have 2 channels, got 4"),
        (lambda: S4D(2, 8)(np.ones((1, 3, 2))), "got ndarray"),
        (lambda: S4D(2, 8)(torch.ones(1, 3, 2), rate=-1.0), "rate must be a number above 0"),
        (lambda: S4D(2, 8).kernel(0), "length must be a whole number of at least 1"),
        (
            lambda: S4D(2, 8).step(torch.ones(3, 2), S4D(2, 16).start(3)),
            r"= \(3, 2, 4\), got torch.complex64 \(3, 2, 8\): is it another layer's",
        ),
        (
            lambda: S4D(2, 8).scan(torch.ones(1, 3, 2), rate=torch.ones(1, 4)),
            r"rate must be finite, above 0 and of shape \(batch, time\) = \(1, 3\)",
        ),
        (
            lambda: S4D(2, 8).scan(torch.ones(1, 3, 2), rate=torch.zeros(1, 3)),
            "rate must be finite, above 0 and of shape",
        ),
        (lambda: HiPPORNN(2, 4, "legs"), "memory must be a HiPPO, got str"),
        (lambda: HiPPORNN(2, 4, HiPPO("legs", 4))(torch.ones(1, 3, 3)), "x must have 2 features"),
        (
            lambda: HiPPORNN(2, 4, HiPPO("legs", 4))(
                torch.ones(1, 3, 2), HiPPORNN(2, 5, HiPPO("legs", 4))(torch.ones(1, 3, 2))[1]
            ),
            "is it another net's",
        ),
        (lambda: parameter_groups(nn.Linear(1, 1), lr=-1), "lr must be a number above 0, got -1"),
        (lambda: parameter_groups(nn.Identity(), lr=0.1), "at least one parameter to train"),
    ],
)
def test_bad_input_is_one_clear_sentence(call, message):
    with annotations_unchecked(), pytest.raises(ValueError, match=message):
        call()
