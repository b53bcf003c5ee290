"""Bytes that a model keeps for every token, and what other attention would keep in its place.

Counts follow from a config (deepseek2024v2, section 2.1.4); tests hold them against the tensors of
real caches. Kinds of models whose caches were not held against are refused, not guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from trialrun.attention import _mla_stack  # noqa: F401

# isort: split
import torch
from torch import Tensor

from trialrun.core.errors import UsageError

HEADED = ("llama", "mistral", "qwen2", "qwen3")
LATENT = (
    "axk1",
    "deepseek_v2",
    "deepseek_v3",
    "glm4_moe_lite",
    "longcat_flash",
    "minicpm3",
    "mistral4",
    "trialrun_latent_llama",
    "youtu",
)
# Beside its latent, a token has one key for the indexer in each layer that runs one.
INDEXED = ("axk2", "deepseek_v32", "glm_moe_dsa", "hy_v4")
_STATE = "whose recurrent layers keep a state of one size for any number of tokens"
_UNEVEN = "whose layers keep tokens in different widths and numbers"
UNCOUNTED = {
    "bailing_hybrid": _STATE,
    "dots3_note": _UNEVEN,
    "glm5_next": _STATE,
    "kimi_linear": _STATE,
    "mistral_large4": _UNEVEN,
}


class CacheRow(NamedTuple):
    """One kind of attention: ``values`` a token and layer, then bytes over all layers.

    ``values`` is a mean where only some layers run an indexer.
    """

    name: str
    values: int | float
    bytes_per_token: int
    bytes_total: int
    share_of_mha: float


@dataclass(frozen=True)
class CacheReport:
    """Cache sizes of all variants; printing it gives a table.

    Parameters
    ----------
    own : str
        Which row the model itself is.
    rows : tuple of CacheRow
    layers, tokens, batch : int
        ``bytes_total`` is for ``batch`` sequences of ``tokens``.
    """

    own: str
    rows: tuple[CacheRow, ...]
    layers: int
    tokens: int
    batch: int

    def __getitem__(self, name: str) -> CacheRow:
        for row in self.rows:
            if row.name == name:
                return row
        known = ", ".join(row.name for row in self.rows)
        raise KeyError(f"no row {name!r}: choose one of {known}")

    def __str__(self) -> str:
        head = (
            f"cache of {self.batch} x {self.tokens} tokens, {self.layers} layers (* this model)",
            f"  {'':14}{'values':>8}{'bytes/token':>13}{'MiB':>12}{'of MHA':>9}",
        )
        lines = (
            f"{'*' if row.name == self.own else ' '} {row.name:14}{row.values:8.6g}"
            f"{row.bytes_per_token:13d}{row.bytes_total / 2**20:12.1f}{row.share_of_mha:9.1%}"
            for row in self.rows
        )
        return "\n".join((*head, *lines))


def cache_report(
    model: Any,
    seq_len: int,
    *,
    batch: int = 1,
    dtype: torch.dtype | None = None,
    kv_rank: int | None = None,
    rope_dims: int | None = None,
) -> CacheReport:
    """Count the cache of ``model`` beside that of MHA, GQA, MQA and MLA of the same heads.

    Parameters
    ----------
    model : transformers model or config
    seq_len : int
        Tokens a sequence.
    batch : int
        Sequences.
    dtype : torch.dtype or None
        Of the cache; None is the model's own, or bfloat16 where a config names none.
    kv_rank, rope_dims : int or None
        Sizes of an MLA to compare a model without one with; both or neither.

    Returns
    -------
    CacheReport
        Rows ``MHA``, ``GQA-8``, ``GQA-n`` where the model has n other groups, ``MQA`` and, with a
        latent, ``MLA`` and ``MLA expanded`` (what the latent is expanded to: keys, with the rotary
        part beside them, and values, of every key head). A model that chooses keys has ``MLA +
        indexer`` too: the latents and the indexer's keys.

    Raises
    ------
    ValueError
        If the model's kind is not known here, or a number is out of range.

    Notes
    -----
    Paper: deepseek2024v2.

    Examples
    --------
    >>> from transformers import LlamaConfig
    >>> report = cache_report(LlamaConfig(), seq_len=4096, kv_rank=512, rope_dims=64)
    >>> report["MLA"].values, round(report["MLA"].share_of_mha, 3)
    (576, 0.07)
    """
    config = getattr(model, "config", model)
    kind = getattr(config, "model_type", type(model).__name__)
    known = (*HEADED, *LATENT, *INDEXED)
    why = UNCOUNTED.get(kind.removesuffix("_text"))
    if kind not in known:
        found = f"cannot count {kind}, {why}" if why else f"knows {', '.join(known)}, got {kind}"
        raise UsageError(
            f"cache_report {found}: run the model and give its past_key_values to cache_bytes"
        )
    usual = "indexed_attention" if kind in INDEXED else "full_attention"
    layer_kinds = set(getattr(config, "layer_types", None) or ()) - {usual}
    if layer_kinds or getattr(config, "sliding_window", None) is not None:
        raise UsageError(
            "cache_report counts layers that keep every token, and this config has a sliding "
            "window or other layers: run the model and give its past_key_values to cache_bytes"
        )
    for name, value in (("seq_len", seq_len), ("batch", batch)):
        _check_count(name, value)
    rows, own = _rows(config, kind, kv_rank, rope_dims)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise UsageError(f"dtype must be a torch.dtype, such as torch.float16, got {dtype!r}")
    width = (dtype or _dtype_of(model, config)).itemsize
    layers, most = config.num_hidden_layers, rows["MHA"]
    table = tuple(
        CacheRow(
            name, values, n := round(values * layers) * width, n * seq_len * batch, values / most
        )
        for name, values in rows.items()
    )
    return CacheReport(own, table, layers, seq_len, batch)


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name} must be a whole number, at least 1, got {value!r}")


def _dtype_of(model: Any, config: Any) -> torch.dtype:
    found = getattr(model, "dtype", None) if model is not config else None
    found = found or getattr(config, "dtype", None) or torch.bfloat16
    return getattr(torch, found) if isinstance(found, str) else found


def _rows(
    config: Any, kind: str, kv_rank: int | None, rope_dims: int | None
) -> tuple[dict[str, int | float], str]:
    heads = config.num_attention_heads
    if kind in (*LATENT, *INDEXED):
        if kv_rank is not None or rope_dims is not None:
            raise UsageError(
                "kv_rank and rope_dims go with models without a latent: leave them out"
            )
        kv_rank, rope_dims = config.kv_lora_rank, config.qk_rope_head_dim
        plain = kind == "trialrun_latent_llama"
        key = config.head_dim if plain else config.qk_nope_head_dim
        value = config.head_dim if plain else config.v_head_dim
        groups = config.num_key_value_heads if plain else heads
        own = "MLA"
    else:
        if (kv_rank is None) != (rope_dims is None):
            raise UsageError("kv_rank and rope_dims must be given together")
        key = value = getattr(config, "head_dim", None) or config.hidden_size // heads
        groups = config.num_key_value_heads
        own = {heads: "MHA", 1: "MQA"}.get(groups, f"GQA-{groups}")
    rows: dict[str, int | float] = {"MHA": heads * (key + value)}
    if own.startswith("GQA") and own != "GQA-8":
        rows[own] = config.num_key_value_heads * (key + value)
    if heads > 8 and heads % 8 == 0:
        rows["GQA-8"] = 8 * (key + value)
    rows["MQA"] = key + value
    if kv_rank is not None and rope_dims is not None:
        _check_count("kv_rank", kv_rank)
        if rope_dims:
            _check_count("rope_dims", rope_dims)
        if rope_dims % 2:
            raise UsageError(f"rope_dims must be even, for features turn in pairs, got {rope_dims}")
        rows["MLA"] = kv_rank + rope_dims
        rows["MLA expanded"] = groups * (key + value + rope_dims)
    if kind in INDEXED:
        own = "MLA + indexer"
        rows[own] = rows["MLA"] + config.index_head_dim * _indexed_share(config)
    return rows, own


def _indexed_share(config: Any) -> int | float:
    """Return the share of layers that run an indexer of their own, 1 where no config tells."""
    kinds = getattr(config, "indexer_types", None)
    if not kinds:
        return 1
    running = sum(kind == "full" for kind in kinds)
    return 1 if running == len(kinds) else running / len(kinds)


def cache_bytes(cache: Any) -> int:
    """Count the bytes of all tensors that a cache holds.

    Parameters
    ----------
    cache : transformers cache, `LatentCache`, tensor, or any nesting of them in lists

    Returns
    -------
    int
        Bytes of all tensors, the keys of an indexer or the state of a recurrent layer among them,
        without counters. A `LatentCache` counts the tokens held; a static cache of transformers
        is counted as allocated, room for tokens to come included.

    Raises
    ------
    ValueError
        If there is something else in it.

    Examples
    --------
    >>> cache_bytes([torch.zeros(2, 3), (torch.zeros(4, dtype=torch.float16),)])
    32
    """
    return sum(_bytes(cache))


def _bytes(cache: Any) -> Iterator[int]:
    if isinstance(cache, Tensor):
        yield cache.numel() * cache.element_size()
    elif hasattr(cache, "layers"):
        for layer in cache.layers:
            yield from _layer_bytes(layer)
    elif isinstance(getattr(cache, "nbytes", None), int):
        yield cache.nbytes
    elif isinstance(cache, Iterable) and not isinstance(cache, str | bytes):
        for part in cache:
            yield from _bytes(part)
    else:
        raise UsageError(
            f"cache must be a transformers cache, a LatentCache or tensors, got "
            f"{type(cache).__name__}"
        )


def _layer_bytes(layer: Any) -> Iterator[int]:
    """Count whatever tensors a layer keeps of its tokens; counters have no axes."""
    if getattr(layer, "_quantized_keys", None) is not None:
        raise UsageError(
            f"cache_bytes cannot read a layer of {type(layer).__name__}: its codes and scales are "
            f"kept in a form of its own"
        )
    found = False
    for name, kept in vars(layer).items():
        parts = tuple(kept.values()) if isinstance(kept, dict) else (kept,)
        tensors = [part for part in parts if isinstance(part, Tensor)]
        found = found or bool(tensors) or name == "keys"
        yield from _bytes([x for x in tensors if x.ndim])
    if not found:
        raise UsageError(f"cache_bytes cannot read a layer of {type(layer).__name__}")
