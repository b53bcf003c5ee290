"""A Llama turned into a model with a latent cache: convert, compare, save, load, generate.

The host here is a small Llama at random weights, so that the example needs no download; a hub id or
a folder in ``from_pretrained`` takes its place, and a few texts in its own tokens the calibration.
"""

import tempfile

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from trialrun.attention.mla import Healing, cache_report, conversion_gap, convert_to_mla


def main():
    """Cut a grouped-query cache to three eighths and see what that costs at each stage."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    host = LlamaForCausalLM(config).eval()
    calibration, held_out = torch.randint(0, 64, (2, 8, 48))

    print(cache_report(host, seq_len=4096, kv_rank=16, rope_dims=8))
    gap = conversion_gap(host, held_out, 16, 8, calibration=calibration, healing=Healing(steps=10))
    print("loss:", *(f"{stage} {nats:.3f}" for stage, nats in gap._asdict().items()))

    whole = convert_to_mla(host, kv_rank=None, rope_dims=32)
    same = torch.allclose(whole(held_out).logits, host(held_out).logits, atol=1e-4)
    print("nothing cut, nothing lost:", same)

    converted = convert_to_mla(host, kv_rank=16, rope_dims=8, calibration=calibration)
    prompt = held_out[:1, :8]
    settings = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    text = converted.generate(prompt, **settings)
    with tempfile.TemporaryDirectory() as folder:
        converted.save_pretrained(folder)
        again = AutoModelForCausalLM.from_pretrained(folder)
    print("after loading, the same tokens:", torch.equal(text, again.generate(prompt, **settings)))


if __name__ == "__main__":
    main()
