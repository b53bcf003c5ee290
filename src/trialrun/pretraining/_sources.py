"""What a phase's objective reads: rows of text blocks, of chats, or of preferred pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from trialrun.core.errors import UsageError
from trialrun.pretraining._chat import Example, JsonLines, encode_chat
from trialrun.pretraining._mixing import Encode, TokenSource


class Vocabulary(NamedTuple):
    """How text becomes tokens: the encoder, the end token and the number of tokens."""

    encode: Encode
    end: int
    size: int


BYTE_END = 256
"""End token of the byte vocabulary, after the 256 bytes."""


def byte_vocabulary() -> Vocabulary:
    """Return the vocabulary of the 256 bytes and an end token.

    Examples
    --------
    >>> list(byte_vocabulary().encode("é")), byte_vocabulary().size
    ([195, 169], 257)
    """
    return Vocabulary(lambda text: text.encode("utf-8", errors="replace"), BYTE_END, BYTE_END + 1)


def hub_vocabulary(where: str) -> Vocabulary:
    """Return the vocabulary of a transformers tokenizer: a folder or a hub id, ``where``.

    Raises
    ------
    UsageError
        If there is none, or it has no end token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(where)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no tokenizer could be read from {where!r}: give a folder saved by transformers, a "
            f"hub id that can be reached from here, or 'bytes'"
        ) from error
    if tokenizer.eos_token_id is None:
        raise UsageError(f"the tokenizer at {where!r} has no end token: set its eos_token")
    encode: Callable[[str], list[int]] = lambda text: tokenizer.encode(  # noqa: E731
        text, add_special_tokens=False
    )
    return Vocabulary(encode, int(tokenizer.eos_token_id), len(tokenizer))


@dataclass(frozen=True)
class TextRows:
    """Blocks of a token source, every token but the first of which is trained."""

    source: TokenSource
    context: int

    def __len__(self) -> int:
        return self.source.blocks(self.context)

    def __getitem__(self, index: int) -> tuple[Example, ...]:
        ids = self.source.block(index, self.context)
        return (Example(ids, ids),)


@dataclass(frozen=True)
class ChatRows:
    """Chats: rows ``{"messages": [...]}``, cut to the context (and one token, as for text)."""

    lines: Sequence[Any]
    vocabulary: Vocabulary
    context: int

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> tuple[Example, ...]:
        return (self._example(index, "messages", last_only=False),)

    def _example(self, index: int, key: str, *, last_only: bool) -> Example:
        messages = self.lines[index].get(key)
        where = f"{getattr(self.lines, 'path', 'the chats')}, row {index}"
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise UsageError(f"{where}: {key!r} must be a list of messages")
        try:
            return encode_chat(
                messages,
                self.vocabulary.encode,
                end=self.vocabulary.end,
                context=self.context + 1,
                last_only=last_only,
            )
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error


class PairRows(ChatRows):
    """Preferred pairs: rows ``{"chosen": [messages], "rejected": [messages]}``.

    Only the last message of each is trained.
    """

    def __getitem__(self, index: int) -> tuple[Example, ...]:
        chosen, rejected = (
            self._example(index, key, last_only=True) for key in ("chosen", "rejected")
        )
        return chosen, rejected


Rows = TextRows | ChatRows


def rows_of(
    objective: str, source: TokenSource | Sequence[Any], context: int, vocabulary: Vocabulary
) -> Rows:
    """Return a source's rows for an objective.

    Raises
    ------
    UsageError
        If text is asked of chats, or chats of a token file.
    """
    is_text = isinstance(source, TokenSource)
    if is_text != (objective == "text"):
        raise UsageError(
            f"objective {objective!r} reads {'.npy tokens' if objective == 'text' else '.jsonl'}, "
            f"got {getattr(source, 'name', getattr(source, 'path', type(source).__name__))}"
        )
    if isinstance(source, TokenSource):
        rows = TextRows(source, context)
        len(rows)  # too short a source is refused before the first step
        return rows
    return (ChatRows if objective == "chat" else PairRows)(source, vocabulary, context)


def open_source(path: Path) -> TokenSource | JsonLines:
    """Open a source by its ending: ``.npy`` tokens, ``.jsonl`` chats or pairs."""
    if path.suffix == ".npy":
        return TokenSource.open(path)
    if path.suffix == ".jsonl":
        return JsonLines(path)
    raise UsageError(f"a source must end in .npy (tokens) or .jsonl (chats, pairs), got {path}")
