"""``trialrun openness``: what is printed, and the exit code for CI."""

import json
from importlib.resources import files

import pytest

DOSSIER = files("trialrun") / "dossiers" / "moxin"


def path(name):
    return str(DOSSIER / f"release-{name}.yaml")


def test_the_table_names_class_components_and_what_is_in_the_way(trialrun):
    code, out, err = trialrun("openness", path("moxin-7b"), "--trusting")
    assert (code, err) == (0, "")
    assert "Moxin-7B: class II (Open Tooling)" in out
    assert "no  Data preprocessing code" in out
    assert "train/pretrain.py" in out
    assert out.rstrip().endswith("in the way of class I: preprocessing_code")


@pytest.mark.parametrize(
    ("name", "least", "code"),
    [
        ("complete", "I", 0),
        ("complete", "III", 0),
        ("weights-only", "III", 1),
        ("moxin-7b", "1", 1),
    ],
)
def test_require_sets_the_exit_code(trialrun, name, least, code):
    got, _, err = trialrun("openness", path(name), "--require", least)
    assert got == code
    assert ("does not reach class" in err) == bool(code)


def test_json_is_for_machines(trialrun):
    code, out, _ = trialrun("openness", path("closed-weights"), "--json")
    assert code == 0
    assert json.loads(out)["in_the_way"]["III"] == ["final_parameters"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["none.yaml"], 2, "none.yaml is not a file: name a manifest"),
        (["one two"], 2, "neither a manifest nor a hub id"),
        ([path("complete"), "--require", "IV"], 2, "a class must be I, II or III, got 'IV'"),
        (["org/name"], 5, "the network is off (HF_HUB_OFFLINE): add --online"),
    ],
)
def test_what_cannot_be_graded_ends_in_one_sentence(trialrun, monkeypatch, words, code, said):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    got, out, err = trialrun("openness", *words)
    assert (got, out) == (code, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_a_manifest_with_a_mistake_names_file_component_and_mistake(trialrun, tmp_path):
    bad = tmp_path / "release.yaml"
    bad.write_text("release: x\ncomponents: {datasets: {licence: MTI}}")
    code, _, err = trialrun("openness", str(bad))
    assert code == 2
    assert "release.yaml: datasets: the licence 'MTI' is unknown, did you mean MIT" in err


def test_a_manifest_that_no_reader_understands_is_one_sentence(trialrun, tmp_path):
    bad = tmp_path / "release.yaml"
    for words in ("version: 2024-13-01", "? [a, b]\n: 1", "version: !!timestamp abc"):
        bad.write_text(f"release: x\n{words}\ncomponents: {{model_card: {{licence: MIT}}}}")
        code, out, err = trialrun("openness", str(bad))
        assert (code, out) == (2, "")
        assert "is not valid YAML" in err
        assert len(err.strip().splitlines()) == 1


def test_a_name_too_long_for_a_file_is_said_to_be_none(trialrun):
    for name in ("x" * 5000, "x" * 5000 + ".yaml"):
        code, _, err = trialrun("openness", name)
        assert code == 2
        assert "name a" in err
