"""A run killed with SIGKILL is finished by --resume: nothing runs twice, nothing is lost."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from trialrun.claims import check
from trialrun.claims.records import read_records

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path
import pytest
from tests.claims.fakes import shelve
from trialrun.claims import check
from trialrun.claims.plan import Request
with pytest.MonkeyPatch.context() as patch:
    shelve(patch)
    check.run_check(Request(slug="fake", claims=("better",), budget="full", jobs=2,
                                  out=Path(sys.argv[1]), resume="--resume" in sys.argv))
"""


def start(out, *more):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(out), *more], cwd=ROOT, env=environment
    )


def finished_units(out):
    return {p.stem for p in out.glob("fake/*/units/*.json")}


def runs_of_units(folder):
    return Counter(line.rsplit(" ", 1)[0] for line in (folder / "log").read_text().splitlines())


def test_a_killed_run_is_finished_without_running_a_finished_unit_again(tmp_path):
    out = tmp_path / "runs"
    run = start(out)
    deadline = time.monotonic() + 60
    while len(finished_units(out)) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    time.sleep(1.5)  # orphaned workers may still end the unit they are in
    before = finished_units(out)
    (folder,) = (out / "fake").iterdir()
    ran_before = runs_of_units(folder)
    assert 5 <= len(before) < 16
    assert not list(out.glob("fake/*/records.jsonl"))

    assert start(out, "--resume").wait(timeout=120) == 0
    runs = runs_of_units(folder)
    for unit in before:
        _, arm, seed = unit.split("--")
        assert runs[f"{arm} {seed}"] == ran_before[f"{arm} {seed}"] == 1
    records, problems = read_records(folder / "records.jsonl")
    assert (len(records), problems) == (1, [])
    assert len(finished_units(out)) == 16


def test_a_finished_run_is_not_resumed(on_trial):
    first = check.run_check(on_trial())
    second = check.run_check(on_trial(resume=True))
    assert first.folder != second.folder


def test_another_budget_is_another_run(on_trial):
    first = check.run_check(on_trial(claims=("lost",)))
    same = check.run_check(on_trial(claims=("lost",), resume=True))
    other = check.run_check(on_trial(claims=("lost",), budget="smoke", resume=True))
    assert same.folder == first.folder != other.folder
