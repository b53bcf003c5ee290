"""Checks of blocks: modules and other objects made from settings and called on inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.conformance.harness import BlockSpecimen, NotApplicable, name_of, require
from tests.conformance.values import (
    arrays,
    assert_close,
    cast,
    difference,
    is_floating,
    leaves,
    map_arrays,
)


def _floats(value: Any) -> list[np.ndarray]:
    return [a for a in arrays(value) if a.dtype.kind == "f"]


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [t for item in value for t in _tensors(item)]
    return [t for v in getattr(value, "__dict__", {}).values() for t in _tensors(v)]


def _module(specimen: BlockSpecimen) -> torch.nn.Module:
    made = specimen.make(0)
    if not isinstance(made, torch.nn.Module):
        raise NotApplicable(f"{name_of(specimen)} is not a torch module")
    return made


def keeps_dtype(specimen: BlockSpecimen) -> None:
    """float32 in, float32 out; float64 in, float64 out."""
    inputs = specimen.inputs(0)
    made = specimen.make(0)
    weighted = isinstance(made, torch.nn.Module) and any(True for _ in made.parameters())
    if not weighted and not any(map(is_floating, inputs.values())):
        raise NotApplicable(f"{name_of(specimen)} takes no floating-point numbers")
    for dtype in ("float32", "float64"):
        made = specimen.make(0)
        if isinstance(made, torch.nn.Module):
            made = made.to(getattr(torch, dtype))
        out = _floats(specimen.run(made, map_arrays(lambda _, v, d=dtype: cast(v, d), inputs)))
        if not out:
            raise NotApplicable(f"{name_of(specimen)} returns no floating-point numbers")
        got = {str(a.dtype) for a in out}
        require(got == {dtype}, f"{name_of(specimen)} made {', '.join(sorted(got))} of {dtype}")


def one_is_a_row_of_many(specimen: BlockSpecimen) -> None:
    """A batch of one gives the row that it gives within a batch."""
    if not specimen.batched:
        raise NotApplicable(f"{name_of(specimen)} names no batched inputs")
    inputs = specimen.inputs(0)
    sizes = {len(inputs[name]) for name in specimen.batched}
    require(len(sizes) == 1 and min(sizes) > 1, f"batched inputs need equal sizes > 1, got {sizes}")
    size = sizes.pop()
    whole = dict(leaves(_eval_run(specimen, inputs)))
    rows = {k: v for k, v in whole.items() if isinstance(v, np.ndarray) and v.shape[:1] == (size,)}
    require(rows, f"{name_of(specimen)}: no output has the batch as its first axis")
    for i in (0, size - 1):
        one = {k: v[i : i + 1] if k in specimen.batched else v for k, v in inputs.items()}
        alone = dict(leaves(_eval_run(specimen, one)))
        for key, value in rows.items():
            require(key in alone, f"{name_of(specimen)}: a batch of one lacks the output {key}")
            assert_close(alone[key], value[i : i + 1], f"{name_of(specimen)}: row {i} on its own")


def _eval_run(specimen: BlockSpecimen, inputs: Any) -> Any:
    made = specimen.make(0)
    if isinstance(made, torch.nn.Module):
        made.eval()
    return specimen.run(made, inputs)


def eval_is_deterministic(specimen: BlockSpecimen) -> None:
    """In eval mode the same module gives the same bits twice."""
    made = _module(specimen).eval()
    inputs = specimen.inputs(0)
    found = difference(specimen.run(made, inputs), specimen.run(made, inputs))
    require(not found, f"{name_of(specimen)} in eval mode differs from call to call {found}")


def gradients_are_finite(specimen: BlockSpecimen) -> None:
    """Every parameter, and every floating input where there is none, gets a finite gradient."""
    made, inputs = specimen.make(0), specimen.inputs(0)
    named = list(made.named_parameters()) if isinstance(made, torch.nn.Module) else []
    if not named:
        inputs = map_arrays(
            lambda _, v: v.clone().requires_grad_() if is_floating(v) else v, inputs
        )
        named = [(k, v) for k, v in inputs.items() if is_floating(v)]
    require(named, f"{name_of(specimen)} is differentiable but has nothing to differentiate by")
    outputs = [t for t in _tensors(specimen.run(made, inputs)) if t.requires_grad]
    require(outputs, f"{name_of(specimen)} is differentiable but its outputs have no gradient")
    # A fixed uneven weighting: a plain sum is constant where outputs are normalised.
    loss = sum(
        (t * torch.linspace(0.5, 1.5, t.numel(), dtype=t.dtype).reshape(t.shape)).sum()
        for t in outputs
    )
    loss.backward()
    for name, weight in named:
        if weight.requires_grad:
            require(weight.grad is not None, f"{name_of(specimen)}: {name} gets no gradient")
            finite = bool(torch.isfinite(weight.grad).all())
            require(finite, f"{name_of(specimen)}: the gradient of {name} is not finite")


def state_round_trip(specimen: BlockSpecimen, folder: Path) -> None:
    """A module's state, through safetensors into another instance, gives the same bits."""
    made = _module(specimen).eval()
    state = {k: v.contiguous() for k, v in made.state_dict().items()}
    if not state:
        raise NotApplicable(f"{name_of(specimen)} has no state")
    inputs = specimen.inputs(0)
    save_file(state, folder / "state.safetensors")
    other = specimen.make(1).eval()
    other.load_state_dict(load_file(folder / "state.safetensors"))
    found = difference(specimen.run(made, inputs), specimen.run(other, inputs))
    require(not found, f"{name_of(specimen)} keeps something outside its state {found}")


def compiles(specimen: BlockSpecimen) -> None:
    """Compiled, it gives what it gives uncompiled."""
    made, inputs = _module(specimen).eval(), specimen.inputs(0)
    plain = specimen.run(made, inputs)
    assert_close(
        specimen.run(torch.compile(made, fullgraph=False), inputs),
        plain,
        f"{name_of(specimen)} compiled",
    )
