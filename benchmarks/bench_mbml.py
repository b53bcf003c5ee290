"""Time the exact predictors against plain recursion and against one symbol at a time.

Run as ``python benchmarks/bench_mbml.py``. One torch thread.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the slow twins

from _bench import Row, compare, emit, figure
from tests.naive import mbml as naive
from trialrun.sequence.mbml import LIN, PTW, PrunedLIN

LIMIT = (
    "per symbol and level PTW needs one logaddexp, one sigmoid and a few table reads, about 10 ns, "
    "so 10 levels allow some 10 million symbols a second on a core; PTW grows as length x "
    "log(length), exact LIN as length squared (one exp and two table reads per start), PrunedLIN "
    "as length x log(length); memory grows as length (times symbols) for all"
)


def _symbols(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, 2, (batch, length), generator=torch.Generator().manual_seed(0))


def _best_seconds(call: Callable[[], object], repeats: int = 5) -> float:
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return sorted(times)[repeats // 2]


def _stream(predictor: PTW | LIN | PrunedLIN, symbols: list[int]) -> None:
    predictor.reset()
    for symbol in symbols:
        predictor.update(symbol)


def _slope(predictor_of: Callable[[int], PTW | LIN], batch: int, short: int, long: int) -> float:
    """Return the exponent with which time grows from one length to another."""
    few, many = (_symbols(batch, length) for length in (short, long))
    seconds = [_best_seconds(lambda x=x: predictor_of(x.shape[1]).predict(x)) for x in (few, many)]
    return math.log(seconds[1] / seconds[0]) / math.log(long / short)


def rows() -> list[Row]:
    """Measure all rows."""
    wide, x, few = _symbols(256, 1024), _symbols(64, 1024), _symbols(2, 32)
    words, stream = few.tolist(), _symbols(1, 2048)[0].tolist()
    ptw, lin = PTW(16), LIN()
    return [
        figure(
            "PTW predict, batch 256, length 1024, depth 16",
            wide.numel() / _best_seconds(lambda: ptw.predict(wide)) / 1e6,
            "million symbols/s",
            at_least=1.0,
        ),
        figure(
            "LIN predict, exact, batch 64, length 1024",
            _best_seconds(lambda: lin.predict(x)),
            "s",
            at_most=1.0,
        ),
        compare(
            "PTW predict, 2 x 32, against the plain recursion",
            lambda: PTW(5).predict(few),
            lambda: [naive.ptw(w[:t], 5, 2) for w in words for t in range(len(w))],
            repeats=9,
            faster=True,
        ),
        compare(
            "LIN predict, 2 x 32, against the plain recursion",
            lambda: lin.predict(few),
            lambda: [naive.lin(w, 2) for w in words],
            repeats=9,
            faster=True,
        ),
        compare(
            "PTW predict, 1 x 2048, against one symbol at a time",
            lambda: ptw.predict(torch.tensor([stream])),
            lambda: _stream(ptw, stream),
            repeats=9,
            faster=True,
        ),
        compare(
            "PrunedLIN stream, 8192 symbols, against exact LIN's",
            lambda: _stream(PrunedLIN(), stream * 4),
            lambda: _stream(lin, stream * 4),
            repeats=3,
            faster=True,
        ),
        figure(
            "PTW: growth of time, length 1024 to 16384, batch 16",
            _slope(lambda length: PTW(heights(length)), 16, 1024, 16384),
            "power of length",
            at_most=1.25,
        ),
        figure(
            "LIN: growth of time, length 512 to 2048, batch 32",
            _slope(lambda _: LIN(), 32, 512, 2048),
            "power of length",
            at_most=2.1,
        ),
    ]


def heights(length: int) -> int:
    """Return the least depth that reads ``length`` symbols."""
    return (length - 1).bit_length()


if __name__ == "__main__":
    torch.set_num_threads(1)
    emit(rows(), limit=LIMIT)
