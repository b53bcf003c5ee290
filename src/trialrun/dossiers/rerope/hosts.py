"""Which model and text a run is about, and the same model under other position schemes.

Rivals are transformers' own: linear scaling (position interpolation), dynamic NTK with factor 1
(the NTK-aware base for the length at hand), YaRN, and the sliding-window mask. Each scaling is
given the true ratio of lengths, which is the best it can hope for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, MistralConfig

from trialrun.attention._rerope_host import check_host
from trialrun.claims.contract import Context, On
from trialrun.core.errors import NotRunnable, UsageError
from trialrun.dossiers.rerope.sizes import Sizes
from trialrun.material.packs import PACKS, require_pack
from trialrun.material.stdlib_text import load_stdlib_text


@dataclass(frozen=True)
class Host:
    """A model's folder or hub id, the length it was trained at, and the device to run it on."""

    where: str
    train_len: int
    device: str


def sizes_of(ctx: Context) -> Sizes:
    """Return the budget as this dossier's settings."""
    assert isinstance(ctx.budget, Sizes)
    return ctx.budget


def host_of(ctx: Context) -> Host:
    """Return the byte model trained for this seed, or the one ``--model`` named.

    A user's model is taken to be trained at ``max_position_embeddings`` tokens; ``NAME@LENGTH``
    says otherwise.
    """
    if ctx.model is None:
        length = sizes_of(ctx).text.shape.length
        return Host(str(ctx.prepared("text")), length, ctx.device)
    name, _, told = ctx.model.rpartition("@")
    if not name or not told.isdigit():
        name, told = ctx.model, ""
    if name in PACKS:
        name = str(require_pack(name))
    config = _config(name)
    trained = int(told) if told else int(config.max_position_embeddings)
    return Host(name, min(trained, sizes_of(ctx).model_pretends or trained), ctx.device)


def _config(where: str) -> Any:
    try:
        config = AutoConfig.from_pretrained(where)
    except (OSError, ValueError) as error:
        raise NotRunnable(
            f"no model could be read from {where!r}: give a folder saved by transformers, or a hub "
            f"id that can be reached from here"
        ) from error
    if not hasattr(config, "max_position_embeddings"):
        raise UsageError(
            f"ReRoPE needs a model with rotary position embedding, and {config.model_type} has "
            f"none: choose a Llama, Mistral, Qwen2 or Qwen3"
        )
    return config


def check_model(ctx: Context) -> None:
    """Raise unless ``--model`` can be run under this budget, without loading its weights."""
    host = host_of(ctx)
    with torch.device("meta"):
        check_host(AutoModelForCausalLM.from_config(_config(host.where)))
    lengths_of(ctx, host)


def lengths_of(ctx: Context, host: Host) -> dict[str, int]:
    """Return the tested lengths by name, ``2T`` and so on.

    Raises
    ------
    NotRunnable
        If even the shortest is beyond what the budget allows for a user's model.
    """
    sizes = sizes_of(ctx)
    longest = sizes.model_longest if ctx.model is not None else None
    found = {f"{m}T": m * host.train_len for m in sizes.multiples}
    kept = {name: n for name, n in found.items() if longest is None or n <= longest}
    if not kept:
        raise NotRunnable(
            f"the model was trained at {host.train_len} tokens, and this budget reads at most "
            f"{longest}: choose a model trained at {(longest or 0) // 2} or fewer, a larger "
            f"--budget, or state another training length as MODEL@LENGTH"
        )
    return kept


def corpus(on: On | None) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return bytes to train on and bytes held out: the standard library's, or the user's file.

    A file of the user's own keeps its last tenth aside.
    """
    if on is None:
        text = load_stdlib_text()
        return text.train, text.held_out
    data = np.frombuffer(Path(on.path).read_bytes(), dtype=np.uint8)
    if len(data) < 200_000:
        raise UsageError(
            f"--on {on.path}: at least 200000 bytes of text are needed, got {len(data)}"
        )
    cut = len(data) * 9 // 10
    return data[:cut], data[cut:]


def held_out_tokens(ctx: Context, host: Host) -> NDArray[Any]:
    """Return held-out text in the model's own tokens (bytes for the byte model)."""
    held_out = corpus(ctx.on)[1]
    if ctx.model is None:
        return held_out
    tokenizer = AutoTokenizer.from_pretrained(host.where)
    text = held_out.tobytes().decode("utf-8", errors="replace")
    return np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"])


def load_host(
    host: Host, *, scaling: dict[str, Any] | None = None, sliding: int | None = None
) -> Any:
    """Load the model, with another rotary scaling or a sliding window where asked."""
    config = _config(host.where)
    if sliding is not None:
        config = _with_sliding_window(config, sliding)
    if scaling is not None:
        theta = config.rope_parameters["rope_theta"]
        config.rope_parameters = {"rope_theta": theta, **scaling}
    config.max_position_embeddings = host.train_len
    model = AutoModelForCausalLM.from_pretrained(
        host.where,
        config=config,
        use_safetensors=True,
        dtype=torch.float32 if host.device == "cpu" else torch.bfloat16,
    )
    return model.to(torch.device(host.device)).eval()  # type: ignore[arg-type]


def _with_sliding_window(config: Any, window: int) -> Any:
    settings = config.to_dict()
    for name in ("model_type", "layer_types", "architectures", "rerope"):
        settings.pop(name, None)
    if config.model_type in ("qwen2", "qwen3"):
        wanted = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0}
        return type(config)(**{**settings, **wanted})
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        raise NotRunnable(
            "the sliding-window rival runs Llama weights as a Mistral, which has no biases, and "
            "this model has some: choose a model without them"
        )
    return MistralConfig(**{**settings, "sliding_window": window})
