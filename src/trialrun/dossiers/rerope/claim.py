"""Measures what ReRoPE's claims speak of; the card holds the rules.

Every arm of a seed scores the same model on the same targets. Lengths are told in training
lengths T: ``2T``, ``4T``, ``8T``. The window is T/2 and the log-n factor is on, for the control
with the window at T as well; the patch refuses that window, so the control states a training
length one token longer than the truth.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from trialrun.attention.rerope import ReRoPE
from trialrun.blocks.bytelm import (
    Schedule,
    Shape,
    last_targets,
    load_model,
    loss_on_last,
    make_model,
    save_model,
    text_batches,
    train,
)
from trialrun.claims.contract import Context, Measurement, Trial
from trialrun.dossiers.rerope.copying import (
    SPAN,
    CopyBatches,
    copy_accuracy,
    copy_length,
    copy_shape,
)
from trialrun.dossiers.rerope.hosts import (
    Host,
    check_model,
    corpus,
    held_out_tokens,
    host_of,
    lengths_of,
    load_host,
    sizes_of,
)
from trialrun.dossiers.rerope.sizes import BUDGETS

SLOPE = 32.0
STEEP = 2.0

Ready = Callable[[Host, int], tuple[Any, Any]]


def _be_quiet() -> None:
    # Reading past the training length is the point here, and units run beside a progress bar.
    transformers_logging.get_logger("transformers").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()


def _prepare_text(ctx: Context, folder: Path) -> None:
    if ctx.model is not None:
        return
    _be_quiet()
    task = sizes_of(ctx).text
    data = corpus(ctx.on)[0]
    model = make_model(task.shape, seed=ctx.seed)
    train(model, text_batches(data, task.shape, seed=ctx.seed), task.schedule, device=ctx.device)
    save_model(model, folder)


def _prepare_copy(ctx: Context, folder: Path) -> None:
    _be_quiet()
    task = sizes_of(ctx).copy
    save_model(_train_copier(task.shape, task.schedule, ctx), folder)


def _train_copier(shape: Shape, schedule: Schedule, ctx: Context) -> Any:
    model = make_model(copy_shape(shape), seed=ctx.seed)
    batches = CopyBatches(shape.length, seed=ctx.seed)
    train(model, batches, schedule, device=ctx.device, weigh=batches.weigh)
    return model


def _patch(train_len: int, *, slope: float | None = None, at_limit: bool = False) -> ReRoPE:
    if at_limit:
        return ReRoPE(window=train_len, train_len=train_len + 1, slope=slope, logn=True)
    return ReRoPE(window=train_len // 2, train_len=train_len, slope=slope, logn=True)


def _patched(
    host: Host, _length: int, *, slope: float | None = None, at_limit: bool = False
) -> tuple[Any, Any]:
    model = load_host(host)
    return model, _patch(host.train_len, slope=slope, at_limit=at_limit).attached(model)


def _plain(host: Host, _length: int) -> tuple[Any, Any]:
    return load_host(host), nullcontext()


def _sliding(host: Host, _length: int) -> tuple[Any, Any]:
    return load_host(host, sliding=host.train_len), nullcontext()


def _scaled(host: Host, length: int, *, kind: str) -> tuple[Any, Any]:
    ratio = 1.0 if kind == "dynamic" else length / host.train_len
    scaling: dict[str, Any] = {"rope_type": kind, "factor": ratio}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = host.train_len
    return load_host(host, scaling=scaling), nullcontext()


def _loss(ctx: Context, *, ready: Ready, at_train_len: bool = False) -> Measurement:
    """Return the loss on the same last targets, T/2 of them, at every length."""
    _be_quiet()
    host = host_of(ctx)
    lengths = lengths_of(ctx, host)
    sizes = sizes_of(ctx)
    windows = last_targets(
        held_out_tokens(ctx, host),
        longest=max(lengths.values()),
        targets=host.train_len // 2,
        windows=sizes.model_windows if ctx.model is not None else sizes.text.scored,
        seed=ctx.seed,
    )
    points: dict[str, float] = {}
    for name, length in lengths.items():
        context = host.train_len if at_train_len else length
        if not (at_train_len and points):
            model, patched = ready(host, context)
            with patched:
                found = loss_on_last(model, windows, context=context, targets=host.train_len // 2)
        points[name] = float(found.mean())
    return Measurement(points, n=windows.shape[0] * (host.train_len // 2))


def _copy(
    ctx: Context,
    *,
    ready: Ready | None = None,
    repeat: bool = True,
) -> Measurement:
    """Return the copy accuracy at distances of 2T, 4T and 8T, and within T beside them."""
    _be_quiet()
    task = sizes_of(ctx).copy
    length = task.shape.length
    host = Host(str(ctx.prepared("copy")), length, ctx.device)

    def score(distance: int) -> float:
        model, patched = (ready or _plain)(host, max(length, copy_length(distance)))
        with patched:
            return copy_accuracy(
                model, distance=distance, count=task.scored, seed=ctx.seed, repeat=repeat
            )

    points = {f"{m}T": score(m * length) for m in sizes_of(ctx).multiples}
    return Measurement(points, n=task.scored * (SPAN - 1), extra={"within_T": score(length // 2)})


def _check_on(ctx: Context) -> None:
    if ctx.on is not None:
        corpus(ctx.on)
    if ctx.model is not None:
        check_model(ctx)


def _keep(ctx: Context, folder: Path) -> str:
    if ctx.model is not None:
        host = host_of(ctx)
        patch, where = _patch(host.train_len), host.where
        lines = [f"patch = {patch!r}"]
    else:
        _prepare_text(ctx, folder)
        model = load_model(folder)
        _patch(host_of(ctx).train_len).attach(model)
        save_model(model, folder)
        where, lines = str(folder), ["patch = ReRoPE.from_config(model.config)"]
    return "\n".join(
        [
            "from transformers import AutoModelForCausalLM",
            "from trialrun.attention.rerope import ReRoPE",
            f"model = AutoModelForCausalLM.from_pretrained({where!r})",
            *lines,
            "patch.attach(model)",
        ]
    )


_REROPE = partial(_loss, ready=_patched)
_ROPE = partial(_loss, ready=_plain)
_SLIDING = partial(_loss, ready=_sliding)

TRIAL = Trial(
    budgets=BUDGETS,
    arms={
        "no-collapse": {
            "rerope": _REROPE,
            "rope": _ROPE,
            "rope-at-T": partial(_loss, ready=_plain, at_train_len=True),
            "sliding-window": _SLIDING,
            "window-at-T": partial(_loss, ready=partial(_patched, at_limit=True)),
            "interpolation": partial(_loss, ready=partial(_scaled, kind="linear")),
            "ntk": partial(_loss, ready=partial(_scaled, kind="dynamic")),
            "yarn": partial(_loss, ready=partial(_scaled, kind="yarn")),
        },
        "extra-context": {
            "rerope": partial(_copy, ready=_patched),
            "rope": _copy,
            "sliding-window": partial(_copy, ready=_sliding),
            "nothing-to-copy": partial(_copy, ready=_patched, repeat=False),
            "window-at-T": partial(_copy, ready=partial(_patched, at_limit=True)),
            "interpolation": partial(_copy, ready=partial(_scaled, kind="linear")),
            "ntk": partial(_copy, ready=partial(_scaled, kind="dynamic")),
            "yarn": partial(_copy, ready=partial(_scaled, kind="yarn")),
        },
        "leaky": {
            "leaky": partial(_loss, ready=partial(_patched, slope=SLOPE)),
            "rerope": _REROPE,
            "rope": _ROPE,
            "sliding-window": _SLIDING,
            "steep": partial(_loss, ready=partial(_patched, slope=STEEP)),
        },
    },
    prepare={"text": _prepare_text, "copy": _prepare_copy},
    needs={"no-collapse": ("text",), "leaky": ("text",), "extra-context": ("copy",)},
    check_on=_check_on,
    keep=_keep,
)
