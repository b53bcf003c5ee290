"""Measures the claims about training and the rolling cache; the card holds the rules.

Models are transformers' Mistral, trained by this family's own `train`. Arms of one seed start from
the same weights, take the same number of steps, and are scored on the same held-out windows.
"""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from transformers import Cache, DynamicCache, MistralConfig, MistralForCausalLM
from transformers.utils import logging as transformers_logging

from trialrun.blocks.bytelm import last_targets, loss_on_last
from trialrun.claims.contract import Arm, Context, Measurement, Preparation
from trialrun.core.seeds import rng, split
from trialrun.dossiers.moxin._lm_sizes import LmSizes
from trialrun.dossiers.moxin.corpus import (
    apart,
    as_bytes,
    draw_pages,
    pages,
    passes_rules,
    with_copies,
    with_rubbish,
)
from trialrun.pretraining._dedup import MinHashDedup
from trialrun.pretraining._deepen import deepen_model
from trialrun.pretraining._mixing import TokenSource
from trialrun.pretraining._phases import Phase, Phases, Rate
from trialrun.pretraining._quality import QualityFilter
from trialrun.pretraining._rolling import cache_bytes, prefill, rolling_cache
from trialrun.pretraining._training import Optimiser, train

_PEAK = 3e-3
_WARMUP = 0.1
_SHORT_SHARE = 0.75
_ADAM = Optimiser(beta2=0.98, decay=0.01)


def _sizes(ctx: Context) -> LmSizes:
    sizes = ctx.budget.lm  # type: ignore[attr-defined]
    assert isinstance(sizes, LmSizes)
    return sizes


def _be_quiet() -> None:
    transformers_logging.get_logger("transformers").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()


def _model(sizes: LmSizes, *, seed: int) -> MistralForCausalLM:
    config = MistralConfig(
        vocab_size=256,
        hidden_size=sizes.width,
        intermediate_size=8 * sizes.width // 3 // 16 * 16,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=1,
        max_position_embeddings=sizes.long,
        sliding_window=None,
        tie_word_embeddings=True,
        initializer_range=sizes.width**-0.5 / 2,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(split(seed, "weights"))
        return MistralForCausalLM(config)


def _fit(ctx: Context, phases: Phases, data: NDArray[np.uint8]) -> MistralForCausalLM:
    _be_quiet()
    model = _model(_sizes(ctx), seed=ctx.seed)
    train(
        model,
        phases,
        {"text": TokenSource(data, name="text")},
        seed=ctx.seed,
        optimiser=_ADAM,
        micro_batch=10**6,
        accelerator=Accelerator(cpu=ctx.device == "cpu"),
    )
    return model


def _phase(name: str, context: int, steps: int, batch_tokens: int, rate: Rate) -> Phase:
    return Phase(
        name=name,
        context=context,
        tokens=steps * batch_tokens,
        batch_tokens=batch_tokens,
        mixture={"text": 1.0},
        rate=rate,
    )


def _one_phase(sizes: LmSizes) -> Phases:
    rate = Rate(peak=_PEAK, warmup=_WARMUP)
    tokens = sizes.batch * sizes.short
    return Phases([_phase("text", sizes.short, sizes.steps, tokens, rate)])


def _score(ctx: Context, model: Any, *, context: int, targets: int, stretch: float = 1.0) -> float:
    sizes = _sizes(ctx)
    windows = last_targets(
        as_bytes(pages(held_out=True)),
        longest=context,
        targets=targets,
        windows=sizes.scored,
        seed=ctx.seed,
    )
    if stretch != 1.0:
        model = _stretched(model, stretch)
    return float(loss_on_last(model, windows, context=context, targets=targets).mean())


def _stretched(model: Any, factor: float) -> Any:
    config = copy.deepcopy(model.config)
    theta = model.config.rope_parameters["rope_theta"]
    config.rope_parameters = {"rope_type": "linear", "factor": factor, "rope_theta": theta}
    stretched = MistralForCausalLM(config)
    stretched.load_state_dict(model.state_dict())
    return stretched.to(model.device).eval()


def _held_out_loss(ctx: Context, texts: list[str], **extra: float) -> Measurement:
    sizes = _sizes(ctx)
    model = _fit(ctx, _one_phase(sizes), as_bytes(texts))
    targets = sizes.short // 2
    loss = _score(ctx, model, context=sizes.short, targets=targets)
    return Measurement.of(loss, n=sizes.scored * targets, pages=float(len(texts)), **extra)


def duplicates(ctx: Context, *, arm: str) -> Measurement:
    """Return the held-out loss after training on a stream with copies, cleaned in some way."""
    originals = draw_pages(_sizes(ctx).pages, seed=ctx.seed, purpose="duplicates")
    stream = with_copies(originals, seed=ctx.seed, evenly=arm == "equal-copies")
    if arm == "clean":
        return _held_out_loss(ctx, originals)
    if arm == "exact-hash":
        return _held_out_loss(ctx, list(dict.fromkeys(stream)))
    if arm in ("deduplicated", "thinned"):
        kept = MinHashDedup(threshold=0.8, ngram=13, seed=ctx.seed).find(stream).kept
        if arm == "thinned":
            kept = rng(ctx.seed, "thinned").choice(len(stream), len(kept), replace=False)
        return _held_out_loss(ctx, [stream[i] for i in np.sort(kept)])
    return _held_out_loss(ctx, stream)


def quality(ctx: Context, *, arm: str) -> Measurement:
    """Return the held-out loss after training on a stream with rubbish, filtered in some way.

    The filter learns clean pages from raw ones, as where nobody has labelled rubbish; neither are
    pages of the stream.
    """
    count = _sizes(ctx).pages
    good, other = apart(count, count, seed=ctx.seed)
    stream = with_rubbish(good, seed=split(ctx.seed, "stream"))
    keep = np.arange(len(stream))
    if arm == "filtered":
        raw = with_rubbish(other[: count // 2], seed=split(ctx.seed, "raw"))
        scores = QualityFilter(seed=ctx.seed).fit(other[count // 2 :], raw).score(stream)
        keep = np.argsort(-scores, kind="stable")[: len(good)]
    elif arm == "random-keep":
        keep = rng(ctx.seed, "random-keep").permutation(len(stream))[: len(good)]
    elif arm == "rules":
        keep = np.flatnonzero([passes_rules(page) for page in stream])
    elif arm == "clean":
        keep = np.flatnonzero([page in set(good) for page in stream])
    kept = [stream[i] for i in np.sort(keep)]
    known = set(good)
    return _held_out_loss(ctx, kept, good=float(np.mean([page in known for page in kept])))


def _plan(sizes: LmSizes, kind: str) -> Phases:
    steps, tokens = sizes.phase_steps, 3 * sizes.long
    if kind == "long":
        rate = Rate(peak=_PEAK, warmup=_WARMUP, shape="linear")
        return Phases([_phase("all", sizes.long, steps, tokens, rate)])
    # Two straight pieces of the very rate that the single phase has.
    first = round(_SHORT_SHARE * steps)
    rising = round(_WARMUP * steps)
    middle = _PEAK * (steps - first) / (steps - rising)
    contexts = {
        "phased": (sizes.short, sizes.long),
        "short": (sizes.short, sizes.short),
        "long-twice": (sizes.long, sizes.long),
    }[kind]
    rates = (
        Rate(peak=_PEAK, end=middle, warmup=rising / first, shape="linear"),
        Rate(peak=middle, shape="linear"),
    )
    return Phases(
        [
            _phase("first", contexts[0], first, tokens, rates[0]),
            _phase("second", contexts[1], steps - first, tokens, rates[1]),
        ]
    )


def _prepare(ctx: Context, folder: Path, *, kind: str) -> None:
    clock = time.process_time if ctx.device == "cpu" else time.perf_counter
    data = as_bytes(pages())
    plan = _plan(_sizes(ctx), kind)
    began = clock()
    model = _fit(ctx, plan, data)
    seconds = clock() - began
    model.save_pretrained(folder)
    (folder / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")


def phases(ctx: Context, *, kind: str, stretch: bool = False) -> Measurement:
    """Return the loss on the last quarter of long windows of held-out text."""
    _be_quiet()
    sizes = _sizes(ctx)
    folder = ctx.prepared(f"phases-{kind}")
    model = MistralForCausalLM.from_pretrained(folder, local_files_only=True)
    model = model.to(torch.device(ctx.device)).eval()  # type: ignore[arg-type]
    factor = sizes.long / sizes.short if stretch else 1.0
    targets = sizes.long // 4
    loss = _score(ctx, model, context=sizes.long, targets=targets, stretch=factor)
    early = _score(ctx, model, context=sizes.short, targets=sizes.short // 2)
    return Measurement.of(loss, n=sizes.scored * targets, at_short_context=early)


def phases_cost(ctx: Context, *, kind: str) -> Measurement:
    """Return the seconds that the training took: of the processor, or of the clock on a GPU."""
    folder = ctx.prepared(f"phases-{kind}")
    seconds = json.loads((folder / "seconds.json").read_text(encoding="utf-8"))
    return Measurement.of(seconds, n=_plan(_sizes(ctx), kind).tokens)


def _deepened(ctx: Context) -> Any:
    """Build an untrained model of 4 layers, 4 heads on 2, in float64, with a sliding window."""
    config = MistralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        sliding_window=_sizes(ctx).window,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(split(ctx.seed, "rolling"))
        model = MistralForCausalLM(config)
    model = deepen_model(model, layers=4, silent=False)
    return model.to(device=ctx.device, dtype=torch.float64).eval()


def _full(config: MistralConfig, _length: int) -> Cache:
    del config
    return DynamicCache()


def _rolling(config: MistralConfig, _length: int) -> Cache:
    return rolling_cache(config)


def _static(config: MistralConfig, length: int) -> Cache:
    return rolling_cache(config, static=length)


def _one_fewer(config: MistralConfig, _length: int) -> Cache:
    less = copy.deepcopy(config)
    assert config.sliding_window is not None
    less.sliding_window = config.sliding_window - 1
    return rolling_cache(less)


def _never_trimmed(config: MistralConfig, _length: int) -> Cache:
    cache = rolling_cache(config)
    layers: list[Any] = cache.layers
    for layer in layers:
        layer.activate_past_recording()
    return cache


def _ids(ctx: Context, length: int) -> torch.Tensor:
    drawn = rng(ctx.seed, "ids").integers(0, 64, size=(2, length))
    return torch.from_numpy(drawn).to(ctx.device)


Make = Callable[[MistralConfig, int], Cache]


@torch.no_grad()
def rolling(ctx: Context, *, make: Make, wider: int = 0) -> Measurement:
    """Return the largest difference of a logit from attention over the whole sequence.

    Token by token, and after a prompt read in pieces: a window at a time, the last one half full.
    """
    _be_quiet()
    model, window = _deepened(ctx), _sizes(ctx).window
    stepping = _deepened(ctx)
    stepping.config.sliding_window = window + wider
    points = {}
    for name, length, pad in (("4W", 4, 0), ("16W", 16, 0), ("padded", 6, window + 3)):
        ids = _ids(ctx, length * window)
        mask = torch.ones_like(ids)
        mask[0, :pad] = 0
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = make(stepping.config, ids.shape[1])
        stepped = torch.cat(
            [
                stepping(
                    input_ids=ids[:, t : t + 1],
                    attention_mask=mask[:, : t + 1] if pad else None,
                    position_ids=places[:, t : t + 1],
                    past_key_values=cache,
                    use_cache=True,
                ).logits
                for t in range(ids.shape[1])
            ],
            dim=1,
        )
        points[name] = _gap(model, ids, pad, stepped)
    ids = _ids(ctx, 16 * window + window // 2)
    cache = make(stepping.config, ids.shape[1])
    if make is _rolling:
        last = prefill(stepping, ids, cache=cache).logits
    else:
        for piece in ids.split(window, dim=1):
            out = stepping(input_ids=piece, past_key_values=cache, use_cache=True)
        last = out.logits[:, -1]
    points["prompt"] = _gap(model, ids, 0, last[:, None])
    return Measurement(points, n=2 * (26 * window + 1))


def _gap(model: Any, ids: torch.Tensor, pad: int, found: torch.Tensor) -> float:
    # Each row alone and without padding, in one pass: nothing is shared with the cache's path.
    gaps = []
    for row, start in ((0, pad), (1, 0)):
        alone = model(input_ids=ids[row : row + 1, start:], use_cache=False).logits[0]
        kept = min(len(alone), found.shape[1])
        gaps.append((found[row, -kept:] - alone[-kept:]).abs().max())
    return float(torch.stack(gaps).max())


@torch.no_grad()
def rolling_memory(ctx: Context, *, make: Make) -> Measurement:
    """Return the bytes behind the cache after 16 windows over those after 2."""
    _be_quiet()
    model, window = _deepened(ctx), _sizes(ctx).window
    held = []
    for length in (2 * window, 16 * window):
        ids = _ids(ctx, length)
        cache = make(model.config, length)
        if make is _rolling:
            cache = prefill(model, ids, cache=cache).cache
        else:
            for piece in ids.split(window, dim=1):
                model(input_ids=piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
        held.append(cache_bytes(cache).held)
    return Measurement.of(held[1] / held[0], n=2, kilobytes=held[1] / 1000)


ARMS: dict[str, dict[str, Arm]] = {
    "duplicates": {
        arm: partial(duplicates, arm=arm)
        for arm in ("deduplicated", "duplicated", "exact-hash", "thinned", "clean", "equal-copies")
    },
    "quality": {
        arm: partial(quality, arm=arm)
        for arm in ("filtered", "unfiltered", "rules", "random-keep", "clean")
    },
    "phases": {
        "phased": partial(phases, kind="phased"),
        "long": partial(phases, kind="long"),
        "stretched": partial(phases, kind="short", stretch=True),
        "short": partial(phases, kind="short"),
    },
    "phases-cost": {
        kind: partial(phases_cost, kind=kind) for kind in ("phased", "long", "short", "long-twice")
    },
    "rolling": {
        "rolling": partial(rolling, make=_rolling),
        "full": partial(rolling, make=_full),
        "static": partial(rolling, make=_static),
        "one-key-fewer": partial(rolling, make=_one_fewer),
        "one-key-more": partial(rolling, make=_full, wider=1),
    },
    "rolling-memory": {
        "rolling": partial(rolling_memory, make=_rolling),
        "full": partial(rolling_memory, make=_full),
        "static": partial(rolling_memory, make=_static),
        "never-trimmed": partial(rolling_memory, make=_never_trimmed),
    },
}

PREPARE: dict[str, Preparation] = {
    f"phases-{kind}": partial(_prepare, kind=kind)
    for kind in ("phased", "long", "short", "long-twice")
}

NEEDS: dict[str, tuple[str, ...]] = {
    "phases/phased": ("phases-phased",),
    "phases/long": ("phases-long",),
    "phases/stretched": ("phases-short",),
    "phases/short": ("phases-short",),
    **{
        f"phases-cost/{kind}": (f"phases-{kind}",)
        for kind in ("phased", "long", "short", "long-twice")
    },
}
