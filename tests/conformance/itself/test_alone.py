"""Checks that start processes, on toy packages and toy measurements."""

from dataclasses import replace

import pytest

from tests.conformance import alone_checks
from tests.conformance.harness import ROOT, Broken
from tests.conformance.itself.cards import CARD


def _package(root, body):
    home = root / "src" / "trialrun_toy"
    home.mkdir(parents=True)
    (home / "__init__.py").write_text(body, encoding="utf-8")
    (root / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    return root


NEED = "from trialrun.core.extras import need\nneed('sklearn', extra='{}')\n"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (NEED.format("shift"), ""),
        ("import json\n", ""),
        ("import sklearn\n", "raised ModuleNotFoundError"),
        (NEED.format("nothing"), "none of the card's extras"),
        (NEED.format("sequence"), "does not bring sklearn"),
    ],
)
def test_a_missing_package_must_be_explained(body, said, tmp_path):
    card = replace(CARD, family="shift", extras=("shift", "sequence"))
    root = _package(tmp_path, body)
    if not said:
        alone_checks.missing_package_is_explained(card, "trialrun_toy", ["sklearn"], root)
        return
    with pytest.raises(Broken, match=said):
        alone_checks.missing_package_is_explained(card, "trialrun_toy", ["sklearn"], root)


def test_packages_are_tried_alone_if_named_and_not_brought_by_others(tmp_path):
    card = replace(CARD, extras=("attention",))
    _package(tmp_path, "import trialrun_toy.inner\n")
    inner = tmp_path / "src" / "trialrun_toy" / "inner.py"
    inner.write_text("import transformers, safetensors\n", encoding="utf-8")
    found = alone_checks.scenarios(card, "trialrun_toy", tmp_path)
    assert {"torch", "transformers", "safetensors"} <= set(found[0])
    assert found[1:] == [["transformers"]]
    assert alone_checks.scenarios(CARD, "trialrun_toy", tmp_path) == [[]]


def test_slow_and_large_specimens_are_found(monkeypatch):
    used = {"entry": "x:y", "seconds": 0.1, "megabytes": 1.0, "error": ""}
    for change, said in [
        ({}, ""),
        ({"seconds": 2.5}, r"2\.50 s"),
        ({"megabytes": 301.0}, "301 MB"),
        ({"error": "its process died"}, "died"),
    ]:
        row = {**used, **change}
        monkeypatch.setattr(alone_checks, "run_alone", lambda *_, row=row: [row])
        if said:
            with pytest.raises(Broken, match=said):
                alone_checks.specimens_are_small("toys")
        else:
            alone_checks.specimens_are_small("toys")


def test_measuring_notices_time_and_memory():
    script = (
        "import json, time, numpy as np\n"
        "from tests.conformance import measure\n"
        "from tests.conformance.itself import toys\n"
        "def run(inputs):\n"
        "    end = time.process_time() + 0.3\n"
        "    block = np.ones(20_000_000)\n"
        "    while time.process_time() < end: pass\n"
        "    return block[:1]\n"
        "print(json.dumps(measure._in_a_fork(toys.of(toys.centre, run=run))))\n"
    )
    used = alone_checks.run_alone(["-c", script])
    assert used["error"] == ""
    assert 0.3 <= used["seconds"] < 1.5
    assert 150 < used["megabytes"] < 260
