"""Checks of patches: an identity setting, and no trace once they are taken off."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.conformance.entry_checks import holds_no_pickle
from tests.conformance.harness import PatchSpecimen, name_of, require
from tests.conformance.values import arrays, difference
from tests.conformance.watch import no_side_effects


class _Interrupted(Exception):
    """Thrown in the body of an attached patch."""


def traces(model: torch.nn.Module) -> dict[str, Any]:
    """Describe everything that a patch could leave behind on a model, except its weights."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        own = vars(module)
        hooks = {k: len(v) for k, v in own.items() if "_hooks" in k and hasattr(v, "__len__")}
        swapped = {k: id(v) for k, v in own.items() if inspect.isroutine(v)}
        keys = sorted(k for k in own if not k.startswith("_compiled"))
        found[name or "model"] = (type(module), keys, hooks, swapped)
    for name in ("config", "generation_config"):
        settings = getattr(model, name, None)
        if hasattr(settings, "to_dict"):
            kept = {k: v for k, v in vars(settings).items() if not callable(v)}
            found[name] = copy.deepcopy((settings.to_dict(), sorted(kept), type(settings)))
    return found


def _changed(before: dict[str, Any], after: dict[str, Any]) -> str:
    places = [k for k in {**before, **after} if before.get(k) != after.get(k)]
    return ", ".join(places[:3])


def _restored(specimen: PatchSpecimen, use: Callable[[Any], None], when: str) -> None:
    model, inputs = specimen.host(0), specimen.inputs(0)
    before, output = traces(model), specimen.run(model, inputs)
    weights = copy.deepcopy(model.state_dict())
    use(model)
    left = _changed(before, traces(model))
    require(not left, f"{name_of(specimen)} leaves a trace {when}: {left}")
    found = difference(weights, model.state_dict())
    require(not found, f"{name_of(specimen)} leaves other weights {when} {found}")
    found = difference(output, specimen.run(model, inputs))
    require(not found, f"{name_of(specimen)} leaves other output {when} {found}")


def identity_changes_nothing(specimen: PatchSpecimen) -> None:
    """The identity setting leaves the host's output bit for bit as it was."""
    model, inputs = specimen.host(0), specimen.inputs(0)
    before = specimen.run(model, inputs)
    with specimen.identity().attached(model):
        inside = specimen.run(model, inputs)
    found = difference(before, inside)
    require(not found, f"{name_of(specimen)}: the identity setting changes output {found}")


def attaching_changes_something(specimen: PatchSpecimen) -> None:
    """The specimen's own setting does change the output, so that the other checks see it."""
    model, inputs = specimen.host(0), specimen.inputs(0)
    before = specimen.run(model, inputs)
    require(arrays(before), f"{name_of(specimen)}: run returned no tensor")
    with specimen.make().attached(model) as given:
        inside = specimen.run(model, inputs)
    require(given is model, f"{name_of(specimen)}.attached must hand back the model")
    require(difference(before, inside), f"{name_of(specimen)} does nothing on its specimen")


def leaving_restores(specimen: PatchSpecimen) -> None:
    """Leaving the context restores the host bit for bit."""

    def use(model: Any) -> None:
        with specimen.make().attached(model):
            specimen.run(model, specimen.inputs(0))

    _restored(specimen, use, "on leaving")


def detaching_restores(specimen: PatchSpecimen) -> None:
    """Attach and detach restore the host bit for bit, twice over."""

    def use(model: Any) -> None:
        for _ in range(2):
            patch = specimen.make()
            patch.attach(model)
            specimen.run(model, specimen.inputs(0))
            patch.detach(model)

    _restored(specimen, use, "after detach")


def exception_restores(specimen: PatchSpecimen) -> None:
    """An exception in the body passes through and leaves the host restored."""

    def use(model: Any) -> None:
        try:
            with specimen.make().attached(model):
                raise _Interrupted
        except _Interrupted:
            return
        require(False, f"{name_of(specimen)} swallowed an exception of the body")

    _restored(specimen, use, "after an exception")


def _refuses(call: Callable[[], Any], what: str) -> None:
    try:
        call()
    except (ValueError, RuntimeError) as error:
        require(len(str(error)) >= 20, f"{what} said too little: {error}")
    else:
        require(False, f"{what} raised nothing")


def attaching_twice_is_refused(specimen: PatchSpecimen) -> None:
    """A second attach raises, by the same patch or another, and the first can still be undone."""

    def use(model: Any) -> None:
        patch = specimen.make()
        patch.attach(model)
        _refuses(lambda: patch.attach(model), f"attaching {name_of(specimen)} twice")
        _refuses(lambda: specimen.make().attach(model), f"attaching a second {name_of(specimen)}")
        patch.detach(model)

    _restored(specimen, use, "after a refused attach")


def detaching_unattached_is_refused(specimen: PatchSpecimen) -> None:
    """Detach without attach raises."""
    model = specimen.host(0)
    _refuses(lambda: specimen.make().detach(model), f"detaching an unattached {name_of(specimen)}")


def other_hosts_are_untouched(specimen: PatchSpecimen) -> None:
    """While one model is patched, another gives what it gave."""
    patched, other, inputs = specimen.host(0), specimen.host(0), specimen.inputs(0)
    before = specimen.run(other, inputs)
    with specimen.make().attached(patched):
        found = difference(before, specimen.run(other, inputs))
    require(not found, f"{name_of(specimen)} reaches a model it was not attached to {found}")


def weights_stay_named(specimen: PatchSpecimen) -> None:
    """While attached, the weights have the same names and values, so that saving works."""
    model = specimen.host(0)
    before = copy.deepcopy(model.state_dict())
    with specimen.make().attached(model):
        found = difference(dict(before), dict(model.state_dict()))
    require(not found, f"{name_of(specimen)} changes the weights while attached {found}")


def generate_works(specimen: PatchSpecimen) -> None:
    """Generation runs while attached, gives the same ids twice, and is as before afterwards."""
    model, inputs = specimen.host(0), specimen.inputs(0)
    before = specimen.generate(model, inputs)
    with specimen.make().attached(model):
        first, again = specimen.generate(model, inputs), specimen.generate(model, inputs)
    ids = arrays(first)
    require(ids and ids[0].dtype.kind in "iu", f"{name_of(specimen)}: generate returned no ids")
    found = difference(first, again)
    require(not found, f"{name_of(specimen)} generates something else the second time {found}")
    found = difference(before, specimen.generate(model, inputs))
    require(not found, f"{name_of(specimen)} changes generation after it has left {found}")


def reload_gives_the_same(specimen: PatchSpecimen, folder: Path) -> None:
    """A patched model, saved and loaded anew, gives the same bits from a folder without pickles."""
    model, inputs = specimen.host(0), specimen.inputs(0)
    patch = specimen.make()
    patch.attach(model)
    before = specimen.run(model, inputs)
    target = folder / "saved"
    target.mkdir()
    with no_side_effects(f"saving and loading {name_of(specimen)}", target):
        again = specimen.reload(model, target)
    holds_no_pickle(target, name_of(specimen))
    require(again is not model, f"{name_of(specimen)}: reload returned the model it was given")
    found = difference(before, specimen.run(again, inputs))
    require(not found, f"{name_of(specimen)} gives different output once reloaded {found}")


def keeps_its_settings(specimen: PatchSpecimen) -> None:
    """The constructor keeps every setting under its own name, and touches no model."""
    made = specimen.make()
    for name in inspect.signature(type(made)).parameters:
        require(hasattr(made, name), f"{name_of(specimen)} does not keep its setting {name!r}")
