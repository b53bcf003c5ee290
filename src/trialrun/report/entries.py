"""Gather what the report shows: cards, notes, and the newest record of each claim and budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from trialrun.catalogue import Card, Claim, find_card, read_notes
from trialrun.claims.records import FORMAT, Record, read_records
from trialrun.report.facts import Facts, read_facts
from trialrun.report.table import own_material

BUDGETS = ("smoke", "quick", "full", "gpu", "paper")
SHIPPED, OWN_RUN = "shipped", "own run"


@dataclass(frozen=True)
class Shown:
    """A record with what was read from it; ``origin`` is `SHIPPED` or `OWN_RUN`."""

    record: Record
    facts: Facts
    origin: str


@dataclass(frozen=True)
class ClaimEntry:
    """A claim with its records, the one that says most first, and those on the user's material."""

    claim: Claim
    records: tuple[Shown, ...]
    own: tuple[Shown, ...]


@dataclass(frozen=True)
class MethodEntry:
    """One method: its card, its notes per language, and its claims."""

    card: Card
    notes: Mapping[str, str]
    claims: tuple[ClaimEntry, ...]


@dataclass(frozen=True)
class Entries:
    """Everything on one report; ``problems`` has a sentence for each line left out."""

    methods: tuple[MethodEntry, ...]
    problems: tuple[str, ...] = ()


def _shipped_records(slug: str) -> tuple[list[Record], list[str]]:
    source = files("trialrun") / "dossiers" / slug / "records.jsonl"
    if not source.is_file():
        return [], []
    with as_file(source) as path:
        return read_records(path)


def _rank(shown: Shown) -> tuple[bool, bool, int]:
    budget = shown.record["budget"]
    place = BUDGETS.index(budget) if budget in BUDGETS else -1
    return (shown.facts.judged, not shown.facts.stale, place)


def _newest(shown: Iterable[Shown]) -> tuple[Shown, ...]:
    kept: dict[tuple[str, str], Shown] = {}
    for item in sorted(shown, key=lambda item: str(item.record["finished"])):
        on = (item.record.get("on") or {}).get("sha256", "")
        kept[item.record["budget"], f"{own_material(item.record)} {on}"] = item
    return tuple(sorted(kept.values(), key=_rank, reverse=True))


def _read(card: Card, record: Record, origin: str) -> Shown | str:
    name = f"a record of {card.slug}/{record.get('claim')} at {record.get('budget')}"
    if record.get("format") != FORMAT:
        return (
            f"{name} has format {record.get('format')!r} and this version reads {FORMAT}: "
            "it is left out, run the check again"
        )
    if record.get("claim") not in {claim.id for claim in card.claims}:
        return f"{name} is left out: the card has no such claim any more"
    try:
        return Shown(record, read_facts(card, card.claim(record["claim"]), record), origin)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return f"{name} lacks what a record holds ({error!r}): it is left out, run the check again"


def make_entry(
    card: Card,
    notes: Mapping[str, str],
    records: Sequence[tuple[Record, str]],
) -> tuple[MethodEntry, list[str]]:
    """Sort a method's records by claim.

    Parameters
    ----------
    card : Card
    notes : mapping of language to Markdown
    records : sequence of (record, origin)

    Returns
    -------
    entry : MethodEntry
    problems : list of str
        One sentence for each record that cannot be shown.
    """
    read = [_read(card, record, origin) for record, origin in records]
    sound = [item for item in read if isinstance(item, Shown)]
    claims = []
    for claim in card.claims:
        mine = [item for item in sound if item.record["claim"] == claim.id]
        shipped = _newest(item for item in mine if not own_material(item.record))
        own = _newest(item for item in mine if own_material(item.record))
        claims.append(ClaimEntry(claim, shipped, own))
    problems = list(dict.fromkeys(item for item in read if isinstance(item, str)))
    return MethodEntry(card, dict(notes), tuple(claims)), problems


def _notes(slug: str, lang: str) -> dict[str, str]:
    languages = ("en", "zh") if lang == "both" else (lang,)
    found = {}
    for language in languages:
        source = files("trialrun") / "dossiers" / slug / f"notes.{language}.md"
        if source.is_file():
            found[language] = read_notes(slug, language)
    return found


def collect(
    slugs: Sequence[str], extra_record_files: Sequence[Path] = (), lang: str = "both"
) -> Entries:
    """Gather the newest record of every claim and budget.

    Parameters
    ----------
    slugs : sequence of str
        The methods to show, in this order.
    extra_record_files : sequence of Path
        ``records.jsonl`` files of the user's run folders. Records of other methods in them are
        passed over; records on the user's own material are kept apart.
    lang : {"en", "zh", "both"}
        Which notes to read.

    Raises
    ------
    UsageError
        If there is no such method.

    Examples
    --------
    >>> [entry.card.slug for entry in collect(["d3g"]).methods]
    ['d3g']
    """
    problems: list[str] = []
    extra: list[Record] = []
    for path in extra_record_files:
        if not path.is_file():
            problems.append(f"{path} is not a records file: it is passed over")
            continue
        records, said = read_records(path)
        extra += records
        problems += said
    methods = []
    for slug in slugs:
        card = find_card(slug)
        shipped, said = _shipped_records(slug)
        problems += said
        tagged = [(record, SHIPPED) for record in shipped]
        tagged += [(record, OWN_RUN) for record in extra if record.get("slug") == slug]
        entry, said = make_entry(card, _notes(slug, lang), tagged)
        problems += said
        methods.append(entry)
    return Entries(tuple(methods), tuple(dict.fromkeys(problems)))
