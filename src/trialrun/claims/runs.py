"""Run folders: one per run, holding its manifest and the units that have finished.

A folder is named by time, budget and key. The key covers everything that may change a unit's
number, so a run is resumed only by the same code on the same material.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trialrun.claims.contract import FILE_OPTIONS, On
from trialrun.claims.files import read_json, write_json


def digest_of(path: str) -> str:
    """Return 16 hexadecimal digits of what a file, or a folder's files, hold; else of the name.

    A name may end in ``@LENGTH``, which counts as part of it.
    """
    plain, _, told = path.rpartition("@")
    target = Path(plain if plain and told.isdigit() and not Path(path).exists() else path)
    digest = hashlib.sha256(told.encode() if target != Path(path) else b"")
    if not target.exists():
        digest.update(path.encode())
    inside = [target] if target.is_file() else target.rglob("*")
    for file in sorted(found for found in inside if found.is_file()):
        with file.open("rb") as handle:
            content = hashlib.file_digest(handle, "sha256").hexdigest()
        digest.update(f"{file.relative_to(target)} {content}\n".encode())
    return digest.hexdigest()[:16]


def describe_on(on: On) -> dict[str, Any]:
    """Return what a record says about the user's material: its name and content, not its place."""
    files = {k: digest_of(v) for k, v in on.options.items() if k in FILE_OPTIONS}
    return {
        "kind": on.kind,
        "name": Path(on.path).name,
        "sha256": digest_of(on.path),
        "options": {k: Path(v).name if k in files else v for k, v in sorted(on.options.items())},
        "option_files": files,
    }


@dataclass(frozen=True)
class Run:
    """One run's folder."""

    folder: Path
    resumed: bool

    def finish(self) -> None:
        """Mark the run as complete, so that it is not resumed again."""
        manifest = read_json(self.folder / "manifest.json")
        write_json(self.folder / "manifest.json", {**manifest, "finished": True})


def run_key(identity: dict[str, Any]) -> str:
    """Return the key of a run from everything that may change its numbers."""
    text = "\n".join(f"{k}={identity[k]!r}" for k in sorted(identity))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _unfinished(root: Path, key: str) -> Path | None:
    for manifest in sorted(root.glob("*/manifest.json"), reverse=True):
        said = read_json(manifest)
        if said.get("key") == key and not said.get("finished"):
            return manifest.parent
    return None


def open_run(out: Path, slug: str, identity: dict[str, Any], *, resume: bool) -> Run:
    """Make a run folder, or find the latest unfinished one of the same identity.

    Raises
    ------
    OSError
        If the folder cannot be made.
    """
    root, key = out / slug, run_key(identity)
    found = _unfinished(root, key) if resume else None
    if found is not None:
        return Run(found, True)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    folder = root / f"{stamp}-{identity['budget']}-{key[:6]}"
    (folder / "units").mkdir(parents=True)
    write_json(folder / "manifest.json", {**identity, "key": key, "finished": False})
    return Run(folder, False)
