"""Measure FAMNet: matching against plain prototypes, the weighting, the layout, the bands.

Networks are trained on T1 heads with supervoxels as labels and see no other contrast; the rules
stand in the card and are fixed before a run.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file

from trialrun.claims.contract import Arm, Context, Measurement, Trial
from trialrun.core.errors import UsageError
from trialrun.core.extras import need
from trialrun.dossiers.famnet.heads import (
    SOURCE,
    FAMBudget,
    exams,
    painted_exams,
    save_exams,
    size,
)
from trialrun.dossiers.famnet.networks import train_shared, trained, warm_up
from trialrun.dossiers.famnet.own import own_exams, own_parts, read_own
from trialrun.dossiers.famnet.scores import by_network

CUTOFF = 0.30
_BANDS = ("low", "middle", "high")


def _bands_of(plane: NDArray) -> dict[str, NDArray]:
    torch = need("torch", extra="fewshot")
    from trialrun.fewshot.famnet import split_bands

    parts = split_bands(torch.as_tensor(plane, dtype=torch.float64), CUTOFF)
    return {"whole": plane, **{name: part.numpy() for name, part in zip(_BANDS, parts)}}


def _likeness(a: NDArray, b: NDArray) -> dict[str, float]:
    """Return how alike two planes are, whatever the sign of a contrast, and two SSIMs beside it.

    Which tissue is bright is arbitrary: a plane and its negative hold the same structure. ``SSIM``
    keeps the sign; ``SSIM, aligned`` turns one plane round where the correlation is negative.
    """
    metrics = need("skimage.metrics", extra="brain")
    a, b = (((p - p.mean()) / (p.std() + 1e-12)) for p in (a, b))
    alike = float((a * b).mean())
    values = {"correlation": abs(alike)}
    for name, other in (("SSIM", b), ("SSIM, aligned", -b if alike < 0 else b)):
        reach = max(a.max(), other.max()) - min(a.min(), other.min())
        values[name] = float(metrics.structural_similarity(a, other, data_range=reach))
    return values


def by_band(ctx: Context, *, of: str) -> Measurement:
    """Measure how alike one head's T1 and other contrast are in a band of the image plane.

    ``of`` is ``middle``, ``outer`` (the closer of low and high), ``whole``, or ``unrelated``, the
    middle band against another head's.
    """
    points: dict[str, float] = {}
    extra: dict[str, float] = {}
    n = 0
    made = dict(exams(ctx))
    t1 = made.pop(SOURCE).images[0]
    for contrast, exam in made.items():
        own, other, *_ = exam.images
        found: dict[str, list[dict[str, float]]] = {}
        for z in range(0, len(t1), size(ctx).band_step):
            bands, against = _bands_of(t1[z]), _bands_of(own[z])
            pairs = {name: (bands[name], against[name]) for name in ("whole", *_BANDS)}
            pairs["unrelated"] = (bands["middle"], _bands_of(other[len(t1) - 1 - z])["middle"])
            for name, pair in pairs.items():
                found.setdefault(name, []).append(_likeness(*pair))
        means = {
            name: {how: float(np.mean([v[how] for v in values])) for how in values[0]}
            for name, values in found.items()
        }
        outer = max(means["low"]["correlation"], means["high"]["correlation"])
        points[contrast] = outer if of == "outer" else means[of]["correlation"]
        n += len(found["whole"])
        for band in (*_BANDS, "unrelated"):
            extra |= {f"{band}, {how}, {contrast}": v for how, v in means[band].items()}
    return Measurement(points, n, extra)


def keep_heads(ctx: Context, folder: Path) -> None:
    """Make the volumes that networks are examined on."""
    save_exams(folder, painted_exams(ctx) if ctx.on is None else own_exams(ctx))


def check_on(ctx: Context) -> None:
    """Read the user's volumes before anything runs, and say which were skipped."""
    if ctx.on is None:
        raise UsageError("famnet takes volumes of your own with --on FOLDER, not a model")
    own = read_own(ctx.on, size(ctx).own_size)
    for seed in size(ctx).all_seeds:
        own_parts(own, seed, size(ctx).own_sources)
    if own.said:
        print(f"trialrun: {own.said}", file=sys.stderr)
    if own.single:
        print(
            "trialrun: one folder is tested on volumes held out of it, so no contrast changes: "
            "give one folder per modality and --domain to test that",
            file=sys.stderr,
        )


def resplit(ctx: Context) -> float:
    """Return tested to trained volumes where seeds split one set of volumes anew."""
    assert ctx.on is not None
    own = read_own(ctx.on, size(ctx).own_size)
    parts = own_parts(own, ctx.seed, size(ctx).own_sources)
    return max(len(exam.images) for exam in parts.exams.values()) / len(parts.train)


def keep(ctx: Context, folder: Path) -> str:
    """Train FAMNet on all of the user's source volumes and save it."""
    if ctx.on is None:
        raise UsageError("keep needs volumes of your own: pass --on")
    budget = size(ctx)
    own = read_own(ctx.on, budget.own_size)
    with tempfile.TemporaryDirectory() as scratch:
        warm_up(ctx, Path(scratch), [volume.image for volume in own.source])
        net = trained(ctx, "famnet", Path(scratch)).cpu()
    save_file(net.state_dict(), folder / "famnet.safetensors")
    made = f"FAMNet(SmallEncoder({budget.channels}), {budget.channels}, {budget.tokens})"
    layout = ctx.on.options.get("as", "nifti")
    note = "  # LAYOUT: that of the folder read, 'btcv' say" if "=" in layout else ""
    layout = "LAYOUT" if note else repr(layout)
    read = f"read_folder(FOLDER, {layout}, spacing={own.spacing!r}, size={budget.own_size})"
    return (
        "from safetensors.torch import load_file\n"
        "from trialrun.fewshot.famnet import FAMNet, SmallEncoder, evaluate_volume, read_folder\n"
        f"net = {made}.eval()\n"
        f"net.load_state_dict(load_file({str(folder / 'famnet.safetensors')!r}))\n"
        f"# one, other, *_ = {read}.volumes{note}\n"
        "# evaluate_volume(net, one.image, one.organ(NAME), other.image).prediction"
    )


def _networks(*kinds: str) -> dict[str, Arm]:
    return {kind: partial(by_network, kind=kind) for kind in kinds}


_OTHER_ORGAN = partial(by_network, kind="famnet", other=True)

TRIAL = Trial(
    budgets={
        "smoke": FAMBudget(
            seeds=2, sources=1, queries=1, warm=1, steps=1, batch=1, channels=8, tokens=9,
            organs=1, slices=(22, 26), band_step=2, own_sources=1, own_size=48,
        ),
        "quick": FAMBudget(
            seeds=3, first_seed=90, sources=1, queries=1, warm=40, steps=50, batch=2, channels=32,
            tokens=100, organs=6, slices=(0, 40), band_step=4, own_sources=4, own_size=96,
        ),
        "full": FAMBudget(
            seeds=5, first_seed=300, sources=3, queries=2, warm=150, steps=90, batch=4,
            channels=32, tokens=100, organs=6, slices=(0, 40), band_step=2,
            own_sources=12, own_size=96,
        ),
        "gpu": FAMBudget(
            seeds=5, first_seed=400, sources=6, queries=4, warm=1500, steps=1500, batch=8,
            channels=128, tokens=400, organs=6, slices=(0, 40), band_step=1,
            own_sources=50, own_size=256,
        ),
    },
    arms={
        "matching": {
            "famnet": partial(by_network, kind="famnet", every=True),
            "prototype": partial(by_network, kind="prototype", every=True),
            **_networks("prototype-curves", "bandless", "sum", "drop-mid", "drop-low", "drop-high",
                        "permuted"),
            "other-organ": _OTHER_ORGAN,
        },
        "weighting": _networks("famnet", "swapped", "even", "unrelated"),
        "layout": {
            **_networks("famnet", "grid", "bandless", "permuted"), "other-organ": _OTHER_ORGAN,
        },
        "bands": {of: partial(by_band, of=of) for of in ("middle", "outer", "whole", "unrelated")},
    },
    prepare={"heads": keep_heads, "networks": train_shared},
    needs={
        "matching": ("heads", "networks"),
        "weighting": ("heads", "networks"),
        "layout": ("heads", "networks"),
        "bands": ("heads",),
    },
    check_on=check_on,
    resplit=resplit,
    keep=keep,
)  # fmt: skip
