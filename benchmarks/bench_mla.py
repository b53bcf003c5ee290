"""Decoding on latents beside what one would use instead, at DeepSeek-V2-Lite's widths.

Run with ``python benchmarks/bench_mla.py``, one thread, float32. One attention layer of
transformers' DeepSeek-V2 decodes one token after a filled cache: as it is (expanding all latents
at every step), and with the patch. The expanded cache holds the same layer's keys and values
themselves, appended in place, with the faster of PyTorch's two ways to attend to them.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DeepseekV2Config, DynamicCache
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2ForCausalLM

from _bench import Row, compare, emit, figure
from bench_rerope import Live
from trialrun.attention.mla import (
    AbsorbedMLA,
    LatentCache,
    MultiHeadLatentAttention,
    absorbed_attention,
    crossover,
    materialised_attention,
)

HEADS, RANK, NOPE, ROPE, VALUE, WIDTH = 16, 512, 128, 64, 128, 2048
PER_TOKEN = (RANK + ROPE) * 4
STEPS = 2


def host() -> Any:
    """Return a one-layer DeepSeek-V2 model, all but its attention small."""
    config = DeepseekV2Config(
        vocab_size=64,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=1,
        first_k_dense_replace=1,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        q_lora_rank=None,
        kv_lora_rank=RANK,
        qk_nope_head_dim=NOPE,
        qk_rope_head_dim=ROPE,
        v_head_dim=VALUE,
        max_position_embeddings=131072,
    )
    torch.manual_seed(0)
    return DeepseekV2ForCausalLM(config).eval()


class Decoder:
    """One attention layer that decodes a token after ``length`` cached ones, and forgets it."""

    def __init__(self, model: Any, length: int) -> None:
        draw = torch.Generator().manual_seed(0)
        self.attention = model.model.layers[0].self_attn
        self.x = torch.randn(1, 1, WIDTH, generator=draw)
        self.angles = model.model.rotary_emb(self.x, torch.tensor([[length]]))
        self.cache = DynamicCache(config=model.config)
        parts = (torch.randn(1, 1, length, n, generator=draw) for n in (RANK, ROPE))
        self.cache.update(*parts, 0)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """Decode, and return the last output."""
        for _ in range(STEPS):
            out = self.step()
            self.cache.crop(-1)
        return out

    @torch.no_grad()
    def step(self) -> Tensor:
        """Decode, and keep the token."""
        return self.attention(
            self.x,
            position_embeddings=self.angles,
            attention_mask=None,
            past_key_values=self.cache,
        )[0]


class Expanded(Decoder):
    """The same layer with keys and values of every head in the cache, appended in place."""

    def __init__(self, model: Any, length: int, *, matrices: bool) -> None:
        super().__init__(model, length)
        self.layer = MultiHeadLatentAttention.from_transformers(model).requires_grad_(False)
        self.matrices, self.length = matrices, length
        layer = self.cache.layers[0]
        k, v = self.attention.expand_kv(layer.keys, layer.values)
        self.k = torch.cat((k, k[:, :, :1]), dim=2).contiguous()
        self.v = torch.cat((v, v[:, :, :1]), dim=2).contiguous()
        if not matrices:
            # PyTorch's CPU kernel wants values as wide as keys; otherwise it takes a slower path.
            self.v = torch.nn.functional.pad(self.v, (0, NOPE + ROPE - VALUE))
        del self.cache

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """Decode, and return the last output."""
        layer, place = self.layer, torch.tensor([self.length])
        rotary = layer.rotary
        assert rotary is not None
        for _ in range(STEPS):
            q_nope, q_rope = layer._queries(self.x)
            latent, turned = layer.kv_a_proj_with_mqa(self.x).split((RANK, ROPE), dim=-1)
            both = layer.kv_b_proj(layer.kv_a_layernorm(latent)).view(1, 1, HEADS, -1)
            both = both.transpose(1, 2)
            self.k[:, :, -1:, :NOPE] = both[..., :NOPE]
            self.k[:, :, -1:, NOPE:] = rotary(turned, place)[:, None]
            self.v[:, :, -1:, :VALUE] = both[..., NOPE:]
            q = torch.cat((q_nope, rotary(q_rope, place)), dim=-1)
            if self.matrices:
                scores = (q @ self.k.transpose(2, 3)) * layer.scale
                out = scores.softmax(-1) @ self.v
            else:
                attend = torch.nn.functional.scaled_dot_product_attention
                out = attend(q, self.k, self.v, scale=layer.scale)
            out = layer.o_proj(out[..., :VALUE].transpose(1, 2).flatten(2))
        return out


class Own:
    """This package's module and cache on the same latents."""

    def __init__(self, model: Any, length: int) -> None:
        made = Decoder(model, length)
        self.x = made.x
        self.layer = MultiHeadLatentAttention.from_transformers(model).requires_grad_(False).eval()
        self.cache = LatentCache(reserve=length + 1)
        layer = made.cache.layers[0]
        self.cache.append(layer.keys[:, 0], layer.values[:, 0])

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """Decode, and return the last output."""
        for _ in range(STEPS):
            out = self.layer(self.x, self.cache)
            self.cache.crop(-1)
        return out


def memory(model: Any, length: int) -> list[Row]:
    """Return peak bytes of a decode step, cache included, over the bytes of the latents alone."""
    latents = (length + 1) * PER_TOKEN
    own = Own(model, length)
    weights = [*own.layer.parameters(), *own.layer.buffers(), own.x]
    with Live([*weights, own.cache.latent]) as live:
        own()
    mine = (own.cache.nbytes_allocated + live.peak) / latents
    patched = Decoder(model, length)
    held = patched.cache.layers[0]
    before = held.keys.nbytes + held.values.nbytes
    weights = [*model.parameters(), *model.buffers(), patched.x, *patched.angles]
    with AbsorbedMLA().attached(model), Live([*weights, held.keys, held.values]) as live:
        patched.step()
    # DynamicCache concatenates, so that old and new latents stand beside each other: transformers'
    # own doing, with the patch or without it. What the patch needs is what comes on top.
    theirs = (before + live.peak) / latents
    return [
        figure(f"{length}: cache and all scratch / latents", mine, "of the latents", at_most=1.05),
        figure(
            f"{length}: patched model's step, with DynamicCache's copy / latents",
            theirs,
            "of the latents",
            at_most=2.05,
        ),
    ]


def check(model: Any, length: int) -> None:
    """Raise unless all contestants compute the same, to float32's rounding."""
    plain = Decoder(model, length)()
    with AbsorbedMLA().attached(model):
        patched = Decoder(model, length)()
    others = [Own(model, length)()]
    others += [Expanded(model, length, matrices=m)() for m in (False, True)]
    for found in (patched, *others):
        torch.testing.assert_close(found, plain, atol=2e-5, rtol=2e-3)


def decoding(length: int, repeats: int) -> list[Row]:
    """Compare decode steps after ``length`` tokens."""
    plain, patched = host(), host()
    AbsorbedMLA().attach(patched)
    fast = Decoder(patched, length)
    # The faster of the two is what the expanded cache is given.
    ways = [Expanded(plain, length, matrices=m) for m in (False, True)]
    probe = compare("", ways[0], ways[1], repeats=3)
    best = ways[0] if probe["ratio"] < 1 else ways[1]
    name = f"{length} cached"
    return [
        compare(
            f"{name}: re-expanding (as transformers) / patched",
            fast,
            Decoder(plain, length),
            repeats=repeats,
            faster=True,
            at_least=10.0,
        ),
        compare(
            f"{name}: expanded cache / patched",
            fast,
            best,
            repeats=25,
            faster=True,
            at_least=1.5,
        ),
        compare(
            f"{name}: expanded cache / own module and cache",
            Own(plain, length),
            best,
            repeats=25,
            faster=True,
            at_least=1.5,
        ),
    ]


def around_the_crossover(length: int) -> list[Row]:
    """Compare both ways to attend at a quarter, once and four times the derived query length."""
    draw = torch.Generator().manual_seed(0)
    latent, turned = (torch.randn(1, length, n, generator=draw) for n in (RANK, ROPE))
    up = torch.randn(HEADS * (NOPE + VALUE), RANK, generator=draw) * RANK**-0.5
    middle = crossover(RANK, NOPE, VALUE, cached=length)

    def both(query: int) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
        q = [torch.randn(1, HEADS, query, n, generator=draw) for n in (NOPE, ROPE)]
        parts = (*q, latent, turned, up)
        scale = (NOPE + ROPE) ** -0.5
        return (
            lambda: absorbed_attention(*parts, scale=scale),
            lambda: materialised_attention(*parts, scale=scale),
        )

    rows = []
    for factor in (0.25, 1.0, 4.0):
        query = math.floor(middle * factor)
        ours, other = both(query)
        name = f"{length}: absorbed / materialised, {query} new ({factor:g} crossover)"
        limits = {"at_most": 1.0 if factor < 1 else None, "at_least": 1.0 if factor > 1 else None}
        rows.append(compare(name, ours, other, repeats=3, **limits))
    return rows


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    model = host()
    check(model, 512)
    # Collecting garbage before each timing would walk all of transformers every time.
    gc.freeze()
    rows = [
        *decoding(4096, repeats=5),
        *decoding(16384, repeats=3),
        *memory(model, 4096),
        *memory(model, 16384),
        *around_the_crossover(2048),
    ]
    emit(
        rows,
        limit="a step multiplies 2 heads (2 rank + rope) numbers per cached token and reads "
        "rank + rope of them, linear in length; memory is the latents' own",
    )


if __name__ == "__main__":
    main()
