"""``trialrun show``: one method's card, its verdicts so far, and its notes."""

from __future__ import annotations

import sys
from importlib.resources import as_file, files
from typing import Literal

from trialrun.catalogue import Card, Text, find_card, read_notes
from trialrun.claims.records import is_stale, newest, read_records
from trialrun.cli._problems import report_problems

_WORDS = {
    "papers": Text("Papers", "论文"),
    "claims": Text("Claims", "论断"),
    "none": Text("no record yet", "尚无记录"),
    "stale": Text("stale", "已过期"),
    "takes": Text("Takes", "可用材料"),
    "untested": Text("Not tested", "未检验"),
    "imports": Text("Import", "导入"),
}


def _verdict_lines(card: Card, lang: str) -> tuple[list[str], list[str]]:
    from trialrun.report.table import effect_lines, quantity_words, verdict_words

    with as_file(files("trialrun") / "dossiers" / card.slug / "records.jsonl") as path:
        records, problems = read_records(path)
    lines = []
    for claim in card.claims:
        lines.append(f"  {claim.id}: {claim.title[lang]}")
        lines.append(f"    {quantity_words(claim, lang=lang)}")
        for budget in ("quick", "full", "gpu"):
            record = newest(records, claim, slug=card.slug, budget=budget)
            if record is not None:
                stale = f" ({_WORDS['stale'][lang]})" if is_stale(record) else ""
                word = verdict_words(record["verdict"], lang=lang)
                lines.append(f"    {budget:<6} {word}{stale}  {record['finished'][:10]}")
                effects = effect_lines(card, claim, record, lang=lang)
                lines += [f"           {line}" for line in effects]
            elif budget != "gpu":
                lines.append(f"    {budget:<6} {_WORDS['none'][lang]}")
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

    from trialrun.report.words import READ_WORDS

    card = find_card(slug)
    words = {name: word[lang] for name, word in _WORDS.items()}
    verdicts, problems = _verdict_lines(card, lang)
    print(f"{card.title[lang]}  [{card.slug}, {card.family}, {card.kind}]\n{card.idea[lang]}\n")
    print(f"{words['imports']}:")
    for entry in card.entry:
        print("  from {} import {}".format(*entry.split(":")))
    print(f"\n{words['papers']}:")
    for paper in card.papers:
        print(f"  {paper.authors} ({paper.year}). {paper.title}. {paper.id}")
        print(f"    {READ_WORDS[paper.read][lang]}")
    print(f"\n{words['claims']}:", *verdicts, sep="\n")
    if card.accepts:
        print(f"\n{words['takes']} (--on / --model):")
        for accepts in card.accepts:
            formats = f" ({', '.join(accepts.formats)})" if accepts.formats else ""
            print(f"  {accepts.kind}{formats}: {accepts.what[lang]}")
    print(f"\n{words['untested']}:")
    for item in card.not_tested:
        print(f"  {item.what[lang].rstrip('.。')}: {item.why[lang]}")
    print()
    Console(width=100 if not sys.stdout.isatty() else None).print(Markdown(read_notes(slug, lang)))
    return report_problems(problems)
