"""What is known of the training domains, and how a new domain relates to them (yao2023d3g)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trialrun.core.errors import UsageError
from trialrun.shift._domains import read_labels, read_rows
from trialrun.shift._relations import (
    Array,
    DomainWeights,
    LearnedRelation,
    Relation,
    log_kernel,
    weigh,
)

THE_ONE = "the domain of X"


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


@dataclass(frozen=True, eq=False)
class Places:
    """Metadata of the training domains, with the scale they set for everyone else's."""

    rows: Array
    scale: Scale

    @classmethod
    def of(cls, rows: Array) -> Places:
        return cls(rows, Scale.of(rows))

    def log_kernel(self, others: Array, setting: Relation) -> Array:
        """Return the logarithm of the kernel between other domains and these."""
        rows = self.rows
        if setting.kernel == "distance":
            others, rows = others / self.scale.spread, rows / self.scale.spread
        return log_kernel(others, rows, setting.kernel, setting.sharpness)

    def distances(self, others: Array) -> Array:
        """Return squared distances between scaled rows."""
        return -2 * log_kernel(self.scale(others), self.scale(self.rows), "distance", 1.0)

    def scaled(self, rows: Array) -> Tensor:
        """Return rows as the network on metadata takes them."""
        return torch.from_numpy(self.scale(rows).astype(np.float32))


@dataclass(frozen=True, eq=False)
class Atlas:
    """Training domains: labels, relation settings, metadata, given relations, learned relation."""

    labels: NDArray
    relation: Relation
    places: Places | None
    adjacency: Array | None
    network: LearnedRelation | None

    @classmethod
    def read(
        cls, labels: NDArray, relation: Relation, metadata: Any, adjacency: Any, seed: int
    ) -> Atlas:
        """Check metadata and adjacency against the labels and against what the relation needs."""
        places = network = None
        if metadata is not None:
            rows = read_rows("metadata", metadata, labels, width=None, each="vector")
            places = Places.of(rows)
        if adjacency is not None:
            adjacency = read_rows("adjacency", adjacency, labels, width=len(labels), each="row")
        if len(labels) == 1:
            return cls(labels, relation, places, adjacency, None)
        if places is None and (relation.kind != "fixed" or adjacency is None):
            other = "" if adjacency is None else ", or use relation='fixed'"
            raise UsageError(
                f"relation {relation.kind!r} over {len(labels)} domains needs metadata, one "
                f"vector per domain, got none: pass metadata{other}"
            )
        if places is not None and relation.kind != "fixed":
            network = LearnedRelation(
                places.rows.shape[1], heads=relation.heads, width=relation.width, seed=seed
            )
        return cls(labels, relation, places, adjacency, network)

    @property
    def beta(self) -> float:
        """Return the share of the given relation."""
        return {"fixed": 1.0, "learned": 0.0}.get(self.relation.kind, self.relation.beta)

    def between(self, device: str) -> Callable[[], Tensor]:
        """Return a function that gives the relations between training domains at this moment."""
        given: Tensor | None = None
        if self.adjacency is not None:
            given = torch.from_numpy(self.adjacency)
        elif self.places is not None:
            kernel = np.exp(self.places.log_kernel(self.places.rows, self.relation))
            given = torch.from_numpy(kernel)
        if given is None or len(self.labels) == 1:
            given = torch.zeros(len(self.labels), len(self.labels))
        part = self.beta * given.float().to(device)
        network, places = self.network, self.places
        if network is None or places is None:
            return lambda: part
        rows = places.scaled(places.rows).to(device)
        return lambda: part + (1 - self.beta) * network(rows, rows)

    def count_isolated(self) -> int:
        """Count training domains without a positive relation to any other."""
        with torch.no_grad():
            matrix = self.between("cpu")().clone().fill_diagonal_(0)
        return int((matrix.clamp_min(0).sum(dim=1) == 0).sum())

    def weights(self, metadata: Any, domains: Any, relations: Any) -> DomainWeights:
        """Weigh the training domains for every domain to predict; seen ones by their own head."""
        if domains is None:
            if isinstance(metadata, Mapping) or isinstance(relations, Mapping):
                raise UsageError(
                    "a mapping needs domains=, one label per row of X: pass it, or one vector "
                    "for the one domain that X comes from"
                )
            labels, seen = np.array([THE_ONE]), {}
        else:
            labels, _ = read_labels(domains, len(np.asarray(domains)))
            seen = {label: i for i, label in enumerate(self.labels.tolist())}
        place = np.array([seen.get(label, -1) for label in labels.tolist()])
        if len(self.labels) == 1:
            place[:] = 0
        found = np.zeros((len(labels), len(self.labels)))
        fell_back = np.zeros(len(labels), dtype=bool)
        known = place >= 0
        found[known, place[known]] = 1
        if not known.all():
            meta, given = self._rows_of(metadata, relations, labels, ~known)
            names = labels[~known]
            raw = self.to_training(meta, given, ", ".join(map(str, names[:5])))
            near = None if meta is None or self.places is None else self.places.distances(meta)
            found[~known] = weigh(raw, near, self.relation.fallback, names)
            fell_back[~known] = ~(raw > 0).any(axis=1)
        return DomainWeights(labels, found, fell_back)

    def _rows_of(
        self, metadata: Any, relations: Any, labels: NDArray, unseen: NDArray[np.bool_]
    ) -> tuple[Array | None, Array | None]:
        def rows(name: str, value: Any, width: int, each: str) -> Array | None:
            if value is None:
                return None
            if isinstance(value, Mapping):
                return read_rows(name, value, labels[unseen], width=width, each=each)
            return read_rows(name, value, labels, width=width, each=each)[unseen]

        meta = None
        if self.places is not None:
            meta = rows("metadata", metadata, self.places.rows.shape[1], "vector")
        return meta, rows("relations", relations, len(self.labels), "row")

    def to_training(self, meta: Array | None, given: Array | None, who: str) -> Array:
        """Mix given and learned relations of unseen domains to the training domains.

        Raises
        ------
        UsageError
            Naming what is missing for ``who``.
        """
        logs = None
        if given is None and self.relation.kind != "learned":
            if self.adjacency is not None:
                raise UsageError(
                    f"{who} was not seen in training, and the given relation came as adjacency: "
                    f"pass relations=, its {len(self.labels)} relations to the training domains"
                )
            if meta is None or self.places is None:
                raise UsageError(
                    f"{who} was not seen in training: pass its metadata, or relations= (its "
                    f"relations to the {len(self.labels)} training domains)"
                )
            logs = self.places.log_kernel(meta, self.relation)
            given = np.exp(logs)
        raw = np.zeros((1, len(self.labels))) if given is None else self.beta * given
        if self.relation.kind != "fixed":
            if meta is None or self.places is None or self.network is None:
                raise UsageError(
                    f"{who} was not seen in training: relation {self.relation.kind!r} needs its "
                    "metadata"
                )
            with torch.no_grad():
                rows = [self.places.scaled(table) for table in (meta, self.places.rows)]
                raw = raw + (1 - self.beta) * self.network(*rows).double().numpy()
        if logs is not None:
            # A sharp kernel underflows far from every training domain; its ratios do not.
            gone = ~(raw > 0).any(axis=1, keepdims=True)
            raw = np.where(gone, np.exp(logs - logs.max(axis=1, keepdims=True)), raw)
        return raw
