"""What an attack on styles is made of: presets, draws, and the ensemble of gradients (li2025svasp).

The published code subtracts the crops' gradient while the text speaks of a decay-weighted
integration, so both are presets. ``styleadv`` is the rival's attack (fu2023styleadv) and ``noise``
a baseline of ours: steps of the same size in random directions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from trialrun.fewshot import _svasp_stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Float
from torch import Tensor

from trialrun.core.seeds import split
from trialrun.core.shapes import check_axes
from trialrun.fewshot._svasp_style import Moments, Style, check_floats

STARTS = ("gaussian", "constant", "none")
SIGNS = {"minus": -1.0, "plus": 1.0}


@dataclass(frozen=True)
class Preset:
    """What an attack does where its settings are left to the preset."""

    crop_decay: float
    start: str
    sign: str
    normalise: bool


PRESETS = {
    "code": Preset(0.1, "gaussian", "minus", True),
    "paper": Preset(0.1, "gaussian", "plus", True),
    "styleadv": Preset(0.0, "constant", "minus", False),
    "noise": Preset(0.0, "gaussian", "minus", False),
}


class StyleStep(NamedTuple):
    """What was done at one stage: the style found, and the gradients behind it.

    ``gradient`` is the mixed one whose sign was followed, of shape (batch, channels). ``raw`` has
    shape (crops + 1, batch, channels): those of the crops, then the picture's own.
    """

    style: Style
    gradient: Moments
    raw: Moments


class Draws(NamedTuple):
    """Everything random at one stage: where the style starts, and how far it goes."""

    mean_start: Tensor
    std_start: Tensor
    mean_eps: float
    std_eps: float


def _unit(gradient: Tensor) -> Tensor:
    size = gradient.abs().mean(dim=-1, keepdim=True)
    return gradient / torch.where(size > 0, size, torch.ones_like(size))


def mix_gradients(
    raw: Float[Tensor, "parts batch channels"], settings: Preset
) -> Float[Tensor, "batch channels"]:
    """Mix the crops' gradients (all but the last) into the picture's own (the last)."""
    scaled: Callable[[Tensor], Tensor] = _unit if settings.normalise else torch.Tensor.clone
    own = scaled(raw[-1])
    if len(raw) == 1:
        return own
    return own + SIGNS[settings.sign] * settings.crop_decay * scaled(raw[:-1].mean(dim=0))


def used_crops(crop_decay: float, x: Tensor, crops: Tensor | None, y: Tensor) -> Tensor:
    """Return the crops that an attack of this decay uses, (crops, *x.shape), perhaps none.

    Raises
    ------
    ValueError
        For crops that are missing or of another shape than ``x``, or labels that are no classes.
    """
    check_axes("x", x, ("batch", "channels", "height", "width"))
    check_floats("x", x)
    if tuple(y.shape) != (len(x),):
        raise ValueError(f"y must have one class per picture, ({len(x)},), got {tuple(y.shape)}")
    if not len(x):
        raise ValueError("x must hold at least one picture, got none")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(f"y must hold integers, got {y.dtype}: call .long() on it")
    check_classes(y, None)
    if crops is None or crop_decay == 0:
        if crop_decay > 0:
            raise ValueError(
                f"crops must be given with crop_decay {crop_decay}: make them "
                "with random_crops, or set crop_decay=0"
            )
        return x.new_empty(0, *x.shape)
    check_axes("crops", crops, ("crops", "batch", "channels", "height", "width"))
    check_floats("crops", crops)
    if crops.shape[1:] != x.shape or not len(crops):
        raise ValueError(
            f"crops must have shape (crops, {', '.join(map(str, x.shape))}) to go with x, "
            f"got {tuple(crops.shape)}"
        )
    return crops


def check_classes(y: Tensor, classes: int | None) -> None:
    """Raise unless labels lie between 0 and the number of classes, where it is known.

    Raises
    ------
    ValueError
        Naming the lowest and the highest label.
    """
    low, high = int(y.min()), int(y.max())
    if low < 0 or (classes is not None and high >= classes):
        top = "" if classes is None else f" to {classes - 1}, one per logit of the classifier"
        raise ValueError(f"y must hold classes from 0{top}, got {low} to {high}")


def check_word(name: str, value: str | None, known: tuple[str | None, ...]) -> None:
    """Raise unless a setting is one of the words that are known.

    Raises
    ------
    ValueError
        Listing the words.
    """
    if value not in known:
        words = ", ".join(str(word) for word in known)
        raise ValueError(f"{name} must be one of {words}, got {value!r}")


def random_ways(stage: str, own: Moments, seed: int) -> Moments:
    """Return a random direction of each channel's mean and deviation, 1 or -1, as gradients."""
    generator = torch.Generator().manual_seed(split(seed, "direction", stage))
    ways = torch.randint(2, (2, 1, *own.mean.shape), generator=generator) * 2 - 1
    return Moments(ways[0].to(own.mean), ways[1].to(own.std))


def only_last(size: int, change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a change that leaves the crops, which come first, as they are."""

    def changed(features: Tensor) -> Tensor:
        if len(features) == size:
            return change(features)
        return torch.cat([features[:-size], change(features[-size:])])

    return changed
