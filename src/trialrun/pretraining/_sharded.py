"""Deduplication in tasks that do not see one another's documents.

Three stages, each of which fits a machine: every task writes the keys of its documents; one process
joins them, a band at a time; every task reads its documents again and leaves out what it is told.
Inside datatrove the first and the last are steps of its executors (local, Slurm, Ray), the join
a plain call between them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trialrun.core.errors import UsageError
from trialrun.pretraining._checks import check_whole
from trialrun.pretraining._components import star_pairs, union
from trialrun.pretraining._dedup import MinHashDedup, digest_and_keys, first_of_equal
from trialrun.pretraining._documents import Stream, as_documents, chunks

_CHUNK = 1024


def _file(folder: Path, rank: int, what: str) -> Path:
    return folder / f"{rank:05d}.{what}"


def _check_task(rank: int, world_size: int) -> None:
    check_whole("world_size", world_size, low=1)
    check_whole("rank", rank, low=0, high=world_size - 1)


def _said(path: Path) -> dict[str, Any]:
    """Return what a task said of its keys: settings, number of tasks, number of documents."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}): run WriteKeys for it again") from error
    if not isinstance(said, dict) or said.keys() != {"settings", "tasks", "documents"}:
        raise UsageError(f"{path} was not written by WriteKeys: run it for every task again")
    return said


class WriteKeys:
    """Write each document's digest and band keys, and let it through.

    Parameters
    ----------
    folder : str or Path
        Every task writes its keys there, and what they were made with; every task and `join_keys`
        share it. One folder serves one run: tasks of another may be overwritten, not mixed in.
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

    def __call__(self, stream: Stream, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Yield all of task ``rank``'s ``stream``; its files appear when the last was read.

        Raises
        ------
        ValueError
            If ``rank`` is none of ``world_size`` tasks.
        """
        _check_task(rank, world_size)
        self.folder.mkdir(parents=True, exist_ok=True)
        about = _file(self.folder, rank, "keys.json")
        # What an earlier run left must not be taken for this one's, should it be cut short.
        for stale in (about, _file(self.folder, rank, "stays.npy")):
            stale.unlink(missing_ok=True)
        width = 2 + self.dedup.bands.count
        rows = [np.empty((0, width), np.uint64)]
        for chunk in chunks(as_documents(stream), _CHUNK):
            texts = [document.text for document in chunk]
            rows.append(np.hstack(digest_and_keys(texts, self.dedup.hasher, self.dedup.bands)))
            yield from chunk
        table = np.concatenate(rows)
        target = _file(self.folder, rank, "keys.npy")
        part = target.with_suffix(".part")
        with part.open("wb") as file:
            np.save(file, table, allow_pickle=False)
        part.replace(target)
        said = {"settings": self._settings(), "tasks": world_size, "documents": len(table)}
        part = about.with_suffix(".part")
        part.write_text(json.dumps(said), encoding="utf-8")
        part.replace(about)

    def _settings(self) -> dict[str, Any]:
        hasher, bands = self.dedup.hasher, self.dedup.bands
        return {
            "hashes": hasher.hashes,
            "ngram": hasher.ngram,
            "unit": hasher.unit,
            "seed": hasher.seed,
            "bands": bands.count,
            "rows": bands.rows,
        }


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
        If there are no keys, a task's are missing, or tasks disagree on settings or on how many
        tasks there are (keys of an earlier run in the same folder, say).

    Examples
    --------
    See `WriteKeys`.
    """
    folder = Path(folder)
    tables = _tables(folder)
    first, copy_of = first_of_equal(np.concatenate([table[:, :2] for table in tables]))
    stands = np.arange(len(first))
    for column in range(2, tables[0].shape[1]):
        keys = np.concatenate([table[:, column] for table in tables])[first]
        stands = union(len(first), star_pairs(keys), stands)
    stays = first[stands][copy_of] == np.arange(len(copy_of))
    ends = np.cumsum([len(table) for table in tables])
    for rank, part in enumerate(np.split(stays, ends[:-1])):
        np.save(_file(folder, rank, "stays.npy"), part, allow_pickle=False)
    return int((~stays).sum())


def _tables(folder: Path) -> list[Any]:
    """Return every task's keys, once they are known to belong together."""
    abouts = sorted(folder.glob("*.keys.json"))
    if not abouts:
        raise UsageError(f"{folder} holds no keys: run WriteKeys over every task first")
    first = _said(abouts[0])
    for path in abouts[1:]:
        said = _said(path)
        for key, words in (("settings", "other settings"), ("tasks", "another number of tasks")):
            if said[key] != first[key]:
                raise UsageError(
                    f"{path.name} was written with {words} than {abouts[0].name} "
                    f"({said[key]} and {first[key]}): use one MinHashDedup and a folder of its "
                    "own for each run"
                )
    names = {path.name for path in abouts}
    wanted = [_file(folder, rank, "keys.json") for rank in range(first["tasks"])]
    for path in wanted:
        if path.name not in names:
            raise UsageError(
                f"{path} is missing, one of {len(wanted)} tasks: let WriteKeys run it to its end"
            )
    if len(names) > len(wanted):
        last = abouts[-1].name
        raise UsageError(
            f"{folder} holds {last}, which is none of {len(wanted)} tasks: empty the folder and "
            "run WriteKeys again"
        )
    tables = []
    for path in wanted:
        keys = path.with_suffix(".npy")
        try:
            table = np.load(keys, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UsageError(f"{keys} cannot be read ({error}): run WriteKeys again") from error
        said = _said(path)
        if table.shape != (said["documents"], 2 + said["settings"]["bands"]):
            raise UsageError(f"{keys} is not the file that {path.name} speaks of")
        tables.append(table)
    return tables


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
        If nothing was joined for a task, the number of tasks is not the one the keys were written
        with, or a task's stream holds more or fewer documents than it did then.

    Examples
    --------
    See `WriteKeys`.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def __call__(self, stream: Stream, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Yield the documents of task ``rank``'s ``stream`` that stay.

        Raises
        ------
        UsageError
            See `DropDuplicates`; more or fewer documents are noticed at the stream's end.
        """
        _check_task(rank, world_size)
        path = _file(self.folder, rank, "stays.npy")
        if not path.is_file():
            raise UsageError(f"{path} is missing: run join_keys({str(self.folder)!r}) first")
        tasks = _said(_file(self.folder, rank, "keys.json"))["tasks"]
        if tasks != world_size:
            raise UsageError(f"keys were written by {tasks} tasks, and here are {world_size}")
        stays, count = np.load(path, allow_pickle=False), 0
        for document in as_documents(stream):
            if count < len(stays) and stays[count]:
                yield document
            count += 1
        if count != len(stays):
            raise UsageError(
                f"task {rank} has {count} documents and had {len(stays)} when its keys were "
                "written: give it the same stream, or begin with WriteKeys again"
            )
