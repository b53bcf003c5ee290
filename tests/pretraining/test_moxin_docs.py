"""The snippets of docs/methods.md run as they stand, but for folders, files and processes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [f"Page {n} tells of the {w} by the harbour. " * 8 for n, w in ((1, "boat"), (2, "mill"))]


def snippets():
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    section = text.split("\n## pretraining · moxin")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def test_the_pipeline_snippet_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"text": page}) for page in [*PAGES, PAGES[0]]]
    (tmp_path / "crawl.jsonl").write_text("\n".join(lines), encoding="utf-8")
    code = snippets()[0].replace('"/scratch"', repr(str(tmp_path))).replace("jobs=8", "jobs=1")
    texts = {"good": ["the boat by the harbour"], "bad": ["buy now"], "questions": ["what " * 20]}
    exec(code, dict(texts))
    assert "arc: 0.0% of 1 items found" in capsys.readouterr().out


def test_the_datatrove_snippet_runs_with_a_reader_and_a_writer_of_ones_own(tmp_path, monkeypatch):
    data = pytest.importorskip("datatrove.data")
    monkeypatch.chdir(tmp_path)
    kept = []

    def reader(_, rank, world_size):
        for place in range(rank, 3, world_size):
            yield data.Document(PAGES[place % 2], str(place))

    def writer(stream, rank, world_size):
        for document in stream:
            kept.append(document.id)
            yield document

    code = snippets()[2].replace("tasks=64", "tasks=4, workers=1")  # one task has no document
    own = re.sub(r"^(from datatrove\.pipeline|reader, writer =).*\n", "", code, flags=re.MULTILINE)
    assert own.count("\n") == code.count("\n") - 3
    exec(own, {"reader": reader, "writer": writer})
    assert kept == ["0", "1"]


def test_every_name_of_the_training_snippet_is_imported_in_it():
    pytest.importorskip("torch")
    imports, _, calls = snippets()[1].partition("\n\n")
    names = {}
    exec(imports, names)
    code = re.sub(r"#.*", "", calls)
    assert set(re.findall(r"(\w+)\(", code)) == names.keys() - {"__builtins__"}


def test_a_star_import_brings_every_name_and_a_plain_one_no_torch():
    code = (
        "import sys, trialrun.pretraining.moxin as moxin\n"
        "assert 'torch' not in sys.modules\n"
        "from trialrun.pretraining.moxin import *\n"
        "assert deepen and moxin.__all__ == sorted({*moxin.__all__, *moxin._TRAINING})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
