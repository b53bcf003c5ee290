"""Matrices, discretisations and the memory: parity with the slow twin, and with integrals."""

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad_vec
from scipy.special import eval_genlaguerre, eval_legendre, gamma

from tests.conformance.watch import annotations_unchecked
from tests.naive import hippo as naive
from trialrun.material.curves import band_limited_noise
from trialrun.sequence.hippo import MEASURES, HiPPO, HiPPOState, discretise, nplr, transition

METHODS = ["forward", "backward", "bilinear", "zoh"]


def signal(length, batch=2, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, dtype=torch.float64, generator=random)


def smooth(t):
    return math.sin(2.2 * t) + 0.4 * math.cos(5 * t + 1) + 0.2 * t


# What each measure's basis is, as a function of age; the state is the integral over the past.
def _legendre(n, y):
    return math.sqrt(2 * n + 1) * eval_legendre(n, 1 - 2 * y)


def _lmu(n, y):
    # The orthonormal coefficients in the Legendre Memory Unit's scaling.
    return (2 * n + 1) * (-1) ** n * eval_legendre(n, 1 - 2 * y)


def _fourier(n, y):
    wave = math.cos if n % 2 == 0 else math.sin
    return 1.0 if n == 0 else math.sqrt(2) * wave(2 * math.pi * (n // 2) * y)


def _tilted(n, y, alpha=0.3, beta=0.2):
    norm = math.sqrt(gamma(n + 1) / gamma(n + alpha + 1))
    scale = gamma(1 - alpha) ** -0.5 * beta ** ((1 - alpha) / 2)
    return scale * norm * eval_genlaguerre(n, alpha, y) * math.exp(-0.5 * (1 + beta) * y)


INTEGRALS = {
    "lagt": (lambda n, y: eval_genlaguerre(n, 0, y) * math.exp(-0.5 * y), {}),
    "glagt": (_tilted, {"alpha": 0.3, "beta": 0.2}),
    "foud": (lambda n, y: _fourier(n, y) * math.exp(-0.5 * y), {}),
}


@pytest.mark.parametrize("measure", INTEGRALS)
def test_decaying_measures_satisfy_their_differential_equation(measure):
    basis, settings_ = INTEGRALS[measure]
    order, t = 6, 1.7
    A, B = (v.numpy() for v in transition(measure, order, **settings_))

    def coefficients(at):
        # The sine of frequency 0 is unused, and zero.
        return quad_vec(
            lambda y: smooth(at - y) * np.array([basis(n, y) for n in range(order)]),
            0,
            60,
            epsabs=1e-11,
            epsrel=1e-11,
        )[0]

    h = 1e-3
    slope = (coefficients(t + h) - coefficients(t - h)) / (2 * h)
    np.testing.assert_allclose(slope, A @ coefficients(t) + B * smooth(t), atol=2e-5)


@pytest.mark.parametrize("measure", ["legs", "legt", "lmu"])
def test_polynomial_measures_satisfy_their_differential_equation_on_polynomials(measure):
    order, t = 5, 1.3
    A, B = (v.numpy() for v in transition(measure, order))
    basis = _lmu if measure == "lmu" else _legendre

    def u(s):
        return 1 - 2 * s + 0.5 * s**2 + 0.3 * s**4

    def coefficients(at):
        span = at if measure == "legs" else 1.0
        return quad_vec(
            lambda y: u(at - y * span) * np.array([basis(n, y) for n in range(order)]), 0, 1
        )[0]

    h = 1e-4
    slope = (coefficients(t + h) - coefficients(t - h)) / (2 * h)
    # Exact, since a polynomial of lower degree than the order is held exactly.
    right = A @ coefficients(t) + B * u(t)
    np.testing.assert_allclose(slope, right / t if measure == "legs" else right, atol=1e-6)


def test_the_fourier_window_follows_a_periodic_signal_exactly():
    order, t = 6, 0.4
    A, B = (v.numpy() for v in transition("fout", order))

    def u(s):
        return 0.3 + math.cos(2 * math.pi * s) - 2 * math.sin(4 * math.pi * s + 1)

    def coefficients(at):
        found = quad_vec(
            lambda y: u(at - y) * np.array([_fourier(n, y) for n in range(order)]), 0, 1
        )[0]
        return np.where(np.arange(order) == 1, 0, found)

    h = 1e-4
    slope = (coefficients(t + h) - coefficients(t - h)) / (2 * h)
    np.testing.assert_allclose(slope, A @ coefficients(t) + B * u(t), atol=2e-5)


@pytest.mark.parametrize("order", [1, 7, 63])
def test_legs_and_lmu_are_those_of_the_papers_formulas(order):
    for measure, twin in (("legs", naive.naive_legs), ("lmu", naive.naive_lmu)):
        for ours, theirs in zip(transition(measure, order), twin(order), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=0)


def test_legt_is_lmu_in_an_orthonormal_basis():
    n = torch.arange(9, dtype=torch.float64)
    scale = (-1.0) ** n / torch.sqrt(2 * n + 1)
    A, B = transition("lmu", 9)
    ours = transition("legt", 9)
    torch.testing.assert_close(ours.A, scale[:, None] * A / scale)
    torch.testing.assert_close(ours.B, scale * B)


def test_legsd_is_the_normal_part_of_legs_and_foud_and_lagt_have_their_spectra():
    A = transition("legsd", 16).A
    torch.testing.assert_close(A @ A.T, A.T @ A)
    torch.testing.assert_close(A + A.T, -torch.eye(16, dtype=torch.float64))
    torch.testing.assert_close(transition("legsd", 16).B, 0.5 * transition("legs", 16).B)
    assert torch.linalg.eigvals(transition("foud", 8).A).real.tolist() == pytest.approx([-0.5] * 8)
    assert transition("lagt", 3).A.diagonal().tolist() == [-0.5] * 3
    torch.testing.assert_close(transition("glagt", 4, beta=1e-9).A, transition("lagt", 4).A)


@pytest.mark.parametrize("measure", ["legs", "legt", "fout"])
@pytest.mark.parametrize("order", [2, 8, 64])
def test_diagonal_plus_low_rank_gives_the_matrix_back(measure, order):
    form = nplr(measure, order)
    V, poles, P = (torch.cat([v, v.conj()], dim=-1) for v in (form.V, form.poles, form.P))
    A = V @ (torch.diag(poles) - P.T @ P.conj()) @ V.conj().T
    expected, B = transition(measure, order)
    scale = float(expected.abs().max())
    assert float((A - expected).abs().max()) < 1e-12 * scale
    torch.testing.assert_close(2 * (form.V @ form.B).real, B, rtol=1e-10, atol=1e-10)
    assert len(P) == (2 if measure == "legt" else 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("measure", ["legs", "legt", "lagt"])
def test_discrete_matrices_match_the_slow_twin(measure, method):
    A, B = transition(measure, 6)
    for step in (0.5, 0.01):
        for ours, theirs in zip(
            discretise(A, B, step, method), naive.naive_discrete(A, B, step, method), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
    several = discretise(A, B, torch.tensor([0.5, 0.01]), method)
    torch.testing.assert_close(several.A[1], discretise(A, B, 0.01, method).A)


def test_the_general_method_holds_the_three_others():
    A, B = transition("legs", 5)
    for share, name in ((0.0, "forward"), (0.5, "bilinear"), (1.0, "backward")):
        for ours, theirs in zip(
            discretise(A, B, 0.1, "gbt", share=share), discretise(A, B, 0.1, name), strict=True
        ):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("time", [1, 7, 63])
def test_scale_free_memory_and_its_gradient_match_the_slow_twin(method, time):
    order = 4 if method == "forward" else 9
    u = signal(time).requires_grad_()
    A, B = transition("legs", order)
    fast = HiPPO("legs", order, method=method).states(u)
    slow = torch.stack([naive.naive_scaled_memory(A, B, row, method) for row in u])
    torch.testing.assert_close(fast, slow, rtol=1e-7, atol=1e-8)
    (ours,) = torch.autograd.grad(fast.square().sum(), u, retain_graph=True)
    (theirs,) = torch.autograd.grad(slow.square().sum(), u)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_scale_free_memory_of_uneven_samples_matches_the_slow_twin(method):
    u = signal(20)
    times = torch.linspace(0.3, 1.7, 20).cumsum(0).double() + 3
    A, B = transition("legs", 4)
    slow = torch.stack([naive.naive_scaled_memory(A, B, r, method, times=times) for r in u])
    memory = HiPPO("legs", 4, method=method)
    torch.testing.assert_close(memory.states(u, times=times), slow, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("time", [1, 7, 63])
def test_fixed_step_memory_and_its_gradient_match_the_slow_twin(measure, time):
    u = signal(time).requires_grad_()
    A, B = transition(measure, 6)
    for method in ("bilinear", "zoh"):
        fast = HiPPO(measure, 6, method=method, window=20).states(u)
        slow = [naive.naive_fixed_memory(A, B, row, method, 1 / 20) for row in u]
        torch.testing.assert_close(fast, torch.stack(slow), rtol=1e-7, atol=1e-8)
        (ours,) = torch.autograd.grad(fast.square().sum(), u)
        (theirs,) = torch.autograd.grad(torch.stack(slow).square().sum(), u)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


SETTINGS = [
    {"measure": "legs", "method": method, "share": 0.7 if method == "gbt" else None}
    for method in ("backward", "bilinear", "zoh", "gbt")
] + [{"measure": m, "window": 30.0} for m in MEASURES]


@pytest.mark.parametrize("chosen", SETTINGS, ids=str)
def test_steps_sweeps_pieces_times_and_matrices_agree(chosen):
    memory, u = HiPPO(order=8, **chosen), signal(1100)
    state = None
    for t in range(60):
        state = memory.step(u[:, t], state)
    every = memory.states(u)
    torch.testing.assert_close(state.coefficients, every[:, 59], rtol=1e-8, atol=1e-9)
    whole = memory.encode(u)
    torch.testing.assert_close(whole.coefficients, every[:, -1], rtol=1e-8, atol=1e-9)
    pieces = memory.encode(u[:, 37:], memory.encode(u[:, :37]))
    torch.testing.assert_close(pieces.coefficients, whole.coefficients, rtol=1e-8, atol=1e-9)
    assert pieces.elapsed == whole.elapsed == 1100
    timed = memory.encode(u[:, :90], times=torch.arange(1.0, 91.0))
    torch.testing.assert_close(timed.coefficients, every[:, 89], rtol=1e-8, atol=1e-9)
    A, B = memory.systems(60.0, 5)
    found = state.coefficients
    for t in range(5):
        found = found @ A[t].T + u[:, 60 + t, None] * B[t]
    torch.testing.assert_close(found, every[:, 64], rtol=1e-8, atol=1e-9)


def test_the_first_sample_stands_for_a_constant_past():
    memory = HiPPO("legs", 5)
    state = memory.step(torch.tensor([3.0]))
    assert state.coefficients.tolist() == [[3.0, 0.0, 0.0, 0.0, 0.0]]
    constant = memory.encode(torch.full((1, 200), 3.0))
    torch.testing.assert_close(constant.coefficients, state.coefficients, atol=1e-5, rtol=0)
    assert memory.encode(torch.tensor([[3.0]])).coefficients.tolist() == [[3.0, 0, 0, 0, 0]]


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 200), st.floats(0.1, 50.0))
def test_scale_free_memory_does_not_know_the_unit_of_time(length, unit):
    u, memory = signal(length), HiPPO("legs", 6)
    times = torch.arange(1, length + 1).double()
    one, other = memory.encode(u, times=times), memory.encode(u, times=unit * times)
    torch.testing.assert_close(one.coefficients, other.coefficients, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("chosen", "most"),
    [
        ({"measure": "legs"}, 1e-4),
        ({"measure": "legs", "method": "zoh"}, 1e-6),
        ({"measure": "legt", "window": 1200}, 0.01),
        ({"measure": "lmu", "window": 1200}, 0.01),
        ({"measure": "fout", "window": 1200}, 0.01),
        ({"measure": "lagt", "window": 60}, 0.05),
        ({"measure": "glagt", "window": 60}, 0.05),
        ({"measure": "glagt", "window": 60, "alpha": 0.3, "beta": 0.2}, 0.05),
    ],
    ids=str,
)
def test_what_was_remembered_can_be_read_back(chosen, most):
    u = torch.from_numpy(band_limited_noise(4, seed=0, cycles=8).sampled(1200))
    memory = HiPPO(order=48, **chosen)
    # A decaying memory is read as far back as it reaches.
    length = 400 if "lag" in chosen["measure"] else 1200
    found, expected = memory.reconstruct(memory.encode(u), length), u[:, -length:]
    assert float((found - expected).square().mean() / expected.square().mean()) < most


def test_legs_at_a_fixed_step_reads_back_the_recent_past():
    u = torch.from_numpy(band_limited_noise(4, seed=0, cycles=8).sampled(1200))
    memory = HiPPO("legs", 48, window=400)
    found = memory.reconstruct(memory.encode(u), 600)
    assert float((found - u[:, -600:]).square().mean()) < 0.01


def test_a_part_or_chosen_ages_are_read_from_the_same_memory():
    u = torch.from_numpy(band_limited_noise(2, seed=0).sampled(400))
    memory = HiPPO("legs", 32)
    state = memory.encode(u)
    whole = memory.reconstruct(state)
    assert whole.shape == (2, 400)
    torch.testing.assert_close(memory.reconstruct(state, 7), whole[:, -7:])
    torch.testing.assert_close(
        memory.reconstruct(state, ages=torch.tensor([399.5, 0.5])),
        whole[:, [0, -1]],
        rtol=1e-5,
        atol=1e-6,
    )


def test_twenty_thousand_samples_pass_in_float32_without_drift():
    u = torch.from_numpy(band_limited_noise(1, seed=0).sampled(20_000)).float()
    memory = HiPPO("legs", 48)
    ages = torch.arange(0.5, 2e4, 100.0, dtype=torch.float64).flip(0)
    found = memory.reconstruct(memory.encode(u), ages=ages)
    expected = u[:, (20_000 - 0.5 - ages).long()]
    assert float((found - expected).square().mean()) < 1e-3


def test_the_memory_goes_on_forgetting_in_a_stream_of_forty_million():
    begun = HiPPOState(torch.tensor([[1.0, 0, 0, 0]]), 4e7)
    memory = HiPPO("legs", 4)
    found = memory.encode(torch.zeros(1, 400_000), begun).coefficients
    exact = memory.encode(torch.zeros(1, 400_000).double(), begun).coefficients
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-7)
    assert float(exact[0, 0]) == pytest.approx(4e7 / 4.04e7, abs=1e-4)
    # Sample by sample the state must itself be wide enough, and stays as it was begun.
    state = HiPPOState(begun.coefficients.double(), 4e7)
    for _ in range(50):
        state = memory.step(torch.zeros(1), state)
    assert state.coefficients.dtype == torch.float64
    assert 1 - float(state.coefficients[0, 0]) == pytest.approx(50 / 4e7, rel=1e-3)


@pytest.mark.parametrize("method", ["bilinear", "zoh"])
def test_the_time_of_a_single_first_sample_is_kept(method):
    u, times = signal(3), torch.tensor([10.0, 20.0, 25.0])
    memory = HiPPO("legs", 4, method=method)
    first = memory.encode(u[:, :1], times=times[:1])
    assert first.elapsed == 10.0
    pieces = memory.encode(u[:, 1:], first, times=times[1:])
    whole = memory.encode(u, times=times)
    torch.testing.assert_close(pieces.coefficients, whole.coefficients)
    assert pieces.elapsed == whole.elapsed == 25.0


@pytest.mark.parametrize(
    "chosen", [{}, {"method": "zoh"}, {"measure": "legt", "window": 500.0}], ids=str
)
def test_autocast_and_half_precision_are_remembered_in_float32(chosen):
    u = torch.from_numpy(band_limited_noise(2, seed=0).sampled(500)).float()
    memory = HiPPO(order=48, **chosen)
    plain = memory.encode(u)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        state = memory.encode(u)
        back = memory.reconstruct(state)
        stepped = memory.step(u[:, 0], state)
    assert torch.equal(state.coefficients, plain.coefficients)
    assert torch.equal(back, memory.reconstruct(plain))
    assert torch.equal(stepped.coefficients, memory.step(u[:, 0], plain).coefficients)
    for dtype in (torch.bfloat16, torch.float16):
        half = memory.encode(u.to(dtype))
        assert half.coefficients.dtype == torch.float32
        expected = memory.encode(u.to(dtype).float())
        assert torch.equal(half.coefficients, expected.coefficients)
        assert memory.start(u.to(dtype)).coefficients.dtype == torch.float32


@pytest.mark.usefixtures("no_annotation_checks")
def test_numbers_of_numpy_are_numbers():
    memory = HiPPO("legt", np.int64(6), window=np.float32(20))
    u = signal(30)
    expected = HiPPO("legt", 6, window=20.0).encode(u)
    torch.testing.assert_close(memory.encode(u).coefficients, expected.coefficients)
    transition("legs", np.int64(3))


def _seen(measure, **settings):
    return HiPPO(measure, 4, **settings).encode(torch.ones(3, 2))


def test_a_state_says_whose_it_is_and_is_taken_back_by_a_like_memory_and_after_pickling():
    memory, u = HiPPO("legt", 4, window=10), torch.linspace(0, 1, 9)[None]
    assert {s.of for s in (memory.start(u), memory.encode(u), memory.step(u[:, 0]))} == {
        "legt order 4 window 10"
    }
    kept = pickle.loads(pickle.dumps(memory.encode(u)))
    euler = HiPPO("legt", 4, window=10.0, method="backward")
    assert torch.equal(euler.reconstruct(kept), memory.reconstruct(memory.encode(u)))
    byhand = HiPPOState(kept.coefficients, kept.elapsed)
    assert memory.step(u[:, 0], byhand).of == kept.of


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: transition("legx", 4), "measure must be one of legs, .* got 'legx'"),
        (lambda: transition("legs", 0), "order must be a whole number of at least 1, got 0"),
        (lambda: transition("fout", 5), "order must be even for fout, .* use 6"),
        (lambda: transition("legs", 4, beta=1.0), "beta belongs to the measures lagt and glagt"),
        (lambda: transition("lagt", 4, alpha=0.5), "alpha belongs to the measure glagt"),
        (lambda: transition("glagt", 4, alpha=1.0), "alpha must be above -1 and below 1"),
        (
            lambda: discretise(*transition("legs", 2), 0.0),
            "step must be above 0 and finite, got 0.0",
        ),
        (lambda: discretise(*transition("legs", 2), 1.0, "euler"), "method must be one of"),
        (lambda: discretise(*transition("legs", 2), 1.0, "gbt"), r"share must be in \[0, 1\]"),
        (
            lambda: discretise(*transition("legs", 2), 1.0, "bilinear", share=0.5),
            "share belongs to the method gbt",
        ),
        (lambda: discretise(torch.eye(3), torch.ones(2), 1.0), "A must have shape"),
        (lambda: nplr("lagt", 4), "measure must be one of legs, legt, fout, got 'lagt'"),
        (lambda: nplr("legs", 3), "order must be even"),
        (lambda: HiPPO("legt", 4), "window must be given for legt"),
        (lambda: HiPPO("legs", 4, window=0), "window must be a number above 0 samples, got 0"),
        (lambda: HiPPO("legs", 4).encode(torch.ones(3)), r"u must be a tensor of shape \(batch,"),
        (lambda: HiPPO("legs", 4).encode(torch.ones(3, 0)), "with no empty axis"),
        (lambda: HiPPO("legs", 4).encode(torch.ones(3, 2).long()), "real floating-point"),
        (
            lambda: HiPPO("legs", 4).encode(torch.ones(3, 2), times=torch.tensor([2.0, 1.0])),
            "times must increase from above 0 samples",
        ),
        (
            lambda: HiPPO("legs", 4).encode(torch.ones(3, 2), times=torch.ones(3)),
            r"times must be a tensor of shape \(2,\), got \(3,\)",
        ),
        (
            lambda: HiPPO("legs", 4).step(torch.ones(3), interval=0),
            "interval must be a number above 0",
        ),
        (
            lambda: HiPPO("legs", 4).step(torch.ones(3), HiPPO("legs", 5).encode(torch.ones(3, 2))),
            r"coefficients of shape \(batch, order\) = \(3, 4\), got \(3, 5\): is it another",
        ),
        (
            lambda: HiPPO("fout", 4, window=5).step(torch.ones(3), _seen("legt", window=10)),
            "state must be of a memory 'fout order 4 window 5', got one of 'legt order 4 window "
            "10', whose coefficients mean something else: use that memory",
        ),
        (
            lambda: HiPPO("legt", 4, window=5).encode(torch.ones(3, 2), _seen("legt", window=5.5)),
            "'legt order 4 window 5', got one of 'legt order 4 window 5.5'",
        ),
        (
            lambda: HiPPO("legt", 4, window=5).states(torch.ones(3, 2), _seen("legs")),
            "'legt order 4 window 5', got one of 'legs order 4'",
        ),
        (
            lambda: HiPPO("glagt", 4, window=5, alpha=0.5).reconstruct(_seen("glagt", window=5)),
            "'glagt order 4 window 5 alpha 0.5 beta 0.01', got one of 'glagt order 4 window 5 "
            "alpha 0 beta 0.01'",
        ),
        (
            lambda: HiPPO("legs", 4).reconstruct(HiPPOState(torch.zeros(1, 4), 0.0)),
            "the memory is empty",
        ),
        (
            lambda: HiPPO("foud", 4, window=3).reconstruct(HiPPOState(torch.zeros(1, 4), 1.0)),
            "foud has no basis to read a signal from",
        ),
        (
            lambda: HiPPO("legs", 4).reconstruct(HiPPOState(torch.zeros(1, 4), 3.0), 4),
            "length must be from 1 to 3, got 4",
        ),
    ],
)
def test_bad_input_is_one_clear_sentence(call, message):
    with annotations_unchecked(), pytest.raises(ValueError, match=message):
        call()
