"""A teacher's features of a whole data set, from one pass, in memory or in one file.

The teacher runs over the training images once. Its features go to a safetensors file as they come,
never all in memory, and are read back memory-mapped. The file's name holds a digest of the
teacher's weights, structure and layer and one of every image. Before a file is used again all
images are read and hashed, and the teacher runs on the first batch and its rows are compared: what
is saved is the rest of its pass.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trialrun.blocks.modes import evaluating
from trialrun.core.errors import UsageError
from trialrun.fewshot._tcs_file import header, is_whole, read_features
from trialrun.fewshot._tcs_items import images_of
from trialrun.fewshot._tcs_layers import (
    Features,
    features_of,
    in_precision,
    lent,
    taken,
)

_CLOSE = {"float32": 1e-3, "bfloat16": 5e-2}


def _teacher_digest(
    model: nn.Module, layer: str | None, pool: str, count: int, precision: str
) -> str:
    # Where a function lies in memory is no part of a structure that names it.
    structure = re.sub(r" at 0x[0-9a-f]+", "", repr(model))
    seen = hashlib.sha256(f"{layer} {pool} {count} {precision} {structure}".encode())
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            seen.update(f"{name} {value!r}".encode())
            continue
        plain = value.detach().cpu().contiguous()
        seen.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        seen.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()[:16]


def _add_images(seen: Any, images: Tensor) -> None:
    plain = images.detach().cpu().contiguous()
    # One row at a time: how images are cut into batches does not change them.
    for image in plain:
        seen.update(f"{plain.dtype} {tuple(image.shape)}".encode())
        seen.update(image.flatten().view(torch.uint8).numpy().tobytes())


def _images_digest(batches: Iterable[Any]) -> str:
    seen = hashlib.sha256()
    for batch in batches:
        _add_images(seen, images_of(batch))
    return seen.hexdigest()[:16]


def _alike(kept: NDArray, now: NDArray, within: float) -> bool:
    """Tell whether kept rows are those of now, but for what threads and batch sizes change."""
    old = kept[: len(now)]
    if old.shape != now.shape:
        return False
    return bool(np.abs(old - now).max(initial=0.0) <= within * np.abs(now).max(initial=0.0))


@dataclass(frozen=True, eq=False)
class _Pass:
    """How a teacher is run over batches."""

    give: Features
    device: str | torch.device
    precision: str
    dtype: torch.dtype | None

    @classmethod
    def of(
        cls,
        teacher: nn.Module,
        layer: str | None,
        pool: str,
        device: str | torch.device,
        precision: str,
    ) -> _Pass:
        types = [p.dtype for p in teacher.parameters() if p.is_floating_point()]
        give = features_of(teacher, layer, pool=pool)
        return cls(give, device, precision, types[0] if types else None)

    def __call__(self, batch: Any) -> Tensor:
        """Return the teacher's features of a batch, on the processor."""
        images = images_of(batch).to(self.device)
        # A teacher in half precision takes images in it.
        if self.dtype is not None and images.is_floating_point():
            images = images.to(self.dtype)
        with in_precision(self.precision, self.device):
            rows = taken(self.give, images, "teacher").float().cpu()
        if not torch.isfinite(rows).all():
            raise UsageError(
                "the teacher's features must be finite, got NaN or infinity: look at its images, "
                "or run it in float32"
            )
        return rows


def pass_features(
    teacher: nn.Module,
    batches: Iterable[Any],
    *,
    layer: str | None = None,
    pool: str = "mean",
    device: str | torch.device = "cpu",
    precision: str = "float32",
) -> NDArray[np.float32]:
    """Run a teacher once over all images and return its features (images, width) from memory.

    Settings and errors are those of `cache_features`.
    """
    run = _Pass.of(teacher, layer, pool, device, precision)
    with evaluating(teacher), torch.no_grad(), lent(teacher, device):
        rows = [run(batch) for batch in batches]
    if not rows:
        raise UsageError("the teacher needs at least one batch of images, got none")
    return torch.cat(rows).numpy()


def cache_features(
    teacher: nn.Module,
    batches: Iterable[Any],
    folder: str | Path,
    *,
    count: int,
    layer: str | None = None,
    pool: str = "mean",
    device: str | torch.device = "cpu",
    precision: str = "float32",
) -> Path:
    """Run a teacher once over all images and keep its features (images, width) in one file.

    Parameters
    ----------
    teacher : nn.Module
        Run in eval mode without gradients, and left in the mode it was in.
    batches : iterable of tensors, of tuples that begin with one, or of dictionaries
        The images as the teacher is to see them, not augmented, in the order of their numbers. Read
        twice where the folder holds features of other images, so a list or a loader, no generator.
        A dictionary calls its images ``image``, ``images`` or ``pixel_values``.
    folder : path
        Where the file goes. One that fits the teacher, the layer and the data is used as it is:
        every image is read and hashed to see that, and the teacher run on the first batch.
    count : int
        Number of images that ``batches`` gives.
    layer, pool
        See `features_of`.
    device : str
        Where the teacher runs; afterwards it is back where it was.
    precision : {"float32", "bfloat16"}
        ``bfloat16`` runs the teacher under torch's autocast. Features are kept in float32.

    Returns
    -------
    Path
        Of the safetensors file, for `read_features`.

    Raises
    ------
    UsageError
        If the teacher lacks the layer or cannot take the images, gives features that are not
        finite, or the batches hold another number of images or can be read only once where they
        are needed twice.

    Notes
    -----
    The file appears once it is whole. A pass that is broken off begins anew.
    """
    run, folder = _Pass.of(teacher, layer, pool, device, precision), Path(folder)
    name = f"features-{_teacher_digest(teacher, layer, pool, count, precision)}"
    with evaluating(teacher), torch.no_grad(), lent(teacher, device):
        return _kept(run, batches, folder, name) or _written(run, batches, folder, name, count)


def _kept(run: _Pass, batches: Iterable[Any], folder: Path, name: str) -> Path | None:
    """Return the file that fits the teacher and all images, or None where there is none."""
    if not any(folder.glob(f"{name}-*.safetensors")):
        return None
    if iter(batches) is batches:
        raise UsageError(
            f"{folder} holds features of this teacher, and to see whether they are of these "
            "images batches must be read twice: give a list or a loader, not an iterator"
        )
    path = folder / f"{name}-{_images_digest(batches)}.safetensors"
    if not is_whole(path):
        return None
    now = run(next(iter(batches))).numpy()
    return path if _alike(read_features(path), now, _CLOSE[run.precision]) else None


def _written(run: _Pass, batches: Iterable[Any], folder: Path, name: str, count: int) -> Path:
    """Run the teacher over all images, and keep its features as they come."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, scratch_name = tempfile.mkstemp(dir=folder, prefix=".features-")
    scratch = Path(scratch_name)
    try:
        done, seen = 0, hashlib.sha256()
        with os.fdopen(handle, "wb") as sink:
            for batch in batches:
                _add_images(seen, images_of(batch))
                rows = run(batch).numpy()
                if not done:
                    sink.write(header(count, rows.shape[1]))
                sink.write(np.ascontiguousarray(rows, "<f4").tobytes())
                done += len(rows)
        if not done:
            raise UsageError("the teacher needs at least one batch of images, got none")
        if done != count:
            raise UsageError(f"the batches must hold {count} images, got {done}")
        path = folder / f"{name}-{seen.hexdigest()[:16]}.safetensors"
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    return path
