"""Spectra of relative-position masks: frequencies to sample, and what each contributes.

A mask f(z) = int g(xi) cos(2 pi xi . z) + h(xi) sin(2 pi xi . z) d xi is estimated by the mean over
frequencies xi_m of a(xi_m) cos + b(xi_m) sin, with a = g / p and b = h / p for the density p that
the frequencies are drawn from. The cosine of a frequency and of its opposite agree, so the first
coordinate is taken from the positive half line alone.

In one dimension frequencies are a midpoint grid. Such a sum repeats itself, with a minus sign, at
the inverse of the grid's spacing, its period; within half a period (a mask as long as that) or more
it is as good as its highest frequency allows. So the period is fixed by the reach that is asked
for, and the number of frequencies decides how high they go. Frequencies stay where they are, and
what a spectrum learns changes their weights. Uneven spacing, random or not, buys higher frequencies
with noise at every long offset.

In more dimensions, where a grid would need too many, frequencies come from uniform points in
(0, 1)^dim, which fill the cube evenly.

Every spectrum works in units of its ``scale``; what it learns has about unit size.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

TAIL = 8.0
HIGHEST, BLOBS_WITHIN = 4.0, 2.5
"""Where a mixture's grid ends at most, and where its blobs begin, in periods per scale."""
PERIOD, MIXTURE_PERIOD = 2.0, 1.5
"""Periods of the grids, in reaches. A mixture, of which only narrow blobs are long, may have less,
and needs the higher frequencies."""


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
    """Return where the frequencies of a box in ``dim`` > 1 end, in periods per half width.

    Its sine lobes end at multiples of 1/2. A product of long tails over several axes costs more
    noise than it saves in rounded edges, so they share one tail.
    """
    return TAIL ** (1 / dim)


def wide(x: Tensor) -> Tensor:
    """Return ``x`` in at least float32: the exponentials here are unsafe in 16 bits."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def grid_band(points: Tensor, top: float) -> tuple[Tensor, Tensor]:
    """Return a midpoint grid up to about ``top``, and where its last cell ends, (heads, 1).

    ``points`` (heads, freqs, 1) are (m + 1/2) / freqs times a stretch that is each head's own.
    """
    at = points[..., 0] * top
    return at, 2 * points.shape[1] * at[:, :1]


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
    sines. Where the grid ends before the blobs do, they begin closer together, within it.
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        blobs: int,
        freqs: int,
        scale: float,
        reach: float,
        asymmetric: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.top = min(HIGHEST, freqs / (MIXTURE_PERIOD * reach))
        shrink = min(1.0, self.top / BLOBS_WITHIN) if dim == 1 else 1.0

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        self.mass = nn.Parameter(0.1 * normal(heads, blobs))
        self.centre = nn.Parameter(shrink * normal(heads, blobs, dim).clamp(-2, 2))
        self.log_width = nn.Parameter(torch.full((heads, blobs), math.log(0.25 * shrink**2)))
        self.odd_mass = nn.Parameter(0.1 * normal(heads, blobs)) if asymmetric else None

    def _place(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return frequencies times scale, and the log of their density on both half lines."""
        if points.shape[-1] > 1:
            at = _half_normal(points)
            return at, -(at.square() + math.log(2 * math.pi)).sum(-1, keepdim=True) / 2
        at, band = grid_band(points, self.top)
        return at.unsqueeze(-1), -(2 * band).log().unsqueeze(-1)

    def _bells(self, at: Tensor, log_density: Tensor) -> Tensor:
        """Return each blob of mass 1 over the density of frequencies, at ``at``."""
        width = wide(self.log_width).unsqueeze(-2)
        gap = (at.unsqueeze(-2) - wide(self.centre).unsqueeze(-3)).square().sum(-1)
        log_volume = at.shape[-1] / 2 * (math.log(math.pi) + width)
        return (-gap / width.exp() - log_volume - log_density).exp()

    def forward(self, points: Tensor) -> Waves:
        """Return the waves at points (heads, freqs, dim)."""
        at, log_density = self._place(points.to(wide(self.mass).dtype))
        here, there = self._bells(at, log_density), self._bells(-at, log_density)
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
    finite variance, so the tail is cut, and edges are rounded over about the shortest wave. In one
    dimension by the grid's end; in more, frequencies are drawn from 1 / (1/2 + |u|), cut at
    `tail_of`, in periods u = v xi, where the quotient stays bounded.
    """

    def __init__(self, *, dim: int, heads: int, scale: float, reach: float) -> None:
        super().__init__()
        self.scale, self.reach = scale, reach
        start = head_scales(scale, heads).log()
        self.height = nn.Parameter(torch.ones(heads))
        self.log_half_width = nn.Parameter(start[:, None].repeat(1, dim))

    def forward(self, points: Tensor) -> Waves:
        """Return the waves at points (heads, freqs, dim)."""
        height = wide(self.height)
        points = points.to(height.dtype)
        if points.shape[-1] == 1:
            at, band = grid_band(points, points.shape[1] / (PERIOD * self.reach))
            # A box wider than the reach is one as wide: its repetition stays outside.
            half = (wide(self.log_half_width).exp() / self.scale).clamp(max=self.reach)
            even = 4 * half * torch.sinc(2 * half * at) * band
            return Waves((at / self.scale).unsqueeze(-1), height.unsqueeze(-1) * even)
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
    """A kernel whose transform is a density.

    ``gaussian`` is C exp(-|z|^2 / (2 l^2)), ``laplace`` is C exp(-sum_i |z_i| / l); C and
    the length l are learned. In more than one dimension frequencies are drawn from the density, and
    l moves them.
    """

    def __init__(self, *, name: str, heads: int, scale: float, reach: float) -> None:
        super().__init__()
        self.name, self.scale, self.reach = name, scale, reach
        self.height = nn.Parameter(torch.ones(heads))
        self.log_length = nn.Parameter(head_scales(scale, heads).log())

    def forward(self, points: Tensor) -> Waves:
        """Return the waves at points (heads, freqs, dim)."""
        if points.shape[-1] == 1:
            return self._on_grid(points.to(wide(self.height).dtype))
        if self.name == "gaussian":
            at = _half_normal(points)
        else:
            signed = torch.cat((points[..., :1], 2 * points[..., 1:] - 1), dim=-1)
            at = (math.pi / 2 * signed).tan()
        turns = 2 * math.pi * wide(self.log_length).exp()[:, None, None]
        frequencies = at.to(turns.dtype) / turns
        return Waves(frequencies, wide(self.height)[:, None].expand(frequencies.shape[:2]))

    def _on_grid(self, points: Tensor) -> Waves:
        at, band = grid_band(points, points.shape[1] / (PERIOD * self.reach))
        length = (wide(self.log_length).exp() / self.scale)[:, None]
        turn = 2 * math.pi * at * length
        if self.name == "gaussian":
            density = 2 * math.sqrt(2 * math.pi) * length * (-turn.square() / 2).exp()
        else:
            density = 4 * length / (1 + turn.square())
        even = wide(self.height)[:, None] * density * band
        return Waves((at / self.scale).unsqueeze(-1), even)

    def exact(self, offsets: Tensor) -> Tensor:
        """Return the mask itself, (heads, ...), at offsets (..., dim)."""
        lead = (-1, *(1,) * (offsets.ndim - 1))
        length, height = self.log_length.exp().reshape(lead), self.height.reshape(lead)
        if self.name == "gaussian":
            return height * (-offsets.square().sum(-1) / (2 * length.square())).exp()
        return height * (-offsets.abs().sum(-1) / length).exp()
