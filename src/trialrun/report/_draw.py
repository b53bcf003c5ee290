"""Draw one record: the arms above, and below them the rule's quantity beside its margin."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trialrun.catalogue import Claim, Rule
from trialrun.claims.judge import Finding
from trialrun.core.extras import need
from trialrun.core.intervals import Interval
from trialrun.report._style import INK, MUTED, RIVAL, arm_label, arm_styles, axis_words
from trialrun.report.facts import VALUE, Facts, is_finite, margin_of, no_effect
from trialrun.report.figures import plain_number
from trialrun.report.words import QUANTITY_WORDS

_WIDTH, _ROW = 5.2, 0.33


def _wide(values: Iterable[float | None]) -> bool:
    known = [v for v in values if v is not None]
    return bool(known) and min(known) > 0 and max(known) / min(known) > 30


def _rescale(axes: Any, scale: str, *, sideways: bool, **settings: Any) -> None:
    (axes.set_xscale if sideways else axes.set_yscale)(scale, **settings)
    axis = axes.xaxis if sideways else axes.yaxis
    low, high = axis.get_view_interval()
    if scale == "log" and high < 1e3 * low:
        ticker = need("matplotlib.ticker", extra="plots")
        axis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
    axis.set_minor_formatter(lambda *_: "")


def _reach(interval: Interval) -> list[list[float]] | None:
    if not is_finite(interval):
        return None
    return [[interval.mean - interval.low], [interval.high - interval.mean]]


def _mark(
    axes: Any, at: float, interval: Interval, style: Mapping[str, Any], sideways: bool
) -> None:
    place = (interval.mean, at) if sideways else (at, interval.mean)
    reach = _reach(interval)
    bars = {} if reach is None else {"xerr" if sideways else "yerr": reach}
    look = {**style, "linestyle": "none", "markersize": 6, "capsize": 3, "elinewidth": 1.6}
    axes.errorbar(*place, **bars, **look)


def _limits(axes: Any, rule: Rule, sideways: bool) -> None:
    zero, limits = no_effect(rule), margin_of(rule)
    marks = [*limits, *([] if zero is None else [zero])]
    places = [(mark, 0.0) if sideways else (0.0, mark) for mark in marks]
    axes.update_datalim(places, updatex=sideways, updatey=not sideways)
    axes.autoscale_view()
    ends = axes.get_xlim() if sideways else axes.get_ylim()
    line = axes.axvline if sideways else axes.axhline
    if zero is not None:
        line(zero, color=MUTED, linewidth=0.9, zorder=2)
    for limit in limits:
        line(limit, color=INK, linewidth=1.1, linestyle=(0, (2, 2)), zorder=2)
    low, high = (limits[0], ends[1]) if rule.direction == "higher" else (ends[0], limits[0])
    if len(limits) == 2:
        low, high = limits
    (axes.axvspan if sideways else axes.axhspan)(
        low, high, color=RIVAL, alpha=0.12, linewidth=0, zorder=0
    )
    (axes.set_xlim if sideways else axes.set_ylim)(ends)


def _stretch(axes: Any, rule: Rule, ours: Finding, control: Finding, sideways: bool) -> None:
    # A control that collapses must not squeeze the method's interval into a dot.
    def size(finding: Finding) -> float:
        ends = [abs(x) for i in finding.estimates.values() for x in (i.low, i.high, i.mean)]
        return max((x for x in ends if x < float("inf")), default=0.0)

    own = max(size(ours), *(abs(limit) for limit in margin_of(rule)))
    if rule.kind != "ratio" and own > 0 and size(control) > 30 * own:
        _rescale(axes, "symlog", sideways=sideways, linthresh=own)


def _satisfied_words(rule: Rule) -> str:
    limits = " to ".join(plain_number(limit).replace("-", "−") for limit in margin_of(rule))
    side = (
        ""
        if rule.kind == "equivalent"
        else f"{'above' if rule.direction == 'higher' else 'below'} "
    )
    words = f"{QUANTITY_WORDS[rule.kind].en}; the rule asks for {side}{limits} {_unit(rule)}"
    return "\n".join(textwrap.wrap(words, 62))


def _unit(rule: Rule) -> str:
    return "" if rule.kind == "ratio" else rule.unit


def _tested(claim: Claim, arm: str) -> str:
    rule = claim.rule
    if rule.kind == "ordering":
        return arm
    return f"{arm} {'/' if rule.kind == 'ratio' else '−'} {rule.against}"


def _strip(axes: Any, claim: Claim, facts: Facts) -> None:
    styles = arm_styles(claim, facts.arms)
    for row, arm in enumerate(facts.arms):
        values = [v for v in arm.values.get(VALUE, ()) if v is not None]
        style = styles[arm.name]
        axes.plot(
            values,
            [row + 0.24] * len(values),
            "o",
            color=style["color"],
            markersize=3.2,
            alpha=0.55,
            markeredgewidth=0,
        )
        mean = arm.means.get(VALUE)
        if mean is not None:
            _mark(axes, row - 0.08, mean, style, sideways=True)
    axes.set_yticks(range(len(facts.arms)), [arm_label(arm) for arm in facts.arms])
    axes.set_ylim(len(facts.arms) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(axis_words(claim.rule))
    if _wide(v for arm in facts.arms for v in arm.values.get(VALUE, ())):
        _rescale(axes, "log", sideways=True)


def _effect_rows(axes: Any, claim: Claim, facts: Facts) -> None:
    ours, control = facts.ours, facts.control
    if ours is None or control is None:
        return
    styles = arm_styles(claim, facts.arms)
    arms = ((claim.ours, ours), (claim.control, control))
    _stretch(axes, claim.rule, ours, control, sideways=True)
    for row, (arm, finding) in enumerate(arms):
        for interval in finding.estimates.values():
            _mark(axes, row, interval, styles[arm], sideways=True)
    axes.set_yticks((0, 1), [_tested(claim, arm) for arm, _ in arms])
    axes.set_ylim(1.6, -0.6)
    axes.grid(visible=False, axis="y")
    _limits(axes, claim.rule, sideways=True)
    axes.set_xlabel(_satisfied_words(claim.rule))


def draw_single(claim: Claim, facts: Facts) -> Any:
    """Draw a claim measured as one number per arm: a row per arm, seeds as dots."""
    compared = claim.rule.kind != "threshold" and facts.ours is not None
    heights = [_ROW * len(facts.arms) + 0.6] + ([1.25] if compared else [])
    figure = _figure(sum(heights) + 0.3 * len(heights))
    panels = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _strip(panels[0], claim, facts)
    if compared:
        _effect_rows(panels[1], claim, facts)
    else:
        _limits(panels[0], claim.rule, sideways=True)
        panels[0].set_xlabel(f"{axis_words(claim.rule)}\n{_satisfied_words(claim.rule)}")
    return figure


def _figure(height: float) -> Any:
    module = need("matplotlib.figure", extra="plots")
    return module.Figure(figsize=(_WIDTH, height), layout="constrained")


def _places(axes: Any, points: Sequence[str]) -> list[float]:
    try:
        numbers = [float(point) for point in points]
    except ValueError:
        numbers = []
    if len(set(numbers)) > 1 and min(numbers) > 0 and max(numbers) / min(numbers) >= 4:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_locator(need("matplotlib.ticker", extra="plots").NullLocator())
        places = numbers
    else:
        places = numbers if len(set(numbers)) > 1 else [float(i) for i in range(len(points))]
    axes.set_xticks(places, list(points))
    return places


def _are_steps(points: Sequence[str]) -> bool:
    # A line between points says that they are steps of one scale, such as 2T, 4T, 8T.
    return all(any(character.isdigit() for character in point) for point in points)


def _lines(axes: Any, claim: Claim, facts: Facts) -> None:
    places = dict(zip(facts.points, _places(axes, facts.points)))
    joined = claim.rule.kind == "ordering" or _are_steps(facts.points)
    styles = arm_styles(claim, facts.arms)
    for turn, arm in enumerate(facts.arms):
        style = styles[arm.name] if joined else {**styles[arm.name], "linestyle": "none"}
        aside = 0.0 if joined else 0.6 * ((turn + 0.5) / len(facts.arms) - 0.5)
        known = [(places[p] + aside, mean) for p, mean in arm.means.items() if mean is not None]
        if not known:
            continue
        known.sort(key=lambda pair: pair[0])
        at, means = [x for x, _ in known], [mean.mean for _, mean in known]
        axes.plot(at, means, **style, markersize=5, label=arm_label(arm))
        for place, mean in known:
            if is_finite(mean):
                axes.vlines(place, mean.low, mean.high, color=style["color"], linewidth=1.2)
    if _wide(v for arm in facts.arms for values in arm.values.values() for v in values):
        _rescale(axes, "log", sideways=False, nonpositive="clip")
    elif claim.rule.kind == "threshold":
        _limits(axes, claim.rule, sideways=False)
    if claim.rule.kind == "threshold":
        axes.set_xlabel(_satisfied_words(claim.rule))
    axes.set_ylabel("\n".join(textwrap.wrap(f"{claim.rule.metric} ({claim.rule.unit})", 38)))


def _effect_lines(axes: Any, claim: Claim, facts: Facts) -> None:
    ours, control = facts.ours, facts.control
    if ours is None or control is None:
        return
    styles = arm_styles(claim, facts.arms)
    points = tuple(ours.estimates)
    _stretch(axes, claim.rule, ours, control, sideways=False)
    for side, (arm, finding) in enumerate(((claim.ours, ours), (claim.control, control))):
        for place, point in enumerate(points):
            shift = 0.12 * (2 * side - 1)
            _mark(axes, place + shift, finding.estimates[point], styles[arm], sideways=False)
    axes.set_xticks(range(len(points)), points)
    axes.set_xlim(-0.5, len(points) - 0.5)
    axes.grid(visible=False, axis="x")
    _limits(axes, claim.rule, sideways=False)
    axes.set_ylabel("\n".join(textwrap.wrap(_quantity_words(claim), 24)))
    axes.set_xlabel(_satisfied_words(claim.rule))


def _quantity_words(claim: Claim) -> str:
    word = QUANTITY_WORDS[claim.rule.kind].en
    return f"{word} to {claim.rule.against}" if claim.rule.against else word


def draw_sweep(claim: Claim, facts: Facts) -> Any:
    """Draw a claim measured at several points: a line per arm over the points."""
    compared = claim.rule.kind != "threshold" and facts.ours is not None
    longest = max(len(arm_label(arm)) for arm in facts.arms)
    columns = max(1, min(3, int(_WIDTH / (0.5 + 0.068 * longest))))
    rows = -(-len(facts.arms) // columns)
    heights = [2.6] + ([1.5] if compared else [])
    figure = _figure(sum(heights) + 0.22 * rows + 0.3)
    panels = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _lines(panels[0], claim, facts)
    if compared:
        _effect_lines(panels[1], claim, facts)
    panels[0].legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=columns,
        handlelength=2.4,
        columnspacing=1.2,
    )
    return figure
