"""Absorbed and materialised attention over latents, as two functions of the same arguments."""

from __future__ import annotations

import math

from trialrun.attention import _mla_stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from trialrun.attention._mla_core import (
    as_given,
    crossover_of,
    into_latent,
    mix_latents,
    out_of_latent,
    per_head,
)
from trialrun.blocks.attention import attend
from trialrun.core.errors import UsageError
from trialrun.core.shapes import check_axes, check_range


def crossover(kv_rank: int, nope_dim: int, v_dim: int, *, cached: int | float = math.inf) -> float:
    """Return the number of new tokens below which absorbed attention takes fewer products.

    With E = kv_rank (nope_dim + v_dim) it is 1 / (1/cached + (2 kv_rank - nope_dim - v_dim)/E): the
    number of heads and the rotary width cancel (deepseek2024v2 leaves the choice open; the count
    is ours). A long cache leaves E / (2 kv_rank - nope_dim - v_dim), and infinity where
    2 kv_rank <= nope_dim + v_dim, for then absorbing always takes fewer.

    Parameters
    ----------
    kv_rank, nope_dim, v_dim : int
        Widths of the latent, of a key's unrotated part and of a value, in features. The rank is at
        least 1, and so is one of the others.
    cached : int or float
        Tokens in the cache, the new ones included.

    Returns
    -------
    float
        Tokens, above 0; infinity where no number of new tokens is too many.

    Raises
    ------
    ValueError
        If a width is out of range.

    Examples
    --------
    >>> round(crossover(512, 128, 128))
    171
    >>> crossover(64, 64, 64)
    inf
    >>> round(crossover(512, 128, 128, cached=4096))
    164
    """
    check_range("kv_rank", kv_rank, low=1, unit="features")
    for name, width in (("nope_dim", nope_dim), ("v_dim", v_dim)):
        check_range(name, width, low=0, unit="features")
    check_range("nope_dim + v_dim", nope_dim + v_dim, low=1, unit="features")
    check_range("cached", cached, low=1, unit="tokens")
    return crossover_of(kv_rank, nope_dim, v_dim, cached)


def absorbed_attention(
    q_nope: Float[Tensor, "batch heads query nope"],
    q_rope: Float[Tensor, "batch heads query rope"],
    latent: Float[Tensor, "batch key rank"],
    rope_key: Float[Tensor, "batch key rope"],
    up: Float[Tensor, "rows rank"],
    *,
    scale: float,
    padding: Bool[Tensor, "batch key"] | None = None,
) -> Float[Tensor, "batch heads query value"]:
    """Attend causally without expanding a single key or value (deepseek2024v2, section 2.1).

    Queries move into the latent's space, attend there as to one key head of width rank + rope, and
    what they gather moves out again. Scores are float32 at least. Without gradients they are held
    in blocks of 16 MiB; with gradients all heads * query * key of them are kept.

    Parameters
    ----------
    q_nope, q_rope : tensors of shape (batch, heads, query, nope) and (batch, heads, query, rope)
        Unrotated and rotated parts of the queries, the last ``query`` tokens of the keys.
    latent, rope_key : tensors of shape (batch, key, rank) and (batch, key, rope)
        Latents and rotated keys of all tokens.
    up : tensor of shape (heads * (nope + value), rank)
        Up-projection, DeepSeek's ``kv_b_proj``: per head the rows of keys, then those of values.
    scale : float
        Factor on the scores, usually ``(nope + rope) ** -0.5``: neither the rank nor the key's
        width in the latent's space belongs in it.
    padding : bool tensor of shape (batch, key) or None
        True where a token is real. Padded queries give 0. None means all are real.

    Returns
    -------
    tensor of shape (batch, heads, query, value)

    Raises
    ------
    ValueError
        If a shape or dtype does not fit; the sentence names it.

    Examples
    --------
    >>> import torch
    >>> draw = torch.Generator().manual_seed(0)
    >>> shapes = ((1, 2, 1, 4), (1, 2, 1, 2), (1, 5, 8), (1, 5, 2), (14, 8))
    >>> parts = [torch.randn(shape, generator=draw) for shape in shapes]
    >>> absorbed = absorbed_attention(*parts, scale=6**-0.5)
    >>> absorbed.shape
    torch.Size([1, 2, 1, 3])
    >>> torch.allclose(absorbed, materialised_attention(*parts, scale=6**-0.5), atol=1e-5)
    True
    """
    heads, time, nope, value = _check(q_nope, q_rope, latent, rope_key, up, padding)
    if not q_nope.numel() and not q_rope.numel():
        return q_nope.new_zeros(q_nope.shape[0], heads, time, value)
    up_key, up_value = per_head(up, heads, nope)
    queries = (into_latent(q_nope, up_key), q_rope)
    mask = _visible(time, latent.shape[1], padding, q_nope.device)
    mixed = mix_latents(queries, (latent, rope_key), scale=scale, mask=mask).latent
    return out_of_latent(mixed, up_value).to(q_nope.dtype)


def materialised_attention(
    q_nope: Float[Tensor, "batch heads query nope"],
    q_rope: Float[Tensor, "batch heads query rope"],
    latent: Float[Tensor, "batch key rank"],
    rope_key: Float[Tensor, "batch key rope"],
    up: Float[Tensor, "rows rank"],
    *,
    scale: float,
    padding: Bool[Tensor, "batch key"] | None = None,
) -> Float[Tensor, "batch heads query value"]:
    """Expand every key and value, then attend causally head by head (deepseek2024v2).

    What training and the reading of a prompt want: memory is linear in length, with gradients too.

    Parameters
    ----------
    q_nope, q_rope : tensors of shape (batch, heads, query, nope) and (batch, heads, query, rope)
        Unrotated and rotated parts of the queries, the last ``query`` tokens of the keys.
    latent, rope_key : tensors of shape (batch, key, rank) and (batch, key, rope)
        Latents and rotated keys of all tokens.
    up : tensor of shape (heads * (nope + value), rank)
        Up-projection, as in `absorbed_attention`.
    scale : float
        Factor on the scores, usually ``(nope + rope) ** -0.5``.
    padding : bool tensor of shape (batch, key) or None
        True where a token is real. Padded queries give 0. None means all are real.

    Returns
    -------
    tensor of shape (batch, heads, query, value)

    Raises
    ------
    ValueError
        If a shape or dtype does not fit; the sentence names it.

    Examples
    --------
    >>> import torch
    >>> q, c = torch.ones(1, 2, 3, 4), torch.ones(1, 3, 8)
    >>> none = torch.ones(1, 2, 3, 0), torch.ones(1, 3, 0)
    >>> out = materialised_attention(q, none[0], c, none[1], torch.ones(16, 8), scale=0.5)
    >>> out.shape
    torch.Size([1, 2, 3, 4])
    """
    heads, time, _, value = _check(q_nope, q_rope, latent, rope_key, up, padding)
    if not q_nope.numel() and not q_rope.numel():
        return q_nope.new_zeros(q_nope.shape[0], heads, time, value)
    with as_given(latent):
        return _materialised((q_nope, q_rope), (latent, rope_key), up, scale, padding)


def _materialised(
    q: tuple[Tensor, Tensor],
    cache: tuple[Tensor, Tensor],
    up: Tensor,
    scale: float,
    padding: Tensor | None,
) -> Tensor:
    heads, nope = q[0].shape[1], q[0].shape[3]
    both = F.linear(cache[0], up.to(cache[0].dtype)).unflatten(-1, (heads, -1)).transpose(1, 2)
    value = both.shape[-1] - nope
    k = torch.cat((both[..., :nope], cache[1].unsqueeze(1).expand(-1, heads, -1, -1)), dim=-1)
    turned, v = torch.cat(q, dim=-1), both[..., nope:]
    # Kernels linear in memory want one width; zeros change no score and are cut off again.
    width = max(k.shape[-1], value)
    all_q, k, v = (F.pad(x, (0, width - x.shape[-1])) for x in (turned, k, v))
    if padding is None or bool(padding.all()):
        return attend(all_q, k, v, scale=scale).out[..., :value]
    rows = [_real_only(*row, scale)[..., :value] for row in zip(all_q, k, v, padding, strict=True)]
    return torch.stack(rows)


def _real_only(q: Tensor, k: Tensor, v: Tensor, real: Tensor, scale: float) -> Tensor:
    """Attend within the real tokens of one row (heads, time, width); padded queries give 0."""
    keys = real.nonzero().flatten()
    queries = real[real.shape[0] - q.shape[1] :].nonzero().flatten()
    out = v.new_zeros(*q.shape[:2], v.shape[-1])
    if not len(queries):
        return out
    some = (x.index_select(1, at).unsqueeze(0) for x, at in ((q, queries), (k, keys), (v, keys)))
    return out.index_copy(1, queries, attend(*some, scale=scale).out[0])


def _visible(time: int, total: int, padding: Tensor | None, device: torch.device) -> Tensor | None:
    """Return the mask (batch or 1, 1, query, key) of the keys each query sees; None is all."""
    if time == 1 and padding is None:
        return None
    mask = torch.ones(time, total, dtype=torch.bool, device=device).tril(total - time)[None, None]
    if padding is None:
        return mask
    return mask & padding[:, None, None, :] & padding[:, None, total - time :, None]


def _check(
    q_nope: Tensor,
    q_rope: Tensor,
    latent: Tensor,
    rope_key: Tensor,
    up: Tensor,
    padding: Tensor | None,
) -> tuple[int, int, int, int]:
    """Return heads, query time, nope and value widths, or say what does not fit."""
    for name, x in (("q_nope", q_nope), ("q_rope", q_rope)):
        check_axes(name, x, ("batch", "heads", "query", "width"))
    for name, x in (("latent", latent), ("rope_key", rope_key)):
        check_axes(name, x, ("batch", "key", "width"))
    check_axes("up", up, ("rows", "rank"))
    batch, heads, time, nope = q_nope.shape
    total, rank = latent.shape[1:]
    wanted = {
        "q_rope": (q_rope, (batch, heads, time, rope_key.shape[2])),
        "latent": (latent, (batch, total, up.shape[1])),
        "rope_key": (rope_key, (batch, total, q_rope.shape[3])),
    }
    if padding is not None:
        wanted["padding"] = (padding, (batch, total))
    for name, (x, shape) in wanted.items():
        if tuple(x.shape) != shape:
            raise UsageError(f"{name} must have shape {shape}, got {tuple(x.shape)}")
        dtype = torch.bool if name == "padding" else q_nope.dtype
        if x.dtype != dtype or x.device != q_nope.device:
            raise UsageError(
                f"{name} must be {dtype} on {q_nope.device}, as q_nope is, got {x.dtype} on "
                f"{x.device}"
            )
    value = up.shape[0] // heads - nope if heads else -1
    if value < 1 or up.shape[0] != heads * (nope + value):
        raise UsageError(
            f"up must have heads * (nope + value) rows for {heads} heads with nope {nope}, got "
            f"{up.shape[0]} rows of rank {rank}"
        )
    if time > total:
        raise UsageError(f"queries are the last tokens of the keys, so at most {total}, got {time}")
    return heads, time, nope, value
