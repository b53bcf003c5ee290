"""A recipe in small: clean text, two context phases, a stop, and going on from the checkpoint.

The same recipe file runs on many processors or machines with ``accelerate launch -m
trialrun.pretraining.train recipe.yaml``.
"""

import tempfile
from pathlib import Path

from transformers.utils import logging

from trialrun.material.stdlib_text import load_stdlib_text
from trialrun.pretraining.moxin import (
    LengthFilter,
    MinHashDedup,
    Normalise,
    Pipeline,
    byte_vocabulary,
    read_recipe,
    run_recipe,
    write_tokens,
)

RECIPE = """
out: run
seed: 1
save_every: 30
model:
  config: {vocab_size: 257, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2,
           num_attention_heads: 4, num_key_value_heads: 2, sliding_window: 32}
  layers: 3
sources: {library: library.npy}
phases:
  - {name: short, context: 32, tokens: 30720, batch_tokens: 512, mixture: {library: 1},
     rate: {peak: 5.0e-3, warmup: 0.1}}
  - {name: long, context: 128, tokens: 10240, batch_tokens: 512, mixture: {library: 1},
     rate: {peak: 1.0e-3, shape: linear}}
"""


class Stop(Exception):
    """Stands for the machine that is taken away in the middle of a run."""


def main():
    """Clean a corpus, train until interrupted, go on, and print what happened."""
    logging.disable_progress_bar()
    text = load_stdlib_text().train[:200_000].tobytes().decode("utf-8", errors="replace")
    pages = [text[i : i + 2000] for i in range(0, len(text), 2000)]
    clean = Pipeline([Normalise(), LengthFilter(200), MinHashDedup(threshold=0.8, ngram=13)])
    with tempfile.TemporaryDirectory() as place:
        folder, words = Path(place), byte_vocabulary()
        documents = (document.text for document in clean([*pages, *pages[:50]]))
        tokens = write_tokens(
            documents, folder / "library.npy", words.encode, end=words.end, vocabulary=words.size
        )
        (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
        recipe = read_recipe(folder / "recipe.yaml")

        def stop(step):
            if step.step == 47:
                raise Stop

        try:
            run_recipe(recipe, cpu=True, report=stop)
        except Stop:
            print("stopped at step 47")
        steps = run_recipe(recipe, cpu=True)
    print(f"{tokens} tokens after cleaning {len(pages) + 50} pages of which 50 were copies")
    print(f"went on at step {steps[0].step} of {recipe.phases.steps}, in phase {steps[-1].phase}")
    print(f"loss {steps[0].loss:.1f} to {steps[-1].loss:.1f} nats per byte")


if __name__ == "__main__":
    main()
