"""What flows through the data pipeline, and how to read and write it.

A step is a callable ``step(stream, rank, world_size)`` that takes and gives an iterable of
documents; the two numbers, which task of how many this is, are its to ignore. That is the form in
which datatrove (0.10) takes custom functions, and its own ``Document`` has the same three fields,
so that every step here runs inside a datatrove executor as it is: locally, on Slurm or on Ray.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from trialrun.core.errors import UsageError

T = TypeVar("T")


@dataclass(slots=True)
class Document:
    """A text with its name and whatever is known about it.

    Parameters
    ----------
    text : str
    id : str
        Any name; steps neither change nor compare it.
    metadata : dict
        Must be JSON where a step keeps documents on disk.
    """

    text: str
    id: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


Stream = Iterable[Any]
Step = Callable[..., Iterable[Any]]


def as_documents(stream: Iterable[Any]) -> Iterator[Any]:
    """Yield documents; a plain string becomes a `Document` named by its place.

    Raises
    ------
    UsageError
        If ``stream`` is one string or None, or an item has no text.
    """
    if isinstance(stream, str | bytes) or stream is None or not hasattr(stream, "__iter__"):
        raise UsageError(
            "documents must be an iterable of texts or of documents, "
            f"got {type(stream).__name__}: put a single text into a list"
        )
    for place, item in enumerate(stream):
        if isinstance(item, str):
            yield Document(item, str(place))
        elif isinstance(getattr(item, "text", None), str):
            yield item
        else:
            raise UsageError(
                f"document {place} must be a string or have a text that is one, "
                f"got {type(item).__name__}"
            )


def texts_of(texts: Iterable[Any], name: str = "texts") -> list[str]:
    """Return texts as a list.

    Raises
    ------
    UsageError
        If there are none, or one of them is no string.
    """
    found = [document.text for document in as_documents(texts)]
    if not found:
        raise UsageError(f"{name} must hold at least one text, got an empty collection")
    return found


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of ``size`` items; the last may be shorter."""
    source = iter(items)
    while batch := list(islice(source, size)):
        yield batch


def read_jsonl(*paths: str | Path, key: str = "text") -> Iterator[Document]:
    """Read documents line by line from JSON Lines files.

    Parameters
    ----------
    paths : str or Path
    key : str
        Where the text stands. ``id`` is kept as the name, all else as metadata.

    Yields
    ------
    Document

    Raises
    ------
    UsageError
        If a file is missing, a line is not a JSON object with a text (the line is named), or the
        files hold no document at all.
    """
    named = ", ".join(map(str, paths)) or "no file"
    yield from _some(
        _documents_in(paths, key),
        f"paths must hold at least one document, got none from {named}: look whether the files "
        f"were written to their end",
    )


def _documents_in(paths: Sequence[str | Path], key: str) -> Iterator[Document]:
    for path in map(Path, paths):
        if not path.is_file():
            raise UsageError(f"{path} is not a file: name JSON Lines files with a text per line")
        with path.open(encoding="utf-8-sig", errors="strict") as file:
            yield from _documents_of(path, file, key)


def _documents_of(path: Path, lines: Iterable[str], key: str) -> Iterator[Document]:
    number = 0
    try:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get(key), str):
                raise UsageError(
                    f"{path}, line {number}: expected a JSON object with a text under {key!r}"
                )
            name = str(row.pop("id", f"{path.name}:{number}"))
            yield Document(row.pop(key), name, row)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}, after line {number}: not UTF-8 ({error.reason})") from error
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, line {number}: not JSON ({error.msg})") from error


def _some(stream: Iterable[T], otherwise: str) -> Iterator[T]:
    """Yield documents, or raise at the end where there was none."""
    found = False
    for document in stream:
        found = True
        yield document
    if not found:
        raise UsageError(otherwise)


def _counted(stream: Iterable[Any], passed: list[int], place: int) -> Iterator[Any]:
    # The list is the run's own: an earlier run that is read on does not count into a later one.
    for document in stream:
        passed[place] += 1
        yield document


class Pipeline:
    """Send documents through steps, one after the other, and count what each lets through.

    Steps are lazy: a document is read when the next is asked for, except where a step's own
    docstring says that it has to see all first (`MinHashDedup`).

    Parameters
    ----------
    steps : sequence of callable
        Each takes ``(stream, rank, world_size)`` and gives a stream: the steps of this module,
        steps of datatrove, or functions of your own.

    Attributes
    ----------
    counts : list of (name, documents that entered, documents that left)
        Of the last run, as far as it has come.

    Raises
    ------
    UsageError
        If there is no step, or one cannot be called.

    Examples
    --------
    >>> from trialrun.pretraining.moxin import LengthFilter, MinHashDedup, Normalise
    >>> pipeline = Pipeline([Normalise(), LengthFilter(least=5), MinHashDedup()])
    >>> [document.text for document in pipeline(["one  text", "one text", "tiny"])]
    ['one text']
    >>> pipeline.counts
    [('Normalise', 3, 3), ('LengthFilter', 3, 2), ('MinHashDedup', 2, 1)]
    """

    def __init__(self, steps: Sequence[Step]):
        self.steps = list(steps)
        if not self.steps:
            raise UsageError("a pipeline needs at least one step, got none")
        for place, step in enumerate(self.steps):
            if not callable(step):
                raise UsageError(f"step {place} must be callable, got {type(step).__name__}")
        self._passed: list[int] = [0] * (len(self.steps) + 1)

    def __call__(self, stream: Stream, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Yield the documents of ``stream`` that come through all steps.

        That all are dropped on the way is no error: `counts` says where.

        Raises
        ------
        UsageError
            If ``stream`` ends without a document, and is not one task's share of several.
        """
        passed = self._passed = [0] * (len(self.steps) + 1)
        documents = as_documents(stream)
        if world_size == 1:
            documents = _some(
                documents,
                "documents must hold at least one text, got an empty stream: look at what was to "
                "give them, and whether it had been read before",
            )
        flow: Iterable[Any] = _counted(documents, passed, 0)
        for place, step in enumerate(self.steps, 1):
            flow = _counted(step(flow, rank, world_size), passed, place)
        return iter(flow)

    @property
    def counts(self) -> list[tuple[str, int, int]]:
        """Return each step's name with how many documents entered and left it."""
        names = [getattr(s, "__name__", type(s).__name__) for s in self.steps]
        return list(zip(names, self._passed, self._passed[1:]))
