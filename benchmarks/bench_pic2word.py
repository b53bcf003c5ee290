"""Training the mapper from cached embeddings against encoding pictures each step; a query's time.

The CLIP is transformers' at random weights, in the shape of ViT-B/32 with 4 of 12 layers in either
tower; one row says that it uses the check's tiny one. Both sides of a row use the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MethodType

import torch
from torch import Tensor

from _bench import compare, emit, figure
from trialrun.representation.pic2word import (
    Clip,
    ImageToWord,
    WordTraining,
    as_clip,
    compose_features,
    fit_image_to_word,
)
from trialrun.representation.picture_index import PictureIndex
from trialrun.representation.retrieval import cosine_scores, ranking, true_ranks
from trialrun.representation.tiny_clip import TinyClip, WordTokenizer

BATCH = 16
LIMIT = (
    "a step from cached embeddings is the text tower forward and back on 6 tokens a picture (about "
    "6 x 3 x 2 x parameters operations); encoding pictures adds the image tower's forward pass on "
    "50 patches a picture; memory of the cache is 4 x width bytes a picture; a query is one pass "
    "of the text tower and one product with the table, linear in pictures"
)


def base_clip() -> Clip:
    """Make transformers' CLIP in the shape of ViT-B/32 with 4 of 12 layers in either tower."""
    from transformers import CLIPConfig, CLIPModel

    text = {"num_hidden_layers": 4}
    vision = {"num_hidden_layers": 4}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=512))
    return as_clip(model.eval(), words)


def words(texts: list[str]) -> Tensor:
    """Read the few words needed, by the numbers that CLIP gives them."""
    known = {"a": 320, "photo": 1125, "of": 539, "*": 265}
    out = torch.full((len(texts), 77), 49407)
    for row, text in zip(out, texts):
        ids = [49406, *(known.get(word, 1000) for word in text.split()), 49407]
        row[: len(ids)] = torch.tensor(ids)
    return out


def fitting(clip: Clip, images: Tensor | list[Tensor], epochs: int) -> Callable[[], None]:
    """Return a run over a batch of pictures or their embeddings, ``epochs`` steps long."""

    def run() -> None:
        for _ in range(1 if isinstance(images, Tensor) else epochs):
            mapper = ImageToWord(clip.embed_dim, clip.text_width)
            steps = epochs if isinstance(images, Tensor) else 1
            training = WordTraining(epochs=steps, batch_size=BATCH)
            fit_image_to_word(mapper, clip, images, training=training)

    return run


def untrimmed(clip: Clip, features: Tensor) -> Callable[[], None]:
    """Return one step with the padding left on, 77 tokens, as the authors' code runs it."""
    mapper = ImageToWord(clip.embed_dim, clip.text_width)
    optimiser = torch.optim.AdamW(mapper.parameters(), lr=1e-4, fused=True)
    ids, at = clip.insert_at_end(clip.tokenize(["a photo of"]))
    goal = torch.nn.functional.normalize(features, dim=1)

    def run() -> None:
        with clip.frozen():
            word = mapper(features)[:, None]
            many = ids.expand(len(features), -1)
            found = clip._text_features(many, word, at.expand(len(features), -1))
            logits = 100 * goal @ torch.nn.functional.normalize(found, dim=1).T
            own = torch.arange(len(features))
            loss = torch.nn.functional.cross_entropy
            optimiser.zero_grad(set_to_none=True)
            (loss(logits, own) + loss(logits.T, own)).backward()
            optimiser.step()

    return run


def opened(*, once: bool) -> Callable[[], None]:
    """Return 20 steps of the check's tiny CLIP, whose opening words are read once or every time."""
    tokens = WordTokenizer(("a", "drawing", "of"))
    clip = as_clip(TinyClip(tokens.vocab_size).eval(), tokens)
    features = torch.randn(256, clip.embed_dim)
    training = WordTraining(epochs=20, batch_size=len(features))
    if not once:
        # The base class reads every sentence whole; mypy minds that a method is replaced.
        clip.reader = MethodType(Clip.reader, clip)  # type: ignore[method-assign]

    def run() -> None:
        mapper = ImageToWord(clip.embed_dim, clip.text_width, hidden=256)
        fit_image_to_word(mapper, clip, features, prompt="a drawing of", training=training)

    return run


def main() -> None:
    """Time all rows, print them and append them to the results."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clip = base_clip()
    pixels = torch.randn(BATCH, 3, 224, 224)
    with torch.no_grad():
        features = clip.encode_image(pixels)
    cached = compare(
        "pic2word training, cached embeddings against encoding pictures each step",
        fitting(clip, features, 2), fitting(clip, [pixels], 2), repeats=3, faster=True,
        at_least=1.5,
    )  # fmt: skip
    rows = [
        cached,
        figure("pic2word, from cache", 2 * BATCH / cached["ours_seconds"], "pictures/s"),
        figure("pic2word, from pictures", 2 * BATCH / cached["other_seconds"], "pictures/s"),
        compare(
            "pic2word step, padding cut off against all 77 tokens",
            fitting(clip, features, 1), untrimmed(clip, features), repeats=3, faster=True,
            at_least=3.0,
        ),
        compare(
            "pic2word step of the tiny CLIP, opening read once against every time",
            opened(once=True), opened(once=False), repeats=5, faster=True, at_least=1.2,
        ),
    ]  # fmt: skip
    table = torch.randn(20_000, clip.embed_dim)
    names = tuple(f"{i}.png" for i in range(len(table)))
    index = PictureIndex(Path("pictures"), names, table, "base", None, "")
    mapper = ImageToWord(clip.embed_dim, clip.text_width).eval()

    def query() -> None:
        index.search(compose_features(clip, mapper, features[:1], "a photo of *")[0])

    def sentence() -> None:
        with torch.no_grad():
            made = clip.encode_text(clip.tokenize(["a photo of a"]))
        index.search(made[0])

    asked = compare(
        "pic2word query from an embedding against a plain sentence, 20,000 pictures",
        query, sentence, at_most=1.5,
    )  # fmt: skip
    rows += [asked, figure("pic2word query, 20,000 pictures", 1000 * asked["ours_seconds"], "ms")]
    scores = cosine_scores(table[:200], table)
    target = torch.arange(200).numpy()
    rows.append(
        compare(
            "retrieval rank of one target, counting against sorting, 200 x 20,000",
            lambda: true_ranks(scores, target),
            lambda: ranking(scores).argmax(axis=1),
            repeats=3,
            faster=True,
        )
    )
    emit(rows, limit=LIMIT)


if __name__ == "__main__":
    main()
