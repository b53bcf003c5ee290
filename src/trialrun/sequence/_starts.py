"""Weights of where the running segment began: forward, backward, and in a stream.

A hypothesis is the start of the running segment. A segment that has ``n`` symbols so far ends
before the next one with probability ``1 / (2 n)``. With ``N(h)`` the joint probability of the
symbols before ``h`` and of a segment beginning there, the hypothesis' weight is
``N(h) * KT(x[h:t]) * survival``, and ``N(t)`` is the sum over hypotheses that end before ``t``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from trialrun.sequence._alphabet import (
    ExactPredictor,
    counts_before,
    log_rising,
)

Live = Callable[[int], Tensor | slice]


class _Step(NamedTuple):
    """What one step of the forward pass leaves."""

    mixed: Tensor | None  # (batch, symbols), the prediction
    given: Tensor  # (batch,), the probability given to the symbol that came
    weights: Tensor  # (batch, time), log joint weight of every start; valid up to this step
    born: Tensor  # (batch,), log N(t)


def forward(
    x: Int[Tensor, "batch time"], symbols: int, alpha: float, live: Live, *, mix: bool
) -> Iterator[_Step]:
    batch, time = x.shape
    before = counts_before(x, symbols)
    rows = before.view(batch * symbols, time + 1)
    row_of = torch.arange(batch, device=x.device)[:, None] * symbols + x  # (batch, time)
    now = before[:, :, :-1].gather(1, x[:, None])[:, 0]
    floats = before.double() if mix else None
    starts = torch.arange(time, device=x.device)
    log_seen = torch.log(starts.double() + alpha)
    weights = torch.full((batch, time), -math.inf, dtype=torch.float64, device=x.device)
    mixed = weights.new_full((batch, symbols), 1 / symbols)
    born, given = weights.new_zeros(batch), mixed[:, 0]
    for t in range(time):
        if t:
            kept = live(t)
            age = (t - (starts[:t] if isinstance(kept, slice) else kept)).double()
            ends = 0.5 / age
            old = weights[:, kept]
            top = old.amax(1, keepdim=True)
            linear = torch.exp(old - top)
            total, fresh = linear.sum(1), linear @ ends
            born = top[:, 0] + fresh.log()
            stays = linear * ((1 - ends) / (age + symbols * alpha))
            seen = now[:, t, None] - rows[:, kept].index_select(0, row_of[:, t])
            if floats is None:
                inside = (stays * (seen.double() + alpha)).sum(1)
                given = (inside + fresh / symbols) / total
            else:
                past = (stays[:, None] @ floats[:, :, kept].mT)[:, 0]
                inside = (floats[:, :, t] + alpha) * stays.sum(1, keepdim=True) - past
                mixed = (inside + fresh[:, None] / symbols) / total[:, None]
                given = mixed.gather(1, x[:, t, None])[:, 0]
            gain = torch.log1p(-ends) - torch.log(age + symbols * alpha)
            grown = log_seen.index_select(0, seen.reshape(-1)).view(seen.shape)
            weights[:, kept] = grown.add_(old).add_(gain)
        weights[:, t] = born - math.log(symbols)
        yield _Step(mixed if mix else None, given, weights, born)


def log_after(
    x: Int[Tensor, "batch time"], symbols: int, alpha: float
) -> Float[Tensor, "batch time"]:
    """Give the log-probability of the symbols from each time on, if a segment begins there."""
    batch, time = x.shape
    before = counts_before(x, symbols)
    of_symbol = log_rising(time, alpha, x.device)
    of_all = log_rising(time, symbols * alpha, x.device)
    n = torch.arange(1, time + 1, dtype=torch.float64, device=x.device)
    survives = torch.zeros_like(n)
    survives[1:] = torch.log1p(-0.5 / n[:-1]).cumsum(0)
    after = torch.zeros(batch, time, dtype=torch.float64, device=x.device)
    for h in reversed(range(time)):
        size = time - h
        inside = before[:, :, h + 1 :] - before[:, :, h, None]
        run = of_symbol[inside].sum(1) - of_all[1 : size + 1] + survives[:size]
        ended = run[:, :-1] + torch.log(0.5 / n[: size - 1]) + after[:, h + 1 :]
        after[:, h] = torch.logsumexp(torch.cat([ended, run[:, -1:]], dim=1), dim=1)
    return after


class Starts(ExactPredictor):
    """A mixture over starts of the running segment; a subclass says how long each is kept."""

    def __init__(self, symbols: int, alpha: float) -> None:
        super().__init__(symbols, alpha)

    def _life(self, start: int) -> float:
        raise NotImplementedError

    def _live(self, device: torch.device) -> Live:
        raise NotImplementedError

    def _walk(self, x: Tensor, *, mix: bool) -> Iterator[_Step]:
        return forward(x, self.symbols, self.alpha, self._live(x.device), mix=mix)

    def _probabilities(self, x: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time symbols"]:
        steps = self._walk(x, mix=True)
        return torch.stack([s.mixed for s in steps if s.mixed is not None], dim=1)

    def _log_prob(self, x: Int[Tensor, "batch time"]) -> Float[Tensor, " batch"]:
        return torch.stack([s.given for s in self._walk(x, mix=False)], dim=1).log().sum(1)

    def _begin(self) -> None:
        self._seen = 0
        self._used = 0
        self._log_born = 0.0
        self._start = np.zeros(16)
        self._until = np.zeros(16)  # last time at which the start is kept
        self._weight = np.zeros(16)
        self._count = np.zeros((16, self.symbols))

    def _mix(self) -> np.ndarray:
        if not self._seen:
            return np.full(self.symbols, 1 / self.symbols)
        self._prune()
        used = slice(0, self._used)
        age = self._seen - self._start[used]
        top = self._weight[used].max()
        linear = np.exp(self._weight[used] - top)
        fresh = float(linear @ (0.5 / age))
        self._log_born = top + math.log(fresh)
        stays = linear * ((1 - 0.5 / age) / (age + self.symbols * self.alpha))
        inside = stays @ (self._count[used] + self.alpha)
        return (inside + fresh / self.symbols) / linear.sum()

    def _prune(self) -> None:
        kept = np.flatnonzero(self._until[: self._used] >= self._seen)
        if len(kept) < self._used:
            for state in (self._start, self._until, self._weight, self._count):
                state[: len(kept)] = state[kept]
            self._used = len(kept)

    def _advance(self, symbol: int) -> None:
        used = slice(0, self._used)
        age = self._seen - self._start[used]
        chance = (self._count[used, symbol] + self.alpha) / (age + self.symbols * self.alpha)
        self._weight[used] += np.log1p(-0.5 / age) + np.log(chance)
        self._count[used, symbol] += 1
        if self._used == len(self._start):
            room = self._used
            self._start, self._until, self._weight = (
                np.pad(state, (0, room)) for state in (self._start, self._until, self._weight)
            )
            self._count = np.pad(self._count, ((0, room), (0, 0)))
        new = self._used
        self._start[new] = self._seen
        self._until[new] = self._seen + self._life(self._seen)
        self._weight[new] = self._log_born - math.log(self.symbols)
        self._count[new] = 0
        self._count[new, symbol] = 1
        self._used += 1
        self._seen += 1
