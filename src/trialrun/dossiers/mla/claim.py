"""Measures what the claims about latent attention speak of; the card holds the rules."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from trialrun.attention.mla import Healing, Recipe, convert_to_mla
from trialrun.blocks.bytelm import Schedule, Shape, save_model, text_batches, train
from trialrun.claims.contract import Context, Measurement, Trial
from trialrun.core.errors import UsageError
from trialrun.dossiers.mla.exactness import HEADS, bytes_per_token, errors
from trialrun.dossiers.mla.hosts import (
    calibration,
    check_model,
    corpus,
    held_out_loss,
    load_host,
    sizes_of,
)
from trialrun.dossiers.mla.sizes import BUDGETS
from trialrun.dossiers.mla.variants import VARIANTS, attention_parameters, make_variant

SHARES = {"1/2": 2, "1/4": 4, "1/8": 8}


def _be_quiet() -> None:
    # Tiny models have no generation settings to speak of, and units run beside a progress bar.
    transformers_logging.get_logger("transformers").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()


def _bytes(ctx: Context, *, arm: str) -> Measurement:
    _be_quiet()
    tokens = 24 + ctx.seed % 8
    held = {name: bytes_per_token(arm, heads, tokens) for name, heads in HEADS.items()}
    whole = {name: bytes_per_token("mha", heads, tokens) for name, heads in HEADS.items()}
    shares = {name: held[name] / whole[name] for name in HEADS}
    return Measurement(shares, n=tokens, extra={f"bytes {n}": b for n, b in held.items()})


def _absorbed(ctx: Context, *, arm: str) -> Measurement:
    _be_quiet()
    decoded = sizes_of(ctx).decoded
    points: dict[str, float] = {}
    for kind in ("V2", "V3"):
        found = errors(kind, arm, seed=ctx.seed, decoded=decoded)
        points |= {
            f"{kind} logits": found.logits,
            f"{kind} greedy": found.greedy,
            f"{kind} expanded": found.expanded,
        }
    return Measurement(points, n=decoded)


def _train(ctx: Context, variant: str, shape: Shape, schedule: Schedule) -> Any:
    model = make_variant(variant, shape, seed=ctx.seed)
    batches = text_batches(corpus(ctx.on)[0], shape, seed=ctx.seed)
    train(model, batches, schedule, device=ctx.device)
    return model


def _train_host(ctx: Context) -> Any:
    sizes = sizes_of(ctx)
    shape = replace(sizes.shape, base=sizes.host_base)
    return _train(ctx, "mha", shape, replace(sizes.schedule, steps=sizes.host_steps))


def _prepare_host(ctx: Context, folder: Path) -> None:
    _be_quiet()
    if ctx.model is None:
        save_model(_train_host(ctx), folder)


def _quality(ctx: Context, *, variant: str) -> Measurement:
    _be_quiet()
    sizes = sizes_of(ctx)
    model = _train(ctx, variant, sizes.shape, sizes.schedule)
    loss, n = held_out_loss(ctx, model)
    return Measurement.of(loss, n=n, attention_parameters=attention_parameters(model))


def _conversion(
    ctx: Context, *, recipe: Recipe | None, cut: bool = True, heal: bool = False
) -> Measurement:
    """Return the loss after converting to each share of the host's cache."""
    _be_quiet()
    host = load_host(ctx)
    if recipe is None:
        loss, n = held_out_loss(ctx, host)
        return Measurement(dict.fromkeys(SHARES, loss), n=n)
    seen = calibration(ctx)
    healing = Healing(steps=_healing_steps(ctx), rate=1e-3, seed=ctx.seed) if heal else None
    points: dict[str, float] = {}
    n = 0
    for name, share in SHARES.items():
        rank, rope = _cut_to(host, share)
        model = convert_to_mla(
            host, rank if cut else None, rope, calibration=seen, recipe=recipe, healing=healing
        )
        points[name], n = held_out_loss(ctx, model)
    return Measurement(points, n=n)


def _healing_steps(ctx: Context) -> int:
    return sizes_of(ctx).model_healing if ctx.model is not None else sizes_of(ctx).healing


def _cut_to(host: Any, share: int) -> tuple[int, int]:
    """Return latent rank and rotary width that hold a ``share``-th of the host's cache.

    The rotary key is half as wide as a head, DeepSeek's own proportion, but takes no more than half
    of what is kept.
    """
    dim = host.model.layers[0].self_attn.head_dim
    groups, width = host.config.num_key_value_heads, host.config.hidden_size
    kept = 2 * groups * dim // share
    rope = min(dim // 4 * 2, kept // 4 * 2)
    most = min(2 * groups * dim - rope, width)
    if kept < 1:
        raise UsageError(
            f"the model keeps {2 * groups * dim} values a token and layer, too few for 1/{share}"
        )
    return min(kept - rope, most), rope


def _check_on(ctx: Context) -> None:
    if ctx.on is not None:
        corpus(ctx.on)
    if ctx.model is not None:
        check_model(ctx)


def _keep(ctx: Context, folder: Path) -> str:
    """Leave the user's model, or a byte model of the user's text, at a quarter of its cache."""
    _be_quiet()
    if ctx.model is None and ctx.on is None:
        raise UsageError("there is nothing of the user's own to keep")
    host = load_host(ctx) if ctx.model is not None else _train_host(ctx)
    rank, rope = _cut_to(host, 4)
    convert_to_mla(host, rank, rope, calibration=calibration(ctx)).save_pretrained(folder)
    return "\n".join(
        [
            "import trialrun.attention.mla  # tells transformers of converted models",
            "from transformers import AutoModelForCausalLM",
            f"model = AutoModelForCausalLM.from_pretrained({str(folder)!r})",
        ]
    )


def _converted(factor: str, **choice: Any) -> Any:
    extra = {name: choice.pop(name) for name in ("cut", "heal") if name in choice}
    return partial(_conversion, recipe=Recipe(factor=factor, **choice), **extra)


TRIAL = Trial(
    budgets=BUDGETS,
    arms={
        "bytes": {
            name: partial(_bytes, arm=name)
            for name in ("mla", "mha", "mqa", "gqa-8", "transformers", "expanded")
        },
        "absorbed": {
            name: partial(_absorbed, arm=name)
            for name in ("absorbed", "expanded", "whole", "permuted", "random", "scaled")
        },
        "quality": {name: partial(_quality, variant=name) for name in VARIANTS},
        "conversion": {
            "pca": _converted("pca"),
            "original": partial(_conversion, recipe=None),
            "split": _converted("split"),
            "random": _converted("random"),
            "svd": _converted("svd"),
            "low": _converted("pca", select="low"),
            "partial": _converted("svd", cut=False),
            "healed": _converted("pca", heal=True),
        },
    },
    prepare={"host": _prepare_host},
    needs={"conversion": ("host",)},
    check_on=_check_on,
    keep=_keep,
)
