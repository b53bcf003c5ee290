"""A network's features: from which layer, pooled how, and kept in one file for a whole data set.

The teacher runs over the training images once. Its features go to a safetensors file as they come,
never all in memory, and are read back memory-mapped. The file's name holds a digest of the
teacher's weights, structure and layer and one of every image. Before a file is used again all
images are read and hashed, and the teacher runs on the first batch and its rows are compared: what
is saved is the rest of its pass.
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


def _teacher_digest(model: nn.Module, layer: str | None, pool: str, count: int) -> str:
    seen = hashlib.sha256(f"{layer} {pool} {count} {model!r}".encode())
    for name, value in model.state_dict().items():
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
        _add_images(seen, _images_of(batch))
    return seen.hexdigest()[:16]


def _alike(kept: NDArray, now: NDArray) -> bool:
    """Tell whether kept rows are those of now, but for what threads and batch sizes change."""
    old = kept[: len(now)]
    if old.shape != now.shape:
        return False
    return bool(np.abs(old - now).max(initial=0.0) <= 1e-3 * np.abs(now).max(initial=0.0))


def _run(give: Features, batch: Any, device: str | torch.device) -> Tensor:
    """Return the teacher's features of a batch, on the processor."""
    images = _images_of(batch)
    return taken(give, images.to(device), "teacher").float().cpu()


def taken(give: Features, images: Tensor, whose: str) -> Tensor:
    """Run a network and say which images it was if it cannot take them."""
    try:
        return give(images)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"the {whose} cannot take images of shape {tuple(images.shape[1:])}: {why}"
        ) from error


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
        rows = [_run(give, batch, device) for batch in batches]
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
        The images as the teacher is to see them, not augmented, in the order of their numbers. Read
        twice where the folder holds features of other images, so a list or a loader, no generator.
    folder : path
        Where the file goes. One that fits the teacher, the layer and the data is used as it is:
        every image is read and hashed to see that, and the teacher run on the first batch.
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
        If the teacher lacks the layer or cannot take the images, or the batches hold another number
        of images or can be read only once where they are needed twice.
    """
    give = features_of(teacher, layer, pool=pool)
    folder = Path(folder)
    name = f"features-{_teacher_digest(teacher, layer, pool, count)}"
    if any(folder.glob(f"{name}-*.safetensors")):
        if iter(batches) is batches:
            raise UsageError(
                f"{folder} holds features of this teacher, and to see whether they are of these "
                "images batches must be read twice: give a list or a loader, not an iterator"
            )
        path = folder / f"{name}-{_images_digest(batches)}.safetensors"
        if _is_whole(path):
            with evaluating(teacher):
                now = _run(give, next(iter(batches)), device).numpy()
            if _alike(read_features(path), now):
                return path
    folder.mkdir(parents=True, exist_ok=True)
    handle, scratch_name = tempfile.mkstemp(dir=folder, prefix=".features-")
    scratch = Path(scratch_name)
    try:
        done, seen = 0, hashlib.sha256()
        with os.fdopen(handle, "wb") as sink, evaluating(teacher):
            for batch in batches:
                _add_images(seen, _images_of(batch))
                rows = _run(give, batch, device).numpy()
                if not done:
                    sink.write(_header(count, rows.shape[1]))
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
