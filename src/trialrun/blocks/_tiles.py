"""Attention over any staircase of pairs, as a list of full and triangular tiles.

Stock kernels know two shapes: a rectangle, and the triangle "query i sees keys 0..i". A band, a
shifted triangle and a chunk at the end of a cache are unions of those two, if the triangle may
also be taken with both axes reversed ("query i sees keys i..n-1"). So every pair is scored once,
no mask is ever stored, and any kernel will do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trialrun.blocks._kernels import Kernel


@dataclass(frozen=True)
class Tile:
    """One kernel call: ``blocks`` equal rectangles or triangles, ``stride`` tokens apart.

    ``row`` and ``key`` are the first query and key of the first block; ``pair`` says which of the
    given (query, key) pairs is scored; ``fresh`` that no earlier tile has touched these queries.
    """

    row: int
    key: int
    rows: int
    keys: int
    kind: str
    pair: int = 0
    blocks: int = 1
    stride: int = 0
    fresh: bool = False


def causal_tiles(
    length: int, offset: int, *, shift: int = 0, pair: int = 0, fresh: bool = False
) -> Iterator[Tile]:
    """Yield the tiles in which query ``offset + i`` sees keys ``0 .. offset + i - shift``."""
    first = max(0, shift - offset)
    rows, seen = length - first, offset + first - shift
    if rows <= 0:
        return
    if rows == 1:
        yield Tile(first, 0, 1, seen + 1, "full", pair, fresh=fresh)
        return
    yield Tile(first, seen, rows, rows, "causal", pair, fresh=fresh)
    if seen:
        yield Tile(first, 0, rows, seen, "full", pair)


def band_tiles(length: int, offset: int, window: int, *, pair: int = 0) -> Iterator[Tile]:
    """Yield the tiles in which query g = ``offset + i`` sees keys ``g - window + 1 .. g``."""
    if length == 1:
        key = max(0, offset - window + 1)
        yield Tile(0, key, 1, offset + 1 - key, "full", pair, fresh=True)
        return
    whole = length // window
    if whole:
        yield Tile(0, offset, window, window, "causal", pair, whole, window, fresh=True)
    rest = length - whole * window
    if rest:
        start = whole * window
        yield Tile(start, offset + start, rest, rest, "causal", pair, fresh=True)
        yield from _before(start, offset + start, rest, window, pair)
    if whole:
        yield from _before(0, offset, window, window, pair)
    if whole > 1 and window > 1:
        size = window - 1
        yield Tile(window, offset + 1, size, size, "reversed", pair, whole - 1, window)


def _before(row: int, start: int, rows: int, window: int, pair: int) -> Iterator[Tile]:
    """Yield what ``rows`` queries from key ``start`` on see of the keys before ``start``.

    Query i sees keys from start - window + 1 + i on. Keys from start - window + rows on are seen
    by all; of those before them, key t by the queries up to t, or up to t + early where the band
    would begin before key 0.
    """
    common = max(0, start - window + rows)
    if common < start:
        yield Tile(row, common, rows, start - common, "full", pair)
    early = max(0, window - 1 - start)
    size = common - max(0, start - window + 1)
    if size > 0:
        if early:
            yield Tile(row, common - size, early, size, "full", pair)
        yield Tile(row + early, common - size, size, size, "reversed", pair)


def _blocks(x: Tensor, first: int, count: int, tile: Tile) -> Tensor:
    """View ``count`` rows of each block as (blocks, heads, rows, ...)."""
    if tile.blocks == 1:
        return x[:, first : first + count].unsqueeze(0)
    span = x[:, first : first + tile.blocks * tile.stride]
    return span.unflatten(1, (tile.blocks, tile.stride))[:, :, :count].transpose(0, 1)


@dataclass(frozen=True)
class Plan:
    """The tiles, the kernel and the scale; ``starts`` is the first key that each pair holds."""

    tiles: tuple[Tile, ...]
    kernel: Kernel
    scale: float
    starts: tuple[int, ...] = (0,)

    def slices(
        self, tile: Tile, queries: tuple[Tensor, ...], keys: tuple[Tensor, ...], v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tile's queries, keys and values as the kernel wants them."""
        parts = (
            _blocks(queries[tile.pair], tile.row, tile.rows, tile),
            _blocks(keys[tile.pair], tile.key - self.starts[tile.pair], tile.keys, tile),
            _blocks(v, tile.key, tile.keys, tile),
        )
        if tile.kind != "reversed":
            return parts
        q, k, v = (part.flip(2) for part in parts)
        return q, k, v


def _merge_into(out: Tensor, lse: Tensor, new_out: Tensor, new_lse: Tensor, fresh: bool) -> None:
    if fresh:
        out.copy_(new_out)
        lse.copy_(new_lse)
        return
    new_lse = new_lse.to(lse.dtype)
    total = torch.logaddexp(lse, new_lse)
    out.mul_((lse - total).exp_().unsqueeze(-1))
    out.addcmul_(new_out.to(out.dtype), (new_lse - total).exp_().unsqueeze(-1))
    lse.copy_(total)


def run_tiles(
    plan: Plan, queries: tuple[Tensor, ...], keys: tuple[Tensor, ...], v: Tensor
) -> tuple[Tensor, Tensor]:
    """Score every tile and merge; queries that see no key get 0 and a log-sum-exp of -inf.

    Tensors are (batch, heads, time, width); the sum is kept in float32 for 16-bit input.
    """
    out, lse = _Tiled.apply(plan, len(queries), *queries, *keys, v)
    return out, lse


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, pairs: int, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        flat = tuple(x.reshape(-1, *x.shape[2:]) for x in tensors)
        queries, keys, v = flat[:pairs], flat[pairs:-1], flat[-1]
        kind = torch.float64 if v.dtype == torch.float64 else torch.float32
        shape = (queries[0].shape[0], queries[0].shape[1], v.shape[-1])
        out = torch.zeros(shape, dtype=kind, device=v.device)
        lse = torch.full(shape[:2], float("-inf"), dtype=kind, device=v.device)
        for tile in plan.tiles:
            causal = tile.kind != "full"
            parts = plan.slices(tile, queries, keys, v)
            new_out, new_lse = plan.kernel.forward(*parts, causal, plan.scale)
            if tile.kind == "reversed":
                new_out, new_lse = new_out.flip(2), new_lse.flip(2)
            _merge_into(
                _blocks(out, tile.row, tile.rows, tile),
                _blocks(lse, tile.row, tile.rows, tile),
                new_out,
                new_lse,
                tile.fresh,
            )
        heads = tensors[0].shape[:2]
        result = out.to(v.dtype).unflatten(0, heads)
        merged = lse.unflatten(0, heads)
        ctx.save_for_backward(*tensors, result, merged)
        ctx.plan, ctx.pairs = plan, pairs
        ctx.set_materialize_grads(False)
        return result, merged

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
        *tensors, out, lse = ctx.saved_tensors
        flat = tuple(x.reshape(-1, *x.shape[2:]) for x in (*tensors, out, lse))
        *inputs, out, lse = flat
        sums = [torch.zeros_like(x, dtype=lse.dtype) for x in inputs]
        if grad is not None:
            grad = grad.reshape(out.shape).to(out.dtype)
        if grad_lse is not None:
            grad_lse = grad_lse.reshape(lse.shape)
        for tile in ctx.plan.tiles:
            _tile_backward(ctx.plan, ctx.pairs, tile, inputs, (out, lse), (grad, grad_lse), sums)
        grads = (
            total.to(x.dtype).view(x.shape) if wanted else None
            for total, x, wanted in zip(sums, tensors, ctx.needs_input_grad[2:])
        )
        return (None, None, *grads)


def _tile_backward(
    plan: Plan,
    pairs: int,
    tile: Tile,
    inputs: list[Tensor],
    merged: tuple[Tensor, Tensor],
    grads: tuple[Tensor | None, Tensor | None],
    sums: list[Tensor],
) -> None:
    turned = tile.kind == "reversed"

    def rows(x: Tensor) -> Tensor:
        part = _blocks(x, tile.row, tile.rows, tile)
        return part.flip(2) if turned else part

    def add(index: int, first: int, count: int, found: Tensor) -> None:
        part = found.flip(2) if turned else found
        _blocks(sums[index], first, count, tile).add_(part)

    q, k, v = plan.slices(tile, tuple(inputs[:pairs]), tuple(inputs[pairs:-1]), inputs[-1])
    out, lse = rows(merged[0]), rows(merged[1])
    causal = tile.kind != "full"
    key = tile.key - plan.starts[tile.pair]
    if grads[0] is not None:
        found = plan.kernel.backward(rows(grads[0]), (q, k, v), (out, lse), causal, plan.scale)
        add(tile.pair, tile.row, tile.rows, found[0])
        add(pairs + tile.pair, key, tile.keys, found[1])
        add(len(inputs) - 1, tile.key, tile.keys, found[2])
    if grads[1] is not None:
        # d lse / d S is the softmax P itself, so the gradients are P K and P^T Q: attention with
        # the keys as values forwards, and its value gradient backwards.
        up = rows(grads[1]).unsqueeze(-1) * plan.scale
        mean, own = plan.kernel.forward(q, k, k, causal, plan.scale)
        share = (own.to(lse.dtype) - lse).exp().unsqueeze(-1)
        add(tile.pair, tile.row, tile.rows, mean.to(lse.dtype) * share * up)
        scaled = (q.to(lse.dtype) * up).to(q.dtype)
        back = plan.kernel.backward(scaled, (q, k, k), (mean, lse), causal, plan.scale)
        add(pairs + tile.pair, key, tile.keys, back[2])
