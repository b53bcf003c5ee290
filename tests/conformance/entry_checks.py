"""Checks of every kind of entry, made from its specimen."""

from __future__ import annotations

import copy
import importlib
import re
from pathlib import Path
from typing import Any

from tests.conformance.harness import (
    EstimatorSpecimen,
    PatchSpecimen,
    Specimen,
    name_of,
    require,
    run_on,
    run_once,
    subject,
)
from tests.conformance.values import arrays, assert_close, difference, leaves
from tests.conformance.watch import annotations_unchecked, global_states_watched, no_side_effects
from trialrun.catalogue import Card

SEEDS = (0, 1, 2, 3, 12345)
_SHORTEST_MESSAGE = 20
_SHORTEST_PATTERN = 3
_KEPT = (".safetensors", ".json", ".jsonl", ".txt", ".toml", ".md", ".model", ".jinja")


def resolve(entry: str) -> Any:
    """Import an entry ``package.module:Name``."""
    module, _, name = entry.partition(":")
    require(module and name.isidentifier(), f"entry must read module:Name, got {entry!r}")
    return getattr(importlib.import_module(module), name)


def entry_lives_in_its_family(card: Card, entry: str) -> None:
    """The entry imports, and it is written in the family that the card names."""
    home = f"trialrun.{card.family}."
    require(entry.startswith(home), f"{entry} must lie under {home}")
    thing = resolve(entry)
    require(callable(thing), f"{entry} must be a class or a function, got {thing!r}")
    written_in = getattr(thing, "__module__", "")
    require(written_in.startswith(home), f"{entry} comes from {written_in}, expected {home}*")


def same_seed_same_bits(specimen: Specimen) -> None:
    """The same seed gives the same bits whatever the global generators hold, and leaves them."""
    outputs = []
    for global_seed in (11, 22):
        # A host is someone else's model; it may draw as it likes as long as it comes out the same.
        host = subject(specimen, 0) if isinstance(specimen, PatchSpecimen) else None
        with global_states_watched(name_of(specimen), global_seed):
            made, context = host or subject(specimen, 0)
            with context:
                output = run_on(specimen, made, specimen.inputs(0))
        outputs.append(copy.deepcopy(list(leaves(output))))
    require(arrays(outputs[0]), f"{name_of(specimen)} returned no array or tensor")
    found = difference(*outputs)
    require(not found, f"{name_of(specimen)} gave different output for the same seed {found}")


def inputs_are_left_alone(specimen: Specimen) -> None:
    """Inputs are bit for bit the same after the call."""
    inputs = specimen.inputs(0)
    require(inputs, f"{name_of(specimen)}: inputs(seed) must return at least one input")
    before = copy.deepcopy(inputs)
    run_once(specimen, 0, inputs)
    found = difference(before, inputs)
    require(not found, f"{name_of(specimen)} changed its inputs {found}")


def no_file_and_no_network(specimen: Specimen) -> None:
    """Running writes no file, starts no process and opens no connection."""
    run_once(specimen, 0)  # lazy imports are over after this
    with no_side_effects(name_of(specimen)):
        run_once(specimen, 0)


def bad_call_is_refused(specimen: Specimen, index: int) -> None:
    """One bad call raises ``ValueError`` with one clear sentence."""
    pattern, call = specimen.bad[index]
    name = f"{name_of(specimen)}, bad call {index} ({pattern!r})"
    require(len(pattern) >= _SHORTEST_PATTERN, f"{name}: the pattern matches nearly anything")
    try:
        with annotations_unchecked():
            call()
    except ValueError as error:
        message = str(error).partition("\n")[0]
    else:
        require(False, f"{name} raised nothing")
    require(re.search(pattern, message), f"{name} said something else: {message!r}")
    require(len(message) >= _SHORTEST_MESSAGE, f"{name} said too little: {message!r}")


def bad_calls_are_given(specimen: Specimen) -> None:
    """The specimen shows at least one call that is refused."""
    require(specimen.bad, f"{name_of(specimen)} must list at least one bad call")


def invariance_holds(specimen: Any, index: int) -> None:
    """A declared invariance holds at several seeds, and not because both sides are constant."""
    words, pair = specimen.invariances[index]
    require(len(words) >= 3, f"{name_of(specimen)}: invariance {index} needs a name")
    for seed in SEEDS:
        left, right = pair(seed)
        assert_close(left, right, f"{name_of(specimen)}: {words}, seed {seed}")


def holds_no_pickle(folder: Path, what: str) -> None:
    """Every saved file is of a kind that can be read without running code."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    require(files, f"{what} saved nothing")
    for file in files:
        require(file.suffix in _KEPT, f"{what} saved {file.name}: expected {', '.join(_KEPT)}")
        head = file.read_bytes()[:2]
        pickled = head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05"
        require(not pickled and head != b"PK", f"{what} saved a pickle as {file.name}")


def round_trip(specimen: Any, folder: Path) -> None:
    """What was saved, loaded again, gives the same bits, and the folder holds no pickle."""
    inputs = specimen.inputs(0)
    made = specimen.make(0)
    if isinstance(specimen, EstimatorSpecimen):
        made = made.fit(**inputs)
    before = specimen.run(made, inputs)
    target = folder / "saved"
    target.mkdir()
    with no_side_effects(f"saving {name_of(specimen)}", target):
        specimen.save(made, target)
    holds_no_pickle(target, name_of(specimen))
    with no_side_effects(f"loading {name_of(specimen)}"):
        loaded = specimen.load(target)
    require(loaded is not made, f"{name_of(specimen)}: load returned the very object it saved")
    found = difference(before, specimen.run(loaded, inputs))
    require(not found, f"{name_of(specimen)} gives different output once loaded {found}")
