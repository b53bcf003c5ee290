"""Pictures of the user's that are on both sides: in source and target, or in two classes.

A picture is known by its pixels as they are read, so a renamed or re-saved copy without loss counts
as well. Single copies are counted and named; a class that is another's copy is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

from trialrun.core.errors import UsageError
from trialrun.material.class_folders import ClassFolders

_NAMED = 3


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _marks(found: ClassFolders) -> list[bytes]:
    return [blake2b(image.tobytes(), digest_size=16).digest() for image in found.images]


def _classes_of(found: ClassFolders) -> Mapping[bytes, set[int]]:
    """Return the classes that each picture is in."""
    places: dict[bytes, set[int]] = {}
    for mark, label in zip(_marks(found), found.labels.tolist()):
        places.setdefault(mark, set()).add(label)
    return places


def copies_said(source: ClassFolders, target: ClassFolders | None) -> list[str]:
    """Return sentences about pictures on both sides, and about classes of one name."""
    said = []
    for side, part in (("source", source), ("target", target)):
        if part is None:
            continue
        places = _classes_of(part)
        twice = [file for mark, file in zip(_marks(part), part.files) if len(places[mark]) > 1]
        if twice:
            where = "" if target is None else f" of {side}"
            said.append(f"{len(twice)} pictures{where} are in two or more classes: {_some(twice)}")
    if target is None:
        return said
    known = set(_marks(source))
    both = [file for mark, file in zip(_marks(target), target.files) if mark in known]
    if both:
        said.append(
            f"{len(both)} of {len(target.files)} pictures of target are in source as well, so they "
            f"were seen in training: {_some(both)}"
        )
    names = {name.casefold() for name in source.classes}
    same = [name for name in target.classes if name.casefold() in names]
    if same:
        said.append(
            f"{len(same)} of {len(target.classes)} classes of target have the name of a class of "
            f"source, so they are not novel classes: {_some(same)}"
        )
    return said


def check_copies(source: ClassFolders, target: ClassFolders | None) -> None:
    """Refuse a class to be tested on whose every picture is in a class to be trained on.

    Of one folder of classes any may be either, so there no class may be all in another.

    Raises
    ------
    UsageError
        Naming the two classes.
    """
    tested = source if target is None else target
    places, marks = _classes_of(source), _marks(tested)
    for label, name in enumerate(tested.classes):
        # The classes that every picture of this one is in.
        own = [places.get(m, set()) for m, at in zip(marks, tested.labels.tolist()) if at == label]
        shared = set.intersection(*own) - ({label} if target is None else set())
        if shared:
            other = source.classes[min(shared)]
            where, there = ("", "") if target is None else (" of target", " of source")
            raise UsageError(
                f"the class {name}{where} must hold pictures of its own, but all {len(own)} of "
                f"them are in the class {other}{there} as well: take one of the two away"
            )
