"""Counting cache bytes, and decoding with and without expanding.

The models are DeepSeek's classes of the installed transformers at random weights: the real head
counts and cache widths in one layer for bytes, small ones in two layers for decoding.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
)

from trialrun.attention.mla import AbsorbedMLA, LatentCache, MultiHeadLatentAttention, cache_bytes
from trialrun.core.seeds import split

HEADS = {"V2-Lite": 16, "V2": 128}
RANK, ROPE, WIDTH = 512, 64, 128
VOCABULARY = 64
PROMPT = 12
ROWS = 3

_KINDS: dict[str, tuple[Any, Any]] = {
    "V2": (DeepseekV2Config, DeepseekV2ForCausalLM),
    "V3": (DeepseekV3Config, DeepseekV3ForCausalLM),
}


class Errors(NamedTuple):
    """What decoding gave, as shares.

    The largest error of a logit over the logits' spread; greedy tokens that differ; cached tokens
    that were put through the up-projection again at steps of one token.
    """

    logits: float
    greedy: float
    expanded: float


def bytes_per_token(arm: str, heads: int, tokens: int) -> float:
    """Return the bytes that one layer of the named attention holds for a token."""
    if arm == "mla":
        attention = MultiHeadLatentAttention(
            WIDTH, heads, RANK, nope_dim=WIDTH, rope_dim=ROPE, v_dim=WIDTH
        )
        cache = LatentCache()
        with torch.no_grad():
            attention(torch.zeros(1, tokens, WIDTH), cache=cache)
        return cache_bytes(cache) / tokens
    model = _latent_model(heads) if arm in ("transformers", "expanded") else _headed(arm, heads)
    held = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.zeros(1, tokens, dtype=torch.int64), past_key_values=held, use_cache=True)
        if arm == "expanded":
            latent: Any = held.layers[0]
            parts = model.model.layers[0].self_attn.expand_kv(latent.keys, latent.values)
            return cache_bytes(parts) / tokens
    return cache_bytes(held) / tokens


def _headed(arm: str, heads: int) -> Any:
    groups = {"mha": heads, "mqa": 1, "gqa-8": 8}[arm]
    with torch.random.fork_rng(devices=[]):
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=WIDTH,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=heads,
                num_key_value_heads=groups,
                head_dim=WIDTH,
            )
        ).eval()


def _latent_model(heads: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        return DeepseekV2ForCausalLM(
            DeepseekV2Config(
                vocab_size=VOCABULARY,
                hidden_size=WIDTH,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=heads,
                num_key_value_heads=heads,
                kv_lora_rank=RANK,
                q_lora_rank=None,
                qk_nope_head_dim=WIDTH,
                qk_rope_head_dim=ROPE,
                v_head_dim=WIDTH,
                first_k_dense_replace=1,
            )
        ).eval()


def small_model(kind: str, seed: int) -> Any:
    """Make a random DeepSeek of two dense layers whose attention looks sharply, in float32."""
    config_class, model_class = _KINDS[kind]
    config = config_class(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        kv_lora_rank=32,
        q_lora_rank=24,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        first_k_dense_replace=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(split(seed, "deepseek", kind))
        return model_class(config).eval()


def spoil(model: Any, how: str, seed: int) -> None:
    """Hand the heads one another's up-projection, or give them a random one of the same size."""
    draw = torch.Generator().manual_seed(split(seed, "spoil"))
    for layer in model.model.layers:
        weight = layer.self_attn.kv_b_proj.weight
        with torch.no_grad():
            if how == "permuted":
                weight.copy_(weight.roll(weight.shape[0] // 4, dims=0))
            else:
                weight.copy_(torch.randn(weight.shape, generator=draw) * weight.std())


def scale_by_latent(model: Any) -> None:
    """Scale the scores of single tokens by the width that absorbed queries have: the usual slip."""

    def hook(attention: Any, _: Any, kwargs: dict[str, Any]) -> None:
        wide = attention.kv_lora_rank + attention.qk_rope_head_dim
        single = kwargs["hidden_states"].shape[1] == 1
        attention.scaling = (wide if single else attention.qk_head_dim) ** -0.5

    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(hook, with_kwargs=True)


class Expansions:
    """Count the tokens that go through a model's up-projections of latents."""

    def __init__(self, model: Any) -> None:
        self.tokens = 0
        for layer in model.model.layers:
            layer.self_attn.kv_b_proj.register_forward_pre_hook(self._count)

    def _count(self, _: Any, args: tuple[Tensor, ...]) -> None:
        self.tokens += args[0].shape[:-1].numel()


def prompts(seed: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Return ids (rows, tokens) and a mask whose first rows are padded on the left."""
    draw = torch.Generator().manual_seed(split(seed, "ids"))
    ids = torch.randint(2, VOCABULARY, (ROWS, tokens), generator=draw)
    mask = torch.ones_like(ids)
    for row in range(ROWS - 1):
        mask[row, : 2 * (ROWS - 1 - row)] = 0
    return ids.masked_fill(mask == 0, 0), mask


def errors(kind: str, arm: str, *, seed: int, decoded: int) -> Errors:
    """Decode as the arm does, and compare with one pass in float64 and with the model's text."""
    stock = small_model(kind, seed)
    ids, mask = prompts(seed, PROMPT + decoded)
    with torch.no_grad():
        exact = copy.deepcopy(stock).double()(ids, attention_mask=mask).logits[:, PROMPT - 1 : -1]
    wanted = _greedy(stock, ids, mask, decoded)
    model = copy.deepcopy(stock)
    if arm in ("permuted", "random"):
        spoil(model, arm, seed)
    if arm == "scaled":
        scale_by_latent(model)
    patched = nullcontext() if arm in ("expanded", "whole") else AbsorbedMLA().attached(model)
    with patched:
        found, expanded = _decode(model, ids, mask, by_token=arm != "whole")
        text = _greedy(model, ids, mask, decoded, cached=arm != "whole")
    error = float((found.double() - exact).abs().max() / exact.std())
    return Errors(error, float((text != wanted).double().mean()), expanded)


@torch.no_grad()
def _decode(model: Any, ids: Tensor, mask: Tensor, *, by_token: bool) -> tuple[Tensor, float]:
    seen = Expansions(model)
    steps = range(PROMPT + 1, ids.shape[1])
    most = len(ids) * sum(steps) * len(model.model.layers)
    if not by_token:
        logits = model(ids, attention_mask=mask, use_cache=False).logits[:, PROMPT - 1 : -1]
        return logits, seen.tokens / most
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    each, start = [], 0
    for stop in range(PROMPT, ids.shape[1]):
        out = model(
            ids[:, start:stop],
            attention_mask=mask[:, :stop],
            position_ids=positions[:, start:stop],
            past_key_values=cache,
            use_cache=True,
        )
        each.append(out.logits[:, -1:])
        if not start:
            seen.tokens = 0  # The prompt may be expanded.
        start = stop
    return torch.cat(each, dim=1), seen.tokens / most


def _greedy(model: Any, ids: Tensor, mask: Tensor, decoded: int, *, cached: bool = True) -> Tensor:
    found = model.generate(
        ids[:, :PROMPT],
        attention_mask=mask[:, :PROMPT],
        max_new_tokens=decoded,
        do_sample=False,
        use_cache=cached,
        pad_token_id=0,
    )
    return found[:, PROMPT:]
