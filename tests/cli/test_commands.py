import json
from importlib.resources import files

import pytest

from trialrun.catalogue import find_card, slugs
from trialrun.claims.records import newest, read_interval, read_records
from trialrun.report.figures import interval_text


def test_list_names_every_method_with_its_claims(trialrun):
    code, out, _ = trialrun("list")
    assert code == 0
    for slug in slugs():
        assert slug in out
    assert "no-collapse" in out


def test_list_speaks_chinese_and_json(trialrun):
    _, out, _ = trialrun("list", "--lang", "zh", "--json")
    rows = {row["slug"]: row for row in json.loads(out)}
    assert "域" in rows["d3g"]["idea"]
    assert rows["mbml"]["claims"]


@pytest.mark.parametrize(("lang", "words"), [("en", "What problem"), ("zh", "试图解决什么问题")])
def test_show_prints_card_verdicts_and_notes(trialrun, lang, words):
    code, out, _ = trialrun("show", "d3g", "--lang", lang)
    assert code == 0
    assert words in out
    assert "from trialrun.shift.d3g import D3GClassifier" in out


@pytest.mark.parametrize(
    ("lang", "control", "quantity"),
    [
        ("en", "control (own-shuffled) ", "difference, nats"),
        ("zh", "对照（own-shuffled）", "差值，纳特"),
    ],
)
def test_show_prints_the_interval_and_the_control_of_every_verdict(
    trialrun, lang, control, quantity
):
    path = files("trialrun") / "dossiers" / "mbml" / "records.jsonl"
    claim = find_card("mbml").claim("crossed")
    record = newest(read_records(path)[0], claim, slug="mbml", budget="full")
    _, out, _ = trialrun("show", "mbml", "--lang", lang)
    lines = out[out.index("crossed:") : out.index("switching:")].splitlines()
    assert quantity in lines[1]
    rows = [line.split() for line in lines if control in line][-2:]
    assert [row[0] for row in rows] == ["ptw", "lin"]
    for row in rows:
        found = read_interval(record["judgement"]["ours"]["estimates"][row[0]])
        assert " ".join(row[1:4]) == interval_text(found, signed=True)


@pytest.mark.parametrize("command", ["show", "check", "report"])
def test_an_unknown_slug_is_answered_with_the_nearest(trialrun, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = trialrun(command, "rerop")
    assert (code, out) == (2, "")
    assert "no method has the slug 'rerop': did you mean rerope" in err
    assert list(tmp_path.iterdir()) == []


def test_data_list_says_what_is_missing_and_how_to_get_it(trialrun, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIALRUN_DATA", str(tmp_path))
    code, out, _ = trialrun("data", "list")
    assert code == 0
    assert "missing: trialrun data pull smollm2" in out
    assert "licence Apache-2.0" in out


def test_pulling_an_unknown_pack_is_refused(trialrun):
    code, _, err = trialrun("data", "pull", "imagenet")
    assert code == 2
    assert "there are stdlib, ozone, smollm2" in err


def test_the_report_is_one_file_with_every_method(trialrun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = trialrun("report")
    assert code == 0
    page = (tmp_path / "trialrun-runs" / "report.html").read_text(encoding="utf-8")
    assert all(slug in page for slug in slugs())
    assert "trialrun-runs/report.html" in out
    assert str(tmp_path) in err


def test_an_edited_record_is_left_out_and_ends_in_code_two(trialrun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "trialrun-runs" / "d3g" / "one"
    run.mkdir(parents=True)
    (run / "records.jsonl").write_text('{"slug": "d3g", "verdict": "holds", "checksum": "0"}\n')
    code, _, err = trialrun("report")
    assert code == 2
    assert "does not match its checksum" in err
    assert (tmp_path / "trialrun-runs" / "report.html").is_file()


def test_a_torn_record_is_reported_and_is_no_failure(trialrun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "trialrun-runs" / "d3g" / "one"
    run.mkdir(parents=True)
    (run / "records.jsonl").write_text('{"slug": "d3')
    code, _, err = trialrun("report")
    assert code == 0
    assert "line 1 is torn" in err


def test_the_version_is_told(trialrun):
    code, out, _ = trialrun("--version")
    assert (code, out.strip()) == (0, "0.1.0")


def test_help_offers_no_switch_that_undoes_another(trialrun):
    code, out, _ = trialrun("check", "--help")
    assert code == 0
    assert "--claim" in out
    assert "--no-" not in out
    assert "--empty-" not in out
