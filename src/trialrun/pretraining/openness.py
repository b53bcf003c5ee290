"""Grade a model's release by the Model Openness Framework (white2024mof).

The framework lists 17 components in three classes and asks of each a licence that is open for what
it is: code, data or a document. A class is granted when all components that it and the classes
below it require are there, openly licensed. Components, their classes and what kind each is were
read in the settings of the framework's own web tool; the paper itself is from memory. Two notes.
The tool's settings have come to call supporting libraries optional, where its test files count
them in; they are required here. The tool's conditional pass for class III (final parameters under
an open-source licence and nothing else) is not given here.

Ours, not the framework's: evidence. A component counts only if the manifest says where it can be
seen, and "not inspected" is kept apart from "missing". The grade says what was shown, not what a
publisher meant.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trialrun.core.errors import UsageError
from trialrun.core.extras import need
from trialrun.pretraining._licences import CODE, DATA, DOCUMENT, NO_LICENCE, open_for

CLASSES = {1: "I", 2: "II", 3: "III"}
CLASS_NAMES = {1: "Open Science", 2: "Open Tooling", 3: "Open Model"}
UNGRADED = 4
"""The number of a release that reaches no class: one above class III, the lowest."""

STATUSES = ("present", "missing", "not inspected")


@dataclass(frozen=True)
class Component:
    """One of the framework's 17: its class, and the uses of which a licence must allow one."""

    id: str
    name: str
    level: int
    kinds: tuple[str, ...]
    required: bool = True


COMPONENTS = {
    component.id: component
    for component in (
        Component("model_architecture", "Model architecture", 3, (CODE,)),
        Component("final_parameters", "Final model parameters", 3, (DATA, CODE)),
        Component("technical_report", "Technical report", 3, (DOCUMENT, CODE)),
        Component("evaluation_results", "Evaluation results", 3, (DOCUMENT, CODE)),
        Component("model_card", "Model card", 3, (DOCUMENT, CODE)),
        Component("data_card", "Data card", 3, (DOCUMENT, CODE)),
        Component("sample_outputs", "Sample outputs", 3, (DATA, CODE, DOCUMENT), required=False),
        Component("training_code", "Training code", 2, (CODE,)),
        Component("inference_code", "Inference code", 2, (CODE,)),
        Component("evaluation_code", "Evaluation code", 2, (CODE,)),
        Component("evaluation_data", "Evaluation data", 2, (DATA,)),
        Component("supporting_libraries", "Supporting libraries and tools", 2, (CODE,)),
        Component("research_paper", "Research paper", 1, (DOCUMENT,)),
        Component("datasets", "Datasets", 1, (DATA, CODE, DOCUMENT)),
        Component("preprocessing_code", "Data preprocessing code", 1, (CODE,)),
        Component("intermediate_parameters", "Intermediate parameters", 1, (DATA, CODE)),
        Component("model_metadata", "Model metadata", 1, (DATA,), required=False),
    )
}
_COMPONENT_KEYS = ("licence", "license", "evidence", "status", "note")
_RELEASE_KEYS = ("release", "version", "source", "components")


@dataclass(frozen=True)
class Shown:
    """What a manifest shows of one component."""

    status: str = "missing"
    licence: str = ""
    evidence: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Manifest:
    """What is said to be released: a name, and what is shown of each component."""

    release: str
    components: Mapping[str, Shown]
    source: str = ""
    version: str = ""


@dataclass(frozen=True)
class Finding:
    """How one component fared. ``problem`` is empty where it counts."""

    component: str
    name: str
    level: int
    required: bool
    status: str
    licence: str
    evidence: tuple[str, ...]
    problem: str
    note: str = ""

    @property
    def counts(self) -> bool:
        """Return whether the component counts towards its class."""
        return not self.problem


@dataclass(frozen=True)
class Grade:
    """The class of a release and everything it rests on.

    ``level`` is 1, 2 or 3, or `UNGRADED`; ``findings`` has all 17 components.
    """

    release: str
    level: int
    findings: tuple[Finding, ...] = field(default_factory=tuple)
    trusting: bool = False
    source: str = ""

    @property
    def label(self) -> str:
        """Return the class in words."""
        if self.level == UNGRADED:
            return "no class"
        return f"class {CLASSES[self.level]} ({CLASS_NAMES[self.level]})"

    def in_the_way(self, level: int) -> list[Finding]:
        """Return the required components that keep the release from class ``level``."""
        return [f for f in self.findings if f.required and f.level >= level and not f.counts]

    def to_dict(self) -> dict[str, Any]:
        """Return the grade as plain data, for JSON."""
        reached = CLASSES.get(self.level)
        ways = {CLASSES[n]: [f.component for f in self.in_the_way(n)] for n in (3, 2, 1)}
        return {
            "release": self.release,
            "source": self.source,
            "class": reached,
            "class_name": CLASS_NAMES.get(self.level),
            "trusting": self.trusting,
            "in_the_way": ways,
            "components": [asdict(finding) for finding in self.findings],
        }


def level_of(name: str) -> int:
    """Return the number of a class named I, II or III (or 1, 2, 3).

    Raises
    ------
    UsageError
        If there is no such class.

    Examples
    --------
    >>> level_of("II"), level_of("3")
    (2, 3)
    """
    plain = str(name).strip().upper()
    for level, roman in CLASSES.items():
        if plain in (roman, str(level)):
            return level
    raise UsageError(f"a class must be I, II or III, got {name!r}")


def _strings(where: str, value: Any) -> tuple[str, ...]:
    items = value if isinstance(value, list) else [value]
    if not items or not all(isinstance(item, str) and item.strip() for item in items):
        raise UsageError(f"{where} must be a sentence, an address or a list of them, got {value!r}")
    return tuple(item.strip() for item in items)


def _shown(where: str, said: Any) -> Shown:
    if said is None:
        return Shown()
    if not isinstance(said, Mapping):
        keys = ", ".join(_COMPONENT_KEYS)
        raise UsageError(f"{where} must be a table with the keys {keys}, got {said!r}")
    for key in said:
        if key not in _COMPONENT_KEYS:
            keys = ", ".join(_COMPONENT_KEYS)
            raise UsageError(f"{where} has the unknown key {key!r}: it takes {keys}")
    if "licence" in said and "license" in said:
        raise UsageError(f"{where} has both licence and license: keep one")
    # YAML reads an unquoted None, no or 2.0 as something else than text.
    licence = said.get("licence", said.get("license", ""))
    if not isinstance(licence, str):
        raise UsageError(f"{where}: the licence must be text, got {licence!r}: put it in quotes")
    if licence:
        open_for(licence, where=where)
    status = said.get("status", "present")
    if status not in STATUSES:
        raise UsageError(f"{where}: status must be one of {', '.join(STATUSES)}, got {status!r}")
    evidence = _strings(f"{where}.evidence", said["evidence"]) if "evidence" in said else ()
    return Shown(status, licence.strip(), evidence, str(said.get("note", "")))


def parse_manifest(table: Any, *, where: str = "manifest") -> Manifest:
    """Check a manifest that was read from YAML or JSON.

    Parameters
    ----------
    table : mapping
        ``release`` (a name) and ``components``: for each component's id a table of ``licence`` (an
        SPDX expression), ``evidence`` (addresses, paths or sentences), ``status`` (present,
        missing, not inspected; present unless said) and ``note``. Components left out are missing.
    where : str
        Name for messages.

    Returns
    -------
    Manifest

    Raises
    ------
    UsageError
        In one sentence, naming the key, what was expected and what came.

    Examples
    --------
    >>> said = {"licence": "MIT", "evidence": "train.py"}
    >>> parse_manifest({"release": "x", "components": {"training_code": said}}).release
    'x'
    """
    if not isinstance(table, Mapping):
        kind = type(table).__name__
        raise UsageError(f"{where} must be a table with release and components, got {kind}")
    for key in table:
        if key not in _RELEASE_KEYS:
            keys = ", ".join(_RELEASE_KEYS)
            raise UsageError(f"{where} has the unknown key {key!r}: it takes {keys}")
    release, components = table.get("release"), table.get("components")
    if not isinstance(release, str) or not release.strip():
        raise UsageError(f"{where}: release must be a name, got {release!r}")
    if not isinstance(components, Mapping) or not components:
        raise UsageError(
            f"{where}: components must be a table with at least one of {', '.join(COMPONENTS)}, "
            f"got {components!r:.60}"
        )
    for name in components:
        if name not in COMPONENTS:
            raise UsageError(
                f"{where}: there is no component {name!r}: the framework has "
                f"{', '.join(COMPONENTS)}"
            )
    shown = {name: _shown(f"{where}: {name}", said) for name, said in components.items()}
    source, version = str(table.get("source", where)), str(table.get("version", ""))
    return Manifest(release.strip(), shown, source, version)


def read_manifest(path: str | Path) -> Manifest:
    """Read a manifest from a YAML or JSON file.

    Parameters
    ----------
    path : str or Path
        Evidence that looks like a relative path (it begins with ``./``) is looked for beside the
        file; a path that leads nowhere makes its component missing.

    Returns
    -------
    Manifest

    Raises
    ------
    UsageError
        If there is no such file, it is not YAML, or it is no manifest.
    MissingExtra
        If PyYAML is not installed.

    Examples
    --------
    >>> import tempfile
    >>> text = "release: x\\ncomponents: {model_card: {licence: MIT, evidence: README.md}}"
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "release.yaml"
    ...     _ = path.write_text(text)
    ...     read_manifest(path).components["model_card"].licence
    'MIT'
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path} is not a file: name a manifest (YAML or JSON) or a hub id")
    yaml = need("yaml", extra="pretraining")
    try:
        table = yaml.load(path.read_text(encoding="utf-8"), Loader=_loader(yaml))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text ({error.reason})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        spot = f", line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or str(error)
        raise UsageError(f"{path}{spot} is not valid YAML: {what}") from error
    manifest = parse_manifest(table, where=path.name)
    return Manifest(
        manifest.release,
        {name: _looked_up(shown, path.parent) for name, shown in manifest.components.items()},
        str(table.get("source", path)),
        manifest.version,
    )


def _loader(yaml: Any) -> Any:
    """Return a safe loader that refuses a key given twice, where YAML would keep the last."""

    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands there twice", key.start_mark
                )
            seen.add(key.value)
        return yaml.SafeLoader.construct_mapping(loader, node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    return Loader


def _looked_up(shown: Shown, folder: Path) -> Shown:
    absent = [e for e in shown.evidence if e.startswith("./") and not (folder / e).exists()]
    if not absent or shown.status != "present":
        return shown
    return Shown("missing", shown.licence, shown.evidence, f"no such file: {', '.join(absent)}")


def _problem(component: Component, shown: Shown, trusting: bool) -> str:
    if shown.status == "missing":
        return f"missing{f' ({shown.note})' if shown.note else ''}"
    if shown.status == "not inspected" and not trusting:
        return "not inspected"
    if shown.status == "present" and not shown.evidence:
        return "no evidence is given"
    if not shown.licence and shown.status == "not inspected":
        return ""  # the benefit of the doubt covers the licence too
    if not shown.licence or shown.licence.upper() == NO_LICENCE:
        return "no licence is given"
    allowed = open_for(shown.licence, where=component.id)
    if not allowed & set(component.kinds):
        return f"{shown.licence} is no open licence for {' or '.join(component.kinds)}"
    return ""


def grade(manifest: Manifest | Mapping[str, Any], *, trusting: bool = False) -> Grade:
    """Grade a release (white2024mof).

    Parameters
    ----------
    manifest : Manifest or mapping
        From `read_manifest` or `from_hub`, or a table for `parse_manifest`.
    trusting : bool
        Give components that nobody inspected the benefit of the doubt: they count, unless a
        licence is named that is not open.

    Returns
    -------
    Grade

    Raises
    ------
    UsageError
        If a mapping is no manifest.

    Examples
    --------
    >>> card = {"licence": "CC-BY-4.0", "evidence": "README.md"}
    >>> found = grade({"release": "x", "components": {"model_card": card}})
    >>> found.label, [finding.component for finding in found.in_the_way(3)][:2]
    ('no class', ['model_architecture', 'final_parameters'])
    """
    if not isinstance(manifest, Manifest):
        manifest = parse_manifest(manifest)
    findings = []
    for component in COMPONENTS.values():
        shown = manifest.components.get(component.id, Shown())
        findings.append(
            Finding(
                component=component.id,
                name=component.name,
                level=component.level,
                required=component.required,
                status=shown.status,
                licence=shown.licence,
                evidence=shown.evidence,
                problem=_problem(component, shown, trusting),
                note=shown.note,
            )
        )
    graded = Grade(manifest.release, UNGRADED, tuple(findings), trusting, manifest.source)
    level = min((n for n in CLASSES if not graded.in_the_way(n)), default=UNGRADED)
    return Grade(manifest.release, level, tuple(findings), trusting, manifest.source)


def to_json(graded: Grade) -> str:
    """Return a grade as JSON text, for machines."""
    return json.dumps(graded.to_dict(), ensure_ascii=False, indent=2)
