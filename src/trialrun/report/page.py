"""The report: one HTML page that holds everything it needs and loads nothing."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import trialrun
from trialrun.claims.files import write_whole
from trialrun.core.errors import MissingExtra, UsageError
from trialrun.core.extras import need
from trialrun.report._view import page_view
from trialrun.report.entries import ClaimEntry, Entries, MethodEntry, Shown, collect, make_entry
from trialrun.report.words import VERDICT_MEANINGS, VERDICT_WORDS

__all__ = [
    "ClaimEntry",
    "Entries",
    "MethodEntry",
    "Shown",
    "build_report",
    "collect",
    "make_entry",
]

LANGUAGES = ("en", "zh", "both")


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("trialrun.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _why_no_plots() -> str:
    try:
        need("matplotlib", extra="plots")
    except MissingExtra as error:
        return str(error)
    return ""


def render_report(entries: Entries, *, lang: str = "both") -> str:
    """Return the report's HTML; see `build_report`."""
    if lang not in LANGUAGES:
        raise UsageError(f"lang must be en, zh or both, got {lang!r}")
    environment = _environment()
    style: Any = environment.loader and environment.loader.get_source(environment, "report.css")[0]
    return environment.get_template("page.html.j2").render(
        page=page_view(entries, plots_missing=_why_no_plots()),
        languages=("en", "zh") if lang == "both" else (lang,),
        style=Markup(style),
        verdicts=[(key, VERDICT_WORDS[key], VERDICT_MEANINGS[key]) for key in VERDICT_WORDS],
        version=trialrun.__version__,
    )


def build_report(entries: Entries, target: Path, *, lang: str = "both") -> Path:
    """Write the report as one self-contained HTML page.

    Parameters
    ----------
    entries : Entries
        From `collect`.
    target : Path
        The file to write; it is written whole or not at all.
    lang : {"en", "zh", "both"}
        With ``both``, the page carries both languages and a switch between them.

    Returns
    -------
    Path
        ``target``.

    Raises
    ------
    OSError
        If the file cannot be written.

    Notes
    -----
    Without matplotlib the page is written without plots and says how to get them.
    """
    write_whole(target, render_report(entries, lang=lang))
    return target
