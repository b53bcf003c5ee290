"""Timing in pairs: ours and the other in turn, A B A B, and the ratio pair by pair.

On a shared machine single times drift; the ratio of two neighbouring runs does not. Quoted are the
median ratio and the range that holds the middle 80 % of the pairs.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trialrun.claims.machine import describe_machine, library_versions, source_commit

RESULTS = Path(__file__).with_name("results.jsonl")
Row = dict[str, Any]


def _seconds(call: Callable[[], Any], rest: float) -> float:
    gc.collect()
    time.sleep(rest)
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _met(ratio: float, at_most: float | None, at_least: float | None) -> bool | None:
    if at_most is None and at_least is None:
        return None
    return (at_most is None or ratio <= at_most) and (at_least is None or ratio >= at_least)


def compare(
    name: str,
    ours: Callable[[], Any],
    other: Callable[[], Any],
    *,
    repeats: int = 9,
    warmup: int = 1,
    at_most: float | None = None,
    at_least: float | None = None,
    faster: bool = False,
    rest: float = 0.0,
) -> Row:
    """Time two calls in turn and return a row with the ratio of their times.

    Parameters
    ----------
    ours, other : callable
        Each does the same work once.
    repeats : int
        Number of pairs.
    warmup : int
        Runs of each that are not counted.
    at_most, at_least : float or None
        Targets for the ratio.
    faster : bool
        Quote other / ours ("times faster") in place of ours / other ("times the time").
    rest : float
        Seconds before every run in which threads of the run before, which wait for more work in a
        busy loop, can go to sleep: they are no part of either's time.
    """
    for _ in range(warmup):
        ours()
        other()
    pairs = [(_seconds(ours, rest), _seconds(other, rest)) for _ in range(repeats)]
    ratios = sorted((b / a) if faster else (a / b) for a, b in pairs)
    edge = len(ratios) // 10
    ratio = statistics.median(ratios)
    return {
        "name": name,
        "what": "times faster" if faster else "times the time",
        "ours_seconds": statistics.median(a for a, _ in pairs),
        "other_seconds": statistics.median(b for _, b in pairs),
        "ratio": ratio,
        "ratio_low": ratios[edge],
        "ratio_high": ratios[-1 - edge],
        "target": _target(at_most, at_least),
        "met": _met(ratio, at_most, at_least),
        "pairs": repeats,
    }


def _target(at_most: float | None, at_least: float | None) -> str:
    parts = [f"<= {at_most:g}" if at_most is not None else ""]
    parts.append(f">= {at_least:g}" if at_least is not None else "")
    return " and ".join(part for part in parts if part)


def figure(
    name: str,
    value: float,
    unit: str,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> Row:
    """Return a row for one measured number that is not a ratio of times, such as a slope."""
    return {
        "name": name,
        "what": unit,
        "ratio": value,
        "target": _target(at_most, at_least),
        "met": _met(value, at_most, at_least),
    }


def emit(rows: Sequence[Row], *, limit: str = "", path: Path = RESULTS) -> None:
    """Print a table and append every row, with machine and versions, to ``results.jsonl``.

    Parameters
    ----------
    limit : str
        The physical limit and how time and memory grow, in a sentence.
    """
    for row in rows:
        spread = f" [{row['ratio_low']:.3g}, {row['ratio_high']:.3g}]" if "ratio_low" in row else ""
        verdict = {True: "met", False: "MISSED", None: ""}[row["met"]]
        print(
            f"{row['name']:<58} {row['ratio']:9.3g}{spread} {row['what']}  "
            f"{row['target']:<10} {verdict}"
        )
        if "ours_seconds" in row:
            print(f"{'':<4}ours {row['ours_seconds']:.4g} s, other {row['other_seconds']:.4g} s")
    if limit:
        print(f"limit: {limit}")
    where = {
        "machine": describe_machine(),
        "versions": library_versions(),
        "commit": source_commit(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({**row, "limit": limit, **where}, sort_keys=True) + "\n")
