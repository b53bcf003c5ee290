"""Spectra of relative-position masks: frequencies to sample, and what each contributes.

A mask f(z) = int g(xi) cos(2 pi xi . z) + h(xi) sin(2 pi xi . z) d xi is estimated by the mean over
frequencies xi_m of a(xi_m) cos + b(xi_m) sin, with a = g / p and b = h / p for the density p that
the frequencies are drawn from. Frequencies come from uniform points in (0, 1)^dim, so that points
which fill the cube evenly serve as well as independent ones. The cosine of a frequency and of its
opposite agree, so the first coordinate is drawn from the positive half line alone.

Every spectrum works in units of its ``scale``; what it learns has about unit size.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

TAIL = 8.0


class Waves(NamedTuple):
    """Frequencies (heads, freqs, dim), and what each adds to the mask: (heads, freqs).

    ``odd`` is None where the mask is even.
    """

    frequencies: Tensor
    even: Tensor
    odd: Tensor | None = None


class Spectrum(Protocol):
    """Turns uniform points into waves, and knows the mask they estimate."""

    def __call__(self, points: Tensor) -> Waves:
        """Return the waves at uniform points (heads, freqs, dim)."""

    def exact(self, offsets: Tensor) -> Tensor:
        """Return the mask itself, (heads, ...), at offsets (..., dim)."""


def tail_of(dim: int) -> float:
    """Return where the frequencies of a box end, in periods per half width of an axis.

    Its sine lobes end at multiples of 1/2. A product of long tails over several axes costs more
    noise than it saves in rounded edges, so they share one tail.
    """
    return TAIL ** (1 / dim)


def wide(x: Tensor) -> Tensor:
    """Return ``x`` in at least float32: the exponentials here are unsafe in 16 bits."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _half_normal(points: Tensor) -> Tensor:
    """Map uniform points to a standard normal whose first coordinate is made positive."""
    first = torch.special.ndtri((1 + points[..., :1]) / 2)
    return torch.cat((first, torch.special.ndtri(points[..., 1:])), dim=-1)


def head_scales(scale: float, heads: int) -> Tensor:
    """Return where each head's length begins: from half of ``scale`` to twice it."""
    if heads == 1:
        return torch.tensor([scale])
    return scale * 4.0 ** (torch.arange(heads) / (heads - 1) - 0.5)


class Mixture(nn.Module):
    """A spectrum made of Gaussian blobs, g(xi) = sum_s w_s exp(-|xi - mu_s|^2 / sigma_s^2).

    What is learned is each blob's mass w_s (pi sigma_s^2)^(dim/2), which is its part in f(0), in
    nats; its centre and its log sigma^2. With ``asymmetric`` every blob has a second mass, for
    sines.
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        blobs: int,
        scale: float,
        asymmetric: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.scale = scale

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        self.mass = nn.Parameter(0.1 * normal(heads, blobs))
        self.centre = nn.Parameter(normal(heads, blobs, dim).clamp(-2, 2))
        self.log_width = nn.Parameter(torch.full((heads, blobs), math.log(0.25)))
        self.odd_mass = nn.Parameter(0.1 * normal(heads, blobs)) if asymmetric else None

    def _bells(self, at: Tensor) -> Tensor:
        """Return each blob of mass 1 over the standard normal density, at ``at``."""
        width = wide(self.log_width).unsqueeze(-2)
        gap = (at.unsqueeze(-2) - wide(self.centre).unsqueeze(-3)).square().sum(-1)
        log_normal = -0.5 * at.square().sum(-1, keepdim=True) - at.shape[-1] / 2 * math.log(2.0)
        return (-gap / width.exp() - at.shape[-1] / 2 * width - log_normal).exp()

    def forward(self, points: Tensor) -> Waves:
        """Return the waves at uniform points (heads, freqs, dim)."""
        at = _half_normal(points).to(wide(self.mass).dtype)
        here, there = self._bells(at), self._bells(-at)
        even = ((here + there) / 2 * wide(self.mass).unsqueeze(-2)).sum(-1)
        odd = None
        if self.odd_mass is not None:
            odd = ((here - there) / 2 * wide(self.odd_mass).unsqueeze(-2)).sum(-1)
        return Waves(at / self.scale, even, odd)

    def exact(self, offsets: Tensor) -> Tensor:
        """Return the mask itself, (heads, ...), at offsets (..., dim)."""
        z = (offsets / self.scale).unsqueeze(-2)
        fade = z.square().sum(-1) * self.log_width.reshape(_lead(self.log_width, z)).exp()
        centre = self.centre.reshape(*_lead(self.log_width, z), self.centre.shape[-1])
        turn = 2 * math.pi * (z * centre).sum(-1)
        waves = self.mass.reshape(_lead(self.mass, z)) * turn.cos()
        if self.odd_mass is not None:
            waves = waves + self.odd_mass.reshape(_lead(self.mass, z)) * turn.sin()
        return (waves * (-(math.pi**2) * fade).exp()).sum(-1)


def _lead(x: Tensor, like: Tensor) -> tuple[int, ...]:
    """Shape (heads, parts) as (heads, 1, ..., 1, parts), to go with ``like`` (..., 1, dim)."""
    return (x.shape[0], *(1,) * (like.ndim - 2), *x.shape[1:])


class Scenic(nn.Module):
    """The blobs as in scenic2023performer: weights unnormalised, log sigma^2 learned.

    Frequencies are independent standard normal draws of either sign, and the density they are
    divided by has the constant of one dimension whatever the dimension is.
    """

    def __init__(
        self, *, dim: int, heads: int, blobs: int, scale: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(0.1 * torch.randn(heads, blobs, generator=generator))
        self.centre = nn.Parameter(torch.randn(heads, blobs, dim, generator=generator))
        self.log_width = nn.Parameter(torch.zeros(heads, blobs))

    def forward(self, points: Tensor) -> Waves:
        """Return the waves at uniform points (heads, freqs, dim)."""
        weight = wide(self.weight)
        at = torch.special.ndtri(points).to(weight.dtype)
        gap = (at.unsqueeze(-2) - wide(self.centre).unsqueeze(-3)).square().sum(-1)
        blobs = (-gap / wide(self.log_width).unsqueeze(-2).exp()).exp()
        density = (-0.5 * at.square().sum(-1)).exp() / math.sqrt(2 * math.pi)
        return Waves(at / self.scale, (blobs * weight.unsqueeze(-2)).sum(-1) / density)

    def exact(self, offsets: Tensor) -> Tensor:
        """Raise: the squared spectrum has no closed form here."""
        raise NotImplementedError


class Local(nn.Module):
    """The box: C where every |z_l| <= v_l, and 0 elsewhere; C and v are learned.

    Its transform C prod_l sin(2 pi v_l xi_l) / (pi xi_l) falls too slowly for any density to give a
    finite variance. Frequencies are therefore drawn from 1 / (1/2 + |u|), cut at `tail_of`, in
    periods u = v xi: the quotient stays bounded, and the box has slightly rounded edges.
    """

    def __init__(self, *, dim: int, heads: int, scale: float) -> None:
        super().__init__()
        start = head_scales(scale, heads).log()
        self.height = nn.Parameter(torch.ones(heads))
        self.log_half_width = nn.Parameter(start[:, None].repeat(1, dim))

    def forward(self, points: Tensor) -> Waves:
        """Return the waves at uniform points (heads, freqs, dim)."""
        height = wide(self.height)
        points = points.to(height.dtype)
        signed = 2 * points - 1
        share = torch.cat((points[..., :1], signed[..., 1:].abs()), dim=-1)
        span = math.log1p(2 * tail_of(points.shape[-1]))
        size = torch.expm1(share * span) / 2
        # 2 sinc(2 u) / q(u): one axis of the transform over the density on both half lines.
        quotient = (2 * torch.sinc(2 * size) * (1 + 2 * size) * span).prod(-1)
        sign = torch.cat((torch.ones_like(share[..., :1]), signed[..., 1:].sign()), dim=-1)
        frequencies = sign * size / wide(self.log_half_width).exp().unsqueeze(-2)
        return Waves(frequencies, height.unsqueeze(-1) * quotient)

    def exact(self, offsets: Tensor) -> Tensor:
        """Return the mask itself, (heads, ...), at offsets (..., dim)."""
        half = self.log_half_width.exp()
        half = half.reshape(half.shape[0], *(1,) * (offsets.ndim - 1), half.shape[1])
        inside = (offsets.abs() <= half).all(-1)
        return self.height.reshape(-1, *(1,) * (offsets.ndim - 1)) * inside


class Kernel(nn.Module):
    """A kernel whose transform is a density: the frequencies are drawn from it.

    ``gaussian`` is C exp(-|z|^2 / (2 l^2)), ``laplace`` is C exp(-sum_i |z_i| / l); C and
    the length l are learned, l by moving the frequencies.
    """

    def __init__(self, *, name: str, heads: int, scale: float) -> None:
        super().__init__()
        self.name = name
        self.height = nn.Parameter(torch.ones(heads))
        self.log_length = nn.Parameter(head_scales(scale, heads).log())

    def forward(self, points: Tensor) -> Waves:
        """Return the waves at uniform points (heads, freqs, dim)."""
        if self.name == "gaussian":
            at = _half_normal(points)
        else:
            signed = torch.cat((points[..., :1], 2 * points[..., 1:] - 1), dim=-1)
            at = (math.pi / 2 * signed).tan()
        turns = 2 * math.pi * wide(self.log_length).exp()[:, None, None]
        frequencies = at.to(turns.dtype) / turns
        return Waves(frequencies, wide(self.height)[:, None].expand(frequencies.shape[:2]))

    def exact(self, offsets: Tensor) -> Tensor:
        """Return the mask itself, (heads, ...), at offsets (..., dim)."""
        lead = (-1, *(1,) * (offsets.ndim - 1))
        length, height = self.log_length.exp().reshape(lead), self.height.reshape(lead)
        if self.name == "gaussian":
            return height * (-offsets.square().sum(-1) / (2 * length.square())).exp()
        return height * (-offsets.abs().sum(-1) / length).exp()
