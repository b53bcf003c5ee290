"""The von Mises-Fisher distribution as a torch distribution, in any dimension from 2 on.

Densities are against surface area. Products kappa (mu.z - 1) are taken as -kappa |z - mu|^2 / 2,
which stays exact where float32 would round mu.z to 1.
"""

from __future__ import annotations

import math
from typing import Any

from trialrun.representation.mcinfonce import _stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.kl import register_kl

from trialrun.representation.mcinfonce._bessel import log_mean_exp, shortfall
from trialrun.representation.mcinfonce._cosines import (
    draw_half_gap,
    half_gap_below,
    half_gap_quantile,
    reparametrised,
)
from trialrun.representation.mcinfonce._sphere import (
    around,
    broadcast,
    checked,
    log_area,
    normalised,
)

_Shape = torch.Size | tuple[int, ...] | list[int]


class VonMisesFisher(Distribution):
    """Hold a von Mises-Fisher distribution per row (kirchhof2023mcinfonce).

    The density on the unit sphere is proportional to exp(kappa mu.z). kappa = 0 is the uniform
    distribution, kappa = inf the point mu.

    Parameters
    ----------
    mu : Tensor (..., dim), dim at least 2
        Mean directions; brought to length 1 here.
    kappa : Tensor (...) or number, at least 0, inf allowed
        Concentrations.
    validate_args : bool or None
        None, the default, and True look at the values (finite, not zero, not negative); False
        spares that, and on a GPU the wait for it.

    Raises
    ------
    ValueError
        If mu or kappa have another shape, mu a row of zeros or a number that is not finite, or
        kappa is negative or not a number.

    Examples
    --------
    >>> post = VonMisesFisher(torch.tensor([[3.0, 0.0, 4.0]]), torch.tensor([20.0]))
    >>> post.mu
    tensor([[0.6000, 0.0000, 0.8000]])
    >>> post.rsample((5,), generator=torch.Generator().manual_seed(0)).shape
    torch.Size([5, 1, 3])
    >>> round(post.mean_resultant_length.item(), 3)
    0.95
    """

    arg_constraints = {  # noqa: RUF012 - torch's own form
        "mu": constraints.real_vector,
        "kappa": constraints.nonnegative,
    }
    has_rsample = True

    def __init__(
        self,
        mu: Tensor,
        kappa: Tensor | float | int,
        *,
        validate_args: bool | None = None,
    ) -> None:
        mu, kappa = checked(mu, kappa)
        unit, lengthy = normalised(mu)
        if validate_args is not False:
            if not bool(lengthy.all()):
                raise ValueError("mu must hold finite rows of a length above 0: see its NaN or 0")
            if not bool((kappa >= 0).all()):
                raise ValueError(f"kappa must be at least 0, got {float(kappa.min())}")
        batch = broadcast(mu.shape[:-1], kappa.shape)
        self.mu = unit.expand(*batch, mu.shape[-1])
        self.kappa = kappa.expand(batch)
        super().__init__(batch, mu.shape[-1:], validate_args=False)

    @property
    def support(self) -> Any:
        """Name the constraint that the last axis is a vector."""
        return constraints.real_vector

    @property
    def dim(self) -> int:
        """Return the number of coordinates; the sphere has one dimension less."""
        return self.event_shape[0]

    def expand(self, batch_shape: _Shape, _instance: Any = None) -> VonMisesFisher:
        """Return the distribution with its batch expanded.

        Parameters
        ----------
        batch_shape : shape
            What the batch becomes; the present one must broadcast to it.
        _instance : None
            Torch's own argument for subclasses; not used.
        """
        shape = torch.Size(batch_shape)
        return VonMisesFisher(
            self.mu.expand(*shape, self.dim), self.kappa.expand(shape), validate_args=False
        )

    def __getitem__(self, index: Any) -> VonMisesFisher:
        """Return the distributions of some rows of the first batch axes."""
        return VonMisesFisher(self.mu[index], self.kappa[index], validate_args=False)

    def detach(self) -> VonMisesFisher:
        """Return the same distribution cut from the graph."""
        return VonMisesFisher(self.mu.detach(), self.kappa.detach(), validate_args=False)

    def _finite(self) -> Tensor:
        return torch.where(torch.isinf(self.kappa), torch.ones_like(self.kappa), self.kappa)

    def _log_mean(self) -> Tensor:
        """Return log M(kappa) - kappa, minus infinity for kappa = inf."""
        found = log_mean_exp(self._finite(), self.dim)
        return torch.where(torch.isinf(self.kappa), torch.full_like(found, -math.inf), found)

    def _shortfall(self) -> Tensor:
        found = shortfall(self._finite(), self.dim)
        return torch.where(torch.isinf(self.kappa), torch.zeros_like(found), found)

    @property
    def mean_resultant_length(self) -> Tensor:
        """Return A(kappa) in [0, 1], the length of the mean and the mean cosine with mu."""
        return 1 - self._shortfall()

    @property
    def mean(self) -> Tensor:
        """Return the mean vector A(kappa) mu, which lies inside the sphere."""
        return self.mean_resultant_length[..., None] * self.mu

    @property
    def mode(self) -> Tensor:
        """Return mu."""
        return self.mu

    @property
    def variance(self) -> Tensor:
        """Return the variance of each coordinate."""
        kappa, short = self._finite(), self._shortfall()
        small = kappa < 1e-4
        per_kappa = torch.where(
            small, torch.full_like(kappa, 1 / self.dim), (1 - short) / kappa.clamp(min=1e-4)
        )
        across = torch.where(torch.isinf(self.kappa), torch.zeros_like(kappa), per_kappa)
        along = short * (2 - short) - self.dim * across  # so that all add up to 1 - A^2
        return across[..., None] + along[..., None] * self.mu**2

    def log_prob(self, value: Float[Tensor, "... dim"]) -> Tensor:
        """Return the log-density in nats; for kappa = inf, plus infinity at mu and minus elsewhere.

        Parameters
        ----------
        value : Tensor (..., dim)
            Unit vectors.
        """
        if value.shape[-1:] != self.event_shape:
            raise ValueError(
                f"value must have {self.dim} coordinates on its last axis, "
                f"got shape {tuple(value.shape)}"
            )
        square = (value - self.mu).square().sum(-1)
        found = -0.5 * self._finite() * square - self._log_mean() - log_area(self.dim)
        off = torch.isinf(self.kappa) & (square > 1e-12)
        return torch.where(off, torch.full_like(found, -math.inf), found)

    def entropy(self) -> Tensor:
        """Return the differential entropy in nats; minus infinity for kappa = inf."""
        return log_area(self.dim) + self._log_mean() + self._finite() * self._shortfall()

    def kl_to_uniform(self) -> Tensor:
        """Return the Kullback-Leibler divergence from the uniform distribution, in nats."""
        return log_area(self.dim) - self.entropy()

    def rsample(
        self, sample_shape: _Shape = (), *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw exactly, with unbiased gradients by mu and kappa.

        Parameters
        ----------
        sample_shape : shape, default=()
            Draws per row, in front of the batch axes.
        generator : torch.Generator or None
            Where the randomness comes from; None is torch's global generator, as in torch's own
            distributions.

        Returns
        -------
        Tensor of shape (*sample_shape, *batch, dim)
            Unit vectors in the dtype of mu. The cosine with mu has its implicit gradient; the
            direction around mu comes by a reflection that is smooth around every mu.
        """
        shape = torch.Size(sample_shape) + self.batch_shape
        kappa = self._finite()
        y = draw_half_gap(self.dim, kappa.detach().expand(shape), generator)
        gap, spread = reparametrised(kappa, y, self.dim)
        still = torch.isinf(self.kappa)
        w = torch.where(still, torch.ones_like(gap), 1 - 2 * gap)
        s = torch.where(still, torch.zeros_like(gap), 2 * spread)
        normal, norm = around(shape, self.dim, self.mu, generator)
        first, rest = self.mu[..., 0], self.mu[..., 1:]
        sign = torch.where(first < 0, -1.0, 1.0).to(first.dtype)
        along = (rest * normal).sum(-1)
        s = s / norm
        turned = sign * s
        stretch = w + turned * along / (1 + first.abs())
        return torch.cat(
            [
                (w * first + s * along)[..., None],
                torch.addcmul(stretch[..., None] * rest, turned[..., None], normal, value=-1),
            ],
            dim=-1,
        )

    def sample(
        self, sample_shape: _Shape = (), *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw as `rsample` does, without a graph.

        Parameters
        ----------
        sample_shape : shape, default=()
            Draws per row, in front of the batch axes.
        generator : torch.Generator or None
            Where the randomness comes from.
        """
        with torch.no_grad():
            return self.rsample(sample_shape, generator=generator)

    def cosine_cdf(self, cosine: Tensor) -> Tensor:
        """Return the probability that a draw's cosine with mu is at most the one given.

        Parameters
        ----------
        cosine : Tensor (...)
            Cosines from -1 to 1.
        """
        y = (0.5 * (1 - cosine)).clamp(0.0, 1.0)
        found = 1 - half_gap_below(self.dim, self._finite().detach(), y.detach())
        point = (cosine >= 1).to(found.dtype)
        return torch.where(torch.isinf(self.kappa), point, found).to(self.kappa.dtype)

    def gap_quantile(self, probability: float) -> Tensor:
        """Return the least g such that 1 - cos(mu, z) is at most g with this probability.

        Exact up to rounding, without sampling. The gap is returned and not the cosine, because it
        keeps its digits where cosines round to 1.

        Parameters
        ----------
        probability : float in (0, 1)
        """
        if not 0 < probability < 1:
            raise ValueError(f"probability must be between 0 and 1, got {probability!r}")
        found = 2 * half_gap_quantile(self.dim, self._finite().detach(), probability)
        found = torch.where(torch.isinf(self.kappa), torch.zeros_like(found), found)
        return found.to(self.kappa.dtype)

    def __repr__(self) -> str:
        return f"VonMisesFisher(batch {tuple(self.batch_shape)}, dim {self.dim})"


@register_kl(VonMisesFisher, VonMisesFisher)
def _kl(p: VonMisesFisher, q: VonMisesFisher) -> Tensor:
    """Return KL(p || q) in closed form, in nats."""
    if p.dim != q.dim:
        raise ValueError(f"p and q must have the same dim, got {p.dim} and {q.dim}")
    apart = 0.5 * (p.mu - q.mu).square().sum(-1)
    short = p._shortfall()
    mean_gap = short + (1 - short) * apart  # 1 - E cos(q.mu, z)
    found = q._log_mean() + q._finite() * mean_gap - p._log_mean() - p._finite() * short
    # q a point: nothing but the same point is absolutely continuous to it.
    same = torch.isinf(p.kappa) & (apart == 0)
    point = torch.where(same, torch.zeros_like(found), torch.full_like(found, math.inf))
    return torch.where(torch.isinf(q.kappa), point, found)
