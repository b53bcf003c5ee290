"""Texts and models that the claims run on, the user's own among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from trialrun.attention._mla_convert_host import check_host
from trialrun.blocks.bytelm import last_targets, load_model, loss_on_last
from trialrun.claims.contract import Context, On
from trialrun.core.errors import NotRunnable, UsageError
from trialrun.core.seeds import rng
from trialrun.dossiers.mla.sizes import Sizes
from trialrun.material.packs import PACKS, require_pack
from trialrun.material.stdlib_text import load_stdlib_text

LEAST_BYTES = 200_000
READ_FOR_TOKENS = 400_000


def sizes_of(ctx: Context) -> Sizes:
    """Return the budget as this dossier's settings."""
    assert isinstance(ctx.budget, Sizes)
    return ctx.budget


def corpus(on: On | None) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return bytes to train on and bytes held out: the standard library's, or the user's file."""
    if on is None:
        text = load_stdlib_text()
        return text.train, text.held_out
    data = np.frombuffer(Path(on.path).read_bytes(), dtype=np.uint8)
    if len(data) < LEAST_BYTES:
        raise UsageError(
            f"--on {on.path}: at least {LEAST_BYTES} bytes of text are needed, got {len(data)}"
        )
    cut = len(data) * 9 // 10
    return data[:cut], data[cut:]


def model_name(ctx: Context) -> str:
    """Return the folder or hub id that ``--model`` means."""
    assert ctx.model is not None
    return str(require_pack(ctx.model)) if ctx.model in PACKS else ctx.model


def check_model(ctx: Context) -> None:
    """Raise unless ``--model`` can be converted, without loading its weights."""
    where = model_name(ctx)
    try:
        config = AutoConfig.from_pretrained(where)
    except (OSError, ValueError) as error:
        raise NotRunnable(
            f"no model could be read from {where!r}: give a folder saved by transformers, or a hub "
            f"id that can be reached from here"
        ) from error
    with torch.device("meta"):
        check_host(AutoModelForCausalLM.from_config(config), weights=False)


def load_host(ctx: Context) -> Any:
    """Load the byte model trained for this seed, or the user's own."""
    if ctx.model is None:
        return load_model(ctx.prepared("host"), device=ctx.device)
    model = AutoModelForCausalLM.from_pretrained(
        model_name(ctx),
        use_safetensors=True,
        dtype=torch.float32 if ctx.device == "cpu" else torch.bfloat16,
    )
    return model.to(torch.device(ctx.device)).eval()  # type: ignore[arg-type]


def window_length(ctx: Context) -> int:
    """Return the tokens of a scored or calibrating window."""
    if ctx.model is None:
        return sizes_of(ctx).shape.length
    most = AutoConfig.from_pretrained(model_name(ctx)).max_position_embeddings
    return min(sizes_of(ctx).model_length, most)


def calibration(ctx: Context) -> Tensor:
    """Draw this seed's calibration from the training text, (windows, tokens)."""
    data = _tokens(ctx, corpus(ctx.on)[0])
    sizes, length = sizes_of(ctx), window_length(ctx)
    count = sizes.model_calibration if ctx.model is not None else sizes.calibration
    starts = rng(ctx.seed, "calibration").integers(0, len(data) - length, size=count)
    return torch.from_numpy(data[starts[:, None] + np.arange(length)].astype(np.int64))


def held_out_loss(ctx: Context, model: Any) -> tuple[float, int]:
    """Return the mean loss on the later half of this seed's windows, and how many were scored."""
    sizes, length = sizes_of(ctx), window_length(ctx)
    windows = last_targets(
        _tokens(ctx, corpus(ctx.on)[1]),
        longest=length,
        targets=length // 2,
        windows=sizes.model_windows if ctx.model is not None else sizes.scored,
        seed=ctx.seed,
    )
    losses = loss_on_last(model, windows, context=length, targets=length // 2, batch_tokens=4096)
    return float(losses.mean()), losses.numel() * (length // 2)


def _tokens(ctx: Context, data: NDArray[np.uint8]) -> NDArray[Any]:
    if ctx.model is None:
        return data
    tokenizer = AutoTokenizer.from_pretrained(model_name(ctx))
    text = data[:READ_FOR_TOKENS].tobytes().decode("utf-8", errors="replace")
    found = np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"])
    if len(found) <= window_length(ctx):
        raise UsageError(
            f"the text must give more than {window_length(ctx)} tokens, got {len(found)}"
        )
    return found
