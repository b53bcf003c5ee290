"""Partition tree weighting: the exact mixture over binary temporal partitions.

Heights count from the leaves: a node of height k covers ``2**k`` symbols, the root has height
``depth``. Batched prediction walks over heights, not over time: at a fixed height the segment of
every t is known, so counts are differences of running counts and every t is computed at once.
Streaming keeps one open node per height.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from trialrun.sequence._alphabet import (
    HALF,
    ExactPredictor,
    as_symbols,
    counts_before,
    like,
    log_rising,
    logaddexp,
    whole,
)

# Elements (rows times length) that one pass works on, so that its arrays stay in a core's cache.
_CHUNK = 32_768


class _Node(NamedTuple):
    """All nodes of one height: log weights of their symbols under one KT, and under a split."""

    whole: Float[Tensor, "batch nodes"]
    split: Float[Tensor, "batch nodes"]


def heights(length: int) -> int:
    """Return the least height whose first node covers ``length`` symbols: ceil(log2 length)."""
    return (length - 1).bit_length()


def log_unsplit_odds(levels: int) -> float:
    """Return the log prior odds that one of ``levels`` fair coins in a row stopped splitting."""
    # log(2**levels - 1), without the overflow of 2**levels.
    return levels * math.log(2) + math.log1p(-(2.0**-levels)) if levels else -math.inf


def segment_weights(
    x: Int[Tensor, "batch time"], height: int, symbols: int, alpha: float
) -> Float[Tensor, "batch nodes"]:
    """Give the log KT weight of every node of one height, in time and memory free of ``symbols``.

    Sorted by symbol, then by time, the occurrences of one symbol in one node lie together, and
    the place in that run is the count that KT sees.
    """
    batch, time = x.shape
    nodes = -(-time // 2**height)
    order = torch.sort(x, dim=1, stable=True)
    node = order.indices >> height
    place = torch.arange(time, device=x.device).expand(batch, time)
    opens = torch.ones_like(x, dtype=torch.bool)
    opens[:, 1:] = (node[:, 1:] != node[:, :-1]) | (order.values[:, 1:] != order.values[:, :-1])
    rank = place - torch.where(opens, place, 0).cummax(1).values
    table = torch.log(torch.arange(2**height, dtype=torch.float64, device=x.device) + alpha)
    weights = torch.zeros(batch, nodes, dtype=torch.float64, device=x.device)
    weights.scatter_add_(1, node, table.index_select(0, rank.reshape(-1)).view(batch, time))
    size = torch.full((nodes,), 2**height, device=x.device)
    size[-1] = time - (nodes - 1) * 2**height
    return weights - log_rising(2**height, symbols * alpha, x.device)[size]


class PTW(ExactPredictor):
    """Predict by a Bayes mixture over all binary partitions of time (partition tree weighting).

    A segment of ``2**k`` symbols is coded by one KT with probability one half, and otherwise cut
    at its midpoint, each half likewise; `PTWSource` draws from this very prior
    (veness2013ptw; genewein2023mbml).

    Parameters
    ----------
    depth : int
        Depth of the tree; sequences may be ``2**depth`` symbols long.
    symbols : int, default=2
        Size of the alphabet, at least 2.
    alpha : float, default=0.5
        Concentration of the symmetric Dirichlet prior inside a segment, positive.

    Raises
    ------
    ValueError
        If a setting is out of range, or a sequence is longer than ``2**depth``.

    Notes
    -----
    ``predict`` costs O(log time) per symbol, batched over sequences and time. The stream costs
    O(depth) time per symbol and O(depth * symbols) memory in all.

    Examples
    --------
    >>> p = PTW(depth=4)
    >>> p.predict([[0, 0, 0, 0, 1, 1]])[0, -1].round(3).tolist()
    [0.518, 0.482]
    >>> for symbol in (0, 0, 0, 0, 1):
    ...     nats = p.update(symbol)
    >>> p.next().round(3).tolist()
    [0.518, 0.482]
    """

    def __init__(self, depth: int, symbols: int = 2, *, alpha: float = 0.5) -> None:
        super().__init__(symbols, alpha)
        self.depth = whole("depth", depth, low=0)

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"depth": self.depth, **super().settings()}

    def switch_posterior(self, x: Any) -> Any:
        """Give the probability, given the whole sequence, that a segment begins at each time.

        Parameters
        ----------
        x : integer array or tensor of shape (batch, time)

        Returns
        -------
        float64 array or tensor of shape (batch, time)
            Entry 0 is one, since the first symbol always begins a segment; the sum over time is
            the expected number of segments.

        Raises
        ------
        ValueError
            As `predict`.

        Examples
        --------
        >>> x = [[0] * 8 + [1] * 8]
        >>> PTW(4).switch_posterior(x)[0].argsort()[-2:].tolist()
        [8, 0]
        """
        tokens = as_symbols(x, self.symbols)
        batch, time = tokens.shape
        self._check_length(time)
        top = heights(time)
        stack = [self._nodes(tokens, 0)]
        for height in range(1, top + 1):
            stack.append(self._nodes(tokens, height, below=stack[-1]))
        begins = torch.ones(batch, time, dtype=torch.float64, device=tokens.device)
        above = self.depth - top
        root = self._weight(stack[top])[:, :1]
        reached = torch.sigmoid(root - stack[top].whole[:, :1] - log_unsplit_odds(above))
        for height in range(top, 0, -1):
            split = reached * torch.sigmoid(stack[height].split - stack[height].whole)
            half, step = 2 ** (height - 1), 2**height
            middles = begins[:, half::step]
            middles.copy_(split[:, : middles.shape[1]])
            reached = split.repeat_interleave(2, 1)[:, : stack[height - 1].whole.shape[1]]
        return like(x, begins)

    def _check_length(self, length: int) -> None:
        if length > 2**self.depth:
            raise ValueError(
                f"PTW of depth {self.depth} reads at most {2**self.depth} symbols, got {length}: "
                f"use depth={heights(length)} or more"
            )

    @staticmethod
    def _weight(nodes: _Node) -> Float[Tensor, "batch nodes"]:
        return HALF + torch.logaddexp(nodes.whole, nodes.split)

    def _nodes(self, x: Tensor, height: int, below: _Node | None = None) -> _Node:
        one = segment_weights(x, height, self.symbols, self.alpha)
        if below is None:
            return _Node(one, one)
        child = self._weight(below)
        split = child[:, 0::2].clone()
        split[:, : child.shape[1] // 2] += child[:, 1::2]
        return _Node(one, split)

    def _log_prob(self, x: Int[Tensor, "batch time"]) -> Float[Tensor, " batch"]:
        top = heights(x.shape[1])
        nodes = self._nodes(x, 0)
        for height in range(1, top + 1):
            nodes = self._nodes(x, height, below=nodes)
        above = self.depth - top
        one, weight = nodes.whole[:, 0], self._weight(nodes)[:, 0]
        # Each of the levels above sees the whole sequence in its left half.
        return torch.logaddexp(one + log_unsplit_odds(above), weight) - above * math.log(2)

    def _probabilities(self, x: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time symbols"]:
        batch, time = x.shape
        rows = max(1, _CHUNK // time)
        out = torch.empty(batch, time, self.symbols, dtype=torch.float64, device=x.device)
        for first in range(0, batch, rows):
            part = _predict(x[first : first + rows], self.depth, self.symbols, self.alpha)
            out[first : first + rows] = part.movedim(0, 2)
        return out

    def _begin(self) -> None:
        levels = self.depth + 1
        self._seen = 0
        self._counts = [[0] * self.symbols for _ in range(levels)]
        self._whole = [0.0] * levels  # log KT weight of the open node's symbols so far
        self._left = [0.0] * levels  # log weight of the open node's left half, once complete
        self._open = [0.0] * levels  # log weight of the open node's symbols so far

    def _mix(self) -> np.ndarray:
        self._check_length(self._seen + 1)
        mixed = [1.0 / self.symbols] * self.symbols
        for k in range(1, self.depth + 1):
            odds = self._whole[k] - self._left[k] - self._open[k - 1]
            one = 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0
            total = (self._seen & (2**k - 1)) + self.symbols * self.alpha
            for s, count in enumerate(self._counts[k]):
                mixed[s] += one * ((count + self.alpha) / total - mixed[s])
        return np.array(mixed)

    def _advance(self, symbol: int) -> None:
        for k in range(self.depth + 1):
            inside = self._seen & (2**k - 1)
            chance = (self._counts[k][symbol] + self.alpha) / (inside + self.symbols * self.alpha)
            self._counts[k][symbol] += 1
            self._whole[k] += math.log(chance)
            split = self._left[k] + self._open[k - 1] if k else self._whole[k]
            self._open[k] = HALF + logaddexp(self._whole[k], split)
        self._seen += 1
        closed = (self._seen & -self._seen).bit_length() - 1  # highest node that ends here
        if closed < self.depth:
            self._left[closed + 1] = self._open[closed]
        for k in range(min(closed, self.depth) + 1):
            self._counts[k] = [0] * self.symbols
            self._whole[k] = self._open[k] = self._left[k] = 0.0


def _predict(
    x: Int[Tensor, "batch time"], depth: int, symbols: int, alpha: float
) -> Float[Tensor, "symbols batch time"]:
    batch, time = x.shape
    top = heights(time)
    before = counts_before(x, symbols).movedim(1, 0).contiguous()  # (symbols, batch, edge)
    t = torch.arange(time, device=x.device)
    of_symbol = log_rising(time, alpha, x.device)
    of_all = log_rising(time, symbols * alpha, x.device)
    mixed = torch.full((symbols, batch, time), 1 / symbols, dtype=torch.float64, device=x.device)
    weight = torch.zeros(batch, time, dtype=torch.float64, device=x.device)
    ends = -math.log(symbols) * torch.ones_like(weight)  # log weight of each node, height 0
    # Heights above the sequence all see the same prefix; they are one level with other odds.
    plan = [(height, 0.0) for height in range(1, top + 1)]
    plan += [(top, log_unsplit_odds(depth - top))] if depth > top else []
    for number, (height, odds) in enumerate(plan):
        start = (t >> height) << height
        # The merged levels above stand over the root, of which everything is the left half.
        merged = number == top
        inside = before[:, :, :time] - _spread(before[:, :, : time : 2**height], height, time)
        one = _log_kt(inside, of_symbol).sub_(of_all[t - start])
        split = weight
        if not merged:
            left = _spread(ends[:, 0::2], height, time)
            split = weight + left * (t >> (height - 1) & 1).double()
        stays = torch.sigmoid(one - split + odds)
        weight = HALF + torch.logaddexp(one, split)
        kt = inside.double().add_(alpha).div_((t - start).double() + symbols * alpha)
        mixed += stays * (kt - mixed)
        if not merged:
            ends = _close(before, ends, height, of_symbol, of_all)
    return mixed


def _spread(
    values: Shaped[Tensor, "*rows nodes"], height: int, time: int
) -> Shaped[Tensor, "*rows time"]:
    """Repeat the value of every node of ``height`` over the times it covers."""
    wide = values[..., None].expand(*values.shape, 2**height)
    return wide.reshape(*values.shape[:-1], -1)[..., :time]


def _log_kt(counts: Int[Tensor, " symbols *rest"], table: Tensor) -> Float[Tensor, "*rest"]:
    total = table.index_select(0, counts[0].reshape(-1)).view(counts.shape[1:])
    for row in counts[1:]:
        total = total + table.index_select(0, row.reshape(-1)).view(row.shape)
    return total


def _close(
    before: Int[Tensor, "symbols batch edges"],
    below: Float[Tensor, "batch nodes"],
    height: int,
    of_symbol: Tensor,
    of_all: Tensor,
) -> Float[Tensor, "batch parents"]:
    """Give the log weight of each node of ``height`` from those below it."""
    time = before.shape[2] - 1
    start = torch.arange(0, time, 2**height, device=before.device)
    stop = (start + 2**height).clamp(max=time)
    counts = before.index_select(2, stop) - before.index_select(2, start)
    one = _log_kt(counts, of_symbol) - of_all[stop - start]
    split = below[:, 0::2].clone()
    split[:, : below.shape[1] // 2] += below[:, 1::2]
    return HALF + torch.logaddexp(one, split)
