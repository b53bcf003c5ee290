"""Checkpoints that a run resumes from bit for bit: safetensors and JSON, never pickle.

``step-00000100/`` holds a transformers folder (weights and config, which ``from_pretrained``
reads), the optimiser's moments by parameter name, and where the run stands. It is written beside
and moved into place, so that a killed run leaves whole checkpoints only. Every process holds the
whole model (DDP), so the first one writes, and any number of processes can read.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trialrun.pretraining import _stack  # noqa: F401  isort: skip
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from trialrun.core.errors import UsageError

_STATE = "state.json"
_MOMENTS = "optimizer.safetensors"
_PREFIX = "step-"
_KINDS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Parameters
    ----------
    step : int
        Steps done.
    taken : mapping of source to int
        Sequences each source of the phase at hand has given.
    run : str
        Digest of all that fixes the run, see `digest`.
    """

    step: int = 0
    taken: Mapping[str, int] = field(default_factory=dict)
    run: str = ""


def digest(*parts: Any) -> str:
    """Return a short digest of settings, the same on every machine."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def latest(folder: Path) -> Path | None:
    """Return the newest whole checkpoint under ``folder``, or None."""
    found = sorted(p for p in folder.glob(f"{_PREFIX}*") if (p / _STATE).is_file())
    return found[-1] if found else None


def read_progress(checkpoint: Path, *, run: str) -> Progress:
    """Read where a checkpoint's run stands.

    Raises
    ------
    UsageError
        If it belongs to a run with other settings, or cannot be read.
    """
    try:
        progress = Progress(**json.loads((checkpoint / _STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"{checkpoint / _STATE} cannot be read ({error}): remove that checkpoint to go on from "
            f"the one before"
        ) from error
    if progress.run != run:
        raise UsageError(
            f"{checkpoint} comes from a run with other phases, sources, seed or optimiser, or of "
            f"another model: give the recipe it began with, or another folder to write to"
        )
    return progress


def save_checkpoint(
    accelerator: Accelerator,
    model: Any,
    optimiser: Any,
    folder: Path,
    progress: Progress,
    *,
    keep: int,
) -> None:
    """Write a checkpoint and remove all but the newest ``keep``; every process must call this."""
    if accelerator.is_main_process:
        target = folder / f"{_PREFIX}{progress.step:08d}"
        part = folder / f".{target.name}"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        bare = accelerator.unwrap_model(model)
        bare.save_pretrained(part)
        save_file(_moments(bare, _bare(optimiser)), part / _MOMENTS)
        (part / _STATE).write_text(json.dumps(asdict(progress)), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
        whole = sorted(p for p in folder.glob(f"{_PREFIX}*") if (p / _STATE).is_file())
        for old in whole[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_moments(model: Any, optimiser: Any, checkpoint: Path) -> None:
    """Put a checkpoint's moments into a fresh AdamW of the model, unwrapped, with its weights.

    Raises
    ------
    UsageError
        If the file is missing, broken, or of another model.
    """
    try:
        saved = load_file(checkpoint / _MOMENTS)
    except (SafetensorError, OSError) as error:
        raise UsageError(
            f"{checkpoint / _MOMENTS} cannot be read ({error}): remove that checkpoint to go on "
            f"from the one before"
        ) from error
    named = dict(model.named_parameters())
    wanted = {f"{n}::{kind}" for n, w in named.items() if w.requires_grad for kind in _KINDS}
    if set(saved) != wanted:
        name = sorted(set(saved) ^ wanted)[0]
        raise UsageError(
            f"{checkpoint / _MOMENTS} must hold the moments of this model's weights, and differs "
            f"first in {name}"
        )
    state = _bare(optimiser).state
    for name, kept in saved.items():
        weight, _, kind = name.rpartition("::")
        # AdamW counts its steps on the CPU, wherever the weights are.
        device = "cpu" if kind == "step" else named[weight].device
        state[named[weight]][kind] = kept.to(device)


def _moments(model: Any, optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}::{kind}": optimiser.state[weight][kind].contiguous()
        for name, weight in model.named_parameters()
        if weight.requires_grad
        for kind in _KINDS
    }


def _bare(optimiser: Any) -> torch.optim.Optimizer:
    return getattr(optimiser, "optimizer", optimiser)
