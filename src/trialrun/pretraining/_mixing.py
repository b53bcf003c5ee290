"""Which sequence comes when: a mixture of token sources, in an order that needs no memory.

A source is one long array of tokens, memory-mapped where it is a file, cut into blocks. Blocks come
in an order that a keyed permutation gives without a table (an eight-round Feistel network with
cycle walking), so that the millionth block is found as fast as the first and a run resumes at any
step. Every epoch of every phase has its own order; a block comes once per epoch. Ours; the order of
zhao2024moxin's data was not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trialrun.core.errors import UsageError
from trialrun.core.seeds import split
from trialrun.pretraining._documents import as_documents
from trialrun.pretraining._phases import Phase

Encode = Callable[[str], Iterable[int]]
_ROUNDS = 8
_MIX = np.uint64(0x9E3779B97F4A7C15)


class TokenSource:
    """Tokens of one source, cut into blocks of any length.

    Parameters
    ----------
    tokens : integer array of shape (tokens,)
        Kept as it is; a memory map stays on disk.
    name : str
        For messages.

    Raises
    ------
    ValueError
        If the array is empty, has another number of axes or does not hold integers.

    Examples
    --------
    >>> source = TokenSource(np.arange(10), name="ten")
    >>> source.blocks(3), source.block(1, 3).tolist()
    (3, [3, 4, 5, 6])
    """

    def __init__(self, tokens: NDArray[Any], *, name: str = "source") -> None:
        if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
            raise UsageError(
                f"{name} must be integers of shape (tokens,), got {tokens.dtype} of shape "
                f"{tokens.shape}"
            )
        if not len(tokens):
            raise UsageError(f"{name} is empty: give it at least one document")
        self.tokens = tokens
        self.name = name

    @classmethod
    def open(cls, path: Path | str) -> TokenSource:
        """Map a file of ``.npy`` tokens, such as `write_tokens` writes, into memory at ``path``."""
        path = Path(path)
        if not path.is_file():
            raise UsageError(f"no token file at {path}: make one with write_tokens")
        try:
            tokens = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise UsageError(
                f"{path} must be a .npy file of tokens, and is not: {error}"
            ) from error
        return cls(tokens, name=str(path))

    def blocks(self, context: int) -> int:
        """Return how many blocks of ``context`` tokens and one target more there are.

        Neighbours share that one token, so that every token but the first is predicted once.
        """
        found = (len(self.tokens) - 1) // context
        if found < 1:
            raise UsageError(
                f"{self.name} must hold more than {context} tokens, the context, got "
                f"{len(self.tokens)}: give it more text or take a shorter context"
            )
        return found

    def block(self, index: int, context: int) -> NDArray[np.int64]:
        """Return block ``index``: ``context`` tokens and the one after them."""
        start = index * context
        return np.asarray(self.tokens[start : start + context + 1], dtype=np.int64)


def write_tokens(
    documents: Iterable[Any], path: Path | str, encode: Encode, *, end: int, vocabulary: int
) -> int:
    """Encode documents one at a time into a ``.npy`` token file, each with an end mark after it.

    Parameters
    ----------
    documents : iterable of str or of documents
        What a `Pipeline` gives, or plain texts. Read once; only one document is in memory.
    path : path ending in ``.npy``
        Written beside and moved into place when all is done.
    encode : callable
        Gives a text's tokens.
    end : int
        Token that ends a document.
    vocabulary : int
        Size of the vocabulary; tokens take 2 bytes each up to 65536 and 4 beyond.

    Returns
    -------
    int
        Number of tokens written.

    Raises
    ------
    ValueError
        If there is no document, one has no text, a token lies outside the vocabulary, or
        ``path`` does not end in ``.npy`` or names a folder that is not there.
    """
    path = Path(path)
    if path.suffix != ".npy":
        raise UsageError(f"path must end in .npy, by which a recipe knows tokens, got {path}")
    if not path.parent.is_dir():
        raise UsageError(f"path must be in a folder that is there, got {path}: make {path.parent}")
    kind = np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")
    count = 0
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            _header(file, kind, 0)
            for document in as_documents(documents):
                tokens = np.fromiter((*encode(document.text), end), dtype=np.int64)
                if tokens.min() < 0 or tokens.max() >= vocabulary:
                    raise UsageError(
                        f"tokens must be in 0..{vocabulary - 1}, got {tokens.min()}..{tokens.max()}"
                    )
                file.write(tokens.astype(kind).tobytes())
                count += len(tokens)
            if not count:
                raise UsageError(
                    f"documents for {path} must hold at least one text, got none: where a pipeline "
                    f"gave them, its counts say which step dropped them"
                )
            file.seek(0)
            _header(file, kind, count)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return count


def _header(file: Any, kind: np.dtype[Any], count: int) -> None:
    # The count is padded to a fixed width, so that the header can be written again at the end.
    words = f"{{'descr': '{kind.str}', 'fortran_order': False, 'shape': ({count},), }}"
    file.write(b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little"))
    file.write(words.ljust(117).encode() + b"\n")


def shuffled(index: NDArray[np.int64], size: int, *, seed: int) -> NDArray[np.int64]:
    """Return where a keyed permutation of 0..size-1 sends each index, in constant memory.

    Examples
    --------
    >>> sorted(shuffled(np.arange(5), 5, seed=3).tolist())
    [0, 1, 2, 3, 4]
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.SeedSequence(seed).generate_state(_ROUNDS, np.uint64)
    found = np.array(index, dtype=np.uint64)
    walking = np.ones(found.shape, dtype=bool)
    while walking.any():
        left, right = found[walking] >> half, found[walking] & mask
        for key in keys:
            left, right = right, left ^ (_scramble(right + key) & mask)
        found[walking] = (left << half) | right
        walking = found >= np.uint64(size)
    return found.astype(np.int64)


def _scramble(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(31))) * _MIX
    x = (x ^ (x >> np.uint64(29))) * _MIX
    return x ^ (x >> np.uint64(32))


class Mixture:
    """The sequences of a phase, step by step; each process computes the same order.

    At every step sources get sequences so that their shares of all sequences so far stay as near
    the phase's shares as whole sequences allow (the largest deficit first).

    Parameters
    ----------
    phase : Phase
    sources : mapping of name to object with ``__len__`` as rows and ``row(index)``
        Every source that the phase's mixture names.
    seed : int
        Of the run.

    Raises
    ------
    ValueError
        If a source of the mixture is not there.
    """

    def __init__(self, phase: Phase, sources: Mapping[str, Any], *, seed: int) -> None:
        missing = [name for name in phase.shares if name not in sources]
        if missing:
            raise UsageError(
                f"phase {phase.name!r} mixes {missing[0]!r}, which is not among the sources: "
                f"{', '.join(sources) or 'there are none'}"
            )
        self.phase = phase
        self._sources = {name: sources[name] for name in phase.shares}
        self._seeds = {n: split(seed, "order", phase.name, n) for n in self._sources}
        self.taken = dict.fromkeys(self._sources, 0)

    def step(self) -> list[tuple[str, int]]:
        """Return (source, row) for every sequence of the next step, and move on."""
        drawn = []
        for _ in range(self.phase.sequences):
            total = sum(self.taken.values()) + 1
            name = max(
                self.phase.shares, key=lambda n: self.phase.shares[n] * total - self.taken[n]
            )
            drawn.append((name, self._row(name, self.taken[name])))
            self.taken[name] += 1
        return drawn

    def _row(self, name: str, turn: int) -> int:
        size = len(self._sources[name])
        epoch, place = divmod(turn, size)
        seed = split(self._seeds[name], epoch)
        return int(shuffled(np.array([place]), size, seed=seed)[0])

    def state(self) -> dict[str, int]:
        """Return what `restore` needs: how many sequences each source has given."""
        return dict(self.taken)

    def restore(self, taken: Mapping[str, int]) -> None:
        """Go on from what `state` returned, ``taken``."""
        if set(taken) != set(self.taken):
            raise UsageError(
                f"the saved order is of the sources {', '.join(taken)}, and the phase mixes "
                f"{', '.join(self.taken)}: resume with the recipe that the run began with"
            )
        self.taken = {name: int(taken[name]) for name in self.taken}
