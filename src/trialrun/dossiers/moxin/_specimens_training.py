"""Smallest working instances of the training half's entries, for the conformance suite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import MistralConfig, MistralForCausalLM

from trialrun.core.seeds import split
from trialrun.dossiers.specimen import FunctionSpecimen
from trialrun.pretraining._deepen import deepen_model
from trialrun.pretraining._losses import (
    IGNORED,
    dpo_loss,
    group_advantages,
    grpo_loss,
    sft_loss,
)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(split(seed, "specimen"))


def _chat(seed: int) -> dict[str, Any]:
    draw = _generator(seed)
    labels = torch.randint(0, 11, (3, 9), generator=draw)
    labels[:, :4] = IGNORED
    labels[1, 7:] = IGNORED
    return {"logits": torch.randn(3, 9, 11, generator=draw, dtype=torch.float64), "labels": labels}


def _padded(seed: int) -> tuple[Any, Any]:
    inputs: Any = _chat(seed)
    draw = _generator(seed + 1)
    more = torch.randn(3, 4, 11, generator=draw, dtype=torch.float64)
    padding = torch.full((3, 4), IGNORED)
    longer: Any = {
        "logits": torch.cat([inputs["logits"], more], 1),
        "labels": torch.cat([inputs["labels"], padding], 1),
    }
    return sft_loss(**inputs), sft_loss(**longer)


_PAIR = ("chosen", "rejected", "chosen_reference", "rejected_reference")


def _pairs(seed: int) -> dict[str, Any]:
    draw = _generator(seed)
    return {name: -torch.rand(5, generator=draw, dtype=torch.float64) for name in _PAIR}


def _shifted(seed: int) -> tuple[Any, Any]:
    inputs = _pairs(seed)
    moved = {name: value + 0.25 for name, value in inputs.items()}
    return dpo_loss(**inputs).loss, dpo_loss(**moved).loss


def _policy(seed: int) -> dict[str, Any]:
    draw = _generator(seed)
    logps, old, reference = (
        -torch.rand(6, 7, generator=draw, dtype=torch.float64) for _ in range(3)
    )
    trained = torch.rand(6, 7, generator=draw) < 0.7
    trained[:, 0] = True
    rewards = torch.randn(2, 3, generator=draw, dtype=torch.float64)
    return {
        "logps": logps,
        "old": old,
        "reference": reference,
        "advantages": group_advantages(rewards).flatten(),
        "trained": trained,
    }


def _untrained_places(seed: int) -> tuple[Any, Any]:
    inputs = _policy(seed)
    wild = torch.where(inputs["trained"], inputs["logps"], torch.full_like(inputs["logps"], 1e4))
    return grpo_loss(**inputs).loss, grpo_loss(**{**inputs, "logps": wild}).loss


def _small(seed: int) -> Any:
    config = MistralConfig(
        vocab_size=17,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        sliding_window=4,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(split(seed, "model"))
        return MistralForCausalLM(config).eval()


def _weights(seed: int) -> dict[str, Any]:
    ids = torch.randint(0, 17, (2, 9), generator=_generator(seed))
    return {"ids": ids, "weights": _small(seed).state_dict()}


def _deepened_logits(inputs: Mapping[str, Any]) -> Any:
    model = _small(0)
    model.load_state_dict(inputs["weights"])
    with torch.no_grad():
        return deepen_model(model, layers=3)(inputs["ids"]).logits


def _same_at_the_start(seed: int) -> tuple[Any, Any]:
    model, ids = _small(seed), _weights(seed)["ids"]
    with torch.no_grad():
        return model(ids).logits, deepen_model(model, layers=4)(ids).logits


SPECIMENS_TRAINING = (
    FunctionSpecimen(
        entry="trialrun.pretraining.moxin:deepen_model",
        run=_deepened_logits,
        inputs=_weights,
        bad=(
            ("layers must be at least the source's 2", lambda: deepen_model(_small(0), layers=1)),
            ("layers must be at most twice", lambda: deepen_model(_small(0), layers=5)),
            (
                "model must be a causal language model",
                lambda: deepen_model(torch.nn.Linear(2, 2), layers=2),
            ),
        ),
        invariances=(("a silent deepening changes nothing", _same_at_the_start),),
    ),
    FunctionSpecimen(
        entry="trialrun.pretraining.moxin:sft_loss",
        run=lambda inputs: sft_loss(**inputs),
        inputs=_chat,
        bad=(
            (
                "row 0 has none",
                lambda: sft_loss(torch.zeros(1, 3, 4), torch.full((1, 3), IGNORED)),
            ),
            (
                "labels must have the shape",
                lambda: sft_loss(torch.zeros(1, 3, 4), torch.zeros(1, 2, dtype=torch.long)),
            ),
        ),
        invariances=(("padding on the right changes nothing", _padded),),
    ),
    FunctionSpecimen(
        entry="trialrun.pretraining.moxin:dpo_loss",
        run=lambda inputs: tuple(dpo_loss(**inputs)),
        inputs=_pairs,
        bad=(
            ("beta must be a positive number", lambda: dpo_loss(**_pairs(0), beta=0.0)),
            (
                "rejected must have the shape",
                lambda: dpo_loss(**{**_pairs(0), "rejected": torch.zeros(4)}),
            ),
        ),
        invariances=(("raising every log-probability alike changes nothing", _shifted),),
    ),
    FunctionSpecimen(
        entry="trialrun.pretraining.moxin:grpo_loss",
        run=lambda inputs: tuple(grpo_loss(**inputs)),
        inputs=_policy,
        bad=(
            ("clip must be in", lambda: grpo_loss(**_policy(0), clip=1.5)),
            (
                "advantages must have shape",
                lambda: grpo_loss(**{**_policy(0), "advantages": torch.zeros(2, 3)}),
            ),
        ),
        invariances=(("what stands at untrained places does not matter", _untrained_places),),
    ),
)
