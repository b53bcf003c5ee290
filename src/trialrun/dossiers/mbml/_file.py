"""Code lengths on a user's own file of symbols."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from trialrun.claims.contract import Context, Measurement
from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng
from trialrun.dossiers.mbml._sizes import sizes_of
from trialrun.material.symbols import FORMS, SymbolFile, read_symbols
from trialrun.sequence.mbml import KT, LIN, PTW, KTWindow, PrunedLIN, code_lengths

WINDOWS = (16, 64, 256, 1024)
LONGEST_EXACT_LIN = 4096
KEPT_SYMBOLS = 65_536


def code_length_on_file(ctx: Context, arm: str) -> Measurement:
    """Measure an arm's bits per symbol on this seed's block of the file."""
    file = _read(ctx)
    sizes = sizes_of(ctx)
    block = file.blocks(sizes.seeds)[ctx.seed - sizes.first_seed][: sizes.file_symbols]
    x = torch.from_numpy(block)[None]
    if arm == "ptw-shuffled":
        x = x[:, torch.from_numpy(rng(ctx.seed, "shuffle").permutation(x.shape[1]))]
    bits, settings = _bits_per_symbol(x, len(file.alphabet), arm.removesuffix("-shuffled"))
    return Measurement.of(bits, n=x.shape[1], **settings)


def _bits_per_symbol(x: Tensor, symbols: int, arm: str) -> tuple[float, dict[str, float]]:
    """Return an arm's bits per symbol on one sequence, and what it had to choose."""
    length = x.shape[1]
    if arm == "window":
        lengths = code_lengths([KTWindow(window, symbols) for window in WINDOWS], x)
        best = min(range(len(WINDOWS)), key=lambda i: float(lengths[i]))
        return float(lengths[best]) / length, {"window": WINDOWS[best]}
    if arm == "lin":
        exact = length <= LONGEST_EXACT_LIN
        chosen = LIN(symbols) if exact else PrunedLIN(symbols)
        return float(code_lengths([chosen], x)[0]) / length, {"lin_exact": float(exact)}
    predictor = KT(symbols) if arm == "kt" else PTW((length - 1).bit_length(), symbols)
    return float(code_lengths([predictor], x)[0]) / length, {}


def _read(ctx: Context) -> SymbolFile:
    assert ctx.on is not None
    return read_symbols(ctx.on.path, ctx.on.options.get("as", "bytes"))


def check_on(ctx: Context) -> None:
    """Refuse a file that cannot be cut into blocks worth coding."""
    if ctx.on is None:
        return
    form = ctx.on.options.get("as", "bytes")
    if form not in FORMS:
        raise UsageError(f"--as must be one of {', '.join(FORMS)}, got {form!r}")
    file = _read(ctx)
    wanted = 64 * sizes_of(ctx).seeds
    if len(file.x) < wanted:
        raise UsageError(
            f"{ctx.on.path} must hold at least {wanted} symbols, 64 for each of "
            f"{sizes_of(ctx).seeds} blocks, got {len(file.x)}: give a longer file or fewer --seeds"
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
