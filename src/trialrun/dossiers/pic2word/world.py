"""Emoji in several hands, a tiny CLIP trained on some of them, and style conversion on the rest.

A query is a held-out drawing in one style and "a {other style} drawing of *"; the one right answer
is the same code point in the other style. The gallery is every held-out drawing but the query's
own. Neither CLIP nor mapper has seen a held-out code point in any style.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from trialrun.claims.contract import Budget, Context, Measurement
from trialrun.core.seeds import rng, split
from trialrun.material.emoji import EmojiSet, load_emoji
from trialrun.representation.pic2word import (
    Clip,
    ImageToWord,
    WordTraining,
    as_clip,
    fit_image_to_word,
)
from trialrun.representation.retrieval import cosine_scores, true_ranks
from trialrun.representation.tiny_clip import (
    TinyClip,
    WordTokenizer,
    fit_tiny_clip,
    load_tiny_clip,
    save_tiny_clip,
    standardised,
)

SIZE = 32
HELD_OUT = 0.3
PROMPT = "a drawing of"
TOP = 10
_BATCH = 256
_ENCODED = 512


@dataclass(frozen=True, kw_only=True)
class Size(Budget):
    """How much of everything a run takes.

    Parameters
    ----------
    code_points : int or None
        Emoji to draw from; None for all.
    clip_steps : int
        Steps of 256 drawings that the tiny CLIP is trained for.
    epochs : int
        Passes of the mapper over the training drawings' embeddings.
    """

    code_points: int | None
    clip_steps: int
    epochs: int


@dataclass(frozen=True)
class World:
    """One seed's CLIP, embeddings and held-out emoji.

    ``train`` and ``test`` are embeddings (code point x style, embed), styles next to one another,
    not normalised.
    """

    clip: Clip
    words: WordTokenizer
    train: Tensor
    test: Tensor
    held_out: EmojiSet

    @property
    def styles(self) -> tuple[str, ...]:
        """Return the styles' names."""
        return self.held_out.styles

    def sentence(self, style: str, what: str) -> str:
        """Return "a {style} drawing of {what}" in the words of the captions."""
        return f"{self.held_out.caption(0, style=style).partition(' of ')[0]} of {what}"


def _size(ctx: Context) -> Size:
    assert isinstance(ctx.budget, Size)
    return ctx.budget


@lru_cache(maxsize=1)
def _every(code_points: int | None) -> EmojiSet:
    return load_emoji(size=SIZE, limit=code_points, seed=0)  # arms of a worker share it


def _emoji(ctx: Context) -> tuple[EmojiSet, EmojiSet]:
    every = _every(_size(ctx).code_points)
    train, test = every.split(HELD_OUT, seed=split(ctx.seed, "held out") % 2**31)
    return every.take(train), every.take(test)


def _captions(emoji: EmojiSet) -> list[list[str]]:
    """Return each drawing's sentences: by name and by sub-category, with and without the style."""
    told = []
    for i in range(len(emoji)):
        kind = emoji.subgroups[i].replace("-", " ")
        for style in emoji.styles:
            full = emoji.caption(i, style=style)
            opening = full.partition(" of ")[0]
            told.append(
                [full, emoji.caption(i, style=None), f"{opening} of {kind}", f"{PROMPT} {kind}"]
            )
    return told


def _pixels(emoji: EmojiSet) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(emoji.images.reshape(-1, SIZE, SIZE, 3)))


@torch.no_grad()
def _embedded(model: TinyClip, emoji: EmojiSet) -> Tensor:
    parts = _pixels(emoji).split(_ENCODED)
    return torch.cat([model.encode_image(standardised(part)) for part in parts])


def fit_mapper(
    ctx: Context, world: World, *, objective: str = "contrastive", permuted: bool = False
) -> ImageToWord:
    """Train a mapper on the training drawings' embeddings, or on pairs torn apart."""
    mapper = ImageToWord(
        world.clip.embed_dim, world.clip.text_width, hidden=256, seed=split(ctx.seed, "mapper")
    )
    targets = None
    if permuted:
        generator = torch.Generator().manual_seed(split(ctx.seed, "permuted"))
        targets = world.train[torch.randperm(len(world.train), generator=generator)]
    training = WordTraining(
        epochs=_size(ctx).epochs, batch_size=_BATCH, lr=1e-3, objective=objective
    )
    fit_image_to_word(
        mapper, world.clip, world.train, prompt=PROMPT, training=training, targets=targets,
        seed=split(ctx.seed, "mapper training"),
    )  # fmt: skip
    return mapper


def prepare(ctx: Context, folder: Path) -> None:
    """Train the tiny CLIP and the mapper of one seed, and encode every drawing once."""
    train, test = _emoji(ctx)
    captions = _captions(train)
    words = WordTokenizer.of(sentence for told in captions for sentence in told)
    model = TinyClip(words.vocab_size, size=SIZE, seed=split(ctx.seed, "clip"))
    fit_tiny_clip(
        model, words, _pixels(train), captions, steps=_size(ctx).clip_steps, batch_size=_BATCH,
        seed=split(ctx.seed, "clip training"),
    )  # fmt: skip
    save_tiny_clip(model, words, folder)
    made = {"train": _embedded(model, train), "test": _embedded(model, test)}
    save_file(made, folder / "embeddings.safetensors")
    world = World(as_clip(model, words), words, made["train"], made["test"], test)
    fit_mapper(ctx, world).save(folder / "mapper.safetensors")


def world_of(ctx: Context) -> World:
    """Return what `prepare` left for this seed."""
    folder = ctx.prepared("clip")
    model, words = load_tiny_clip(folder)
    held = load_file(folder / "embeddings.safetensors")
    _, test = _emoji(ctx)
    return World(as_clip(model, words), words, held["train"], held["test"], test)


def training_world(ctx: Context) -> World:
    """Return the same CLIP with training drawings to ask with and to find.

    As many code points as are held out, so that either gallery is as hard to find something in.
    """
    world, (train, test) = world_of(ctx), _emoji(ctx)
    n = min(len(train), len(test))
    some = np.sort(rng(ctx.seed, "training drawings").permutation(len(train))[:n])
    rows = world.train.view(len(train), len(train.styles), -1)[torch.from_numpy(some)]
    return replace(world, test=rows.flatten(0, 1), held_out=train.take(some))


def mapper_of(ctx: Context) -> ImageToWord:
    """Return the mapper that `prepare` trained for this seed."""
    return ImageToWord.load(ctx.prepared("clip") / "mapper.safetensors")


Scores = NDArray[np.floating]
Scorer = Callable[[Tensor, str], Tensor | Scores]
"""From query embeddings and the style asked for: vectors, or scores of the whole gallery."""


def measure(world: World, scorer: Scorer, *, vectors: bool = True) -> Measurement:
    """Score one arm over all ordered pairs of styles; the judged number is recall at 10, in %."""
    n, k = len(world.held_out), len(world.styles)
    ranks, extra = [], {}
    for a, b in permutations(range(k), 2):
        own, right = np.arange(n) * k + a, np.arange(n) * k + b
        made = scorer(world.test[own], world.styles[b])
        scores = cosine_scores(made, world.test) if vectors else np.asarray(made)
        ranks.append(true_ranks(scores, right, exclude=own))
        extra[f"{world.styles[a]} to {world.styles[b]}"] = recall(ranks[-1], TOP)
    every = np.concatenate(ranks)
    for top in (1, 5, 50):
        extra[f"recall at {top}"] = recall(every, top)
    # What an arm scores that knows the style asked for and nothing of the thing.
    extra["chance within the right style"] = min(100.0, 100 * TOP / n)
    return Measurement.of(recall(every, TOP), n=len(every), **extra)


def recall(ranks: NDArray[np.int64], top: int) -> float:
    """Return how often the right answer is among the first ``top``, in %."""
    return float(100 * (ranks <= top).mean())
