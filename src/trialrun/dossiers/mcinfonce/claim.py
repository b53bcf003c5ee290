"""Measure MCInfoNCE: are the concentrations and credible sets of its posteriors right?

Everything is measured on held-out inputs whose true posteriors are known. Directions are compared
after a rotation or reflection fitted on other inputs. Arms of one world share phase 1, controls
included, so that they differ in what gives the concentration and in nothing else. Phase 1 has two
starts, and the loss on held-out pairs chooses between them, in every world alike.

Pictures have no known posterior: there the order alone is tried, against how much of a picture is
left. Phase 1 has one start there.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from safetensors.torch import save_file

from trialrun.claims.contract import Arm, Context, Measurement, Trial
from trialrun.core.seeds import split
from trialrun.dossiers.mcinfonce.picture_arms import follows, keep, train_pictures
from trialrun.dossiers.mcinfonce.pictures import check_on, resplit
from trialrun.dossiers.mcinfonce.scoring import Scored, score
from trialrun.dossiers.mcinfonce.training import (
    McBudget,
    budget_of,
    make_starts,
    make_world,
    train_kappa,
    train_mu,
)

_DRAWS = 100
_ARMS_OF: Mapping[str, tuple[str, ...]] = {
    "vmf": (
        "mcinfonce", "single", "single-again", "drawn", "kernel", "hib", "elk", "constant",
        "shuffled",
    ),
    "reference": (
        "reference", "repeat", "elk-reference", "constant-reference", "shuffled-reference",
    ),
    "laplace": ("laplace", "elk-laplace", "constant-laplace", "shuffled-laplace"),
    "gaussian": ("gaussian",),
    "infonce": ("infonce",),
}  # fmt: skip
"""Worlds, and the arms that share a world's phase 1."""

_WORLD_OF = {arm: world for world, arms in _ARMS_OF.items() for arm in arms}
_UNTRAINED = ("constant", "constant-reference", "constant-laplace", "infonce")


def train_world(ctx: Context, folder: Path, *, world: str) -> None:
    """Train phase 1 once, then phase 2 of every arm of a world; leave weights and scores."""
    size, made = budget_of(ctx), make_world(budget_of(ctx), ctx.seed, world)
    rows = Scored(
        made.inputs(size.scored, seed=split(ctx.seed, "aligned on")),
        made.inputs(size.scored, _DRAWS, seed=split(ctx.seed, "scored on")),
    )
    starts = make_starts(size, made, ctx.seed, ctx.device)
    start, kept, losses = train_mu(starts, size, made, ctx.seed, point=world == "infonce")
    found = score(start, rows, "start")
    before = {f"{name} before phase 2": found[name] for name in ("rank", "coverage", "error")}
    before["start kept"] = kept + 1.0
    before |= {f"held-out loss of start {i}": value for i, value in enumerate(losses, 1)}
    scores = {}
    for arm in _ARMS_OF[world]:
        encoder = copy.deepcopy(start)
        if arm not in _UNTRAINED:
            train_kappa(encoder, size, made, ctx.seed, arm)
        scores[arm] = {**score(encoder, rows, arm), **before}
        state = {key: value.cpu().contiguous() for key, value in encoder.state_dict().items()}
        save_file(state, folder / f"{arm}.safetensors")
    (folder / "scores.json").write_text(json.dumps(scores), encoding="utf-8")


def posterior(ctx: Context, *, arm: str, metric: str) -> Measurement:
    """Report one arm: ``rank``, ``coverage`` or ``error``, with the other numbers beside it."""
    file = ctx.prepared(_WORLD_OF[arm]) / "scores.json"
    scores = json.loads(file.read_text(encoding="utf-8"))[arm]
    return Measurement.of(scores.pop(metric), n=budget_of(ctx).scored, **scores)


def _arms(metric: str, *names: str) -> dict[str, Arm]:
    return {name: partial(posterior, arm=name, metric=metric) for name in names}


_ALL = ("mcinfonce", "infonce", "elk", "hib", "single", "drawn", "kernel", "shuffled")
_LABELLED = ("reference", "mcinfonce", "elk-reference", "shuffled-reference")
_OTHER_LAW = ("laplace", "gaussian", "reference")
_ON_PICTURES = ("mcinfonce", "untrained", "infonce", "shuffled", "kernel", "sharpness")
_ARMS: dict[str, dict[str, Arm]] = {
    "order": _arms("rank", *_ALL),
    "coverage": _arms("coverage", "constant", *_ALL),
    "error": _arms("error", "constant", *_ALL),
    "samples": _arms("error", "mcinfonce", "single", "single-again", "constant"),
    "order-reference": _arms("rank", *_LABELLED),
    "coverage-reference": _arms("coverage", "constant-reference", *_LABELLED),
    "error-reference": _arms("error", "constant-reference", *_LABELLED),
    "order-misspecified": _arms("rank", "elk-laplace", "shuffled-laplace", *_OTHER_LAW),
    "coverage-misspecified": _arms("coverage", "constant-laplace", "repeat", *_OTHER_LAW),
    "pictures": {name: partial(follows, arm=name) for name in _ON_PICTURES},
}

_SMOKE = McBudget(
    seeds=2,
    dim=3,
    steps=2,
    batch=16,
    samples=2,
    width=8,
    scored=30,
    picture_steps=1,
)
_QUICK = McBudget(seeds=3, first_seed=60, dim=3, steps=120, samples=8, picture_steps=80)
_FULL = McBudget(seeds=5, first_seed=100, steps=250, picture_steps=500)
# Sized for one H200; it has not been run.
_GPU = McBudget(
    seeds=5,
    first_seed=200,
    dim=10,
    steps=4000,
    batch=512,
    samples=128,
    width=128,
    rate=2e-3,
    picture_steps=4000,
)

TRIAL = Trial(
    budgets={"smoke": _SMOKE, "quick": _QUICK, "full": _FULL, "gpu": _GPU},
    arms=_ARMS,
    prepare={
        "pictures": train_pictures,
        **{world: partial(train_world, world=world) for world in _ARMS_OF},
    },
    needs={
        f"{claim}/{arm}": ("pictures" if claim == "pictures" else _WORLD_OF[arm],)
        for claim, arms in _ARMS.items()
        for arm in arms
    },
    check_on=check_on,
    resplit=resplit,
    keep=keep,
)
