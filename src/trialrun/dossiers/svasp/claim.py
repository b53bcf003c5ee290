"""Measure SVasP: adversarial styles against none and against noise, steadiness, flatness.

All arms of a seed start from one supervised network, see the same episodes, crops and jitter, and
are tested on the same episodes. Nothing is chosen on a target; the last state is taken.
"""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path

import numpy as np
import torch

from trialrun.claims.contract import Arm, Context, Measurement, Trial
from trialrun.dossiers.svasp.measures import (
    ENSEMBLES,
    accuracies_of,
    flatness_of,
    steadiness_of,
)
from trialrun.dossiers.svasp.networks import STAGES, arms_of_training, train, warm_started
from trialrun.dossiers.svasp.own import TESTED_ON, check_on, keep, own_world, resplit
from trialrun.dossiers.svasp.styles import SHIFTED
from trialrun.dossiers.svasp.worlds import DRAWERS, SVasPBudget, World, letter_world, size

FLAT = 1e-3
"""A rise in nats below which a minimum counts as flat; ratios need a number above 0."""
REFERENCES = ("unmoved", "none")
"""The two networks that `natural` must be ahead of at once."""


def make_world(ctx: Context) -> World:
    """Return the letters of a seed, or the user's own pictures."""
    return letter_world(ctx) if ctx.on is None else own_world(ctx, ctx.on)


def put_on_trial(ctx: Context, folder: Path) -> None:
    """Train every network from one warm start, and write down all that the claims ask of it."""
    torch.set_num_threads(1)
    world = make_world(ctx)
    warm = warm_started(ctx, world.base)
    found: dict[str, object] = {
        "judged": world.judged,
        "steady": steadiness_of(ctx, world, warm),
    }
    for name, recipe in arms_of_training().items():
        model = copy.deepcopy(warm)
        train(ctx, model, world.base, recipe)
        found[name] = {
            "targets": accuracies_of(ctx, world, model),
            **flatness_of(ctx, world, model),
        }
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


def _read(ctx: Context) -> dict:
    return json.loads((ctx.prepared("networks") / "found.json").read_text(encoding="utf-8"))


def accuracy(ctx: Context, *, name: str) -> Measurement:
    """Return a network's mean accuracy over the restyled targets, and each target beside it.

    Of the user's own pictures it is the unseen target that counts, where one was given; the name of
    the point then says what was tested on.
    """
    found = _read(ctx)
    targets, judged = found[name]["targets"], found["judged"]
    value = float(np.mean([targets[target] for target in judged]))
    extra = {target: value for target, value in targets.items() if target not in DRAWERS}
    point = "value" if ctx.on is None else TESTED_ON[tuple(judged) == SHIFTED]
    return Measurement({point: value}, size(ctx).test_episodes * len(judged), extra)


def natural(ctx: Context, *, name: str) -> Measurement:
    """Return a network's mean accuracy on emoji over their drawers, beside each of two references.

    The arm ``references`` is ``unmoved`` at the one point and ``none`` at the other; every other
    arm has its own accuracy at both. So a rule against ``references`` asks to be ahead of the same
    losses without moved styles and of plain meta-training as well.
    """
    found, points = _read(ctx), {}
    for reference in REFERENCES:
        targets = found[reference if name == "references" else name]["targets"]
        points[f"beside {reference}"] = float(np.mean([targets[drawer] for drawer in DRAWERS]))
    extra = {}
    if name != "references":  # of two networks there is no one accuracy on a drawer
        targets = found[name]["targets"]
        extra = {one: targets[one] for one in (*DRAWERS, "digits") if one in targets}
    return Measurement(points, size(ctx).test_episodes * len(DRAWERS), extra)


def flatness(ctx: Context, *, name: str) -> Measurement:
    """Return the mean rise of the base-class loss, in nats, and no less than ``FLAT``."""
    found = _read(ctx)[name]
    return Measurement.of(
        max(found["rise"], FLAT),
        n=size(ctx).directions,
        loss=found["loss"],
        worst=found["worst"],
    )


def steadiness(ctx: Context, *, ensemble: str) -> Measurement:
    """Return 100 x the mean cosine with the picture's mean gradient over held-out starts.

    Every arm mixes the gradients of the same walks. ``paper`` adds the crops' and ``code`` takes
    them off; ``others`` adds those of other pictures' crops; ``restarts`` adds the picture's own
    from as many further random starts; ``single`` adds nothing. Beside it stands ``agreement``:
    the cosine between two draws, which anything added to both would raise.
    """
    found = _read(ctx)["steady"]
    stages = {stage: found[f"{ensemble}, {stage}"] for stage in STAGES}
    return Measurement.of(
        float(np.mean(list(stages.values()))),
        n=size(ctx).probe,
        agreement=found[f"{ensemble}, agreement"],
        **stages,
    )


def _scored(*names: str) -> dict[str, Arm]:
    return {name: partial(accuracy, name=name) for name in names}


_CLAIMS = ("attack", "direction", "styleadv", "natural", "steady", "flat")
_NATURAL = ("svasp", "references", "unmoved", "noise", "descent", "none", "styleadv")

TRIAL = Trial(
    budgets={
        "smoke": SVasPBudget(
            seeds=2,
            characters=60,
            warm=3,
            episodes=1,
            test_episodes=4,
            directions=2,
            probe=8,
            whole=False,
        ),
        "quick": SVasPBudget(
            seeds=4,
            first_seed=60,
            characters=150,
            warm=150,
            episodes=12,
            test_episodes=150,
            directions=6,
            probe=48,
            whole=True,
        ),
        "full": SVasPBudget(
            seeds=5,
            first_seed=100,
            characters=300,
            warm=400,
            episodes=80,
            test_episodes=600,
            directions=20,
            probe=128,
            whole=True,
        ),
        "gpu": SVasPBudget(
            seeds=5,
            first_seed=200,
            characters=2500,
            warm=5000,
            episodes=4000,
            test_episodes=2000,
            directions=20,
            probe=512,
            whole=True,
        ),
    },
    arms={
        "attack": _scored(
            "svasp", "none", "noise", "unmoved", "svasp-plus", "no-dom", "svasp-cosine"
        ),
        "direction": _scored("svasp", "noise", "styleadv", "descent"),
        "styleadv": _scored("svasp", "styleadv", "noise", "unmoved", "svasp-plus", "single"),
        "steady": {name: partial(steadiness, ensemble=name) for name in ENSEMBLES},
        "natural": {name: partial(natural, name=name) for name in _NATURAL},
        "flat": {
            name: partial(flatness, name=name)
            for name in ("svasp", "single", "noise", "strangers", "none", "styleadv", "svasp-plus")
        },
    },
    prepare={"networks": put_on_trial},
    needs=dict.fromkeys(_CLAIMS, ("networks",)),
    check_on=check_on,
    resplit=resplit,
    keep=keep,
)
