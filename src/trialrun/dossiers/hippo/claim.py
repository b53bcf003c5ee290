"""Measure the claims on HiPPO memory and S4D (gu2020hippo, gu2022s4d).

The rules stand in the card. Memories are kept in float32; nets of one seed see the same data in
the same order of batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trialrun.claims.contract import Arm, Budget, Context, Measurement, Trial
from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng, split
from trialrun.dossiers.hippo.memories import Signals, change_of_state, read_back, written
from trialrun.dossiers.hippo.nets import (
    Classifier,
    S4DStack,
    accuracy,
    build,
    hippo_rnn,
    lstm,
    size_of,
    train,
)
from trialrun.material.curves import band_limited_noise, pen_strokes
from trialrun.material.digits import Digits, load_digits, pixel_sequences
from trialrun.material.series import read_ts

HISTORIES = {"1 window": 1, "2 windows": 2, "4 windows": 4}
SAMPLES = 64
OTHERS = 512
RATES = {"half": 32, "double": 128}
_SHOWN = ("s4d-random", "lstm-chrono")


@dataclass(frozen=True, kw_only=True)
class HippoBudget(Budget):
    """Sizes of a run.

    Parameters
    ----------
    signals : int
        Signals remembered per seed.
    order : int
        Coefficients of a memory.
    usual : int
        Samples of a signal at the rate that the windows expect.
    window : int
        Samples of the shortest history remembered, for which the windows are chosen.
    pool : int
        Side of the squares over which pixels are averaged: 784 / pool**2 steps a digit.
    digits : int
        Digits trained on.
    scored : int
        Other digits scored, or fewer where fewer are left.
    pixel_steps, stroke_steps : int
        Gradient steps of every net, on 50 sequences each.
    lstm_steps : int
        Gradient steps of the LSTMs on strokes, which learn more slowly: no fewer.
    shown_steps : int
        Gradient steps on pixels of the nets that are shown and not judged.
    strokes : int
        Strokes trained on; half as many others are scored.
    width : int
        Of the S4D net; the LSTM is half as wide again, the HiPPO net too.
    """

    signals: int
    order: int = 64
    usual: int = 1024
    window: int = 1000
    pool: int
    digits: int = 4000
    scored: int = 1000
    pixel_steps: int
    shown_steps: int
    stroke_steps: int
    lstm_steps: int
    strokes: int = 2000
    width: int = 32


def sizes_of(ctx: Context) -> HippoBudget:
    assert isinstance(ctx.budget, HippoBudget)
    return ctx.budget


def _signals(ctx: Context) -> tuple[Signals, Signals]:
    """Return this seed's signals, and others of the kind: generated, or from the user's file."""
    sizes = sizes_of(ctx)
    if ctx.on is not None:
        file = read_ts(ctx.on.path).series()
        return file.block(ctx.seed - sizes.first_seed, sizes.seeds)
    others = band_limited_noise(OTHERS, seed=split(ctx.seed, "others"))
    return band_limited_noise(sizes.signals, seed=ctx.seed), others


def check_on(ctx: Context) -> None:
    """Refuse a file without enough signals for as many blocks as there are seeds."""
    if ctx.on is None:
        return
    found, wanted = len(read_ts(ctx.on.path).series()), 4 * sizes_of(ctx).seeds
    if found < wanted:
        raise UsageError(
            f"{ctx.on.path} must hold at least {wanted} signals that change, 4 for each of "
            f"{sizes_of(ctx).seeds} blocks, got {found}: give a larger file or fewer --seeds"
        )


def timescale(ctx: Context, *, arm: str) -> Measurement:
    """Measure how much a memory changes when the same signals are sampled at another rate."""
    sizes = sizes_of(ctx)
    noise, _ = _signals(ctx)
    points = change_of_state(arm, noise, usual=sizes.usual, order=sizes.order, seed=ctx.seed)
    return Measurement(points, len(written(noise, 1)))


def memory(ctx: Context, *, arm: str) -> Measurement:
    """Measure the error of the history that a memory gives back."""
    sizes = sizes_of(ctx)
    noise, others = _signals(ctx)
    points = {}
    for name, windows in HISTORIES.items():
        length = windows * sizes.window
        u = written(noise, length).double()
        found = read_back(
            arm,
            noise,
            length,
            others=others,
            window=sizes.window,
            order=sizes.order,
            seed=ctx.seed,
        ).double()
        points[name] = float((found - u).square().mean() / u.square().mean())
    return Measurement(points, len(written(noise, 1)))


@cache
def _all_digits() -> Digits:
    return load_digits()


def _digits(ctx: Context) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return pixel sequences and labels for training, then others, split anew for each seed."""
    sizes = sizes_of(ctx)
    digits = _all_digits()
    order = rng(ctx.seed, "digits").permutation(len(digits.y))
    x = torch.from_numpy(pixel_sequences(digits.pixels[order], pool=sizes.pool)).to(ctx.device)
    y = torch.from_numpy(digits.y[order]).to(ctx.device)
    first, last = sizes.digits, sizes.digits + sizes.scored
    return x[:first], y[:first], x[first:last], y[first:last]


def _pixel_net(arm: str, width: int, length: int, seed: int) -> nn.Module:
    if arm.startswith("lstm"):
        # The mean over time serves an LSTM better here than its last step does.
        wide = width + width // 2
        plain = arm == "lstm"
        body = nn.LSTM(1, wide, batch_first=True) if plain else lstm(1, wide, longest=length)
        return Classifier(body, wide, 10, pooled=True)
    stack = S4DStack(1, width, layers=2, seed=seed)
    if arm == "s4d-random":
        # As many modes in the same band with the same decay and steps, but nobody chose them.
        random = torch.Generator().manual_seed(split(seed, "frequencies"))
        with torch.no_grad():
            for layer in stack.layers:
                most = float(layer.frequency.max())
                layer.frequency.uniform_(0, most, generator=random)
    if arm == "s4d-short":
        with torch.no_grad():
            for layer in stack.layers:
                # A decay of 1/2 per unit of time: e-fold within two steps at a step of 1.
                layer.log_dt.zero_()
                layer.log_dt.requires_grad_(False)
                layer.log_decay.requires_grad_(False)
    # Read at the last step, where only what was remembered counts.
    return Classifier(stack, width, 10, pooled=False)


def pixels(ctx: Context, *, arm: str) -> Measurement:
    """Measure the accuracy of a classifier of digits read pixel by pixel."""
    sizes = sizes_of(ctx)
    x, y, other_x, other_y = _digits(ctx)
    if arm == "linear":
        net = build(lambda: nn.Sequential(nn.Flatten(), nn.Linear(x.shape[1], 10)), ctx.seed)
        rate = 2e-3
    else:
        make = partial(_pixel_net, arm, sizes.width, x.shape[1], split(ctx.seed, "pixels"))
        net = build(make, ctx.seed)
        rate = 5e-3 if arm.startswith("lstm") else 1e-2
    net.to(ctx.device)
    steps = sizes.shown_steps if arm in _SHOWN else sizes.pixel_steps
    loss = train(net, x, y, steps=steps, rate=rate, seed=ctx.seed)
    return Measurement.of(
        accuracy(net, other_x, other_y), n=len(other_y), loss=loss, parameters=size_of(net)
    )


def _stroke_net(kind: str, width: int, seed: int) -> nn.Module:
    if kind.startswith("hippo"):
        window = SAMPLES if kind == "hippo-fixed" else None
        body: nn.Module = hippo_rnn(2, width + width // 2, 32, window, seed)
        return Classifier(body, width + width // 2, 10, pooled=False)
    wide = 2 * width
    body = (
        lstm(2, wide, longest=SAMPLES) if kind == "chrono" else nn.LSTM(2, wide, batch_first=True)
    )
    return Classifier(body, wide, 10, pooled=False)


def _strokes(ctx: Context, draw: str, count: int, length: int) -> tuple[Tensor, Tensor]:
    made = pen_strokes(count, seed=ctx.seed, draw=draw)
    x = torch.from_numpy(made.sampled(length)).float()
    return x.to(ctx.device), torch.from_numpy(made.y).to(ctx.device)


def train_strokes(ctx: Context, folder: Path, *, kind: str) -> None:
    """Train one classifier of strokes at the usual rate and leave its weights in ``folder``."""
    sizes = sizes_of(ctx)
    net = build(partial(_stroke_net, kind, sizes.width, split(ctx.seed, "strokes")), ctx.seed)
    net.to(ctx.device)
    x, y = _strokes(ctx, "train", sizes.strokes, SAMPLES)
    steps = sizes.stroke_steps if kind.startswith("hippo") else sizes.lstm_steps
    train(net, x, y, steps=steps, rate=5e-3, seed=ctx.seed)
    save_file(
        {k: v.cpu().contiguous() for k, v in net.state_dict().items()}, folder / "net.safetensors"
    )


def resampled(x: Tensor, length: int) -> Tensor:
    """Interpolate sequences (batch, time, features) linearly to ``length`` samples."""
    given = torch.nn.functional.interpolate(
        x.transpose(1, 2), size=length, mode="linear", align_corners=True
    )
    return given.transpose(1, 2)


def rate(ctx: Context, *, arm: str) -> Measurement:
    """Measure accuracy at sampling rates other than the one trained at."""
    sizes = sizes_of(ctx)
    kind = {"lstm-resampled": "lstm", "lstm-chrono": "chrono"}.get(arm, arm)
    net = build(partial(_stroke_net, kind, sizes.width, split(ctx.seed, "strokes")), ctx.seed)
    net.load_state_dict(load_file(ctx.prepared(kind) / "net.safetensors"))
    net.to(ctx.device)
    found = {}
    for name, length in {**RATES, "same": SAMPLES}.items():
        x, y = _strokes(ctx, "test", sizes.strokes // 2, length)
        x = resampled(x, SAMPLES) if arm == "lstm-resampled" else x
        found[name] = accuracy(net, x, y)
    same = found.pop("same")
    return Measurement(found, sizes.strokes // 2, {"same": same, "parameters": size_of(net)})


def _arms(measure: Callable[..., Measurement], *names: str) -> dict[str, Arm]:
    return {name: partial(measure, arm=name) for name in names}


_SMOKE = HippoBudget(
    seeds=2,
    signals=4,
    order=16,
    usual=64,
    window=50,
    pool=7,
    digits=100,
    scored=100,
    pixel_steps=2,
    shown_steps=2,
    stroke_steps=2,
    lstm_steps=2,
    strokes=40,
    width=8,
)
_QUICK = HippoBudget(
    seeds=3,
    first_seed=70,
    signals=32,
    pool=2,
    pixel_steps=100,
    shown_steps=50,
    stroke_steps=100,
    lstm_steps=300,
)
_FULL = HippoBudget(
    seeds=5,
    first_seed=200,
    signals=64,
    pool=1,
    pixel_steps=120,
    shown_steps=40,
    stroke_steps=300,
    lstm_steps=300,
)
# Sized for one H200, where the loops over time decide; it has not been run.
_GPU = HippoBudget(
    seeds=3,
    first_seed=300,
    signals=256,
    pool=1,
    pixel_steps=1500,
    shown_steps=1500,
    stroke_steps=1000,
    lstm_steps=1000,
    strokes=8000,
    width=64,
)

TRIAL = Trial(
    budgets={"smoke": _SMOKE, "quick": _QUICK, "full": _FULL, "gpu": _GPU},
    arms={
        "timescale": _arms(timescale, "legs", "legt", "legt-told", "legs-fixed", "random-scaled"),
        "memory": _arms(memory, "legs", "legt", "bins", "random", "legt-told"),
        "pixels": _arms(pixels, "s4d", "lstm", "linear", "s4d-short", *_SHOWN),
        "rate": _arms(rate, "hippo", "lstm", "lstm-resampled", "hippo-fixed", "lstm-chrono"),
    },
    prepare={
        kind: partial(train_strokes, kind=kind)
        for kind in ("hippo", "hippo-fixed", "lstm", "chrono")
    },
    check_on=check_on,
    needs={
        "rate/hippo": ("hippo",),
        "rate/hippo-fixed": ("hippo-fixed",),
        "rate/lstm": ("lstm",),
        "rate/lstm-resampled": ("lstm",),
        "rate/lstm-chrono": ("chrono",),
    },
)
