"""What the claim on pictures is tried on: handwritten digits, or the user's own class folders.

A soft label is two classes and the share of the first; a picture of it mixes one member of each. A
view is a square window of a picture at a random place, scaled back, so that a small window is more
ambiguous. Every picture an encoder sees is brought to mean 0 and variance 1: neither ink nor
contrast gives away how large the window was.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from trialrun.claims.contract import Context, On
from trialrun.core.errors import UsageError
from trialrun.core.extras import need
from trialrun.core.seeds import split
from trialrun.material.class_folders import ClassFolders, read_class_folders
from trialrun.representation.mcinfonce import Pairs

HELD_OUT = 0.3
LEAST = 4
"""Pictures that a class must have: two to train on, one to ask for and one to find."""

OWN_SIDE = 32
SMALLEST = 0.25
"""Least share of a picture's area that a window keeps."""


class Views(NamedTuple):
    """Corrupted pictures and what is true of them.

    Attributes
    ----------
    x : Tensor (n, channels, side, side)
    left : Tensor (n,)
        Share of the area that the window keeps.
    label : Tensor (n,)
        The class with the larger share.
    share : Tensor (n,)
        Its share, from 0.5 to 1.
    """

    x: Tensor
    left: Tensor
    label: Tensor
    share: Tensor


class SoftLabels(NamedTuple):
    """Two different classes (n,) each, and the share of the first (n,)."""

    first: Tensor
    second: Tensor
    share: Tensor


@dataclass(frozen=True, eq=False)
class Stock:
    """Pictures (n, channels, side, side) from 0 to 1, ordered by their label (n,)."""

    images: Tensor
    labels: Tensor

    @property
    def classes(self) -> int:
        """Return the number of classes."""
        return int(self.labels.max()) + 1

    def rows(self, which: Tensor) -> Stock:
        """Return some of the pictures, in order.

        Parameters
        ----------
        which : Tensor (m,)
            Row numbers.
        """
        which = which.sort().values
        return Stock(self.images[which], self.labels[which])

    def soft_labels(self, n: int, generator: torch.Generator) -> SoftLabels:
        """Draw soft labels."""
        first = torch.randint(self.classes, (n,), generator=generator)
        step = torch.randint(1, self.classes, (n,), generator=generator)
        share = 0.5 + 0.5 * torch.rand(n, generator=generator)
        return SoftLabels(first, (first + step) % self.classes, share)

    def _members(self, label: Tensor, generator: torch.Generator) -> Tensor:
        counts = torch.bincount(self.labels, minlength=self.classes)
        begin = counts.cumsum(0) - counts
        place = torch.rand(len(label), generator=generator) * counts[label]
        return self.images[begin[label] + place.long().clamp(max=counts[label] - 1)]

    def views(self, soft: SoftLabels, generator: torch.Generator) -> Views:
        """Make a picture of every soft label and show a window of it."""
        share = soft.share[:, None, None, None]
        mixed = share * self._members(soft.first, generator)
        mixed = mixed + (1 - share) * self._members(soft.second, generator)
        left = SMALLEST + (1 - SMALLEST) * torch.rand(len(mixed), generator=generator)
        return Views(standardised(_window(mixed, left, generator)), left, soft.first, soft.share)

    def pairs(self, batch: int, negatives: int = 0, *, seed: int) -> Pairs:
        """Draw soft labels and two views of each, of different pictures; no negatives.

        Parameters
        ----------
        batch : int
            Rows.
        negatives : 0
            There are none: the other rows' positives serve.
        seed : int
            Seed of these pairs.
        """
        if negatives:
            raise ValueError(f"negatives must be 0 for pictures, got {negatives}")
        generator = torch.Generator().manual_seed(split(seed, "pairs"))
        soft = self.soft_labels(batch, generator)
        ref, pos = self.views(soft, generator), self.views(soft, generator)
        return Pairs(ref.x, pos.x, pos.x.new_zeros(batch, 0))


class Divided(NamedTuple):
    """Pictures to learn from, to make queries of, and to find."""

    train: Stock
    asked: Stock
    found: Stock


def standardised(images: Tensor) -> Tensor:
    """Bring every picture (n, channels, side, side) to mean 0 and variance 1."""
    flat = images.flatten(1)
    # The floor keeps an empty window empty.
    spread = flat.std(1, correction=0, keepdim=True).clamp(min=0.02)
    return ((flat - flat.mean(1, keepdim=True)) / spread).reshape(images.shape)


def _window(images: Tensor, left: Tensor, generator: torch.Generator) -> Tensor:
    """Cut a square of the given share of the area at a random place, and scale it back."""
    side = left.sqrt()
    place = (2 * torch.rand(len(images), 2, generator=generator) - 1) * (1 - side)[:, None]
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = place
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def load_stock(on: On | None) -> Stock:
    """Load the digits, or the user's own pictures."""
    if on is None:
        found = need("sklearn.datasets", extra="representation").load_digits()
        images, labels = (
            torch.from_numpy(found.images)[:, None] / 16,
            torch.from_numpy(found.target),
        )
    else:
        own = read_on(on)
        images = torch.from_numpy(own.images).movedim(-1, 1) / 255
        labels = torch.from_numpy(own.labels)
    order = labels.argsort(stable=True)
    return Stock(images[order].float(), labels[order].long())


def divide(stock: Stock, seed: int) -> Divided:
    """Hold out whole pictures of every class, half of them to ask with and half to find."""
    generator = torch.Generator().manual_seed(split(seed, "held-out pictures"))
    train, asked, found = [], [], []
    for label in range(stock.classes):
        rows = (stock.labels == label).nonzero().squeeze(-1)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        held = max(2, round(HELD_OUT * len(rows)))
        asked.append(rows[: held // 2])
        found.append(rows[held // 2 : held])
        train.append(rows[held:])
    return Divided(*(stock.rows(torch.cat(part)) for part in (train, asked, found)))


def read_on(on: On) -> ClassFolders:
    """Read the user's pictures; every class must be large enough to be divided."""
    return read_class_folders(on.path, size=OWN_SIDE, least=LEAST)


def check_on(ctx: Context) -> None:
    """Read the user's pictures before anything runs, and say which were skipped."""
    if ctx.on is None:
        raise UsageError("mcinfonce takes pictures of your own with --on FOLDER, not a model")
    said = read_on(ctx.on).said()
    if said:
        print(f"trialrun: {said}", file=sys.stderr)


def resplit(_: Context) -> float:
    """Return held-out to training pictures where seeds divide one set of pictures anew."""
    return HELD_OUT / (1 - HELD_OUT)
