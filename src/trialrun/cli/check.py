"""``trialrun check``: put methods on trial."""

from __future__ import annotations

import json as json_module
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from trialrun.catalogue import Card, find_card, slugs
from trialrun.claims.check import Checked, Progress, run_check
from trialrun.claims.engine import stop_workers
from trialrun.claims.judge import (
    BROKEN_CHECK,
    DIRECTION_ONLY,
    DOES_NOT_HOLD,
    HOLDS,
    NOT_RESOLVED,
    NOT_TESTED,
)
from trialrun.claims.plan import Request
from trialrun.cli._on import resolve_model, resolve_on
from trialrun.core.errors import MissingExtra, NotRunnable, UsageError
from trialrun.material.pulling import require_pack
from trialrun.report.plots import plot_claim
from trialrun.report.table import claim_lines

EXIT = {
    HOLDS: 0,
    DOES_NOT_HOLD: 1,
    NOT_RESOLVED: 3,
    DIRECTION_ONLY: 3,
    BROKEN_CHECK: 4,
    NOT_TESTED: 5,
}
_WORST_FIRST = (2, 4, 5, 1, 3, 0)


@contextmanager
def _progress_bars(quiet: bool) -> Iterator[Callable[[Progress], None]]:
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich import progress as bars_of
    from rich.console import Console

    columns = (
        bars_of.TextColumn("{task.description}"),
        bars_of.BarColumn(),
        bars_of.MofNCompleteColumn(),
        bars_of.TimeElapsedColumn(),
        bars_of.TextColumn("left"),
        bars_of.TimeRemainingColumn(),
        bars_of.TextColumn("[dim]{task.fields[last]}"),
    )
    with bars_of.Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, bars_of.TaskID] = {}

        def show(progress: Progress) -> None:
            if progress.slug not in tasks:
                tasks[progress.slug] = bars.add_task(progress.slug, last="")
            bars.update(
                tasks[progress.slug],
                completed=progress.done,
                total=progress.total,
                last=progress.last,
            )

        yield show


def _source_records(slug: str) -> Path:
    path = Path(__file__).parents[1] / "dossiers" / slug / "records.jsonl"
    if not (Path(__file__).parents[3] / "pyproject.toml").is_file():
        raise UsageError("--record needs a source checkout installed with pip install -e")
    return path


def _worst(codes: list[int]) -> int:
    return next(code for code in _WORST_FIRST if code in (codes or [0]))


def _plots(card: Card, checked: Checked) -> str:
    paths = []
    try:
        for record in checked.records:
            if record["arms"] and record["budget"] != "smoke":
                path = checked.folder / f"{record['claim']}.svg"
                plot_claim(card, card.claim(record["claim"]), record, path)
                paths.append(path.name)
    except MissingExtra as error:
        return f"no plots: {error}"
    return f"plots: {', '.join(paths)} in {checked.folder}" if paths else ""


def _print_checked(card: Card, checked: Checked, lang: str, debug: bool) -> None:
    for record in checked.records:
        print()
        last = record is checked.records[-1]
        claim = card.claim(record["claim"])
        print("\n".join(claim_lines(card, claim, record, lang=lang, not_tested=last)))
    for outcome in checked.failures[:3] if debug else ():
        print(outcome.trace, file=sys.stderr)
    if checked.keep:
        print(f"\nThe fitted method is kept in {checked.folder / 'kept'}. To load it:\n")
        print(checked.keep)
    line = _plots(card, checked)
    print(f"\nrun folder: {checked.folder}", *([line] if line else []), sep="\n", file=sys.stderr)


def _code_of(record: dict) -> int:
    smoked = record["budget"] == "smoke" and record["judgement"] is not None
    return 0 if smoked else EXIT[record["verdict"]]


@contextmanager
def _quiet_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C end a run without the noise of threads whose workers are taken away."""
    hook = threading.excepthook

    def interrupt(*_: object) -> None:
        threading.excepthook = lambda _: None
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        threading.excepthook = hook


def _chosen(named: tuple[str, ...], everything: bool) -> list[Card]:
    if everything and named:
        raise UsageError(f"--all goes without names, got {', '.join(named)} beside it")
    if not everything and not named:
        raise UsageError("name the methods to check, or give --all: trialrun list shows them")
    found = [find_card(slug) for slug in (slugs() if everything else named)]
    return [card for card in found if not (everything and card.draft)]


def check(
    *methods: str,
    all_: Annotated[bool, Parameter(name="--all")] = False,
    claim: tuple[str, ...] = (),
    budget: Literal["smoke", "quick", "full", "gpu", "paper"] = "quick",
    seeds: int | None = None,
    first_seed: int | None = None,
    unit_seconds: float | None = None,
    unit_megabytes: int | None = None,
    on: str | None = None,
    target: str | None = None,
    domain: str | None = None,
    metadata: str | None = None,
    task: str | None = None,
    as_: Annotated[str | None, Parameter(name="--as")] = None,
    model: str | None = None,
    engine: Literal["local", "ray"] = "local",
    jobs: int | None = None,
    resume: bool = False,
    out: Path = Path("trialrun-runs"),
    record: bool = False,
    lang: Literal["en", "zh"] = "en",
    json: bool = False,
) -> int:
    """Put methods on trial and print each claim's table.

    Exit codes: 0 holds, 1 does not hold, 2 usage, 3 not resolved or direction only, 4 broken
    check, 5 not runnable here. Of several claims the gravest counts: 2, 4, 5, 1, 3, 0.

    Parameters
    ----------
    methods
        Slugs from ``trialrun list``.
    all_
        Check every method.
    claim
        Only these claims; may be repeated.
    budget
        How much to spend: smoke proves that it runs, quick takes under a minute, full minutes.
    seeds
        Number of seeds in place of the budget's own.
    first_seed
        First seed in place of the budget's own: a replication on fresh draws.
    unit_seconds
        Limit on the time of one unit, in seconds, in place of the budget's own.
    unit_megabytes
        Limit on the memory that one unit takes, in MB, in place of the budget's own.
    on
        Your own material: a file that the card accepts.
    target
        Column to predict, for a table.
    domain
        Column that names the domain of each row, for a table.
    metadata
        Table with one row per domain, for a table.
    task
        ``classification`` or ``regression``, for a table whose target leaves it open.
    as_
        How to read a file of symbols: ``bits``, ``bytes`` or ``symbols``.
    model
        A model folder, a hub id (this turns the network on) or a pulled pack.
    engine
        Where units run: this machine, or a Ray cluster.
    jobs
        Number of worker processes.
    resume
        Finish the latest interrupted run of the same check.
    out
        Folder for runs.
    record
        Append to the dossier's own records (source checkout).
    lang
        Language of the tables.
    json
        Print the records as JSON and nothing else.
    """
    cards = _chosen(methods, all_)
    options = {
        "target": target,
        "domain": domain,
        "metadata": metadata,
        "task": task,
        "as": as_,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if (on or model) and len(cards) != 1:
        raise UsageError("--on and --model go with exactly one method")
    if given and on is None:
        raise UsageError(f"--{next(iter(given))} goes with --on")
    if record and (on or model or seeds or first_seed or claim):
        raise UsageError("--record keeps whole runs on shipped material: leave out other options")
    chosen_model = resolve_model(model)
    if chosen_model is not None and not Path(chosen_model).is_dir():
        os.environ["HF_HUB_OFFLINE"] = "0"
    codes, written = [], []
    for card in cards:
        request = Request(
            slug=card.slug,
            budget=budget,
            claims=claim,
            seeds=seeds,
            first_seed=first_seed,
            unit_seconds=unit_seconds,
            unit_megabytes=unit_megabytes,
            on=resolve_on(card, on, given) if on else None,
            model=chosen_model,
            engine=engine,
            jobs=jobs,
            resume=resume,
            out=out,
            record_to=(_source_records(card.slug),) if record else (),
        )
        code, records = _check_one(card, request, lang=lang, json=json)
        codes.append(code)
        written += records
    if json:
        print(json_module.dumps(written, ensure_ascii=False, indent=2))
    return _worst(codes)


def _say(sentence: str) -> None:
    print(f"trialrun: {sentence}", file=sys.stderr)


def _check_one(card: Card, request: Request, *, lang: str, json: bool) -> tuple[int, list[dict]]:
    state = {"done": 0, "total": 0}
    try:
        for pack in card.packs:
            require_pack(pack)
        with _quiet_ctrl_c(), _progress_bars(quiet=json) as show:

            def advance(progress: Progress) -> None:
                state.update(done=progress.done, total=progress.total)
                show(progress)

            checked = run_check(request, on_progress=advance, say=_say)
    except KeyboardInterrupt:
        stop_workers()
        done, total = state["done"], state["total"]
        raise KeyboardInterrupt(f"{done} of {total} units are done and kept") from None
    except NotRunnable as error:
        print(f"trialrun: {card.slug} cannot run here: {error}", file=sys.stderr)
        return error.exit_code, []
    if not json:
        _print_checked(card, checked, lang, debug="--debug" in sys.argv)
    return _worst([_code_of(r) for r in checked.records]), list(checked.records)
