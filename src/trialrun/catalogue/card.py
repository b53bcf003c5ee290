"""The card: what a dossier says about itself, checked on reading.

A card is TOML. Unknown keys are errors, so that a misspelt ``contrl`` cannot pass for a claim
without a control.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from trialrun.core.errors import UsageError

KINDS = ("estimator", "block", "patch", "function", "agent", "pipeline")
READ = ("full text", "code", "blog", "digest", "third party", "memory", "probe")
RULES = ("paired_difference", "ratio", "noninferior", "equivalent", "ordering", "threshold")
DIRECTIONS = ("higher", "lower")


@dataclass(frozen=True)
class Text:
    """One sentence in both languages."""

    en: str
    zh: str

    def __getitem__(self, lang: str) -> str:
        return self.zh if lang == "zh" else self.en


@dataclass(frozen=True)
class Paper:
    """One source of a method. ``read`` says what of it was read, not what exists."""

    key: str
    title: str
    authors: str
    year: int
    id: str
    read: str


@dataclass(frozen=True)
class Rule:
    """When a claim holds; fixed before the run.

    ``margin`` is in ``unit``; for ``ratio`` it is the ratio itself, for ``threshold`` the number
    to pass, for ``noninferior`` and ``equivalent`` the largest loss that still counts as level.
    ``against`` names the arm to compare with (``threshold`` and ``ordering`` have none).
    ``points`` restricts the rule to some of the measured points, all of which must satisfy it;
    for ``ordering`` it lists them from worst to best. ``resplit`` is for seeds that split one table
    anew: the ratio of held-out to training units, which widens the interval.
    """

    kind: str
    metric: str
    unit: str
    direction: str
    margin: float = 0.0
    against: str = ""
    points: tuple[str, ...] = ()
    confidence: float = 0.95
    resplit: float = 0.0


@dataclass(frozen=True)
class Claim:
    """One statement on trial, with the arms that try it.

    ``metric_zh`` and ``unit_zh`` are the rule's metric and unit in Chinese; they stand outside the
    rule, whose words are part of every record's fingerprint. A unit without one, such as ``nats``,
    is written the same in both languages.
    """

    id: str
    title: Text
    says: Text
    figure: str
    figure_read: str
    paper_scale: Text
    here_scale: Text
    ours: str
    baseline: str
    rival: str
    control: str
    rule: Rule
    shown: tuple[str, ...] = ()
    metric_zh: str = ""
    unit_zh: str = ""

    @property
    def metric(self) -> Text:
        """Return what is measured, in both languages."""
        return Text(self.rule.metric, self.metric_zh or self.rule.metric)

    @property
    def unit(self) -> Text:
        """Return the unit of the metric and the margin, in both languages."""
        return Text(self.rule.unit, self.unit_zh or self.rule.unit)

    @property
    def arms(self) -> tuple[str, ...]:
        """Return every arm once: ours first, then what it is compared with."""
        named = (self.ours, self.baseline, self.rival, self.rule.against, self.control, *self.shown)
        return tuple(dict.fromkeys(arm for arm in named if arm))


@dataclass(frozen=True)
class Accepts:
    """A kind of material that ``--on`` takes, and the claims it puts on trial."""

    kind: str
    formats: tuple[str, ...]
    what: Text
    claims: tuple[str, ...]
    needs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class NotTested:
    """A part of the paper that is not checked here, and why."""

    what: Text
    why: Text


@dataclass(frozen=True)
class Source:
    """Material or code that a dossier draws on, with its licence."""

    name: str
    licence: str
    where: str


@dataclass(frozen=True)
class Card:
    """One dossier's card; see ``docs/adding-a-method.md`` for the file's form."""

    slug: str
    family: str
    kind: str
    title: Text
    idea: Text
    digest: str
    entry: tuple[str, ...]
    extras: tuple[str, ...]
    papers: tuple[Paper, ...]
    claims: tuple[Claim, ...]
    not_tested: tuple[NotTested, ...]
    sources: tuple[Source, ...]
    accepts: tuple[Accepts, ...] = ()
    packs: tuple[str, ...] = ()
    draft: bool = False

    def claim(self, claim_id: str) -> Claim:
        """Return a claim by id.

        Raises
        ------
        UsageError
            Listing the ids there are.
        """
        for claim in self.claims:
            if claim.id == claim_id:
                return claim
        known = ", ".join(claim.id for claim in self.claims)
        raise UsageError(f"{self.slug} has no claim {claim_id!r}: choose one of {known}")


def _text(where: str, value: Any) -> Text:
    if not isinstance(value, Mapping) or set(value) != {"en", "zh"}:
        raise UsageError(f"{where} must be a table with the keys en and zh, got {value!r}")
    for lang, words in value.items():
        if not isinstance(words, str) or not words.strip():
            raise UsageError(f"{where}.{lang} must be a sentence, got {words!r}")
    return Text(**value)


def _value(where: str, kind: str, value: Any) -> Any:
    if kind == "Text":
        return _text(where, value)
    if kind == "Rule":
        return _build(Rule, where, value)
    if kind.startswith("tuple["):
        if not isinstance(value, list):
            raise UsageError(f"{where} must be a list, got {value!r}")
        inner = kind.removeprefix("tuple[").split(",")[0].rstrip("]")
        if inner in _PARTS:
            return tuple(_build(_PARTS[inner], f"{where}[{i}]", v) for i, v in enumerate(value))
        if not all(isinstance(item, str) for item in value):
            raise UsageError(f"{where} must be a list of strings, got {value!r}")
        return tuple(value)
    allowed: tuple[type, ...] = {"int": (int,), "float": (int, float), "bool": (bool,)}.get(
        kind, (str,)
    )
    if not isinstance(value, allowed) or (kind != "bool" and isinstance(value, bool)):
        raise UsageError(f"{where} must be of type {kind}, got {value!r}")
    if kind == "float":
        number = float(str(value))
        if not math.isfinite(number):
            raise UsageError(f"{where} must be finite, got {value!r}")
        return number
    return value


def _build(cls: Any, where: str, table: Any) -> Any:
    if not isinstance(table, Mapping):
        raise UsageError(f"{where} must be a table, got {table!r}")
    known = {field.name: field for field in fields(cls)}
    for key in table:
        if key not in known:
            raise UsageError(f"{where} has the unknown key {key!r}: it takes {', '.join(known)}")
    missing = [n for n, f in known.items() if f.default is MISSING and n not in table]
    if missing:
        raise UsageError(f"{where} lacks {', '.join(missing)}")
    return cls(**{k: _value(f"{where}.{k}", str(known[k].type), v) for k, v in table.items()})


_PARTS: dict[str, Any] = {
    "Paper": Paper,
    "Claim": Claim,
    "Accepts": Accepts,
    "NotTested": NotTested,
    "Source": Source,
}


def _one_of(where: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{where} must be one of {', '.join(allowed)}, got {value!r}")


def _check_rule(where: str, claim: Claim) -> None:
    rule = claim.rule
    _one_of(f"{where}.kind", rule.kind, RULES)
    _one_of(f"{where}.direction", rule.direction, DIRECTIONS)
    if not 0.5 < rule.confidence < 1:
        raise UsageError(f"{where}.confidence must be in (0.5, 1), got {rule.confidence}")
    if rule.resplit < 0:
        raise UsageError(f"{where}.resplit must not be negative, got {rule.resplit}")
    compared = rule.kind not in ("threshold", "ordering")
    if compared and not rule.against:
        raise UsageError(f"{where}.against must name the arm that {rule.kind} compares with")
    if not compared and rule.against:
        raise UsageError(f"{where}.against does not go with {rule.kind}: leave it out")
    if rule.kind in ("noninferior", "equivalent", "ratio") and rule.margin <= 0:
        raise UsageError(f"{where}.margin must be positive for {rule.kind}, got {rule.margin}")
    if rule.kind in ("paired_difference", "ordering") and rule.margin < 0:
        raise UsageError(f"{where}.margin must not be negative for {rule.kind}, got {rule.margin}")
    if rule.kind == "ordering" and len(rule.points) < 2:
        raise UsageError(f"{where}.points must list at least two points from worst to best")


def _check(card: Card, where: str) -> None:
    _one_of(f"{where}: kind", card.kind, KINDS)
    for paper in card.papers:
        _one_of(f"{where}: paper {paper.key}: read", paper.read, READ)
    if not card.draft and not (card.claims and card.papers and card.entry and card.not_tested):
        raise UsageError(f"{where}: papers, entry, claims and not_tested must not be empty")
    ids = [claim.id for claim in card.claims]
    if len(set(ids)) != len(ids):
        raise UsageError(f"{where}: claim ids must differ, got {', '.join(ids)}")
    for claim in card.claims:
        spot = f"{where}: claim {claim.id}"
        _one_of(f"{spot}: figure_read", claim.figure_read, (*READ, "none"))
        if not (claim.baseline and claim.rival and claim.control):
            raise UsageError(f"{spot}: baseline, rival and control must each name an arm")
        if claim.control in (claim.ours, claim.baseline):
            raise UsageError(f"{spot}: the control must differ from ours and the baseline")
        if claim.figure_read == "memory" and claim.figure:
            raise UsageError(f"{spot}: a figure from memory must not stand as the paper's number")
        _check_rule(f"{spot}: rule", claim)
    for accepts in card.accepts:
        for claim_id in accepts.claims:
            card.claim(claim_id)


def parse_card(text: str, *, where: str = "card.toml") -> Card:
    """Read a card's TOML and check it.

    Parameters
    ----------
    text : str
        The file's content.
    where : str
        Name for messages.

    Raises
    ------
    UsageError
        With one sentence naming the key, what was expected and what came.

    Examples
    --------
    >>> parse_card("slug = 1")
    Traceback (most recent call last):
    ...
    trialrun.core.errors.UsageError: card.toml.slug must be of type str, got 1
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where} is not valid TOML: {error}") from error
    card: Card = _build(Card, where, table)
    _check(card, where)
    return card
