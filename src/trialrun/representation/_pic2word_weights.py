"""Read and write the mapper's weights: our safetensors, and the authors' checkpoint.

The published checkpoint is a torch file whose entry ``state_dict_img2text`` holds the mapper's
weights under names that begin with ``module.`` (saito2023pic2word, the authors' code).
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trialrun.core.errors import UsageError

FORMAT = "trialrun-pic2word-1"
_ENTRY = "state_dict_img2text"
# torch.load raises nearly anything on a file that is no checkpoint.
_JUNK = (
    SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError,
    IndexError, TypeError, AttributeError, struct.error,
)  # fmt: skip
_LAYER = re.compile(r"layers\.(\d+)\.0\.weight$")


def write_mapper(state: Mapping[str, Tensor], path: str | Path, *, dropout: float) -> None:
    """Write a mapper's state to a safetensors file."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UsageError(f"path must end in .safetensors, got {path.name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(tensors, path, metadata={"format": FORMAT, "dropout": repr(dropout)})


def _from_safetensors(path: Path) -> tuple[dict[str, Tensor], float]:
    with safe_open(path, framework="pt") as file:
        told = file.metadata() or {}
        return {name: file.get_tensor(name) for name in file.keys()}, float(  # noqa: SIM118
            told.get("dropout", 0.1)
        )


def _from_checkpoint(path: Path) -> dict[str, Tensor]:
    held: Any = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(held, Mapping) and _ENTRY in held:
        held = held[_ENTRY]
    if not isinstance(held, Mapping):
        raise UsageError(f"{path} must hold {_ENTRY}, got a {type(held).__name__}")
    return {str(name): value for name, value in held.items()}


def read_mapper(path: str | Path) -> tuple[dict[str, Tensor], float]:
    """Return the mapper's state under its plain names, and its dropout.

    Raises
    ------
    UsageError
        If the file is missing, damaged, or holds no mapper.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path} is not a file: name a mapper's .safetensors or checkpoint")
    dropout = 0.1
    try:
        if path.suffix == ".safetensors":
            state, dropout = _from_safetensors(path)
        else:
            state = _from_checkpoint(path)
    except UsageError:
        raise
    except _JUNK as error:
        first = str(error).partition("\n")[0]
        raise UsageError(f"{path} cannot be read as weights, fetch it anew: {first}") from error
    held = ", ".join(list(state)[:4]) or "nothing"
    state = {name.removeprefix("module."): value for name, value in state.items()}
    layers = 1 + max([0, *(int(part[1]) for part in map(_LAYER.match, state) if part)])
    wanted = [f"layers.{i}.0.{kind}" for i in range(layers) for kind in ("weight", "bias")]
    wanted += [f"fc_out.{kind}" for kind in ("weight", "bias")]
    missing = [name for name in wanted if name not in state]
    if missing:
        raise UsageError(
            f"{path} must hold {_ENTRY} with {', '.join(missing)}, got {held}, ...: "
            "is this a checkpoint of another network?"
        )
    extra = [name for name in state if name not in wanted]
    if extra:
        raise UsageError(f"{path} must hold a mapper and nothing else, got {extra[0]} too")
    _check_shapes(path, state, layers)
    return state, dropout


def _check_shapes(path: Path, state: Mapping[str, Any], layers: int) -> None:
    """Raise unless weights and biases fit one behind the other."""
    width: int | None = None
    for name in (*(f"layers.{i}.0" for i in range(layers)), "fc_out"):
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        fits = (
            all(isinstance(value, Tensor) and value.is_floating_point() for value in (weight, bias))
            and weight.ndim == 2
            and bias.shape == weight.shape[:1]
            and min(weight.shape) > 0
            and width in (None, weight.shape[1])
        )
        if not fits:
            raise UsageError(
                f"{path} must hold matrices that fit one behind the other, got another "
                f"{name}.weight or .bias: is this a checkpoint of another network?"
            )
        width = weight.shape[0]
