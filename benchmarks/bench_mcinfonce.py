"""Time the sampler of von Mises-Fisher draws against a rejection loop, and a training step.

Run as ``python benchmarks/bench_mcinfonce.py``. One torch thread.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from scipy.special import ive

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the slow twin

from _bench import Row, compare, emit, figure
from tests.naive.mcinfonce import naive_draws
from trialrun.representation.mcinfonce import MCInfoNCELoss, VonMisesFisher, log_ive

S, B, M, D = 16, 256, 17, 10
LIMIT = (
    "a draw needs dim normal numbers and about four uniform ones, so time grows as draws x dim and "
    "memory as the draws themselves; refused draws alone are made again, half of all once more; "
    "the gradient by kappa adds some twenty passes over one number per draw"
)


def _posteriors(kappa: float, grad: bool = False) -> VonMisesFisher:
    random = torch.Generator().manual_seed(0)
    mu = torch.randn(B, M, D, generator=random).requires_grad_(grad)
    return VonMisesFisher(mu, torch.full((B, M), kappa, requires_grad=grad))


def _seconds(call: Callable[[], object], repeats: int = 5) -> float:
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _growth(shape: tuple[int, int]) -> float:
    post = _posteriors(20.0)
    few, many = (_seconds(lambda n=n: post.sample((n,))) for n in shape)
    return math.log(many / few) / math.log(shape[1] / shape[0])


def _against_loop(kappa: float) -> Row:
    post = _posteriors(kappa)
    return compare(
        f"draws at kappa {kappa:g}, {S} x {B} x {M} x {D}: against a rejection loop",
        lambda: post.sample((S,)),
        lambda: naive_draws(post.mu, post.kappa, S),
        faster=True,
        at_least=3,
    )


def _step(loss: MCInfoNCELoss, grad: bool) -> None:
    random = torch.Generator().manual_seed(0)
    mu = torch.randn(2, B, D, generator=random).requires_grad_(grad)
    kappa = torch.full((2, B), 20.0, requires_grad=grad)
    value = loss(*(VonMisesFisher(m, k) for m, k in zip(mu, kappa)))
    if grad:
        value.backward()


def rows() -> list[Row]:
    """Measure all rows."""
    loss, kappa = MCInfoNCELoss(16.0, S), torch.linspace(1, 100, B * M * S).double()
    return [
        *(_against_loop(value) for value in (2.0, 20.0, 1000.0)),
        compare(
            "draws with gradients by mu and kappa, against draws alone",
            lambda: _posteriors(20.0, True).rsample((S,)).sum().backward(),
            lambda: _posteriors(20.0).sample((S,)),
        ),
        compare(
            "loss with rolled negatives, forward and backward against forward",
            lambda: _step(loss, True),
            lambda: _step(loss, False),
        ),
        compare(
            "log Bessel function, order 4, against scipy's ive",
            lambda: log_ive(4.0, kappa),
            lambda: ive(4.0, kappa.numpy()),
        ),
        figure("time of draws grows with their number to the power", _growth((4, 32)), "exponent"),
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    emit(rows(), limit=LIMIT)
