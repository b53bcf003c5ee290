"""The arms of the claim on pictures: one small network, trained by each loss on the same views."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from trialrun.claims.contract import Context, Measurement
from trialrun.core.errors import UsageError
from trialrun.core.seeds import split
from trialrun.dossiers.mcinfonce.pictures import (
    SMALLEST,
    Stock,
    divide,
    load_stock,
)
from trialrun.dossiers.mcinfonce.scoring import rank_correlation, score_pictures, sharpness
from trialrun.dossiers.mcinfonce.training import McBudget, budget_of, train_kappa, train_mu
from trialrun.representation.mcinfonce import VMFEncoder

DIM = 8
KAPPA = (16.0, 32.0)
"""Where concentrations start, as in the paper's controlled experiments."""

KAPPA_POS = 16.0
NEGATIVES = 32
"""The loss's concentration and negatives, as in the authors' training on soft labels."""

_FEATURES = 64
_TRAINED = ("mcinfonce", "shuffled", "kernel")


def make_encoder(seed: int, channels: int = 1, side: int = 8) -> VMFEncoder:
    """Make an untrained encoder of pictures (n, channels, side, side), side 8, 16 or 32."""
    generator = torch.Generator().manual_seed(split(seed, "picture encoder"))
    layers: list[nn.Module] = []

    def add(layer: nn.Conv2d | nn.Linear, fan_in: int) -> None:
        with torch.no_grad():
            layer.weight.normal_(0.0, math.sqrt(2 / fan_in), generator=generator)
            assert layer.bias is not None
            layer.bias.zero_()
        layers.extend([layer, nn.LeakyReLU(0.01)])

    def convolve(inputs: int, outputs: int, stride: int) -> None:
        layer = nn.utils.skip_init(nn.Conv2d, inputs, outputs, 3, stride=stride, padding=1)
        add(layer, 9 * inputs)

    stem = 1 if side <= 8 else 2
    convolve(channels, 16, stem)
    width, left = 16, side // stem
    while left > 4:
        convolve(width, 32, 2)
        width, left = 32, left // 2
    layers.append(nn.Flatten())
    add(nn.utils.skip_init(nn.Linear, 16 * width, _FEATURES), 16 * width)
    layers.append(nn.LayerNorm(_FEATURES, elementwise_affine=False))
    return VMFEncoder(
        nn.Sequential(*layers), DIM, head="mlps", width=_FEATURES, hidden=(_FEATURES,),
        kappa=KAPPA, example_dims=3, seed=seed,
    )  # fmt: skip


def _calibrated(ctx: Context, stock: Stock, encoder: VMFEncoder) -> VMFEncoder:
    typical = stock.pairs(256, seed=split(ctx.seed, "calibration")).ref
    return encoder.to(ctx.device).calibrate(typical.to(ctx.device))


def _fresh(ctx: Context, stock: Stock) -> VMFEncoder:
    channels, side = stock.images.shape[1:3]
    return _calibrated(ctx, stock, make_encoder(ctx.seed, channels, side))


def directed(ctx: Context, stock: Stock, fresh: VMFEncoder) -> VMFEncoder:
    """Train phase 1, and let concentrations start anew within ``KAPPA``.

    They are functions of the backbone's features, which phase 1 changes.
    """
    start, _, _ = train_mu([fresh], _size(ctx), stock, ctx.seed)
    return _calibrated(ctx, stock, start)


def _size(ctx: Context) -> McBudget:
    size = budget_of(ctx)
    return replace(
        size, steps=size.picture_steps, kappa_pos=KAPPA_POS, rolled=min(NEGATIVES, size.batch - 1)
    )


def train_pictures(ctx: Context, folder: Path) -> None:
    """Train phase 1 by MCInfoNCE and by InfoNCE, then phase 2 of every arm; leave the scores."""
    size, parts = _size(ctx), divide(load_stock(ctx.on), ctx.seed)
    generator = torch.Generator().manual_seed(split(ctx.seed, "scored views"))
    views = parts.asked.views(parts.asked.soft_labels(size.scored, generator), generator)
    fresh = _fresh(ctx, parts.train)
    scores = {"sharpness": {"rank": rank_correlation(sharpness(views.x), views.left)}}
    plain, _, _ = train_mu([copy.deepcopy(fresh)], size, parts.train, ctx.seed, point=True)
    scores["infonce"] = score_pictures(plain, views, parts.found, "infonce")
    start = directed(ctx, parts.train, fresh)
    scores["untrained"] = score_pictures(start, views, parts.found, "untrained")
    for arm in _TRAINED:
        encoder = train_kappa(copy.deepcopy(start), size, parts.train, ctx.seed, arm)
        found = score_pictures(encoder, views, parts.found, arm)
        scores[arm] = {
            **found,
            "rank gained in phase 2": found["rank"] - scores["untrained"]["rank"],
        }
    (folder / "scores.json").write_text(json.dumps(scores), encoding="utf-8")


def follows(ctx: Context, *, arm: str) -> Measurement:
    """Report one arm's rank correlation, with the other numbers beside it."""
    file = ctx.prepared("pictures") / "scores.json"
    scores = json.loads(file.read_text(encoding="utf-8"))[arm]
    return Measurement.of(scores.pop("rank"), n=budget_of(ctx).scored, **scores)


def keep(ctx: Context, folder: Path) -> str:
    """Train on all of the user's pictures and save the encoder."""
    if ctx.on is None:
        raise UsageError("keep needs pictures of your own: pass --on")
    stock = load_stock(ctx.on)
    start = directed(ctx, stock, _fresh(ctx, stock))
    encoder = train_kappa(start, _size(ctx), stock, ctx.seed, "mcinfonce").cpu()
    state = {name: value.contiguous() for name, value in encoder.state_dict().items()}
    save_file(state, folder / "encoder.safetensors")
    channels, side = stock.images.shape[1:3]
    return (
        "from safetensors.torch import load_file\n"
        "from trialrun.dossiers.mcinfonce.picture_arms import make_encoder\n"
        "from trialrun.dossiers.mcinfonce.pictures import standardised\n"
        f"encoder = make_encoder(0, {channels}, {side})\n"
        f"encoder.load_state_dict(load_file({str(folder / 'encoder.safetensors')!r}))\n"
        f"# encoder(standardised(images)) with images in [0, 1] of shape (n, {channels}, {side}, "
        f"{side}): mu and kappa,\n"
        f"# learned on windows of {SMALLEST:.0%} to 100% of a picture; low kappa is ambiguous"
    )
