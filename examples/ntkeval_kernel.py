"""Which skill moves which: the kernel of four small skills, before long training is paid for."""

from itertools import product

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trialrun.evaluation.ntkeval import Example, GradientStep, NTKEval

LETTERS = "0123+-pm:=."


def small_model():
    """Make a model and a tokenizer; put your own checkpoint's in their place."""
    words = Tokenizer(models.WordLevel({c: i for i, c in enumerate(LETTERS)}, "."))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(LETTERS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=LETTERS.index("."),
        bos_token_id=None,
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=".")
    return LlamaForCausalLM(config).eval(), tokenizer


def main():
    """Measure the kernel exactly and by draws, split it, and leave the model as it was."""
    model, tokenizer = small_model()
    before = [weight.clone() for weight in model.parameters()]
    pairs = list(product(range(4), repeat=2))
    told = {"infix": ("{}+{}=", "{}-{}="), "prefix": ("p{}{}:", "m{}{}:")}
    skills = {
        (name, form): [
            Example(asked.format(a, b), str((a + b if name == "add" else a - b) % 4))
            for a, b in pairs
        ]
        for form, both in told.items()
        for name, asked in zip(("add", "subtract"), both, strict=True)
    }
    step = GradientStep(rate=1e-2, steps=5, optimiser="adamw")
    settings = {"tokenizer": tokenizer, "max_new_tokens": 2}
    for estimator in ("exact", "mixture"):
        probe = NTKEval(model, skills, estimator=estimator, samples=64, **settings)
        kernel = probe.kernel(step)
        print(f"{estimator}: trained on (row), asked (column), change in points")
        for label, row in zip(kernel.labels, 100 * kernel.mean, strict=True):
            print(f"  {label:<16}", " ".join(f"{value:+6.1f}" for value in row))
        split = kernel.anova()
        print("  shares", {part: round(share, 2) for part, share in split.shares.items()})
    same = all(map(torch.equal, before, model.parameters()))
    print("the model is as it was, bit for bit:", same)


if __name__ == "__main__":
    main()
