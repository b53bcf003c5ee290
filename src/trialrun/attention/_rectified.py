"""The rectified distance, and attention by it over runs of consecutive tokens.

Scores at rectified distance split into two disjoint sets of pairs: the band of the last
``window`` tokens, where both sides are rotated as usual, and everything before it, which is plain
causal attention of rotated queries over keys shifted by the window. Both are handed to the tile
planner of ``blocks.attention``, which merges them by their log-sum-exp.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trialrun.blocks._kernels import choose_kernel
from trialrun.blocks._tiles import Plan, band_tiles, causal_tiles, run_tiles
from trialrun.blocks.attention import banded_causal, merge_lse, pick_backend, shifted_causal
from trialrun.blocks.rotary import Rotary
from trialrun.core.errors import UsageError


@dataclass(frozen=True)
class Rectified:
    """The map from true to used distance: exact below ``window``, then flat or slowly rising.

    Parameters
    ----------
    window : int
        Tokens up to which distances are exact, at least 1.
    slope : float or None
        Beyond the window a token adds 1/``slope`` to the distance; above 1. None adds nothing.
    """

    window: int
    slope: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 1:
            raise UsageError(f"window must be a number of tokens, at least 1, got {self.window!r}")
        if self.slope is not None and not 1 < self.slope < math.inf:
            raise UsageError(
                f"slope must be None (flat) or a finite number above 1, got {self.slope!r}"
            )

    def query_angle(self, positions: Tensor) -> Tensor:
        """Return the position at which far keys see a query at ``positions``."""
        if self.slope is None:
            return torch.full_like(positions[:1], float(self.window))
        return (positions - self.window) / self.slope + self.window

    def key_angle(self, positions: Tensor) -> Tensor:
        """Return the position at which far queries see a key at ``positions``."""
        if self.slope is None:
            return torch.zeros_like(positions[:1])
        return positions / self.slope


@dataclass(frozen=True)
class Row:
    """The real tokens of one row of a batch: a slice, or an index where padding cuts it."""

    start: int
    stop: int
    index: Tensor | None = None

    def __len__(self) -> int:
        return self.stop - self.start if self.index is None else len(self.index)

    def take(self, x: Tensor, first: int = 0) -> Tensor:
        """Return the real tokens of ``x`` (1, heads, time, width); its time begins at ``first``."""
        if self.index is None:
            return x[:, :, max(self.start - first, 0) : max(self.stop - first, 0)]
        return x[:, :, self.index[self.index >= first] - first]

    def put(self, x: Tensor, found: Tensor, first: int) -> Tensor:
        """Return zeros like ``x`` with ``found`` where `take` took from."""
        full = torch.zeros((*x.shape[:3], found.shape[3]), dtype=found.dtype, device=x.device)
        if self.index is None:
            full[:, :, max(self.start - first, 0) : max(self.stop - first, 0)] = found
        else:
            full[:, :, self.index[self.index >= first] - first] = found
        return full


def real_rows(padding: Tensor) -> tuple[Row, ...] | None:
    """Return where the real tokens of each row lie, or None if every token is real."""
    if bool(padding.all()):
        return None
    rows = []
    for real in padding:
        index = real.nonzero().flatten()
        count = len(index)
        start = int(index[0]) if count else 0
        holes = count > 0 and int(index[-1]) - start + 1 != count
        rows.append(Row(start, start + count, index if holes else None))
    return tuple(rows)


@dataclass(frozen=True)
class Scheme:
    """Everything about a call except its tensors.

    ``train_len`` switches the log-n factor on; ``turned`` says that keys arrive at their far
    angle, as a cache of leaky keys holds them, instead of un-rotated.
    """

    rotary: Rotary
    rule: Rectified
    train_len: int | None = None
    backend: str = "auto"
    turned: bool = False


def logn_factor(positions: Tensor, train_len: int) -> Tensor:
    """Return max(1, ln(position + 1) / ln(train_len)) for each position."""
    return ((positions.clamp(min=0) + 1).log() / math.log(train_len)).clamp(min=1)


def attend_run(
    q: Tensor, k: Tensor, v: Tensor, scheme: Scheme, *, first: int = 0, position: float = 0
) -> Tensor:
    """Attend over consecutive tokens; the queries are the last of the keys.

    ``first`` is the index at which the keys' far angle counts (only turned keys need it), and
    ``position`` the number of real tokens before the first key.
    """
    rule, rotary, window = scheme.rule, scheme.rotary, scheme.rule.window
    rows, keys = q.shape[2], k.shape[2]
    kind = torch.float64 if q.dtype == torch.float64 else torch.float32
    offset = keys - rows
    near = max(0, offset - window + 1)
    at = torch.arange(keys, dtype=kind, device=q.device)
    if scheme.train_len is not None:
        factor = logn_factor(at[offset:] + position, scheme.train_len)
        q = (q * factor.unsqueeze(-1)).to(q.dtype)
    # Only differences count, so near positions are taken from the first key in reach: small
    # numbers keep float32 angles exact at any length.
    base = at[near:] - near
    turned = rule.key_angle(at[near:] + first) if scheme.turned else torch.zeros_like(base[:1])
    queries = [rotary(q, at[offset:] - near)]
    sides = [rotary(k[:, :, near:], base - turned)]
    if keys > window:
        queries.append(rotary(q, rule.query_angle(at[offset:] + first)))
        plain = scheme.turned or rule.slope is None
        sides.append(k if plain else rotary(k, rule.key_angle(at + first)))
    return _two_passes(queries, sides, v, scheme, near)


def _two_passes(
    queries: list[Tensor], sides: list[Tensor], v: Tensor, scheme: Scheme, near: int
) -> Tensor:
    window, scale = scheme.rule.window, queries[0].shape[-1] ** -0.5
    chosen = pick_backend(scheme.backend, queries[0], v)
    if chosen == "flex":
        settings = {"scale": scale, "backend": chosen}
        parts = [banded_causal(queries[0], sides[0], v[:, :, near:], window=window, **settings)]
        if len(sides) > 1:
            parts.append(shifted_causal(queries[1], sides[1], v, shift=window, **settings))
        return merge_lse(parts).out
    rows, keys = queries[0].shape[2], v.shape[2]
    tiles = list(band_tiles(rows, keys - rows, window))
    if len(sides) > 1:
        tiles += causal_tiles(rows, keys - rows, shift=window, pair=1)
    starts = (near, 0)[: len(sides)]
    plan = Plan(tuple(tiles), choose_kernel(chosen, queries[0], v), scale, starts)
    return run_tiles(plan, tuple(queries), tuple(sides), v)[0]


def attend_rows(
    q: Tensor, k: Tensor, v: Tensor, scheme: Scheme, rows: tuple[Row, ...] | None
) -> Tensor:
    """Attend over a batch, each row over its own real tokens; padded queries give 0."""
    if rows is None:
        return attend_run(q, k, v, scheme)
    if q.shape[2] == 1 and all(row.index is None and row.stop == k.shape[2] for row in rows):
        return _one_token(q, k, v, scheme, rows)
    return torch.cat(list(_row_by_row(q, k, v, scheme, rows)))


def _row_by_row(
    q: Tensor, k: Tensor, v: Tensor, scheme: Scheme, rows: tuple[Row, ...]
) -> Iterator[Tensor]:
    offset = k.shape[2] - q.shape[2]
    for b, row in enumerate(rows):
        queries, keys, values = q[b : b + 1], k[b : b + 1], v[b : b + 1]
        real = row.take(queries, offset)
        if not real.shape[2]:
            yield torch.zeros((*queries.shape[:3], v.shape[3]), dtype=v.dtype, device=v.device)
            continue
        mine, first = row.take(keys), row.start
        if row.index is not None:
            # Turned by index, while distances count real tokens: turn again from the index.
            first = 0
            if scheme.turned and scheme.rule.slope is not None:
                move = torch.arange(len(row), device=k.device) - row.index
                mine = scheme.rotary(mine, scheme.rule.key_angle(move.to(torch.float32)))
        found = attend_run(real, mine, row.take(values), scheme, first=first)
        yield row.put(queries, found, offset)


def _one_token(q: Tensor, k: Tensor, v: Tensor, scheme: Scheme, rows: tuple[Row, ...]) -> Tensor:
    """Attend from one new token per row with one masked call for the whole batch.

    The query stands at its far angle; the last ``window`` keys are moved to where that query sees
    them at their true distance.
    """
    rule, window, keys = scheme.rule, scheme.rule.window, k.shape[2]
    kind = torch.float64 if q.dtype == torch.float64 else torch.float32
    at = torch.arange(keys, dtype=kind, device=q.device)
    starts = torch.tensor([row.start for row in rows], device=q.device)
    if scheme.train_len is not None:
        factor = logn_factor((keys - 1 - starts).to(kind), scheme.train_len)
        q = (q * factor[:, None, None, None]).to(q.dtype)
    angle = rule.query_angle(at[-1:])
    near = max(0, keys - window)
    turned = rule.key_angle(at) if scheme.turned else torch.zeros_like(at[:1])
    tail = turned[near:] if len(turned) > 1 else turned
    moved = scheme.rotary(k[:, :, near:], angle - (keys - 1 - at[near:]) - tail)
    far = k[:, :, :near]
    if not scheme.turned and rule.slope is not None:
        far = scheme.rotary(far, rule.key_angle(at[:near]))
    seen = (at >= starts[:, None])[:, None, None, :]
    groups = q.shape[1] // k.shape[1]
    grouped = scheme.rotary(q, angle).reshape(q.shape[0], k.shape[1], groups, q.shape[3])
    out = torch.nn.functional.scaled_dot_product_attention(
        grouped, torch.cat((far, moved), dim=2), v, attn_mask=seen
    )
    return out.reshape(*q.shape[:3], v.shape[3])
