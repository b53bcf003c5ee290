"""Find dossiers: the card is the registry."""

from __future__ import annotations

import difflib
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from trialrun.catalogue.card import Card, parse_card
from trialrun.core.errors import UsageError

LANGUAGES = ("en", "zh")


def _dossiers() -> Traversable:
    return files("trialrun") / "dossiers"


@cache
def slugs() -> tuple[str, ...]:
    """Return the slugs of all dossiers, sorted.

    Examples
    --------
    >>> "rerope" in slugs()
    True
    """
    found = (f.name for f in _dossiers().iterdir() if (f / "card.toml").is_file())
    return tuple(sorted(found))


@cache
def find_card(slug: str) -> Card:
    """Read one dossier's card.

    Raises
    ------
    UsageError
        If there is no such dossier; the sentence names the nearest slugs.

    Examples
    --------
    >>> find_card("d3g").family
    'shift'
    """
    if slug not in slugs():
        near = difflib.get_close_matches(slug, slugs(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(slugs())}"
        raise UsageError(f"no method has the slug {slug!r}: {hint} (see trialrun list)")
    path = _dossiers() / slug / "card.toml"
    card = parse_card(path.read_text(encoding="utf-8"), where=f"dossiers/{slug}/card.toml")
    if card.slug != slug:
        raise UsageError(f"dossiers/{slug}/card.toml must say slug = {slug!r}, got {card.slug!r}")
    return card


def all_cards() -> tuple[Card, ...]:
    """Return every card, by family and slug."""
    return tuple(sorted((find_card(s) for s in slugs()), key=lambda c: (c.family, c.slug)))


def read_notes(slug: str, lang: str) -> str:
    """Return a dossier's notes as Markdown.

    Raises
    ------
    UsageError
        If the language is neither ``en`` nor ``zh``.
    """
    if lang not in LANGUAGES:
        raise UsageError(f"notes exist in en and zh, got {lang!r}: use --lang en or --lang zh")
    find_card(slug)
    return (_dossiers() / slug / f"notes.{lang}.md").read_text(encoding="utf-8")
