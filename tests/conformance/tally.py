"""Count the checks of each method over all workers, and fail a method that has too few.

A pytest plugin. Reports carry what they are about in their ``user_properties``, which
pytest-xdist hands from its workers to the process that prints the summary.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import pytest

PROPERTY = "conformance"
UNWRITTEN = "to be written"
WAIVED = "waived"
_WORDS = ("ran", "failed", WAIVED, "not applicable", UNWRITTEN)


@dataclass
class Tally:
    """What became of the checks of each method."""

    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    unwritten: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    planned: dict[str, tuple[str, bool, int, int]] = field(default_factory=dict)

    def add(self, report: Any) -> None:
        """Count one finished check."""
        said = dict(report.user_properties)
        slug = said.get(PROPERTY)
        if slug is None or (report.when != "call" and report.outcome == "passed"):
            return
        if report.when == "teardown":
            return
        self.planned[slug] = tuple(said[f"{PROPERTY} plan"])
        if UNWRITTEN in said:
            self.counts[slug][UNWRITTEN] += 1
            if said[UNWRITTEN] not in self.unwritten[slug]:
                self.unwritten[slug].append(said[UNWRITTEN])
        elif WAIVED in said and report.outcome == "passed":
            self.counts[slug][WAIVED] += 1
        elif report.outcome == "skipped":
            self.counts[slug]["not applicable"] += 1
        else:
            self.counts[slug]["ran"] += 1
            self.counts[slug]["failed"] += report.outcome == "failed"

    def too_few(self) -> list[str]:
        """Return a sentence for each finished method whose whole plan came up with too little."""
        found = []
        for slug, (kind, draft, floor, planned) in self.planned.items():
            counts = self.counts[slug]
            came_up = sum(counts[w] for w in _WORDS if w != "failed")
            if not draft and came_up >= planned and counts["ran"] < floor:
                found.append(f"{slug}: {counts['ran']} checks ran, a {kind} needs {floor}")
        return found

    def lines(self) -> list[str]:
        """Return the summary's lines."""
        head = f"{'method':<34}{'kind':<11}" + "".join(f"{w:>16}" for w in _WORDS) + f"{'floor':>8}"
        table = [head]
        for slug in sorted(self.planned):
            kind, draft, floor, _ = self.planned[slug]
            named = f"{slug} (draft)" if draft else slug
            numbers = "".join(f"{self.counts[slug][word]:>16}" for word in _WORDS)
            table.append(f"{named:<34}{kind:<11}{numbers}{'-' if draft else floor:>8}")
        for slug in sorted(self.unwritten):
            table.append(f"{slug}, to be written: {', '.join(sorted(self.unwritten[slug]))}")
        return table


def _tally(config: pytest.Config) -> Tally:
    if not hasattr(config, "conformance_tally"):
        config.conformance_tally = Tally()  # type: ignore[attr-defined]
    return config.conformance_tally  # type: ignore[attr-defined]


class _Counter:
    def __init__(self, tally: Tally) -> None:
        self.tally = tally

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.tally.add(report)


def pytest_configure(config: pytest.Config) -> None:
    """Count in the process that hears of every test, never in a worker."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Counter(_tally(config)), "conformance-counter")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Turn a session green otherwise into a failed one when a method ran too few checks."""
    if _tally(session.config).too_few() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print how many checks ran per method, and what is still to be written."""
    tally = _tally(config)
    if tally.planned:
        terminalreporter.section("conformance")
        for line in tally.lines():
            terminalreporter.write_line(line)
        for line in tally.too_few():
            terminalreporter.write_line(f"TOO FEW  {line}", red=True)
