"""ReRoPE on an unmodified transformers model: attach, generate, save, load, detach.

The model here is a small Llama at random weights, so that the example needs no download; with
``trialrun data pull smollm2`` or a hub id, ``from_pretrained`` takes its place.
"""

import tempfile

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from trialrun.attention.rerope import ReRoPE


def main():
    """Read 64 tokens with a model made for 16, and show that everything around it still works."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
    )
    model = LlamaForCausalLM(config).eval()
    prompt = torch.randint(0, 64, (1, 48))
    plain = model(prompt).logits

    patch = ReRoPE(window=8, train_len=16, logn=True)
    with patch.attached(model):
        long = model.generate(prompt, max_new_tokens=16, do_sample=False)
        print("generated", long.shape[1], "tokens with", patch)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            again = AutoModelForCausalLM.from_pretrained(folder)
            ReRoPE.from_config(again.config).attach(again)
            same = again.generate(prompt, max_new_tokens=16, do_sample=False)
    print("after loading, the same tokens:", torch.equal(long, same))
    print("after leaving, the same bits:", torch.equal(plain, model(prompt).logits))


if __name__ == "__main__":
    main()
