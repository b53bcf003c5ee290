"""Checks of what was measured: a smoke run through the real engine, and the committed records."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.conformance.harness import NotApplicable, require, written
from trialrun.catalogue import Card, Claim
from trialrun.claims.check import Checked, run_check
from trialrun.claims.engine import stop_workers
from trialrun.claims.files import read_json
from trialrun.claims.judge import HOLDS, NOT_TESTED, VERDICTS, judge
from trialrun.claims.plan import Request, module_of
from trialrun.claims.records import Record, is_stale, newest, plain_judgement, read_records
from trialrun.claims.units import Order, Unit, run_unit

SMOKE_SECONDS = 10.0


def _numbers(value: Any) -> Iterable[float]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    else:
        yield value


def smoke_is_sound(card: Card, checked: Checked) -> None:
    """A smoke run lost no unit and measured finite numbers in every arm of every claim."""
    for lost in checked.failures:
        require(False, f"{card.slug} at smoke: {lost.key} failed: {lost.error}")
    records = {record["claim"]: record for record in checked.records}
    for claim in card.claims:
        require(claim.id in records, f"{card.slug} at smoke made no record of {claim.id}")
        arms = records[claim.id]["arms"]
        require(set(arms) == set(claim.arms), f"{claim.id} at smoke measured {sorted(arms)}")
        for name, arm in arms.items():
            values = list(_numbers(arm["points"]))
            finite = values and all(v is not None and math.isfinite(v) for v in values)
            require(finite, f"{claim.id}/{name} at smoke measured {arm['points']}")
            require(arm["n"] > 0, f"{claim.id}/{name} at smoke scored nothing (n = {arm['n']})")
        require(records[claim.id]["verdict"] == NOT_TESTED, "smoke must give no verdict")


def _cpu_seconds_again(card: Card, folder: Path, checked: Checked) -> float:
    """Run the units again in this process, one after another, and return their CPU seconds."""
    keys = [p.stem for p in (checked.folder / "units").glob("*.json")]
    (folder / "units").mkdir(parents=True)
    module, total = module_of(card.slug), 0.0
    for key in sorted(keys, key=lambda k: (not k.startswith("prepare--"), k)):
        claim, arm, seed = key.rsplit("--", 2)
        names = [a for c in card.claims if c.id == claim for a in c.arms]
        arm = next((a for a in names if a.replace("/", "_") == arm), arm)
        unit = Unit("" if claim == "prepare" else claim, arm, int(seed))
        began = time.process_time()
        run_unit(Order(unit, module, "smoke", folder, parent=os.getpid()))
        total += time.process_time() - began
    return total


def smoke_runs(card: Card, folder: Path) -> None:
    """Every claim runs at ``smoke`` through the engine on two workers, in time."""
    written(card.claims, "claims")
    try:
        checked = run_check(Request(slug=card.slug, budget="smoke", jobs=2, out=folder / "runs"))
    finally:
        stop_workers()
    smoke_is_sound(card, checked)
    units = (checked.folder / "units").glob("*.json")
    seconds = sum(read_json(path)["seconds"] for path in units)
    if seconds > SMOKE_SECONDS:
        # Wall-clock time on a machine that may be busy; only CPU time can convict.
        seconds = _cpu_seconds_again(card, folder / "again", checked)
    require(seconds <= SMOKE_SECONDS, f"{card.slug} at smoke took {seconds:.1f} s of CPU time")


def records_are_whole(path: Path) -> None:
    """No line of the records is torn or edited."""
    written(path.is_file(), "records")
    _, problems = read_records(path)
    require(not problems, "; ".join(problems))


def _latest(path: Path, card: Card, claim: Claim, budget: str) -> Record:
    record = newest(read_records(path)[0], claim, slug=card.slug, budget=budget)
    if record is None or record["judgement"] is None:
        raise NotApplicable(f"{claim.id} has no judged record at {budget}; record_exists says so")
    return record


def record_exists(path: Path, card: Card, claim: Claim, budget: str) -> None:
    """A claim has a record with a verdict at a budget."""
    record = newest(read_records(path)[0], claim, slug=card.slug, budget=budget)
    written(record is not None, f"record of {claim.id} at {budget}")
    assert record is not None
    verdict, reason = record["verdict"], record["reason"]
    require(verdict in VERDICTS, f"{claim.id} at {budget}: unknown verdict {verdict!r}")
    require(verdict != NOT_TESTED, f"{claim.id} at {budget} was not tested: {reason}")


def record_fits_the_card(path: Path, card: Card, claim: Claim, budget: str) -> None:
    """A record has the card's arms and one value per seed everywhere."""
    record = _latest(path, card, claim, budget)
    arms = record["arms"]
    require(set(arms) == set(claim.arms), f"{claim.id} at {budget} has arms {sorted(arms)}")
    seeds = len(record["seeds"])
    least = 5 if budget == "full" else 2
    require(seeds >= least, f"{claim.id} at {budget} has {seeds} seeds, expected {least} or more")
    for name, arm in arms.items():
        lengths = {len(values) for values in arm["points"].values()}
        require(lengths == {seeds}, f"{claim.id}/{name} has {lengths} values for {seeds} seeds")


def _points(record: Record) -> dict[str, dict[str, Sequence[float]]]:
    return {name: arm["points"] for name, arm in record["arms"].items()}


def verdict_follows_from_the_values(path: Path, card: Card, claim: Claim, budget: str) -> None:
    """Judging the recorded values again gives the recorded verdict and intervals."""
    record = _latest(path, card, claim, budget)
    again = judge(claim, _points(record))
    require(
        again.verdict == record["verdict"],
        f"{claim.id} at {budget}: recorded {record['verdict']!r}, the values say {again.verdict!r}",
    )
    same = plain_judgement(again) == record["judgement"]
    require(same, f"{claim.id} at {budget}: the recorded intervals are not those of the values")


def control_fails(path: Path, card: Card, claim: Claim) -> None:
    """The control does not satisfy the rule in the newest full record."""
    word = _latest(path, card, claim, "full")["judgement"]["control"]["word"]
    require(word != HOLDS, f"{claim.id}: the control satisfies the rule, so the check is broken")


def record_is_fresh(path: Path, card: Card, claim: Claim, budget: str) -> None:
    """The code behind a record is the code that is here."""
    record = _latest(path, card, claim, budget)
    stale = is_stale(record)
    require(not stale, f"{claim.id} at {budget} is stale: run trialrun check {card.slug} again")
