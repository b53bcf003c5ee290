"""Things that several hands have drawn, and the sentences about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trialrun.material.emoji import EmojiSet

SIZE = 32
PROMPT = "a drawing of"


@dataclass(frozen=True)
class Things:
    """What is drawn, without the pictures.

    Parameters
    ----------
    keys : tuple of str
        What tells things apart: a code point, or the name of a file.
    phrases : tuple of str
        Each thing in words: "a fox".
    kinds : tuple of str
        Each thing's sub-category in words; empty where there are none.
    styles : tuple of str
        The hands that have drawn every thing.
    openings : tuple of str
        Each style in words: "an OpenMoji drawing".
    """

    keys: tuple[str, ...]
    phrases: tuple[str, ...]
    kinds: tuple[str, ...]
    styles: tuple[str, ...]
    openings: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def sentence(self, style: str, what: str) -> str:
        """Return "a {style} drawing of {what}"."""
        return f"{self.openings[self.styles.index(style)]} of {what}"

    def caption(self, index: int, *, style: str | None) -> str:
        """Return a sentence about one picture, or about the thing in any style."""
        phrase = self.phrases[index]
        return f"{PROMPT} {phrase}" if style is None else self.sentence(style, phrase)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Things:
        """Return some things, in the order given."""
        picked = {
            name: tuple(column[row] for row in rows) if column else ()
            for name, column in (
                ("keys", self.keys), ("phrases", self.phrases), ("kinds", self.kinds),
            )
        }  # fmt: skip
        return replace(self, **picked)

    def captions(self) -> list[list[str]]:
        """Return each picture's sentences, things in order and styles next to one another.

        By name and, where there are sub-categories, by those; with and without the style.
        """
        told = []
        for i in range(len(self)):
            for style in self.styles:
                own = [self.caption(i, style=style), self.caption(i, style=None)]
                if self.kinds:
                    own += [self.sentence(style, self.kinds[i]), f"{PROMPT} {self.kinds[i]}"]
                told.append(own)
        return told


class Drawings(NamedTuple):
    """Things with their pictures, uint8 of shape (things, styles, size, size, 3)."""

    things: Things
    images: NDArray[np.uint8]

    def take(self, rows: NDArray[np.int64]) -> Drawings:
        """Return some of them, in the order given."""
        return Drawings(self.things.take(rows), self.images[rows])

    def pixels(self) -> Tensor:
        """Return all pictures in one row (things x styles, size, size, 3)."""
        flat = self.images.reshape(-1, *self.images.shape[2:])
        return torch.from_numpy(np.ascontiguousarray(flat))


def drawings_of(emoji: EmojiSet) -> Drawings:
    """Return emoji with the sentences that are learned from."""
    each = range(len(emoji))
    things = Things(
        keys=emoji.code_points,
        phrases=tuple(emoji.caption(i, style=None).partition(" of ")[2] for i in each),
        kinds=tuple(kind.replace("-", " ") for kind in emoji.subgroups),
        styles=emoji.styles,
        openings=tuple(emoji.caption(0, style=s).partition(" of ")[0] for s in emoji.styles),
    )
    return Drawings(things, emoji.images)
