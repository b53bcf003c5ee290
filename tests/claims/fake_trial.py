"""A dossier's claim module for the engine's tests: quick units that count their own runs.

Each unit appends a line to the file ``log`` in the run folder, so that tests see what ran, in
which process, how often.
"""

import os
import time
from dataclasses import dataclass
from functools import partial

from trialrun.claims.contract import Budget, Measurement, Trial
from trialrun.core.errors import NotRunnable, UsageError
from trialrun.core.seeds import rng


@dataclass(frozen=True, kw_only=True)
class Settings(Budget):
    pause: float = 0.0


def note(name, ctx):
    with (ctx.prepared_root.parent / "log").open("a") as file:
        file.write(f"{name} {ctx.seed} {os.getpid()}\n")


def arm(ctx, *, name, level):
    note(name, ctx)
    time.sleep(ctx.budget.pause)
    value = level + rng(ctx.seed, name).normal(scale=0.1)
    return Measurement.of(value, n=10, twice=2 * value)


def prepared_arm(ctx):
    note("reader", ctx)
    return Measurement.of(float((ctx.prepared("model") / "value.txt").read_text()), n=1)


def prepare_model(ctx, folder):
    note("model", ctx)
    (folder / "value.txt").write_text(str(5.0 + ctx.seed / 100))


def threads(ctx):
    import torch

    return Measurement.of(torch.get_num_threads(), n=1)


def never_ends(ctx):
    while True:
        time.sleep(0.01)


def stuck_in_c(ctx):
    # One call that does not return to Python: a limit cannot be raised in it.
    sum(x for x in range(3))
    time.sleep(60)


def hoards(ctx):
    blocks = []
    while True:
        blocks.append(bytearray(os.urandom(4 << 20)))
        time.sleep(0.005)


def dies(ctx):
    os._exit(9)


def crashes(ctx):
    return 1 / 0


def misused(ctx):
    raise UsageError("the table has no column y: name one with --target")


def cannot(ctx):
    raise NotRunnable("the pack ozone is missing: run trialrun data pull ozone")


def not_finite(ctx):
    return Measurement.of(float("nan"), n=1)


def breaks(ctx, folder):
    raise RuntimeError("no model today")


ARMS = {
    "ours": partial(arm, name="ours", level=3.0),
    "plain": partial(arm, name="plain", level=0.0),
    "rival": partial(arm, name="rival", level=1.0),
    "control": partial(arm, name="control", level=0.0),
}
ODD = (threads, never_ends, stuck_in_c, hoards, dies, crashes, misused, cannot, not_finite)
SHARED = dict.fromkeys(ARMS, prepared_arm) | {"control": ARMS["control"]}

TRIAL = Trial(
    budgets={
        "smoke": Settings(seeds=2),
        "quick": Settings(seeds=4),
        "full": Settings(seeds=4, pause=0.4),
        "tight": Settings(seeds=1, unit_seconds=0.5, unit_megabytes=120),
    },
    arms={
        "better": ARMS,
        "shared": SHARED,
        "lost": SHARED,
        "odd": {f.__name__: f for f in ODD},
    },
    prepare={"model": prepare_model, "broken": breaks},
    needs={"shared": ("model",), "shared/control": (), "lost": ("broken",)},
)
