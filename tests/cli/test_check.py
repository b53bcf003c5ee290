import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trialrun.claims.records import read_records
from trialrun.cli import check as command

ROOT = Path(__file__).parents[2]


def test_a_check_prints_a_table_and_keeps_a_record(shelf, trialrun, tmp_path):
    code, out, err = trialrun("check", "fake", "--claim", "better", "--jobs", "2")
    assert code == 0
    assert "HOLDS at this scale" in out
    assert "fails, as it must" in out
    (path,) = tmp_path.glob("trialrun-runs/fake/*/records.jsonl")
    assert len(read_records(path)[0]) == 1
    assert (path.parent / "better.svg").is_file()
    assert "run folder" in err


def test_json_is_all_that_is_printed(shelf, trialrun):
    code, out, _ = trialrun("check", "fake", "--claim", "better", "--json", "--seeds", "2")
    (record,) = json.loads(out)
    assert (code in (0, 3), record["claim"], record["seeds"]) == (True, "better", [0, 1])


def test_a_unit_that_fails_ends_in_code_five_with_its_reason(shelf, trialrun):
    code, out, _ = trialrun("check", "fake", "--claim", "lost")
    assert code == 5
    assert "no model today" in out


def test_smoke_ends_in_code_zero_without_a_verdict(shelf, trialrun):
    code, out, _ = trialrun("check", "fake", "--claim", "better", "--budget", "smoke")
    assert code == 0
    assert "NOT TESTED" in out


@pytest.mark.parametrize(
    ("codes", "worst"),
    [([0, 3], 3), ([3, 1], 1), ([1, 5], 5), ([5, 4], 4), ([0, 0], 0), ([], 0)],
)
def test_the_gravest_code_counts(codes, worst):
    assert command._worst(codes) == worst


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("check",), 2, "name the methods to check, or give --all"),
        (("check", "fake", "--all"), 2, "--all goes without names, got fake"),
        (("check", "fake", "--budget", "huge"), 2, "huge"),
        (("check", "fake", "--claim", "nix"), 2, "no claim 'nix': choose one of better"),
        (("check", "fake", "--seeds", "0"), 2, "--seeds must be at least 1"),
        (("check", "fake", "--jobs", "0"), 2, "--jobs must be at least 1"),
        (("check", "fake", "--budget", "paper"), 5, "no budget 'paper'"),
        (("check", "fake", "--on", "gone.csv", "--target", "y"), 2, "there is no such file"),
        (("check", "fake", "--on", "t.csv"), 2, "needs --target"),
        (("check", "fake", "--on", "t.csv", "--target", "y", "--domain", "d"), 2, "--domain does"),
        (
            ("check", "fake", "--on", "t.xlsx", "--target", "y"),
            2,
            "reads .csv, .parquet, got .xlsx",
        ),
        (("check", "fake", "--target", "y"), 2, "--target goes with --on"),
        (("check", "fake", "--online"), 2, "--online goes with --model"),
        (("check", "fake", "--model", "smollm2"), 5, "run trialrun data pull smollm2"),
        (("check", "fake", "--record", "--seeds", "3"), 2, "leave out other options"),
        (("check", "fake", "--engine", "dask"), 2, "dask"),
        (("chekc", "fake"), 2, "chekc"),
    ],
)
def test_wrong_words_end_in_one_sentence(
    shelf, trialrun, tmp_path, monkeypatch, words, code, sentence
):
    monkeypatch.setenv("TRIALRUN_DATA", str(tmp_path / "cache"))
    (tmp_path / "t.csv").write_text("x,y\n1,2\n")
    (tmp_path / "t.xlsx").write_text("x")
    got, out, err = trialrun(*words)
    assert (got, out) == (code, "")
    assert sentence in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err
    assert not (tmp_path / "trialrun-runs").exists()


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Take checks' requests down, with what the network is set to, in place of running them."""
    constants = pytest.importorskip("huggingface_hub.constants")
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    seen = []

    def note(_card, request, **_):
        seen.append((Path(request.model).name, os.environ["HF_HUB_OFFLINE"]))
        return 0, []

    monkeypatch.setattr(command, "_check_one", note)
    return seen


@pytest.mark.parametrize("name", ["nofolder", "org/other", "../x/y/z", "own/config.json"])
def test_a_model_that_is_not_here_is_not_looked_for_in_the_net(asked, trialrun, monkeypatch, name):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, err = trialrun("check", "ntkeval", "--model", name)
    assert (code, out, asked) == (2, "", [])
    assert f"a pulled pack or a downloaded hub id, got {name!r}, which is none of them here" in err
    assert "add --online" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("slug", ["ntkeval", "rerope", "mla"])
def test_a_folder_without_a_model_is_the_users_mistake(asked, trialrun, tmp_path, slug):
    (tmp_path / "bare").mkdir()
    code, out, err = trialrun("check", slug, "--model", "bare@64" if slug == "rerope" else "bare")
    assert (code, out, asked) == (2, "", [])
    assert "has no config.json: give one that save_pretrained wrote" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("network", "words", "found"),
    [
        ("1", ("own",), ("own", "1")),
        ("1", ("org/name",), ("name", "1")),
        ("1", ("org/name@64",), ("name@64", "1")),
        ("1", ("org/other", "--online"), ("other", "0")),
        ("0", ("org/other",), ("other", "0")),
    ],
)
def test_the_network_is_used_when_it_is_asked_for(
    asked, trialrun, monkeypatch, network, words, found
):
    monkeypatch.setenv("HF_HUB_OFFLINE", network)
    assert trialrun("check", "rerope", "--model", *words)[0] == 0
    assert asked == [found]


def test_a_defect_does_not_end_in_the_code_of_a_refuted_claim(shelf, trialrun, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("of ours")

    monkeypatch.setattr(command, "run_check", broken)
    code, out, err = trialrun("check", "fake")
    assert (code, out) == (70, "")
    assert "RuntimeError: of ours: --debug shows where" in err


def test_a_package_missing_in_a_claims_imports_names_the_extras(shelf, trialrun, monkeypatch):
    def lacking(module):
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")

    monkeypatch.setattr("trialrun.claims.plan.load_trial", lacking)
    code, _, err = trialrun("check", "fake")
    assert code == 5
    assert "sklearn is needed to check fake" in err
    assert "pip install 'trialrun[" in err


def test_resume_says_when_there_is_nothing_to_resume(shelf, trialrun):
    words = ("check", "fake", "--claim", "better", "--seeds", "2", "--resume")
    assert "a new one begins" in trialrun(*words)[2]


def test_debug_shows_the_traceback(shelf):
    from trialrun.cli import main
    from trialrun.core.errors import UsageError

    with pytest.raises(UsageError):
        main(("check", "fake", "--seeds", "0", "--debug"))


def test_a_folder_that_cannot_be_written_ends_in_one_sentence(shelf, trialrun, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, err = trialrun("check", "fake", "--out", str(tmp_path / "file" / "runs"))
    assert (code, out) == (2, "")
    assert "could not be read or written" in err


def test_a_full_disk_ends_in_one_sentence_and_keeps_no_part(shelf, trialrun, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "units")

    monkeypatch.setattr("trialrun.claims.runs.write_json", full)
    code, _, err = trialrun("check", "fake")
    assert code == 2
    assert "No space left on device" in err
    assert not list(tmp_path.glob("trialrun-runs/**/records.jsonl"))


SCRIPT = """
import os, sys
import pytest
from tests.claims.fakes import shelve
from trialrun.cli import main
with pytest.MonkeyPatch.context() as patch:
    shelve(patch)
    os.chdir(sys.argv[1])
    main(["check", "fake", "--claim", "better", "--budget", "full", "--jobs", "2", *sys.argv[2:]])
"""


def test_ctrl_c_says_how_to_go_on_and_resume_finishes(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = {"cwd": ROOT, "env": environment, "text": True, "start_new_session": True}
    run = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **start,
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.rglob("units/*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130
    again = "trialrun check fake --claim better --budget full --jobs 2 --resume"
    assert f"units are done and kept; go on with: {again}" in err
    assert "Traceback" not in err
    assert out == ""
    assert not list(tmp_path.rglob("records.jsonl"))
    done = {p.name: p.stat().st_mtime_ns for p in tmp_path.rglob("units/*.json")}
    again = [sys.executable, "-c", SCRIPT, str(tmp_path), "--resume"]
    assert subprocess.run(again, capture_output=True, check=False, **start).returncode == 0
    after = {p.name: p.stat().st_mtime_ns for p in tmp_path.rglob("units/*.json")}
    assert len(after) == 16
    assert {name: after[name] for name in done} == done
