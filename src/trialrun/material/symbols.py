"""Files of symbols in order of time: bits, bytes, or words separated by white space."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trialrun.core.errors import UsageError

FORMS = ("bits", "bytes", "symbols")
LARGEST_ALPHABET = 256


@dataclass(frozen=True)
class SymbolFile:
    """The symbols of a file, numbered.

    Attributes
    ----------
    x : int64 array of shape (time,)
        Numbers from 0 to ``len(alphabet) - 1``.
    alphabet : tuple of str
        What each number stood for in the file, sorted: ``0`` and ``1``, a byte such as ``0x41``,
        or a word.
    form : str
        How the file was read: ``bits``, ``bytes`` or ``symbols``.
    """

    x: np.ndarray
    alphabet: tuple[str, ...]
    form: str

    def save(self, folder: str | Path) -> None:
        """Write form and alphabet to ``alphabet.json`` in ``folder``."""
        text = json.dumps({"form": self.form, "alphabet": self.alphabet}, ensure_ascii=False)
        (Path(folder) / "alphabet.json").write_text(text + "\n", encoding="utf-8")

    def blocks(self, count: int) -> list[np.ndarray]:
        """Cut the symbols into ``count`` runs of equal length; a remainder is left off.

        Raises
        ------
        UsageError
            If there are fewer symbols than blocks.

        Examples
        --------
        >>> SymbolFile(np.arange(5) % 2, ("0", "1"), "bits").blocks(2)
        [array([0, 1]), array([0, 1])]
        """
        size = len(self.x) // count
        if not size:
            raise UsageError(
                f"the file must hold at least {count} symbols, one a block, got {len(self.x)}"
            )
        return [self.x[i * size : (i + 1) * size] for i in range(count)]


def read_symbols(path: str | Path, form: str = "bytes") -> SymbolFile:
    """Read a file of symbols.

    Parameters
    ----------
    path : str or Path
    form : str, default="bytes"
        ``bits`` (the characters 0 and 1, white space ignored), ``bytes`` (every byte a symbol) or
        ``symbols`` (words separated by white space, UTF-8).

    Raises
    ------
    UsageError
        If the file cannot be read, is empty, holds one symbol only, more than 256 different ones,
        or what ``form`` does not allow.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     _ = Path(folder, "bits.txt").write_text("0110")
    ...     read_symbols(Path(folder, "bits.txt"), "bits").x.tolist()
    [0, 1, 1, 0]
    """
    if form not in FORMS:
        raise UsageError(f"--as must be one of {', '.join(FORMS)}, got {form!r}")
    spot = Path(path)
    try:
        data = spot.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{spot} must be a readable file of symbols, got {error.strerror or error}: "
            "check the path"
        ) from error
    if not data.strip():
        raise UsageError(f"{spot} must hold symbols, got an empty file: give one with data")
    if form == "bytes":
        return _numbered(spot, form, np.frombuffer(data, dtype=np.uint8), "0x{:02x}".format)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{spot} must be UTF-8 text with --as {form}, got the byte "
            f"0x{data[error.start]:02x} at {error.start}: use --as bytes for binary files"
        ) from error
    if form == "bits":
        return _bits(spot, text)
    words = text.split()
    return _numbered(spot, form, np.array(words), str)


def _bits(spot: Path, text: str) -> SymbolFile:
    packed = "".join(text.split())
    for place, mark in enumerate(packed):
        if mark not in "01":
            raise UsageError(
                f"{spot} must hold only the characters 0 and 1 with --as bits, got {mark!r} "
                f"after {place} bits: use --as bytes or --as symbols"
            )
    x = np.frombuffer(packed.encode("ascii"), dtype=np.uint8)
    return _numbered(spot, "bits", x - ord("0"), str)


def _numbered(spot: Path, form: str, raw: np.ndarray, label: Callable[[Any], str]) -> SymbolFile:
    alphabet, x = np.unique(raw, return_inverse=True)
    if len(alphabet) == 1:
        raise UsageError(
            f"{spot} must hold at least two different symbols, got {label(alphabet[0])} only: "
            "there is nothing to predict"
        )
    if len(alphabet) > LARGEST_ALPHABET:
        raise UsageError(
            f"{spot} must hold at most {LARGEST_ALPHABET} different symbols, got "
            f"{len(alphabet)}: map rare ones to one symbol, or use --as bytes"
        )
    names = tuple(label(value) for value in alphabet)
    return SymbolFile(x.reshape(-1).astype(np.int64), names, form)
