"""Waivers, and the counts over all workers."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.conformance.harness import ROOT
from tests.conformance.tally import PROPERTY, UNWRITTEN, Tally
from tests.conformance.waivers import read_waivers, require_known

WAIVER = """
[[waiver]]
check = "toys/Gain/compiles"
reason = "the compiler does not know this operation yet"
owner = "someone"
date = 2026-11-21
"""


def test_a_waiver_needs_a_reason_an_owner_a_date_and_a_check():
    assert read_waivers(WAIVER)["toys/Gain/compiles"].owner == "someone"
    for old, new in [
        ("the compiler does not know this operation yet", "FIXME, some day, when there is time"),
        ("the compiler does not know this operation yet", "short"),
        ('"someone"', '" "'),
        ("2026-11-21", '"soon"'),
        ('owner = "someone"\n', ""),
    ]:
        with pytest.raises(AssertionError):
            read_waivers(WAIVER.replace(old, new))
    with pytest.raises(AssertionError, match="twice"):
        read_waivers(WAIVER * 2)
    with pytest.raises(AssertionError, match="no such check"):
        require_known(read_waivers(WAIVER), {"toys/Gain/other"})


def _report(outcome, when="call", **said):
    properties = [(PROPERTY, "toys"), (f"{PROPERTY} plan", ["block", False, 2, 3])]
    return SimpleNamespace(user_properties=[*properties, *said.items()], outcome=outcome, when=when)


def test_the_tally_counts_what_ran_and_finds_a_method_below_its_floor():
    tally = Tally()
    for outcome in ("passed", "skipped", "failed"):
        tally.add(_report("passed", when="setup"))
        tally.add(_report(outcome))
    assert tally.counts["toys"]["ran"] == 2
    assert tally.counts["toys"]["failed"] == 1
    assert tally.too_few() == []
    below = Tally()
    for outcome in ("passed", "skipped", "skipped"):
        below.add(_report(outcome))
    assert below.too_few() == ["toys: 1 checks ran, a block needs 2"]
    part = Tally()
    part.add(_report("passed"))
    assert part.too_few() == []


def test_the_tally_lists_what_a_draft_has_still_to_write():
    tally = Tally()
    tally.add(_report("skipped", **{UNWRITTEN: "claims"}))
    assert tally.lines()[-1] == "toys, to be written: claims"


PLUGIN_RUN = """
import pytest
@pytest.mark.parametrize("outcome", ["pass", "pass", "skip"])
def test_toy(outcome, record_property):
    record_property("conformance", "toys")
    record_property("conformance plan", ["block", False, {floor}, 3])
    if outcome == "skip":
        pytest.skip("not applicable")
"""


@pytest.mark.parametrize(("floor", "status"), [(2, 0), (3, 1)])
def test_counts_add_up_over_workers_and_decide_the_exit_status(floor, status, tmp_path):
    (tmp_path / "test_toy.py").write_text(PLUGIN_RUN.format(floor=floor), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "tests.conformance.tally"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout
    row = next(line for line in done.stdout.splitlines() if line.startswith("toys "))
    assert row.split() == ["toys", "block", "2", "0", "0", "1", "0", str(floor)]
    assert json.dumps("TOO FEW" in done.stdout) == json.dumps(status == 1)
