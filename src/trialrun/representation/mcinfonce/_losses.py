"""Losses that train an encoder of posteriors: MCInfoNCE and the two it is compared with."""

from __future__ import annotations

import math

from trialrun.representation.mcinfonce import _stack  # noqa: F401

# isort: split
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trialrun.representation.mcinfonce._bessel import log_mean_exp
from trialrun.representation.mcinfonce._draws import (
    Drawing,
    PosteriorLoss,
    finite,
    positive,
)
from trialrun.representation.mcinfonce._vmf import VonMisesFisher

AVERAGES = ("probability", "kernel")


def _log_mean(values: Tensor, dim: int) -> Tensor:
    return torch.logsumexp(values, dim=dim) - math.log(values.shape[dim])


def _check_spread(what: str, *posts: VonMisesFisher) -> None:
    if any(bool(torch.isinf(post.kappa).any()) for post in posts):
        raise ValueError(f"{what} needs finite kappa, got inf: points have no density to compare")


def _contrast(positive_logit: Tensor, negative_logits: Tensor) -> Tensor:
    """Return log of e^p / (e^p + mean e^n), the mean over the last axis, without overflow."""
    return -F.softplus(_log_mean(negative_logits, -1) - positive_logit)


class MCInfoNCELoss(Drawing):
    """Contrast draws of posteriors, averaging over draws inside the log (kirchhof2023mcinfonce).

    The loss is -mean_b log mean_s e^{k r.p} / (e^{k r.p} + mean_m e^{k r.n_m}), the s-th draws of
    reference, positive and negatives together. With the mean over negatives, their number does not
    shift the value. In log space throughout. With point posteriors (kappa = inf) it is InfoNCE.

    What is averaged over draws is the probability of being the positive. By our derivation (not a
    statement of the paper) its optimum is the true posterior where pairs are candidates from the
    marginal, labelled afterwards by a sigmoid, in the limit of many draws and many negatives from
    the marginal, with latents uniform on average. With few negatives kappa comes out too large;
    one, the published form, is the worst case.

    Where positives are drawn around their reference, kernels are to be averaged first:
    ``average="kernel"`` (ours) is -mean_b log K+ / (K+ + K-), K+ = mean_s e^{k r.p} and
    K- = sum_m mean_s e^{k r.n_m}. The sum makes it InfoNCE, whose optimum is the ratio of
    densities for any number of negatives from the marginal; draws should be many.

    Parameters
    ----------
    kappa : float, above 0
        k, the concentration of positives around their reference in latent space: an inverse
        temperature. 16 is the authors' advice to start with.
    n_samples : int, at least 1
        Draws per posterior (S).
    rolled : int, at least 1
        Negatives per row when ``neg`` is None: the positives of this many other rows. 1 is the
        published form.
    average : ``"probability"`` or ``"kernel"``
        What is averaged over draws; ``"probability"`` is the paper's.
    learnable : bool
        Whether k is a parameter (in log space).
    seed : int
        Seed of the draws.

    Raises
    ------
    ValueError
        If a setting is out of range, or the posteriors do not go together.

    Examples
    --------
    >>> mu = torch.nn.functional.normalize(torch.randn(8, 4), dim=-1)
    >>> post = VonMisesFisher(mu, torch.full((8,), 20.0))
    >>> loss = MCInfoNCELoss(kappa=16.0, n_samples=16)
    >>> loss(post, post).shape
    torch.Size([])
    """

    def __init__(
        self,
        kappa: float | int = 16.0,
        n_samples: int = 16,
        *,
        rolled: int = 1,
        average: str = "probability",
        learnable: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(n_samples, rolled, seed)
        if average not in AVERAGES:
            raise ValueError(f"average must be one of {', '.join(AVERAGES)}, got {average!r}")
        self.average = average
        log_kappa = torch.tensor(math.log(positive("kappa", kappa)))
        if learnable:
            self.log_kappa = nn.Parameter(log_kappa)
        else:
            self.register_buffer("log_kappa", log_kappa)

    @torch.no_grad()
    def set_kappa(self, kappa: float | int) -> None:
        """Set k, as for a first phase that raises it from 1 to its value.

        Parameters
        ----------
        kappa : float, above 0
        """
        self.log_kappa.fill_(math.log(positive("kappa", kappa)))

    def _loss(self, ref: VonMisesFisher, pos: VonMisesFisher, neg: VonMisesFisher | None) -> Tensor:
        near, far = self._cosines(ref, pos, neg)
        kappa = self.log_kappa.to(near.dtype).exp()
        # Both lose k, which cancels, so that logits stay small next to k.
        near, far = kappa * (near - 1), kappa * (far - 1)
        if self.average == "kernel":
            # The mean that _contrast takes must become a sum here: with a mean of several negatives
            # the optimum is not the ratio of densities.
            total = _log_mean(far, 0) + math.log(far.shape[-1])
            return -_contrast(_log_mean(near, 0), total).mean()
        return -_log_mean(_contrast(near, far), 0).mean()


class HIBLoss(Drawing):
    """Hedged instance embedding on the sphere (oh2019hib): draws that match or do not.

    A pair matches with probability mean_s sigmoid(b - a |z_s - z'_s|). The loss is minus the log
    of it for positives and of its complement for negatives (their mean), plus ``beta`` times the
    divergence of the posteriors from the uniform distribution.

    Parameters
    ----------
    a, b : float, a above 0
        Where the learned slope and offset start. 2 and 1 are the comparison's values.
    n_samples : int, at least 1
        Draws per posterior.
    beta : float, at least 0
        Weight of the divergence; 0 leaves it out.
    rolled : int, at least 1
        Negatives per row when ``neg`` is None.
    seed : int
        Seed of the draws.

    Raises
    ------
    ValueError
        If a setting is out of range, or the posteriors do not go together.

    Examples
    --------
    >>> mu = torch.nn.functional.normalize(torch.randn(8, 4), dim=-1)
    >>> post = VonMisesFisher(mu, torch.full((8,), 20.0))
    >>> bool(HIBLoss()(post, post) > 0)
    True
    """

    def __init__(
        self,
        a: float | int = 2.0,
        b: float | int = 1.0,
        *,
        n_samples: int = 16,
        beta: float | int = 0.0,
        rolled: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(n_samples, rolled, seed)
        self.log_a = nn.Parameter(torch.tensor(math.log(positive("a", a))))
        self.b = nn.Parameter(torch.tensor(finite("b", b)))
        self.beta = positive("beta", beta, zero=True)

    def _loss(self, ref: VonMisesFisher, pos: VonMisesFisher, neg: VonMisesFisher | None) -> Tensor:
        near, far = (self._logit(cosine) for cosine in self._cosines(ref, pos, neg))
        match = -_log_mean(F.logsigmoid(near), 0).mean()
        differ = -_log_mean(F.logsigmoid(-far), 0).mean()
        loss = match + differ
        if self.beta:
            _check_spread("HIBLoss with beta above 0", ref, pos)
            loss = loss + self.beta * (ref.kl_to_uniform() + pos.kl_to_uniform()).mean() / 2
        return loss

    def _logit(self, cosine: Tensor) -> Tensor:
        # The floor keeps the slope of the root finite where two draws coincide.
        distance = torch.sqrt((2 - 2 * cosine).clamp(min=1e-8))
        return self.b.to(cosine.dtype) - self.log_a.to(cosine.dtype).exp() * distance


class ELKLoss(PosteriorLoss):
    """Contrast expected likelihood kernels of posteriors, in closed form (shi2019pfe).

    The similarity of two posteriors is the log of the integral of their product (against the
    uniform measure): log M(|k1 mu1 + k2 mu2|) - log M(k1) - log M(k2). No draws are needed.

    Parameters
    ----------
    temperature : float, above 0
        Divides the similarities.
    rolled : int, at least 1
        Negatives per row when ``neg`` is None: the *posteriors* of other rows' positives. (The
        published comparison rolls the similarities, which contrasts with no negative at all.)

    Raises
    ------
    ValueError
        If a setting is out of range, or the posteriors do not go together.

    Examples
    --------
    >>> mu = torch.nn.functional.normalize(torch.randn(8, 4), dim=-1)
    >>> post = VonMisesFisher(mu, torch.full((8,), 20.0))
    >>> bool(ELKLoss()(post, post) < ELKLoss()(post, post[torch.arange(8).roll(1)]))
    True
    """

    def __init__(self, temperature: float | int = 1.0, *, rolled: int = 1) -> None:
        super().__init__(rolled)
        self.temperature = positive("temperature", temperature)

    def _loss(self, ref: VonMisesFisher, pos: VonMisesFisher, neg: VonMisesFisher | None) -> Tensor:
        near = log_likelihood_kernel(ref, pos)
        if neg is not None:
            far = log_likelihood_kernel(ref[:, None], neg)
        else:
            rows = torch.arange(len(near), device=near.device)
            others = torch.stack([rows.roll(shift) for shift in range(1, self.rolled + 1)], dim=-1)
            far = log_likelihood_kernel(ref[:, None], pos[others])
        return -_contrast(near / self.temperature, far / self.temperature).mean()

    def extra_repr(self) -> str:
        """Name the temperature and the number of rolled negatives."""
        return f"temperature={self.temperature}, rolled={self.rolled}"


def log_likelihood_kernel(p: VonMisesFisher, q: VonMisesFisher) -> Tensor:
    """Return log of the integral of p q against the uniform measure, in nats; kappas finite.

    Differences of large concentrations are taken in a form that does not cancel.

    Raises
    ------
    ValueError
        If p and q differ in dim, or one has kappa = inf.
    """
    if p.dim != q.dim:
        raise ValueError(f"p and q must have the same dim, got {p.dim} and {q.dim}")
    _check_spread("the likelihood kernel", p, q)
    both = p.kappa + q.kappa
    apart = 0.5 * (p.mu - q.mu).square().sum(-1)  # 1 - cos
    square = both * both - 2 * p.kappa * q.kappa * apart
    # The floor keeps the root's slope finite where two equal posteriors point opposite ways.
    length = torch.sqrt(square.clamp(min=1e-12))
    lost = 2 * p.kappa * q.kappa * apart / (both + length).clamp(min=1e-12)
    joint = log_mean_exp(length, p.dim)
    return joint - log_mean_exp(p.kappa, p.dim) - log_mean_exp(q.kappa, q.dim) - lost
