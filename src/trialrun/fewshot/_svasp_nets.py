"""Backbones with named stages: ResNet-10 and a small network of four blocks.

Written from the sizes in the project's notes (stages of 64, 128, 256 and 512 channels, two 3 x 3
convolutions each); weights carry our own names, so published checkpoints do not load.
Any other network with named stages serves as well: a timm ResNet made with ``num_classes=0`` is
attacked at ``layer1``, ``layer2`` and ``layer3``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from trialrun.core.shapes import check_axes, check_range
from trialrun.fewshot._svasp_style import Style, forward_with_styles


class _Staged(nn.Module):
    """A network with stages ``layer1`` to ``layer4`` and features averaged over space."""

    stages: tuple[str, ...] = ("layer1", "layer2", "layer3")
    width: int
    channels: int

    def forward_with_styles(
        self,
        x: Float[Tensor, "batch channels height width"],
        styles: Sequence[Style],
        p_apply: int | float = 1.0,
        *,
        seed: int = 0,
    ) -> Float[Tensor, "batch features"]:
        """Run on pictures ``x`` given other ``styles``, each applied with ``p_apply``.

        ``seed`` decides which; see the function of the same name.
        """
        return forward_with_styles(self, x, styles, p_apply, seed=seed)

    def _check(self, x: Tensor) -> None:
        check_axes("x", x, ("batch", "channels", "height", "width"))
        if x.shape[1] != self.channels:
            raise ValueError(f"x must have {self.channels} channels, got {x.shape[1]}")


class _Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.short: nn.Module = nn.Identity()
        if n_in != n_out or stride != 1:
            self.short = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(inner)) + self.short(x))


class ResNet10(_Staged):
    """Turn pictures into features of width 512 through four residual stages (li2025svasp).

    Parameters
    ----------
    widths : sequence of four int
        Channels of the stages.
    channels : int, at least 1
        Channels of a picture.
    seed : int
        Start of the weights; torch's global generator is left alone.

    Raises
    ------
    ValueError
        For pictures with other channels, or widths that are not four numbers above 0.

    Examples
    --------
    >>> net = ResNet10(widths=(8, 16, 16, 32)).eval()
    >>> net(torch.rand(2, 3, 64, 64)).shape, net.stages
    (torch.Size([2, 32]), ('layer1', 'layer2', 'layer3'))
    """

    def __init__(
        self, *, widths: Sequence[int] = (64, 128, 256, 512), channels: int = 3, seed: int = 0
    ) -> None:
        super().__init__()
        _check_widths(widths, channels)
        self.channels, self.width = channels, widths[3]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv1 = nn.Conv2d(channels, widths[0], 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(widths[0])
            self.layer1 = _Block(widths[0], widths[0], 1)
            self.layer2 = _Block(widths[0], widths[1], 2)
            self.layer3 = _Block(widths[1], widths[2], 2)
            self.layer4 = _Block(widths[2], widths[3], 2)
            _start(self)

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Return features of shape (batch, width) of pictures ``x``."""
        self._check(x)
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean(dim=(2, 3))


class Conv4(_Staged):
    """Turn small pictures into features through four convolutions (snell2017, strided).

    Parameters
    ----------
    widths : sequence of four int
        Channels of the blocks. Blocks halve the picture by their stride, where the usual form
        convolves at full size and pools: a quarter of the work.
    channels : int, at least 1
        Channels of a picture.
    seed : int
        Start of the weights; torch's global generator is left alone.

    Raises
    ------
    ValueError
        For pictures with other channels, or widths that are not four numbers above 0.

    Examples
    --------
    >>> Conv4(widths=(8, 8, 8, 16))(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 16])
    """

    def __init__(
        self, *, widths: Sequence[int] = (64, 64, 64, 64), channels: int = 3, seed: int = 0
    ) -> None:
        super().__init__()
        _check_widths(widths, channels)
        self.channels, self.width = channels, widths[3]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sizes = [channels, *widths]
            for i, stride in enumerate((2, 2, 2, 1)):
                block = nn.Sequential(
                    nn.Conv2d(sizes[i], sizes[i + 1], 3, stride, 1, bias=False),
                    nn.BatchNorm2d(sizes[i + 1]),
                    nn.ReLU(),
                )
                self.add_module(f"layer{i + 1}", block)
            _start(self)

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Return features of shape (batch, width) of pictures ``x``."""
        self._check(x)
        for i in range(1, 5):
            x = self.get_submodule(f"layer{i}")(x)
        return x.mean(dim=(2, 3))


def _check_widths(widths: Sequence[int], channels: int) -> None:
    check_range("channels", channels, low=1)
    if len(widths) != 4:
        raise ValueError(f"widths must be four numbers, got {len(widths)}")
    for width in widths:
        check_range("widths", width, low=1)


def _start(net: nn.Module) -> None:
    for part in net.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
