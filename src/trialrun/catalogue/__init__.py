"""The registry: dossiers' cards, read without loading any method."""

from trialrun.catalogue.card import Accepts, Card, Claim, Paper, Rule, Text, parse_card
from trialrun.catalogue.shelf import all_cards, find_card, read_notes, slugs

__all__ = [
    "Accepts",
    "Card",
    "Claim",
    "Paper",
    "Rule",
    "Text",
    "all_cards",
    "find_card",
    "parse_card",
    "read_notes",
    "slugs",
]
