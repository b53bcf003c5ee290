"""One network for all domains, and the usual ways of making it hold on new ones.

Written from the methods' formulas as commonly stated: empirical risk minimisation, GroupDRO
(sagawa2020groupdro: domains weighted by exponentiated losses), V-REx (krueger2021vrex: variance of
the domains' risks) and CORAL (sun2016coral: means and covariances of the features alike across
domains). Same encoder, optimiser and steps as D3G, so that the arms of a check differ in one thing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trialrun.shift import _stack  # noqa: F401

# isort: split
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from trialrun.core.errors import UsageError
from trialrun.core.seeds import split
from trialrun.shift._atlas import Scale
from trialrun.shift._domains import read_labels
from trialrun.shift._estimator import make_encoder, scaled_features
from trialrun.shift._heads import encoder_width, linear_layer
from trialrun.shift._loss import loss_per_example
from trialrun.shift._training import Training, minimise

OBJECTIVES = ("erm", "groupdro", "vrex", "coral")


def domain_means(
    values: Float[Tensor, "batch ..."], member: Float[Tensor, "batch domains"]
) -> Float[Tensor, "domains ..."]:
    """Average ``values`` within each domain; a domain without examples gives 0.

    Examples
    --------
    >>> domain_means(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([[1.0, 0], [1, 0], [0, 1]]))
    tensor([2., 5.])
    """
    count = member.sum(dim=0).clamp_min(1)
    total = torch.tensordot(member, values, dims=([0], [0]))
    return total / count.view(-1, *[1] * (values.ndim - 1))


def _spread(rows: Tensor, present: Tensor) -> Tensor:
    """Mean squared difference over ordered pairs of present rows: twice their variance."""
    weight = (present / present.sum().clamp_min(1)).view(-1, *[1] * (rows.ndim - 1))
    centre = (weight * rows).sum(dim=0)
    return 2 * (weight * (rows - centre).square()).sum(dim=0)


def coral_penalty(
    features: Float[Tensor, "batch width"], member: Float[Tensor, "batch domains"]
) -> Float[Tensor, ""]:
    """Mean over pairs of domains of the squared gaps between their means and covariances."""
    centre = domain_means(features, member)
    centred = features - member @ centre
    count = member.sum(dim=0)
    products = torch.einsum("bd,bv,bw->dvw", member, centred, centred)
    covariance = products / (count - 1).clamp_min(1).view(-1, 1, 1)
    means = _spread(centre, (count > 0).to(features.dtype)).mean()
    return means + _spread(covariance, (count > 1).to(features.dtype)).mean()


class PooledNetwork(BaseEstimator):
    """Train one network on all domains and apply it to any other.

    Parameters
    ----------
    objective : {"erm", "groupdro", "vrex", "coral"}, default="erm"
    strength : float, at least 0, default=1.0
        Step of the domain weights for ``groupdro``, weight of the penalty for ``vrex`` and
        ``coral``; ``erm`` has none.
    classes : bool, default=True
        Whether the target is a class or a number.
    encoder, training, random_state
        As in `D3GClassifier`.

    Examples
    --------
    >>> X = np.random.default_rng(0).normal(size=(60, 2))
    >>> model = PooledNetwork(objective="vrex", training=Training(steps=50), random_state=0)
    >>> model = model.fit(X, X[:, 0] > 0, domains=np.arange(60) % 3)
    >>> bool((model.predict(X) == (X[:, 0] > 0)).mean() > 0.9)
    True
    """

    def __init__(
        self,
        *,
        objective="erm",
        strength=1.0,
        classes=True,
        encoder=(64, 64),
        training=None,
        random_state=None,
    ):
        self.objective = objective
        self.strength = strength
        self.classes = classes
        self.encoder = encoder
        self.training = training
        self.random_state = random_state

    def fit(self, X: Any, y: Any, domains: Any) -> PooledNetwork:
        """Train on rows ``X``, target ``y`` and the rows' domains."""
        if self.objective not in OBJECTIVES:
            raise UsageError(
                f"objective must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}"
            )
        X, y = validate_data(self, X, y, dtype=np.float64)
        training = Training() if self.training is None else clone(self.training)
        training.check()
        labels, index = read_labels(domains, len(X))
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        target, n_out = self._prepare_target(y)
        self.x_scale_ = Scale.of(X)
        self.encoder_ = make_encoder(self.encoder, X.shape[1], split(seed, "encoder"))
        generator = torch.Generator().manual_seed(split(seed, "heads"))
        self.head_ = linear_layer(encoder_width(self.encoder_), n_out, generator)
        member = nn.functional.one_hot(torch.from_numpy(index), len(labels)).float()
        tensors = (scaled_features(X, self.x_scale_), target, member)
        parts = (self.encoder_, self.head_)
        weights = torch.full((len(labels),), 1 / len(labels), device=training.device)
        minimise(parts, self._batch_loss(weights), tensors, training, split(seed, "batches"))
        return self

    def _prepare_target(self, y: NDArray) -> tuple[Tensor, int]:
        if self.classes:
            self.classes_, numbers = np.unique(y, return_inverse=True)
            return torch.from_numpy(numbers), len(self.classes_)
        self.y_scale_ = Scale.of(y[:, None].astype(float))
        return scaled_features(y[:, None].astype(float), self.y_scale_), 1

    def _batch_loss(self, weights: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def loss_of(x: Tensor, y: Tensor, member: Tensor) -> Tensor:
            features = self.encoder_(x)
            losses = loss_per_example(self.head_(features), y)
            if self.objective == "erm":
                return losses.mean()
            if self.objective == "coral":
                return losses.mean() + self.strength * coral_penalty(features, member)
            present = (member.sum(dim=0) > 0).to(losses.dtype)
            risks = domain_means(losses, member)
            if self.objective == "vrex":
                return losses.mean() + self.strength * _spread(risks, present) / 2
            weights.mul_(torch.exp(self.strength * risks.detach()))
            weights.div_(weights.sum())
            share = weights * present
            return (share * risks).sum() / share.sum()

        return loss_of

    def predict(self, X: Any) -> NDArray:
        """Return classes or numbers for rows of any domain."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        with torch.no_grad():
            out = self.head_(self.encoder_(scaled_features(X, self.x_scale_)))
        if self.classes:
            return self.classes_[out.argmax(dim=1).numpy()]
        return out[:, 0].double().numpy() * self.y_scale_.spread[0] + self.y_scale_.mean[0]
