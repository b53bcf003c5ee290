"""Openness grading: golden manifests, licences, what a hub repository shows."""

import itertools
import json
from importlib.resources import files

import pytest

from tests.naive.moxin import REQUIRED, naive_level
from trialrun.core.errors import NotRunnable, UsageError
from trialrun.core.seeds import rng
from trialrun.pretraining import _hub
from trialrun.pretraining._licences import open_for
from trialrun.pretraining.openness import (
    COMPONENTS,
    UNGRADED,
    grade,
    level_of,
    parse_manifest,
    read_manifest,
    to_json,
)

DOSSIER = files("trialrun") / "dossiers" / "moxin"
NAMES = [name for level in (3, 2, 1) for name in REQUIRED[level]]
GOLDEN = {
    # manifest: class taken strictly, class with the benefit of the doubt
    "complete": (1, 1),
    "as-stated": (1, 1),
    "moxin-7b": (UNGRADED, 2),
    "weights-only": (UNGRADED, UNGRADED),
    "closed-weights": (UNGRADED, UNGRADED),
}


def golden(name):
    return read_manifest(str(DOSSIER / f"release-{name}.yaml"))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_manifests_get_their_class(name):
    manifest = golden(name)
    levels = tuple(grade(manifest, trusting=trusting).level for trusting in (False, True))
    assert levels == GOLDEN[name]


def test_every_golden_manifest_is_listed():
    found = {p.name for p in DOSSIER.iterdir() if p.name.startswith("release-")}
    assert found == {f"release-{name}.yaml" for name in GOLDEN}


def test_what_is_in_moxins_way_is_named_with_evidence():
    strict, kind = (grade(golden("moxin-7b"), trusting=t) for t in (False, True))
    assert [f.component for f in kind.in_the_way(1)] == ["preprocessing_code"]
    missing = [f.component for f in strict.in_the_way(1) if f.status == "missing"]
    assert missing == ["preprocessing_code"]
    assert all(f.evidence for f in strict.findings if f.status == "present")


def test_there_are_seventeen_components_fifteen_of_them_required():
    assert len(COMPONENTS) == 17
    assert [c.id for c in COMPONENTS.values() if c.required] == NAMES


def release(names, **change):
    said = {name: {"licence": "OpenMDW-1.0", "evidence": "a file"} for name in names}
    for name, more in change.items():
        said[name] = {**said.get(name, {}), **more}
    return {"release": "x", "components": said}


def test_the_class_is_the_slow_twins_for_any_set_of_components():
    draw = rng(0, "sets")
    sets = [set(NAMES) - {name} for name in NAMES]
    sets += [set(REQUIRED[3]), set(REQUIRED[3] + REQUIRED[2]), set(NAMES), {"model_card"}]
    sets += [{n for n in NAMES if draw.random() < 0.9} | {"model_card"} for _ in range(100)]
    for names in sets:
        assert grade(release(names)).level == naive_level(names)


@pytest.mark.parametrize("name", NAMES)
def test_no_component_counts_without_evidence_or_an_open_licence(name):
    level = COMPONENTS[name].level
    below = {3: UNGRADED, 2: 3, 1: 2}[level]
    for change in (
        {"evidence": "a file", "licence": "CC-BY-NC-4.0"},
        {"licence": "NONE"},
        {"licence": "LicenseRef-ours"},
        {"status": "missing"},
        {"status": "not inspected"},
    ):
        assert grade(release(NAMES, **{name: change})).level == below
    bare = release(NAMES)
    del bare["components"][name]["evidence"]
    assert grade(bare).level == below


def test_optional_components_change_nothing():
    both = release(NAMES, sample_outputs={"licence": "NONE"}, model_metadata={"status": "missing"})
    assert grade(both).level == 1


def test_doubt_covers_what_was_not_seen_but_no_known_closed_licence():
    unseen = {"status": "not inspected", "licence": ""}
    assert grade(release(NAMES, datasets=unseen), trusting=True).level == 1
    closed = {"status": "not inspected", "licence": "CC-BY-NC-4.0"}
    assert grade(release(NAMES, datasets=closed), trusting=True).level == 2
    assert grade(release(NAMES, datasets={"status": "missing"}), trusting=True).level == 2


@pytest.mark.parametrize(
    ("licence", "uses"),
    [
        ("MIT", "code"),
        ("apache-2.0", "code"),
        ("CDLA-Permissive-2.0", "data"),
        ("cc-by-4.0", "data document"),
        ("OpenMDW-1.0", "code data document"),
        ("llama3.1", ""),
        ("other", ""),
        ("NONE", ""),
        ("LicenseRef-Mine", ""),
        ("MIT OR CC-BY-4.0", "code data document"),
        ("MIT AND CC-BY-4.0", ""),
        ("MIT OR llama2", "code"),
        ("(MIT OR Apache-2.0) AND BSD-3-Clause", "code"),
        ("MIT OR Apache-2.0 AND llama2", "code"),  # AND binds tighter
        ("GPL-2.0-only WITH Classpath-exception-2.0", "code"),
        ("GPL-2.0+", "code"),
        ("gpl", "code"),
        ("lgpl", "code"),
        ("agpl", "code"),
    ],
)
def test_licences_are_open_for_what_they_are_made_for(licence, uses):
    assert open_for(licence) == set(uses.split())


@pytest.mark.parametrize(
    ("licence", "words"),
    [
        ("Apache-2", "'Apache-2' is unknown, did you mean Apache-2.0"),
        ("qqqq", "unknown: write an SPDX id, LicenseRef-NAME"),
        ("MIT OR", "lacks a name"),
        ("AND MIT", "lacks a name"),
        ("(MIT", "lacks a closing bracket"),
        ("MIT BSD-3-Clause", "cannot be read from 'BSD-3-Clause' on"),
        (" ", "must be an SPDX id"),
    ],
)
def test_licences_that_cannot_be_read_are_named(licence, words):
    with pytest.raises(UsageError, match=words):
        open_for(licence)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ([], "must be a table with release and components, got list"),
        (None, "got NoneType"),
        ({"release": "x"}, "components must be a table with at least one of model_architecture"),
        ({"release": "", "components": {"model_card": {}}}, "release must be a name"),
        ({"release": 7, "components": {"model_card": {}}}, "release must be a name, got 7"),
        ({"relaese": "x"}, "unknown key 'relaese': it takes release"),
        ({"release": "x", "components": {"weights": {}}}, "there is no component 'weights'"),
        ({"release": "x", "components": {"model_card": "MIT"}}, "model_card must be a table"),
        (release(["model_card"], model_card={"licens": "MIT"}), "unknown key 'licens'"),
        (release(["model_card"], model_card={"license": "MIT"}), "both licence and license"),
        (release(["model_card"], model_card={"licence": 2.0}), "must be text, got 2.0: put it in"),
        (release(["model_card"], model_card={"licence": "MTI"}), "did you mean MIT"),
        (release(["model_card"], model_card={"status": "here"}), "status must be one of present"),
        (release(["model_card"], model_card={"evidence": 3}), "evidence must be a sentence"),
        (release(["model_card"], model_card={"evidence": []}), "evidence must be a sentence"),
    ],
)
def test_manifests_that_cannot_be_read_are_refused_in_one_sentence(table, words):
    with pytest.raises(UsageError, match=words) as caught:
        parse_manifest(table)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"release: [x", "line 1 is not valid YAML"),
        (b"release: x\nrelease: y\ncomponents: {}", "the key 'release' stands there twice"),
        (b"!!python/object/apply:os.system ['true']", "is not valid YAML: could not determine"),
        (b"\xff\xfe\x00", "UTF-8|not valid YAML"),
        (b"", "got NoneType"),
        (b"{}", "release must be a name"),
        (b"release: x\nversion: 2024-13-01", "month must be in 1..12: put what is meant as text"),
        (b"release: x\n? [a, b]\n: 1", "line 2 is not valid YAML: found unhashable key"),
        (b"version: !!timestamp abc", "is not valid YAML"),
        (b"version: !!bool abc", "is not valid YAML"),
        (b"release: \x00", "is not valid YAML: unacceptable character"),
        (b"a: &a [*a]", "recursive"),
        (b"[" * 3000, "nested too deep"),
    ],
)
def test_files_that_are_no_manifest_are_refused(tmp_path, text, words):
    path = tmp_path / "release.yaml"
    path.write_bytes(text)
    with pytest.raises(UsageError, match=words) as caught:
        read_manifest(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"release": ', "line 1 is not valid JSON: Expecting value"),
        (b'{"release": "x", "release": "y"}', "the key 'release' stands there twice"),
        (b"[" * 100_000, "nested too deep"),
        (b"release: x", "is not valid JSON"),
    ],
)
def test_json_that_is_no_manifest_is_refused(tmp_path, text, words):
    path = tmp_path / "release.JSON"
    path.write_bytes(text)
    with pytest.raises(UsageError, match=words):
        read_manifest(path)


def test_json_may_be_indented_with_tabs_and_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "release.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(release(NAMES), indent="\t").encode())
    assert grade(read_manifest(path)).level == 1


def test_keys_with_nothing_after_them_say_nothing(tmp_path):
    path = tmp_path / "release.yaml"
    path.write_text("release: x\nsource:\nversion:\ncomponents: {model_card: {note: }}\n")
    manifest = read_manifest(path)
    assert (manifest.source, manifest.version) == (str(path), "")
    assert manifest.components["model_card"].note == ""
    assert parse_manifest({**release(NAMES), "source": None}).source == "manifest"


def test_evidence_too_long_for_a_path_is_a_path_that_leads_nowhere(tmp_path):
    path = tmp_path / "release.json"
    path.write_text(json.dumps(release(NAMES, datasets={"evidence": "./" + "x" * 5000})))
    assert grade(read_manifest(path)).level == 2


def test_evidence_that_is_a_path_is_looked_for_beside_the_manifest(tmp_path):
    path = tmp_path / "release.yaml"
    path.write_text(json.dumps(release(NAMES, training_code={"evidence": ["./train.py"]})))
    absent = grade(read_manifest(path))
    assert absent.level == 3
    assert absent.in_the_way(2)[0].problem == "missing (no such file: ./train.py)"
    (tmp_path / "train.py").touch()
    assert grade(read_manifest(path)).level == 1


def test_a_grade_is_json_with_all_that_it_rests_on():
    said = json.loads(to_json(grade(golden("moxin-7b"), trusting=True)))
    assert (said["class"], said["class_name"], said["trusting"]) == ("II", "Open Tooling", True)
    assert said["in_the_way"] == {"III": [], "II": [], "I": ["preprocessing_code"]}
    assert len(said["components"]) == 17
    assert json.loads(to_json(grade(golden("weights-only"))))["class"] is None


def test_classes_have_names():
    assert [level_of(n) for n in ("I", "ii", "3")] == [1, 2, 3]
    with pytest.raises(UsageError, match="must be I, II or III, got 'IV'"):
        level_of("IV")


FILES = ["README.md", "config.json", "model-00001.safetensors", "eval.py", "trainer_state.json"]


def repository(**more):
    card = {"license": "apache-2.0", "datasets": ["a/b"], "model-index": [{}]}
    settings = {"files": FILES, "card": card, "tags": ["arxiv:2412.06845"], "sha": "abc", **more}
    return _hub.Repository("org/name", **settings)


def test_a_hub_repository_shows_what_it_holds_and_no_more():
    manifest = _hub.manifest_of(repository(branches=["main", "step-1000"]))
    assert set(manifest.components) == {
        "final_parameters",
        "model_architecture",
        "model_card",
        "evaluation_code",
        "model_metadata",
        "intermediate_parameters",
        "evaluation_results",
        "technical_report",
        "datasets",
    }
    assert manifest.components["final_parameters"].evidence == (
        "https://huggingface.co/org/name/blob/abc/model-00001.safetensors",
    )
    graded = grade(manifest)
    assert graded.level == UNGRADED
    problems = {f.component: f.problem for f in graded.findings}
    assert problems["final_parameters"] == problems["intermediate_parameters"] == ""
    assert problems["datasets"] == "no licence is given"
    assert problems["training_code"] == "missing"


def test_what_a_trainer_leaves_and_a_tokenizer_are_no_parameters():
    state = ["scheduler.pt", "rng_state.pth", "rng_state_0.pth", "optimizer.bin"]
    files = [*state, "training_args.bin", "tokenizer.bin", "sub/tokenizer.model.bin"]
    found = _hub.manifest_of(repository(files=files)).components
    assert "final_parameters" not in found
    assert len(found["model_metadata"].evidence) == 5
    some = _hub.manifest_of(repository(files=[*files, "pytorch_model.bin"])).components
    assert [e.rsplit("/")[-1] for e in some["final_parameters"].evidence] == ["pytorch_model.bin"]


@pytest.mark.parametrize(
    ("branch", "is_one"),
    [
        ("step1000", True),
        ("step-1000-tokens4B", True),
        ("stage1-step1000", True),
        ("global_step42", True),
        ("ckpt_356", True),
        ("refs/checkpoint-5", True),
        ("ITER_10", True),
        ("iterate-on-docs", False),
        ("next-steps", False),
        ("footstep9", False),
        ("add-special-tokens", False),
        ("revision-of-card", False),
    ],
)
def test_a_branch_is_a_checkpoint_by_its_number(branch, is_one):
    found = _hub.manifest_of(repository(branches=["main", branch])).components
    assert ("intermediate_parameters" in found) == is_one


@pytest.mark.parametrize(
    ("card", "licence", "note"),
    [
        ({}, "", "the card names no licence"),
        ({"license": ["mit", "apache-2.0"]}, "mit AND apache-2.0", ""),
        ({"license": ["mit", "llama3"]}, "mit AND llama3", ""),
        ({"license": "my own words"}, "LicenseRef-my-own-words", "is not a known one"),
        ({"license": "llama2"}, "llama2", ""),
    ],
)
def test_the_hub_cards_licence_is_taken_as_it_stands(card, licence, note):
    shown = _hub.manifest_of(repository(card=card)).components["final_parameters"]
    assert shown.licence == licence
    assert note in shown.note
    graded = grade(_hub.manifest_of(repository(card=card)))
    counts = {f.component: f.counts for f in graded.findings}["final_parameters"]
    assert counts == (licence == "mit AND apache-2.0")


def test_every_component_has_a_name_for_people_once():
    names = [c.name for c in COMPONENTS.values()]
    assert len(set(names)) == 17
    assert all(a != b for a, b in itertools.pairwise(sorted(names)))


def test_a_hub_id_without_network_says_so(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(NotRunnable, match=r"network is off .* add --online .* write a manifest"):
        _hub.from_hub("org/name")
    with pytest.raises(UsageError, match="a hub id reads organisation/name"):
        _hub.from_hub("name")


class _Asked:
    """Stands for the hub's client."""

    def __init__(self, answer):
        self.answer = answer

    def model_info(self, hub_id, timeout):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def list_repo_refs(self, hub_id):
        from types import SimpleNamespace as Some

        return Some(branches=[Some(name="main"), Some(name="ckpt-5")], tags=[])


@pytest.fixture
def hub(monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")

    def answer(with_what):
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: _Asked(with_what))

    return answer


def test_what_the_hub_answers_becomes_a_manifest(hub):
    from types import SimpleNamespace as Some

    siblings = [Some(rfilename=name) for name in FILES]
    hub(Some(siblings=siblings, card_data=None, tags=None, sha="abc"))
    manifest = _hub.from_hub("org/name")
    assert manifest.version == "abc"
    assert manifest.components["intermediate_parameters"].evidence[0].endswith("tree/ckpt-5")
    assert manifest.components["model_card"].note == "the card names no licence"


def test_what_the_hub_refuses_is_one_sentence(hub):
    hub(ConnectionError("a long story"))
    words = r"could not be asked for org/name \(ConnectionError\): try again"
    with pytest.raises(NotRunnable, match=words) as caught:
        _hub.from_hub("org/name")
    assert "--online" not in str(caught.value)  # it was given
    import httpx2
    from huggingface_hub.errors import RepositoryNotFoundError

    request = httpx2.Request("GET", "https://huggingface.co")
    hub(RepositoryNotFoundError("no", response=httpx2.Response(404, request=request)))
    with pytest.raises(UsageError, match="no public model 'org/name': check the name"):
        _hub.from_hub("org/name")
