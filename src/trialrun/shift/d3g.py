"""D3G: one head per training domain, weighted by domain relations (yao2023d3g).

Read: the digest of arXiv:2302.02609 and the project's notes on the method; neither the full paper
nor, as far as we know, any official code. What follows the paper: one head per training domain on
a shared encoder, the consistency loss over related heads, relations given or learned from
metadata, and prediction by the heads weighted with the relation to the new domain.

Ours: the kernels ``exp(sharpness * (cos - 1))`` and of distance where no relation is given, the
defaults, the fallbacks for a domain without any relation, low-rank heads, standardised inputs,
and that a domain seen in training is predicted by its own head alone. With ``both``, the kernel
and the learned cosine are mixed as they are, so that far from every training domain, where a
sharp kernel is small, the learned part decides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trialrun.shift import _stack  # noqa: F401

# isort: split
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data
from torch import Tensor, nn

from trialrun.core.errors import UsageError
from trialrun.shift._estimator import DomainEstimator
from trialrun.shift._heads import RelationWeightedHeads
from trialrun.shift._loss import D3GLoss, combine_heads, normalise_relations
from trialrun.shift._relations import (
    DomainWeights,
    LearnedRelation,
    Relation,
    ZeroRelationWarning,
    relation_matrix,
)
from trialrun.shift._selection import Selection, select_by_leaving_domains_out
from trialrun.shift._storage import load_estimator, save_estimator
from trialrun.shift._training import Training

__all__ = [
    "D3GClassifier",
    "D3GLoss",
    "D3GRegressor",
    "DomainWeights",
    "LearnedRelation",
    "Relation",
    "RelationWeightedHeads",
    "Selection",
    "Training",
    "ZeroRelationWarning",
    "combine_heads",
    "normalise_relations",
    "relation_matrix",
    "select_by_leaving_domains_out",
]


class D3GClassifier(ClassifierMixin, DomainEstimator):
    """Classify examples of domains not seen in training, by domain relations (yao2023d3g).

    Parameters
    ----------
    encoder : tuple of int or torch.nn.Module, default=(64, 64)
        Widths of the shared layers (a ReLU follows each), or a module from (batch, features) to
        (batch, width); a module is copied and trained from the weights it has.
    relation : {"fixed", "learned", "both"} or Relation, default="both"
        How domains relate; the words stand for `Relation` with its defaults.
    lam : float, at least 0, default=0.5
        Weight of the consistency term. It alone trains the learned relation: with 0, ``learned``
        and ``both`` keep a relation network at its random start.
    combine : {"logits", "prob"}, default="logits"
        Whether the heads' outputs or their probabilities are averaged.
    rank : int or None, default=None
        Number of bases that the heads share; None gives each domain a head of its own.
    training : Training or None, default=None
        Settings of the optimiser; None is `Training` with its defaults.
    random_state : int, RandomState or None, default=None
        An integer gives the same bits every time. Global random state is left alone.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    domains_ : ndarray of shape (n_domains,)
        Sorted labels of the training domains; the order of all rows and weights.
    network_ : RelationWeightedHeads
        Trained in float32, on features standardised by ``x_scale_``.
    relation_network_ : LearnedRelation or None
    n_isolated_domains_ : int
        Training domains without a positive relation to another; their examples are left out
        of the consistency term.
    loss_ : float
        Loss of the last batch, in nats.
    n_features_in_ : int

    Notes
    -----
    Without ``domains``, `fit` takes all rows as one domain: plain empirical risk minimisation.
    Relations are normalised over training domains only, and nothing of a test domain is seen
    before `predict`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> angles = np.array([0.0, 0.6, 1.2, 1.8])                 # one per domain
    >>> metadata = np.column_stack([np.cos(angles), np.sin(angles)])
    >>> domains = np.repeat(np.arange(4), 50)
    >>> X = rng.normal(size=(200, 2))
    >>> y = (X * metadata[domains]).sum(axis=1) > 0
    >>> model = D3GClassifier(relation="fixed", training=Training(steps=100), random_state=0)
    >>> model = model.fit(X, y, domains=domains, metadata=metadata)
    >>> unseen = np.array([np.cos(0.9), np.sin(0.9)])
    >>> X_new = rng.normal(size=(300, 2))
    >>> bool(model.score(X_new, X_new @ unseen > 0, metadata=unseen) > 0.85)
    True
    """

    def __init__(
        self,
        *,
        encoder=(64, 64),
        relation="both",
        lam=0.5,
        combine="logits",
        rank=None,
        training=None,
        random_state=None,
    ):
        self.encoder = encoder
        self.relation = relation
        self.lam = lam
        self.combine = combine
        self.rank = rank
        self.training = training
        self.random_state = random_state

    def _prepare_target(self, y: NDArray) -> tuple[Tensor, int]:
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise UsageError(
                f"y must hold at least two classes, got one class, {self.classes_.tolist()[0]!r}: "
                "give examples of another, or use D3GRegressor for numbers"
            )
        return torch.from_numpy(numbers), len(self.classes_)

    def fit(
        self, X: Any, y: Any, domains: Any = None, metadata: Any = None, adjacency: Any = None
    ) -> D3GClassifier:
        """Train the encoder, one head per domain and, where asked, the learned relation.

        Parameters
        ----------
        X : array of shape (n, n_features)
            Finite numbers; standardised inside.
        y : array of shape (n,)
            Class labels, at least two classes.
        domains : array of shape (n,) or None
            Label of each row's domain; None takes all rows as one domain.
        metadata : array of shape (n_domains, m), mapping of label to vector, or None
            An array's rows are in the order of the sorted labels. Needed for several domains
            unless ``relation`` is ``fixed`` and ``adjacency`` is given.
        adjacency : array of shape (n_domains, n_domains) or None
            Given relations between the training domains, in the same order; negative entries
            count as 0. It takes the place of the kernel of metadata.

        Raises
        ------
        ValueError
            For NaN or infinite numbers, one class only, tables whose rows do not fit the
            domains, or a setting out of range.
        """
        X, y = validate_data(self, X, y, dtype=np.float64)
        self._fit_heads(X, y, domains, metadata, adjacency)
        return self

    def predict_proba(
        self, X: Any, metadata: Any = None, domains: Any = None, relations: Any = None
    ) -> NDArray[np.float64]:
        """Return class probabilities of shape (n, n_classes), columns as in ``classes_``.

        ``X``, ``metadata``, ``domains``, ``relations`` and the errors are those of `predict`.
        """
        combined = self._combined(X, metadata, domains, relations)
        return torch.from_numpy(combined).softmax(dim=1).numpy()

    def predict(
        self, X: Any, metadata: Any = None, domains: Any = None, relations: Any = None
    ) -> NDArray:
        """Return the likeliest class of each row.

        Parameters
        ----------
        X : array of shape (n, n_features)
        metadata : array of shape (m,), mapping of label to vector, or array of shape (labels, m)
            Of the one unseen domain that X comes from; or, with ``domains``, of every unseen
            domain in it (an array's rows are in the order of its sorted labels).
        domains : array of shape (n,) or None
            Label of each row's domain. A label seen in training is predicted by its own head.
        relations : array of shape (n_domains,), mapping of label to such a row, or array of \
shape (labels, n_domains)
            Given relations to the training domains, in the order of ``domains_``; needed for
            unseen domains if the model was fitted with ``adjacency``, and otherwise used in
            place of the kernel.

        Raises
        ------
        ValueError
            If a domain was not seen in training and has neither metadata nor relations, or
            none of its relations is positive and the fallback is ``error``.
        """
        likeliest = self.predict_proba(X, metadata, domains, relations).argmax(axis=1)
        return self.classes_[likeliest]

    def score(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        domains: Any = None,
        metadata: Any = None,
        relations: Any = None,
    ) -> float:
        """Return the accuracy in [0, 1] of `predict` against ``y``.

        ``sample_weight`` has shape (n,); ``X``, ``domains``, ``metadata`` and ``relations`` are
        those of `predict`.
        """
        found = self.predict(X, metadata, domains, relations)
        return float(accuracy_score(y, found, sample_weight=sample_weight))

    def save(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``weights.safetensors`` to ``folder``, making it if need be."""
        save_estimator(self, folder)

    @classmethod
    def load(cls, folder: str | Path, *, encoder: nn.Module | None = None) -> D3GClassifier:
        """Read what `save` wrote to ``folder``; an ``encoder`` of your own must be given again.

        Raises
        ------
        ValueError
            If the folder does not hold a model of this class, or the encoder is missing.
        """
        return load_estimator(cls, folder, encoder)


class D3GRegressor(RegressorMixin, DomainEstimator):
    """Predict a number for examples of domains not seen in training (yao2023d3g).

    The loss is the squared error of the standardised target. Everything else is as in
    `D3GClassifier`, without ``combine``: heads' outputs are averaged.

    Parameters
    ----------
    encoder : tuple of int or torch.nn.Module, default=(64, 64)
        Widths of the shared layers, or a module from (batch, features) to (batch, width).
    relation : {"fixed", "learned", "both"} or Relation, default="both"
        How domains relate; the words stand for `Relation` with its defaults.
    lam : float, at least 0, default=0.5
        Weight of the consistency term, which alone trains the learned relation.
    rank : int or None, default=None
        Number of bases that the heads share; None gives each domain a head of its own.
    training : Training or None, default=None
        Settings of the optimiser.
    random_state : int, RandomState or None, default=None
        An integer gives the same bits every time.

    Attributes
    ----------
    domains_, network_, relation_network_, n_isolated_domains_, loss_, n_features_in_
        As in `D3GClassifier`; ``loss_`` is in units of the target's variance.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> height = {"coast": [0.0], "hill": [1.0], "peak": [2.0]}
    >>> domains = np.repeat(list(height), 60)
    >>> X = rng.normal(size=(180, 1))
    >>> slope = np.array([height[name][0] for name in domains])
    >>> model = D3GRegressor(
    ...     relation=Relation("fixed", kernel="distance"), training=Training(steps=100),
    ...     random_state=0)
    >>> model = model.fit(X, slope * X[:, 0], domains=domains, metadata=height)
    >>> bool(abs(model.predict([[1.0]], metadata=[1.8])[0] - 1.8) < 0.5)
    True
    """

    def __init__(
        self,
        *,
        encoder=(64, 64),
        relation="both",
        lam=0.5,
        rank=None,
        training=None,
        random_state=None,
    ):
        self.encoder = encoder
        self.relation = relation
        self.lam = lam
        self.rank = rank
        self.training = training
        self.random_state = random_state

    def _prepare_target(self, y: NDArray) -> tuple[Tensor, int]:
        if y.dtype.kind not in "biuf":
            raise UsageError(
                f"y must hold numbers, got {y[0]!r}: use D3GClassifier for labels, or convert it"
            )
        spread = float(y.std())
        self.y_mean_, self.y_spread_ = float(y.mean()), spread if spread > 0 else 1.0
        scaled = (y - self.y_mean_) / self.y_spread_
        return torch.from_numpy(scaled.astype(np.float32)).unsqueeze(1), 1

    def fit(
        self, X: Any, y: Any, domains: Any = None, metadata: Any = None, adjacency: Any = None
    ) -> D3GRegressor:
        """Train the encoder, one head per domain and, where asked, the learned relation.

        Parameters
        ----------
        X : array of shape (n, n_features)
            Finite numbers; standardised inside.
        y : array of shape (n,)
            Finite numbers; standardised inside.
        domains, metadata, adjacency
            As in `D3GClassifier.fit`.

        Raises
        ------
        ValueError
            As `D3GClassifier.fit`, save for the classes.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        self._fit_heads(X, y, domains, metadata, adjacency)
        return self

    def predict(
        self, X: Any, metadata: Any = None, domains: Any = None, relations: Any = None
    ) -> NDArray[np.float64]:
        """Return numbers of shape (n,), in the target's unit.

        ``X``, ``metadata``, ``domains``, ``relations`` and the errors are those of
        `D3GClassifier.predict`.
        """
        combined = self._combined(X, metadata, domains, relations)
        return combined[:, 0] * self.y_spread_ + self.y_mean_

    def score(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        domains: Any = None,
        metadata: Any = None,
        relations: Any = None,
    ) -> float:
        """Return the coefficient of determination, at most 1, of `predict` against ``y``.

        ``sample_weight`` has shape (n,); ``X``, ``domains``, ``metadata`` and ``relations`` are
        those of `predict`.
        """
        found = self.predict(X, metadata, domains, relations)
        return float(r2_score(y, found, sample_weight=sample_weight))

    def save(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``weights.safetensors`` to ``folder``, making it if need be."""
        save_estimator(self, folder)

    @classmethod
    def load(cls, folder: str | Path, *, encoder: nn.Module | None = None) -> D3GRegressor:
        """Read what `save` wrote to ``folder``; an ``encoder`` of your own must be given again.

        Raises
        ------
        ValueError
            If the folder does not hold a model of this class, or the encoder is missing.
        """
        return load_estimator(cls, folder, encoder)
