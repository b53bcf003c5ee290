"""What `D3GClassifier` and `D3GRegressor` share: fitting heads, and weighing them for a domain."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from trialrun.core.errors import UsageError
from trialrun.core.seeds import split
from trialrun.shift._domains import read_labels, read_rows
from trialrun.shift._heads import RelationWeightedHeads, mlp
from trialrun.shift._loss import D3GLoss, combine_heads
from trialrun.shift._relations import (
    Array,
    DomainWeights,
    LearnedRelation,
    Relation,
    _log_kernel,
    weigh,
)
from trialrun.shift._training import Training, minimise

ROWS_AT_ONCE = 8192


class Scale(NamedTuple):
    """Mean and spread of columns; a constant column has the spread 1."""

    mean: Array
    spread: Array

    @classmethod
    def of(cls, table: Array) -> Scale:
        spread = table.std(axis=0)
        return cls(table.mean(axis=0), np.where(spread > 0, spread, 1.0))

    def __call__(self, table: Array) -> Array:
        return (table - self.mean) / self.spread


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


class DomainEstimator(BaseEstimator):
    """Fit one head per domain and combine the heads for a domain not seen in training."""

    combine: str = "logits"

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
        self.relation_, training = self._settings()
        loss = D3GLoss(self.lam, combine=self.combine)
        target, n_out = self._prepare_target(y)
        labels = np.zeros(len(X), dtype=np.int64) if domains is None else domains
        self.domains_, index = read_labels(labels, len(X))
        self._read_knowledge(metadata, adjacency)
        self.x_scale_ = Scale.of(X)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        encoder = make_encoder(self.encoder, X.shape[1], split(seed, "encoder"))
        self.network_ = RelationWeightedHeads(
            encoder, len(self.domains_), n_out, rank=self.rank, seed=split(seed, "heads")
        )
        self.relation_network_ = self._make_relation_network(split(seed, "relation"))
        parts = [part for part in (self.network_, self.relation_network_) if part is not None]
        tensors = (self._features(X), target, torch.from_numpy(index))
        batch_loss = partial(self._batch_loss, loss, self._training_relations(training.device))
        with torch.enable_grad():
            self.loss_ = minimise(parts, batch_loss, tensors, training, split(seed, "batches"))
        for part in parts:
            part.requires_grad_(False)
        self.n_isolated_domains_ = self._count_isolated()

    def _read_knowledge(self, metadata: Any, adjacency: Any) -> None:
        """Check and store metadata and adjacency against the kind of relation."""
        labels, kind = self.domains_, self.relation_.kind
        self.metadata_ = self.adjacency_ = self.metadata_scale_ = None
        if metadata is not None:
            self.metadata_ = read_rows("metadata", metadata, labels, width=None, each="vector")
            self.metadata_scale_ = Scale.of(self.metadata_)
        if adjacency is not None:
            self.adjacency_ = read_rows(
                "adjacency", adjacency, labels, width=len(labels), each="row"
            )
        if len(labels) == 1:
            return
        if metadata is None and (kind != "fixed" or adjacency is None):
            remedy = (
                "pass metadata" if adjacency is None else "pass metadata, or use relation='fixed'"
            )
            raise UsageError(
                f"relation {kind!r} over {len(labels)} domains needs metadata, one vector per "
                f"domain, got none: {remedy}"
            )

    def _make_relation_network(self, seed: int) -> LearnedRelation | None:
        if self.relation_.kind == "fixed" or len(self.domains_) == 1:
            return None
        return LearnedRelation(
            self.metadata_.shape[1],
            heads=self.relation_.heads,
            width=self.relation_.width,
            seed=seed,
        )

    def _features(self, X: Array) -> Tensor:
        return torch.from_numpy(self.x_scale_(X).astype(np.float32))

    def _training_relations(self, device: str) -> Any:
        """Return a function giving the relation matrix between training domains at this step."""
        n_domains = len(self.domains_)
        if n_domains == 1:
            alone = torch.zeros(1, 1, device=device)
            return lambda: alone
        given = None
        if self.relation_.kind != "learned":
            given = self.adjacency_
            if given is None:
                given = np.exp(self._log_kernel_to_training(self.metadata_))
            given = torch.from_numpy(given.astype(np.float32)).to(device)
        if self.relation_network_ is None:
            return lambda: given
        rows = torch.from_numpy(self.metadata_scale_(self.metadata_).astype(np.float32)).to(device)
        beta = self.relation_.beta if given is not None else 0.0
        network = self.relation_network_

        def mixed() -> Tensor:
            learned = (1 - beta) * network(rows, rows)
            return learned if given is None else beta * given + learned

        return mixed

    def _batch_loss(
        self, loss: D3GLoss, relations: Any, x: Tensor, y: Tensor, domains: Tensor
    ) -> Tensor:
        return loss(self.network_(x), y, domains, relations())

    def _count_isolated(self) -> int:
        """Count training domains without a positive relation to any other."""
        if len(self.domains_) == 1:
            return 1
        with torch.no_grad():
            matrix = self._training_relations("cpu")().clone().fill_diagonal_(0)
        return int((matrix.clamp_min(0).sum(dim=1) == 0).sum())

    def _log_kernel_to_training(self, metadata: Array) -> Array:
        setting, training = self.relation_, self.metadata_
        if setting.kernel == "distance":
            spread = self.metadata_scale_.spread
            metadata, training = metadata / spread, training / spread
        return _log_kernel(metadata, training, setting.kernel, setting.sharpness)

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
        if domains is None:
            if isinstance(metadata, Mapping) or isinstance(relations, Mapping):
                raise UsageError(
                    "a mapping needs domains=, one label per row of X: pass it, or one vector "
                    "for the one domain that X comes from"
                )
            labels = np.array(["the domain of X"])
        else:
            labels, _ = read_labels(domains, len(np.asarray(domains)))
        n_training = len(self.domains_)
        place = {label: i for i, label in enumerate(self.domains_.tolist())}
        where = np.array([-1 if domains is None else place.get(d, -1) for d in labels.tolist()])
        if n_training == 1:
            where[:] = 0
        weights = np.zeros((len(labels), n_training))
        known = where >= 0
        weights[known, where[known]] = 1
        fell_back = np.zeros(len(labels), dtype=bool)
        if not known.all():
            weights[~known], fell_back[~known] = self._weigh_unseen(
                metadata, relations, labels, ~known
            )
        return DomainWeights(labels, weights, fell_back)

    def _weigh_unseen(
        self, metadata: Any, relations: Any, labels: NDArray, unseen: NDArray[np.bool_]
    ) -> tuple[Array, NDArray[np.bool_]]:
        def rows(name: str, value: Any, width: int, each: str) -> Array | None:
            if value is None:
                return None
            if isinstance(value, Mapping):
                return read_rows(name, value, labels[unseen], width=width, each=each)
            return read_rows(name, value, labels, width=width, each=each)[unseen]

        meta = None
        if self.metadata_ is not None:
            meta = rows("metadata", metadata, self.metadata_.shape[1], "vector")
        given = rows("relations", relations, len(self.domains_), "row")
        raw = self._relations_to_training(meta, given, ", ".join(map(str, labels[unseen][:5])))
        distances = None
        if meta is not None:
            scale = self.metadata_scale_
            distances = -_log_kernel(scale(meta), scale(self.metadata_), "distance", 1.0)
        names = labels[unseen]
        return (
            weigh(raw, distances, self.relation_.fallback, names),
            np.clip(raw, 0, None).sum(axis=1) == 0,
        )

    def _relations_to_training(self, meta: Array | None, given: Array | None, who: str) -> Array:
        """Mix the given and the learned relation of unseen domains to the training domains."""
        setting = self.relation_
        if meta is None and setting.kind != "fixed":
            raise UsageError(
                f"{who} was not seen in training: relation {setting.kind!r} needs its metadata"
            )
        log_kernel = None
        if setting.kind != "learned" and given is None:
            if self.adjacency_ is not None:
                raise UsageError(
                    f"{who} was not seen in training, and the given relation came as adjacency: "
                    f"pass relations=, its {len(self.domains_)} relations to the training domains"
                )
            if meta is None:
                raise UsageError(
                    f"{who} was not seen in training: pass its metadata, or relations= (its "
                    f"relations to the {len(self.domains_)} training domains)"
                )
            log_kernel = self._log_kernel_to_training(meta)
            given = np.exp(log_kernel)
        raw = given
        if self.relation_network_ is not None:
            learned = self._learned_to_training(meta)
            beta = setting.beta if setting.kind == "both" else 0.0
            raw = learned if given is None or beta == 0 else beta * given + (1 - beta) * learned
        if log_kernel is not None:
            # A sharp kernel underflows far from every training domain; its ratios do not.
            gone = np.clip(raw, 0, None).sum(axis=1) == 0
            top = log_kernel.max(axis=1, keepdims=True)
            raw = np.where(gone[:, None], np.exp(log_kernel - top), raw)
        return raw

    def _learned_to_training(self, meta: Array) -> Array:
        rows = [
            torch.from_numpy(self.metadata_scale_(table).astype(np.float32))
            for table in (meta, self.metadata_)
        ]
        with torch.no_grad():
            return self.relation_network_(*rows).double().numpy()

    def _combined(self, X: Any, metadata: Any, domains: Any, relations: Any) -> Array:
        """Return the combined heads' outputs, shape (rows, outputs), in float64."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        index = np.zeros(len(X), dtype=np.int64)
        if domains is not None:
            index = read_labels(domains, len(X))[1]
        weights = self.domain_weights(metadata, domains, relations).weights
        # In float64 the prediction for a row does not depend on the rows beside it.
        network = copy.deepcopy(self.network_).double().eval()
        parts = []
        with torch.no_grad():
            for start in range(0, len(X), ROWS_AT_ONCE):
                chunk = slice(start, start + ROWS_AT_ONCE)
                x = self._features(X[chunk]).double()
                rows = torch.from_numpy(weights[index[chunk]])
                parts.append(combine_heads(network(x), rows, combine=self.combine))
        return torch.cat(parts).numpy()
