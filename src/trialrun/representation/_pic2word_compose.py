"""Queries from a picture and a sentence, and the baselines of the same protocols.

At query time every ``*`` of a prompt is *replaced* by its picture's pseudo-word, in place; in
training the pseudo-word is *inserted* where the prompt ends (saito2023pic2word, the authors' code).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from trialrun.representation import _pic2word_stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from trialrun.representation._pic2word_adapters import as_clip
from trialrun.representation._pic2word_clip import STAR, Clip

_CHUNK = 256


def unit(features: Float[Tensor, "*batch embed"]) -> Float[Tensor, "*batch embed"]:
    """Return unit vectors, in float32 at least: half precision would rank by rounding."""
    wide = features if features.dtype == torch.float64 else features.float()
    return normalize(wide, dim=-1)


def _plural(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _star_positions(clip: Clip, ids: Tensor, prompts: Sequence[str], stars: int) -> Tensor:
    """Return where the ``*`` stand, after asking that there are as many as pictures."""
    for prompt in prompts:
        written = prompt.count(STAR)
        if written == 0:
            raise ValueError(
                f"prompt {prompt!r} holds no {STAR!r}, but {_plural(stars, 'image')} came: write "
                f"one {STAR!r} for each image where it belongs, as in 'a drawing of {STAR}'"
            )
        if written != stars:
            raise ValueError(
                f"prompt {prompt!r} holds {written} {STAR!r}, but {_plural(stars, 'image')} came: "
                f"write one {STAR!r} for each image"
            )
    found = ids == clip.star_id
    short = (found.sum(dim=1) != stars).nonzero()
    if len(short):
        prompt = prompts[int(short[0])]
        raise ValueError(
            f"prompt {prompt[:60]!r} has {STAR!r} beyond the {ids.shape[1]} tokens that the text "
            f"tower reads: shorten what comes before it"
        )
    return found.nonzero()[:, 1].reshape(len(ids), stars)


def encode_composed(
    clip: Clip,
    words: Float[Tensor, "queries stars width"],
    prompts: Sequence[str],
) -> Float[Tensor, "queries embed"]:
    """Return the embeddings of ``prompts`` with each ``*`` replaced by a word vector, not unit.

    Gradients flow to ``words``.
    """
    ids = clip.tokenize(prompts)
    at = _star_positions(clip, ids, prompts, words.shape[1])
    return clip.encode_text(ids, words, at)


def _some(prompts: str | Sequence[str]) -> list[str]:
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise ValueError("prompts must hold at least one sentence, got none")
    return texts


def compose_features(
    clip: Any,
    mapper: nn.Module,
    features: Float[Tensor, ...],
    prompts: str | Sequence[str],
    *,
    tokenizer: Any = None,
) -> Float[Tensor, "queries embed"]:
    """Make queries from picture embeddings that are there already (saito2023pic2word).

    Parameters
    ----------
    clip : Clip or torch.nn.Module
        See `as_clip`.
    mapper : ImageToWord
    features : Tensor (queries, embed) or (queries, stars, embed)
        Picture embeddings, not normalised; the second form for several ``*`` in a prompt.
    prompts : str or sequence of str
        One for all queries, or one for each. One picture may go with many prompts.
    tokenizer : callable, optional
        For a bare model.

    Returns
    -------
    Tensor (queries, embed)
        Unit vectors.

    Raises
    ------
    ValueError
        If a prompt has no ``*``, or not one for each picture, or numbers do not match.
    """
    clip = as_clip(clip, tokenizer)
    if features.ndim not in (2, 3):
        raise ValueError(
            "features must have shape (queries, embed) or (queries, stars, embed), "
            f"got {tuple(features.shape)}"
        )
    parts = features[:, None] if features.ndim == 2 else features
    texts = _some(prompts)
    n = max(len(parts), len(texts))
    if len(parts) not in (1, n) or len(texts) not in (1, n):
        raise ValueError(
            f"prompts must be one, or one for each of the {len(parts)} queries, got {len(texts)}"
        )
    parts = parts.expand(n, -1, -1)
    texts = texts * n if len(texts) == 1 else texts
    training = mapper.training
    mapper.eval()
    try:
        with torch.no_grad(), clip.frozen():
            weights = next(mapper.parameters())
            out = []
            for begin in range(0, n, _CHUNK):
                chunk = slice(begin, begin + _CHUNK)
                words = mapper(parts[chunk].to(weights.device, weights.dtype))
                made = encode_composed(clip, words.to(clip.device), texts[chunk])
                out.append(unit(made))
            return torch.cat(out)
    finally:
        mapper.train(training)


def compose(
    clip: Any,
    tokenizer: Any,
    mapper: nn.Module,
    image: Any,
    prompt: str | Sequence[str],
) -> Float[Tensor, "*queries embed"]:
    """Make a query from pictures and a sentence: "a cartoon of ``*``" (saito2023pic2word).

    Parameters
    ----------
    clip : Clip or torch.nn.Module
        From `load_clip`, or a model of open_clip or transformers; see `as_clip`.
    tokenizer : callable or None
        None for a `Clip` that has its own.
    mapper : ImageToWord
        Used in eval mode whatever mode it is in.
    image : Tensor or sequence of Tensor
        Pre-processed pictures of shape (3, height, width), or (queries, 3, height, width) for
        several queries. For a prompt with several ``*`` a sequence of such, one for each ``*`` in
        order.
    prompt : str or sequence of str
        With one ``*`` for each picture; every ``*`` is replaced in place.

    Returns
    -------
    Tensor (embed,) or (queries, embed)
        Unit vectors, to be compared with unit embeddings of pictures.

    Raises
    ------
    ValueError
        If a prompt has no ``*`` (it says how many images came), or another number of ``*`` than
        there are images, or if images differ in shape.

    Examples
    --------
    >>> from trialrun.representation.pic2word import ImageToWord
    >>> from trialrun.representation.tiny_clip import TinyClip, WordTokenizer
    >>> tok = WordTokenizer(("a", "drawing", "of"))
    >>> clip = TinyClip(tok.vocab_size)
    >>> mapper = ImageToWord(clip.embed_dim, clip.text_width, hidden=8)
    >>> compose(clip, tok, mapper, torch.zeros(3, 32, 32), "a drawing of *").shape
    torch.Size([64])
    """
    clip = as_clip(clip, tokenizer)
    pictures = list(image) if isinstance(image, list | tuple) else [image]
    if not pictures:
        raise ValueError("image must be a picture or one for each '*', got an empty list")
    other = [type(picture).__name__ for picture in pictures if not isinstance(picture, Tensor)]
    if other:
        raise ValueError(
            f"image must be tensors, got a {other[0]}: pass it through the model's preprocess "
            "(load_clip gives it) first"
        )
    shapes = {tuple(picture.shape) for picture in pictures}
    if len(shapes) > 1:
        raise ValueError(f"images of one query must agree in shape, got {sorted(shapes)}")
    single = pictures[0].ndim == 3
    batches = [picture[None] if single else picture for picture in pictures]
    # Prompts are looked at first: encoding pictures is what takes the time.
    texts = _some(prompt)
    _star_positions(clip, clip.tokenize(texts), texts, len(batches))
    with torch.no_grad(), clip.frozen():
        features = torch.stack([clip.encode_image(batch) for batch in batches], dim=1)
    made = compose_features(clip, mapper, features, texts)
    return made[0] if single and isinstance(prompt, str) else made


def text_only(
    clip: Any,
    prompts: str | Sequence[str],
    *,
    star: Literal["removed", "literal"],
    tokenizer: Any = None,
) -> Float[Tensor, "queries embed"]:
    """Encode the sentences without any picture, the text baseline.

    The published evaluations differ: domain conversion takes the ``*`` out of the prompt
    (``removed``), Fashion-IQ encodes the sentence with a ``*`` in it as it stands (``literal``).
    CIRR and COCO have sentences of their own without one; either word serves for them.

    Parameters
    ----------
    clip : Clip or torch.nn.Module
    prompts : str or sequence of str
    star : {"removed", "literal"}
        What becomes of the ``*``.
    tokenizer : callable, optional

    Returns
    -------
    Tensor (queries, embed)
        Unit vectors.

    Raises
    ------
    ValueError
        If ``star`` is another word.
    """
    if star not in ("removed", "literal"):
        raise ValueError(f"star must be 'removed' or 'literal', got {star!r}")
    clip = as_clip(clip, tokenizer)
    texts = _some(prompts)
    if star == "removed":
        texts = [text.replace(STAR, "") for text in texts]
    with torch.no_grad(), clip.frozen():
        parts = [
            unit(clip.encode_text(clip.tokenize(texts[i : i + _CHUNK])))
            for i in range(0, len(texts), _CHUNK)
        ]
    return torch.cat(parts)
