"""Styles of feature maps, and swapping them inside any network through hooks (li2025svasp).

A style is the mean and the standard deviation over space of every channel of one picture. What is
read by equation: the statistics (unbiased variance plus 1e-5) and the swap. Ours: the hooks, which
ask nothing of the network but that its stages have names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trialrun.core.errors import UsageError
from trialrun.core.seeds import split
from trialrun.core.shapes import check_axes, check_range

STYLE_EPS = 1e-5
"""What is added to the variance before its root."""

Change = Callable[[Tensor], Tensor]


class Moments(NamedTuple):
    """Mean and standard deviation over space, both of shape (batch, channels)."""

    mean: Tensor
    std: Tensor


class Style(NamedTuple):
    """A style for one stage: mean and std of shape (batch, channels), and the stage's name.

    It unpacks: ``for mean, std, stage in styles``.
    """

    mean: Tensor
    std: Tensor
    stage: str


def _check_map(name: str, features: Tensor) -> None:
    check_axes(name, features, ("batch", "channels", "height", "width"))
    if features.shape[2] * features.shape[3] < 2:
        raise ValueError(
            f"{name} must have at least two positions per channel to have a standard deviation, "
            f"got shape {tuple(features.shape)}: choose an earlier stage or larger pictures"
        )


def check_floats(name: str, x: Tensor) -> None:
    """Raise unless ``x`` holds floating-point numbers: bytes would be taken for colours above 1.

    Raises
    ------
    UsageError
        Saying what to divide by.
    """
    if not x.is_floating_point():
        raise UsageError(
            f"{name} must hold floating-point numbers from 0 to 1, got {x.dtype}: "
            "give x.float() / 255 for bytes"
        )


def at_least_single(x: Tensor) -> Tensor:
    """Return ``x`` in single precision where it comes in half of it."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def style_of(features: Float[Tensor, "batch channels height width"]) -> Moments:
    """Return mean and standard deviation over space of every picture's channels.

    Parameters
    ----------
    features : tensor of shape (batch, channels, height, width)
        With at least two positions. Of features in half precision the style is in single.

    Raises
    ------
    ValueError
        For another number of axes, or a single position.

    Examples
    --------
    >>> moments = style_of(torch.tensor([[[[1.0, 3.0]]]]))
    >>> moments.mean.item(), round(moments.std.item(), 3)
    (2.0, 1.414)
    """
    _check_map("features", features)
    variance, mean = torch.var_mean(at_least_single(features), dim=(2, 3), correction=1)
    return Moments(mean, (variance + STYLE_EPS).sqrt())


def adain(
    features: Float[Tensor, "batch channels height width"],
    mean: Float[Tensor, "batch channels"],
    std: Float[Tensor, "batch channels"],
) -> Float[Tensor, "batch channels height width"]:
    """Give feature maps another style: normalise each channel, then scale and shift it.

    Parameters
    ----------
    features : tensor of shape (batch, channels, height, width)
    mean, std : tensors of shape (batch, channels)
        The new style. A negative std mirrors the channel about its mean, which the published
        attack lets happen.

    Raises
    ------
    ValueError
        If the style is of another batch or number of channels than the features.

    Examples
    --------
    >>> x = torch.tensor([[[[1.0, 3.0]]]])
    >>> adain(x, torch.tensor([[10.0]]), style_of(x).std)
    tensor([[[[ 9., 11.]]]])
    """
    own = style_of(features)
    wanted = tuple(features.shape[:2])
    for name, given in (("mean", mean), ("std", std)):
        if tuple(given.shape) != wanted:
            raise ValueError(
                f"{name} must have shape {wanted} (batch, channels) to go with the features, "
                f"got {tuple(given.shape)}: was the style made from other pictures or stages?"
            )
    scale = at_least_single(std) / own.std
    # Centred first: a channel far from 0 would lose its differences to rounding.
    centred = at_least_single(features) - own.mean[..., None, None]
    found = centred * scale[..., None, None] + at_least_single(mean)[..., None, None]
    return found.to(features.dtype)


def find_stages(backbone: nn.Module, stages: Sequence[str]) -> dict[str, nn.Module]:
    """Return the named submodules, or say which names there are.

    Raises
    ------
    ValueError
        For a name the network does not have, with those it has.
    """
    known = dict(backbone.named_modules())
    for stage in stages:
        if stage not in known or not stage:
            top = ", ".join(name for name, _ in backbone.named_children()) or "none"
            raise ValueError(
                f"stages must name submodules of {type(backbone).__name__}, got {stage!r}: "
                f"at the top there are {top}"
            )
    return {stage: known[stage] for stage in stages}


def _hook(counts: Counter[str], stage: str, change: Change, *call: object) -> Tensor:
    output = call[-1]
    if not isinstance(output, Tensor) or output.ndim != 4:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"stage {stage} must give a feature map (batch, channels, height, width), got {got}: "
            "name a convolutional stage"
        )
    counts[stage] += 1
    if counts[stage] > 1:
        raise ValueError(
            f"stage {stage} ran twice in one pass, so its style is not one thing: name another"
        )
    return change(output)


@contextmanager
def stages_changed(backbone: nn.Module, changes: Mapping[str, Change]) -> Iterator[Counter[str]]:
    """Pass every named stage's output through a function while the body runs.

    Nothing is left behind, also when the body raises. Yields how often each stage ran.

    Raises
    ------
    ValueError
        For an unknown stage, one whose output is no feature map, or one that runs twice.
    """
    found = find_stages(backbone, tuple(changes))
    counts: Counter[str] = Counter()
    handles = []
    try:
        for stage, change in changes.items():
            hook = partial(_hook, counts, stage, change)
            handles.append(found[stage].register_forward_hook(hook))
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def run_changed(
    backbone: nn.Module, x: Tensor, changes: Mapping[str, Change], *, ordered: bool = False
) -> Tensor:
    """Run the network once with its stages changed, and make sure that each of them ran.

    With ``ordered`` they must have run in the order of ``changes``.
    """
    with stages_changed(backbone, changes) as counts:
        features = backbone(x)
    idle = [stage for stage in changes if not counts[stage]]
    if idle:
        raise ValueError(f"stages must run in a forward pass, but {', '.join(idle)} did not")
    if ordered and list(counts) != list(changes):
        raise ValueError(
            f"stages must be named in the order in which they run, {', '.join(counts)}, "
            f"got {', '.join(changes)}"
        )
    return features


def _swap(style: Style, features: Tensor) -> Tensor:
    to = at_least_single(features[:0])  # styles keep single precision where features do not
    return adain(features, style.mean.to(to), style.std.to(to))


def swaps(styles: Sequence[Style]) -> dict[str, Change]:
    """Return the changes that give every style's stage that style."""
    return {style.stage: partial(_swap, style) for style in styles}


def forward_with_styles(
    backbone: nn.Module,
    x: Float[Tensor, "batch channels height width"],
    styles: Sequence[Style],
    p_apply: int | float = 1.0,
    *,
    seed: int = 0,
) -> Tensor:
    """Run a network on pictures that are given other styles at its stages (li2025svasp).

    Parameters
    ----------
    backbone : torch.nn.Module
        Any network whose stages are named submodules; it is left as it was.
    x : tensor of shape (batch, channels, height, width)
    styles : sequence of Style
        One per stage, for the same batch; what `StyleAttack` returns.
    p_apply : float in [0, 1]
        Probability with which each stage's swap is applied to the whole batch.
    seed : int
        Decides which stages are swapped.

    Raises
    ------
    ValueError
        For an unknown stage, a style of another shape, or a probability out of range.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    >>> style = Style(torch.zeros(2, 4), torch.ones(2, 4), "0")
    >>> round(forward_with_styles(net, torch.rand(2, 3, 8, 8), [style]).var().item(), 1)
    1.0
    """
    check_range("p_apply", p_apply, low=0, high=1)
    generator = torch.Generator().manual_seed(split(seed, "which stages"))
    draws = torch.rand(len(styles), generator=generator).tolist()
    chosen = [style for style, draw in zip(styles, draws) if draw < p_apply]
    return run_changed(backbone, x, swaps(chosen))
