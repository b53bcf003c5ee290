"""A byte corpus that every machine with Python has: the source of its own standard library.

Material: the ``.py`` files of the running interpreter's standard library, without tests, vendored
packages and generated tables. Licence: Python Software Foundation License Version 2 (PSF-2.0);
read in place, nothing is copied. Size: about 10 MB in some 700 files, depending on the version,
which `StdlibText.source` states.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trialrun.core.errors import NotRunnable

LICENCE = "PSF-2.0"
_SKIPPED = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "_vendor"}
)
_GENERATED = frozenset({"encodings", "lib2to3", "pydoc_data"})


@dataclass(frozen=True)
class StdlibText:
    """Bytes to train on and bytes held out, from different files.

    Parameters
    ----------
    train, held_out : uint8 arrays of shape (bytes,)
        Whole files in the order of their paths, with a newline between them.
    train_files, held_out_files : int
        Number of files in each part.
    source : str
        Interpreter version and a digest of all bytes.
    """

    train: NDArray[np.uint8]
    held_out: NDArray[np.uint8]
    train_files: int
    held_out_files: int
    source: str


def _is_held_out(path: str) -> bool:
    """Put one file in twelve aside, by a digest of its path, the same on every machine."""
    return hashlib.sha256(path.encode()).digest()[0] % 12 == 0


def _files(root: Path) -> list[Path]:
    found = []
    for path in root.rglob("*.py"):
        folders = path.relative_to(root).parts[:-1]
        if not _SKIPPED & set(folders) and not (folders and folders[0] in _GENERATED):
            found.append(path)
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


@lru_cache(maxsize=1)
def load_stdlib_text() -> StdlibText:
    """Read the standard library's source as bytes, split by file.

    Raises
    ------
    NotRunnable
        If the interpreter's library holds too little source (a stripped or zipped Python).

    Examples
    --------
    >>> text = load_stdlib_text()
    >>> text.train.dtype, len(text.train) > len(text.held_out) > 0
    (dtype('uint8'), True)
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    parts: dict[bool, list[bytes]] = {False: [], True: []}
    for path in _files(root):
        parts[_is_held_out(path.relative_to(root).as_posix())].append(path.read_bytes())
    train, held_out = (b"\n".join(parts[which]) for which in (False, True))
    if len(train) < 1_000_000 or len(held_out) < 50_000:
        raise NotRunnable(
            f"the standard library at {root} holds {len(train) + len(held_out)} bytes of source, "
            f"and over 1000000 are needed: use a Python installed with its .py files"
        )
    digest = hashlib.sha256(train + held_out).hexdigest()[:12]
    return StdlibText(
        train=np.frombuffer(train, dtype=np.uint8),
        held_out=np.frombuffer(held_out, dtype=np.uint8),
        train_files=len(parts[False]),
        held_out_files=len(parts[True]),
        source=f"Python {platform.python_version()} standard library, sha256 {digest}",
    )
