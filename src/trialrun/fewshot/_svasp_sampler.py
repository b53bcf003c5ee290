"""Which classes and which pictures an episode has: drawn once, shared by all that is compared.

Ours: an episode is numbers of rows, not pictures, so that every arm sees the same ones (snell2017
for what an episode is).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from trialrun.fewshot import _svasp_stack  # noqa: F401

# isort: split
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trialrun.core.seeds import rng
from trialrun.core.shapes import check_range

_BLOCK = 256
"""Episodes drawn from one stream: the first n episodes do not depend on how many are asked for."""


class Episodes(NamedTuple):
    """Rows of a data set, episode by episode.

    ``classes`` has shape (episodes, way), ``support`` (episodes, way, shot) and ``query``
    (episodes, way, query); all are integers.
    """

    classes: NDArray[np.int64]
    support: NDArray[np.int64]
    query: NDArray[np.int64]


def check_labels(labels: Any, rows: int) -> NDArray[np.int64]:
    """Return labels as an integer array, one for each of so many rows.

    Raises
    ------
    ValueError
        For labels of another number, shape or kind.
    """
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
        self.labels = array = check_labels(labels, len(labels))
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
    # One row a draw: what is compared then lies side by side.
    rows, last = (np.ascontiguousarray(part.reshape(-1, need).T) for part in (drawn, tops))
    for i in range(1, need):
        taken = (rows[:i] == rows[i]).any(axis=0)
        np.copyto(rows[i], last[i], where=taken)
    return random.permuted(rows.T.reshape(sizes.shape), axis=-1)
