"""Batches with the numbers of their images, and the same images in order for the teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
)

from trialrun.core.errors import UsageError
from trialrun.core.seeds import split
from trialrun.fewshot._tcs_items import IMAGES, check_unmixed, images_of, label_of


class _Numbered(Dataset):
    """A data set whose items also carry their number."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.items[index], index


@dataclass(frozen=True)
class _Collate:
    """Collate items with their own function, and their numbers beside them."""

    own: Callable[[list[Any]], Any]

    def __call__(self, batch: list[tuple[Any, int]]) -> tuple[Any, Tensor]:
        return self.own([item for item, _ in batch]), torch.tensor([index for _, index in batch])


def _as_they_are(items: list[Any]) -> Any:
    """Collate items for the teacher, of dictionaries the images alone.

    What else they hold, a picture beside its tensor for one, need not collate.
    """
    if isinstance(items[0], Mapping):
        names = [name for name in IMAGES if isinstance(items[0].get(name), Tensor)]
        items = [{name: item[name] for name in names[:1]} for item in items] if names else items
    return default_collate(items)


_KEPT = ("batch_size", "num_workers", "worker_init_fn", "pin_memory", "timeout")
_KEPT_OF_WORKERS = ("prefetch_factor", "multiprocessing_context")


def _check(loader: DataLoader) -> None:
    """Raise unless a loader reads every image once an epoch, at random or in order."""
    if loader.batch_size is None:
        raise UsageError(
            "loader must make batches by itself, got batch_size=None: give it a batch_size, no "
            "batch_sampler of its own"
        )
    if not isinstance(loader.sampler, RandomSampler | SequentialSampler):
        raise UsageError(
            f"loader must shuffle or keep the order, got a {type(loader.sampler).__name__}: the "
            "images are read by number, so choose them in the data set"
        )
    if isinstance(loader.sampler, RandomSampler) and (
        loader.sampler.replacement or loader.sampler.num_samples != len(loader.sampler.data_source)
    ):
        raise UsageError(
            "loader must read every image once an epoch, got a RandomSampler with replacement or "
            "num_samples: use shuffle=True"
        )


def loaders(
    loader: DataLoader, plain: Any, chosen: NDArray[np.int64], seed: int
) -> tuple[DataLoader, DataLoader]:
    """Return batches to train on, with their numbers, and batches for the teacher in order."""
    _check(loader)
    whole: Any = loader.dataset
    data = whole if len(chosen) == len(whole) else Subset(whole, chosen.tolist())
    same: dict[str, Any] = {name: getattr(loader, name) for name in _KEPT}
    if loader.num_workers:
        same |= {name: getattr(loader, name) for name in _KEPT_OF_WORKERS}
    lasting: dict[str, Any] = {"persistent_workers": loader.persistent_workers}
    order = loader.generator or torch.Generator().manual_seed(split(seed, "batches"))
    numbered: Any = _Numbered(data)
    shuffled = isinstance(loader.sampler, RandomSampler)
    train = DataLoader(
        numbered,
        sampler=RandomSampler(numbered, generator=order) if shuffled else None,
        collate_fn=_Collate(loader.collate_fn),
        drop_last=loader.drop_last,
        generator=order,
        **same,
        **lasting,
    )
    if not len(train):
        raise UsageError(
            f"the loader gives no batch: its batch_size {loader.batch_size} is above the "
            f"{len(data)} images and drop_last is set"
        )
    seen: Any = plain if plain is not None else whole
    if len(seen) != len(whole):
        raise UsageError(
            f"plain must hold the same {len(whole)} images as the loader, got {len(seen)}"
        )
    seen = seen if len(chosen) == len(seen) else Subset(seen, chosen.tolist())
    # A generator of its own: whether the teacher runs must not change the order of the batches.
    apart = torch.Generator().manual_seed(split(seed, "pass"))
    # The loader's own collate function may mix images (mixup); the teacher sees them as they are.
    # Its workers go with its one pass.
    once = DataLoader(seen, collate_fn=_as_they_are, generator=apart, **same)
    return train, once


def batches(
    loader: DataLoader, classes: int, device: Any, *, mimic: int | float
) -> Iterator[tuple[Tensor, ...]]:
    """Yield images, labels and numbers of images on a device.

    Labels are whole numbers of shape (batch,), or shares of the classes (batch, classes), as a
    collate function that mixes images gives; not where a teacher is mimicked.
    """
    for items, index in loader:
        images, y = images_of(items), torch.as_tensor(label_of(items))
        mixed = y.is_floating_point() and tuple(y.shape) == (len(images), classes)
        if not mixed:
            if y.is_floating_point() or tuple(y.shape) != (len(images),):
                raise UsageError(
                    f"a batch's labels must be whole numbers of shape ({len(images)},) or shares "
                    f"of shape ({len(images)}, {classes}), got {y.dtype} of shape {tuple(y.shape)}"
                )
            y = y.long()
        elif mimic > 0:
            check_unmixed(y)
        yield images.to(device), y.to(device), index.to(device)
