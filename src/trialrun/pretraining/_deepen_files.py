"""Deepening a checkpoint on disk, one shard in memory at a time.

A checkpoint is a transformers folder: ``config.json`` and ``model.safetensors``, or shards with
their index. Weights are read lazily, so that an 8-billion-parameter model is deepened in the
memory of one shard.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trialrun.pretraining import _stack  # noqa: F401  isort: skip
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig

from trialrun.core.errors import UsageError
from trialrun.pretraining._deepen import LayerMap, _check_family, deepen, empty_model, layer_map
from trialrun.pretraining._loading import BROKEN

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1, "BOOL": 1}
_KEPT = (".json", ".model", ".txt", ".jinja", ".md")


@dataclass(frozen=True)
class _Entry:
    """One weight to write: its name, where it is read, whether it is zero, its size in bytes."""

    name: str
    origin: str
    zero: bool
    size: int


class Checkpoint:
    """Read a folder's safetensors by name, without loading them.

    Parameters
    ----------
    folder : Path
        Holds ``model.safetensors``, or shards and their index.

    Raises
    ------
    UsageError
        If the folder holds neither, or a file of the index is missing or broken.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        try:
            for file in self._listed():
                handle = self._stack.enter_context(safe_open(file, framework="pt"))
                self._files |= dict.fromkeys(handle.keys(), handle)
        except (SafetensorError, OSError, json.JSONDecodeError, KeyError, TypeError) as error:
            self._stack.close()
            raise UsageError(
                f"the checkpoint at {folder} cannot be read ({error}): download or save it again"
            ) from error

    def _listed(self) -> list[Path]:
        index = self.folder / INDEX
        if index.is_file():
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            return [self.folder / Path(name).name for name in sorted(set(names))]
        if (self.folder / WEIGHTS).is_file():
            return [self.folder / WEIGHTS]
        raise UsageError(
            f"{self.folder} must hold {WEIGHTS} or {INDEX}, and holds neither: save the model with "
            f"save_pretrained first"
        )

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a weight's shape."""
        return tuple(self._files[name].get_slice(name).get_shape())

    def size(self, name: str) -> int:
        """Return a weight's size in bytes."""
        kind = self._files[name].get_slice(name).get_dtype()
        count = 1
        for length in self.shape(name):
            count *= length
        return count * _BYTES.get(kind, 8)

    def read(self, name: str) -> Tensor:
        """Read one weight."""
        return self._files[name].get_tensor(name)


def deepen_checkpoint(
    source: Path | str,
    target: Path | str,
    *,
    layers: int = 36,
    placement: str = "spread",
    silent: bool | None = None,
    shard_bytes: int = 4_000_000_000,
) -> LayerMap:
    """Write a deeper copy of a checkpoint, holding one shard in memory at a time (zhao2024moxin).

    Parameters
    ----------
    source : path
        A transformers folder with safetensors weights (Mistral, Llama, Qwen2 or Qwen3).
    target : path
        Folder to make; it must not exist or be empty. It appears when all is written.
    layers : int
        Layers wanted, from the source's own number to twice that.
    placement, silent
        As in `layer_map`.
    shard_bytes : int
        Largest file to write, in bytes; a larger single weight gets a file of its own.

    Returns
    -------
    LayerMap
        Where each layer came from.

    Raises
    ------
    UsageError
        If the config cannot be read, weights are missing or of another shape than it says,
        ``layers`` is out of range, or ``target`` is not empty.
    """
    source, target = Path(source), Path(target)
    if not (source / "config.json").is_file():
        raise UsageError(f"{source} must hold a config.json, and holds none: give a model's folder")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"target must be a new or an empty folder, got {target}")
    if shard_bytes < 1:
        raise UsageError(f"shard_bytes must be at least 1, got {shard_bytes}")
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=True)
    except BROKEN as error:
        raise UsageError(
            f"{source / 'config.json'} cannot be read as the config of a model transformers knows: "
            f"download or save it again"
        ) from error
    _check_family(config)
    plan = layer_map(config.num_hidden_layers, layers, placement=placement, silent=silent)
    deeper = deepen(config, layers=layers, placement=placement)
    target.parent.mkdir(parents=True, exist_ok=True)
    with Checkpoint(source) as weights:
        _check_complete(weights, config)
        entries = _entries(plan, weights, deeper)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".deepening-") as place:
            made = Path(place) / "model"
            made.mkdir()
            deeper.save_pretrained(made)
            _write(weights, entries, made, shard_bytes)
            for file in source.iterdir():
                if file.suffix in _KEPT and file.name not in ("config.json", INDEX):
                    shutil.copy2(file, made / file.name)
            if target.exists():
                target.rmdir()
            made.rename(target)
    return plan


def _names(config: Any) -> dict[str, tuple[int, ...]]:
    model = empty_model(config)
    tied = set(getattr(model, "all_tied_weights_keys", {}) or {})
    return {n: tuple(w.shape) for n, w in model.state_dict().items() if n not in tied}


def _check_complete(weights: Checkpoint, config: Any) -> None:
    wanted = _names(config)
    missing = [name for name in wanted if name not in weights]
    if missing:
        raise UsageError(
            f"the checkpoint at {weights.folder} lacks {len(missing)} of {len(wanted)} weights, "
            f"{missing[0]} first: download or save it again"
        )
    for name, shape in wanted.items():
        if weights.shape(name) != shape:
            raise UsageError(
                f"{name} must have shape {shape} after the config, got {weights.shape(name)}"
            )


def _entries(plan: LayerMap, weights: Checkpoint, config: Any) -> list[_Entry]:
    found = []
    for name in _names(config):
        origin, zero = plan.source_of(name)
        found.append(_Entry(name, origin, zero, weights.size(origin)))
    return found


def _shards(entries: list[_Entry], most: int) -> Iterator[list[_Entry]]:
    shard: list[_Entry] = []
    held = 0
    for entry in entries:
        if shard and held + entry.size > most:
            yield shard
            shard, held = [], 0
        shard.append(entry)
        held += entry.size
    if shard:
        yield shard


def _write(weights: Checkpoint, entries: list[_Entry], folder: Path, most: int) -> None:
    shards = list(_shards(entries, most))
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = WEIGHTS
        if len(shards) > 1:
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for entry in shard:
            weight = weights.read(entry.origin)
            # Two reads of one weight may share memory, which a safetensors file must not.
            tensors[entry.name] = torch.zeros_like(weight) if entry.zero else weight.clone()
            del weight
            where[entry.name] = name
        save_file(tensors, folder / name, metadata={"format": "pt"})
    if len(shards) > 1:
        total = sum(entry.size for entry in entries)
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
