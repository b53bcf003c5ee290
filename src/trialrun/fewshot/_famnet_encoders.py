"""Encoders: a dilated ResNet-50 written without torchvision, and a small one for small images.

The ResNet takes torchvision's parameter names, so a file of ``deeplabv3_resnet50`` (COCO) loads;
the authors' ``encoder.`` files load as well. A file that matches nothing is an error: in the
authors' script one weight option matches no name and training starts from noise unnoticed.
"""

from __future__ import annotations

from trialrun.fewshot import _famnet_stack  # noqa: F401

# isort: split
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trialrun.core.shapes import check_axes, check_range
from trialrun.fewshot._famnet_init import seeded


class Loaded(NamedTuple):
    """What a weight file brought: parameters ``taken``, those still ``missing``, names unused."""

    taken: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]


_BACKBONE = re.compile(r"(encoder\.)?(backbone\.)?(conv1|bn1|layer[1-4])\.")


def _check_images(images: Tensor, weight: Tensor) -> None:
    """Raise where ``images`` of shape (batch, channels, rows, columns) give no feature map."""
    check_axes("images", images, ("batch", "channels", "rows", "columns"))
    if not len(images):
        raise ValueError("images must hold at least one image, got none")
    rows, columns = images.shape[2:]
    if -(-rows // 4) * -(-columns // 4) < 2:
        raise ValueError(
            "images must be larger than 4 x 4 pixels, so that features have more than one place, "
            f"got {rows} x {columns}"
        )
    if images.dtype != weight.dtype and not torch.is_autocast_enabled(images.device.type):
        raise ValueError(
            f"images must be {weight.dtype}, as the encoder's weights are, got {images.dtype}: "
            f"use images.to({weight.dtype})"
        )


class _Bottleneck(nn.Module):
    def __init__(self, inside: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        out = 4 * width
        self.conv1 = nn.Conv2d(inside, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(
            width, width, 3, stride, padding=dilation, dilation=dilation, bias=False
        )
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample: nn.Module | None = None
        if stride != 1 or inside != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        short = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + short)


def _layer(
    inside: int, width: int, blocks: int, stride: int, dilations: tuple[int, int]
) -> nn.Sequential:
    first = _Bottleneck(inside, width, stride, dilations[0])
    rest = [_Bottleneck(4 * width, width, 1, dilations[1]) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


class ResNet50Dilated(nn.Module):
    """Encode with a ResNet-50 whose second and third stage are dilated: features at stride 4.

    Parameters
    ----------
    channels : int, at least 1
        Width of the features, from the third stage through a 1x1 convolution without bias,
        instance normalisation and a ReLU.
    seed : int
        Of the weights, before any file is loaded.

    Raises
    ------
    ValueError
        If a size is out of range, or a weight file matches nothing.

    Examples
    --------
    >>> features, threshold = ResNet50Dilated(channels=16).eval()(torch.zeros(1, 3, 32, 32))
    >>> features.shape, threshold.shape
    (torch.Size([1, 16, 8, 8]), torch.Size([1]))
    """

    in_channels = 3

    def __init__(self, channels: int = 512, *, seed: int = 0) -> None:
        super().__init__()
        check_range("channels", channels, low=1)
        self.channels = channels
        with seeded(seed, "resnet50"):
            self.backbone = nn.ModuleDict(
                OrderedDict(
                    conv1=nn.Conv2d(3, 64, 7, 2, padding=3, bias=False),
                    bn1=nn.BatchNorm2d(64),
                    layer1=_layer(64, 64, 3, 1, (1, 1)),
                    layer2=_layer(256, 128, 4, 1, (1, 2)),
                    layer3=_layer(512, 256, 6, 1, (2, 4)),
                    layer4=_layer(1024, 512, 3, 2, (4, 4)),
                    fc=nn.Linear(2048, 1000),
                )
            )
            self.reduce1 = nn.Conv2d(1024, channels, 1, bias=False)
            self.reduce1d = nn.Linear(1000, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (batch, channels, rows / 4, columns / 4) and a threshold per image.

        ``images`` are (batch, 3, rows, columns).
        """
        _check_images(images, self.reduce1.weight)
        x = F.relu(self.backbone["bn1"](self.backbone["conv1"](images)))
        x = F.max_pool2d(x, 3, 2, padding=1)
        for name in ("layer1", "layer2", "layer3"):
            x = self.backbone[name](x)
        features = F.relu(F.instance_norm(self.reduce1(x)))
        deep = self.backbone["layer4"](x).mean(dim=(2, 3))
        return features, self.reduce1d(self.backbone["fc"](deep))[:, 0]

    def load_pretrained(self, state: Mapping[str, Tensor]) -> Loaded:
        """Take weights of a torchvision ResNet-50, of DeepLabV3 on one, or of these authors.

        Parameters
        ----------
        state : mapping of name to tensor
            Names may begin with ``module.``, ``encoder.`` or ``backbone.``; other heads in the
            file are left.
            torchvision's COCO file has no ``fc``, so the threshold branch stays untrained there:
            `Loaded.missing` says so.

        Raises
        ------
        ValueError
            If no name matches, a tensor has another shape, or the file's backbone is another one:
            a deeper ResNet, or only a part of this.
        """
        own = self.state_dict()
        taken: dict[str, Tensor] = {}
        unused: list[str] = []
        for name, value in state.items():
            plain = name.removeprefix("module.").removeprefix("encoder.")
            options = (plain, f"backbone.{plain}")
            match = next((option for option in options if option in own), None)
            if match is None:
                unused.append(name)
                continue
            if own[match].shape != value.shape:
                raise ValueError(
                    f"{name} must have shape {tuple(own[match].shape)}, got {tuple(value.shape)}"
                )
            taken[match] = value
        weights = [name for name in taken if name.endswith("weight")]
        if not weights:
            some = ", ".join(list(state)[:3]) or "no names"
            raise ValueError(
                "state must hold a ResNet-50's weights (conv1.weight or backbone.conv1.weight, "
                f"...), got {some}: nothing was loaded"
            )
        foreign = [name for name in unused if _BACKBONE.match(name.removeprefix("module."))]
        if foreign:
            raise ValueError(
                f"state must hold a ResNet-50, got {len(foreign)} weights that it lacks, such as "
                f"{foreign[0]} (a deeper ResNet?): nothing was loaded"
            )
        wanted = [
            name for name in own
            if name.startswith("backbone.") and ".fc." not in name
            and not name.endswith("num_batches_tracked")
        ]  # fmt: skip
        absent = [name for name in wanted if name not in taken]
        if absent:
            raise ValueError(
                f"state must hold a whole ResNet-50, got {len(wanted) - len(absent)} of "
                f"{len(wanted)} weights, without {absent[0]}: nothing was loaded"
            )
        self.load_state_dict({**own, **taken})
        trained = {name for name, _ in self.named_parameters()}
        missing = tuple(name for name in own if name in trained and name not in taken)
        return Loaded(tuple(taken), missing, tuple(unused))


_DILATIONS = (1, 2, 4)


class SmallEncoder(nn.Module):
    """Encode small images without pretraining: five convolutions, features at stride 4.

    Two of them are dilated, so that a feature sees 63 pixels across; the end is the ResNet's: a 1x1
    convolution, instance normalisation and a ReLU.

    Parameters
    ----------
    channels : int, a multiple of 8
        Width of the features.
    in_channels : int
        Channels of the images.
    seed : int
        Of the weights.

    Raises
    ------
    ValueError
        If a size is out of range.

    Examples
    --------
    >>> SmallEncoder(channels=16)(torch.zeros(1, 1, 32, 32)).shape
    torch.Size([1, 16, 8, 8])
    """

    def __init__(self, channels: int = 64, *, in_channels: int = 1, seed: int = 0) -> None:
        super().__init__()
        if channels < 8 or channels % 8:
            raise ValueError(f"channels must be a multiple of 8, got {channels!r}")
        check_range("in_channels", in_channels, low=1)
        self.channels, self.in_channels = channels, in_channels
        half = max(8, channels // 2 // 4 * 4)
        sizes = [(in_channels, half, 2, 1), (half, channels, 2, 1)]
        sizes += [(channels, channels, 1, dilation) for dilation in _DILATIONS]
        parts: list[nn.Module] = []
        with seeded(seed, "small encoder"):
            for inside, outside, stride, dilation in sizes:
                parts += [
                    nn.Conv2d(inside, outside, 3, stride, dilation, dilation=dilation, bias=False),
                    nn.GroupNorm(4, outside),
                    nn.ReLU(),
                ]
            parts.append(nn.Conv2d(channels, channels, 1, bias=False))
        self.body = nn.Sequential(*parts)

    def forward(self, images: Tensor) -> Tensor:
        """Return features (batch, channels, rows / 4, columns / 4) of ``images``."""
        _check_images(images, next(self.body.parameters()))
        return F.relu(F.instance_norm(self.body(images)))
