"""The parts of the tiny CLIP: a tokenizer of whole words, a causal transformer, and eyes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from trialrun.representation import _pic2word_stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from trialrun.core.shapes import check_range

_WORD = re.compile(r"\*|[^\W_]+")


class WordTokenizer:
    """Read sentences word by word: padding, unknown, ``*``, the words, start and end of text.

    The end of text has the highest id, as in CLIP.

    Parameters
    ----------
    words : iterable of str
        The vocabulary; lower-cased, without doubles, kept in order.
    context_length : int, at least 4
        Longest sentence in tokens, start and end included; the rest is cut off.

    Examples
    --------
    >>> WordTokenizer(("a", "fox"), context_length=6)(["a fox", "a *!"]).tolist()
    [[5, 3, 4, 6, 0, 0], [5, 3, 2, 6, 0, 0]]
    """

    def __init__(self, words: Iterable[str], *, context_length: int = 16) -> None:
        check_range("context_length", context_length, low=4, unit="tokens")
        self.words = tuple(dict.fromkeys(word.lower() for word in words))
        self.context_length = context_length
        self._ids = {word: i for i, word in enumerate(self.words, start=3)} | {"*": 2}
        self.start = 3 + len(self.words)
        self.vocab_size = self.start + 2

    @classmethod
    def of(cls, sentences: Iterable[str], *, context_length: int = 16) -> WordTokenizer:
        """Make one that knows every word of some sentences."""
        found = {word for text in sentences for word in _WORD.findall(text.lower())}
        return cls(sorted(found - {"*"}), context_length=context_length)

    def known(self, sentence: str) -> float:
        """Return the share of a sentence's words that the vocabulary has."""
        words = _WORD.findall(sentence.lower())
        return sum(word in self._ids for word in words) / max(1, len(words))

    def __call__(self, texts: str | Sequence[str]) -> Int[Tensor, "texts tokens"]:
        """Return the ids of sentences, padded with 0."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        out = torch.zeros(len(texts), self.context_length, dtype=torch.long)
        for row, text in zip(out, texts):
            ids = [self._ids.get(word, 1) for word in _WORD.findall(text.lower())]
            ids = [self.start, *ids[: self.context_length - 2], self.start + 1]
            row[: len(ids)] = torch.tensor(ids)
        return out


class Past(NamedTuple):
    """One block's keys and values of the words that all sentences begin with."""

    keys: Tensor
    values: Tensor


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, mask: Tensor | None, past: Past | None) -> tuple[Tensor, Past]:
        batch, time, width = x.shape
        parts = self.qkv(self.ln_1(x)).view(batch, time, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        if past is not None:
            each = ((past.keys, k), (past.values, v))
            k, v = (
                torch.cat([old.to(new.dtype).expand(batch, -1, -1, -1), new], dim=2)
                for old, new in each
            )
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, time, width))
        return x + self.mlp(self.ln_2(x)), Past(k, v)


class Blocks(nn.Module):
    """Blocks of attention and a small network each, called as open_clip calls its own."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        return self.after(None, x, attn_mask)

    def after(
        self, pasts: Sequence[Past] | None, x: Tensor, attn_mask: Tensor | None = None
    ) -> Tensor:
        """Return what stands at the words ``x`` that follow an opening, read by `remember`.

        Parameters
        ----------
        pasts : sequence of Past or None
        x : Tensor (texts, words, width)
        attn_mask : Tensor (words, words of the opening and of ``x``), optional
        """
        mask = None if attn_mask is None else attn_mask.to(x.dtype)
        for i, block in enumerate(self.resblocks):
            x, _ = block(x, mask, pasts[i] if pasts else None)
        return x

    def remember(self, x: Tensor, attn_mask: Tensor | None = None) -> list[Past]:
        """Return every block's keys and values of an opening (1, words, width).

        With a causal mask what follows does not change them.
        """
        mask = None if attn_mask is None else attn_mask.to(x.dtype)
        pasts = []
        for block in self.resblocks:
            x, past = block(x, mask, None)
            pasts.append(past)
        return pasts


def eyes(channels: Sequence[int], embed_dim: int) -> nn.Sequential:
    """Make the picture network: every layer halves the picture, a last one looks again."""
    parts: list[nn.Module] = []
    for before, after in zip((3, *channels[:-1]), channels):
        parts += [
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        ]
    last = channels[-1]
    parts += [
        nn.Conv2d(last, last, 3, padding=1, bias=False),
        nn.BatchNorm2d(last),
        nn.ReLU(),
    ]
    return nn.Sequential(
        *parts, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * last, embed_dim)
    )
