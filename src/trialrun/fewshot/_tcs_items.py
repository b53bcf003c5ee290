"""What items and batches hold: images, labels, and a few shots of each class."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
_LOOKED_AT = 32


def images_of(batch: Any) -> Tensor:
    """Return the images of a batch: itself, its first entry, or what it calls its images.

    Of several such names the first that holds a tensor counts: data sets keep the picture or its
    path beside what was made of it.
    """
    images = batch
    if isinstance(batch, Mapping):
        names = [name for name in IMAGES if name in batch]
        if not names:
            raise UsageError(
                f"a batch that is a dictionary must hold one of {', '.join(IMAGES)}, got "
                f"{', '.join(map(str, batch))}"
            )
        images = next((batch[n] for n in names if isinstance(batch[n], Tensor)), batch[names[0]])
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
    there = _told(dataset)
    if there is not None:
        return _whole_numbers(there)
    try:
        told = [label_of(dataset[i]) for i in range(len(dataset))]
        told = [y.item() if isinstance(y, Tensor) else y for y in told]
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise UsageError(f"items must be pairs of image and class number ({error})") from error
    return _whole_numbers(told)


def _told(dataset: Any) -> Any:
    """Return the labels that a data set tells without reading its items, or None."""
    if isinstance(dataset, Subset):
        found = _told(dataset.dataset)
        return None if found is None else np.asarray(found)[np.asarray(dataset.indices, np.int64)]
    change = getattr(dataset, "target_transform", None)
    for name in ("targets", "labels"):
        found = getattr(dataset, name, None)
        if found is not None and not callable(found) and len(found) == len(dataset):
            return found if change is None else [change(y) for y in _listed(found)]
    if isinstance(dataset, torch.utils.data.TensorDataset) and len(dataset.tensors) > 1:
        return dataset.tensors[1]
    return None


@contextmanager
def undrawn() -> Iterator[None]:
    """Leave global random states as they were, whatever is drawn within."""
    python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(of_numpy)  # noqa: NPY002


def check_order(plain: Any, labels: NDArray[np.int64]) -> None:
    """Raise if images for the teacher carry other labels than those they stand for.

    Of labels that are not told without reading images, some are compared. Images without labels
    cannot be compared.
    """
    rows = np.unique(np.linspace(0, len(labels) - 1, min(len(labels), _LOOKED_AT)).astype(np.int64))
    found = _told(plain)
    try:
        if found is None:
            with undrawn():
                found = [int(label_of(plain[int(i)])) for i in rows]
        else:
            found, rows = np.asarray(found), np.arange(len(labels))
    except (TypeError, ValueError, IndexError, RuntimeError):
        return
    apart = np.flatnonzero(np.asarray(found) != labels[rows])
    if len(apart):
        raise UsageError(
            f"plain must hold the loader's images in the same order, got another label for image "
            f"{rows[apart[0]]}: give the same labels, or images without any"
        )


def warn_of_change(dataset: Any) -> None:
    """Warn if a data set gives other images when it is read again."""
    with undrawn():
        for i in range(min(len(dataset), 4)):
            try:
                first, second = (images_of(dataset[i]) for _ in range(2))
            except UsageError:
                # Pictures that the collate function is still to turn into tensors.
                return
            if not torch.equal(first, second):
                warnings.warn(
                    "the teacher's images differ from one reading to the next, and it sees each of "
                    "them once: give plain= the same images without augmentation",
                    stacklevel=3,
                )
                return


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


def check_unmixed(labels: Any) -> None:
    """Raise if some of a batch's labels are divided between classes.

    Its images are then mixed, as far as can be told, and the teacher's bits are those of single
    images.
    """
    shares = torch.as_tensor(labels)
    if shares.ndim == 2 and shares.is_floating_point() and bool((shares.amax(1) < 1 - 1e-6).any()):
        raise UsageError(
            "mimic needs images as the teacher saw them, got a batch whose labels are divided "
            "between classes, as of mixed images: give a collate function that neither mixes nor "
            "smooths, or mimic=0"
        )


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
    draw = rng(seed, "shots")
    picked = [draw.choice(np.flatnonzero(labels == c), shots, replace=False) for c in classes]
    return np.sort(np.concatenate(picked)) if picked else np.zeros(0, np.int64)
