"""Turn entries into what the page's templates print: every text ready, in both languages."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from trialrun.catalogue import Card, Claim, Text
from trialrun.claims.judge import Finding
from trialrun.core.intervals import Interval
from trialrun.report._markdown import to_html
from trialrun.report.entries import BUDGETS, SHIPPED, ClaimEntry, Entries, MethodEntry, Shown
from trialrun.report.facts import VALUE, ArmFacts, is_signed, weakest_point
from trialrun.report.figures import interval_text, number
from trialrun.report.plots import inline_svg
from trialrun.report.table import command_of, cost_words, own_material, rival_words
from trialrun.report.words import (
    AT_THIS_SCALE,
    CONTROL_FAILS,
    CONTROL_PASSES,
    QUANTITY_WORDS,
    READ_WORDS,
    ROLE_WORDS,
    VERDICT_WORDS,
    better_words,
    figure_words,
    point_words,
    rule_words,
)

ORIGINS = {
    SHIPPED: Text("record shipped with the package", "随包附带的记录"),
    "own run": Text("your own run", "你自己运行的记录"),
}


@dataclass(frozen=True)
class RecordView:
    """One record as the page shows it; ``plot`` is empty where there is none."""

    shown: Shown
    claim: Claim
    key: str
    word: Text
    scale: Text
    origin: Text
    command: str
    cost: Text
    rule: Text
    material: str
    effect: Text
    effect_note: Text
    estimates: list[tuple[Text, Text, Text]]
    control_mark: Text | None
    rival: Text | None
    points: tuple[str, ...]
    arms: list[tuple[str, Text, list[Text]]]
    seeds: list[tuple[str, str, list[str]]]
    plot: Markup


@dataclass(frozen=True)
class ClaimView:
    """One claim: the record that says most, and the rest."""

    claim: Claim
    key: str
    figure: Text
    better: Text
    rule: Text
    command: str
    records: list[RecordView]
    own: list[RecordView]

    def at(self, budget: str) -> RecordView | None:
        """Return the record of a budget, or None."""
        return next((r for r in self.records if r.shown.record["budget"] == budget), None)

    def ran_at(self, budgets: list[str]) -> bool:
        """Tell whether there is a record at one of the budgets."""
        return any(self.at(budget) for budget in budgets)


@dataclass(frozen=True)
class MethodView:
    """One method's section."""

    card: Card
    key: str
    read: list[Text]
    links: list[str]
    notes: dict[str, Markup]
    claims: list[ClaimView]


@dataclass(frozen=True)
class PageView:
    """The whole page."""

    methods: list[MethodView]
    problems: tuple[str, ...]
    budgets: list[str]
    plots_missing: str
    newest: str


def _both(write: Callable[[str], str]) -> Text:
    return Text(write("en"), write("zh"))


def _same(text: str) -> Text:
    return Text(text, text)


def _signs(text: str) -> str:
    return text.replace("-", "−")


def _interval(interval: Interval | None, *, signed: bool = False) -> Text:
    if interval is None:
        return _same("–")
    known = interval
    return _both(lambda lang: _signs(interval_text(known, signed=signed, lang=lang)))


def _key(*parts: str) -> str:
    return "-".join(re.sub(r"[^A-Za-z0-9]+", "-", part).strip("-") for part in parts)


def _estimates(claim: Claim, ours: Finding, control: Finding) -> list[tuple[Text, Text, Text]]:
    quantity, signed = QUANTITY_WORDS[claim.rule.kind], is_signed(claim.rule)
    rows = []
    for point, interval in ours.estimates.items():
        name = point_words(claim.rule, point)
        label = quantity
        if point != VALUE:
            label = Text(f"{quantity.en}, {name.en}", f"{quantity.zh}，{name.zh}")
        other = control.estimates.get(point)
        rows.append((label, _interval(interval, signed=signed), _interval(other, signed=signed)))
    return rows


def _effect(claim: Claim, ours: Finding | None) -> tuple[Text, Text]:
    if ours is None:
        return _same(""), _same("")
    point = weakest_point(ours, claim.rule)
    shown = _interval(ours.estimates[point], signed=is_signed(claim.rule))
    count, name = len(ours.estimates), point_words(claim.rule, point)
    if count == 1:
        return shown, _same("") if point == VALUE else name
    note = Text(f"{name.en}, weakest of {count}", f"{name.zh}，{count} 处中最弱")
    return shown, note


def _roles(arm: ArmFacts) -> Text:
    return Text(
        ", ".join(ROLE_WORDS[role].en for role in arm.roles),
        "、".join(ROLE_WORDS[role].zh for role in arm.roles),
    )


def _seed_rows(arms: tuple[ArmFacts, ...]) -> list[tuple[str, str, list[str]]]:
    def shown(values: Any) -> list[str]:
        return ["–" if v is None else _signs(number(float(v))) for v in values]

    rows = []
    for arm in arms:
        for point, values in arm.values.items():
            rows.append((arm.name, "" if point == VALUE else point, shown(values)))
        for name, values in arm.extra.items():
            rows.append((arm.name, name, shown(values)))
    return rows


def _record(card: Card, claim: Claim, shown: Shown, *, key: str, plot: bool) -> RecordView:
    record, facts = shown.record, shown.facts
    ours, control, rival = facts.ours, facts.control, facts.rival
    mark = None
    if facts.judged:
        mark = CONTROL_PASSES if facts.control_passed else CONTROL_FAILS
    effect, note = _effect(claim, ours)
    return RecordView(
        shown=shown,
        claim=claim,
        key=key,
        word=VERDICT_WORDS[facts.verdict],
        scale=AT_THIS_SCALE if facts.judged else _same(""),
        origin=ORIGINS[shown.origin],
        command=command_of(card, claim, record["budget"]),
        cost=_both(lambda lang: cost_words(record, lang=lang)),
        rule=rule_words(
            claim, seeds=len(facts.seeds), points=tuple(ours.estimates) if ours else ()
        ),
        material=own_material(record),
        effect=effect,
        effect_note=note,
        estimates=_estimates(claim, ours, control) if ours and control else [],
        control_mark=mark,
        rival=_both(lambda lang: _signs_in_numbers(rival_words(claim, rival, lang=lang)))
        if rival
        else None,
        points=facts.points,
        arms=[
            (arm.name, _roles(arm), [_interval(arm.means.get(p)) for p in facts.points])
            for arm in facts.arms
        ],
        seeds=_seed_rows(facts.arms),
        plot=Markup(inline_svg(card, claim, record, key=key)) if plot and facts.arms else Markup(),
    )


def _signs_in_numbers(text: str) -> str:
    return re.sub(r"-(?=\d)(?<=[\s\[,：:]-)", "−", text)


def _claim(card: Card, entry: ClaimEntry, *, plots: bool) -> ClaimView:
    claim = entry.claim
    key = _key(card.slug, claim.id)
    records = [
        _record(card, claim, shown, key=_key(key, shown.record["budget"]), plot=plots and not place)
        for place, shown in enumerate(entry.records)
    ]
    own = [
        _record(card, claim, shown, key=f"{key}-own-{place}", plot=plots)
        for place, shown in enumerate(entry.own)
    ]
    return ClaimView(
        claim=claim,
        key=key,
        figure=figure_words(claim),
        better=better_words(claim.rule),
        rule=rule_words(claim),
        command=command_of(card, claim),
        records=records,
        own=own,
    )


def paper_link(identity: str) -> str:
    """Return the web address behind a paper's identity, or an empty text.

    Examples
    --------
    >>> paper_link("arXiv:2302.02609")
    'https://arxiv.org/abs/2302.02609'
    >>> paper_link("github.com/someone/something")
    'https://github.com/someone/something'
    """
    kind, _, rest = identity.partition(":")
    if kind.lower() == "arxiv" and re.fullmatch(r"[\w./-]+", rest):
        return f"https://arxiv.org/abs/{rest}"
    if kind.lower() == "doi" and re.fullmatch(r"10\.[\w./()-]+", rest):
        return f"https://doi.org/{rest}"
    address = identity.removeprefix("https://")
    if re.fullmatch(r"[\w-]+(\.[\w-]+)+/[\w./~-]*", address):
        return f"https://{address}"
    return ""


def _method(entry: MethodEntry, *, plots: bool) -> MethodView:
    card = entry.card
    notes: Mapping[str, str] = entry.notes
    return MethodView(
        card,
        _key(card.slug),
        [READ_WORDS[paper.read] for paper in card.papers],
        [paper_link(paper.id) for paper in card.papers],
        {lang: to_html(text, first_heading=4) for lang, text in notes.items()},
        [_claim(card, claim, plots=plots) for claim in entry.claims],
    )


def page_view(entries: Entries, *, plots_missing: str) -> PageView:
    """Return the page's content; without plots where ``plots_missing`` says why."""
    methods = [_method(entry, plots=not plots_missing) for entry in entries.methods]
    records = [r.shown.record for m in methods for c in m.claims for r in (*c.records, *c.own)]
    used = {r.shown.record["budget"] for m in methods for c in m.claims for r in c.records}
    if len(used) > 1:
        used.discard("smoke")  # gives no verdict, so it has no column beside those that do
    budgets = [b for b in BUDGETS if b in used] + sorted(used - set(BUDGETS))
    newest = max((str(record["finished"]) for record in records), default="")
    return PageView(methods, entries.problems, budgets, plots_missing, newest)
