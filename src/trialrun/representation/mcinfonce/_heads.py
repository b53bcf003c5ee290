"""Heads that turn any backbone's features into posteriors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from trialrun.representation.mcinfonce import _stack  # noqa: F401

# isort: split
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trialrun.core.seeds import split
from trialrun.representation.mcinfonce._draws import kappa_range, whole
from trialrun.representation.mcinfonce._vmf import VonMisesFisher

HEADS = ("norm", "mlps")
_LARGEST_KAPPA = 1e8
_SLOPE = 0.01


def _linear(inputs: int, outputs: int, std: float, generator: torch.Generator) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    with torch.no_grad():
        layer.weight.normal_(0.0, std, generator=generator)
        layer.bias.zero_()
    return layer


def _mlp(sizes: Sequence[int], generator: torch.Generator) -> nn.Sequential:
    gain = math.sqrt(2 / (1 + _SLOPE**2))
    layers: list[nn.Module] = []
    for place, (inputs, outputs) in enumerate(pairwise(sizes)):
        last = place == len(sizes) - 2
        std = (1.0 if last else gain) / math.sqrt(inputs)
        layers.append(_linear(inputs, outputs, std, generator))
        if not last:
            layers.append(nn.LeakyReLU(_SLOPE))
    return nn.Sequential(*layers)


def _directed(out: Tensor) -> Tensor:
    """Point rows of zeros along the first axis, so that their direction is defined."""
    first = torch.zeros_like(out)
    first[..., 0] = 1.0
    return torch.where((out == 0).all(-1, keepdim=True), first, out)


class _NormHead(nn.Module):
    """One linear layer: the direction is mu, the length kappa."""

    def __init__(self, width: int, dim: int, low: float, high: float, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(split(seed, "norm head"))
        self.start = math.sqrt(low * high)
        # Features of mean square 1 then have kappas around the start.
        self.linear = _linear(width, dim, self.start / math.sqrt(width * dim), generator)

    def forward(self, features: Tensor) -> VonMisesFisher:
        out = self.linear(features)
        kappa = out.norm(dim=-1).clamp(max=_LARGEST_KAPPA)
        return VonMisesFisher(_directed(out), kappa, validate_args=False)

    @torch.no_grad()
    def calibrate(self, features: Tensor) -> None:
        median = self.linear(features).norm(dim=-1).median()
        if not bool(median > 0):
            raise ValueError(
                "x must give features of a length above 0 to calibrate on, got a median of "
                f"{float(median):g}: pass typical examples"
            )
        self.linear.weight.mul_(self.start / median)


class _TwoMLPs(nn.Module):
    """Two networks of the same features: mu, and kappa = exp(a softplus(net) + c)."""

    a: Tensor
    c: Tensor

    def __init__(
        self, width: int, dim: int, low: float, high: float, hidden: Sequence[int], seed: int
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(split(seed, "two networks"))
        self.low, self.high = low, high
        self.mu = _mlp([width, *hidden, dim], generator)
        self.kappa = _mlp([width, *hidden, 1], generator)
        self.register_buffer("a", torch.tensor(1.0))
        self.register_buffer("c", torch.tensor(0.5 * math.log(low * high) - math.log(2)))

    def forward(self, features: Tensor) -> VonMisesFisher:
        log_kappa = self.a * F.softplus(self.kappa(features).squeeze(-1)) + self.c
        kappa = log_kappa.clamp(max=math.log(_LARGEST_KAPPA)).exp()
        return VonMisesFisher(_directed(self.mu(features)), kappa, validate_args=False)

    @torch.no_grad()
    def calibrate(self, features: Tensor) -> None:
        raw = F.softplus(self.kappa(features).squeeze(-1))
        if self.low == self.high:  # a stays, or kappa could not be learned
            self.c.copy_(math.log(self.low) - self.a * raw.median())
            return
        spread = raw.max() - raw.min()
        if not bool(spread > 1e-6):
            raise ValueError(
                "x must give features that differ to calibrate a range of kappa on, got a spread "
                f"of {float(spread):g}: pass several typical examples"
            )
        self.a.copy_(math.log(self.high / self.low) / spread)
        self.c.copy_(math.log(self.low) - self.a * raw.min())


class VMFEncoder(nn.Module):
    """Put a von Mises-Fisher head on a backbone (kirchhof2023mcinfonce).

    Parameters
    ----------
    backbone : nn.Module
        Returns features (rows, width): a timm model made with ``num_classes=0``, a network of your
        own, or ``nn.Identity()`` for vectors.
    dim : int, at least 2
        Coordinates of the latent space.
    head : ``"norm"`` or ``"mlps"``
        One linear layer whose direction is mu and whose length is kappa; or two networks, for mu
        and for kappa, which can be trained in two phases.
    width : int or None
        Features that the backbone returns; None asks its ``num_features`` (timm).
    kappa : float or (low, high)
        Where concentrations start; `calibrate` makes it so on your inputs.
    hidden : sequence of int or None
        Widths of the two networks' hidden layers; None is six, of 10, 50, 50, 50, 50 and 10 times
        the width, as in the paper's controlled experiments.
    example_dims : int or None
        Axes of one example (1 for vectors, 3 for pictures). Leading axes beyond the batch, as of
        drawn negatives (batch, negatives, ...), are then folded away and restored.
    seed : int
        Seed of the head's weights.

    Raises
    ------
    ValueError
        If a setting is out of range, the width is unknown, or the backbone returns another shape.

    Examples
    --------
    >>> encoder = VMFEncoder(nn.Identity(), 4, width=10, head="mlps", hidden=(32,), example_dims=1)
    >>> encoder(torch.randn(5, 10))
    VonMisesFisher(batch (5,), dim 4)
    >>> encoder(torch.randn(5, 16, 10))
    VonMisesFisher(batch (5, 16), dim 4)
    """

    def __init__(
        self,
        backbone: nn.Module,
        dim: int,
        *,
        head: str = "norm",
        width: int | None = None,
        kappa: float | int | tuple[float | int, float | int] = (16.0, 32.0),
        hidden: Sequence[int] | None = None,
        example_dims: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(backbone, nn.Module):
            raise ValueError(  # noqa: TRY004 - one kind of error for all settings
                f"backbone must be an nn.Module, got {type(backbone).__name__}"
            )
        if head not in HEADS:
            raise ValueError(f"head must be one of {', '.join(HEADS)}, got {head!r}")
        self.width = _width(backbone, width)
        self.dim = whole("dim", dim, low=2)
        self.example_dims = (
            None if example_dims is None else whole("example_dims", example_dims, low=1)
        )
        low, high = kappa_range(kappa)
        self.backbone = backbone
        if head == "norm":
            self.head: Any = _NormHead(self.width, dim, low, high, seed)
        else:
            sizes = [10, 50, 50, 50, 50, 10]
            widths = [k * self.width for k in sizes] if hidden is None else list(hidden)
            self.head = _TwoMLPs(self.width, dim, low, high, widths, seed)

    def features(self, x: Tensor) -> Tensor:
        """Return the backbone's features (..., width).

        Parameters
        ----------
        x : Tensor (batch, ..., example)
            Examples; with ``example_dims``, under any number of leading axes.
        """
        if self.example_dims is None:
            try:
                found, lead = self.backbone(x), tuple(x.shape[:1])
            except RuntimeError as error:
                error.add_note(
                    f"x has shape {tuple(x.shape)}: where rows lie under several leading axes, as "
                    "negatives (batch, negatives, ...) do, pass example_dims to VMFEncoder (3 for "
                    "pictures)"
                )
                raise
        else:
            if x.ndim <= self.example_dims:
                raise ValueError(
                    f"x must have a batch axis before its {self.example_dims} axes of one example, "
                    f"got shape {tuple(x.shape)}"
                )
            lead = tuple(x.shape[: x.ndim - self.example_dims])
            found = self.backbone(x.reshape(-1, *x.shape[x.ndim - self.example_dims :]))
        if not isinstance(found, Tensor) or found.ndim != 2 or found.shape[1] != self.width:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"backbone must return shape (rows, {self.width}), got {got}: pool its features, "
                "or pass width or example_dims"
            )
        return found.reshape(*lead, self.width)

    def forward(self, x: Tensor) -> VonMisesFisher:
        """Return one posterior per example; a direction of length 0 becomes the first axis.

        Parameters
        ----------
        x : Tensor (batch, ..., example)
            Examples; with ``example_dims``, under any number of leading axes.
        """
        return self.head(self.features(x))

    def calibrate(self, x: Tensor) -> VMFEncoder:
        """Set the head so that concentrations start where ``kappa`` said.

        Parameters
        ----------
        x : Tensor (batch, ..., example)
            Examples typical of those to come.

        Raises
        ------
        ValueError
            If there are none, or their features are not finite, all zero or (two networks) alike.
        """
        with torch.no_grad():
            features = self.features(x).reshape(-1, self.width)
            if not len(features) or not bool(torch.isfinite(features).all()):
                got = "no rows" if not len(features) else "NaN or infinity"
                raise ValueError(f"x must give finite features to calibrate on, got {got}")
            self.head.calibrate(features)
        return self

    def parameters_of(self, part: str) -> list[nn.Parameter]:
        """Return the parameters of ``"mu"`` (with the backbone's) or of ``"kappa"`` alone.

        Only two networks can be trained apart: first mu, then kappa. A loss also reaches the
        backbone through kappa: while mu is trained, give it ``VonMisesFisher(post.mu,
        post.kappa.detach())``, or concentrations grow. `calibrate` again before kappa is trained,
        since the backbone's features have changed.

        Parameters
        ----------
        part : ``"mu"`` or ``"kappa"``
        """
        if not isinstance(self.head, _TwoMLPs):
            raise ValueError(  # noqa: TRY004 - a setting is wrong, not a type
                "parameters_of needs head='mlps': one linear layer gives both mu and kappa"
            )
        if part not in ("mu", "kappa"):
            raise ValueError(f"part must be mu or kappa, got {part!r}")
        own = list(getattr(self.head, part).parameters())
        return [*self.backbone.parameters(), *own] if part == "mu" else own


def _width(backbone: nn.Module, width: int | None) -> int:
    found = getattr(backbone, "num_features", None) if width is None else width
    if not isinstance(found, int):
        raise ValueError(  # noqa: TRY004 - a setting is missing, not a type
            f"width must be given: {type(backbone).__name__} does not say num_features"
        )
    return whole("width", found, low=1)
