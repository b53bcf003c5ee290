"""A network's features: from which layer, pooled how, and kept in one file for a whole data set.

The teacher runs over the training images once. Its features go to a safetensors file as they come,
never all in memory, and are read back memory-mapped; the file's name holds a digest of the
teacher's weights, the layer, the number of images and the first batch, so that another teacher or
other data never meet an old file.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trialrun.core.errors import NotRunnable, UsageError

POOLS = ("mean", "first")
Features = Callable[[Tensor], Tensor]


def _is_timm(model: nn.Module) -> bool:
    return all(hasattr(model, name) for name in ("forward_features", "forward_head"))


def _pooled(features: Tensor, pool: str) -> Tensor:
    """Make one row an image: feature maps are averaged, tokens averaged or the first one taken."""
    if features.ndim == 4:
        return features.mean(dim=(2, 3))
    if features.ndim == 3:
        return features[:, 0] if pool == "first" else features.mean(dim=1)
    if features.ndim != 2:
        raise UsageError(
            "a layer's output must have shape (batch, width), (batch, tokens, width) or (batch, "
            f"channels, height, width), got {tuple(features.shape)}: name another layer"
        )
    return features


def layer_named(model: nn.Module, layer: str) -> nn.Module:
    """Return a submodule by its name.

    Raises
    ------
    UsageError
        Naming the closest layers there are.
    """
    layers = {name: module for name, module in model.named_modules() if name}
    if layer in layers:
        return layers[layer]
    near = difflib.get_close_matches(layer, layers, n=3, cutoff=0.3) or list(layers)[-3:]
    raise UsageError(
        f"{type(model).__name__} has no layer {layer!r}: "
        + (f"names near it are {', '.join(near)}" if near else "it has no named layers")
    )


def features_of(model: nn.Module, layer: str | None = None, *, pool: str = "mean") -> Features:
    """Return a function from images to the model's features (batch, width).

    Parameters
    ----------
    model : nn.Module
        A timm model gives what enters its classifier; any other its own output.
    layer : str, optional
        Name of a submodule whose output is taken instead.
    pool : {"mean", "first"}
        What to make of tokens: their mean, or the first (the class token).

    Raises
    ------
    UsageError
        If there is no such layer or pool; on a call, if the output has another number of axes.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    >>> features_of(model, "1")(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 4])
    """
    if pool not in POOLS:
        raise UsageError(f"pool must be one of {', '.join(POOLS)}, got {pool!r}")
    if layer is not None:
        chosen = layer_named(model, layer)

        def hooked(images: Tensor) -> Tensor:
            seen: list[Tensor] = []
            handle = chosen.register_forward_hook(lambda _, __, output: seen.append(output))
            try:
                model(images)
            finally:
                handle.remove()
            if not seen or not isinstance(seen[-1], Tensor):
                raise UsageError(f"the layer {layer!r} gave no tensor: name another layer")
            return _pooled(seen[-1], pool)

        return hooked
    if _is_timm(model):
        timm_model: Any = model

        def headless(images: Tensor) -> Tensor:
            features = timm_model.forward_features(images)
            return _pooled(timm_model.forward_head(features, pre_logits=True), pool)

        return headless
    return lambda images: _pooled(model(images), pool)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model and its parts in eval mode, and leave every part as it was."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def _digest(model: nn.Module, layer: str | None, pool: str, count: int, first: Tensor) -> str:
    seen = hashlib.sha256(f"{layer} {pool} {count}".encode())
    for name, value in model.state_dict().items():
        plain = value.detach().cpu().contiguous()
        seen.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        seen.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    seen.update(first.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()[:16]


def _header(count: int, width: int) -> bytes:
    entry = {"dtype": "F32", "shape": [count, width], "data_offsets": [0, 4 * count * width]}
    text = json.dumps({"features": entry}).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _images_of(batch: Any) -> Tensor:
    images = batch[0] if isinstance(batch, list | tuple) else batch
    if not isinstance(images, Tensor):
        raise UsageError(f"a batch must be images or (images, ...), got {type(images).__name__}")
    return images


def pass_features(
    teacher: nn.Module,
    batches: Iterable[Any],
    *,
    layer: str | None = None,
    pool: str = "mean",
    device: str | torch.device = "cpu",
) -> NDArray[np.float32]:
    """Run a teacher once over all images and return its features (images, width) from memory.

    Settings and errors are those of `cache_features`.
    """
    give = features_of(teacher, layer, pool=pool)
    with evaluating(teacher):
        rows = [give(_images_of(batch).to(device)).float().cpu() for batch in batches]
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
) -> Path:
    """Run a teacher once over all images and keep its features (images, width) in one file.

    Parameters
    ----------
    teacher : nn.Module
        Run in eval mode without gradients, and left in the mode it was in.
    batches : iterable of tensors, or of tuples that begin with one
        The images as the teacher is to see them, not augmented, in the order of their numbers.
    folder : path
        Where the file goes. One that fits the teacher, the layer and the data is used as it is.
    count : int
        Number of images that ``batches`` gives.
    layer, pool
        See `features_of`.
    device : str
        Where the teacher lies and the images go.

    Returns
    -------
    Path
        Of the safetensors file, for `read_features`.

    Raises
    ------
    UsageError
        If the teacher lacks the layer, or the batches hold another number of images.
    """
    give = features_of(teacher, layer, pool=pool)
    source = iter(batches)
    first = next(source, None)
    if first is None:
        raise UsageError("the teacher needs at least one batch of images, got none")
    digest = _digest(teacher, layer, pool, count, _images_of(first))
    path = Path(folder) / f"features-{digest}.safetensors"
    if path.is_file() and _is_whole(path):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".features-")
    scratch = Path(name)
    try:
        done = 0
        with os.fdopen(handle, "wb") as sink, evaluating(teacher):
            for batch in _chain(first, source):
                rows = give(_images_of(batch).to(device)).float().cpu().numpy()
                if not done:
                    sink.write(_header(count, rows.shape[1]))
                sink.write(np.ascontiguousarray(rows, "<f4").tobytes())
                done += len(rows)
        if done != count:
            raise UsageError(f"the batches must hold {count} images, got {done}")
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    return path


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _layout(path: Path) -> tuple[int, tuple[int, int]]:
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        entry = json.loads(file.read(min(size, 1 << 16)))["features"]
    count, width = entry["shape"]
    if entry["dtype"] != "F32" or 8 + size + 4 * count * width != path.stat().st_size:
        raise ValueError("the length of the file does not fit its header")
    return 8 + size, (count, width)


def _is_whole(path: Path) -> bool:
    try:
        _layout(path)
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return False
    return True


def read_features(path: str | Path) -> NDArray[np.float32]:
    """Return the features (images, width) of a file, memory-mapped and read-only.

    Raises
    ------
    NotRunnable
        If the file is missing or not whole.

    Examples
    --------
    >>> read_features("gone.safetensors")
    Traceback (most recent call last):
    trialrun.core.errors.NotRunnable: gone.safetensors is no whole file of features: ...
    """
    path = Path(path)
    try:
        start, shape = _layout(path)
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise NotRunnable(
            f"{path} is no whole file of features: remove it and run the teacher again ({error})"
        ) from error
    return np.memmap(path, "<f4", "r", offset=start, shape=shape)
