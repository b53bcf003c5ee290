"""Records: one line of JSON per judged claim, appended and never edited.

A line carries a checksum of itself, so that a hand-edited line is noticed. Appending takes a lock,
writes the line in one call and flushes it to disk: a killed run loses no line, and a torn last
line (a full disk, a pulled plug) is reported and skipped.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trialrun.catalogue import Claim, find_card
from trialrun.claims.fingerprint import fingerprint
from trialrun.claims.judge import Judgement
from trialrun.core.intervals import Interval

FORMAT = 1
_TORN = "is torn"
Record = dict[str, Any]


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def plain_judgement(judgement: Judgement) -> dict[str, Any]:
    """Return a judgement as JSON values; an unbounded interval end becomes null."""
    return _plain(asdict(judgement))


def read_interval(table: Mapping[str, Any]) -> Interval:
    """Read back an interval written by `plain_judgement`."""
    low = -math.inf if table["low"] is None else table["low"]
    high = math.inf if table["high"] is None else table["high"]
    return Interval(table["mean"], low, high, table["n"])


def _checksum(record: Mapping[str, Any]) -> str:
    body = {key: value for key, value in record.items() if key != "checksum"}
    text = json.dumps(body, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sealed(record: Mapping[str, Any]) -> Record:
    """Return the record with its checksum."""
    body = _plain(dict(record))
    return {**body, "checksum": _checksum(body)}


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def append_record(path: Path, record: Mapping[str, Any]) -> Record:
    """Append one record as one line, and return it as it was written.

    Raises
    ------
    OSError
        If the file cannot be written; what was there before is left as it was.
    """
    full = sealed(record)
    line = json.dumps(full, ensure_ascii=False, sort_keys=True) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path) as handle:
        size = os.fstat(handle).st_size
        torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        data = (("\n" if torn else "") + line).encode()
        try:
            written = os.write(handle, data)
            if written != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(handle)
        except OSError as error:
            os.ftruncate(handle, size)
            error.filename = str(path)
            raise
    return full


def read_records(path: Path) -> tuple[list[Record], list[str]]:
    """Read a records file.

    Returns
    -------
    records : list of dict
        The lines that are whole and carry the right checksum, oldest first.
    problems : list of str
        One sentence for each line that was left out; see `is_torn`.
    """
    if not path.is_file():
        return [], []
    records, problems = [], []
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.split("\n")
    torn_last = bool(lines[-1])
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        spot = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            # A later run may have gone on below the line that an earlier one left unfinished.
            unended = line.startswith("{") and not line.rstrip().endswith("}")
            if unended or (torn_last and number == len(lines)):
                what = f"{_TORN}, its run was cut off while writing"
            else:
                what = "is not valid JSON"
            problems.append(
                f"{spot} {what}: the line is left out; delete it and run the check again"
            )
            continue
        if not isinstance(record, dict) or record.get("checksum") != _checksum(record):
            problems.append(
                f"{spot} does not match its checksum, so it was changed after the run: "
                "the line is left out; restore the file or delete the line and run again"
            )
        else:
            records.append(record)
    return records, problems


def is_stale(record: Mapping[str, Any]) -> bool:
    """Tell whether the code behind a record has changed since."""
    card = find_card(record["slug"])
    known = {claim.id: claim for claim in card.claims}
    claim = known.get(record["claim"])
    return claim is None or fingerprint(card, claim) != record["fingerprint"]


def newest(records: list[Record], claim: Claim, *, slug: str, budget: str) -> Record | None:
    """Return the latest record of a claim at a budget on the shipped material, or None."""
    for record in reversed(records):
        same = (record["slug"], record["claim"], record["budget"]) == (slug, claim.id, budget)
        if same and record.get("on") is None and record.get("model") is None:
            return record
    return None


def is_torn(problem: str) -> bool:
    """Tell a line cut off by the end of its run, which is no fault of anyone's, from others."""
    return _TORN in problem
