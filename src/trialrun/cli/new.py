"""``trialrun new``: the files of a method, in a source checkout."""

from __future__ import annotations

import keyword
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Literal, get_args

from trialrun.claims.files import write_whole
from trialrun.core.errors import UsageError

Kind = Literal["estimator", "block", "patch", "function", "agent", "pipeline"]

FLOORS = (
    "blocks",
    "catalogue",
    "claims",
    "cli",
    "core",
    "dossiers",
    "material",
    "pages",
    "report",
)
"""Packages beside the families; none of them can be one."""

_LONGEST = 24
_PLAIN_FUNCTIONS = ("function", "pipeline")
_TENSORS = ("torch", "safetensors", "jaxtyping")
_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "estimator": ("sklearn", "safetensors"),
    "block": _TENSORS,
    "patch": (*_TENSORS, "transformers"),
}
_REQUIREMENTS = {
    "torch": "torch>=2.6",
    "transformers": "transformers>=5.20",
    "sklearn": "scikit-learn>=1.6",
    "safetensors": "safetensors>=0.5",
    "jaxtyping": "jaxtyping>=0.3",
}
_LAYER = re.compile(r'^( *"trialrun\.catalogue \| .*)(",)$', re.MULTILINE)
_ALL = re.compile(r'^(all = \["trialrun\[[^\]]*)(\]"\])$', re.MULTILINE)


@dataclass
class _Plan:
    """What to write: new files, and new text for files that are there."""

    root: Path
    made: dict[Path, str] = field(default_factory=dict)
    changed: dict[Path, str] = field(default_factory=dict)

    def add(self, path: str, text: str) -> None:
        target = self.root / path
        if target.exists():
            raise UsageError(f"{path} is there already: choose another slug or remove it first")
        self.made[target] = text


def _is_checkout(folder: Path) -> bool:
    path = folder / "pyproject.toml"
    if not path.is_file():
        return False
    try:
        project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return False
    return project.get("name") == "trialrun" and (folder / "src" / "trialrun").is_dir()


def find_checkout(root: Path | None = None) -> Path:
    """Return the source checkout at ``root``, or the one that holds the working folder.

    Raises
    ------
    UsageError
        If there is none.
    """
    start = Path.cwd() if root is None else root
    above = [] if root is not None else list(start.resolve().parents)
    for folder in (start.resolve(), *above):
        if _is_checkout(folder):
            return folder
    raise UsageError(
        f"{start} is not in a source checkout of trialrun: "
        "run this in a clone of the repository or name one with --root"
    )


def families(root: Path) -> tuple[str, ...]:
    """Return the families of a checkout, sorted."""
    packages = (p.parent.name for p in (root / "src" / "trialrun").glob("*/__init__.py"))
    return tuple(sorted(name for name in packages if name not in FLOORS))


def _check_word(what: str, word: str) -> None:
    plain = re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", word) and not keyword.iskeyword(word)
    if not plain or len(word) > _LONGEST:
        raise UsageError(
            f"{what} must be a lower-case word of letters, digits and single underscores, "
            f"at most {_LONGEST} characters, got {word!r}"
        )


def _check(root: Path, family: str, slug: str, kind: str, new_family: bool) -> None:
    _check_word("slug", slug)
    _check_word("family", family)
    if kind not in get_args(Kind):
        raise UsageError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    known = families(root)
    if family in FLOORS:
        raise UsageError(f"{family} is no family but a floor of the house: choose another name")
    if family not in known and not new_family:
        raise UsageError(
            f"there is no family {family!r}: choose one of {', '.join(known)}, "
            "or add --new-family to make it"
        )
    if family in known and new_family:
        raise UsageError(f"the family {family} is there already: leave out --new-family")
    if slug in (*known, *FLOORS, family):
        raise UsageError(f"slug must differ from every package of the house, got {slug!r}")
    if (root / "src" / "trialrun" / "dossiers" / slug).exists():
        raise UsageError(f"a method with the slug {slug!r} is there already: choose another slug")


def _template(name: str) -> Template:
    place = files("trialrun.cli") / "templates" / f"{name}.tmpl"
    return Template(place.read_text(encoding="utf-8"))


def _sorted_imports(text: str) -> str:
    """Sort neighbouring imports of this package, whose order depends on the family's name."""
    lines, run, done = text.split("\n"), [], []
    for line in [*lines, ""]:
        if line.startswith(("from trialrun.", "from tests.")):
            run.append(line)
            continue
        done += [*sorted(run, key=lambda said: said.split()[1]), line]
        run = []
    return "\n".join(done[:-1])


def _words(family: str, slug: str, kind: str) -> dict[str, str]:
    packages = _PACKAGES.get(kind, ())
    camel = "".join(part.capitalize() for part in slug.split("_"))
    return {
        "slug": slug,
        "family": family,
        "kind": kind,
        "entry": slug if kind in _PLAIN_FUNCTIONS else camel,
        "extras": f'"{family}"' if packages else "",
        "packages": ", ".join(f'"{package}"' for package in packages),
    }


def _files_of(family: str, slug: str, kind: str) -> dict[str, str]:
    dossier = f"src/trialrun/dossiers/{slug}"
    placed = {
        f"src/trialrun/{family}/{slug}.py": f"{kind}.module",
        f"{dossier}/__init__.py": "common.init",
        f"{dossier}/card.toml": "common.card",
        f"{dossier}/notes.en.md": "common.notes_en",
        f"{dossier}/notes.zh.md": "common.notes_zh",
        f"{dossier}/specimen.py": f"{kind}.specimen",
        f"{dossier}/claim.py": "common.claim",
        f"tests/{family}/test_{slug}.py": f"{kind}.test",
        f"tests/naive/{slug}.py": f"{kind}.twin",
        f"benchmarks/bench_{slug}.py": f"{kind}.bench",
    }
    if kind in _PACKAGES:
        placed[f"src/trialrun/{family}/_{slug}_stack.py"] = "common.stack"
    return placed


def _with_extra(text: str, family: str, kind: str) -> str:
    """Return ``pyproject.toml`` with the family's extra bringing what a kind needs."""
    wanted = [_REQUIREMENTS[package] for package in _PACKAGES.get(kind, ())]
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    had = {re.split(r"[^A-Za-z0-9_.-]", requirement)[0] for requirement in extras.get(family, [])}
    lacking = [r for r in wanted if re.split(r"[^A-Za-z0-9_.-]", r)[0] not in had]
    if not lacking:
        return text
    line = f"{family} = [{', '.join(_quoted([*extras.get(family, []), *lacking]))}]"
    if family in extras:
        return _replaced(text, re.compile(rf"^{family} = \[.*\]$", re.MULTILINE), line)
    text = _replaced(text, re.compile(r"^data = \[", re.MULTILINE), f"{line}\ndata = [")
    return _replaced(text, _ALL, rf"\g<1>,{family}\g<2>")


def _quoted(words: Sequence[str]) -> list[str]:
    return [f'"{word}"' for word in words]


def _replaced(text: str, pattern: re.Pattern[str], line: str) -> str:
    changed, times = pattern.subn(line, text)
    if times != 1:
        raise UsageError(
            f"pyproject.toml has no single line like {pattern.pattern!r}: "
            "add the family's extra and layer by hand, then run this again"
        )
    return changed


def _plan(root: Path, family: str, slug: str, kind: str, new_family: bool) -> _Plan:
    plan, words = _Plan(root), _words(family, slug, kind)
    for path, template in _files_of(family, slug, kind).items():
        plan.add(path, _sorted_imports(_template(template).substitute(words)))
    pyproject = root / "pyproject.toml"
    before = after = pyproject.read_text(encoding="utf-8")
    if new_family:
        plan.add(f"src/trialrun/{family}/__init__.py", f'"""The {family} family."""\n')
        after = _replaced(after, _LAYER, rf"\g<1> | trialrun.{family}\g<2>")
    after = _with_extra(after, family, kind)
    if after != before:
        plan.changed[pyproject] = after
    return plan


def _write(plan: _Plan) -> None:
    """Write everything or nothing: what was written is taken back when a later file fails."""
    before = {path: path.read_text(encoding="utf-8") for path in plan.changed}
    folders: list[Path] = []
    written: list[Path] = []
    try:
        for path, text in plan.made.items():
            folders += [p for p in path.parents if not p.exists()][::-1]
            written.append(path)
            write_whole(path, text)
        for path, text in plan.changed.items():
            write_whole(path, text)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        for folder in reversed(folders):
            if folder.is_dir():
                folder.rmdir()
        for path, text in before.items():
            if path.read_text(encoding="utf-8") != text:
                write_whole(path, text)
        raise


def new(
    family: str,
    slug: str,
    *,
    kind: Kind = "estimator",
    root: Path | None = None,
    new_family: bool = False,
) -> None:
    """Write all files of a new method into a source checkout, as a draft that runs.

    Parameters
    ----------
    family
        Family that the method belongs to, such as ``attention``.
    slug
        The method's one word: its module, dossier, tests and page are called by it.
    kind
        What the method is for the one who imports it.
    root
        Checkout to write into; the one around the working folder unless named.
    new_family
        Make the family too: its package, its place among the layers, its extra.
    """
    checkout = find_checkout(root)
    _check(checkout, family, slug, kind, new_family)
    plan = _plan(checkout, family, slug, kind, new_family)
    _write(plan)
    for path in sorted((*plan.made, *plan.changed)):
        print(f"{'changed' if path in plan.changed else 'wrote'}  {path.relative_to(checkout)}")
    print(f"next: python -m pytest tests/conformance tests/{family} -k {slug}")
    print("It lists what is still to be written; then take draft = true out of the card.")
