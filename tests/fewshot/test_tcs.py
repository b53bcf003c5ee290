import pytest
import torch

from tests.naive.tcs import naive_tcs
from trialrun.fewshot.tcs import Tcs


@pytest.mark.parametrize("time", [1, 7, 63])
def test_output_and_gradient_match_the_slow_twin(time):
    block = Tcs(channels=3).double()
    x = torch.randn(2, time, 3, generator=torch.Generator().manual_seed(time), dtype=torch.float64)
    fast, slow = block(x), naive_tcs(x, block.gain)
    torch.testing.assert_close(fast, slow)
    (fast_grad,) = torch.autograd.grad(fast.square().sum(), block.gain)
    (slow_grad,) = torch.autograd.grad(slow.square().sum(), block.gain)
    torch.testing.assert_close(fast_grad, slow_grad)
