"""Regret against the true probabilities: what a predictor loses for not knowing them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from trialrun.sequence._sources import Sample


@runtime_checkable
class Predictor(Protocol):
    """Anything that gives the probability of every symbol from those before it."""

    def predict(self, x: Any) -> Any:
        """Give probabilities of shape (batch, time, symbols) for integers (batch, time)."""


class Average(NamedTuple):
    """A mean over sequences with its standard error."""

    mean: float
    stderr: float


@dataclass(frozen=True)
class Regret:
    """Regret of one predictor on one sample, in nats.

    Attributes
    ----------
    per_step : float64 tensor of shape (batch, time)
        Divergence of the prediction from the true probabilities at every step; zero where a
        step is not scored.
    """

    per_step: Float[Tensor, "batch time"]

    @property
    def total(self) -> Float[Tensor, " batch"]:
        """Return every sequence's regret, summed over time."""
        return self.per_step.sum(1)

    def average(self) -> Average:
        """Return the mean of `total` over sequences, with its standard error."""
        return _average(self.total)

    def excess_over(self, other: Regret) -> Average:
        """Return the mean of the difference to ``other``, paired by sequence.

        Raises
        ------
        ValueError
            If the two were measured on samples of different shape.
        """
        if self.per_step.shape != other.per_step.shape:
            raise ValueError(
                "other must be a regret on the same sample, got shape "
                f"{tuple(other.per_step.shape)} for {tuple(self.per_step.shape)}"
            )
        return _average(self.total - other.total)


def _average(totals: Tensor) -> Average:
    if len(totals) < 2:
        return Average(float(totals.mean()), math.nan)
    return Average(float(totals.mean()), float(totals.std() / math.sqrt(len(totals))))


def regret(predictor: Predictor, sample: Sample, *, first: bool = False) -> Regret:
    """Measure what a predictor loses, in nats, for not knowing the true probabilities.

    At every step the cross-entropy of the prediction under the true probabilities, less their
    entropy: evaluated against ``theta``, not against the symbols drawn, which leaves the mean and
    takes away most of the noise (genewein2023mbml scores the same way).

    Parameters
    ----------
    predictor : object with ``predict``
        An exact predictor or a trained one.
    sample : Sample
        Sequences with their true probabilities.
    first : bool, default=False
        Also score the first symbol. The paper does not, as nothing is known before it.

    Returns
    -------
    Regret
        Per step, with totals and averages.

    Raises
    ------
    ValueError
        If the prediction's shape is not that of ``sample.theta``.

    Examples
    --------
    >>> from trialrun.sequence.mbml import KT, PTW, PTWSource
    >>> sample = PTWSource(5).sample(batch=200, length=32, seed=0)
    >>> own, stationary = regret(PTW(5), sample), regret(KT(), sample)
    >>> own.average().mean < stationary.average().mean
    True
    """
    theta = sample.theta
    given = torch.as_tensor(predictor.predict(sample.x)).to(theta)
    if given.shape != theta.shape:
        raise ValueError(
            f"predictions must have shape {tuple(theta.shape)} like sample.theta, "
            f"got {tuple(given.shape)}"
        )
    each = (torch.xlogy(theta, theta) - torch.xlogy(theta, given)).sum(2)
    if not first:
        each[:, 0] = 0
    return Regret(each)


def code_lengths(predictors: Iterable[Any], x: Any) -> list[Float[Tensor, " batch"]]:
    """Give the ideal code length of every sequence under each exact predictor, in bits.

    Parameters
    ----------
    predictors : iterable of exact predictors
    x : integer array or tensor of shape (batch, time)

    Returns
    -------
    list of float64 tensors of shape (batch,)
        In the order of ``predictors``; the first symbol counts.

    Raises
    ------
    ValueError
        As a predictor's ``log_prob``.

    Examples
    --------
    >>> from trialrun.sequence.mbml import KT
    >>> [round(float(bits[0]), 6) for bits in code_lengths([KT()], [[0, 0, 0]])]
    [1.678072]
    """
    return [-torch.as_tensor(p.log_prob(x)) / math.log(2) for p in predictors]
