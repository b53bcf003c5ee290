"""Episodes from unlabelled volumes: two neighbouring slices and a supervoxel (bo2024famnet).

One of the two slices is bent (affine and elastic) and one has its brightness changed by a gamma,
each chosen by a coin of its own.
"""

from __future__ import annotations

from trialrun.fewshot import _famnet_stack  # noqa: F401

# isort: split
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from trialrun.core.seeds import rng
from trialrun.core.shapes import check_axes, check_range


class Episode(NamedTuple):
    """A batch of episodes: images (batch, 1, rows, columns), masks (batch, rows, columns)."""

    support_image: Tensor
    support_mask: Tensor
    query_image: Tensor
    query_mask: Tensor


class Bend(NamedTuple):
    """A drawn deformation: ``affine`` (2, 3), and elastic ``noise`` (2, rows, columns) or None."""

    affine: NDArray[np.float64]
    noise: NDArray[np.float64] | None


@lru_cache(maxsize=8)
def _blur(size: int, sigma: float) -> Tensor:
    at = torch.arange(size, dtype=torch.float32)
    weights = torch.exp(-0.5 * ((at[:, None] - at[None, :]) / sigma) ** 2)
    return weights / weights.sum(dim=1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How the two slices of an episode are made to differ.

    Parameters
    ----------
    gamma : pair of float
        Range of the exponent on brightness.
    degrees, shear : float
        Largest turn and shear, in degrees.
    shift : float
        Largest shift, in pixels.
    scale : pair of float
        Range of the change of size.
    alpha, sigma : float
        Size and smoothness of the elastic displacement, in pixels; alpha 0 leaves it out.
    curve : bool
        Ours, off in the paper: bend the brightness of both slices by one random curve, so that no
        contrast can be relied on.

    Examples
    --------
    >>> Augmentation().gamma
    (0.5, 1.5)
    """

    gamma: tuple[float, float] = (0.5, 1.5)
    degrees: float = 5.0
    shear: float = 5.0
    shift: float = 5.0
    scale: tuple[float, float] = (0.9, 1.2)
    alpha: float = 10.0
    sigma: float = 5.0
    curve: bool = False

    def brighten(self, image: NDArray, random: np.random.Generator) -> NDArray:
        """Raise the brightness of ``image``, between its extremes, to a power from ``random``."""
        low, high = float(image.min()), float(image.max())
        reach = high - low + 1e-5
        return ((image - low) / reach) ** random.uniform(*self.gamma) * reach + low

    def recurve(self, images: Sequence[NDArray], random: np.random.Generator) -> list[NDArray]:
        """Send the brightness of all ``images`` through one curve drawn by ``random``."""
        low, high = min(i.min() for i in images), max(i.max() for i in images)
        knots, heights = np.linspace(low, high, 7), random.uniform(size=7)
        bent = [np.interp(image, knots, heights) for image in images]
        mean, spread = np.mean(bent), np.std(bent) + 1e-6
        return [(image - mean) / spread for image in bent]

    def bend(self, rows: int, columns: int, random: np.random.Generator) -> Bend:
        """Draw the affine map and the elastic noise of one picture of ``rows`` x ``columns``.

        ``random`` gives the numbers; `fields` makes grids of them.
        """
        turn, slant = np.radians(random.uniform(-1, 1, 2) * (self.degrees, self.shear))
        size = 1 / random.uniform(*self.scale)
        moved = random.uniform(-1, 1, 2) * self.shift * 2 / np.array([columns, rows])
        turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        matrix = size * turned @ np.array([[1.0, math.tan(slant)], [0.0, 1.0]])
        noise = random.uniform(-1, 1, (2, rows, columns)) if self.alpha else None
        return Bend(np.column_stack([matrix, moved]), noise)

    def field(self, rows: int, columns: int, random: np.random.Generator) -> Tensor:
        """Return `fields` of one picture, (rows, columns, 2), drawn by ``random``."""
        return self.fields([self.bend(rows, columns, random)], rows, columns)[0]

    def fields(self, bends: Sequence[Bend], rows: int, columns: int) -> Tensor:
        """Return where each of ``rows`` x ``columns`` pixels is taken from, as `grid_sample` asks.

        ``bends`` holds one draw per picture.
        """
        affine = torch.from_numpy(np.stack([one.affine for one in bends]).astype(np.float32))
        grid = F.affine_grid(affine, [len(bends), 1, rows, columns], align_corners=False)
        if self.alpha:
            drawn = np.stack([one.noise for one in bends if one.noise is not None])
            noise = torch.from_numpy(drawn.astype(np.float32))
            smooth = _blur(rows, self.sigma) @ noise @ _blur(columns, self.sigma).T
            pixels = torch.tensor([2 / columns, 2 / rows])
            grid = grid + (self.alpha * smooth).permute(0, 2, 3, 1) * pixels
        return grid


class EpisodeSampler:
    """Draw episodes: a volume, a region large enough on two neighbouring slices, and these slices.

    Parameters
    ----------
    volumes : sequence of arrays of shape (slices, rows, columns)
        Brightness, z-scored per volume; rows and columns alike in all.
    regions : sequence of integer arrays of the same shapes
        0 outside, then one number per region, as `supervoxels` returns. Bool is one region.
    min_pixels : int
        Smallest area of a region on both slices, in pixels.
    augmentation : Augmentation or None
        None leaves the slices as they are.
    seed : int
        The episodes of step k depend on the seed and k alone.

    Raises
    ------
    ValueError
        If volumes and regions disagree, hold what they should not, or no region is large enough.

    Examples
    --------
    >>> volume = np.random.default_rng(0).normal(size=(3, 16, 16))
    >>> sampler = EpisodeSampler([volume], [np.ones((3, 16, 16), int)], min_pixels=9)
    >>> sampler.batch(0, 2).support_image.shape
    torch.Size([2, 1, 16, 16])
    """

    def __init__(
        self,
        volumes: Sequence[NDArray],
        regions: Sequence[NDArray],
        *,
        min_pixels: int = 200,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        check_range("min_pixels", min_pixels, low=1, unit="pixel")
        if not volumes or len(volumes) != len(regions):
            raise ValueError(
                f"regions must hold one array per volume, got {len(regions)} for {len(volumes)}"
            )
        self.volumes = [np.asarray(volume, dtype=np.float32) for volume in volumes]
        self.regions = [_whole(region) for region in regions]
        self.augmentation, self.seed = augmentation, seed
        self._places: list[list[tuple[int, NDArray[np.int64]]]] = []
        for i, (volume, region) in enumerate(zip(self.volumes, self.regions)):
            check_axes("volume", volume, ("slices", "rows", "columns"))
            if volume.shape != region.shape or volume.shape[1:] != self.volumes[0].shape[1:]:
                raise ValueError(
                    f"volume {i} and its regions must have the same shape, and all volumes the "
                    f"same rows and columns, got {volume.shape} and {region.shape}"
                )
            if not np.isfinite(volume).all():
                raise ValueError(f"volume {i} must be finite, got NaN or infinity")
            self._places.append(_large(region, min_pixels))
        self._usable = [i for i, places in enumerate(self._places) if places]
        if not self._usable:
            raise ValueError(
                f"no region covers {min_pixels} pixels on two neighbouring slices: "
                "lower min_pixels or make larger regions"
            )

    def _slices(self, random: np.random.Generator) -> tuple[list[NDArray], list[NDArray]]:
        """Draw two neighbouring slices and a region's masks on them, support first."""
        v = self._usable[random.integers(len(self._usable))]
        places = self._places[v]
        label, slices = places[random.integers(len(places))]
        first = int(slices[random.integers(len(slices))])
        order = (first, first + 1) if random.uniform() < 0.5 else (first + 1, first)
        images = [self.volumes[v][z] for z in order]
        return images, [(self.regions[v][z] == label).astype(np.float32) for z in order]

    def batch(self, step: int, size: int = 1) -> Episode:
        """Return the ``size`` episodes of training step ``step``."""
        random = rng(self.seed, "episodes", step)
        how = self.augmentation
        images, masks, bends, sides = [], [], [], []
        for _ in range(size):
            pair, marks = self._slices(random)
            if how is not None:
                pair = how.recurve(pair, random) if how.curve else pair
                lit, bent = random.integers(2, size=2)
                pair[lit] = how.brighten(pair[lit], random)
                bends.append(how.bend(pair[0].shape[0], pair[0].shape[1], random))
                sides.append(int(bent))
            images.append(np.stack(pair))
            masks.append(np.stack(marks))
        shown = torch.from_numpy(np.stack(images).astype(np.float32))
        marked = torch.from_numpy(np.stack(masks))
        if how is not None:
            grid = how.fields(bends, *shown.shape[2:])
            _bend(shown, marked, torch.tensor(sides), grid)
        return Episode(shown[:, :1], marked[:, 0], shown[:, 1:], marked[:, 1])


def _bend(shown: Tensor, marked: Tensor, sides: Tensor, grid: Tensor) -> None:
    """Bend one of each pair of images (batch, 2, rows, columns) and its mask, in place."""
    of = torch.arange(len(sides))
    picture, mask = shown[of, sides][:, None], marked[of, sides][:, None]
    # What comes in from outside the picture is as dark as the darkest of it, not 0.
    low = picture.amin(dim=(2, 3), keepdim=True)
    moved = F.grid_sample(picture - low, grid, align_corners=False) + low
    shape = F.grid_sample(mask, grid, mode="nearest", align_corners=False)
    # A region pushed out of the picture would leave a support without foreground.
    stays = shape.flatten(1).any(dim=1)
    shown[of[stays], sides[stays]] = moved[stays, 0]
    marked[of[stays], sides[stays]] = shape[stays, 0]


def _whole(region: NDArray) -> NDArray:
    """Return regions as whole numbers from 0 on, or say what is wrong with them."""
    region = np.asarray(region)
    if region.dtype == bool:
        return region.astype(np.uint8)
    if region.dtype.kind not in "iu" or region.min(initial=0) < 0:
        raise ValueError(
            "regions must hold whole numbers, 0 outside and 1, 2, ... per region, "
            f"got {region.dtype} from {region.min(initial=0)}: use regions.astype(int)"
        )
    return region


def _large(region: NDArray, min_pixels: int) -> list[tuple[int, NDArray[np.int64]]]:
    top = int(region.max(initial=0)) + 1
    counts = np.stack([np.bincount(plane.ravel(), minlength=top) for plane in region])
    both = (counts[:-1] >= min_pixels) & (counts[1:] >= min_pixels)
    both[:, 0] = False
    return [(int(i), np.flatnonzero(both[:, i])) for i in np.flatnonzero(both.any(axis=0))]
