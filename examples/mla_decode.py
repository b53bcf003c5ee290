"""Decode on latents: a DeepSeek-V2 model as it is, patched, and one layer of it on its own.

The model here is small and at random weights, so that the example needs no download; a hub id such
as ``deepseek-ai/DeepSeek-V2-Lite`` and ``from_pretrained`` take its place.
"""

import torch
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

from trialrun.attention.mla import (
    AbsorbedMLA,
    LatentCache,
    MultiHeadLatentAttention,
    cache_report,
    crossover,
)


def main():
    """Generate with and without the patch, then use one layer with a cache of its own."""
    torch.manual_seed(0)
    config = DeepseekV2Config(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        first_k_dense_replace=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=None,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
    )
    model = DeepseekV2ForCausalLM(config).eval()
    prompt = torch.randint(0, 64, (1, 48))
    plain = model.generate(prompt, max_new_tokens=16, do_sample=False)
    with AbsorbedMLA().attached(model):
        fast = model.generate(prompt, max_new_tokens=16, do_sample=False)
    print("the same tokens:", torch.equal(plain, fast))

    print(f"steps of up to {crossover(32, 16, 16, cached=48):.0f} new tokens are absorbed")
    print(cache_report(model, seq_len=4096))

    layer, cache = MultiHeadLatentAttention.from_transformers(model, layer=0), LatentCache()
    with torch.no_grad():
        layer(torch.randn(1, 48, 64), cache)
        layer(torch.randn(1, 1, 64), cache)
    print("one layer alone keeps", cache)


if __name__ == "__main__":
    main()
