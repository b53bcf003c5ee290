"""One check from beginning to end: plan the units, run them, judge each claim, write records."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trialrun.catalogue import Card, Claim
from trialrun.claims.contract import Context
from trialrun.claims.engine import run_orders
from trialrun.claims.fingerprint import fingerprint
from trialrun.claims.judge import NOT_TESTED, judge
from trialrun.claims.machine import describe_machine, library_versions, source_commit
from trialrun.claims.plan import Plan, Request, make_plan, module_of, steps_needed
from trialrun.claims.records import FORMAT, Record, append_record, plain_judgement, sealed
from trialrun.claims.runs import Run, describe_on, digest_of, open_run
from trialrun.claims.units import Order, Outcome, Unit, failed
from trialrun.core.errors import NotRunnable, UsageError


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    slug: str
    done: int
    total: int
    last: str


@dataclass(frozen=True)
class Checked:
    """A finished check: its records, where it lies, and what failed or can be loaded."""

    records: tuple[Record, ...]
    folder: Path
    failures: tuple[Outcome, ...]
    keep: str = ""


def _identity(
    card: Card, claims: Sequence[Claim], request: Request, seeds: Sequence[int]
) -> dict[str, Any]:
    return {
        "slug": card.slug,
        "budget": request.budget,
        "claims": [claim.id for claim in claims],
        "seeds": list(seeds),
        "fingerprint": [fingerprint(card, claim) for claim in claims],
        "on": describe_on(request.on) if request.on else None,
        "model": digest_of(request.model) if request.model else None,
        "versions": {**library_versions(), "python": describe_machine()["python"]},
    }


def _values(
    claim: Claim, outcomes: Mapping[str, Outcome], seeds: Sequence[int]
) -> dict[str, dict[str, list[float]]]:
    arms: dict[str, dict[str, list[float]]] = {}
    for arm in claim.arms:
        rows = [outcomes[Unit(claim.id, arm, seed).key] for seed in seeds]
        names = set(rows[0].points)
        if any(set(row.points) != names for row in rows):
            raise UsageError(f"arm {arm} of {claim.id} measured different points at its seeds")
        arms[arm] = {point: [row.points[point] for row in rows] for point in rows[0].points}
    return arms


def _arm_table(
    claim: Claim, outcomes: Mapping[str, Outcome], seeds: Sequence[int]
) -> dict[str, Any]:
    table = {}
    for arm, points in _values(claim, outcomes, seeds).items():
        rows = [outcomes[Unit(claim.id, arm, seed).key] for seed in seeds]
        extras = {k for row in rows for k in row.extra}
        table[arm] = {
            "points": points,
            "n": rows[0].n,
            "extra": {k: [row.extra.get(k) for row in rows] for k in sorted(extras)},
            "seconds": round(sum(row.seconds for row in rows), 3),
        }
    return table


def _run_units(plan: Plan, run: Run, on_progress: Callable[[Progress], None]) -> Iterator[Outcome]:
    total, done = len(plan.first) + len(plan.arms), 0
    lost: dict[str, Outcome] = {}
    on_progress(Progress(plan.card.slug, 0, total, ""))
    for wave in (plan.first, plan.arms):
        orders = [_order(plan, run, unit) for unit in wave]
        able = [order for order in orders if not _lost_step(plan, order.unit, lost)]
        for outcome in _run_or_skip(plan, orders, able, lost):
            done += 1
            if outcome.error:
                lost[outcome.key] = outcome
            on_progress(Progress(plan.card.slug, done, total, outcome.key))
            yield outcome


def _order(plan: Plan, run: Run, unit: Unit) -> Order:
    request = plan.request
    return Order(
        unit,
        module_of(plan.card.slug),
        request.budget,
        run.folder.resolve(),
        plan.device,
        request.on,
        request.model,
        overrides=request.overrides,
    )


def _lost_step(plan: Plan, unit: Unit, lost: Mapping[str, Outcome]) -> Outcome | None:
    if not unit.claim:
        return None
    steps = (
        Unit("", name, unit.seed).key for name in steps_needed(plan.trial, unit.claim, unit.arm)
    )
    return next((lost[key] for key in steps if key in lost), None)


def _run_or_skip(
    plan: Plan, orders: Sequence[Order], able: Sequence[Order], lost: Mapping[str, Outcome]
) -> Iterator[Outcome]:
    for order in orders:
        cause = _lost_step(plan, order.unit, lost)
        if cause is not None:
            yield failed(order, f"its preparation failed: {cause.error}", cause.fault, cause.trace)
    yield from run_orders(able, engine=plan.request.engine, jobs=plan.request.jobs)


def _raise_user_faults(plan: Plan, failures: Sequence[Outcome]) -> None:
    own = plan.request.on is not None or plan.request.model is not None
    for outcome in failures:
        if outcome.fault == "usage" and own:
            raise UsageError(outcome.error)
        if outcome.fault == "not runnable":
            raise NotRunnable(outcome.error)
        if outcome.fault == "files":
            raise OSError(
                f"the run folder could not be written ({outcome.error}): "
                "make room or choose another folder with --out"
            )


def _as_split(plan: Plan, claim: Claim) -> Claim:
    """Return the claim with the interval that the user's own material calls for."""
    if plan.trial.resplit is None or plan.request.on is None:
        return claim
    context = Context(
        budget=plan.budget, seed=plan.budget.first_seed, device=plan.device, on=plan.request.on
    )
    return replace(claim, rule=replace(claim.rule, resplit=plan.trial.resplit(context)))


def _verdict_of(plan: Plan, claim: Claim, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    failures = [o for o in outcomes.values() if o.error and _concerns(plan, claim, o)]
    if failures:
        reason = f"{failures[0].key} failed: {failures[0].error}"
        return {"verdict": NOT_TESTED, "reason": reason, "arms": {}, "judgement": None}
    table = _arm_table(claim, outcomes, plan.seeds)
    judged = judge(_as_split(plan, claim), {arm: row["points"] for arm, row in table.items()})
    if plan.request.budget == "smoke":
        reason = "the smoke budget proves that the check runs and gives no verdict"
        return {
            "verdict": NOT_TESTED,
            "reason": reason,
            "arms": table,
            "judgement": plain_judgement(judged),
        }
    return {
        "verdict": judged.verdict,
        "reason": judged.reason,
        "arms": table,
        "judgement": plain_judgement(judged),
    }


def _concerns(plan: Plan, claim: Claim, outcome: Outcome) -> bool:
    needed = {name for arm in claim.arms for name in steps_needed(plan.trial, claim.id, arm)}
    keys = {Unit("", name, seed).key for name in needed for seed in plan.seeds}
    keys |= {Unit(claim.id, arm, seed).key for arm in claim.arms for seed in plan.seeds}
    return outcome.key in keys


def _record(plan: Plan, claim: Claim, outcomes: Mapping[str, Outcome], wall: float) -> Record:
    concerned = [o for o in outcomes.values() if _concerns(plan, claim, o)]
    return {
        "format": FORMAT,
        "slug": plan.card.slug,
        "claim": claim.id,
        "budget": plan.request.budget,
        "seeds": list(plan.seeds),
        **_verdict_of(plan, claim, outcomes),
        "unit_seconds": round(sum(o.seconds for o in concerned), 3),
        "run_seconds": round(wall, 3),
        "peak_megabytes": round(max((o.peak_bytes for o in concerned), default=0) / 1e6, 1),
        "device": plan.device,
        "engine": plan.request.engine,
        "machine": describe_machine(),
        "versions": library_versions(),
        "commit": source_commit(),
        "fingerprint": fingerprint(plan.card, claim),
        "on": describe_on(plan.request.on) if plan.request.on else None,
        "model": plan.request.model and Path(plan.request.model).name,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def run_check(
    request: Request,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> Checked:
    """Run one method's check and return its records.

    Parameters
    ----------
    request : Request
    on_progress : callable
        Called in this process whenever a unit has finished.
    say : callable
        Called with a sentence on what became of ``resume``.

    Raises
    ------
    UsageError
        If the request, or the user's own material, is not what it must be.
    NotRunnable
        If this machine lacks a package, a data pack or a GPU.
    OSError
        If the run folder cannot be written.
    """
    began = time.monotonic()
    plan = make_plan(request)
    identity = _identity(plan.card, plan.claims, request, plan.seeds)
    run = open_run(request.out, plan.card.slug, identity, resume=request.resume)
    if request.resume:
        say(_resumed(plan, run))
    outcomes = {o.key: o for o in _run_units(plan, run, on_progress)}
    failures = tuple(o for o in outcomes.values() if o.error)
    _raise_user_faults(plan, failures)
    wall = time.monotonic() - began
    records = []
    for claim in plan.claims:
        record = sealed(_record(plan, claim, outcomes, wall))
        for path in (run.folder / "records.jsonl", *request.record_to):
            append_record(path, record)
        records.append(record)
    if not failures:
        run.finish()
    return Checked(tuple(records), run.folder, failures, _keep(plan, run))


def _resumed(plan: Plan, run: Run) -> str:
    if not run.resumed:
        return (
            f"no unfinished run of this very check (same code, settings and versions) lies in "
            f"{plan.request.out}: a new one begins"
        )
    done = len(list((run.folder / "units").glob("*.json")))
    total = len(plan.first) + len(plan.arms)
    return f"going on with {run.folder}: {done} of {total} units are done"


def _keep(plan: Plan, run: Run) -> str:
    request = plan.request
    if plan.trial.keep is None or request.budget == "smoke":
        return ""
    if request.on is None and request.model is None:
        return ""
    context = Context(
        budget=plan.budget,
        seed=plan.budget.first_seed,
        device=plan.device,
        on=request.on,
        model=request.model,
        prepared_root=run.folder / "prepared",
    )
    target = run.folder.resolve() / "kept"
    target.mkdir(exist_ok=True)
    return plan.trial.keep(context, target)
