import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conformance.plan import FLOORS
from trialrun.catalogue import parse_card
from trialrun.cli import new as new_module
from trialrun.cli.new import families, find_checkout, new
from trialrun.core.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
MADE = {
    "estimator": ("shift", "toy_estimator"),
    "block": ("sequence", "toy_block"),
    "patch": ("attention", "toy_patch"),
    "function": ("attention", "a"),
    "agent": ("tinkering", "an_agent_of_longest_name"),
    "pipeline": ("sequence", "toy_pipeline"),
}
"""One method of each kind; the agent's family is new."""

LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.egg-info")


def empty_house(root):
    """Copy what a method stands on, without the methods that are there."""
    shutil.copytree(ROOT / "src" / "trialrun", root / "src" / "trialrun", ignore=LEFT_OUT)
    for card in (root / "src" / "trialrun" / "dossiers").glob("*/card.toml"):
        shutil.rmtree(card.parent)
    shutil.copytree(ROOT / "tests" / "conformance", root / "tests" / "conformance", ignore=LEFT_OUT)
    # A waiver of a method that is not there would be a stray one.
    (root / "tests" / "conformance" / "waivers.toml").write_text("")
    for name in (
        "pyproject.toml",
        "tests/__init__.py",
        "tests/conftest.py",
        "benchmarks/_bench.py",
    ):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    return root


def small_house(root):
    """Make just enough of a checkout to be found."""
    shutil.copy(ROOT / "pyproject.toml", root)
    for family in ("core", "cli", "shift", "sequence"):
        (root / "src" / "trialrun" / family).mkdir(parents=True)
        (root / "src" / "trialrun" / family / "__init__.py").touch()
    return root


def contents(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def house(tmp_path):
    return small_house(tmp_path)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    root = empty_house(tmp_path_factory.mktemp("house"))
    for kind, (family, slug) in MADE.items():
        new(family, slug, kind=kind, root=root, new_family=family == "tinkering")
    return root


def in_house(root, *arguments):
    path = os.pathsep.join([str(root / "src"), str(root)])
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        env={**os.environ, **threads, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def made_python(root):
    copied = (p.relative_to(root) for p in root.rglob("*.py"))
    files = [p for p in copied if not (ROOT / p).exists()]
    assert len(files) > len(MADE) * 5
    return sorted(map(str, files))


def test_every_kind_passes_conformance_and_its_own_tests_as_a_draft(filled):
    tests = ["tests/conformance/test_methods.py", *{f"tests/{f}" for f, _ in MADE.values()}]
    done = in_house(filled, "-m", "pytest", "-p", "no:cacheprovider", *tests)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    for kind, (_, slug) in MADE.items():
        row = next(line for line in done.stdout.splitlines() if line.startswith(f"{slug} (draft)"))
        ran, failed = row.removeprefix(f"{slug} (draft)").split()[1:3]
        assert (kind in row, failed) == (True, "0"), row
        # A finished method has seven more checks of its dossier and ten of each claim.
        assert FLOORS[kind] <= int(ran) + 17, row
        left = next(
            line for line in done.stdout.splitlines() if line.startswith(f"{slug}, to be written")
        )
        for part in ("claims", "notes.en.md", "notes.zh.md", "papers", "records", "title and idea"):
            assert part in left


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_what_is_made_is_clean_for_ruff(filled, command):
    done = in_house(filled, "-m", "ruff", *command, "--no-cache", *made_python(filled))
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_what_is_made_is_clean_for_mypy(filled, tmp_path):
    sources = [p for p in made_python(filled) if p.startswith("src")]
    done = in_house(filled, "-m", "mypy", "--cache-dir", str(tmp_path), *sources)
    assert done.returncode == 0, done.stdout


def test_layers_hold_after_a_new_family(filled):
    done = in_house(filled, "-c", "from importlinter.cli import lint_imports_command as c; c()")
    assert done.returncode == 0, done.stdout
    assert "trialrun.tinkering" in (filled / "pyproject.toml").read_text(encoding="utf-8")


def test_benchmarks_run(filled):
    for _, slug in (MADE["function"], MADE["patch"]):
        done = in_house(filled, f"benchmarks/bench_{slug}.py")
        assert done.returncode == 0, done.stderr[-2000:]
        assert slug in done.stdout


def test_cards_are_drafts_that_can_be_read(filled):
    for kind, (family, slug) in MADE.items():
        path = filled / "src" / "trialrun" / "dossiers" / slug / "card.toml"
        card = parse_card(path.read_text(encoding="utf-8"))
        assert (card.draft, card.kind, card.family, card.slug) == (True, kind, family, slug)


def test_an_extra_gains_what_the_kind_needs_and_keeps_what_it_had(house):
    before = tomllib.loads((house / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    new("sequence", "toy", kind="patch", root=house)
    after = tomllib.loads((house / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    had, has = (t["optional-dependencies"]["sequence"] for t in (before, after))
    assert has[: len(had)] == had
    assert any(requirement.startswith("transformers") for requirement in has)


def test_a_new_family_gets_an_extra_that_all_brings(house):
    new("control", "toy", kind="block", root=house, new_family=True)
    project = tomllib.loads((house / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert any(r.startswith("torch") for r in project["optional-dependencies"]["control"])
    assert "control" in project["optional-dependencies"]["all"][0]
    assert families(house) == ("control", "sequence", "shift")


@pytest.mark.parametrize(
    ("family", "slug", "settings", "said"),
    [
        ("shift", "Toy", {}, "slug must be a lower-case word"),
        ("shift", "two words", {}, "slug must be"),
        ("shift", "../toy", {}, "slug must be"),
        ("shift", "class", {}, "slug must be"),
        ("shift", "toy__two", {}, "slug must be"),
        ("shift", "t" * 25, {}, "at most 24"),
        ("shift", "sequence", {}, "differ from every package"),
        ("shift", "taken", {}, "is there already"),
        ("nowhere", "toy", {}, "choose one of sequence, shift"),
        ("Shift", "toy", {}, "family must be"),
        ("shift", "toy", {"new_family": True}, "leave out --new-family"),
        ("core", "toy", {}, "no family"),
        ("shift", "toy", {"kind": "widget"}, "kind must be one of estimator"),
    ],
)
def test_a_wrong_word_is_refused_in_one_sentence_and_nothing_is_written(
    house, family, slug, settings, said
):
    (house / "src" / "trialrun" / "dossiers" / "taken").mkdir(parents=True)
    before = contents(house)
    with pytest.raises(UsageError, match=said) as caught:
        new(family, slug, root=house, **settings)
    assert "\n" not in str(caught.value)
    assert contents(house) == before


def test_a_file_in_the_way_is_refused_and_nothing_is_written(house):
    (house / "benchmarks").mkdir()
    (house / "benchmarks" / "bench_toy.py").write_text("mine\n", encoding="utf-8")
    before = contents(house)
    with pytest.raises(UsageError, match=r"bench_toy\.py is there already"):
        new("shift", "toy", root=house)
    assert contents(house) == before


@pytest.mark.parametrize("failing", ["claim.py", "bench_toy.py", "pyproject.toml"])
def test_a_failure_while_writing_takes_everything_back(house, monkeypatch, failing):
    before, folders = contents(house), sorted(p for p in house.rglob("*") if p.is_dir())
    whole, failed = new_module.write_whole, []

    def write(path, text):
        if path.name == failing and not failed:
            failed.append(path)
            raise OSError(28, "No space left on device", str(path))
        whole(path, text)

    monkeypatch.setattr(new_module, "write_whole", write)
    with pytest.raises(OSError, match="No space"):
        new("control", "toy", kind="block", root=house, new_family=True)
    assert contents(house) == before
    assert sorted(p for p in house.rglob("*") if p.is_dir()) == folders


def test_the_checkout_is_found_from_within_and_nowhere_else(house, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(house / "src" / "trialrun" / "shift")
    assert find_checkout() == house.resolve()
    outside = tmp_path_factory.mktemp("outside")
    monkeypatch.chdir(outside)
    with pytest.raises(UsageError, match="not in a source checkout"):
        find_checkout()
    (outside / "pyproject.toml").write_text('[project]\nname = "other"\n', encoding="utf-8")
    with pytest.raises(UsageError, match="not in a source checkout"):
        find_checkout(outside)


def test_importing_the_command_loads_nothing_heavy():
    heavy = "{'jinja2', 'torch', 'sklearn', 'numpy'}"
    script = f"import sys, trialrun.cli.new; print(sorted({heavy} & set(sys.modules)))"
    done = in_house(ROOT, "-c", script)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
