"""Attention with log-sum-exp: every shape of pairs, forward and backward, on every back end."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trialrun.blocks.attention import (
    Attended,
    attend,
    banded_causal,
    merge_lse,
    pick_backend,
    shifted_causal,
)


def _slow(q, k, v, nearest, window):
    """One query at a time over the keys with nearest <= distance < nearest + window."""
    group = q.shape[1] // k.shape[1]
    outs, lses = [], []
    for i in range(q.shape[2]):
        here = k.shape[2] - q.shape[2] + i
        seen = [j for j in range(k.shape[2]) if nearest <= here - j < nearest + window]
        for h in range(q.shape[1]):
            if not seen:
                outs.append(torch.zeros(q.shape[0], v.shape[3], dtype=q.dtype))
                lses.append(torch.full((q.shape[0],), -math.inf, dtype=q.dtype))
                continue
            keys, values = k[:, h // group, seen], v[:, h // group, seen]
            scores = (keys @ q[:, h, i, :, None])[..., 0] / math.sqrt(q.shape[3])
            outs.append((scores.softmax(-1)[..., None] * values).sum(1))
            lses.append(scores.exp().sum(-1).log())
    shape = (q.shape[2], q.shape[1])
    out = torch.stack(outs).unflatten(0, shape).permute(2, 1, 0, 3)
    return out, torch.stack(lses).unflatten(0, shape).permute(2, 1, 0)


def _inputs(queries, keys, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)

    def make(heads, time):
        x = torch.randn(2, heads, time, 8, generator=draw, dtype=torch.float64)
        return x.to(dtype).requires_grad_()

    return make(4, queries), make(2, keys), make(2, keys)


def _gradients(found, inputs, seed=1):
    draw = torch.Generator().manual_seed(seed)
    up = torch.randn(found[0].shape, generator=draw, dtype=torch.float64).to(found[0].dtype)
    up_lse = torch.randn(found[1].shape, generator=draw, dtype=torch.float64).to(found[1].dtype)
    kept = found[1].isfinite()
    total = (found[0] * up).sum() + found[1].masked_select(kept).dot(up_lse.masked_select(kept))
    return torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 7), (7, 7), (3, 20), (13, 20), (63, 63)])
@pytest.mark.parametrize("reach", [1, 5, 20, 70])
def test_band_and_shift_match_the_slow_twin_with_gradients(backend, queries, keys, reach):
    inputs = _inputs(queries, keys)
    for fast, slow in (
        (banded_causal(*inputs, window=reach, backend=backend), _slow(*inputs, 0, reach)),
        (shifted_causal(*inputs, shift=reach, backend=backend), _slow(*inputs, reach, keys)),
    ):
        torch.testing.assert_close(tuple(fast), slow, atol=1e-11, rtol=1e-9)
        if slow[1].isfinite().any():
            mine, theirs = _gradients(fast, inputs), _gradients(slow, inputs)
            torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("queries", [1, 7, 20])
def test_flex_agrees_where_it_has_no_gradient(queries):
    inputs = _inputs(queries, 20)
    with torch.no_grad():
        for kind, reach in ((banded_causal, "window"), (shifted_causal, "shift")):
            flex = kind(*inputs, **{reach: 5}, backend="flex")
            torch.testing.assert_close(tuple(flex), tuple(kind(*inputs, **{reach: 5})))


def test_flex_says_that_it_has_no_gradient_on_cpu():
    with pytest.raises(ValueError, match=r"flex.*no gradient on cpu.*sdpa"):
        banded_causal(*_inputs(7, 7), window=3, backend="flex")


@pytest.mark.parametrize(("dtype", "loose"), [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_sixteen_bit_keeps_the_log_sum_exp_in_float32(dtype, loose):
    q, k, v = _inputs(63, 63, dtype=dtype)
    found = banded_causal(q * 8, k, v, window=9)
    exact = _slow(q.double() * 8, k.double(), v.double(), 0, 9)
    assert found.out.dtype == dtype
    assert found.lse.dtype == torch.float32
    torch.testing.assert_close(found.out.double(), exact[0], atol=loose * 8, rtol=loose)


def test_parts_of_a_softmax_merge_to_the_whole_with_gradients():
    inputs = _inputs(20, 20)
    parts = [banded_causal(*inputs, window=6), shifted_causal(*inputs, shift=6)]
    whole = attend(*inputs)
    merged = merge_lse(parts)
    torch.testing.assert_close(tuple(merged), tuple(whole))
    torch.testing.assert_close(_gradients(merged, inputs), _gradients(whole, inputs))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**20), st.integers(1, 30), st.integers(1, 30))
def test_merging_does_not_depend_on_where_the_keys_are_split(seed, a, b):
    q, k, v = (x.detach() for x in _inputs(17, 17, seed))
    joined = [
        merge_lse([banded_causal(q, k, v, window=w), shifted_causal(q, k, v, shift=w)]).out
        for w in (a, b)
    ]
    torch.testing.assert_close(*joined)


def test_queries_without_any_key_merge_to_zero_and_not_to_nan():
    empty = Attended(torch.zeros(1, 1, 1, 2), torch.full((1, 1, 1), -math.inf).requires_grad_())
    merged = merge_lse([empty, empty])
    assert torch.equal(merged.out, torch.zeros(1, 1, 1, 2))
    assert torch.equal(merged.lse, torch.full((1, 1, 1), -math.inf))


def test_values_of_another_width_fall_back_to_the_eager_kernel():
    q, k, v = (x.detach() for x in _inputs(7, 7))
    wide = torch.cat((v, v), dim=-1)
    assert pick_backend("auto", q, wide) == "eager"
    torch.testing.assert_close(attend(q, k, wide).out[..., :8], attend(q, k, v).out)
    with pytest.raises(ValueError, match="choose backend 'flex' or 'eager'"):
        attend(q, k, wide, backend="sdpa")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 3, 7, 8)}, "multiple"),
        ({"k": torch.zeros(2, 2, 5, 8)}, "v must have"),
        ({"q": torch.zeros(2, 4, 9, 8)}, "at most 7"),
        ({"q": torch.zeros(2, 4, 7)}, r"q must have shape \(batch, heads, time, width\)"),
        ({"v": torch.zeros(2, 2, 7, 8).half()}, "one floating dtype"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    good = {name: torch.zeros(2, h, 7, 8) for name, h in (("q", 4), ("k", 2), ("v", 2))}
    # Where annotations are checked too, a shape that breaks one is caught by that check first.
    with pytest.raises((ValueError, TypeError)) as caught:
        attend(**{**good, **change})
    assert caught.type is not ValueError or re.search(message, str(caught.value))
