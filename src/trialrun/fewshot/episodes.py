"""Few-shot accuracy over many episodes, from features that are made once.

Ours: a whole evaluation is a few products of matrices on cached features. The mean is quoted with
1.96 standard errors over episodes, as the field does (snell2017); episodes of one test set overlap,
so this is the spread of drawing episodes and not of drawing a test set.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

from trialrun.blocks.modes import evaluating
from trialrun.fewshot import _svasp_stack  # noqa: F401

# isort: split
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trialrun.core.errors import UsageError
from trialrun.fewshot._svasp_features import (
    Features,
    Pictures,
    PictureSource,
    check_source,
    extract_features,
    finite,
)
from trialrun.fewshot._svasp_heads import ProtoNetHead
from trialrun.fewshot._svasp_nearest import nearest_rows
from trialrun.fewshot._svasp_sampler import Episodes, EpisodeSampler

__all__ = [
    "EpisodeSampler",
    "EpisodeScore",
    "Episodes",
    "Features",
    "PictureSource",
    "Pictures",
    "episode_accuracies",
    "evaluate_episodes",
    "extract_features",
]

_NUMBERS = 2**20
"""About how many numbers one step of an evaluation holds."""

_GATHERED = 2**19
"""About how many numbers of queries are copied at a time: few enough to stay near a core."""

_SMALLEST, _LARGEST = 1e-9, 1e18
"""Within these single precision holds the squares of features, and a length is told from none."""


class EpisodeScore(NamedTuple):
    """Mean accuracy over episodes and 1.96 standard errors of it, both in points (0 to 100)."""

    acc: float
    ci: float


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

    Notes
    -----
    Prototypes are scored right whatever the features' sizes and offsets: queries for which single
    precision cannot tell the nearest class are decided by distances in double precision. Another
    head is asked as it is, in the precision of the features; a subclass of `ProtoNetHead` without
    weights in double precision.

    Raises
    ------
    ValueError
        If the episodes name rows that the features do not have, or a feature or logit is not
        finite.

    Examples
    --------
    >>> features = Features(torch.eye(4).repeat_interleave(3, 0), np.repeat(np.arange(4), 3))
    >>> draw = EpisodeSampler(features.labels, way=3, shot=1, query=2)
    >>> episode_accuracies(ProtoNetHead(), features, draw(2))
    tensor([100., 100.], dtype=torch.float64)
    """
    last = max(int(episodes.support.max()), int(episodes.query.max()))
    if last >= len(features.features):
        raise ValueError(
            f"episodes must be drawn from these {len(features.features)} rows, got row {last}: "
            "make them with an EpisodeSampler of the same labels"
        )
    table, mean = finite(features.features.cpu())
    if type(head) is ProtoNetHead:
        return 100 * _by_prototypes(table, mean, episodes)
    return 100 * _by_head(head, _held_by(head, table), episodes)


def _held_by(head: nn.Module, table: Tensor) -> Tensor:
    """Return features in a precision that holds their squares, or say that they must be scaled."""
    if isinstance(head, ProtoNetHead) and not head.state_dict():
        return table.double()
    largest = float(table.abs().max())
    if table.dtype == torch.float32 and largest and not _SMALLEST <= largest <= _LARGEST:
        raise UsageError(
            f"features must have a largest size of {_SMALLEST:g} to {_LARGEST:g} for "
            f"{type(head).__name__}, got {largest:.3g}: single precision cannot hold their "
            "squares, so scale them"
        )
    return table


def _by_prototypes(table: Tensor, mean: Tensor, episodes: Episodes) -> Tensor:
    """Return the share of queries that lie nearest to the mean of their own class.

    A query's own length is the same for all classes, so only its product with each mean and half
    the mean's squared length are wanted. Where the two best classes differ by no more than these
    products may be wrong by, as among features of very unlike sizes, distances are taken instead.
    """
    centred = table - mean  # distances do not mind a shift, but large products cancel
    number = torch.finfo(centred.dtype)
    slack, least = 2 * (centred.shape[1] + 8) * number.eps, 1e8 * number.tiny
    # Squares of small numbers vanish, so no length is taken for less than can be squared.
    lengths = torch.linalg.vector_norm(centred, dim=1) + least**0.5
    count, way, query = episodes.query.shape
    width = table.shape[1]
    truth = torch.arange(way).repeat_interleave(query)
    block = max(1, _NUMBERS // max(1, way * max(width, way * query)))
    found = []
    for start in range(0, count, block):
        support = torch.from_numpy(episodes.support[start : start + block])
        asked = torch.from_numpy(episodes.query[start : start + block]).flatten(1)
        means = functional.embedding_bag(support.flatten(0, 1), centred, mode="mean")
        half = means.square().sum(1).view(-1, way, 1) / 2
        scores = _products(centred, means.view(-1, way, width), asked).sub_(half)
        # Over this axis the kernel of max is many times as fast as that of argmax.
        best, place = scores.max(dim=1)
        second = scores.scatter_(1, place.unsqueeze(1), -torch.inf).amax(dim=1)
        longest = lengths[support].amax(dim=(1, 2))[:, None]
        bound = slack * (longest * torch.maximum(lengths[asked], longest)) + least
        sure = best - second > bound  # never of NaN
        if not sure.all():
            doubtful, which = (~sure).nonzero(as_tuple=True)
            place[doubtful, which] = nearest_rows(table, support[doubtful], asked[doubtful, which])
        found.append((place == truth).double().mean(-1))
    return torch.cat(found)


def _products(table: Tensor, means: Tensor, asked: Tensor) -> Tensor:
    """Return the products of each episode's means with its queries, (episodes, way, queries)."""
    (count, way, width), queries = means.shape, asked.shape[1]
    made = np.empty((count, way, queries), dtype=means.numpy().dtype)
    step = max(1, _GATHERED // max(1, queries * width))
    # Rows are copied into the same room at every step: fresh memory costs more than the rest.
    room = table.new_empty(step * queries, width)
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        rows = asked[part].flatten()
        gathered = torch.index_select(table, 0, rows, out=room[: len(rows)])
        wanted = gathered.view(-1, queries, width).mT.numpy()
        # For matrices as small as these NumPy's product is about three times as fast as torch's.
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is asked again
            np.matmul(means[part].numpy(), wanted, out=made[part])
    return torch.from_numpy(made)


def _by_head(head: nn.Module, table: Tensor, episodes: Episodes) -> Tensor:
    """Return the share of queries to whose class a head gives the highest logit."""
    count, way, query = episodes.query.shape
    shot, width = episodes.support.shape[2], table.shape[1]
    support, asked = torch.from_numpy(episodes.support), torch.from_numpy(episodes.query)
    truth = torch.arange(way).repeat(query)  # queries come one of each class in turn
    per_episode = max(1, way * (shot + query) * width)
    cost: Any = getattr(head, "numbers", None)  # graph heads need far more than the features
    if cost is not None:
        per_episode = max(per_episode, cost(way, shot, way * query))
    step = max(1, _NUMBERS // per_episode)
    spot = next(head.parameters(), table).device
    found = []
    with evaluating(head):
        for start in range(0, count, step):
            part = slice(start, start + step)
            given = table[support[part]].to(spot)
            wanted = table[asked[part].mT.flatten(1)].to(spot)
            logits = head(given, wanted)
            if not logits.amax(dim=-1).isfinite().all():
                raise UsageError(
                    f"logits of {type(head).__name__} must be finite, got NaN or infinity from "
                    "finite features: look at its weights, or scale the features"
                )
            found.append((logits.argmax(dim=-1).cpu() == truth).double().mean(-1))
    return torch.cat(found)


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
    if not isinstance(dataset, Features):
        check_source("dataset", dataset)
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
