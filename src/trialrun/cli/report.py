"""``trialrun report``: one self-contained page from the records."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from trialrun.catalogue import find_card, slugs
from trialrun.cli._problems import report_problems
from trialrun.report.page import build_report, collect


def report(
    *methods: str,
    runs: Path = Path("trialrun-runs"),
    to: Path | None = None,
    lang: Literal["en", "zh", "both"] = "both",
) -> int:
    """Build the HTML report from the dossiers' records and from your own runs.

    Parameters
    ----------
    methods
        Slugs to include; all of them by default.
    runs
        Folder of your own runs.
    to
        File to write; by default ``report.html`` in the folder of runs.
    lang
        Language of the page.
    """
    chosen = [find_card(slug).slug for slug in (methods or slugs())]
    entries = collect(chosen, sorted(runs.glob("*/*/records.jsonl")), lang)
    target = build_report(entries, to or runs / "report.html", lang=lang)
    print(f"report: {target.resolve()}", file=sys.stderr)
    print(target)
    return report_problems(entries.problems)
