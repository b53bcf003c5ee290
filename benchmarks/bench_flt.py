"""FLT's time and memory over length, and its chunked form beside a token loop and softmax.

Run as ``python benchmarks/bench_flt.py``, one thread. A causal attention of width 256 with 4 heads,
64 random features and 32 frequencies each.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from _bench import Row, compare, emit, figure
from bench_rerope import Live
from trialrun.attention.flt import FLTAttention, SpectralRPE

WIDTH, HEADS = 256, 4
LENGTHS = (1024, 2048, 4096, 8192, 16384)


def make(*, causal: bool = True, masked: bool = True) -> FLTAttention:
    """Make the attention that is timed."""
    rpe = SpectralRPE(heads=HEADS, freqs=32, scale=1024.0) if masked else None
    return FLTAttention(WIDTH, HEADS, rpe=rpe, features=64, causal=causal).eval()


def tokens(length: int) -> Tensor:
    """Return random tokens of one sequence."""
    return torch.randn(1, length, WIDTH, generator=torch.Generator().manual_seed(0))


def token_loop(attn: FLTAttention, x: Tensor) -> None:
    """Read token by token, handing the state on."""
    state = None
    for t in range(x.shape[1]):
        _, state = attn.step(x[:, t], state)


def softmax(attn: FLTAttention, x: Tensor) -> Tensor:
    """Attend by PyTorch's own causal kernel, between the same projections."""
    heads = attn.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    found = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
    return attn.out(found.transpose(1, 2).flatten(2))


def trained(attn: FLTAttention, x: Tensor) -> None:
    """Run forward and backward."""
    torch.autograd.grad(attn(x).sum(), tuple(attn.parameters()))


def slope(values: list[float]) -> float:
    """Return the least-squares slope of log value over log length."""
    fit = statistics.linear_regression(
        [math.log(n) for n in LENGTHS], [math.log(v) for v in values]
    )
    return fit.slope


def time_slope(call: Callable[[Tensor], object], repeats: int = 5) -> float:
    """Return the slope of the fastest times, lengths taken in turn."""
    inputs = [tokens(n) for n in LENGTHS]
    best = [math.inf] * len(inputs)
    for x in inputs:
        call(x)
    for _ in range(repeats):
        for i, x in enumerate(inputs):
            began = time.perf_counter()
            call(x)
            best[i] = min(best[i], time.perf_counter() - began)
    return slope(best)


def memory_slope(attn: FLTAttention) -> float:
    """Return the slope of the peak bytes of forward and backward."""
    peaks = []
    for length in LENGTHS:
        x = tokens(length)
        with Live([x, *attn.parameters()]) as live:
            trained(attn, x)
        peaks.append(float(live.peak))
    return slope(peaks)


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    causal, both_ways, plain = make(), make(causal=False), make(masked=False)
    x, longest = tokens(2048), tokens(16384)
    band = {"at_least": 0.85, "at_most": 1.15}
    rows: list[Row] = []
    with torch.no_grad():
        rows += [
            figure("time, causal, slope over 1k to 16k", time_slope(causal), "power", **band),
            figure("time, all to all, slope", time_slope(both_ways), "power", **band),
            compare(
                "causal 2k, chunked / token loop",
                lambda: causal(x),
                lambda: token_loop(causal, x),
                repeats=3,
                faster=True,
                at_least=3.0,
            ),
            compare("causal 2k, with the mask / without", lambda: causal(x), lambda: plain(x)),
            compare(
                "causal 16k, ours / SDPA softmax without a mask",
                lambda: causal(longest),
                lambda: softmax(causal, longest),
                repeats=3,
                faster=True,
            ),
        ]
    rows += [
        figure(
            "time with gradients, slope",
            time_slope(lambda x: trained(causal, x), repeats=2),
            "power",
            **band,
        ),
        figure("peak memory with gradients, slope", memory_slope(causal), "power", **band),
    ]
    emit(
        rows,
        limit="per token and head: features x (width + 2 freqs + value + chunk) multiply-adds, and "
        "the state's features x value numbers handed on once a chunk; linear in length",
    )


if __name__ == "__main__":
    main()
