"""One plot per claim, as a file of its own or as part of the page (extra ``plots``).

The same record gives the same bytes. matplotlib is loaded when a plot is drawn, and neither
pyplot nor lasting settings of it are touched.
"""

from __future__ import annotations

import io
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trialrun.catalogue import Card, Claim
from trialrun.claims.files import write_whole
from trialrun.core.errors import UsageError
from trialrun.core.extras import need
from trialrun.report import _draw, _style
from trialrun.report.facts import VALUE, read_facts

_PAGE_COLOURS = {
    _style.INK: "--plot-ink",
    _style.MUTED: "--plot-muted",
    _style.GRID: "--plot-grid",
    _style.CARD: "--plot-card",
    _style.OURS: "--plot-ours",
    _style.CONTROL: "--plot-control",
    _style.RIVAL: "--plot-rival",
    _style.BASELINE: "--plot-baseline",
    **{colour: f"--plot-shown-{place}" for place, colour in enumerate(_style.SHOWN, start=1)},
}


def _drawn(card: Card, claim: Claim, record: Mapping[str, Any], title: str) -> Any:
    facts = read_facts(card, claim, record)
    if not facts.arms:
        raise UsageError(
            f"{card.slug}/{claim.id} at {record['budget']} holds no measurements to plot: "
            "run the check again"
        )
    draw = _draw.draw_single if facts.points == (VALUE,) else _draw.draw_sweep
    figure = draw(claim, facts)
    if title:
        figure.suptitle(title, fontsize=10.5, x=0.01, ha="left")
    return figure


def _rendered(
    card: Card, claim: Claim, record: Mapping[str, Any], *, form: str, title: str, lang: str
) -> bytes:
    matplotlib = need("matplotlib", extra="plots")
    buffer = io.BytesIO()
    settings = {**_style.SETTINGS, "svg.hashsalt": f"{card.slug}/{claim.id}"}
    named = f"{card.slug}: {claim.title[lang]}"
    facts = {"Date": None, "Title": named} if form == "svg" else {"Title": card.slug}
    with matplotlib.rc_context(settings):
        figure = _drawn(card, claim, record, title)
        figure.savefig(buffer, format=form, dpi=160, metadata=facts)
    return buffer.getvalue()


def _write_bytes(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def plot_claim(
    card: Card, claim: Claim, record: Mapping[str, Any], path: Path, lang: str = "en"
) -> None:
    """Write the plot of one record as SVG or PNG.

    Parameters
    ----------
    record : mapping
        As `trialrun.claims.records` writes it.
    path : Path
        Ends in ``.svg`` or ``.png``. The file is written whole or not at all.
    lang : {"en", "zh"}
        Language of the title that an SVG carries for screen readers; the words in the drawing
        are English, because fonts with Chinese characters may be absent.

    Raises
    ------
    MissingExtra
        If matplotlib is not installed.
    UsageError
        If the record holds no measurements, or the file's ending is neither.
    """
    form = path.suffix.lower().removeprefix(".")
    if form not in ("svg", "png"):
        raise UsageError(f"a plot is written as .svg or .png, got {path.name!r}")
    title = f"{card.slug} · {claim.id} · {record['budget']}"
    data = _rendered(card, claim, record, form=form, title=title, lang=lang)
    if form == "svg":
        write_whole(path, data.decode("utf-8"))
    else:
        _write_bytes(path, data)


def inline_svg(card: Card, claim: Claim, record: Mapping[str, Any], *, key: str) -> str:
    """Return a plot as an SVG element for an HTML page.

    Parameters
    ----------
    key : str
        Letters, digits and hyphens; keeps the plot's ids apart from other plots' on the page.

    Notes
    -----
    Colours become CSS variables with the printed colour as fallback, so that the page's dark
    theme reaches the plot; fonts are the page's.
    """
    data = _rendered(card, claim, record, form="svg", title="", lang="en")
    return _for_page(data.decode("utf-8"), key)


def _for_page(svg: str, key: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<title>.*?</title>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)
    svg = svg.replace("xlink:href", "href").replace(
        ' xmlns:xlink="http://www.w3.org/1999/xlink"', ""
    )
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    used = set(re.findall(r'(?:href="|url\()#([\w.-]+)', svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda m: _kept_id(m[1], used, key), svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{key}-", svg)
    for colour, variable in _PAGE_COLOURS.items():
        svg = svg.replace(colour, f"var({variable}, {colour})")
    svg = re.sub(r"\s*\n\s*", " ", svg)
    return svg.replace("> <", "><").replace("<svg ", '<svg aria-hidden="true" focusable="false" ')


def _kept_id(name: str, used: set[str], key: str) -> str:
    return f' id="{key}-{name}"' if name in used else ""
