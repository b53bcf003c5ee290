"""``trialrun show``: one method's card, its verdicts so far, and its notes."""

from __future__ import annotations

import sys
from importlib.resources import as_file, files
from typing import Literal

from trialrun.catalogue import Card, find_card, read_notes
from trialrun.claims.records import is_stale, newest, read_records
from trialrun.cli._problems import report_problems

_WORDS = {
    "en": ("Papers", "read", "Claims", "no record yet", "stale", "Takes", "Not tested", "Import"),
    "zh": ("论文", "读到的", "主张", "尚无记录", "已过期", "可用材料", "未检验", "导入"),
}


def _verdict_lines(card: Card, lang: str) -> tuple[list[str], list[str]]:
    from trialrun.report.table import verdict_words

    with as_file(files("trialrun") / "dossiers" / card.slug / "records.jsonl") as path:
        records, problems = read_records(path)
    lines = []
    for claim in card.claims:
        lines.append(f"  {claim.id}: {claim.title[lang]}")
        for budget in ("quick", "full", "gpu"):
            record = newest(records, claim, slug=card.slug, budget=budget)
            if record is not None:
                stale = f" ({_WORDS[lang][4]})" if is_stale(record) else ""
                word = verdict_words(record["verdict"], lang=lang)
                lines.append(f"    {budget:<6} {word}{stale}  {record['finished'][:10]}")
            elif budget != "gpu":
                lines.append(f"    {budget:<6} {_WORDS[lang][3]}")
    return lines, problems


def show(slug: str, *, lang: Literal["en", "zh"] = "en") -> int:
    """Show a method: its papers, claims with the verdicts so far, what is not tested, and notes.

    Parameters
    ----------
    slug
        A name from ``trialrun list``.
    lang
        Language: en or zh.
    """
    from rich.console import Console
    from rich.markdown import Markdown

    card, words = find_card(slug), _WORDS[lang]
    verdicts, problems = _verdict_lines(card, lang)
    print(f"{card.title[lang]}  [{card.slug}, {card.family}, {card.kind}]\n{card.idea[lang]}\n")
    print(f"{words[7]}:")
    for entry in card.entry:
        print("  from {} import {}".format(*entry.split(":")))
    print(f"\n{words[0]}:")
    for paper in card.papers:
        print(f"  {paper.authors} ({paper.year}). {paper.title}. {paper.id}")
        print(f"    {words[1]}: {paper.read}")
    print(f"\n{words[2]}:", *verdicts, sep="\n")
    if card.accepts:
        print(f"\n{words[5]} (--on / --model):")
        for accepts in card.accepts:
            formats = f" ({', '.join(accepts.formats)})" if accepts.formats else ""
            print(f"  {accepts.kind}{formats}: {accepts.what[lang]}")
    print(f"\n{words[6]}:")
    for item in card.not_tested:
        print(f"  {item.what[lang].rstrip('.。')}: {item.why[lang]}")
    print()
    Console(width=100 if not sys.stdout.isatty() else None).print(Markdown(read_notes(slug, lang)))
    return report_problems(problems)
