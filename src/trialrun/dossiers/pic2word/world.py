"""Drawings in several hands, a tiny CLIP trained on some of them, and style conversion on the rest.

A query is a held-out drawing in one style and "a {other style} drawing of *"; the one right answer
is the same thing in the other style. The gallery is every held-out drawing but the query's own.
Neither CLIP nor mapper has seen a held-out thing in any style. The drawings are emoji, one thing a
code point, or the user's own (`own`), one thing the
words of a file name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from trialrun.claims.contract import Budget, Context, Measurement, On
from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng, split
from trialrun.dossiers.pic2word.drawings import PROMPT, SIZE, Drawings, Things, drawings_of
from trialrun.dossiers.pic2word.own import Own, read_own
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

HELD_OUT = 0.3
TOP = 10
_BATCH = 256
_ENCODED = 512


@dataclass(frozen=True, kw_only=True)
class Size(Budget):
    """How much of everything a run takes.

    Parameters
    ----------
    code_points : int or None
        Things to draw from, emoji or the user's own; None for all.
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
    """One seed's CLIP, embeddings and held-out things.

    ``train`` and ``test`` are embeddings (thing x style, embed), styles next to one another, not
    normalised, of the things ``seen`` and ``held_out``.
    """

    clip: Clip
    words: WordTokenizer
    train: Tensor
    test: Tensor
    seen: Things
    held_out: Things

    @property
    def styles(self) -> tuple[str, ...]:
        """Return the styles' names."""
        return self.held_out.styles

    def sentence(self, style: str, what: str) -> str:
        """Return "a {style} drawing of {what}" in the words of the captions."""
        return self.held_out.sentence(style, what)


def _size(ctx: Context) -> Size:
    assert isinstance(ctx.budget, Size)
    return ctx.budget


@lru_cache(maxsize=1)
def _every(code_points: int | None) -> EmojiSet:
    return load_emoji(size=SIZE, limit=code_points, seed=0)  # seeds of a worker share it


def _own(on: On, most: int | None) -> Own:
    own = read_own(on.path)
    n = len(own.drawings.things)
    some = np.sort(rng(0, "own drawings").permutation(n)[:most])
    return own._replace(drawings=own.drawings.take(some))


def drawn(ctx: Context) -> tuple[Drawings, Drawings]:
    """Return the drawings to learn from and those held out at this seed, split by thing."""
    if ctx.on is None:
        every = _every(_size(ctx).code_points)
        parts = every.split(HELD_OUT, seed=split(ctx.seed, "held out") % 2**31)
        train, test = (drawings_of(every.take(rows)) for rows in parts)
        return train, test
    own = _own(ctx.on, _size(ctx).code_points).drawings
    n = len(own.things)
    order = rng(ctx.seed, "held out").permutation(n)
    held = round(HELD_OUT * n)
    return own.take(np.sort(order[held:])), own.take(np.sort(order[:held]))


@torch.no_grad()
def _embedded(model: TinyClip, drawings: Drawings) -> Tensor:
    parts = drawings.pixels().split(_ENCODED)
    return torch.cat([model.encode_image(standardised(part)) for part in parts])


def _fit(
    ctx: Context, clip: Clip, features: Tensor, objective: str, targets: Tensor | None
) -> ImageToWord:
    mapper = ImageToWord(
        clip.embed_dim, clip.text_width, hidden=256, seed=split(ctx.seed, "mapper")
    )
    training = WordTraining(
        epochs=_size(ctx).epochs, batch_size=_BATCH, lr=1e-3, objective=objective
    )
    fit_image_to_word(
        mapper, clip, features, prompt=PROMPT, training=training, targets=targets,
        seed=split(ctx.seed, "mapper training"),
    )  # fmt: skip
    return mapper


def fit_mapper(
    ctx: Context, world: World, *, objective: str = "contrastive", permuted: bool = False
) -> ImageToWord:
    """Train a mapper on the training drawings' embeddings, or on pairs torn apart."""
    targets = None
    if permuted:
        generator = torch.Generator().manual_seed(split(ctx.seed, "permuted"))
        targets = world.train[torch.randperm(len(world.train), generator=generator)]
    return _fit(ctx, world.clip, world.train, objective, targets)


def _learned(ctx: Context, drawings: Drawings) -> tuple[TinyClip, WordTokenizer]:
    captions = drawings.things.captions()
    words = WordTokenizer.of(sentence for told in captions for sentence in told)
    model = TinyClip(words.vocab_size, size=SIZE, seed=split(ctx.seed, "clip"))
    fit_tiny_clip(
        model, words, drawings.pixels(), captions, steps=_size(ctx).clip_steps, batch_size=_BATCH,
        seed=split(ctx.seed, "clip training"),
    )  # fmt: skip
    return model, words


def prepare(ctx: Context, folder: Path) -> None:
    """Train the tiny CLIP and the mapper of one seed, and encode every drawing once."""
    train, test = drawn(ctx)
    model, words = _learned(ctx, train)
    save_tiny_clip(model, words, folder)
    made = {"train": _embedded(model, train), "test": _embedded(model, test)}
    save_file(made, folder / "embeddings.safetensors")
    told = {"seen": asdict(train.things), "held_out": asdict(test.things)}
    (folder / "things.json").write_text(json.dumps(told), encoding="utf-8")
    fitted = _fit(ctx, as_clip(model, words), made["train"], "contrastive", None)
    fitted.save(folder / "mapper.safetensors")


def world_of(ctx: Context) -> World:
    """Return what `prepare` left for this seed; no picture is read again."""
    folder = ctx.prepared("clip")
    model, words = load_tiny_clip(folder)
    held = load_file(folder / "embeddings.safetensors")
    told = json.loads((folder / "things.json").read_text(encoding="utf-8"))
    seen, held_out = (
        Things(**{name: tuple(column) for name, column in told[part].items()})
        for part in ("seen", "held_out")
    )
    return World(as_clip(model, words), words, held["train"], held["test"], seen, held_out)


def training_world(ctx: Context) -> World:
    """Return the same CLIP with training drawings to ask with and to find.

    As many things as are held out, so that either gallery is as hard to find something in.
    """
    world = world_of(ctx)
    train = world.seen
    n = min(len(train), len(world.held_out))
    some = np.sort(rng(ctx.seed, "training drawings").permutation(len(train))[:n])
    rows = world.train.view(len(train), len(train.styles), -1)[torch.from_numpy(some)]
    return replace(world, test=rows.flatten(0, 1), held_out=train.take(some))


def mapper_of(ctx: Context) -> ImageToWord:
    """Return the mapper that `prepare` trained for this seed."""
    return ImageToWord.load(ctx.prepared("clip") / "mapper.safetensors")


def check_on(ctx: Context) -> None:
    """Read the user's drawings before anything runs, and say what is to be said of them."""
    if ctx.on is None:
        raise UsageError("pic2word takes drawings of your own with --on FOLDER, not a model")
    for sentence in read_own(ctx.on.path).remarks:
        print(f"trialrun: {sentence}", file=sys.stderr)


def resplit(_: Context) -> float:
    """Return held-out to training things where seeds split one set of drawings anew."""
    return HELD_OUT / (1 - HELD_OUT)


def keep(ctx: Context, folder: Path) -> str:
    """Train CLIP and mapper on all of the user's drawings and save them."""
    if ctx.on is None:
        raise UsageError("keep needs drawings of your own: pass --on")
    own = _own(ctx.on, None)
    model, words = _learned(ctx, own.drawings)
    clip, mapper = folder / "clip", folder / "mapper.safetensors"
    save_tiny_clip(model, words, clip)
    features = _embedded(model, own.drawings)
    _fit(ctx, as_clip(model, words), features, "contrastive", None).save(mapper)
    sentence = own.drawings.things.sentence(own.drawings.things.styles[-1], "*")
    return (
        "from trialrun.representation.pic2word import (\n"
        "    ImageToWord, compose, load_clip, open_picture,\n"
        ")\n"
        f"clip, prepare, tok = load_clip({str(clip)!r})\n"
        f"mapper = ImageToWord.load({str(mapper)!r})\n"
        f"picture = prepare(open_picture({str(own.example)!r}))\n"
        f"query = compose(clip, tok, mapper, picture, {sentence!r})\n"
        "# a unit vector; to search a folder, trialrun index FOLDER --model with the folder clip,\n"
        "# then trialrun query with --mapper and the file mapper.safetensors"
    )


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
