"""Judge what was measured: rules in, verdict words out. Pure functions, no input or output.

Every rule works on effects that are positive when the claim is right. An interval is a two-sided
Student-t interval over seeds, paired by seed. The words, for an effect interval [low, high] and a
margin m >= 0:

- *holds*: low > m;
- *does not hold*: high < 0, or the interval covers zero and high < m, so that the claimed size
  is ruled out;
- *direction only*: low > 0, but the interval does not clear the margin;
- *not resolved*: anything else.

A rule with several points is satisfied only where every point satisfies it, so the chance of a
false "holds" is never above that of one point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from trialrun.catalogue import Claim, Rule
from trialrun.core.errors import UsageError
from trialrun.core.intervals import Interval, mean_interval

HOLDS = "holds"
DIRECTION_ONLY = "direction only"
NOT_RESOLVED = "not resolved"
DOES_NOT_HOLD = "does not hold"
BROKEN_CHECK = "broken check"
NOT_TESTED = "not tested"

VERDICTS = (HOLDS, DIRECTION_ONLY, NOT_RESOLVED, DOES_NOT_HOLD, BROKEN_CHECK, NOT_TESTED)
_WEAKEST_FIRST = (DOES_NOT_HOLD, NOT_RESOLVED, DIRECTION_ONLY, HOLDS)

Points = Mapping[str, Sequence[float]]
"""One arm's values: point name -> one number per seed, seeds in the same order in every arm."""


@dataclass(frozen=True)
class Finding:
    """What a rule found for one arm.

    ``estimates`` holds, for every point, the interval of the quantity the rule speaks of: a
    difference (ours minus the other), a ratio, or for ``threshold`` the measured value.
    """

    word: str
    estimates: Mapping[str, Interval]


@dataclass(frozen=True)
class Judgement:
    """A verdict with all that it rests on.

    ``rival`` compares ours with the strongest simple rival without a margin, for the reader; it
    does not enter the verdict.
    """

    verdict: str
    ours: Finding
    control: Finding
    rival: Finding
    reason: str = ""


def _word_beyond(low: float, high: float, margin: float) -> str:
    if low > margin:
        return HOLDS
    if high < 0:
        return DOES_NOT_HOLD
    if low > 0:
        return DIRECTION_ONLY
    if high < margin:
        return DOES_NOT_HOLD
    return NOT_RESOLVED


def _signed(interval: Interval, rule: Rule) -> Interval:
    return interval if rule.direction == "higher" else interval.flipped()


def _difference(ours: Sequence[float], other: Sequence[float], rule: Rule) -> Interval:
    if len(ours) != len(other):
        raise UsageError(f"paired arms must have equally many seeds, got {len(ours)}, {len(other)}")
    pairs = [a - b for a, b in zip(ours, other)]
    return mean_interval(pairs, confidence=rule.confidence, resplit=rule.resplit)


def paired_difference(
    ours: Sequence[float], other: Sequence[float], rule: Rule
) -> tuple[str, Interval]:
    """Ask whether ours minus other lies beyond the margin in the rule's direction."""
    interval = _difference(ours, other, rule)
    effect = _signed(interval, rule)
    return _word_beyond(effect.low, effect.high, rule.margin), interval


def ratio(ours: Sequence[float], other: Sequence[float], rule: Rule) -> tuple[str, Interval]:
    """Ask whether the geometric mean of ours / other lies beyond the margin (a ratio).

    With direction ``lower`` and margin 0.8, ours must be below 0.8 times the other.

    Raises
    ------
    UsageError
        If a value is not positive, or the margin is on the wrong side of 1.
    """
    if min(*ours, *other) <= 0:
        raise UsageError("a ratio rule needs positive measurements: use paired_difference")
    margin = math.log(rule.margin) * (1 if rule.direction == "higher" else -1)
    if margin < 0:
        raise UsageError(
            f"a ratio rule with direction {rule.direction} needs a margin "
            f"{'above' if rule.direction == 'higher' else 'below'} 1, got {rule.margin}"
        )
    logs = _difference([math.log(a) for a in ours], [math.log(b) for b in other], rule)
    effect = _signed(logs, rule)
    shown = Interval(math.exp(logs.mean), math.exp(logs.low), _exp(logs.high), logs.n)
    return _word_beyond(effect.low, effect.high, margin), shown


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def noninferior(ours: Sequence[float], other: Sequence[float], rule: Rule) -> tuple[str, Interval]:
    """Ask whether ours is worse than the other by less than the margin."""
    interval = _difference(ours, other, rule)
    effect = _signed(interval, rule)
    if effect.low > -rule.margin:
        return HOLDS, interval
    return (DOES_NOT_HOLD if effect.high < -rule.margin else NOT_RESOLVED), interval


def equivalent(ours: Sequence[float], other: Sequence[float], rule: Rule) -> tuple[str, Interval]:
    """Ask whether ours and the other differ by less than the margin, either way."""
    interval = _difference(ours, other, rule)
    if -rule.margin < interval.low and interval.high < rule.margin:
        return HOLDS, interval
    outside = interval.high < -rule.margin or interval.low > rule.margin
    return (DOES_NOT_HOLD if outside else NOT_RESOLVED), interval


def threshold(ours: Sequence[float], rule: Rule) -> tuple[str, Interval]:
    """Ask whether the mean lies beyond the number ``margin`` in the rule's direction."""
    interval = mean_interval(ours, confidence=rule.confidence, resplit=rule.resplit)
    sign = 1.0 if rule.direction == "higher" else -1.0
    effect = _signed(interval, rule)
    if effect.low > sign * rule.margin:
        return HOLDS, interval
    return (DOES_NOT_HOLD if effect.high < sign * rule.margin else NOT_RESOLVED), interval


def ordering(sweep: Points, rule: Rule) -> Finding:
    """Ask whether every step along ``rule.points`` (worst to best) improves beyond the margin."""
    words, estimates = [], {}
    for worse, better in zip(rule.points, rule.points[1:]):
        word, interval = paired_difference(sweep[better], sweep[worse], rule)
        words.append(word)
        estimates[f"{worse} to {better}"] = interval
    return Finding(_weakest(words), estimates)


def _weakest(words: Sequence[str]) -> str:
    return min(words, key=_WEAKEST_FIRST.index)


_COMPARING = {
    "paired_difference": paired_difference,
    "ratio": ratio,
    "noninferior": noninferior,
    "equivalent": equivalent,
}


def apply_rule(rule: Rule, ours: Points, against: Points | None) -> Finding:
    """Apply a card's rule to one arm.

    Parameters
    ----------
    ours : mapping of point to values
    against : mapping of point to values, or None
        The arm that the rule compares with; None for ``threshold`` and ``ordering``.

    Raises
    ------
    UsageError
        If a point that the rule names was not measured.
    """
    points = rule.points or tuple(ours)
    for arm in (ours, against):
        missing = [p for p in points if arm is not None and p not in arm]
        if missing:
            had = ", ".join(arm or ())
            raise UsageError(f"the rule needs the points {', '.join(missing)}, measured: {had}")
    if rule.kind == "ordering":
        return ordering(ours, rule)
    judged = {}
    for point in points:
        if rule.kind == "threshold":
            judged[point] = threshold(ours[point], rule)
        else:
            if against is None:
                raise UsageError(f"a {rule.kind} rule needs an arm to compare with")
            judged[point] = _COMPARING[rule.kind](ours[point], against[point], rule)
    words = [word for word, _ in judged.values()]
    return Finding(_weakest(words), {p: interval for p, (_, interval) in judged.items()})


def _plain_difference(rule: Rule, confidence: float | None = None) -> Rule:
    return replace(
        rule,
        kind="paired_difference",
        margin=0.0,
        confidence=rule.confidence if confidence is None else confidence,
    )


def _shown_to_fail(rule: Rule, ours: Points, control: Points, found: Finding) -> bool:
    """Tell whether the control was refuted, or was seen to be worse than ours at some point.

    A control that merely was not resolved proves nothing: as noisy a control as ours would often
    end there. The confidence is shared out over the points.
    """
    if found.word == DOES_NOT_HOLD:
        return True
    if rule.kind == "ordering":
        first, last = rule.points[0], rule.points[-1]
        ours, control = (
            {"rise": [b - a for a, b in zip(arm[first], arm[last])]} for arm in (ours, control)
        )
    points = tuple(ours) if rule.kind == "ordering" else rule.points or tuple(ours)
    plain = _plain_difference(rule, 1.0 - (1.0 - rule.confidence) / len(points))
    return any(paired_difference(ours[p], control[p], plain)[0] == HOLDS for p in points)


def _against_rival(rule: Rule, ours: Points, rival: Points) -> Finding:
    words, estimates = [], {}
    plain = _plain_difference(rule)
    for point in rule.points or tuple(ours):
        word, estimates[point] = paired_difference(ours[point], rival[point], plain)
        words.append(word)
    side = {HOLDS: "ahead", DOES_NOT_HOLD: "behind"}
    sides = {side.get(word, "level") for word in words}
    return Finding(sides.pop() if len(sides) == 1 else "mixed", estimates)


def judge(claim: Claim, arms: Mapping[str, Points]) -> Judgement:
    """Judge one claim from every arm's values.

    Parameters
    ----------
    claim : Claim
        The card's claim: which arm is ours, the rival and the control, and the rule.
    arms : mapping of arm name to points

    Returns
    -------
    Judgement
        ``broken check`` where the control satisfies the rule too, whatever ours did; ``not
        resolved`` where ours satisfies it and the control was not shown to fail.
    """
    missing = [arm for arm in claim.arms if arm not in arms]
    if missing:
        raise UsageError(f"claim {claim.id} lacks measurements of {', '.join(missing)}")
    against = arms[claim.rule.against] if claim.rule.against else None
    ours = apply_rule(claim.rule, arms[claim.ours], against)
    control = apply_rule(claim.rule, arms[claim.control], against)
    rival = _against_rival(claim.rule, arms[claim.ours], arms[claim.rival])
    if control.word == HOLDS:
        return Judgement(BROKEN_CHECK, ours, control, rival)
    shown = _shown_to_fail(claim.rule, arms[claim.ours], arms[claim.control], control)
    if ours.word == HOLDS and not shown:
        reason = "the rule is satisfied, but the control was not shown to fail: use more seeds"
        return Judgement(NOT_RESOLVED, ours, control, rival, reason)
    return Judgement(ours.word, ours, control, rival)
