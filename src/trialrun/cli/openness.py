"""``trialrun openness``: the Model Openness Framework's class of a release, for people and CI."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from trialrun.core.errors import UsageError

_BELOW = 1


def openness(
    release: str,
    *,
    require: str | None = None,
    trusting: bool = False,
    online: bool = False,
    json: bool = False,
) -> int:
    """Grade a release by the Model Openness Framework and say what is in the way.

    Exit code 0; with --require 1 when the release is below that class. 2 for a manifest that cannot
    be read, 5 for a hub id that cannot be asked.

    Parameters
    ----------
    release
        A manifest (YAML or JSON; docs/openness.md has its form) or a model's hub id.
    require
        Class that the release must reach: I, II or III.
    trusting
        Let components count that nobody inspected.
    online
        Allow the network; a hub id needs it.
    json
        Print JSON for machines.
    """
    from trialrun.pretraining import openness as mof

    least = mof.level_of(require) if require is not None else None
    graded = mof.grade(_manifest(release, online), trusting=trusting)
    if json:
        print(mof.to_json(graded))
    else:
        _print_table(graded)
    if least is not None and graded.level > least:
        wanted = mof.CLASSES[least]
        names = ", ".join(finding.component for finding in graded.in_the_way(least))
        print(f"trialrun: {graded.release} does not reach class {wanted}: {names}", file=sys.stderr)
        return _BELOW
    return 0


def _manifest(release: str, online: bool):  # type: ignore[no-untyped-def]
    from trialrun.pretraining import _hub
    from trialrun.pretraining._manifest import is_there
    from trialrun.pretraining.openness import read_manifest

    is_file = is_there(Path(release)) or release.lower().endswith((".yaml", ".yml", ".json"))
    if is_file:
        return read_manifest(release)
    if not _hub.HUB_ID.fullmatch(release):
        raise UsageError(
            f"{release!r} is neither a manifest nor a hub id: name a YAML or JSON file, or "
            "organisation/name"
        )
    if online:
        os.environ["HF_HUB_OFFLINE"] = "0"
    return _hub.from_hub(release)


def _print_table(graded) -> None:  # type: ignore[no-untyped-def]
    from trialrun.pretraining.openness import CLASSES

    print(f"{graded.release}: {graded.label}")
    if graded.source:
        print(f"read from {graded.source}")
    for level in (3, 2, 1):
        print(f"\nclass {CLASSES[level]}")
        for finding in (f for f in graded.findings if f.level == level):
            mark = "yes" if finding.counts else ("no" if finding.required else "-")
            optional = "" if finding.required else " (optional)"
            what = finding.problem or finding.licence or "not inspected, and given the doubt"
            print(f"  {mark:<4}{finding.name + optional:<34}{what}")
            for place in finding.evidence:
                print(f"      {place}")
            if finding.note and finding.note not in what:
                print(f"      note: {finding.note}")
    for level in (3, 2, 1):
        ways = graded.in_the_way(level)
        if ways and graded.level > level:
            names = ", ".join(f.component for f in ways)
            print(f"\nin the way of class {CLASSES[level]}: {names}")
