"""Measure the claims on memory-based meta-learning (genewein2023mbml).

Nets are trained once per seed and shared by the claims. Regret is against the true probabilities,
without the first symbol. On a user's file a seed is one of as many disjoint blocks of equal length.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from trialrun.claims.contract import Arm, Budget, Context, Measurement, Trial
from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng, split
from trialrun.material.symbols import FORMS, SymbolFile, read_symbols
from trialrun.sequence.mbml import (
    KT,
    LIN,
    PTW,
    KTWindow,
    LINSource,
    MetaPredictor,
    NetShape,
    Predictor,
    PrunedLIN,
    PTWSource,
    RandomShiftSource,
    Regret,
    Sample,
    Training,
    code_lengths,
    regret,
    train_meta,
)

WINDOWS = (4, 8, 16, 32, 64)
LONG_WINDOWS = (16, 64, 256, 1024)
FORGETS_EVERY = 8
LONGEST_EXACT_LIN = 4096
KEPT_SYMBOLS = 65_536


@dataclass(frozen=True, kw_only=True)
class MbmlBudget(Budget):
    """Sizes of a run.

    Parameters
    ----------
    depth : int
        Nets are trained on ``2**depth`` symbols of the PTW prior of this depth.
    steps : int
        Gradient steps for every net.
    batch : int
        Sequences per step.
    layers : int
        Transformer blocks.
    sequences : int
        Sequences scored per seed with nets.
    exact_depth : int
        The exact predictors are compared on ``2**exact_depth`` symbols.
    exact_sequences : int
        Sequences scored per seed without nets.
    file_symbols : int
        Symbols read from each block of a user's file, from its beginning.
    """

    depth: int
    steps: int
    batch: int = 64
    layers: int = 1
    sequences: int
    exact_depth: int = 8
    exact_sequences: int
    file_symbols: int


def _sizes(ctx: Context) -> MbmlBudget:
    assert isinstance(ctx.budget, MbmlBudget)
    return ctx.budget


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
    depth, count = _sizes(ctx).exact_depth, _sizes(ctx).exact_sequences
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
        return _switching_on_file(ctx, arm)
    depth, count = _sizes(ctx).exact_depth + 2, max(1, _sizes(ctx).exact_sequences // 8)
    source = RandomShiftSource(0.01)
    sample = source.sample(count, 2**depth, split(ctx.seed, "switching"))
    if arm == "window":
        result = _best_window(sample, LONG_WINDOWS)
    else:
        predictor = KT() if arm == "kt" else LIN() if arm == "lin" else PTW(depth)
        result = regret(predictor, _shuffled(sample, ctx.seed) if arm == "ptw-shuffled" else sample)
    return Measurement.of(result.average().mean / math.log(2) / (2**depth - 1), n=count)


def _switching_on_file(ctx: Context, arm: str) -> Measurement:
    file = _read(ctx)
    block = file.blocks(_sizes(ctx).seeds)[ctx.seed][: _sizes(ctx).file_symbols]
    x = torch.from_numpy(block)[None]
    if arm == "ptw-shuffled":
        x = x[:, torch.from_numpy(rng(ctx.seed, "shuffle").permutation(x.shape[1]))]
    bits, settings = _bits_per_symbol(x, len(file.alphabet), arm.removesuffix("-shuffled"))
    return Measurement.of(bits, n=x.shape[1], **settings)


def _bits_per_symbol(x: Tensor, symbols: int, arm: str) -> tuple[float, dict[str, float]]:
    """Return an arm's bits per symbol on one sequence, and what it had to choose."""
    length = x.shape[1]
    if arm == "window":
        lengths = code_lengths([KTWindow(window, symbols) for window in LONG_WINDOWS], x)
        best = min(range(len(LONG_WINDOWS)), key=lambda i: float(lengths[i]))
        return float(lengths[best]) / length, {"window": LONG_WINDOWS[best]}
    if arm == "lin":
        exact = length <= LONGEST_EXACT_LIN
        chosen = LIN(symbols) if exact else PrunedLIN(symbols)
        return float(code_lengths([chosen], x)[0]) / length, {"lin_exact": float(exact)}
    predictor = KT(symbols) if arm == "kt" else PTW((length - 1).bit_length(), symbols)
    return float(code_lengths([predictor], x)[0]) / length, {}


def _read(ctx: Context) -> SymbolFile:
    assert ctx.on is not None
    return read_symbols(ctx.on.path, ctx.on.options.get("as", "bytes"))


def train(ctx: Context, folder: Path, *, architecture: str, positions: str = "sincos") -> None:
    """Train one net on the PTW prior and leave it in ``folder``."""
    budget = _sizes(ctx)
    length = 2**budget.depth
    shape = NetShape(
        layers=budget.layers if architecture == "transformer" else 1,
        heads=4,
        positions=positions,
        window=FORGETS_EVERY,
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
    depth = _sizes(ctx).depth
    return PTWSource(depth).sample(_sizes(ctx).sequences, 2**depth, split(ctx.seed, "test"))


def near_bayes(ctx: Context, *, arm: str) -> Measurement:
    """Measure the excess over PTW's regret as a fraction of it, for each trained net."""
    sample = _test(ctx)
    if arm == "nets-shuffled-past":
        # Every step of every sequence is a sequence of its own here: fewer do.
        sample = Sample(*(part[: max(1, len(part) // 8)] for part in sample))
    least = regret(PTW(_sizes(ctx).depth), sample).average().mean
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
    """A net whose state is emptied every ``every`` symbols."""

    net: MetaPredictor
    every: int

    def predict(self, x: Tensor) -> Tensor:
        batch, time = x.shape
        given = self.net.predict(x.reshape(-1, self.every))
        return given.view(batch, time, -1)


def memory(ctx: Context, *, arm: str) -> Measurement:
    """Measure cumulative regret with and without memory."""
    sample = _test(ctx)
    if arm == "window":
        result = _best_window(sample, WINDOWS)
    elif arm == "ptw":
        result = regret(PTW(_sizes(ctx).depth), sample)
    elif arm == "lstm-reset":
        result = regret(_Forgets(_net(ctx, "lstm"), FORGETS_EVERY), sample)
    else:
        result = regret(_net(ctx, arm), sample)
    return Measurement.of(result.average().mean, n=len(sample.x))


def length(ctx: Context, *, arm: str) -> Measurement:
    """Measure the excess over the exact predictor, per symbol, beyond the training length."""
    depth = _sizes(ctx).depth + 2
    trained = 2 ** _sizes(ctx).depth
    count = max(1, _sizes(ctx).sequences // 2)
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


def check_on(ctx: Context) -> None:
    """Refuse a file that cannot be cut into blocks worth coding."""
    if ctx.on is None:
        return
    form = ctx.on.options.get("as", "bytes")
    if form not in FORMS:
        raise UsageError(f"--as must be one of {', '.join(FORMS)}, got {form!r}")
    file = _read(ctx)
    wanted = 64 * _sizes(ctx).seeds
    if len(file.x) < wanted:
        raise UsageError(
            f"{ctx.on.path} must hold at least {wanted} symbols, 64 for each of "
            f"{_sizes(ctx).seeds} blocks, got {len(file.x)}: give a longer file or fewer --seeds"
        )


def keep(ctx: Context, folder: Path) -> str:
    """Leave PTW's settings, the alphabet and a report of code lengths on the file's beginning."""
    file = _read(ctx)
    symbols = len(file.alphabet)
    x = torch.from_numpy(file.x[:KEPT_SYMBOLS])[None]
    PTW((len(file.x) - 1).bit_length(), symbols).save(folder)
    file.save(folder)
    report = {"file": Path(ctx.on.path).name if ctx.on else "", "symbols_scored": x.shape[1]}
    bits = {}
    for arm in ("kt", "window", "ptw", "lin"):
        value, settings = _bits_per_symbol(x, symbols, arm)
        bits[arm] = {"bits_per_symbol": value, **settings}
    text = json.dumps({**report, "code_lengths": bits}, indent=1)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    return (
        "from trialrun.sequence.mbml import load_predictor\n"
        f"predictor = load_predictor({str(folder)!r})  # alphabet.json numbers the symbols\n"
    )


def _arms(measure: Callable[..., Measurement], *names: str) -> dict[str, Arm]:
    return {name: partial(measure, arm=name) for name in names}


_SMOKE = MbmlBudget(
    seeds=2,
    depth=4,
    steps=3,
    batch=8,
    sequences=16,
    exact_depth=5,
    exact_sequences=16,
    file_symbols=1024,
)
_QUICK = MbmlBudget(
    seeds=3, depth=6, steps=200, sequences=512, exact_sequences=256, file_symbols=16_384
)
_FULL = MbmlBudget(
    seeds=5, depth=6, steps=1400, sequences=1024, exact_sequences=512, file_symbols=65_536
)
# Sized for one H200: about 25k LSTM-sized steps in ten minutes over all seeds and nets.
_GPU = MbmlBudget(
    seeds=3,
    depth=8,
    steps=8000,
    batch=128,
    layers=5,
    sequences=1024,
    exact_depth=10,
    exact_sequences=512,
    file_symbols=65_536,
)

TRIAL = Trial(
    budgets={"smoke": _SMOKE, "quick": _QUICK, "full": _FULL, "gpu": _GPU},
    arms={
        "crossed": _arms(crossed, "own", "other", "window", "own-shuffled"),
        "switching": _arms(switching, "ptw", "kt", "window", "ptw-shuffled", "lin"),
        "near-bayes": _arms(near_bayes, "nets", "kt", "window", "nets-shuffled-past"),
        "memory": _arms(memory, "lstm", "mlp", "window", "lstm-reset", "ptw"),
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
        "memory/lstm-reset": ("lstm",),
        "length/lstm": ("lstm",),
        "length/lstm-untrained": ("lstm",),
        "length/transformer": ("transformer",),
        "length/alibi": ("alibi",),
    },
    check_on=check_on,
    keep=keep,
)
