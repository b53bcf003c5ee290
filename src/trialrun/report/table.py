"""A claim's table for a terminal: what the paper says beside what was measured.

Loads the standard library, the catalogue and the claims' records and judge only, so that the
command line starts fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trialrun.catalogue import Card, Claim, Text
from trialrun.claims.judge import NOT_TESTED, Finding
from trialrun.core.intervals import Interval
from trialrun.report._layout import clean, grid, indented, labelled, pad, width, wrap
from trialrun.report.facts import VALUE, ArmFacts, Facts, is_signed, read_facts
from trialrun.report.figures import interval_text, seconds_text, spread_text
from trialrun.report.words import (
    AT_THIS_SCALE,
    CONTROL_FAILS,
    CONTROL_PASSES,
    QUANTITY_WORDS,
    RIVAL_WORDS,
    ROLE_WORDS,
    VERDICT_WORDS,
    better_words,
    figure_words,
    point_words,
    rule_words,
)

COLUMNS = 100
INDENT = 12

_LABELS = {
    "claim": Text("claim", "论断"),
    "says": Text("says", "论文称"),
    "figure": Text("figure", "论文数字"),
    "rule": Text("rule", "规则"),
    "metric": Text("metric", "指标"),
    "here": Text("scale here", "此处规模"),
    "paper": Text("in paper", "论文规模"),
    "material": Text("material", "材料"),
    "arms": Text("arms", "各组"),
    "rival": Text("rival", "对手"),
    "verdict": Text("verdict", "结论"),
    "reason": Text("reason", "原因"),
    "stale": Text("stale", "已过期"),
    "not tested": Text("not tested", "未检验"),
}
_STALE = Text(
    "the code or the rule has changed since this was measured: run {} again",
    "测得之后代码或规则已有改动：请重新运行 {}",
)
_NO_RECORD = Text("not run at this budget yet: {}", "尚未在此预算下运行：{}")


def command_of(card: Card, claim: Claim, budget: str = "quick") -> str:
    """Return the command that runs one claim."""
    return f"trialrun check {card.slug} --claim {claim.id} --budget {budget}"


def verdict_words(verdict: str, *, lang: str = "en") -> str:
    """Return a verdict as it is printed, with the scale it is bound to.

    Examples
    --------
    >>> verdict_words("holds"), verdict_words("holds", lang="zh")
    ('HOLDS at this scale', '成立（在此规模下）')
    """
    word = VERDICT_WORDS[verdict][lang]
    if verdict == NOT_TESTED:
        return word.upper()
    return word + AT_THIS_SCALE.zh if lang == "zh" else f"{word.upper()} {AT_THIS_SCALE.en}"


def _line(label: str, text: str, lang: str) -> list[str]:
    return labelled(_LABELS[label][lang], text, indent=INDENT, cells=COLUMNS)


def _title(card: Card, lang: str) -> list[str]:
    first = [clean(paper.id or paper.key) for paper in card.papers[:1]]
    more = [f"+{len(card.papers) - 1}"] if len(card.papers) > 1 else []
    right = " · ".join([" ".join(first + more), card.family] if first else [card.family])
    title = card.title[lang]
    left = title if title.lower().startswith(card.slug.lower()) else f"{card.slug} · {title}"
    left = clean(left)
    if width(left) + width(right) + 2 > COLUMNS:
        return [*wrap(left, COLUMNS), *wrap(right, COLUMNS)]
    return [pad(left, COLUMNS - width(right)) + right]


def _head(card: Card, claim: Claim, facts: Facts | None, lang: str) -> list[str]:
    lines = _title(card, lang)
    lines += _line("claim", f"{claim.title[lang]} [{claim.id}]", lang)
    lines += _line("says", claim.says[lang], lang)
    judged = tuple(facts.ours.estimates) if facts and facts.ours else ()
    seeds = len(facts.seeds) if facts else 0
    lines += _line("rule", rule_words(claim, seeds=seeds, points=judged)[lang], lang)
    better = better_words(claim.rule)[lang]
    unit = claim.unit[lang]
    unit = f"（{unit}；{better}）" if lang == "zh" else f" ({unit}; {better})"
    return lines + _line("metric", claim.metric[lang] + unit, lang)


def _scale(claim: Claim, record: Mapping[str, Any] | None, lang: str) -> list[str]:
    lines: list[str] = []
    if record and own_material(record):
        lines += _line("material", own_material(record), lang)
    else:
        lines += _line("here", claim.here_scale[lang], lang)
    return lines + _line("paper", claim.paper_scale[lang], lang)


def own_material(record: Mapping[str, Any]) -> str:
    """Name the user's own material of a record, or return an empty text."""
    parts = []
    if record.get("on"):
        on = record["on"]
        options = ", ".join(f"{k}={v}" for k, v in sorted((on.get("options") or {}).items()))
        parts.append(f"{on['name']} ({on['kind']}{', ' + options if options else ''})")
    if record.get("model"):
        parts.append(str(record["model"]))
    return " · ".join(parts)


def _shown(interval: Interval | None, claim: Claim, lang: str) -> str:
    if interval is None:
        return "-"
    return interval_text(interval, signed=is_signed(claim.rule), lang=lang)


def _estimates(claim: Claim, facts: Facts, lang: str) -> list[str]:
    ours, control = facts.ours, facts.control
    if ours is None or control is None:
        return []
    quantity = QUANTITY_WORDS[claim.rule.kind][lang]
    paper = figure_words(claim)[lang]
    names = (
        ("paper", "measured", "control ({})") if lang == "en" else ("论文", "实测", "对照（{}）")
    )
    rows = [[" " * (INDENT - 2), names[0], names[1], names[2].format(claim.control)]]
    for place, point in enumerate(ours.estimates):
        label = quantity if point == VALUE else f"{quantity} {point_words(claim.rule, point)[lang]}"
        said = paper if place == 0 else ""
        measured = _shown(ours.estimates[point], claim, lang)
        rows.append([label, said, measured, _shown(control.estimates.get(point), claim, lang)])
    if facts.judged:
        mark = CONTROL_PASSES if facts.control_passed else CONTROL_FAILS
        rows.append(["", "", "", mark[lang]])
    # The paper's words get what the numbers leave, so that numbers do not wrap.
    return grid(rows, cells=COLUMNS, gives_way=1)


def effect_lines(
    card: Card, claim: Claim, record: Mapping[str, Any], *, lang: str = "en"
) -> list[str]:
    """Say at every judged point what was measured, and what its control did.

    Returns
    -------
    list of str
        Empty where nothing was judged.
    """
    facts = read_facts(card, claim, record)
    if facts.ours is None or facts.control is None:
        return []
    name = f"对照（{claim.control}）" if lang == "zh" else f"control ({claim.control})"
    rows = []
    for point, interval in facts.ours.estimates.items():
        place = "" if point == VALUE else point_words(claim.rule, point)[lang]
        control = _shown(facts.control.estimates.get(point), claim, lang)
        rows.append([place, _shown(interval, claim, lang), f"{name} {control}"])
    if not any(place for place, *_ in rows):
        rows = [row[1:] for row in rows]
    return grid(rows, cells=COLUMNS - INDENT)


def quantity_words(claim: Claim, *, lang: str = "en") -> str:
    """Name what a claim's intervals are about, with its unit.

    Examples
    --------
    >>> from trialrun.catalogue import find_card
    >>> quantity_words(find_card("d3g").claim("weighting"))
    'difference, points'
    """
    quantity = QUANTITY_WORDS[claim.rule.kind][lang]
    if claim.rule.kind == "ratio":
        return quantity
    return f"{quantity}{'，' if lang == 'zh' else ', '}{claim.unit[lang]}"


def _arm_lines(facts: Facts, lang: str) -> list[str]:
    if not facts.arms:
        return []
    if facts.points == (VALUE,):
        rows = [[*_name(arm, lang), _shown_mean(arm, lang)] for arm in facts.arms]
        return indented(grid(rows, cells=COLUMNS - INDENT), INDENT, _LABELS["arms"][lang])
    lines: list[str] = []
    for chunk in _chunks(facts):
        rows = [["", "", *chunk]]
        rows += [[*_name(a, lang), *(_spread(a, point) for point in chunk)] for a in facts.arms]
        label = "" if lines else _LABELS["arms"][lang]
        lines += indented(grid(rows, cells=COLUMNS - INDENT), INDENT, label)
    return lines


def _chunks(facts: Facts) -> list[list[str]]:
    names = max(width(arm.name) for arm in facts.arms) + 24
    chunks: list[list[str]] = [[]]
    used = names
    for point in facts.points:
        cell = 2 + max(width(point), *(width(_spread(arm, point)) for arm in facts.arms))
        if chunks[-1] and used + cell > COLUMNS - INDENT:
            chunks.append([])
            used = names
        chunks[-1].append(point)
        used += cell
    return chunks


def _name(arm: ArmFacts, lang: str) -> list[str]:
    joint = "、" if lang == "zh" else ", "
    return [arm.name, joint.join(ROLE_WORDS[role][lang] for role in arm.roles)]


def _shown_mean(arm: ArmFacts, lang: str) -> str:
    mean = arm.means.get(VALUE)
    return "-" if mean is None else interval_text(mean, lang=lang)


def _spread(arm: ArmFacts, point: str) -> str:
    mean = arm.means.get(point)
    return "-" if mean is None else spread_text(mean)


def rival_words(claim: Claim, rival: Finding, *, lang: str = "en") -> str:
    """Say how the method stands beside the strongest simple rival."""
    said = RIVAL_WORDS[rival.word][lang].format(claim.rival)
    parts = []
    for point, interval in rival.estimates.items():
        shown = interval_text(interval, signed=True, lang=lang)
        parts.append(shown if point == VALUE else f"{point}: {shown}")
    stop = "；" if lang == "zh" else "; "
    colon = "：" if lang == "zh" else ": "
    return f"{said}{colon}{stop.join(parts)} {claim.unit[lang]}"


def cost_words(record: Mapping[str, Any], *, lang: str = "en") -> str:
    """Say what a record took: seconds of work, cores, memory, seeds, and its budget."""
    cores, seeds = record["machine"]["cores"], len(record["seeds"])
    took, memory = seconds_text(record["unit_seconds"])[lang], f"{record['peak_megabytes']:.0f} MB"
    if lang == "zh":
        return f"{took} · {cores} 核 · {memory} · {seeds} 个种子 · {record['budget']}"
    core = "core" if cores == 1 else "cores"
    seed = "seed" if seeds == 1 else "seeds"
    return f"{took} · {cores} {core} · {memory} · {seeds} {seed} · {record['budget']}"


def _verdict(record: Mapping[str, Any], facts: Facts, lang: str) -> list[str]:
    said, cost = verdict_words(facts.verdict, lang=lang), cost_words(record, lang=lang)
    room = COLUMNS - INDENT - width(said) - width(cost)
    lines = _line("verdict", said, lang)
    if room >= 2:
        return [lines[0] + " " * room + cost]
    return lines + indented(wrap(cost, COLUMNS - INDENT), INDENT)


def claim_lines(
    card: Card,
    claim: Claim,
    record: Mapping[str, Any] | None,
    *,
    lang: str = "en",
    not_tested: bool = True,
) -> list[str]:
    """Lay one claim and its record out as lines of at most 100 columns.

    Parameters
    ----------
    card : Card
    claim : Claim
        One of the card's claims.
    record : mapping or None
        As `trialrun.claims.records` writes it; None shows the claim and how to run it.
    lang : {"en", "zh"}
    not_tested : bool
        End with what of the paper is not tested; once is enough under several claims.

    Returns
    -------
    list of str
        Lines without trailing newlines and without control characters.
    """
    facts = read_facts(card, claim, record) if record is not None else None
    lines = [*_head(card, claim, facts, lang), *_scale(claim, record, lang)]
    command = command_of(card, claim, record["budget"] if record else "quick")
    if record is None or facts is None:
        lines += _line("verdict", verdict_words(NOT_TESTED, lang=lang), lang)
        lines += _line("reason", _NO_RECORD[lang].format(command), lang)
    else:
        lines += _measured(claim, record, facts, lang)
        if facts.stale:
            lines += _line("stale", _STALE[lang].format(command), lang)
    joint = " · ".join(item.what[lang].rstrip(".。 ") for item in card.not_tested)
    return lines + (_line("not tested", joint, lang) if joint and not_tested else [])


def _measured(claim: Claim, record: Mapping[str, Any], facts: Facts, lang: str) -> list[str]:
    lines = [*_estimates(claim, facts, lang), *_arm_lines(facts, lang)]
    if facts.rival is not None:
        lines += _line("rival", rival_words(claim, facts.rival, lang=lang), lang)
    lines += _verdict(record, facts, lang)
    if facts.reason:
        lines += _line("reason", facts.reason, lang)
    return lines
