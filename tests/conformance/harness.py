"""What every check is made of: a function that returns, or says in one sentence what is wrong.

Checks are plain functions of a specimen, a card or a folder. The plan gives each of them a name and
hands it to one thin parametrised test, so that the checks can themselves be put to the test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trialrun.dossiers.specimen import (
    BlockSpecimen,
    EstimatorSpecimen,
    FunctionSpecimen,
    PatchSpecimen,
    Specimen,
)

ROOT = Path(__file__).resolve().parents[2]


class Broken(AssertionError):
    """A method does not do what its card promises."""


class Unwritten(AssertionError):
    """A part of a dossier is not there yet: listed for a draft, a failure for anything else."""


class NotApplicable(Exception):
    """A check finds at run time that it has nothing to look at; it does not count as run."""


@dataclass(frozen=True)
class Check:
    """One check of one method. ``part`` is an entry, a claim or ``dossier``."""

    slug: str
    part: str
    name: str
    run: Callable[[Path], None]
    slow: bool = False

    @property
    def id(self) -> str:
        """Return the name that waivers and test ids use."""
        return f"{self.slug}/{self.part}/{self.name}"


def require(condition: Any, message: str) -> None:
    """Raise `Broken` with the message unless the condition is true."""
    __tracebackhide__ = True
    if not condition:
        raise Broken(message)


def written(condition: Any, part: str) -> None:
    """Raise `Unwritten` naming the part unless the condition is true."""
    __tracebackhide__ = True
    if not condition:
        raise Unwritten(part)


def name_of(specimen: Specimen) -> str:
    """Return the entry's name without its module."""
    return specimen.entry.rpartition(":")[2]


def subject(specimen: Specimen, seed: int) -> tuple[Any, AbstractContextManager[Any]]:
    """Make what the specimen runs on, and the context in which it may be run."""
    if isinstance(specimen, PatchSpecimen):
        host = specimen.host(seed)
        return host, specimen.make().attached(host)
    made = None if isinstance(specimen, FunctionSpecimen) else specimen.make(seed)
    return made, nullcontext()


def run_on(specimen: Specimen, made: Any, inputs: Mapping[str, Any]) -> Any:
    """Run a specimen on what `subject` made; an estimator is fitted first."""
    if isinstance(specimen, FunctionSpecimen):
        return specimen.run(inputs)
    if isinstance(specimen, EstimatorSpecimen):
        made = made.fit(**inputs)
    return specimen.run(made, inputs)


def run_once(specimen: Specimen, seed: int, inputs: Mapping[str, Any] | None = None) -> Any:
    """Run a freshly made specimen once, on its own inputs unless others are given."""
    made, context = subject(specimen, seed)
    with context:
        return run_on(specimen, made, specimen.inputs(seed) if inputs is None else inputs)


__all__ = [
    "ROOT",
    "BlockSpecimen",
    "Broken",
    "Check",
    "EstimatorSpecimen",
    "FunctionSpecimen",
    "NotApplicable",
    "PatchSpecimen",
    "Specimen",
    "Unwritten",
    "name_of",
    "require",
    "run_on",
    "run_once",
    "subject",
    "written",
]
