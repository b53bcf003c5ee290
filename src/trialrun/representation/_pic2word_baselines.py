"""Queries without a pseudo-word: sums of picture and sentence, and the nearest real word."""

from __future__ import annotations

from trialrun.representation import _pic2word_stack  # noqa: F401

# isort: split
from jaxtyping import Float, Int
from torch import Tensor

from trialrun.core.shapes import check_range
from trialrun.representation._pic2word_clip import Clip
from trialrun.representation._pic2word_compose import unit


def mixture(
    image_features: Float[Tensor, "queries embed"], text_features: Float[Tensor, "texts embed"]
) -> Float[Tensor, "queries embed"]:
    """Return the mixture baseline: the normalised sum of the two unit vectors."""
    return weighted_mixture(image_features, text_features, 0.5)


def weighted_mixture(
    image_features: Float[Tensor, "queries embed"],
    text_features: Float[Tensor, "texts embed"],
    share: int | float,
) -> Float[Tensor, "queries embed"]:
    """Return the normalised sum of ``share`` of the picture and the rest of the sentence.

    Parameters
    ----------
    image_features : Tensor (queries, embed)
    text_features : Tensor (queries, embed) or (1, embed)
    share : float in [0, 1]
        0 is the sentence alone, 1 the picture alone, 0.5 is `mixture`.

    Raises
    ------
    ValueError
        If there are other numbers of sentences, or ``share`` is out of range.
    """
    check_range("share", share, low=0, high=1)
    if len(text_features) not in (1, len(image_features)):
        raise ValueError(
            f"text_features must be one, or one for each of the {len(image_features)} pictures, "
            f"got {len(text_features)}"
        )
    return unit(share * unit(image_features) + (1 - share) * unit(text_features))


def nearest_words(
    clip: Clip, words: Float[Tensor, "queries width"], among: Int[Tensor, some] | None = None
) -> Float[Tensor, "queries width"]:
    """Replace pseudo-words by the real words whose vectors have the highest cosine with them.

    Parameters
    ----------
    clip : Clip
    words : Tensor (queries, width)
    among : LongTensor, optional
        Ids of the words to choose from; all of them otherwise.
    """
    table = clip.word_table().detach()
    table = table if among is None else table[among]
    return table[(unit(words) @ unit(table).T).argmax(dim=1)]
