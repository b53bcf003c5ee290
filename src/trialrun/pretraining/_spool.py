"""Where a corpus waits between two passes: in memory, or in a folder."""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from trialrun.core.errors import UsageError
from trialrun.pretraining._shingles import Hashes


class Spool:
    """Documents in their order, their digests, and their keys band by band.

    Parameters
    ----------
    folder : str, Path or None
        Documents are kept there as JSON and keys as raw numbers, in a folder of their own that
        is removed at the end; None keeps both in memory.
    bands : int
    """

    def __init__(self, folder: str | Path | None, bands: int):
        if folder is not None and not Path(folder).is_dir():
            raise UsageError(f"spool must be a folder that exists, got {str(folder)!r}")
        self._folder, self._bands = folder, bands
        self._stack = ExitStack()
        self._digests: list[Hashes] = []
        self._rows: list[Hashes] = []
        self._kept: list[Any] = []
        self._offsets = array("q")
        self._made: type | None = None

    def __enter__(self) -> Spool:
        if self._folder is not None:
            own = self._stack.enter_context(tempfile.TemporaryDirectory(dir=self._folder))
            self._own = Path(own)
            self._bodies: IO[bytes] = self._stack.enter_context(
                (self._own / "documents").open("w+b")
            )
            self._columns = [
                self._stack.enter_context((self._own / f"band{i}").open("wb"))
                for i in range(self._bands)
            ]
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def count(self) -> int:
        """Return the number of documents."""
        return len(self._kept) if self._folder is None else len(self._offsets)

    def add_documents(self, documents: Sequence[Any]) -> None:
        """Put documents at the end."""
        if self._folder is None:
            self._kept += documents
            return
        for document in documents:
            self._offsets.append(self._bodies.tell())
            self._bodies.write(self._line(document))

    def _line(self, document: Any) -> bytes:
        if not is_dataclass(document) or isinstance(document, type):
            raise UsageError(f"only dataclasses can be spooled, got {type(document).__name__}")
        self._made = self._made or type(document)
        if type(document) is not self._made:
            raise UsageError(
                f"documents to spool must be of one class, got {self._made.__name__} "
                f"and {type(document).__name__}"
            )
        try:
            return json.dumps(asdict(document)).encode() + b"\n"
        except TypeError as error:
            name = getattr(document, "id", "")
            raise UsageError(
                f"document {name!r} cannot be spooled ({error}): keep metadata plain, or leave "
                "spool=None"
            ) from error

    def add_keys(self, digests: Hashes, keys: Hashes) -> None:
        """Put the digests and keys of as many documents at the end."""
        self._digests.append(digests)
        if self._folder is None:
            self._rows.append(keys)
            return
        for column, file in zip(keys.T, self._columns):
            file.write(np.ascontiguousarray(column).tobytes())

    def digests(self) -> Hashes:
        """Return the digests, shape (documents, 2)."""
        return np.concatenate(self._digests) if self._digests else np.empty((0, 2), np.uint64)

    def keys(self, band: int) -> Hashes:
        """Return one band's keys."""
        if self._folder is None:
            if len(self._rows) > 1:
                self._rows = [np.concatenate(self._rows)]
            return self._rows[0][:, band] if self._rows else np.empty(0, np.uint64)
        self._columns[band].flush()
        return np.fromfile(self._own / f"band{band}", np.uint64)

    def _document(self, place: int) -> Any:
        if self._folder is None:
            return self._kept[place]
        self._bodies.seek(self._offsets[place])
        assert self._made is not None
        return self._made(**json.loads(self._bodies.readline()))

    def texts(self, places: NDArray[np.int64]) -> list[str]:
        """Return the texts at some places."""
        return [self._document(place).text for place in places.tolist()]

    def documents(self, stays: NDArray[np.bool_]) -> Iterator[Any]:
        """Yield the documents that stay."""
        for place in np.flatnonzero(stays).tolist():
            yield self._document(place)
