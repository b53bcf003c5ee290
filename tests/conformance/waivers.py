"""Waivers: one file, each with a reason, an owner and a date."""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.harness import require

FILE = Path(__file__).with_name("waivers.toml")
_KEYS = {"check", "reason", "owner", "date"}
_NO_REASONS = ("fixme", "todo", "tbd", "later")


@dataclass(frozen=True)
class Waiver:
    """One check that a method is known not to pass."""

    check: str
    reason: str
    owner: str
    date: datetime.date


def read_waivers(text: str) -> dict[str, Waiver]:
    """Read waivers by the id of the check they excuse.

    Raises
    ------
    AssertionError
        If a waiver lacks its reason, owner or date, or two excuse the same check.
    """
    found: dict[str, Waiver] = {}
    for table in tomllib.loads(text).get("waiver", []):
        require(set(table) == _KEYS, f"a waiver needs {sorted(_KEYS)}, got {sorted(table)}")
        waiver = Waiver(**table)
        shallow = len(waiver.reason) < 20 or any(w in waiver.reason.lower() for w in _NO_REASONS)
        require(not shallow, f"the waiver of {waiver.check} has no reason: {waiver.reason!r}")
        require(waiver.owner.strip(), f"the waiver of {waiver.check} has no owner")
        dated = isinstance(waiver.date, datetime.date)
        require(dated, f"the waiver of {waiver.check} needs a TOML date, got {waiver.date!r}")
        require(waiver.check not in found, f"{waiver.check} is waived twice")
        found[waiver.check] = waiver
    return found


def require_known(waivers: Collection[str], known: Collection[str]) -> None:
    """Raise unless every waiver excuses a check that exists."""
    stray = sorted(set(waivers) - set(known))
    require(not stray, f"waived, but there is no such check: {', '.join(stray)}")
