"""Measure a dossier's specimens, each in a forked process: ``python -m ...measure SLUG``."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from importlib import import_module
from typing import Any

from tests.conformance.entry_checks import resolve
from tests.conformance.harness import Specimen, run_once
from trialrun.claims.limits import resident_bytes


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(specimen: Specimen) -> dict[str, Any]:
    """Run a specimen twice; time the second, so that lazy imports are left out."""
    before = resident_bytes()
    run_once(specimen, 0)
    began = time.process_time()
    run_once(specimen, 0)
    seconds = time.process_time() - began
    grown = max(0, _peak_bytes() - before)
    return {"entry": specimen.entry, "seconds": seconds, "megabytes": grown / 1e6, "error": ""}


def _in_a_fork(specimen: Specimen) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            used = measure(specimen)
        except Exception as error:  # carried to the parent, which reports it
            words = f"{type(error).__name__}: {error}"
            used = {"entry": specimen.entry, "seconds": 0.0, "megabytes": 0.0, "error": words}
        os.write(writing, json.dumps(used).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    died = {"entry": specimen.entry, "seconds": 0.0, "megabytes": 0.0, "error": "its process died"}
    return json.loads(text) if text else died


def main(slug: str) -> None:
    """Print one JSON list with what each specimen of a dossier used."""
    specimens = import_module(f"trialrun.dossiers.{slug}.specimen").SPECIMENS
    for specimen in specimens:
        resolve(specimen.entry)
    print(json.dumps([_in_a_fork(specimen) for specimen in specimens]))


if __name__ == "__main__":
    main(sys.argv[1])
