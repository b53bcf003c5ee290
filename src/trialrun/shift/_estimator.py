"""What `D3GClassifier` and `D3GRegressor` share: fitting heads, and combining them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from trialrun.core.errors import UsageError
from trialrun.core.seeds import split
from trialrun.shift._atlas import Atlas, Scale
from trialrun.shift._domains import read_labels
from trialrun.shift._heads import RelationWeightedHeads, mlp
from trialrun.shift._loss import D3GLoss, combine_heads
from trialrun.shift._relations import Array, DomainWeights, LearnedRelation, Relation
from trialrun.shift._training import Training, minimise

ROWS_AT_ONCE = 8192


def make_encoder(encoder: Any, n_features: int, seed: int) -> nn.Module:
    """Return a fresh encoder: layers of the widths given, or a copy of the user's module."""
    if isinstance(encoder, nn.Module):
        return copy.deepcopy(encoder)
    widths = (encoder,) if isinstance(encoder, int) else tuple(encoder)
    if not widths or any(not isinstance(w, int | np.integer) or w < 1 for w in widths):
        raise UsageError(
            f"encoder must be a module or a tuple of layer widths of at least 1, got {encoder!r}"
        )
    return mlp((n_features, *widths), torch.Generator().manual_seed(seed))


def scaled_features(X: Array, scale: Scale) -> Tensor:
    """Return standardised features in float32, the precision of training."""
    return torch.from_numpy(scale(X).astype(np.float32))


class DomainEstimator(BaseEstimator):
    """Fit one head per domain and combine the heads for a domain not seen in training."""

    combine: str = "logits"
    encoder: Any
    relation: Any
    lam: float
    rank: int | None
    training: Any
    random_state: Any

    def _prepare_target(self, y: NDArray) -> tuple[Tensor, int]:
        """Store what the target needs; return it as a tensor, and the outputs per head."""
        raise NotImplementedError

    def _settings(self) -> tuple[Relation, Training]:
        relation = self.relation
        relation = clone(relation) if isinstance(relation, Relation) else Relation(relation)
        training = Training() if self.training is None else clone(self.training)
        relation.check()
        training.check()
        return relation, training

    def _fit_heads(self, X: Array, y: NDArray, domains: Any, metadata: Any, adjacency: Any) -> None:
        relation, training = self._settings()
        loss = D3GLoss(self.lam, combine=self.combine)
        target, n_out = self._prepare_target(y)
        table = isinstance(metadata, Mapping) or np.ndim(metadata) == 2
        if domains is None and table and len(metadata) > 1:
            raise UsageError(
                f"metadata has rows for {len(metadata)} domains and domains is missing: give "
                "domains, one label per row of X"
            )
        labels = np.zeros(len(X), dtype=np.int64) if domains is None else domains
        self.domains_, index = read_labels(labels, len(X))
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.atlas_ = Atlas.read(
            self.domains_, relation, metadata, adjacency, split(seed, "relation")
        )
        self.x_scale_ = Scale.of(X)
        encoder = make_encoder(self.encoder, X.shape[1], split(seed, "encoder"))
        self.network_ = RelationWeightedHeads(
            encoder, len(self.domains_), n_out, rank=self.rank, seed=split(seed, "heads")
        )
        parts: list[nn.Module] = [self.network_]
        if self.relation_network_ is not None:
            parts.append(self.relation_network_)
            if self.lam == 0:
                warnings.warn(
                    f"lam=0 leaves relation {relation.kind!r} with an untrained network: use "
                    "relation='fixed', or lam above 0",
                    UserWarning,
                    stacklevel=3,
                )
        tensors = (scaled_features(X, self.x_scale_), target, torch.from_numpy(index))
        between = self.atlas_.between(training.device)
        with torch.enable_grad():
            self.loss_ = minimise(
                parts, partial(self._batch_loss, loss, between), tensors, training,
                split(seed, "batches"),
            )  # fmt: skip
        for part in parts:
            part.requires_grad_(False)
        self.n_isolated_domains_ = self.atlas_.count_isolated()

    def _batch_loss(
        self, loss: D3GLoss, between: Any, x: Tensor, y: Tensor, domains: Tensor
    ) -> Tensor:
        return loss(self.network_(x), y, domains, between())

    @property
    def relation_network_(self) -> LearnedRelation | None:
        """Return the fitted learned relation, or None where the relation is fixed."""
        return self.atlas_.network

    def domain_weights(
        self, metadata: Any = None, domains: Any = None, relations: Any = None
    ) -> DomainWeights:
        """Return the weight of every training domain's head for the domains to predict.

        Parameters
        ----------
        metadata, domains, relations
            As for ``predict``.

        Returns
        -------
        DomainWeights
            ``domains`` (the labels), ``weights`` of shape (n_labels, n_training_domains) whose
            rows sum to 1, and ``fell_back``, true where the relation to every training domain
            was 0 and the fallback was used.

        Raises
        ------
        ValueError
            If a domain can be neither recognised nor related.
        """
        check_is_fitted(self)
        return self.atlas_.weights(metadata, domains, relations)

    def _combined(self, X: Any, metadata: Any, domains: Any, relations: Any) -> Array:
        """Return the combined heads' outputs, shape (rows, outputs), in float64."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        index = np.zeros(len(X), dtype=np.int64)
        if domains is not None:
            index = read_labels(domains, len(X))[1]
        weights = torch.from_numpy(self.atlas_.weights(metadata, domains, relations).weights)
        # In float64 the prediction for a row does not depend on the rows beside it.
        network = copy.deepcopy(self.network_).double().eval()
        parts = []
        with torch.no_grad():
            for start in range(0, len(X), ROWS_AT_ONCE):
                chunk = slice(start, start + ROWS_AT_ONCE)
                x = scaled_features(X[chunk], self.x_scale_).double()
                parts.append(combine_heads(network(x), weights[index[chunk]], combine=self.combine))
        return torch.cat(parts).numpy()
