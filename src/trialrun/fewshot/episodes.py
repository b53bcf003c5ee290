"""Episodes: which classes and which pictures, drawn once and shared by all that is compared.

Ours: an episode is numbers of rows, not pictures, so that every arm sees the same ones, and a
whole evaluation is a few matrix products on cached features. The mean is quoted with 1.96 standard
errors over episodes, as the field does (snell2017); episodes of one test set overlap, so this is
the spread of drawing episodes and not of drawing a test set.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from trialrun.fewshot import _svasp_stack  # noqa: F401

# isort: split
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng
from trialrun.core.shapes import check_axes, check_range
from trialrun.fewshot._svasp_heads import ProtoNetHead, nearest_prototype
from trialrun.fewshot._svasp_style import at_least_single, evaluating

_BLOCK = 256
"""Episodes drawn from one stream: the first n episodes do not depend on how many are asked for."""

_NUMBERS = 2**20
"""About how many numbers one step of an evaluation holds: few enough to stay near a core."""


class Episodes(NamedTuple):
    """Rows of a data set, episode by episode.

    ``classes`` has shape (episodes, way), ``support`` (episodes, way, shot) and ``query``
    (episodes, way, query); all are integers.
    """

    classes: NDArray[np.int64]
    support: NDArray[np.int64]
    query: NDArray[np.int64]


class EpisodeScore(NamedTuple):
    """Mean accuracy over episodes and 1.96 standard errors of it, both in points (0 to 100)."""

    acc: float
    ci: float


@runtime_checkable
class PictureSource(Protocol):
    """Pictures that can be taken by row, with one integer label each."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Return integer labels of shape (n,)."""
        ...

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        """Return float pictures (rows, channels, height, width)."""
        ...


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures in memory.

    ``images`` has shape (n, channels, height, width); bytes are given as numbers from 0 to 1.
    ``labels`` are integers of shape (n,).
    """

    images: Tensor
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        check_axes("images", self.images, ("n", "channels", "height", "width"))
        object.__setattr__(self, "labels", _check_labels(self.labels, len(self.images)))

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the pictures of these ``rows`` as floats."""
        chosen = self.images[torch.from_numpy(np.ascontiguousarray(rows))]
        return chosen.float() / 255 if chosen.dtype == torch.uint8 else chosen


@dataclass(frozen=True, eq=False)
class Features:
    """Features of every picture of a set, made once; ``features`` has shape (n, width)."""

    features: Tensor
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        check_axes("features", self.features, ("n", "width"))
        if not self.features.is_floating_point():
            raise UsageError(
                f"features must be floating-point numbers, got {self.features.dtype}: "
                "call .float() on them"
            )
        object.__setattr__(self, "labels", _check_labels(self.labels, len(self.features)))


def _check_labels(labels: Any, rows: int) -> NDArray[np.int64]:
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu()
    try:
        array = np.asarray(labels)
    except (TypeError, ValueError) as error:  # rows of different lengths, for one
        raise ValueError(
            f"labels must be integers of shape (n,), got {type(labels).__name__}: {error}"
        ) from error
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"labels must be integers of shape (n,), got {array.dtype} of shape {array.shape}"
        )
    if len(array) != rows:
        raise ValueError(f"labels must be one per picture, {rows}, got {len(array)}")
    return array.astype(np.int64, copy=False)


class EpisodeSampler:
    """Draw episodes from labels: the same seed gives the same episodes to everyone (snell2017).

    Parameters
    ----------
    labels : integer sequence of shape (n,)
        Class of every picture.
    way : int, at least 2
        Classes of an episode.
    shot : int, at least 1
        Labelled pictures per class.
    query : int, at least 1
        Pictures per class to be classified.
    seed : int
        Decides all episodes. Asking for more leaves the first ones as they were.
    names : sequence of str or None
        Names of the classes for messages, by label.

    Raises
    ------
    ValueError
        For fewer classes than ``way``, or a class with fewer than shot + query pictures.

    Examples
    --------
    >>> sampler = EpisodeSampler(np.repeat(np.arange(8), 20), way=5, shot=1, query=15, seed=0)
    >>> episodes = sampler(100)
    >>> episodes.support.shape, episodes.query.shape
    ((100, 5, 1), (100, 5, 15))
    >>> bool((sampler(30).query == episodes.query[:30]).all())
    True
    """

    def __init__(
        self,
        labels: Sequence[int] | NDArray[np.int64],
        *,
        way: int = 5,
        shot: int = 1,
        query: int = 15,
        seed: int = 0,
        names: Sequence[str] | None = None,
    ) -> None:
        check_range("way", way, low=2, unit="classes")
        check_range("shot", shot, low=1, unit="picture")
        check_range("query", query, low=1, unit="picture")
        self.way, self.shot, self.query, self.seed = way, shot, query, seed
        self.names = names
        self.labels = array = _check_labels(labels, len(labels))
        self._classes, counts = np.unique(array, return_counts=True)
        if len(self._classes) < way:
            raise ValueError(
                f"labels must hold at least {way} classes for episodes of {way}, "
                f"got {len(self._classes)}: lower way or add classes"
            )
        if len(array) < way * shot:
            raise ValueError(
                f"episodes of {way} x {shot} need at least {way * shot} pictures, got {len(array)}"
            )
        least = int(counts.argmin())
        if counts[least] < shot + query:
            name = self._classes[least] if names is None else names[int(self._classes[least])]
            raise ValueError(
                f"every class must have {shot + query} pictures for {shot} shot and {query} "
                f"queries, but class {name} has {counts[least]}: lower query or leave it out"
            )
        order = np.argsort(array, kind="stable")
        self._counts = counts
        self._rows = np.zeros((len(counts), counts.max()), dtype=np.int64)
        for row, part in zip(self._rows, np.split(order, np.cumsum(counts)[:-1])):
            row[: len(part)] = part

    def __call__(self, episodes: int) -> Episodes:
        """Return this many ``episodes``, always the first ones of the same series."""
        check_range("episodes", episodes, low=1)
        parts = [self._block(i) for i in range(-(-episodes // _BLOCK))]
        return Episodes(*(np.concatenate(kind)[:episodes] for kind in zip(*parts)))

    def _block(self, number: int) -> Episodes:
        random = rng(self.seed, "episodes", number)
        keys = random.random((_BLOCK, len(self._classes)))
        chosen = np.argsort(keys, axis=1)[:, : self.way]
        need = self.shot + self.query
        places = _distinct(random, np.repeat(self._counts[chosen][..., None], need, axis=2))
        rows = self._rows[chosen[..., None], places]
        return Episodes(
            self._classes[chosen].astype(np.int64), rows[..., : self.shot], rows[..., self.shot :]
        )


def _distinct(random: np.random.Generator, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Draw distinct places below ``sizes`` along the last axis, by Floyd's method in bulk.

    Cost does not depend on how many pictures a class has. Places come out in random order.
    """
    need = sizes.shape[-1]
    tops = sizes - need + np.arange(need)
    drawn = np.floor(random.random(sizes.shape) * (tops + 1)).astype(np.int64)
    for i in range(1, need):
        taken = (drawn[..., :i] == drawn[..., i : i + 1]).any(axis=-1)
        drawn[..., i] = np.where(taken, tops[..., i], drawn[..., i])
    return random.permuted(drawn, axis=-1)


@torch.no_grad()
def extract_features(
    backbone: nn.Module, dataset: PictureSource, *, batch_size: int = 256
) -> Features:
    """Run every picture through a network once, in eval mode, and keep the features.

    Parameters
    ----------
    backbone : torch.nn.Module
        From (batch, channels, height, width) to (batch, width); its modes are put back.
    dataset : Pictures, PictureFolder or the like
        With ``labels`` and ``take(rows)``.
    batch_size : int

    Raises
    ------
    ValueError
        If the network gives something else than one vector per picture.

    Examples
    --------
    >>> net = nn.Flatten()
    >>> extract_features(net, Pictures(torch.zeros(3, 1, 2, 2), np.arange(3))).features.shape
    torch.Size([3, 4])
    """
    check_range("batch_size", batch_size, low=1)
    spot = next(backbone.parameters(), torch.zeros(())).device
    parts = []
    with evaluating(backbone):
        for start in range(0, len(dataset.labels), batch_size):
            rows = np.arange(start, min(start + batch_size, len(dataset.labels)))
            found = backbone(dataset.take(rows).to(spot))
            if found.ndim != 2 or len(found) != len(rows):
                raise ValueError(
                    "backbone must give one vector per picture, (batch, width), "
                    f"got {tuple(found.shape)}: average over space, or num_classes=0 in timm"
                )
            parts.append(found.cpu())
    return Features(torch.cat(parts), dataset.labels)


def _rows(features: Tensor, rows: Tensor, room: Tensor) -> Tensor:
    # Whole rows are copied into the same room at every step: fresh memory costs more than the rest.
    found = torch.index_select(features, 0, rows.flatten(), out=room[: rows.numel()])
    return found.view(*rows.shape, features.shape[1])


def _finite(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return features in at least single precision, all of them finite, and their mean."""
    table = at_least_single(features)
    mean = table.mean(dim=0)
    if not mean.isfinite().all():  # one pass; only a failure looks at every row
        bad = (~table.isfinite().all(dim=1)).nonzero().flatten()
        if len(bad):
            raise UsageError(
                f"features must be finite, got NaN or infinity in {len(bad)} of {len(table)} "
                f"rows, the first of them row {int(bad[0])}: look at the network that made them"
            )
    return table, mean


@torch.no_grad()
def episode_accuracies(head: nn.Module, features: Features, episodes: Episodes) -> Tensor:
    """Return the accuracy of every episode, in points, as a tensor of shape (episodes,).

    Parameters
    ----------
    head : torch.nn.Module
        From support (episodes, way, shot, width) and query (episodes, queries, width) to logits
        (episodes, queries, way).
    features : Features
    episodes : Episodes
        Of the same data set.

    Raises
    ------
    ValueError
        If the episodes name rows that the features do not have, or a feature is not finite.

    Examples
    --------
    >>> features = Features(torch.eye(4).repeat_interleave(3, 0), np.repeat(np.arange(4), 3))
    >>> draw = EpisodeSampler(features.labels, way=3, shot=1, query=2)
    >>> episode_accuracies(ProtoNetHead(), features, draw(2))
    tensor([100., 100.], dtype=torch.float64)
    """
    count, way, query = episodes.query.shape
    last = max(int(episodes.support.max()), int(episodes.query.max()))
    if last >= len(features.features):
        raise ValueError(
            f"episodes must be drawn from these {len(features.features)} rows, got row {last}: "
            "make them with an EpisodeSampler of the same labels"
        )
    table, mean = _finite(features.features)
    plain = type(head) is ProtoNetHead
    if plain:  # distances do not mind a shift, but products of large numbers cancel
        table = table - mean
    support, asked = torch.from_numpy(episodes.support), torch.from_numpy(episodes.query)
    truth = torch.arange(way).repeat(query)  # queries come one of each class in turn
    shot, width = episodes.support.shape[2], features.features.shape[1]
    per_episode = way * (shot + query) * width
    cost: Any = getattr(head, "numbers", None)  # graph heads need far more than the features
    if cost is not None:
        per_episode = max(per_episode, cost(way, shot, way * query))
    step = max(1, _NUMBERS // per_episode)
    spot = next(head.parameters(), table).device
    sizes = (support[:step].numel(), asked[:step].numel())
    room = [table.new_empty(size, width) for size in sizes]
    found = []
    with evaluating(head):
        for start in range(0, count, step):
            part = slice(start, start + step)
            given = _rows(table, support[part], room[0]).to(spot)
            wanted = _rows(table, asked[part].mT.flatten(1), room[1]).to(spot)
            place = (
                nearest_prototype(given, wanted) if plain else head(given, wanted).argmax(dim=-1)
            )
            found.append((place.cpu() == truth).double().mean(-1))
    return 100 * torch.cat(found)


def _head(model: Any) -> nn.Module:
    """Return a model that takes support and query, or say that it is none."""
    try:
        inspect.signature(model.forward).bind(None, None)
    except (AttributeError, TypeError) as error:
        raise UsageError(
            "model must be a head of (support, query), or None, for cached features, got "
            f"{type(model).__name__}: give a backbone together with its pictures"
        ) from error
    return model


def evaluate_episodes(
    model: Any,
    dataset: Features | PictureSource,
    way: int = 5,
    shot: int = 1,
    query: int = 15,
    episodes: int = 1000,
    *,
    seed: int = 0,
) -> EpisodeScore:
    """Return few-shot accuracy over many episodes, with 1.96 standard errors (snell2017).

    Parameters
    ----------
    model : torch.nn.Module or None
        A model with ``backbone`` and ``head``; a backbone alone, scored by prototypes; with cached
        features, a head, or None for prototypes.
    dataset : Features, or pictures with ``labels`` and ``take(rows)``
        Pictures go through the backbone once, however many episodes there are.
    way, shot, query, episodes : int
        Classes, labelled pictures and queries per class, and number of episodes.
    seed : int
        The same seed and labels give the same episodes to every model.

    Raises
    ------
    ValueError
        For too few classes or pictures, or pictures without a model.

    Examples
    --------
    >>> features = Features(torch.eye(6).repeat_interleave(9, 0), np.repeat(np.arange(6), 9))
    >>> acc, ci = evaluate_episodes(None, features, way=5, shot=1, query=8, episodes=10)
    >>> acc, ci
    (100.0, 0.0)
    """
    sampler = EpisodeSampler(
        dataset.labels, way=way, shot=shot, query=query, seed=seed,
        names=getattr(dataset, "class_names", None),
    )  # fmt: skip
    # Both, since some networks have a part of their own called head.
    whole = hasattr(model, "backbone") and hasattr(model, "head")
    head: nn.Module = ProtoNetHead()
    if isinstance(dataset, Features):
        head = model.head if whole else head if model is None else _head(model)
        features = dataset
    elif model is None:
        raise ValueError("model must be given for pictures: a backbone, or backbone and head")
    else:
        head = model.head if whole else head
        features = extract_features(model.backbone if whole else model, dataset)
    found = episode_accuracies(head, features, sampler(episodes))
    spread = float(found.std()) if len(found) > 1 else float("inf")
    return EpisodeScore(float(found.mean()), 1.96 * spread / len(found) ** 0.5)
