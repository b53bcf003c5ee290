"""Measure Pic2Word: style conversion on drawings that neither CLIP nor mapper has seen.

All arms of a seed share one tiny CLIP and one set of embeddings. The rules stand in the card and
were fixed before a run at the seeds of quick and full.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from trialrun.claims.contract import Context, Measurement, Trial
from trialrun.core.seeds import rng
from trialrun.dossiers.pic2word.world import (
    TOP,
    Scores,
    Size,
    World,
    check_on,
    fit_mapper,
    keep,
    mapper_of,
    measure,
    prepare,
    recall,
    resplit,
    training_world,
    world_of,
)
from trialrun.representation.pic2word import ImageToWord as Mapper
from trialrun.representation.pic2word import (
    compose_features,
    mixture,
    nearest_words,
    text_only,
    weighted_mixture,
)
from trialrun.representation.retrieval import cosine_scores, ranking, true_ranks

WEIGHTS = (0.0, 0.05, *(tenth / 10 for tenth in range(1, 10)), 0.95, 1.0)
"""Shares of the picture that `weighted` chooses from; the ends are either part alone."""


def _composed(world: World, mapper: Mapper) -> Measurement:
    def scorer(features: Tensor, style: str) -> Tensor:
        return compose_features(world.clip, mapper, features, world.sentence(style, "*"))

    return measure(world, scorer)


def composed(ctx: Context) -> Measurement:
    """Ask with the picture's pseudo-word in the sentence: the method."""
    return _composed(world_of(ctx), mapper_of(ctx))


def retrained(ctx: Context, *, objective: str, permuted: bool) -> Measurement:
    """Ask with a mapper trained otherwise: without negatives, or on pairs torn apart."""
    world = world_of(ctx)
    mapper = fit_mapper(ctx, world, objective=objective, permuted=permuted)
    done = _composed(world, mapper)
    if not permuted:
        return done
    lead = _composed(world, mapper_of(ctx)).points["value"] - done.points["value"]
    return Measurement(done.points, done.n, dict(done.extra) | {"composed minus permuted": lead})


def nearest_word(ctx: Context) -> Measurement:
    """Ask with the real word nearest to the pseudo-word in its place."""
    world, mapper = world_of(ctx), mapper_of(ctx)
    words = torch.arange(3, world.words.start)  # after padding, the unknown word and "*"

    class Discrete(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mapper = mapper

        def forward(self, features: Tensor) -> Tensor:
            made = self.mapper(features)
            flat = nearest_words(world.clip, made.reshape(-1, made.shape[-1]), words)
            return flat.reshape(made.shape)

    def scorer(features: Tensor, style: str) -> Tensor:
        return compose_features(world.clip, Discrete(), features, world.sentence(style, "*"))

    return measure(world, scorer)


def picture_alone(ctx: Context) -> Measurement:
    """Ask with the picture's embedding."""
    return measure(world_of(ctx), lambda features, _: features)


def _text(world: World, style: str, star: str) -> Tensor:
    words = "removed" if star == "removed" else "literal"
    return text_only(world.clip, world.sentence(style, "*"), star=words)  # type: ignore[arg-type]


def text_alone(ctx: Context, *, star: str) -> Measurement:
    """Ask with the sentence, its ``*`` taken out or left in as a word."""
    world = world_of(ctx)
    return measure(world, lambda f, style: _text(world, style, star).expand(len(f), -1))


def mixed(ctx: Context, *, permuted: bool = False) -> Measurement:
    """Ask with the normalised sum of picture and sentence, or of another picture and sentence."""
    world = world_of(ctx)
    order = rng(ctx.seed, "other pictures").permutation(len(world.held_out))

    def scorer(features: Tensor, style: str) -> Tensor:
        used = features[torch.from_numpy(order)] if permuted else features
        return mixture(used, _text(world, style, "removed"))

    return measure(world, scorer)


def _weighted(world: World, share: float) -> Measurement:
    def scorer(features: Tensor, style: str) -> Tensor:
        return weighted_mixture(features, _text(world, style, "removed"), share)

    return measure(world, scorer)


def weighted(ctx: Context) -> Measurement:
    """Ask with a weighted sum of picture and sentence; the share is chosen on training drawings.

    Training drawings are asked for among training drawings (`training_world`) at every share of
    `WEIGHTS`; the share with the highest recall at 10 is taken, the smaller one of equals, and used
    once on what was held out.
    """
    seen = training_world(ctx)
    found = [_weighted(seen, share).points["value"] for share in WEIGHTS]
    best = int(np.argmax(found))
    done = _weighted(world_of(ctx), WEIGHTS[best])
    extra = {"share of the picture": WEIGHTS[best], "recall at 10, training drawings": found[best]}
    return Measurement(done.points, done.n, dict(done.extra) | extra)


def better_part(ctx: Context) -> Measurement:
    """Take the picture alone or the sentence alone, whichever found more at this seed."""
    parts = (picture_alone(ctx), text_alone(ctx, star="removed"))
    return max(parts, key=lambda part: part.points["value"])


def _places(scores: Scores) -> Scores:
    order = ranking(scores)
    out = np.empty(order.shape, dtype=np.float32)
    np.put_along_axis(out, order, np.arange(order.shape[1], dtype=np.float32)[None], axis=1)
    return out


def rank_fusion(ctx: Context) -> Measurement:
    """Add up reciprocal ranks by picture and by sentence (1 / (60 + rank), the usual constant)."""
    world = world_of(ctx)

    def scorer(features: Tensor, style: str) -> Scores:
        text = _text(world, style, "removed").expand(len(features), -1)
        each = [_places(cosine_scores(part, world.test)) for part in (features, text)]
        return sum(1000 / (61 + places) for places in each)  # type: ignore[return-value]

    return measure(world, scorer, vectors=False)


def true_name(ctx: Context) -> Measurement:
    """Ask with the true caption of what is looked for: the CLIP's own zero-shot retrieval.

    Most held-out names hold words that no training caption had, so for this word-level CLIP it is
    no upper bound. The extras tell how good the CLIP is on names it was trained on.
    """
    world = world_of(ctx)
    things = world.held_out

    def scorer(_: Tensor, style: str) -> Tensor:
        told = [things.caption(i, style=style) for i in range(len(things))]
        return text_only(world.clip, told, star="removed")

    done = measure(world, scorer)
    names = [things.caption(i, style=None) for i in range(len(things))]
    known = np.array([world.words.known(name) == 1 for name in names])
    extra = dict(done.extra) | {"names of known words, %": float(100 * known.mean())}
    if known.any():
        style = things.styles[0]
        k = len(things.styles)
        queries = scorer(world.test[::k], style)
        ranks = true_ranks(cosine_scores(queries, world.test), np.arange(len(things)) * k)
        extra["recall at 10, names of known words"] = recall(ranks[known], TOP)
    return Measurement(done.points, done.n, extra)


TRIAL = Trial(
    budgets={
        "smoke": Size(seeds=2, code_points=24, clip_steps=3, epochs=2),
        "quick": Size(seeds=3, first_seed=70, code_points=700, clip_steps=110, epochs=30),
        "full": Size(seeds=5, first_seed=100, code_points=None, clip_steps=230, epochs=20),
    },
    prepare={"clip": prepare},
    needs={"composition": ("clip",), "mixture": ("clip",)},
    check_on=check_on,
    resplit=resplit,
    keep=keep,
    arms={
        "composition": {
            "composed": composed,
            "mixture": mixed,
            "weighted-mixture": weighted,
            "mse": partial(retrained, objective="mse", permuted=False),
            "permuted": partial(retrained, objective="contrastive", permuted=True),
            "image": picture_alone,
            "text": partial(text_alone, star="removed"),
            "text-with-star": partial(text_alone, star="literal"),
            "nearest-word": nearest_word,
            "true-name": true_name,
        },
        "mixture": {
            "mixture": mixed,
            "better-part": better_part,
            "rank-fusion": rank_fusion,
            "permuted": partial(mixed, permuted=True),
            "image": picture_alone,
            "text": partial(text_alone, star="removed"),
        },
    },
)
