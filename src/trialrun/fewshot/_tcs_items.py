"""What items and batches hold: images, labels, and a few shots of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Subset

from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng

IMAGES = ("image", "images", "pixel_values")
LABELS = ("label", "labels", "target")
"""What an item or a batch that is a dictionary may call its images and its labels."""


def images_of(batch: Any) -> Tensor:
    """Return the images of a batch: itself, its first entry, or what it calls its images."""
    images = batch
    if isinstance(batch, Mapping):
        names = [name for name in IMAGES if name in batch]
        if not names:
            raise UsageError(
                f"a batch that is a dictionary must hold one of {', '.join(IMAGES)}, got "
                f"{', '.join(map(str, batch))}"
            )
        images = batch[names[0]]
    elif isinstance(batch, list | tuple) and len(batch):
        images = batch[0]
    if not isinstance(images, Tensor):
        raise UsageError(f"a batch must be images or (images, ...), got {type(images).__name__}")
    return images


def labels_of(dataset: Any) -> NDArray[np.int64]:
    """Return the labels of a data set: its ``targets`` or ``labels``, else read item by item.

    An item is a pair of image and label, or a dictionary that calls its label ``label``,
    ``labels`` or ``target``.

    Raises
    ------
    UsageError
        If items cannot be read by number, or are no pairs of an image and a whole number.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise UsageError(
            f"images are read by number, which a {type(dataset).__name__} does not offer: give a "
            "data set with __len__ and __getitem__"
        )
    if isinstance(dataset, Subset):
        return labels_of(dataset.dataset)[np.asarray(dataset.indices, np.int64)]
    change = getattr(dataset, "target_transform", None)
    for name in ("targets", "labels"):
        found = getattr(dataset, name, None)
        if found is not None and not callable(found) and len(found) == len(dataset):
            told = found if change is None else [change(y) for y in _listed(found)]
            return _whole_numbers(told)
    if isinstance(dataset, torch.utils.data.TensorDataset) and len(dataset.tensors) > 1:
        return _whole_numbers(dataset.tensors[1])
    try:
        told = [label_of(dataset[i]) for i in range(len(dataset))]
        told = [y.item() if isinstance(y, Tensor) else y for y in told]
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise UsageError(f"items must be pairs of image and class number ({error})") from error
    return _whole_numbers(told)


def label_of(item: Any) -> Any:
    """Return the label of an item or a batch: its second entry, or what it calls its label."""
    if not isinstance(item, Mapping):
        return item[1]
    names = [name for name in LABELS if name in item]
    if not names:
        raise UsageError(
            f"items that are dictionaries must hold one of {', '.join(LABELS)}, got "
            f"{', '.join(map(str, item))}"
        )
    return item[names[0]]


def _listed(found: Any) -> list[Any]:
    return found.tolist() if hasattr(found, "tolist") else list(found)


def _whole_numbers(found: Any) -> NDArray[np.int64]:
    table = np.asarray(found.cpu() if isinstance(found, Tensor) else found)
    if table.ndim != 1 or (len(table) and table.dtype.kind not in "iu"):
        raise UsageError(
            "items must be pairs of image and class number, a whole number each, got labels of "
            f"type {table.dtype} and shape {table.shape}: turn them into integers of shape (n,)"
        )
    return table.astype(np.int64)


def few_shots(labels: Sequence[int] | NDArray, shots: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Choose ``shots`` images of every class.

    Parameters
    ----------
    labels : integers of shape (images,)
    shots : int, at least 1
    seed : int

    Returns
    -------
    int64 array
        Sorted numbers of the images.

    Raises
    ------
    UsageError
        If a class has fewer images.

    Examples
    --------
    >>> few_shots([0, 0, 0, 1, 1], shots=2, seed=0).size
    4
    """
    labels = np.asarray(labels)
    if isinstance(shots, bool) or not isinstance(shots, int | np.integer) or shots < 1:
        raise UsageError(f"shots must be at least 1 image a class, got {shots!r}")
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) and counts.min() < shots:
        poor = classes[counts.argmin()]
        raise UsageError(
            f"class {poor} has {counts.min()} images, fewer than the {shots} shots asked for: give "
            "more images or fewer shots"
        )
    random = rng(seed, "shots")
    picked = [random.choice(np.flatnonzero(labels == c), shots, replace=False) for c in classes]
    return np.sort(np.concatenate(picked)) if picked else np.zeros(0, np.int64)
