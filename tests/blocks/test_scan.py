"""The parallel scan and the FFT convolution: parity with loops, gradients, bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conformance.watch import annotations_unchecked
from tests.naive.hippo import naive_conv, naive_scan
from trialrun.blocks.convolution import causal_conv, smooth_length
from trialrun.blocks.scan import linear_scan

KINDS = [torch.float64, torch.complex128]


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("time", [1, 2, 7, 8, 9, 16, 17, 63, 100])
@pytest.mark.parametrize("factors", ["own", "shared", "scalar"])
def test_values_and_gradients_match_the_loop(time, dtype, factors):
    shape = {"own": (2, time, 3), "shared": (3,), "scalar": ()}[factors]
    parts = [
        (0.6 * random(*shape, seed=1, dtype=dtype)).requires_grad_(),
        random(2, time, 3, seed=2, dtype=dtype).requires_grad_(),
        random(2, 3, seed=3, dtype=dtype).requires_grad_(),
    ]
    fast = linear_scan(*parts)
    slow = naive_scan(parts[0].expand(2, time, 3), *parts[1:])
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    weight = random(2, time, 3, seed=4, dtype=dtype)
    grads = [
        torch.autograd.grad((out * weight).sum().abs().square(), parts) for out in (fast, slow)
    ]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("time", [1, 9])
def test_first_and_second_derivatives_are_those_of_differences(time, dtype):
    parts = tuple(
        v.requires_grad_()
        for v in (
            random(1, time, 2, seed=1, dtype=dtype),
            random(1, time, 2, seed=2, dtype=dtype),
            random(1, 2, seed=3, dtype=dtype),
        )
    )
    assert torch.autograd.gradcheck(linear_scan, parts)
    assert torch.autograd.gradgradcheck(linear_scan, parts)


def test_real_factors_on_complex_inputs_get_real_gradients():
    a = torch.full((4,), 0.5, dtype=torch.float64, requires_grad=True)
    b = random(2, 9, 4, dtype=torch.complex128)
    linear_scan(a, b).abs().square().sum().backward()
    assert a.grad.dtype == torch.float64


def test_float32_is_as_accurate_as_the_loop_in_float32():
    a, b = torch.sigmoid(random(1, 4096, 8, seed=1)) ** 0.01, random(1, 4096, 8, seed=2)
    exact = naive_scan(a, b, torch.zeros(1, 8))
    for got in (linear_scan(a.float(), b.float()), naive_scan(a.float(), b.float(), 0.0)):
        assert (got - exact).norm() / exact.norm() < 2e-6


def test_a_scan_goes_on_where_another_ended():
    a, b = 0.9 * random(2, 50, 3, seed=1).tanh(), random(2, 50, 3, seed=2)
    whole = linear_scan(a, b)
    first = linear_scan(a[:, :13], b[:, :13])
    second = linear_scan(a[:, 13:], b[:, 13:], first[:, -1])
    torch.testing.assert_close(torch.cat([first, second], 1), whole)


def test_inputs_are_left_alone_and_vmap_works():
    a, b = 0.5 * random(4, 2, 20, 3, seed=1), random(4, 2, 20, 3, seed=2)
    before = a.clone(), b.clone()
    torch.testing.assert_close(
        torch.vmap(linear_scan)(a, b), torch.stack([linear_scan(*p) for p in zip(a, b)])
    )
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((torch.ones(3), torch.ones(3)), r"b must have shape \(batch, time, ...\)"),
        ((torch.ones(1), torch.ones(2, 0, 3)), "with at least one step"),
        ((torch.ones(2, 4, 3), torch.ones(2, 5, 3)), r"a must broadcast .* got \(2, 4, 3\)"),
        ((torch.ones(1), torch.ones(2, 5, 3), torch.ones(4)), r"initial must broadcast .*\(2, 3\)"),
        ((torch.ones(1, 2, 5, 3), torch.ones(2, 5, 3)), "a must broadcast"),
        ((0.5, torch.ones(2, 5, 3)), "a must be a tensor, got float"),
        ((torch.ones(1), [[1.0]]), "b must be a tensor, got list"),
        ((torch.ones(1), torch.ones(2, 5), 0.0), "initial must be a tensor, got float"),
    ],
)
def test_a_scan_of_wrong_shapes_is_refused(parts, message):
    with annotations_unchecked(), pytest.raises(ValueError, match=message):
        linear_scan(*parts)


@pytest.mark.parametrize(("time", "taps"), [(1, 1), (7, 7), (63, 63), (63, 5), (7, 63)])
def test_convolution_and_its_gradients_match_the_loop(time, taps):
    u = random(time, seed=1).requires_grad_()
    kernel = random(taps, seed=2).requires_grad_()
    padded = torch.nn.functional.pad(kernel, (0, max(0, time - taps)))
    fast, slow = causal_conv(u, kernel), naive_conv(padded, u)
    torch.testing.assert_close(fast, slow, rtol=1e-11, atol=1e-11)
    for ours, theirs in zip(
        torch.autograd.grad(fast.square().sum(), (u, kernel)),
        torch.autograd.grad(slow.square().sum(), (u, kernel)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 100_000))
def test_padded_lengths_are_the_next_smooth_numbers(least):
    def is_smooth(n):
        for p in (2, 3, 5):
            while n % p == 0:
                n //= p
        return n == 1

    found = smooth_length(least)
    assert found >= least
    assert is_smooth(found)
    assert not any(is_smooth(n) for n in range(least, found))


def test_half_precision_is_convolved_in_float32():
    u, kernel = random(2, 500, seed=1).bfloat16(), random(2, 500, seed=2).bfloat16()
    exact = causal_conv(u.double(), kernel.double())
    found = causal_conv(u, kernel)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=0.3)


def test_an_empty_convolution_is_refused():
    with pytest.raises(ValueError, match="kernel must have at least one entry"):
        causal_conv(torch.ones(3), torch.ones(0))
    with annotations_unchecked(), pytest.raises(ValueError, match="signal must be a tensor"):
        causal_conv([1.0], torch.ones(1))
    with pytest.raises(ValueError, match="least must be at least 1, got 0"):
        smooth_length(0)
