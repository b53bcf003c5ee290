"""Write the README's tables from the committed records; no number in it is typed by hand.

Run with ``python docs/update_readme.py``; ``--check`` only says whether the README is up to date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from trialrun.catalogue import all_cards, find_card
from trialrun.claims.records import is_stale, newest, read_records
from trialrun.report.table import claim_lines

README = Path(__file__).parents[1] / "README.md"
SHOWN = ("mbml", "crossed", "full")


def _records(slug: str) -> list[dict]:
    return read_records(Path(str(files("trialrun"))) / "dossiers" / slug / "records.jsonl")[0]


def example_table() -> str:
    """Return one claim's table as the command line prints it."""
    slug, claim_id, budget = SHOWN
    card = find_card(slug)
    record = newest(_records(slug), card.claim(claim_id), slug=slug, budget=budget)
    if record is None:
        raise SystemExit(f"{slug} has no {budget} record of {claim_id}: run make records")
    return "\n".join(["```", *claim_lines(card, card.claim(claim_id), record), "```"])


def _rows() -> Iterator[str]:
    for card in all_cards():
        if card.draft:
            continue
        records = _records(card.slug)
        for claim in card.claims:
            words = []
            for budget in ("quick", "full"):
                record = newest(records, claim, slug=card.slug, budget=budget)
                stale = record is not None and is_stale(record)
                words.append((record["verdict"] if record else "no record") + " (stale)" * stale)
            yield f"| {card.slug} | {claim.title.en} | {words[0]} | {words[1]} |"


def verdict_table() -> str:
    """Return the table of all claims with their verdicts."""
    head = ["| method | claim | quick | full |", "|---|---|---|---|"]
    return "\n".join([*head, *_rows()])


def updated(text: str) -> str:
    """Return the README with both tables written anew."""
    for name, block in (("table", example_table()), ("verdicts", verdict_table())):
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}\n{block}\n{end}{after}"
    return text


def main() -> None:
    """Write the README, or check it."""
    old = README.read_text(encoding="utf-8")
    new = updated(old)
    if "--check" in sys.argv:
        raise SystemExit(0 if new == old else "README.md is out of date: run docs/update_readme.py")
    README.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
