import errno
import json
import multiprocessing
import os
import resource

import pytest

from trialrun.claims import records
from trialrun.core.intervals import Interval


def test_records_come_back_in_order(tmp_path):
    path = tmp_path / "deep" / "records.jsonl"
    written = [records.append_record(path, {"n": n, "zh": "一句话"}) for n in range(3)]
    assert records.read_records(path) == (written, [])


def test_a_torn_last_line_is_reported_and_the_next_record_is_whole(tmp_path):
    path = tmp_path / "records.jsonl"
    first = records.append_record(path, {"n": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    got, problems = records.read_records(path)
    assert got == [first]
    assert "line 2 is torn" in problems[0]
    assert records.is_torn(problems[0])
    second = records.append_record(path, {"n": 2})
    got, problems = records.read_records(path)
    assert got == [first, second]
    assert (
        "line 2 is torn, its run was cut off while writing: the line is left out; delete it"
        in (problems[0])
    )
    assert records.is_torn(problems[0])
    assert len(problems) == 1


def test_an_edited_line_is_left_out_and_named(tmp_path):
    path = tmp_path / "records.jsonl"
    records.append_record(path, {"verdict": "does not hold"})
    kept = records.append_record(path, {"verdict": "holds"})
    path.write_text(path.read_text().replace("does not hold", "holds"))
    got, problems = records.read_records(path)
    assert got == [kept]
    assert "line 1 does not match its checksum" in problems[0]
    assert not records.is_torn(problems[0])


@pytest.mark.parametrize("line", ["[]", "3", '"text"', '{"a": 1}', "not json"])
def test_lines_that_are_no_records_are_left_out(tmp_path, line):
    path = tmp_path / "records.jsonl"
    path.write_text(line + "\n")
    assert records.read_records(path)[0] == []
    assert len(records.read_records(path)[1]) == 1


def test_numbers_that_json_lacks_become_null_and_come_back(tmp_path):
    sealed = records.sealed({"low": float("-inf"), "high": float("inf"), "mean": 1.0, "n": 1})
    assert sealed["low"] is None
    assert records.read_interval(sealed) == Interval(1.0, float("-inf"), float("inf"), 1)


def _append_many(path, who):
    for n in range(50):
        records.append_record(path, {"who": who, "n": n, "filler": "x" * 5000})


def test_records_of_several_processes_do_not_mix(tmp_path):
    path = tmp_path / "records.jsonl"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append_many, args=(path, who)) for who in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    got, problems = records.read_records(path)
    assert (len(got), problems) == (150, [])


def _append_on_a_full_disk(path):
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))
    try:
        records.append_record(path, {"filler": "x" * 5000})
    except OSError as error:
        os._exit(0 if error.filename == str(path) else 2)
    os._exit(1)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "records.jsonl"
    records.append_record(path, {"n": 1})
    before = path.read_bytes()
    worker = multiprocessing.get_context("fork").Process(
        target=_append_on_a_full_disk, args=(path,)
    )
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    assert path.read_bytes() == before


def test_a_disk_that_takes_nothing_is_named_with_the_file(tmp_path, monkeypatch):
    path = tmp_path / "records.jsonl"

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(records.os, "write", full)
    with pytest.raises(OSError, match="No space left") as caught:
        records.append_record(path, {"n": 1})
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b""


def test_a_record_line_is_plain_json(tmp_path):
    path = tmp_path / "records.jsonl"
    records.append_record(path, {"values": (1.0, 2.0)})
    assert json.loads(path.read_text())["values"] == [1.0, 2.0]
