"""A byte-level language model small enough to train in a check, and its honest evaluation.

The model is transformers' own Llama, so that whatever serves a hub model serves this one. One
seed fixes everything; the global random state is left as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trialrun.blocks import _stack_transformers  # noqa: F401

# isort: split
import numpy as np
import torch
from jaxtyping import Float, Int, Integer, UInt8
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from trialrun.core.seeds import rng, split

BYTES = 256
Batch = Callable[[int], Int[Tensor, "batch time"]]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Size of a byte model; ``length`` is the training context in bytes."""

    layers: int = 3
    width: int = 96
    heads: int = 3
    length: int = 64
    base: float = 10000.0
    vocabulary: int = BYTES


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """AdamW with a linear warm-up over a tenth of the steps and a cosine to zero.

    ``rate`` is the highest learning rate; ``batch`` counts sequences a step.
    """

    steps: int = 700
    batch: int = 24
    rate: float = 3e-3
    decay: float = 0.01


def make_model(shape: Shape, *, seed: int) -> LlamaForCausalLM:
    """Make an untrained byte model whose weights depend on ``seed`` alone.

    Raises
    ------
    ValueError
        If ``width`` is not a multiple of twice the ``heads``.

    Examples
    --------
    >>> model = make_model(Shape(layers=1, width=8, heads=1, length=4), seed=0)
    >>> model.config.max_position_embeddings
    4
    """
    if shape.width % (2 * shape.heads):
        raise ValueError(
            f"width must be a multiple of twice the heads, got {shape.width} and {shape.heads}"
        )
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=8 * shape.width // 3 // 16 * 16 or 16,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.length,
        rope_parameters={"rope_type": "default", "rope_theta": shape.base},
        tie_word_embeddings=True,
        initializer_range=shape.width**-0.5 / 2,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(split(seed, "weights"))
        return LlamaForCausalLM(config)


def text_batches(data: UInt8[NDArray[np.uint8], " bytes"], shape: Shape, *, seed: int) -> Batch:
    """Return a function that draws random windows of ``shape.length`` + 1 bytes.

    Raises
    ------
    ValueError
        If there are fewer bytes than one window.
    """
    if len(data) <= shape.length:
        raise ValueError(f"text must be longer than {shape.length} bytes, got {len(data)}")
    draw = rng(seed, "text")

    def batch(size: int) -> Tensor:
        starts = draw.integers(0, len(data) - shape.length, size=size)
        windows = data[starts[:, None] + np.arange(shape.length + 1)]
        return torch.from_numpy(windows.astype(np.int64))

    return batch


def train(
    model: LlamaForCausalLM,
    batch: Batch,
    schedule: Schedule,
    *,
    device: str = "cpu",
    weigh: Callable[[Tensor], Tensor] | None = None,
) -> list[float]:
    """Train ``model`` in place and return the loss of every step, in nats per byte.

    Parameters
    ----------
    model : LlamaForCausalLM
        Left on ``device``, in eval mode.
    batch : callable
        Gives (size, time + 1) token ids for a size.
    schedule : Schedule
        Steps, batch, learning rate.
    device : str
        ``cpu`` or ``cuda``.
    weigh : callable or None
        Gives a weight for each target of a batch, (size, time); None weighs all alike.
    """
    model.to(torch.device(device)).train()  # type: ignore[arg-type]
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=schedule.rate, betas=(0.9, 0.98), weight_decay=schedule.decay
    )
    warm = max(1, schedule.steps // 10)
    losses = []
    for step in range(schedule.steps):
        progress = (step - warm) / max(1, schedule.steps - warm)
        rise = (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate * rise
        ids = batch(schedule.batch)
        weights = None if weigh is None else weigh(ids).to(device)
        ids = ids.to(device)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        each = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
        )
        loss = each.mean() if weights is None else (each * weights.flatten()).sum() / weights.sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    model.eval()
    return losses


def save_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Write the model as a transformers folder with safetensors weights."""
    model.save_pretrained(folder)


def load_model(folder: Path, *, device: str = "cpu", **config: Any) -> LlamaForCausalLM:
    """Read a folder written by `save_model`; ``config`` overrides entries of its config.

    Raises
    ------
    ValueError
        If the folder holds no model.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no model: train one and save it there first")
    model = LlamaForCausalLM.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, **config
    )
    return model.to(torch.device(device)).eval()  # type: ignore[arg-type]


def last_targets(
    data: Integer[NDArray[Any], " tokens"],
    *,
    longest: int,
    targets: int,
    windows: int,
    seed: int,
) -> Int[Tensor, "windows length"]:
    """Draw the windows whose last ``targets`` tokens are scored at every context length.

    Every window holds ``longest`` tokens and one more, so that the same targets can be seen after
    any context up to ``longest``.

    Raises
    ------
    ValueError
        If the text is too short or ``targets`` exceeds ``longest``.
    """
    if not 1 <= targets <= longest:
        raise ValueError(f"targets must be in 1..{longest}, got {targets}")
    if len(data) <= longest:
        raise ValueError(f"text must be longer than {longest} tokens, got {len(data)}")
    starts = rng(seed, "windows").integers(0, len(data) - longest, size=windows)
    return torch.from_numpy(data[starts[:, None] + np.arange(longest + 1)].astype(np.int64))


@torch.no_grad()
def loss_on_last(
    model: Any,
    windows: Int[Tensor, "windows tokens"],
    *,
    context: int,
    targets: int,
    batch_tokens: int = 8192,
) -> Float[Tensor, " windows"]:
    """Return each window's mean loss on its last ``targets`` tokens after ``context`` tokens.

    Parameters
    ----------
    model : causal language model
        Called on (batch, context) ids.
    windows : int tensor of shape (windows, tokens)
        From `last_targets`; ``tokens`` exceeds ``context``.
    context : int
        Tokens that the last target can see.
    targets : int
        How many of the last tokens are scored.
    batch_tokens : int
        Tokens given to the model at once.

    Raises
    ------
    ValueError
        If a window is shorter than ``context`` + 1 or ``targets`` exceeds ``context``.
    """
    if not targets <= context < windows.shape[1]:
        raise ValueError(
            f"context must be at least {targets} and below {windows.shape[1]}, got {context}"
        )
    device = next(model.parameters()).device
    size = max(1, batch_tokens // context)
    found: Sequence[Tensor] = [
        _scores(model, part.to(device), context, targets)
        for part in windows[:, -context - 1 :].split(size)
    ]
    return torch.cat(list(found)).cpu()


def _scores(model: Any, ids: Tensor, context: int, targets: int) -> Tensor:
    logits = model(input_ids=ids[:, :context], use_cache=False, logits_to_keep=targets).logits
    wanted = ids[:, -targets:]
    each = torch.nn.functional.cross_entropy(
        logits.float().transpose(1, 2), wanted, reduction="none"
    )
    return each.mean(1)
