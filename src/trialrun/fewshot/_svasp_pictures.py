"""Crops and augmentations of picture batches, each from its own generator and without torchvision.

What training uses is in the project's notes on the published code: crops of a fifth to two fifths
of the area, jitter of 0.4 and flips of whole pictures; the augmentations of fine-tuning are gamma,
erasing, channel shuffling, flips and quarter turns.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from trialrun.core.errors import UsageError
from trialrun.core.seeds import split
from trialrun.core.shapes import check_axes, check_range
from trialrun.fewshot._svasp_style import check_floats

_SLACK = 1e-2  # resampled pictures overshoot a little, half precision rounds
_AXES = ("batch", "channels", "height", "width")


def _generator(seed: int, name: str) -> torch.Generator:
    return torch.Generator().manual_seed(split(seed, name))


def _uniform(
    low: int | float, high: int | float, shape: tuple[int, ...], source: torch.Generator
) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=source)


def random_crops(
    x: Float[Tensor, "batch channels height width"],
    crops: int = 2,
    *,
    area: tuple[int | float, int | float] = (0.2, 0.4),
    seed: int = 0,
) -> Float[Tensor, "crops batch channels height width"]:
    """Cut random rectangles from every picture and enlarge them to its size (li2025svasp).

    Parameters
    ----------
    x : tensor of shape (batch, channels, height, width)
    crops : int, at least 1
        Crops per picture.
    area : pair of float in (0, 1]
        Smallest and largest share of the picture's area; the shape varies by up to 4 : 3.
    seed : int

    Raises
    ------
    ValueError
        For shares out of range or in the wrong order.

    Examples
    --------
    >>> random_crops(torch.rand(3, 1, 8, 8), 2).shape
    torch.Size([2, 3, 1, 8, 8])
    """
    check_axes("x", x, _AXES)
    check_floats("x", x)
    check_range("crops", crops, low=1)
    if not len(x):
        raise ValueError(f"x must hold at least one picture, got shape {tuple(x.shape)}")
    low, high = area
    if not 0 < low <= high <= 1:
        raise ValueError(f"area must be two shares with 0 < low <= high <= 1, got {area}")
    source, shape = _generator(seed, "crops"), (crops * len(x),)
    share = _uniform(float(low), float(high), shape, source)
    aspect = _uniform(-math.log(4 / 3), math.log(4 / 3), shape, source).exp()
    # Half sides on the grid's scale, where a picture reaches from -1 to 1.
    wide, tall = (share * aspect).sqrt().clamp(max=1), (share / aspect).sqrt().clamp(max=1)
    across = _uniform(-1, 1, shape, source) * (1 - wide)
    down = _uniform(-1, 1, shape, source) * (1 - tall)
    zero = torch.zeros(shape)
    half = x.dtype in (torch.float16, torch.bfloat16)  # too coarse for the places in a picture
    many = (x.float() if half else x).repeat(crops, 1, 1, 1)
    rows = torch.stack([wide, zero, across, zero, tall, down], 1).view(-1, 2, 3).to(many)
    grid = functional.affine_grid(rows, list(many.shape), align_corners=False)
    cut = functional.grid_sample(many, grid, padding_mode="border", align_corners=False)
    return cut.view(crops, *x.shape).to(x.dtype)


def jitter(
    x: Float[Tensor, "batch channels height width"],
    *,
    strength: int | float = 0.4,
    flip: bool = True,
    seed: int = 0,
) -> Float[Tensor, "batch channels height width"]:
    """Change brightness, contrast and saturation of pictures in [0, 1] at random, and mirror half.

    Parameters
    ----------
    x : tensor of shape (batch, channels, height, width)
        Numbers from 0 to 1.
    strength : float in [0, 1)
        Each factor is drawn between 1 - strength and 1 + strength.
    flip : bool
        Mirror each picture with probability one half; not for characters.
    seed : int

    Raises
    ------
    ValueError
        For a strength out of range, or numbers outside 0 to 1.

    Examples
    --------
    >>> bool((jitter(torch.full((1, 3, 2, 2), 0.5), strength=0) == 0.5).all())
    True
    """
    check_axes("x", x, _AXES)
    check_range("strength", strength, low=0, high=0.999)
    if len(x):
        low, high = (float(end) for end in x.detach().aminmax())
        if not (low >= -_SLACK and high <= 1 + _SLACK):
            raise UsageError(
                f"x must hold numbers from 0 to 1, got {low:.3g} to {high:.3g}: jitter first and "
                "whiten afterwards, in the first layer of the backbone"
            )
    source = _generator(seed, "jitter")
    factors = _uniform(1 - strength, 1 + strength, (3, len(x), 1, 1, 1), source).to(x)
    x = x * factors[0]
    x = torch.lerp(x.mean(dim=(1, 2, 3), keepdim=True), x, factors[1])
    x = torch.lerp(x.mean(dim=1, keepdim=True), x, factors[2]).clamp(0, 1)
    if flip:
        mirrored = torch.rand(len(x), 1, 1, 1, generator=source).to(x.device) < 0.5
        x = torch.where(mirrored, x.flip(-1), x)
    return x


def pseudo_queries(
    support: Float[Tensor, "way shot channels height width"],
    per_class: int = 15,
    *,
    seed: int = 0,
) -> Float[Tensor, "way per_class channels height width"]:
    """Make labelled queries from the support alone, by strong augmentation (li2025svasp).

    Parameters
    ----------
    support : tensor of shape (way, shot, channels, height, width)
        Pictures in [0, 1].
    per_class : int, at least 1
    seed : int

    Raises
    ------
    ValueError
        For another number of axes.

    Examples
    --------
    >>> pseudo_queries(torch.rand(5, 1, 3, 8, 8), 15).shape
    torch.Size([5, 15, 3, 8, 8])
    """
    check_axes("support", support, ("way", "shot", *_AXES[1:]))
    check_range("per_class", per_class, low=1)
    source = _generator(seed, "pseudo-queries")
    way, shot = support.shape[:2]
    which = torch.randint(shot, (way, per_class), generator=source)
    x = support[torch.arange(way)[:, None], which].flatten(0, 1)
    pictures = [_augmented(picture, source) for picture in x]
    return torch.stack(pictures).unflatten(0, (way, per_class))


def _augmented(picture: Tensor, source: torch.Generator) -> Tensor:
    """One picture after gamma, shuffled channels, a mirror, a turn and erasing, each by chance."""
    draws = torch.rand(9, generator=source).tolist()
    channels, height, width = picture.shape
    picture = picture.clamp(0, 1) ** (0.5 + draws[0])
    if draws[1] < 0.5:
        picture = picture[torch.randperm(channels, generator=source)]
    if draws[2] < 0.5:
        picture = picture.flip(-1)
    if draws[3] < 0.5:
        # A quarter turn of a picture that is not square would change its shape.
        turns = 1 + int(draws[4] * 3) if height == width else 2
        picture = picture.rot90(turns, (1, 2))
    if draws[5] < 0.5:
        side = 0.2 + 0.3 * draws[6]
        tall, wide = max(1, int(side * height)), max(1, int(side * width))
        top, left = int(draws[7] * (height - tall + 1)), int(draws[8] * (width - wide + 1))
        picture = picture.clone()
        picture[:, top : top + tall, left : left + wide] = 0
    return picture
