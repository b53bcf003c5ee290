"""A world whose true posteriors are known: latents, ambiguous inputs, positives and negatives.

Latents z are uniform on the sphere. An input shows a direction m and a level v: m is drawn around z
with the concentration that belongs to v, so that by Bayes' rule, with uniform latents, the
posterior of z given the input is exactly that law around m. A fixed random network, injective,
hides (m, v) in ``x_dim`` numbers.

Ours, not theirs: the published generator draws inputs first and lets a random network name their
posteriors; its latents are then not uniform, which the theory assumes. What is kept is what it does
for pairs: ``positives="reference"`` accepts candidates from the marginal with probability
sigmoid(kappa_pos cos - c), flat where the theory's exp(kappa_pos cos) is steep, and negatives with
the complement. ``constant="published"`` takes c as our notes on the code give it (two dimensions).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from trialrun.representation.mcinfonce import _stack  # noqa: F401

# isort: split
import torch
from torch import Tensor
from torch.nn import functional as F

from trialrun.core.seeds import split
from trialrun.representation.mcinfonce._angles import Angles, turned
from trialrun.representation.mcinfonce._bessel import sphere_bessel
from trialrun.representation.mcinfonce._draws import kappa_range, positive, whole
from trialrun.representation.mcinfonce._vmf import VonMisesFisher

POSITIVES = ("vmf", "reference")
POSTERIORS = ("vmf", "gaussian", "laplace")
PUBLISHED_CONSTANTS = {(10, 20.0): 9.50, (64, 20.0): -3.03}
"""(dim, kappa_pos) to the published generator's c, where it was looked up; exact: 11.15, 2.99."""

_HIDDEN = 32


class Pairs(NamedTuple):
    """Inputs (batch, x_dim), positives (batch, x_dim), negatives (batch, negatives, x_dim)."""

    ref: Tensor
    pos: Tensor
    neg: Tensor


class Inputs(NamedTuple):
    """Inputs with what is true of them.

    Attributes
    ----------
    x : Tensor (n, x_dim)
    posterior : VonMisesFisher
        Mean direction and concentration. Where the world's posterior is another law, the law's own
        concentration is matched to this one's mean resultant length.
    latents : Tensor (n, draws, dim)
        Draws from the true posterior, whatever its law.
    """

    x: Tensor
    posterior: VonMisesFisher
    latents: Tensor


class VMFWorld:
    """Generate ambiguous inputs with known posteriors (after kirchhof2023mcinfonce).

    Parameters
    ----------
    dim : int, at least 2
        Coordinates of a latent.
    kappa : (low, high)
        Concentrations of the posteriors, log-uniform.
    kappa_pos : float, above 0
        Concentration of positives around their reference.
    positives : ``"vmf"`` or ``"reference"``
        What the theory assumes, or what the published generator does.
    constant : ``"exact"``, ``"published"`` or float
        c of the reference rule: log(C0 / C(kappa_pos)) computed exactly, the published
        generator's value where we know it, or a number.
    posterior : ``"vmf"``, ``"gaussian"`` or ``"laplace"``
        Law of the truth. The two others fall off with the squared angle and with the angle.
    x_dim : int
        Numbers in an input; at least dim + 1.
    seed : int
        Seed of the network that hides direction and level.

    Raises
    ------
    ValueError
        If a setting is out of range or unknown.

    Examples
    --------
    >>> world = VMFWorld(dim=4)
    >>> pairs = world.pairs(6, 3, seed=1)
    >>> pairs.ref.shape, pairs.neg.shape
    (torch.Size([6, 16]), torch.Size([6, 3, 16]))
    >>> world.inputs(5, seed=2).posterior
    VonMisesFisher(batch (5,), dim 4)
    """

    def __init__(
        self,
        dim: int = 10,
        *,
        kappa: tuple[float | int, float | int] = (16.0, 32.0),
        kappa_pos: float | int = 20.0,
        positives: str = "vmf",
        constant: str | float | int = "exact",
        posterior: str = "vmf",
        x_dim: int = 16,
        seed: int = 0,
    ) -> None:
        self.dim = whole("dim", dim, low=2)
        self.low, self.high = kappa_range(kappa, number=False)
        self.kappa_pos = positive("kappa_pos", kappa_pos)
        self.positives = _one_of("positives", positives, POSITIVES)
        self.posterior = _one_of("posterior", posterior, POSTERIORS)
        self.constant = self._constant(constant)
        self.x_dim = whole("x_dim", x_dim, low=dim + 1)
        self._law = self._angle_law() if posterior != "vmf" else None
        if positives == "reference":
            self._near, self._far = self._acceptance(1.0), self._acceptance(-1.0)
        generator = torch.Generator().manual_seed(split(self._seed(seed), "hiding network"))
        hidden = max(_HIDDEN, self.x_dim)
        raw = torch.randn(2, hidden, hidden, generator=generator, dtype=torch.float64)
        first, second = torch.linalg.qr(raw).Q
        self._first, self._second = first[:, : dim + 1], second[:, :x_dim]

    @staticmethod
    def _seed(seed: Any) -> int:
        return whole("seed", seed, low=0)

    def _constant(self, constant: Any) -> float:
        exact = float(sphere_bessel(self.dim, torch.tensor(self.kappa_pos)).log_mean)
        if constant == "exact":
            return exact + self.kappa_pos
        if constant == "published":
            key = (self.dim, self.kappa_pos)
            if key not in PUBLISHED_CONSTANTS:
                known = ", ".join(f"dim {d} with kappa_pos {k:g}" for d, k in PUBLISHED_CONSTANTS)
                raise ValueError(f"constant 'published' is known for {known} only, got {key}")
            return PUBLISHED_CONSTANTS[key]
        if isinstance(constant, str) or not math.isfinite(constant):
            raise ValueError(f"constant must be exact, published or a number, got {constant!r}")
        return float(constant)

    def _acceptance(self, sign: float) -> Angles:
        def log_accepted(angle: Tensor) -> Tensor:
            return F.logsigmoid(sign * (self.kappa_pos * torch.cos(angle) - self.constant))

        return Angles(self.dim, log_accepted)

    def _angle_law(self) -> tuple[Tensor, Angles]:
        """Tabulate the law's scales against the mean cosine, to match concentrations by it."""
        power = 2 if self.posterior == "gaussian" else 1
        rates = torch.logspace(-1, 4, 1201, dtype=torch.float64)
        table = Angles(self.dim, lambda angle: -rates[:, None] * angle**power)
        middle = 0.5 * (table.angle[1:] + table.angle[:-1])
        return (table.cdf.diff(dim=-1) * torch.cos(middle)).sum(-1), table

    def around(self, center: Tensor, kappa: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one point around each center by the world's own law.

        Parameters
        ----------
        center : Tensor (..., dim)
        kappa : Tensor (...)
            Concentrations; another law's is matched to it by its mean cosine.
        generator : torch.Generator
        """
        if self._law is None:
            return VonMisesFisher(center, kappa, validate_args=False).sample(generator=generator)
        cosines, table = self._law
        wanted = 1 - sphere_bessel(self.dim, kappa).shortfall
        row = torch.searchsorted(cosines, wanted.reshape(-1)).clamp(max=len(cosines) - 1)
        return turned(center, table.draw_row(row, generator).reshape(kappa.shape), generator)

    def _kappa(self, level: Tensor) -> Tensor:
        return torch.exp(math.log(self.low) + level * math.log(self.high / self.low))

    def _shown(self, direction: Tensor, level: Tensor) -> Tensor:
        """Hide direction and level in an input."""
        raw = torch.cat([direction * math.sqrt(self.dim), (level[..., None] - 0.5) * 12**0.5], -1)
        return (F.leaky_relu(raw @ self._first.T, 0.3) @ self._second).float() * 2

    def _observed(self, z: Tensor, generator: torch.Generator) -> Tensor:
        level = torch.rand(z.shape[:-1], generator=generator, dtype=torch.float64)
        return self._shown(self.around(z, self._kappa(level), generator), level)

    def _uniform(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        raw = torch.randn((*shape, self.dim), generator=generator, dtype=torch.float64)
        return F.normalize(raw, dim=-1)

    def positive_latents(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a positive latent for every latent.

        Parameters
        ----------
        z : Tensor (..., dim)
            Latents.
        generator : torch.Generator
        """
        if self.positives == "vmf":
            kappa = torch.full(z.shape[:-1], self.kappa_pos, dtype=torch.float64)
            return VonMisesFisher(z, kappa, validate_args=False).sample(generator=generator)
        return turned(z, self._near.draw(tuple(z.shape[:-1]), generator), generator)

    def negative_latents(self, z: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Draw negatives (..., count, dim): from the marginal, or with the complement.

        Parameters
        ----------
        z : Tensor (..., dim)
            Latents.
        count : int
            Negatives per latent.
        generator : torch.Generator
        """
        shape = (*z.shape[:-1], count)
        if self.positives == "vmf":
            return self._uniform(shape, generator)
        many = z[..., None, :].expand(*shape, self.dim)
        return turned(many, self._far.draw(shape, generator), generator)

    def pairs(self, batch: int, negatives: int = 1, *, seed: int) -> Pairs:
        """Generate inputs with a positive and some negatives each, float32.

        Parameters
        ----------
        batch : int, at least 1
            Rows.
        negatives : int, at least 0
            Negatives per row.
        seed : int
            Seed of these pairs.
        """
        generator = torch.Generator().manual_seed(split(self._seed(seed), "pairs"))
        z = self._uniform((whole("batch", batch, low=1),), generator)
        near = self.positive_latents(z, generator)
        far = self.negative_latents(z, whole("negatives", negatives, low=0), generator)
        return Pairs(*(self._observed(latent, generator) for latent in (z, near, far)))

    def inputs(self, n: int, draws: int = 1, *, seed: int) -> Inputs:
        """Generate inputs with their true posteriors and draws from these.

        Parameters
        ----------
        n : int, at least 1
            Inputs.
        draws : int, at least 1
            Latents per input from its true posterior.
        seed : int
            Seed of these inputs.
        """
        generator = torch.Generator().manual_seed(split(self._seed(seed), "inputs"))
        mean = self._uniform((whole("n", n, low=1),), generator)
        level = torch.rand(n, generator=generator, dtype=torch.float64)
        kappa = self._kappa(level)
        shape = (n, whole("draws", draws, low=1), self.dim)
        latents = self.around(
            mean[:, None].expand(shape), kappa[:, None].expand(shape[:2]), generator
        )
        return Inputs(self._shown(mean, level), VonMisesFisher(mean, kappa), latents)


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    return value
