"""Checks that need a process of their own: missing packages, and time and memory of specimens."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import Any

from tests.conformance.harness import ROOT, require
from trialrun.catalogue import Card

SPECIMEN_SECONDS = 2.0
SPECIMEN_MEGABYTES = 300.0

_IMPORT_WITHOUT = """
import json, sys
module, blocked = sys.argv[1], json.loads(sys.argv[2])

class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        missing = name.partition(".")[0] in blocked
        return None if missing else self.finder.find_spec(name, path, target)

# Not found by any finder is what a package is that was never installed.
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
try:
    __import__(module)
except ImportError as error:
    print(json.dumps([type(error).__name__, str(error)]))
else:
    print(json.dumps(["imported", ""]))
"""


def run_alone(arguments: list[str], root: Path = ROOT) -> Any:
    """Run Python on its own in a checkout and return the JSON of its last line."""
    path = os.pathsep.join([str(root / "src"), str(root), os.environ.get("PYTHONPATH", "")])
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, **threads, "PYTHONPATH": path},
        timeout=240,
        check=False,
    )
    require(done.returncode == 0, f"a process of its own failed: {done.stderr.strip()[-600:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _distribution(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    return re.sub(r"[-_.]+", "-", name[0]).lower() if name else ""


def packages_of(extras: Iterable[str], root: Path = ROOT) -> dict[str, str]:
    """Return the import names that extras bring, each with its distribution."""
    table = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    base = {_distribution(r) for r in table["dependencies"]}
    brought = {_distribution(r) for e in extras for r in table["optional-dependencies"][e]} - base
    names: dict[str, str] = {}
    for module, distributions in packages_distributions().items():
        for distribution in map(_distribution, distributions):
            # torch also installs functorch and torchgen, which nobody imports by name.
            lesser = module != distribution and distribution.isidentifier()
            if distribution in brought and not lesser and not module.startswith("_"):
                names[module] = distribution
    return names


def _needed_by_another(distribution: str, others: Iterable[str]) -> bool:
    """Tell whether a distribution comes with another one, and so is never missing alone."""
    for other in others:
        try:
            wanted = [r for r in requires(other) or [] if "extra ==" not in r]
        except PackageNotFoundError:
            continue
        if other != distribution and distribution in map(_distribution, wanted):
            return True
    return False


def _sources(module: str, root: Path) -> str:
    """Return the text of a module and of all in this package that it imports, directly or not."""
    todo, texts = [module], {}
    while todo:
        name = todo.pop()
        place = root / "src" / Path(*name.split("."))
        path = next(
            (p for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file()), None
        )
        if path is None or name in texts:
            continue
        texts[name] = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(texts[name])):
            if isinstance(node, ast.Import):
                todo += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                todo += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return "\n".join(texts.values())


def scenarios(card: Card, module: str, root: Path = ROOT) -> list[list[str]]:
    """Return sets of import names to do without: all that the extras bring, and each alone.

    Packages that the module's sources never name are not tried alone.
    """
    packages = packages_of(card.extras, root)
    text = _sources(module, root)
    named = {m: d for m, d in sorted(packages.items()) if re.search(rf"\b{m}\b", text)}
    alone = [[m] for m, d in named.items() if not _needed_by_another(d, set(named.values()))]
    return [sorted(packages), *[a for a in alone if a != sorted(packages)]]


def missing_package_is_explained(
    card: Card, module: str, blocked: list[str], root: Path = ROOT
) -> None:
    """Without some packages a module imports all the same, or says which extra brings them."""
    kind, text = run_alone(["-c", _IMPORT_WITHOUT, module, json.dumps(blocked)], root)
    if kind == "imported":
        return
    what = f"importing {module} without {', '.join(blocked)}"
    require(kind == "MissingExtra", f"{what} raised {kind}: {text}")
    named = re.search(r"pip install 'trialrun\[([\w,-]+)\]'", text)
    require(named, f"{what} names no remedy: {text}")
    assert named is not None
    extras = named[1].split(",")
    known = set(card.extras) | {card.family}
    require(set(extras) <= known, f"{what} names {named[1]}, which is none of the card's extras")
    brought = packages_of(extras, root)
    wanted = text.split()[0].partition(".")[0]
    require(wanted in brought, f"{what}: the extra {named[1]} does not bring {wanted}")


def specimens_are_small(slug: str, root: Path = ROOT) -> None:
    """Each specimen takes under 2 s of CPU time and 300 MB of memory."""
    for used in run_alone(["-m", "tests.conformance.measure", slug], root):
        what = f"{slug}: the specimen of {used['entry']}"
        require(not used["error"], f"{what} failed: {used['error']}")
        seconds, megabytes = used["seconds"], used["megabytes"]
        require(seconds < SPECIMEN_SECONDS, f"{what} took {seconds:.2f} s of CPU time")
        require(megabytes < SPECIMEN_MEGABYTES, f"{what} took {megabytes:.0f} MB of memory")
