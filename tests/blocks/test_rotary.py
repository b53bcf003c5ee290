"""What is special about the rotary block."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.naive.rerope import naive_rotate
from trialrun.blocks.rotary import Rotary


def _vectors(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("position", [0.0, 1.0, -3.0, 2.5, 700.0])
def test_half_split_rotation_matches_the_slow_twin(position):
    x = _vectors(1, 8)
    fast = Rotary(8)(x, torch.tensor([position], dtype=torch.float64))
    torch.testing.assert_close(fast[0], naive_rotate(x[0], position))


def test_interleaved_is_half_split_in_another_order():
    x = _vectors(5, 8)
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    at = torch.arange(5)
    split = Rotary(8)(x, at)[:, order]
    torch.testing.assert_close(Rotary(8, interleaved=True)(x[:, order], at), split)


def test_features_beyond_dim_pass_through():
    x = _vectors(3, 10)
    found = Rotary(4)(x, torch.arange(3))
    assert torch.equal(found[:, 4:], x[:, 4:])
    torch.testing.assert_close(found[:, :4], Rotary(4)(x[:, :4], torch.arange(3)))


@settings(max_examples=30, deadline=None)
@given(st.floats(-500, 500), st.floats(-500, 500), st.integers(0, 50))
def test_scores_depend_on_the_difference_of_positions_only(a, b, seed):
    q, k = _vectors(2, 1, 8, seed=seed)
    rotary = Rotary(8)

    def score(i, j):
        places = (torch.tensor([p], dtype=torch.float64) for p in (i, j))
        left, right = (rotary(x, p) for x, p in zip((q, k), places))
        return (left * right).sum()

    torch.testing.assert_close(score(a, b), score(a - b, 0.0), atol=1e-9, rtol=1e-9)


def test_each_row_may_have_positions_of_its_own():
    x = _vectors(2, 3, 4, 8)
    at = torch.tensor([[0, 1, 2, 3], [5, 5, 9, -1]])
    found = Rotary(8)(x, at)
    for row in range(2):
        torch.testing.assert_close(found[row], Rotary(8)(x[row], at[row]))


def test_half_precision_modules_keep_the_table_and_the_input_dtype():
    rotary = Rotary(8).half()
    at = torch.tensor([10_000])
    x = torch.ones(1, 8, dtype=torch.float16)
    exact = Rotary(8)(x.double(), at)
    found = rotary(x, at)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.double(), exact, atol=2e-3, rtol=0)


@pytest.mark.parametrize(("dim", "base"), [(3, 1e4), (0, 1e4), (4, 1.0), (True, 1e4)])
def test_bad_settings_are_refused(dim, base):
    with pytest.raises(ValueError, match=r"dim must be|base must be"):
        Rotary(dim, base)


def test_positions_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="positions must have shape"):
        Rotary(4)(torch.zeros(3, 4), torch.arange(2))
    with pytest.raises(ValueError, match="at least 4 features"):
        Rotary(4)(torch.zeros(3, 2), torch.arange(3))
