"""Deduplication in tasks that do not see one another's documents.

Three stages, each of which fits a machine: every task writes the keys of its documents; one process
joins them, a band at a time; every task reads its documents again and leaves out what it is told.
Inside datatrove the first and the last are steps of its executors (local, Slurm, Ray), the join
a plain call between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trialrun.core.errors import UsageError
from trialrun.pretraining._components import star_pairs, union
from trialrun.pretraining._dedup import MinHashDedup, digest_and_keys, first_of_equal
from trialrun.pretraining._documents import Stream, as_documents, chunks

_CHUNK = 1024


def _file(folder: Path, rank: int, what: str) -> Path:
    return folder / f"{rank:05d}.{what}.npy"


class WriteKeys:
    """Write each document's digest and band keys, and let it through.

    Parameters
    ----------
    folder : str or Path
        One file a task is written there; every task and `join_keys` share it.
    dedup : MinHashDedup
        Its signature settings and bands, the same in every task. Its link must be "component":
        the join does not see texts and cannot verify.

    Raises
    ------
    UsageError
        If the link asks for verification.

    Examples
    --------
    >>> import tempfile
    >>> from trialrun.pretraining.moxin import DropDuplicates, MinHashDedup, join_keys
    >>> shards = [["one and the same"], ["another", "One and the same!"]]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for rank, shard in enumerate(shards):
    ...         _ = list(WriteKeys(folder, MinHashDedup())(shard, rank, 2))
    ...     dropped = join_keys(folder)
    ...     left = [d.text for r, s in enumerate(shards) for d in DropDuplicates(folder)(s, r, 2)]
    >>> dropped, left
    (1, ['one and the same', 'another'])
    """

    def __init__(self, folder: str | Path, dedup: MinHashDedup):
        if dedup.link != "component":
            raise UsageError(
                f"keys can be joined with link='component' only, got {dedup.link!r}: texts are "
                "not at hand to verify pairs"
            )
        self.folder, self.dedup = Path(folder), dedup

    def __call__(self, stream: Stream, rank: int = 0, *_tasks: int) -> Iterator[Any]:
        """Yield all of task ``rank``'s ``stream``; its file appears when the last was read."""
        self.folder.mkdir(parents=True, exist_ok=True)
        width = 2 + self.dedup.bands.count
        rows = [np.empty((0, width), np.uint64)]
        for chunk in chunks(as_documents(stream), _CHUNK):
            texts = [document.text for document in chunk]
            rows.append(np.hstack(digest_and_keys(texts, self.dedup.hasher, self.dedup.bands)))
            yield from chunk
        target = _file(self.folder, rank, "keys")
        part = target.with_suffix(".part")
        with part.open("wb") as file:
            np.save(file, np.concatenate(rows), allow_pickle=False)
        part.replace(target)


def join_keys(folder: str | Path) -> int:
    """Join the keys of all tasks and write, for each, which of its documents go.

    Parameters
    ----------
    folder : str or Path
        Where `WriteKeys` wrote. The document that stays is the first, by task and place.

    Returns
    -------
    int
        Documents that go.

    Raises
    ------
    UsageError
        If there are no keys, or tasks were given different settings.

    Examples
    --------
    See `WriteKeys`.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("*.keys.npy"))
    if not paths:
        raise UsageError(f"{folder} holds no keys: run WriteKeys over every task first")
    tables = [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]
    widths = {table.shape[1] for table in tables}
    if len(widths) > 1:
        raise UsageError(f"tasks wrote keys of {sorted(widths)} columns: use one MinHashDedup")
    first, copy_of = first_of_equal(np.concatenate([table[:, :2] for table in tables]))
    stands = np.arange(len(first))
    for column in range(2, widths.pop()):
        keys = np.concatenate([table[:, column] for table in tables])[first]
        stands = union(len(first), star_pairs(keys), stands)
    stays = first[stands][copy_of] == np.arange(len(copy_of))
    ends = np.cumsum([len(table) for table in tables])
    for path, part in zip(paths, np.split(stays, ends[:-1])):
        gone = np.flatnonzero(~part)
        np.save(path.with_name(path.name.replace(".keys.", ".drop.")), gone, allow_pickle=False)
    return int((~stays).sum())


class DropDuplicates:
    """Leave out the documents that `join_keys` named.

    Parameters
    ----------
    folder : str or Path
        The folder of `WriteKeys` and `join_keys`. The stream of a task must be the one whose keys
        were written, in the same order.

    Raises
    ------
    UsageError
        If nothing was joined for a task.

    Examples
    --------
    See `WriteKeys`.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def __call__(self, stream: Stream, rank: int = 0, *_tasks: int) -> Iterator[Any]:
        """Yield the documents of task ``rank``'s ``stream`` that stay."""
        path = _file(self.folder, rank, "drop")
        if not path.is_file():
            raise UsageError(f"{path} is missing: run join_keys({str(self.folder)!r}) first")
        gone = set(np.load(path, allow_pickle=False).tolist())
        for place, document in enumerate(as_documents(stream)):
            if place not in gone:
                yield document
