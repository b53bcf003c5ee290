"""Measures what FLT's claims speak of; the card holds the rules.

Byte models are trained once for each seed and arm and shared by the claims on language.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from trialrun.blocks.bytelm import last_targets, loss_on_last, text_batches, train
from trialrun.claims.contract import Arm, Context, Measurement, Trial
from trialrun.core.seeds import split
from trialrun.dossiers.flt import cost, lm, offsets
from trialrun.dossiers.flt.sizes import BUDGETS, sizes_of

BACK = (1, 3, 7)


def train_model(ctx: Context, folder: Path, *, arm: str) -> None:
    """Train a byte model with one attention and leave it in ``folder``."""
    sizes = sizes_of(ctx)
    model = lm.make_lm(arm, sizes.shape, features=sizes.features, seed=ctx.seed)
    batches = text_batches(lm.corpus(ctx.on)[0], sizes.shape, seed=ctx.seed)
    train(model, batches, sizes.schedule, device=ctx.device)
    lm.save_lm(model.cpu(), folder)


def loss(ctx: Context, *, arm: str) -> Measurement:
    """Measure the loss on the last three quarters of held-out windows."""
    sizes = sizes_of(ctx)
    length = sizes.shape.length
    targets = 3 * length // 4
    windows = last_targets(
        lm.corpus(ctx.on)[1],
        longest=length,
        targets=targets,
        windows=sizes.windows,
        seed=split(ctx.seed, "windows"),
    )
    model = lm.load_lm(
        ctx.prepared(arm), arm, sizes.shape, features=sizes.features, seed=ctx.seed
    ).to(torch.device(ctx.device))
    found = loss_on_last(model, windows, context=length, targets=targets)
    return Measurement.of(float(found.mean()), n=sizes.windows * targets)


def name_symbols(ctx: Context, *, arm: str) -> Measurement:
    """Measure how often one head names the symbol k places back; its own symbol beside it."""
    sizes = sizes_of(ctx)

    def score(back: int) -> float:
        return offsets.accuracy(
            arm,
            back,
            steps=sizes.steps,
            scored=sizes.scored,
            features=sizes.mask_features,
            seed=ctx.seed,
            device=ctx.device,
        )

    points = {f"k={back}": score(back) for back in BACK}
    return Measurement(points, sizes.scored * (offsets.LENGTH - max(BACK)), {"own": score(0)})


def growth(ctx: Context, *, arm: str) -> Measurement:
    """Measure the slopes of time and memory over length."""
    sizes = sizes_of(ctx)
    found = cost.growth(arm, sizes.lengths, repeats=sizes.repeats, seed=ctx.seed, device=ctx.device)
    seconds = found.pop("seconds")
    return Measurement(found, len(sizes.lengths), {"seconds_at_longest": seconds})


def check_on(ctx: Context) -> None:
    """Refuse a text too short to train on."""
    if ctx.on is not None:
        lm.corpus(ctx.on)


def keep(ctx: Context, folder: Path) -> str:
    """Train the byte model with the mixture mask on the user's text and leave it there."""
    sizes = sizes_of(ctx)
    train_model(ctx, folder, arm="mixture")
    return (
        "from pathlib import Path\n"
        "from trialrun.blocks.bytelm import Shape\n"
        "from trialrun.dossiers.flt.lm import load_lm\n"
        f"model = load_lm(Path({str(folder)!r}), 'mixture', {sizes.shape!r}, "
        f"features={sizes.features}, seed={ctx.seed})\n"
    )


def _losses(*arms: str) -> dict[str, Arm]:
    return {arm: partial(loss, arm=arm) for arm in arms}


_MIXED = (
    *("mixture", "none", "absolute", "rotary", "toeplitz", "softmax"),
    *("mixture-shuffled", "mixture-all-pairs"),
)
_LANGUAGE = {
    "no-rpe": tuple(arm for arm in _MIXED if arm != "absolute"),
    "absolute": tuple(arm for arm in _MIXED if arm not in ("none", "mixture-all-pairs")),
    "local": ("local", "none", "mixture", "toeplitz", "softmax", "local-shuffled"),
}

TRIAL = Trial(
    budgets=BUDGETS,
    arms={
        **{claim: _losses(*arms) for claim, arms in _LANGUAGE.items()},
        "one-sided": {arm: partial(name_symbols, arm=arm) for arm in offsets.ARMS},
        "linear-cost": {arm: partial(growth, arm=arm) for arm in cost.ARMS},
    },
    prepare={arm: partial(train_model, arm=arm) for arm in lm.ARMS},
    needs={f"{claim}/{arm}": (arm,) for claim, arms in _LANGUAGE.items() for arm in arms},
    check_on=check_on,
    keep=keep,
)
