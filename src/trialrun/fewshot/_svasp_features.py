"""Pictures that are taken by row, and their features, made once for any number of episodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from trialrun.blocks.modes import evaluating
from trialrun.fewshot import _svasp_stack  # noqa: F401

# isort: split
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trialrun.core.errors import UsageError
from trialrun.core.shapes import check_axes, check_range
from trialrun.fewshot._svasp_sampler import check_labels
from trialrun.fewshot._svasp_style import at_least_single


@runtime_checkable
class PictureSource(Protocol):
    """Pictures that can be taken by row, with one integer label each."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Return integer labels of shape (n,)."""
        ...

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        """Return float pictures (rows, channels, height, width)."""
        ...


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures in memory.

    ``images`` has shape (n, channels, height, width); bytes are given as numbers from 0 to 1.
    ``labels`` are integers of shape (n,).
    """

    images: Tensor
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        if not isinstance(self.images, Tensor):
            raise UsageError(
                f"images must be a tensor, got {type(self.images).__name__}: "
                "give torch.from_numpy(images) for an array"
            )
        check_axes("images", self.images, ("n", "channels", "height", "width"))
        object.__setattr__(self, "labels", check_labels(self.labels, len(self.images)))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        """Return one picture as floats and its label, as a DataLoader asks for them."""
        return self.take(np.array([range(len(self))[row]]))[0], int(self.labels[row])

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the pictures of these ``rows`` as floats."""
        chosen = self.images[torch.from_numpy(np.ascontiguousarray(rows))]
        return chosen.float() / 255 if chosen.dtype == torch.uint8 else chosen


@dataclass(frozen=True, eq=False)
class Features:
    """Features of every picture of a set, made once; ``features`` has shape (n, width)."""

    features: Tensor
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        check_axes("features", self.features, ("n", "width"))
        if not self.features.is_floating_point():
            raise UsageError(
                f"features must be floating-point numbers, got {self.features.dtype}: "
                "call .float() on them"
            )
        object.__setattr__(self, "labels", check_labels(self.labels, len(self.features)))


def check_source(name: str, source: object) -> None:
    """Raise unless pictures can be taken by row from what was given.

    Raises
    ------
    UsageError
        Saying what to make of tensors and of folders.
    """
    if not isinstance(source, PictureSource):
        raise UsageError(
            f"{name} must hold pictures with labels and take(rows), got {type(source).__name__}: "
            "make Pictures(images, labels) of tensors, or picture_folder(root) of files"
        )


@torch.no_grad()
def extract_features(
    backbone: nn.Module, dataset: PictureSource, *, batch_size: int = 256
) -> Features:
    """Run every picture through a network once, in eval mode, and keep the features.

    Parameters
    ----------
    backbone : torch.nn.Module
        From (batch, channels, height, width) to (batch, width); its modes are put back.
    dataset : Pictures, PictureFolder or the like
        With ``labels`` and ``take(rows)``.
    batch_size : int

    Raises
    ------
    ValueError
        If the network gives something else than one vector per picture.

    Examples
    --------
    >>> net = nn.Flatten()
    >>> extract_features(net, Pictures(torch.zeros(3, 1, 2, 2), np.arange(3))).features.shape
    torch.Size([3, 4])
    """
    check_range("batch_size", batch_size, low=1)
    check_source("dataset", dataset)
    spot = next(backbone.parameters(), torch.zeros(())).device
    parts = []
    with evaluating(backbone):
        for start in range(0, len(dataset.labels), batch_size):
            rows = np.arange(start, min(start + batch_size, len(dataset.labels)))
            found = backbone(dataset.take(rows).to(spot))
            if found.ndim != 2 or len(found) != len(rows):
                raise ValueError(
                    "backbone must give one vector per picture, (batch, width), "
                    f"got {tuple(found.shape)}: average over space, or num_classes=0 in timm"
                )
            parts.append(found.cpu())
    return Features(torch.cat(parts), dataset.labels)


def finite(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return features in at least single precision, all of them finite, and their mean.

    Raises
    ------
    UsageError
        Naming the first row that holds NaN or infinity.
    """
    table = at_least_single(features)
    mean = table.mean(dim=0)
    if not mean.isfinite().all():  # one pass; only a failure looks at every row
        bad = (~table.isfinite().all(dim=1)).nonzero().flatten()
        if len(bad):
            raise UsageError(
                f"features must be finite, got NaN or infinity in {len(bad)} of {len(table)} "
                f"rows, the first of them row {int(bad[0])}: look at the network that made them"
            )
    return table, mean
