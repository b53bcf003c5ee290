"""Measure the claims on memory-based meta-learning (genewein2023mbml).

Nets are trained once per seed and shared by the claims. Regret is against the true probabilities,
without the first symbol. On a user's file a seed is one of as many disjoint blocks of equal length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from trialrun.claims.contract import Arm, Context, Measurement, Trial
from trialrun.core.seeds import rng, split
from trialrun.dossiers.mbml._file import check_on, code_length_on_file, keep
from trialrun.dossiers.mbml._sizes import BUDGETS, sizes_of
from trialrun.sequence.mbml import (
    KT,
    LIN,
    PTW,
    KTWindow,
    LINSource,
    MetaPredictor,
    NetShape,
    Predictor,
    PTWSource,
    RandomShiftSource,
    Regret,
    Sample,
    Training,
    regret,
    train_meta,
)

WINDOWS = (4, 8, 16, 32, 64)
LONG_WINDOWS = (16, 64, 256, 1024)
MEMORYLESS = 8


def _best_window(sample: Sample, windows: tuple[int, ...]) -> Regret:
    tried = [regret(KTWindow(window), sample) for window in windows]
    return min(tried, key=lambda result: result.average().mean)


def _shuffled(sample: Sample, seed: int) -> Sample:
    """Put every sequence's steps in another order, symbols and probabilities alike."""
    order = torch.from_numpy(rng(seed, "shuffle").random(tuple(sample.x.shape))).argsort(1)
    wide = order[:, :, None].expand_as(sample.theta)
    return Sample(sample.x.gather(1, order), sample.theta.gather(1, wide))


def crossed(ctx: Context, *, arm: str) -> Measurement:
    """Measure cumulative regret on both priors, for one way of choosing the predictor."""
    depth, count = sizes_of(ctx).exact_depth, sizes_of(ctx).exact_sequences
    points = {}
    for name, source in (("ptw", PTWSource(depth)), ("lin", LINSource())):
        sample = source.sample(count, 2**depth, split(ctx.seed, "crossed", name))
        own, other = (PTW(depth), LIN()) if name == "ptw" else (LIN(), PTW(depth))
        if arm == "window":
            result = _best_window(sample, WINDOWS)
        elif arm == "own-shuffled":
            result = regret(own, _shuffled(sample, ctx.seed))
        else:
            result = regret(own if arm == "own" else other, sample)
        points[name] = result.average().mean
    return Measurement(points, count)


def switching(ctx: Context, *, arm: str) -> Measurement:
    """Measure bits per symbol: regret on a source, code length on a block of a user's file."""
    if ctx.on is not None:
        return code_length_on_file(ctx, arm)
    depth, count = sizes_of(ctx).exact_depth + 2, max(1, sizes_of(ctx).exact_sequences // 8)
    source = RandomShiftSource(0.01)
    sample = source.sample(count, 2**depth, split(ctx.seed, "switching"))
    if arm == "window":
        result = _best_window(sample, LONG_WINDOWS)
    else:
        predictor = KT() if arm == "kt" else LIN() if arm == "lin" else PTW(depth)
        result = regret(predictor, _shuffled(sample, ctx.seed) if arm == "ptw-shuffled" else sample)
    return Measurement.of(result.average().mean / math.log(2) / (2**depth - 1), n=count)


def train(ctx: Context, folder: Path, *, architecture: str, positions: str = "sincos") -> None:
    """Train one net on the PTW prior and leave it in ``folder``."""
    budget = sizes_of(ctx)
    length = 2**budget.depth
    shape = NetShape(
        layers=budget.layers if architecture == "transformer" else 1,
        heads=4,
        positions=positions,
        window=MEMORYLESS,
    )
    net = train_meta(
        architecture,
        PTWSource(budget.depth),
        steps=budget.steps,
        length=length,
        shape=shape,
        training=Training(batch=budget.batch, rate=1e-3 if architecture == "transformer" else 3e-3),
        seed=split(ctx.seed, "net"),
        device=ctx.device,
    )
    net.save(folder)


def _net(ctx: Context, name: str) -> MetaPredictor:
    return MetaPredictor.load(ctx.prepared(name)).to(ctx.device)


def _test(ctx: Context) -> Sample:
    depth = sizes_of(ctx).depth
    return PTWSource(depth).sample(sizes_of(ctx).sequences, 2**depth, split(ctx.seed, "test"))


def near_bayes(ctx: Context, *, arm: str) -> Measurement:
    """Measure the excess over PTW's regret as a fraction of it, for each trained net."""
    sample = _test(ctx)
    if arm == "nets-shuffled-past":
        # Every step of every sequence is a sequence of its own here: fewer do.
        sample = Sample(*(part[: max(1, len(part) // 8)] for part in sample))
    least = regret(PTW(sizes_of(ctx).depth), sample).average().mean
    points = {}
    for name in ("lstm", "rnn", "transformer"):
        if arm == "window":
            result = _best_window(sample, WINDOWS)
        else:
            result = regret(KT() if arm == "kt" else _reader(ctx, name, arm), sample)
        points[name] = result.average().mean / least - 1
    return Measurement(points, len(sample.x), {"bayes_nats": least})


def _reader(ctx: Context, name: str, arm: str) -> Predictor:
    net = _net(ctx, name)
    return net if arm == "nets" else _ReadsShuffled(net, ctx.seed)


@dataclass(frozen=True)
class _ReadsShuffled:
    """A net that reads every step's past in a random order, so that its counts alone are left."""

    net: MetaPredictor
    seed: int

    def predict(self, x: Tensor) -> Tensor:
        batch, time = x.shape
        noise = torch.from_numpy(rng(self.seed, "past").random((batch, time, time)))
        step = torch.arange(time)
        # Row t keeps the symbols before t in front, in random order; what follows is not read.
        noise += (step[None, :] >= step[:, None]).double()
        pasts = x[:, None, :].expand(batch, time, time).gather(2, noise.argsort(2))
        given = self.net.predict(pasts.reshape(batch * time, time)).view(batch, time, time, -1)
        return given[:, step, step]


@dataclass(frozen=True)
class _Forgets:
    """A net that begins anew at every symbol, on exactly the ``symbols`` before it."""

    net: MetaPredictor
    symbols: int

    def predict(self, x: Tensor) -> Tensor:
        time, seen = x.shape[1], self.symbols
        start = self.net.predict(x[:, :seen])[:, : min(seen, time)]
        if time <= seen:
            return start
        # A window of the symbols before t and the one at t, whose prediction is the last.
        windows = x.unfold(1, seen + 1, 1)
        later = self.net.predict(windows.reshape(-1, seen + 1))[:, -1]
        return torch.cat([start, later.view(len(x), time - seen, -1)], dim=1)


def memory(ctx: Context, *, arm: str) -> Measurement:
    """Measure cumulative regret with and without memory."""
    sample = _test(ctx)
    if arm == "window":
        result = _best_window(sample, WINDOWS)
    elif arm == "ptw":
        result = regret(PTW(sizes_of(ctx).depth), sample)
    elif arm == "lstm-last-8":
        result = regret(_Forgets(_net(ctx, "lstm"), MEMORYLESS), sample)
    else:
        result = regret(_net(ctx, arm), sample)
    return Measurement.of(result.average().mean, n=len(sample.x))


def length(ctx: Context, *, arm: str) -> Measurement:
    """Measure the excess over the exact predictor, per symbol, beyond the training length."""
    depth = sizes_of(ctx).depth + 2
    trained = 2 ** sizes_of(ctx).depth
    count = max(1, sizes_of(ctx).sequences // 2)
    sample = PTWSource(depth).sample(count, 2**depth, split(ctx.seed, "length"))
    exact = regret(PTW(depth), sample)
    if arm == "window":
        result = _best_window(sample, WINDOWS)
    elif arm == "lstm-untrained":
        trained_net = _net(ctx, "lstm")
        blank = MetaPredictor("lstm", 2, trained_net.shape, seed=split(ctx.seed, "net"))
        result = regret(blank, sample)
    else:
        result = regret(_net(ctx, arm), sample)
    excess = (result.per_step - exact.per_step).mean(0)
    points = {
        "2x": float(excess[trained : 2 * trained].mean()),
        "4x": float(excess[2 * trained :].mean()),
    }
    inside = float(excess[1:trained].mean())
    return Measurement(points, count, {"inside": inside})


def _arms(measure: Callable[..., Measurement], *names: str) -> dict[str, Arm]:
    return {name: partial(measure, arm=name) for name in names}


TRIAL = Trial(
    budgets=BUDGETS,
    arms={
        "crossed": _arms(crossed, "own", "other", "window", "own-shuffled"),
        "switching": _arms(switching, "ptw", "kt", "window", "ptw-shuffled", "lin"),
        "near-bayes": _arms(near_bayes, "nets", "kt", "window", "nets-shuffled-past"),
        "memory": _arms(memory, "lstm", "mlp", "window", "lstm-last-8", "ptw"),
        "length": _arms(length, "lstm", "transformer", "alibi", "lstm-untrained", "window"),
    },
    prepare={
        "lstm": partial(train, architecture="lstm"),
        "rnn": partial(train, architecture="rnn"),
        "mlp": partial(train, architecture="mlp-window"),
        "transformer": partial(train, architecture="transformer"),
        "alibi": partial(train, architecture="transformer", positions="alibi"),
    },
    needs={
        "near-bayes/nets": ("lstm", "rnn", "transformer"),
        "near-bayes/nets-shuffled-past": ("lstm", "rnn", "transformer"),
        "memory/lstm": ("lstm",),
        "memory/mlp": ("mlp",),
        "memory/lstm-last-8": ("lstm",),
        "length/lstm": ("lstm",),
        "length/lstm-untrained": ("lstm",),
        "length/transformer": ("transformer",),
        "length/alibi": ("alibi",),
    },
    check_on=check_on,
    keep=keep,
)
