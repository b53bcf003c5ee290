"""Units of work: one (claim, arm, seed), or one preparation step at one seed.

`run_unit` runs in a worker process. It writes its result into the run folder itself, in one move,
so a unit that has finished stays finished whatever happens to the run.
"""

from __future__ import annotations

import errno
import importlib
import math
import os
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from trialrun.claims.contract import Budget, Context, Measurement, On, Trial
from trialrun.claims.files import read_json, write_json
from trialrun.claims.limits import LimitExceeded, limited
from trialrun.core.errors import NotRunnable, TrialrunError

_THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_GRACE_SECONDS = 5.0
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


@dataclass(frozen=True)
class Unit:
    """One unit. ``claim`` is empty for a preparation step, whose name is then in ``arm``."""

    claim: str
    arm: str
    seed: int

    @property
    def key(self) -> str:
        """Return the unit's name, usable as a file name."""
        return f"{self.claim or 'prepare'}--{self.arm.replace('/', '_')}--{self.seed}"


@dataclass(frozen=True)
class Order:
    """A unit with all a worker needs to run it anywhere the run folder is visible."""

    unit: Unit
    module: str
    budget: str
    folder: Path
    device: str = "cpu"
    on: On | None = None
    model: str | None = None
    parent: int = 0
    overrides: Mapping[str, float] = field(default_factory=dict)

    @property
    def result_path(self) -> Path:
        """Return where a finished unit's result lies."""
        return self.folder / "units" / f"{self.unit.key}.json"

    @property
    def started_path(self) -> Path:
        """Return the mark of a unit that a worker has begun."""
        return self.folder / "units" / f"{self.unit.key}.started"


@dataclass(frozen=True)
class Outcome:
    """What became of a unit. ``error`` is empty for a finished one.

    ``fault`` tells the kinds of failure apart: ``usage``, ``not runnable``, ``limit``, ``files``
    or ``crash``.
    """

    key: str
    points: dict[str, float]
    n: int
    extra: dict[str, float]
    seconds: float
    peak_bytes: int
    error: str = ""
    fault: str = ""
    trace: str = ""


def load_trial(module: str) -> Trial:
    """Import a dossier's ``claim`` module and return its ``TRIAL``.

    Raises
    ------
    NotRunnable
        If an optional package is missing; the sentence names the command that installs it.
    """
    trial = getattr(importlib.import_module(module), "TRIAL", None)
    if not isinstance(trial, Trial):
        raise NotRunnable(f"{module} must define TRIAL, a trialrun.claims.contract.Trial")
    return trial


def _one_thread() -> None:
    for name in _THREAD_SETTINGS:
        os.environ[name] = "1"
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


def _checked(measurement: Any, unit: Unit) -> Measurement:
    if not isinstance(measurement, Measurement) or not measurement.points:
        raise TypeError(f"{unit.key} must return a Measurement with points, got {measurement!r}")
    bad = {k: v for k, v in measurement.points.items() if not math.isfinite(v)}
    if bad:
        raise ValueError(f"{unit.key} measured a value that is not finite: {bad}")
    return measurement


def _context(order: Order, budget: Budget) -> Context:
    return Context(
        budget=budget,
        seed=order.unit.seed,
        device=order.device,
        on=order.on,
        model=order.model,
        prepared_root=order.folder / "prepared",
    )


def _prepare(trial: Trial, order: Order, context: Context) -> Measurement:
    target = context.prepared(order.unit.arm)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".part-"))
    try:
        trial.prepare[order.unit.arm](context, scratch)
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return Measurement({}, 0)


def _work(order: Order) -> Outcome:
    trial = load_trial(order.module)
    _one_thread()
    budget = replace(trial.budgets[order.budget], **dict[str, Any](order.overrides))
    context = _context(order, budget)
    on_stuck = None if os.getpid() == order.parent else _end_worker(order)
    with limited(
        budget.unit_seconds, budget.unit_megabytes, on_stuck=on_stuck, grace=_GRACE_SECONDS
    ) as usage:
        if order.unit.claim:
            arm = trial.arms[order.unit.claim][order.unit.arm]
            measured = _checked(arm(context), order.unit)
        else:
            measured = _prepare(trial, order, context)
    return Outcome(
        order.unit.key,
        {k: float(v) for k, v in measured.points.items()},
        int(measured.n),
        {k: float(v) for k, v in measured.extra.items()},
        usage.seconds,
        usage.peak_bytes,
    )


def failed(order: Order, error: str, fault: str, trace: str = "") -> Outcome:
    """Make the outcome of a unit that did not finish."""
    return Outcome(order.unit.key, {}, 0, {}, 0.0, 0, error, fault, trace)


def _end_worker(order: Order) -> Any:
    def end(reason: str) -> None:
        write_json(
            order.started_path.with_suffix(".failed"), asdict(failed(order, reason, "limit"))
        )
        os._exit(70)

    return end


def read_outcome(path: Path) -> Outcome | None:
    """Read a unit's result, or None where there is none."""
    return Outcome(**read_json(path)) if path.is_file() else None


def _fault_of(error: BaseException) -> str:
    kinds = ((LimitExceeded, "limit"), (NotRunnable, "not runnable"), (TrialrunError, "usage"))
    for kind, word in kinds:
        if isinstance(error, kind):
            return word
    if isinstance(error, OSError) and error.errno in _DISK:
        return "files"
    return "crash"


def run_unit(order: Order) -> Outcome:
    """Run one unit, write its result and return it. Failures come back as outcomes.

    A unit whose result is already in the run folder is not run again.
    """
    done = read_outcome(order.result_path)
    if done is not None:
        return done
    if not order.folder.is_dir():
        return failed(
            order,
            f"this worker does not see the run folder {order.folder}: "
            "put --out on storage that every node shares",
            "not runnable",
        )
    in_worker = os.getpid() != order.parent
    if in_worker and threading.current_thread() is threading.main_thread():
        # Ctrl-C reaches the whole process group; the parent decides what becomes of the workers.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        order.started_path.touch()
        outcome = _work(order)
        write_json(order.result_path, asdict(outcome))
        order.started_path.unlink(missing_ok=True)
    except Exception as error:  # every failure of a claim's code becomes a reported outcome
        words = str(error) or type(error).__name__
        if _fault_of(error) == "crash":
            words = f"{type(error).__name__}: {words}"
        outcome = failed(order, words, _fault_of(error), traceback.format_exc())
    return outcome
