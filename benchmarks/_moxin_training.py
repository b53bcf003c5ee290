"""Rows of moxin's training half: decoding from the rolling cache, and the loop's own cost."""

import numpy as np
import torch
from accelerate import Accelerator
from transformers import DynamicCache, MistralConfig, MistralForCausalLM

from _bench import Row, compare
from trialrun.pretraining.moxin import (
    Optimiser,
    Phase,
    Phases,
    Rate,
    TokenSource,
    cache_bytes,
    prefill,
    train,
)

PROMPT, WINDOW, STEPS = 4096, 256, 16


def _model(*, layers: int, width: int, window: int | None) -> MistralForCausalLM:
    torch.manual_seed(0)
    return MistralForCausalLM(
        MistralConfig(
            vocab_size=256,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=2,
            max_position_embeddings=2 * PROMPT,
            sliding_window=window,
        )
    )


@torch.no_grad()
def decoding() -> Row:
    """Decode after a long prompt: from a window's keys, and from all under the same mask."""
    model = _model(layers=4, width=256, window=WINDOW).eval()
    ids = torch.randint(0, 256, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    rolling = prefill(model, ids).cache
    full = DynamicCache()
    for piece in ids.split(WINDOW, 1):
        model(piece, past_key_values=full, logits_to_keep=1)
    share = cache_bytes(rolling).held / cache_bytes(full).held

    def steps(cache: object) -> None:
        for _ in range(STEPS):
            model(ids[:, :1], past_key_values=cache)

    name = (
        f"decode at {PROMPT} tokens, window {WINDOW}, against a full cache ({share:.3f} of bytes)"
    )
    return compare(name, lambda: steps(rolling), lambda: steps(full), faster=True, at_least=1.0)


def loop() -> Row:
    """Train for 20 steps with the loop, and with the plainest loop that does the same sums."""
    data = np.random.default_rng(0).integers(0, 256, 100_000)
    phase = Phase(
        name="a",
        context=128,
        tokens=20 * 2048,
        batch_tokens=2048,
        mixture={"text": 1},
        rate=Rate(peak=1e-3, shape="constant"),
    )
    accelerator = Accelerator(cpu=True)
    ours_model, plain = (_model(layers=2, width=128, window=None) for _ in range(2))

    def ours() -> None:
        train(
            ours_model,
            Phases([phase]),
            {"text": TokenSource(data)},
            seed=0,
            optimiser=Optimiser(),
            micro_batch=16,
            accelerator=accelerator,
        )

    def other() -> None:
        plain.train()
        adam = torch.optim.AdamW(plain.parameters(), lr=1e-3, betas=(0.9, 0.95))
        for step in range(20):
            rows = (step * 16 + np.arange(16))[:, None] * 128 + np.arange(129)
            ids = torch.from_numpy(data[rows])
            logits = plain(input_ids=ids[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            adam.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            adam.step()

    return compare("20 steps of train() against a bare loop", ours, other, repeats=7, at_most=1.15)


def rows() -> list[Row]:
    """Return the rows of the training half."""
    return [decoding(), loop()]
