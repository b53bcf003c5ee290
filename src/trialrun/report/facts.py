"""What a record says, read once for the table, the plot and the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trialrun.catalogue import Card, Claim, Rule
from trialrun.claims.fingerprint import fingerprint
from trialrun.claims.judge import DOES_NOT_HOLD, HOLDS, NOT_TESTED, Finding
from trialrun.claims.records import read_interval
from trialrun.core.intervals import Interval, mean_interval
from trialrun.report.words import roles_of

VALUE = "value"
"""Name of the only point of an arm with a single number."""


@dataclass(frozen=True)
class ArmFacts:
    """One arm: its parts in the claim, its values per seed, and its mean at every point.

    A point where some seed has no finite value has no interval.
    """

    name: str
    roles: tuple[str, ...]
    values: Mapping[str, Sequence[float | None]]
    means: Mapping[str, Interval | None]
    extra: Mapping[str, Sequence[float | None]]
    seconds: float


@dataclass(frozen=True)
class Facts:
    """One record beside its claim.

    ``ours``, ``control`` and ``rival`` are None where nothing was judged; ``judged`` is False
    where numbers exist but the budget gives no verdict.
    """

    verdict: str
    reason: str
    ours: Finding | None
    control: Finding | None
    rival: Finding | None
    arms: tuple[ArmFacts, ...]
    seeds: tuple[int, ...]
    stale: bool

    @property
    def judged(self) -> bool:
        """Tell whether the record carries a verdict."""
        return self.ours is not None and self.verdict != NOT_TESTED

    @property
    def control_passed(self) -> bool:
        """Tell whether the control satisfied the rule, so that the check is broken."""
        return self.judged and self.control is not None and self.control.word == HOLDS

    @property
    def points(self) -> tuple[str, ...]:
        """Return every measured point, in the order of measuring."""
        return tuple(dict.fromkeys(point for arm in self.arms for point in arm.values))


def _in_order(table: Mapping[str, Any], rule: Rule) -> dict[str, Any]:
    # Records sort their keys; the rule knows the order in which its points are to be read.
    places = {point: place for place, point in enumerate(rule.points)}
    return dict(
        sorted(table.items(), key=lambda row: places.get(row[0].partition(" to ")[0], len(places)))
    )


def _finding(table: Mapping[str, Any] | None, rule: Rule) -> Finding | None:
    if table is None:
        return None
    rows = _in_order(table["estimates"], rule)
    return Finding(table["word"], {point: read_interval(row) for point, row in rows.items()})


def _mean(values: Sequence[float | None], rule: Rule) -> Interval | None:
    known = [float(v) for v in values if v is not None]
    if len(known) != len(values) or not known:
        return None
    return mean_interval(known, confidence=rule.confidence)


def _arm(claim: Claim, name: str, row: Mapping[str, Any]) -> ArmFacts:
    points = _in_order(row["points"], claim.rule)
    means = {point: _mean(values, claim.rule) for point, values in points.items()}
    return ArmFacts(
        name, roles_of(claim, name), points, means, row.get("extra", {}), row["seconds"]
    )


def read_facts(card: Card, claim: Claim, record: Mapping[str, Any]) -> Facts:
    """Read a record of one claim.

    Parameters
    ----------
    record : mapping
        As `trialrun.claims.records` writes it.

    Raises
    ------
    KeyError, TypeError
        If the record lacks what every record has.
    """
    judgement = record["judgement"] or {}
    order = {name: place for place, name in enumerate(claim.arms)}
    names = sorted(record["arms"], key=lambda name: order.get(name, len(order)))
    return Facts(
        record["verdict"],
        record["reason"],
        _finding(judgement.get("ours"), claim.rule),
        _finding(judgement.get("control"), claim.rule),
        _finding(judgement.get("rival"), claim.rule),
        tuple(_arm(claim, name, record["arms"][name]) for name in names),
        tuple(record["seeds"]),
        fingerprint(card, claim) != record["fingerprint"],
    )


def _slack(interval: Interval, rule: Rule) -> float:
    if rule.kind == "equivalent":
        return -max(abs(interval.low), abs(interval.high))
    return interval.low if rule.direction == "higher" else -interval.high


def _hope(interval: Interval, rule: Rule) -> float:
    if rule.kind == "equivalent":
        covers_zero = interval.low <= 0 <= interval.high
        return 0.0 if covers_zero else -min(abs(interval.low), abs(interval.high))
    return interval.high if rule.direction == "higher" else -interval.low


def weakest_point(finding: Finding, rule: Rule) -> str:
    """Return the point that decides: nearest to failing, or where the rule fails most surely."""
    ends = _hope if finding.word == DOES_NOT_HOLD else _slack
    return min(finding.estimates, key=lambda point: ends(finding.estimates[point], rule))


def is_signed(rule: Rule) -> bool:
    """Tell whether the rule's quantity is a difference, to be written with its sign."""
    return rule.kind not in ("ratio", "threshold")


def margin_of(rule: Rule) -> tuple[float, ...]:
    """Return where the rule's limits lie on the axis of its quantity."""
    sign = 1.0 if rule.direction == "higher" else -1.0
    if rule.kind in ("ratio", "threshold"):
        return (rule.margin,)
    if rule.kind == "equivalent":
        return (-rule.margin, rule.margin)
    return (sign * (-rule.margin if rule.kind == "noninferior" else rule.margin),)


def no_effect(rule: Rule) -> float | None:
    """Return the quantity's value when there is no effect, or None for a threshold."""
    return {"ratio": 1.0, "threshold": None}.get(rule.kind, 0.0)


def is_finite(interval: Interval) -> bool:
    """Tell whether an interval has both ends."""
    return math.isfinite(interval.low) and math.isfinite(interval.high)
