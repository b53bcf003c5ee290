"""Chats as tokens: which are trained, and batches in which padding never is.

The format is that of zhao2024moxin's released configuration: a line ``<|role|>``, the text, and
after an assistant's text the end token. Each piece is encoded by itself, so that no token straddles
the border between what is trained and what is not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trialrun.pretraining import _stack  # noqa: F401  isort: skip
import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from trialrun.core.errors import UsageError
from trialrun.pretraining._losses import IGNORED
from trialrun.pretraining._mixing import Encode

ROLES = ("system", "user", "assistant")


Tokens = list[int] | NDArray[np.int64]


class Example(NamedTuple):
    """One sequence: its tokens, and their labels (-100 where not trained)."""

    ids: Tokens
    labels: Tokens


class Batch(NamedTuple):
    """Sequences padded to one length; ``attention_mask`` is 0 on padding, whose label is -100."""

    input_ids: Int[Tensor, "batch time"]
    attention_mask: Int[Tensor, "batch time"]
    labels: Int[Tensor, "batch time"]


def encode_chat(
    messages: Sequence[Mapping[str, str]],
    encode: Encode,
    *,
    end: int,
    context: int | None = None,
    last_only: bool = False,
) -> Example:
    """Turn a chat into tokens of which only the assistant's are trained (zhao2024moxin).

    Parameters
    ----------
    messages : sequence of {"role": ..., "content": ...}
        Roles are ``system``, ``user`` and ``assistant``.
    encode : callable
        Gives a text's tokens, without special tokens around them.
    end : int
        Token after an assistant's text; it is trained.
    context : int or None
        Tokens to keep, from the front; None keeps all.
    last_only : bool
        Train only the last message, as preferences need, which must be the assistant's.

    Raises
    ------
    ValueError
        If a role is unknown, a text is missing, or nothing is left to train.

    Examples
    --------
    >>> chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    >>> found = encode_chat(chat, lambda text: text.encode(), end=0)
    >>> bytes(found.ids), bytes(i for i in found.labels if i >= 0)
    (b'<|user|>\\nHi\\n<|assistant|>\\nHo\\x00', b'Ho\\x00')
    """
    if last_only and (not messages or messages[-1].get("role") != "assistant"):
        raise UsageError("messages must end with the assistant's, which is what is trained")
    ids: list[int] = []
    labels: list[int] = []
    for place, message in enumerate(messages):
        role, text = message.get("role"), message.get("content")
        if role not in ROLES or not isinstance(text, str):
            raise UsageError(
                f"messages[{place}] must have a role among {', '.join(ROLES)} and a text as "
                f"content, got role {role!r} and content of type {type(text).__name__}"
            )
        head = list(encode(("\n" if place else "") + f"<|{role}|>\n"))
        body = list(encode(text)) + ([end] if role == "assistant" else [])
        trained = role == "assistant" and (not last_only or place == len(messages) - 1)
        ids += head + body
        labels += [IGNORED] * len(head) + (body if trained else [IGNORED] * len(body))
    ids, labels = ids[:context], labels[:context]
    if all(label == IGNORED for label in labels[1:]):
        kept = "" if context is None else f" within {context} tokens"
        raise UsageError(
            f"messages hold no token to train{kept}: an assistant's message is needed, and the "
            f"context must reach it"
        )
    return Example(ids, labels)


def collate(examples: Sequence[Example], *, pad: int, length: int | None = None) -> Batch:
    """Pad sequences on the right into one batch; padding is neither seen nor trained.

    Parameters
    ----------
    examples : sequence of Example
        At least one.
    pad : int
        Token to fill with; any will do.
    length : int or None
        Length to pad to; None means the longest sequence's.

    Raises
    ------
    ValueError
        If there is no example, or one is longer than ``length``.

    Examples
    --------
    >>> collate([Example([1, 2], [-100, 2]), Example([3], [3])], pad=0).labels.tolist()
    [[-100, 2], [3, -100]]
    """
    if not examples:
        raise UsageError("examples must hold at least one sequence, got none")
    longest = max(len(example.ids) for example in examples)
    size = longest if length is None else length
    if longest > size:
        raise UsageError(f"length must be at least {longest}, the longest example, got {size}")
    ids = torch.full((len(examples), size), pad)
    mask = torch.zeros((len(examples), size), dtype=torch.long)
    labels = torch.full((len(examples), size), IGNORED)
    for row, example in enumerate(examples):
        count = len(example.ids)
        ids[row, :count] = torch.as_tensor(example.ids)
        mask[row, :count] = 1
        labels[row, :count] = torch.as_tensor(example.labels)
    return Batch(ids, mask, labels)


class JsonLines:
    """Rows of a JSON-lines file, read one at a time by their place; only offsets are in memory.

    Parameters
    ----------
    path : path
        One JSON object a line; empty lines do not count.

    Raises
    ------
    ValueError
        If the file is missing or empty, or a row that is read is not an object.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UsageError(f"no file at {self.path}: give the path of a JSON-lines file")
        starts = []
        with self.path.open("rb") as file:
            place = 0
            for line in file:
                if line.strip():
                    starts.append(place)
                place += len(line)
        if not starts:
            raise UsageError(f"{self.path} is empty: give it at least one line")
        self._starts = np.array(starts, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with self.path.open("rb") as file:
            file.seek(int(self._starts[index]))
            line = file.readline()
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{self.path}, row {index}: not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise UsageError(f"{self.path}, row {index}: must be an object, got {row!r:.40}")
        return row
