"""How ReRoPE sits in a transformers decoder: checks, the padding it needs, and the new forward.

transformers rotates queries and keys before the cache, so each attention module's ``forward`` is
replaced on the instance by one that caches keys un-rotated (leaky: at their far angle). The mask
is replaced too, by the tokens that are real in each row: a (query, key) mask would be quadratic.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from trialrun.attention._rectified import Row, Scheme, attend_rows, real_rows
from trialrun.blocks.rotary import Rotary
from trialrun.core.errors import UsageError

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")
IMPLEMENTATION = "trialrun_rerope"


@dataclass(frozen=True)
class Real:
    """What the mask function leaves for the attention modules in place of a mask."""

    rows: tuple[Row, ...]
    total: int


def check_host(model: Any) -> nn.Module:
    """Return the model's rotary module, or say why ReRoPE cannot serve this model.

    Raises
    ------
    ValueError
        With what was found and the remedy.
    """
    config = getattr(model, "config", None)
    if not isinstance(model, nn.Module) or config is None:
        raise UsageError(f"model must be a transformers model, got {type(model).__name__}")
    kind = getattr(config, "model_type", type(model).__name__)
    rotary = next((m for n, m in model.named_modules() if n.endswith("rotary_emb")), None)
    if rotary is None or not hasattr(rotary, "inv_freq"):
        raise UsageError(
            f"ReRoPE needs a model with rotary position embedding, and {kind} has none: choose "
            f"one of {', '.join(SUPPORTED)}"
        )
    if kind not in SUPPORTED:
        raise UsageError(f"ReRoPE serves {', '.join(SUPPORTED)} models, got {kind}")
    rope = config.rope_parameters["rope_type"]
    if rope != "default":
        raise UsageError(
            f"the model's rotary embedding is already scaled (rope_type {rope!r}): load it with "
            f"rope_type 'default' and give ReRoPE the length it was trained at before scaling"
        )
    layers = getattr(config, "layer_types", None) or ()
    if getattr(config, "sliding_window", None) is not None or "sliding_attention" in layers:
        raise UsageError(
            f"the model's config has an active sliding window of {config.sliding_window} tokens, "
            f"which hides far keys: load it with sliding_window=None (Qwen: "
            f"use_sliding_window=False)"
        )
    return rotary


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """Return the model's self-attention modules in order."""
    return [module for name, module in model.named_modules() if name.endswith("self_attn")]


def register() -> None:
    """Tell transformers the name that stands for ReRoPE's mask; harmless to repeat."""
    ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _padding_only)
    ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _refuse)


def _refuse(module: nn.Module, *_: Any, **__: Any) -> None:
    raise UsageError(
        f"{type(module).__name__} shares its config with a model that ReRoPE is attached to: give "
        f"each model its own copy of the config"
    )


def _padding_only(
    *,
    kv_length: int,
    attention_mask: Tensor | None = None,
    mask_function: Any = causal_mask_function,
    **_: Any,
) -> Real | None:
    if mask_function is not causal_mask_function:
        raise UsageError(
            "ReRoPE takes one sequence a row under plain causal attention: pass packed sequences "
            "as rows of their own, with an attention_mask where rows are padded"
        )
    if attention_mask is None:
        return None
    if attention_mask.shape[1] != kv_length:
        raise UsageError(
            f"attention_mask must cover the {kv_length} cached and new tokens, got "
            f"{attention_mask.shape[1]}; a static cache counts its empty places too: use "
            f"DynamicCache"
        )
    rows = real_rows(attention_mask)
    return None if rows is None else Real(rows, kv_length)


def check_positions(position_ids: Tensor, keys: int, rows: tuple[Row, ...] | None) -> None:
    """Raise unless positions count real tokens, or all tokens, without gaps.

    The cache keeps no positions: each row's tokens are taken to follow one another.
    """
    found = position_ids[:, -1].tolist()
    for b, last in enumerate(found * len(rows or ()) if len(found) == 1 and rows else found):
        row = rows[b] if rows else None
        if (
            row is not None
            and (row.index[-1] if row.index is not None else row.stop - 1) != keys - 1
        ):
            continue
        counted = keys if row is None else len(row)
        if last == counted - 1 or (last == keys - 1 and (row is None or row.index is None)):
            continue
        raise UsageError(
            f"position_ids must count the tokens of a row without gaps, so that the last of row "
            f"{b} is {counted - 1}, got {last}: leave position_ids out"
        )


def make_forward(module: nn.Module, scheme: Scheme) -> MethodType:
    """Return the forward that replaces the module's own."""

    def forward(
        self: Any,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,  # noqa: ARG001 host's signature
        attention_mask: Any = None,
        past_key_values: Cache | None = None,
        position_ids: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        if attention_mask is not None and not isinstance(attention_mask, Real):
            raise UsageError(
                "ReRoPE takes attention_mask of shape (batch, tokens), 1 for real tokens; for a "
                "changed attention implementation, detach first and attach again"
            )
        if self.training and self.attention_dropout:
            raise UsageError(
                f"ReRoPE has no attention dropout: set attention_dropout to 0 in the config "
                f"(now {self.attention_dropout}), or call model.eval()"
            )
        q, k, v = _project(self, hidden_states)
        k, v = _remember(self, k, v, past_key_values, scheme)
        rows = attention_mask.rows if attention_mask is not None else None
        if self.layer_idx == 0 and position_ids is not None:
            check_positions(position_ids, k.shape[2], rows)
        out = attend_rows(q, k, v, scheme, rows)
        out = out.transpose(1, 2).reshape(*hidden_states.shape[:-1], -1)
        return self.o_proj(out), None

    return MethodType(forward, module)


def _project(module: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shape = (*hidden.shape[:-1], -1, module.head_dim)
    q = module.q_proj(hidden).view(shape)
    k = module.k_proj(hidden).view(shape)
    if hasattr(module, "q_norm"):
        q, k = module.q_norm(q), module.k_norm(k)
    v = module.v_proj(hidden).view(shape)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def _remember(
    module: Any, k: Tensor, v: Tensor, cache: Cache | None, scheme: Scheme
) -> tuple[Tensor, Tensor]:
    """Append to the cache and return all keys at their far angle, and all values."""
    past = cache.get_seq_length(module.layer_idx) if cache is not None else 0
    if scheme.rule.slope is not None:
        kind = torch.float64 if k.dtype == torch.float64 else torch.float32
        at = torch.arange(past, past + k.shape[2], dtype=kind, device=k.device)
        k = scheme.rotary(k, scheme.rule.key_angle(at))
    if cache is None:
        return k, v
    layers = getattr(cache, "layers", [])
    layer = layers[module.layer_idx] if module.layer_idx < len(layers) else None
    if layer is not None and (not isinstance(layer, DynamicLayer) or layer.is_sliding):
        raise UsageError(
            f"ReRoPE needs a cache that grows and keeps every token, got {type(layer).__name__}: "
            f"use DynamicCache (leave cache_implementation out of generate)"
        )
    return cache.update(k, v, module.layer_idx)


def frequencies(rotary: nn.Module) -> Rotary:
    """Return the model's own angles as a `Rotary`."""
    table = rotary.inv_freq
    assert isinstance(table, Tensor)
    return Rotary.from_frequencies(table.to(torch.float32))
