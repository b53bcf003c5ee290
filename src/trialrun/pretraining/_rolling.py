"""The rolling cache of sliding-window attention, through transformers' own cache classes.

With a window W a token sees itself and the W - 1 before it (transformers' masks and Mistral's paper
agree: key j is seen by query i where i - W < j <= i), so W - 1 keys a layer are kept and not W.
transformers keeps them in order instead of at slot ``position mod W``; what is seen is the same.
Its layer keeps a *view* of the last call's keys, so that after a long prompt read at once the whole
prompt's storage stays behind it; reading the prompt in pieces (`prefill`) keeps memory at W - 1
keys and a piece. From zhao2024moxin (digest): grouped queries, sliding window, rolling buffer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from trialrun.pretraining import _stack  # noqa: F401  isort: skip
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig, StaticCache

from trialrun.core.errors import UsageError
from trialrun.core.shapes import check_axes
from trialrun.pretraining._deepen import check_config


class CacheBytes(NamedTuple):
    """Memory of a cache in bytes: of the keys and values it shows, and of the storage behind."""

    shown: int
    held: int


class Prefilled(NamedTuple):
    """What reading a prompt leaves: the last token's logits, and the cache to go on from."""

    logits: Float[Tensor, "batch vocabulary"]
    cache: Cache


def rolling_cache(config: PreTrainedConfig, *, static: int | None = None) -> Cache:
    """Make an empty cache that keeps a window's keys in every layer (zhao2024moxin).

    Parameters
    ----------
    config : config of a decoder with ``sliding_window``
        Every layer must use the window.
    static : int or None
        None gives a cache that grows to W - 1 keys a layer. A number of tokens gives
        transformers' static cache of min(W, static) keys, made for ``torch.compile``.

    Raises
    ------
    UsageError
        If ``config`` is none or has no window, or some layer sees everything.

    Examples
    --------
    >>> from transformers import MistralConfig
    >>> rolling_cache(MistralConfig(sliding_window=4096, num_hidden_layers=36)).get_seq_length()
    0
    """
    window = window_of(config)
    if static is not None and static < 1:
        raise UsageError(f"static must be at least 1 token, got {static}")
    cache: Cache = DynamicCache(config=config)
    if static is not None:
        cache = StaticCache(config=config, max_cache_len=static)
    layers: list[Any] = cache.layers
    seeing_all = [i for i, layer in enumerate(layers) if not layer.is_sliding]
    if seeing_all:
        raise UsageError(
            f"every layer must slide for the cache to roll, and layer {seeing_all[0]} sees all "
            f"tokens: take layer_types out of the config, or use DynamicCache (window {window})"
        )
    return cache


def window_of(config: PreTrainedConfig) -> int:
    """Return the sliding window in tokens, the token itself included.

    Raises
    ------
    UsageError
        If the config has none, or is none.
    """
    check_config(config)
    window = getattr(config, "sliding_window", None)
    if not isinstance(window, int) or window < 2:
        raise UsageError(
            f"the config must have a sliding_window of at least 2 tokens, got {window!r}: without "
            f"one there is nothing to roll"
        )
    return window


def reach(config: PreTrainedConfig) -> int:
    """Return how many tokens back a token can be influenced from, through all layers.

    Each layer passes on what stands up to W - 1 tokens back.

    Examples
    --------
    >>> from transformers import MistralConfig
    >>> reach(MistralConfig(sliding_window=4096, num_hidden_layers=36))
    147420
    """
    return (window_of(config) - 1) * int(config.num_hidden_layers)


def bytes_needed(
    config: PreTrainedConfig, length: int, *, batch: int = 1, item: int = 2, rolling: bool = True
) -> int:
    """Return the bytes of keys and values after ``length`` tokens, without making a cache.

    ``item`` is the bytes of a number (2 for bfloat16); with ``rolling`` off nothing is forgotten.

    Examples
    --------
    >>> from transformers import MistralConfig
    >>> moxin = MistralConfig(num_hidden_layers=36)
    >>> bytes_needed(moxin, 32768, rolling=False) / bytes_needed(moxin, 32768)
    8.001953601953602
    """
    check_config(config)
    kept = min(length, window_of(config) - 1) if rolling else length
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * width * kept * batch * item


def cache_bytes(cache: Cache) -> CacheBytes:
    """Return the bytes that a cache shows and those it holds in memory.

    Storage shared by several tensors counts once.
    """
    shown, storages = 0, {}
    layers: list[Any] = cache.layers
    for layer in layers:
        for kept in (layer.keys, layer.values):
            if kept is not None:
                shown += kept.numel() * kept.element_size()
                storage = kept.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return CacheBytes(shown, sum(storages.values()))


def compact(cache: Cache) -> None:
    """Give back the storage behind views: each layer keeps a copy of just what it shows."""
    for layer in cache.layers:
        for name in ("keys", "values"):
            kept = getattr(layer, name)
            if kept is not None and kept.untyped_storage().nbytes() > kept.numel() * (
                kept.element_size()
            ):
                setattr(layer, name, kept.clone())


@torch.no_grad()
def prefill(
    model: Any,
    input_ids: Int[Tensor, "batch time"],
    *,
    attention_mask: Int[Tensor, "batch time"] | None = None,
    cache: Cache | None = None,
    piece: int | None = None,
) -> Prefilled:
    """Read a prompt piece by piece, so that memory does not grow with its length.

    Parameters
    ----------
    model : causal language model with a sliding window
    input_ids : int tensor of shape (batch, time)
        Shorter prompts are padded on the left.
    attention_mask : int tensor of shape (batch, time), or None
        1 for tokens, 0 for padding. None means no padding.
    cache : Cache or None
        An empty `rolling_cache` of this model's config; None makes one. A static one must hold
        the whole length in its mask, so it is not taken here.
    piece : int or None
        Tokens read at once, at least 1. None means the window.

    Returns
    -------
    Prefilled
        The last token's logits and the cache, which goes on with ``model(next_ids,
        past_key_values=cache, attention_mask=...)`` or ``generate``.

    Raises
    ------
    UsageError
        If the prompt is empty, padded on the right or not all ids of the vocabulary, ``piece`` is
        below 1, the cache has been used or is not this model's, the model is in training with
        gradient checkpointing (which keeps no cache), or padding meets eager attention in float64
        (whose softmax is not a number where a piece holds padding only).

    Examples
    --------
    >>> from transformers import MistralConfig, MistralForCausalLM
    >>> small = MistralConfig(vocab_size=8, hidden_size=8, intermediate_size=8, sliding_window=4,
    ...                       num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
    >>> prefill(MistralForCausalLM(small), torch.zeros(1, 30, dtype=torch.long)).logits.shape
    torch.Size([1, 8])
    """
    check_axes("input_ids", input_ids, ("batch", "time"))
    length = input_ids.shape[1]
    if length < 1:
        raise UsageError("input_ids must hold at least 1 token, got none")
    _check_ids(input_ids, model.config)
    step = window_of(model.config) if piece is None else piece
    if step < 1:
        raise UsageError(f"piece must be at least 1 token, got {step}")
    places = None
    if attention_mask is not None:
        if attention_mask.shape != input_ids.shape or not bool(attention_mask[:, -1].all()):
            raise UsageError(
                "attention_mask must have the shape of input_ids and end in 1 in every row: pad "
                "prompts on the left"
            )
        places = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    _check_model(model, padded=attention_mask is not None and not bool(attention_mask.all()))
    if cache is None:
        cache = rolling_cache(model.config)
    else:
        _check_cache(cache, model.config)
    for start in range(0, length, step):
        end = min(start + step, length)
        out = model(
            input_ids=input_ids[:, start:end],
            attention_mask=None if attention_mask is None else attention_mask[:, :end],
            position_ids=None if places is None else places[:, start:end],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        compact(cache)
    return Prefilled(out.logits[:, -1], cache)


def _check_ids(ids: Tensor, config: PreTrainedConfig) -> None:
    if ids.dtype not in (torch.int64, torch.int32):
        raise UsageError(
            f"input_ids must be token ids of int64 or int32, got {ids.dtype}: encode the prompt "
            f"with the model's tokenizer"
        )
    least, most = (int(found) for found in ids.aminmax())
    if least < 0 or most >= config.vocab_size:
        raise UsageError(
            f"input_ids must be in 0..{config.vocab_size - 1}, the model's vocabulary, got "
            f"{least}..{most}: encode the prompt with the model's tokenizer"
        )


def _check_model(model: Any, *, padded: bool) -> None:
    if model.training and getattr(model, "is_gradient_checkpointing", False):
        raise UsageError(
            "model must not be in training with gradient checkpointing, under which transformers "
            "keeps no cache: call model.eval()"
        )
    eager = getattr(model.config, "_attn_implementation", None) == "eager"
    if padded and eager and model.dtype == torch.float64:
        raise UsageError(
            "attention must be sdpa for a padded prompt in float64, got eager, which gives nan "
            "where a piece holds padding only: load the model with attn_implementation='sdpa'"
        )


def _check_cache(cache: Cache, config: PreTrainedConfig) -> None:
    if isinstance(cache, StaticCache):
        raise UsageError("cache must grow, got a static one: make it with rolling_cache(config)")
    layers: list[Any] = cache.layers
    if len(layers) != config.num_hidden_layers:
        raise UsageError(
            f"cache must have the model's {config.num_hidden_layers} layers, got {len(layers)}: "
            f"make it with rolling_cache(model.config)"
        )
    window = window_of(config)
    for place, layer in enumerate(layers):
        found = getattr(layer, "sliding_window", None)
        if found != window:
            raise UsageError(
                f"cache must roll with the model's window of {window} tokens, got {found} in layer "
                f"{place}: make it with rolling_cache(model.config)"
            )
    if cache.get_seq_length():
        raise UsageError(
            f"cache must be empty, got one that has read {cache.get_seq_length()} tokens: give a "
            f"new one for each prompt"
        )
