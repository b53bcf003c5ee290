"""Measure FAMNet: matching against plain prototypes, the weighting, the layout, the bands.

Networks are trained on T1 heads with supervoxels as labels and see no other contrast; the rules
stand in the card and are fixed before a run.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from trialrun.claims.contract import Arm, Context, Measurement, Trial
from trialrun.core.extras import need
from trialrun.dossiers.famnet.heads import (
    TARGETS,
    FAMBudget,
    by_network,
    keep_heads,
    kept_head,
    size,
    train_shared,
)

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
    t1, _ = kept_head(ctx, "support", 0, "t1")
    for contrast in TARGETS:
        own, _ = kept_head(ctx, "support", 0, contrast)
        other, _ = kept_head(ctx, "query", 0, contrast)
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


def _networks(*kinds: str) -> dict[str, Arm]:
    return {kind: partial(by_network, kind=kind) for kind in kinds}


_OTHER_ORGAN = partial(by_network, kind="famnet", other=True)

TRIAL = Trial(
    budgets={
        "smoke": FAMBudget(
            seeds=2, sources=1, queries=1, warm=1, steps=1, batch=1, channels=8, tokens=9,
            organs=1, slices=(22, 26), band_step=2,
        ),
        "quick": FAMBudget(
            seeds=3, first_seed=70, sources=1, queries=1, warm=20, steps=50, batch=4, channels=32,
            tokens=100, organs=6, slices=(0, 40), band_step=4,
        ),
        "full": FAMBudget(
            seeds=5, first_seed=100, sources=3, queries=2, warm=150, steps=90, batch=4,
            channels=32, tokens=100, organs=6, slices=(0, 40), band_step=2,
        ),
        "gpu": FAMBudget(
            seeds=5, first_seed=200, sources=6, queries=4, warm=1500, steps=1500, batch=8,
            channels=128, tokens=400, organs=6, slices=(0, 40), band_step=1,
        ),
    },
    arms={
        "matching": {
            "famnet": partial(by_network, kind="famnet", every=True),
            "prototype": partial(by_network, kind="prototype", every=True),
            **_networks("prototype-curves", "bandless", "sum", "drop-mid", "permuted"),
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
)  # fmt: skip
