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
from typing import Any

from trialrun.core.errors import UsageError
from trialrun.pretraining._licences import NO_LICENCE, open_for
from trialrun.pretraining._manifest import (
    COMPONENTS,
    Component,
    Manifest,
    Shown,
    parse_manifest,
    read_manifest,
)

__all__ = [
    "CLASSES",
    "CLASS_NAMES",
    "COMPONENTS",
    "UNGRADED",
    "Component",
    "Finding",
    "Grade",
    "Manifest",
    "Shown",
    "grade",
    "level_of",
    "parse_manifest",
    "read_manifest",
    "to_json",
]

CLASSES = {1: "I", 2: "II", 3: "III"}
CLASS_NAMES = {1: "Open Science", 2: "Open Tooling", 3: "Open Model"}
UNGRADED = 4
"""The number of a release that reaches no class: one above class III, the lowest."""


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
