"""Time S4D's ways to run one another and the recurrence, and the memory against its steps.

Run as ``python benchmarks/bench_hippo.py``. One torch thread.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from _bench import Row, compare, emit, figure
from trialrun.blocks.scan import linear_scan
from trialrun.sequence.hippo import S4, S4D, HiPPO

LIMIT = (
    "the convolution is three FFTs of twice the length per channel, O(L log L), and a kernel of "
    "O(L x state); the scan is bound by memory: it reads and writes about 3 x 16 bytes per step, "
    "channel and pair of poles, and then some for its rounds; the recurrence is bound by the cost "
    "of a call per step; memory of the kernel grows as L + state x sqrt(L) per channel"
)
WIDTH, STATE, BATCH = 16, 32, 2


def _seconds(call: Callable[[], object], repeats: int = 5) -> float:
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _input(length: int) -> Tensor:
    return torch.randn(BATCH, length, WIDTH, generator=torch.Generator().manual_seed(0))


def _stepped(layer: S4D, x: Tensor) -> Tensor:
    """Run the plain recurrence over the states, its factors computed once."""
    state = layer.start(len(x))
    log, weight = layer._discrete(1.0)
    factor, weight = torch.exp(log).to(state.dtype), weight.to(state.dtype)
    C, outputs = torch.view_as_complex(layer.C), []
    for now in x.unbind(1):
        state = torch.addcmul(weight * now[..., None], factor, state)
        outputs.append(2 * (state * C).real.sum(-1))
    return layer._mixed(torch.stack(outputs, dim=1), x)


def _crossover(quick: Callable[[Tensor], object], slow: Callable[[Tensor], object]) -> float:
    """Return the least power of two from which ``quick`` is faster, at it and twice beyond."""
    won = 0
    for power in range(15):
        x = _input(2**power)
        won = won + 1 if _seconds(lambda x=x: quick(x)) < _seconds(lambda x=x: slow(x)) else 0
        if won == 3:
            return 2.0 ** (power - 2)
    return math.inf


def _loop(a: Tensor, b: Tensor) -> Tensor:
    state, out = torch.zeros_like(b[:, 0]), []
    for t in range(b.shape[1]):
        state = a[:, t] * state + b[:, t]
        out.append(state)
    return torch.stack(out, dim=1)


def _remember(memory: HiPPO, u: Tensor) -> None:
    state = None
    for now in u.unbind(1):
        state = memory.step(now, state)


def _direct(layer: S4D, length: int, kind: torch.dtype) -> Tensor:
    """Return the kernel from every pole's power at every step, without the product of two."""
    log, weight = layer._discrete(1.0)
    powers = torch.exp(log[..., None] * torch.arange(length)).to(kind)
    C = torch.view_as_complex(layer.C.double()) * weight
    return 2 * torch.einsum("hn,hnl->hl", C.to(kind), powers).real


def _kernel_error(length: int) -> float:
    layer, worst = S4D(WIDTH, 64), 0.0
    for init in ("lin", "inv", "legs"):
        layer = S4D(WIDTH, 64, init=init)
        exact = _direct(layer, length, torch.complex128)
        error = (layer.kernel(length) - exact).abs().amax(1) / exact.abs().amax(1)
        worst = max(worst, float(error.max()))
    return worst


def _exponent(call: Callable[[int], object], short: int, long: int) -> float:
    few, many = (_seconds(lambda n=n: call(n), 7) for n in (short, long))
    return math.log(many / few) / math.log(long / short)


@torch.no_grad()
def rows() -> list[Row]:
    """Measure all rows."""
    layer, low_rank = S4D(WIDTH, STATE), S4(WIDTH, STATE)
    x, u = _input(1024), torch.randn(8, 2000, generator=torch.Generator().manual_seed(1))
    memory = HiPPO("legs", 64)
    b = torch.randn(2, 4096, 64, generator=torch.Generator().manual_seed(2))
    a = torch.sigmoid(b)
    return [
        figure(
            "S4D kernel in float32 at 65,536 steps, largest error",
            _kernel_error(65_536),
            "of the largest value",
            at_most=1e-4,
        ),
        compare(
            "S4D, 1024 steps: FFT convolution against the recurrence",
            lambda: layer(x),
            lambda: _stepped(layer, x),
            repeats=5,
            faster=True,
            at_least=3,
        ),
        compare(
            "S4D, 1024 steps: scan against the recurrence",
            lambda: layer.scan(x),
            lambda: _stepped(layer, x),
            repeats=5,
            faster=True,
        ),
        compare(
            "S4D, 1024 steps: FFT convolution against the scan",
            lambda: layer(x),
            lambda: layer.scan(x),
            faster=True,
        ),
        figure(
            "S4D: length from which the convolution beats the recurrence",
            _crossover(layer, lambda x: _stepped(layer, x)),
            "steps",
            at_most=32,
        ),
        figure(
            "S4D: length from which the scan beats the recurrence",
            _crossover(layer.scan, lambda x: _stepped(layer, x)),
            "steps",
        ),
        figure(
            "S4D: length from which the convolution beats the scan",
            _crossover(layer, layer.scan),
            "steps",
        ),
        compare(
            "linear_scan, 2 x 4096 x 64, own factors, against the loop",
            lambda: linear_scan(a, b),
            lambda: _loop(a, b),
            faster=True,
        ),
        compare(
            "S4D kernel, 16,384 steps, against all powers one by one",
            lambda: layer.kernel(16_384),
            lambda: _direct(layer, 16_384, torch.complex64),
            faster=True,
            at_least=5,
        ),
        compare(
            "S4 kernel, 1024 steps, against S4D's",
            lambda: low_rank.kernel(1024),
            lambda: layer.kernel(1024),
        ),
        compare(
            "LegS memory, 8 x 2000, order 64: one sweep against O(order) steps",
            lambda: memory.encode(u),
            lambda: _remember(memory, u),
            repeats=3,
            faster=True,
            at_least=5,
        ),
        figure(
            "S4D convolution: growth of time, 1024 to 16,384 steps",
            _exponent(lambda n: layer(_input(n)), 1024, 16_384),
            "power of length",
            at_most=1.25,
        ),
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    emit(rows(), limit=LIMIT)
