"""Pic2Word: a picture as a word in a sentence (saito2023pic2word).

Written from the project's reading of the authors' public code (the mapper's layers and names, where
the word goes in training and at query time, the loss, the prompts, the metrics); nothing is copied.
Ours, not theirs: embeddings are cached in one pass and trained on as they are, where the authors
encode a freshly augmented crop in every step; one device, no gathering of negatives across several;
the end of the padding is cut off before the text tower runs, which changes no value.

`ImageToWord` is the mapper, `fit_image_to_word` trains it, `compose` makes queries. The metrics of
the published protocols are in `trialrun.representation.retrieval`, loaders of the four data sets in
`trialrun.representation.composed_data`.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from trialrun.representation import _pic2word_stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Float
from torch import Tensor, nn

from trialrun.core.seeds import split
from trialrun.core.shapes import check_range
from trialrun.representation._pic2word_adapters import as_clip
from trialrun.representation._pic2word_baselines import (
    mixture,
    nearest_words,
    weighted_mixture,
)
from trialrun.representation._pic2word_clip import STAR, Clip
from trialrun.representation._pic2word_compose import (
    compose,
    compose_features,
    text_only,
)
from trialrun.representation._pic2word_fit import (
    WordFit,
    fit_image_to_word,
    symmetric_infonce,
)
from trialrun.representation._pic2word_load import Preprocess, load_clip
from trialrun.representation._pic2word_pictures import (
    Embedded,
    embed_batches,
    embed_pictures,
    find_pictures,
    open_picture,
)
from trialrun.representation._pic2word_run import WordTraining
from trialrun.representation._pic2word_weights import read_mapper, write_mapper

__all__ = [
    "STAR",
    "Clip",
    "Embedded",
    "ImageToWord",
    "Preprocess",
    "WordFit",
    "WordTraining",
    "as_clip",
    "compose",
    "compose_features",
    "embed_batches",
    "embed_pictures",
    "find_pictures",
    "fit_image_to_word",
    "load_clip",
    "mixture",
    "nearest_words",
    "open_picture",
    "symmetric_infonce",
    "text_only",
    "weighted_mixture",
]


class ImageToWord(nn.Module):
    """Turn a picture's CLIP embedding into the vector of a pseudo-word (saito2023pic2word).

    [Linear, Dropout, ReLU] for each hidden layer, then Linear. The state's names are those of the
    authors' checkpoint: ``layers.0.0.weight``, ..., ``fc_out.bias``.

    Parameters
    ----------
    image_width : int, at least 1
        Width of CLIP's embeddings after projection (``clip.embed_dim``).
    word_width : int, at least 1
        Width of CLIP's word vectors (``clip.text_width``).
    hidden : int, at least 1
        Width of the hidden layers.
    layers : int, at least 1
        Number of hidden layers.
    dropout : float in [0, 1)
        Share of hidden numbers dropped in training.
    seed : int
        Seed of the first weights.

    Raises
    ------
    ValueError
        If a setting is out of range, or embeddings have another width.

    Examples
    --------
    >>> mapper = ImageToWord(768, 768)
    >>> sum(weight.numel() for weight in mapper.parameters())
    1050368
    >>> mapper(torch.zeros(2, 768)).shape
    torch.Size([2, 768])
    """

    def __init__(
        self,
        image_width: int,
        word_width: int,
        *,
        hidden: int = 512,
        layers: int = 2,
        dropout: int | float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (
            ("image_width", image_width),
            ("word_width", word_width),
            ("hidden", hidden),
            ("layers", layers),
        ):
            check_range(name, value, low=1)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout!r}")
        self.image_width, self.word_width = image_width, word_width
        self.hidden, self.dropout = hidden, float(dropout)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(split(seed, "image to word"))
            widths = [image_width, *[hidden] * layers]
            self.layers = nn.ModuleList(
                nn.Sequential(nn.Linear(a, b), nn.Dropout(self.dropout), nn.ReLU())
                for a, b in pairwise(widths)
            )
            self.fc_out = nn.Linear(hidden, word_width)

    def forward(self, features: Float[Tensor, "*batch image"]) -> Float[Tensor, "*batch word"]:
        """Return word vectors of ``features``, which must not be normalised."""
        if features.ndim < 1 or features.shape[-1] != self.image_width:
            raise ValueError(
                f"features must have {self.image_width} numbers each, got shape "
                f"{tuple(features.shape)}: the mapper belongs to embeddings of another model"
            )
        for layer in self.layers:
            features = layer(features)
        return self.fc_out(features)

    def save(self, path: str | Path) -> None:
        """Write the weights to ``path``, a safetensors file."""
        write_mapper(self.state_dict(), path, dropout=self.dropout)

    @classmethod
    def load(cls, path: str | Path) -> ImageToWord:
        """Read what `save` wrote, or the authors' checkpoint; in eval mode.

        Parameters
        ----------
        path : str or Path
            A ``.safetensors`` file, or a torch checkpoint that holds ``state_dict_img2text``. The
            latter is read with ``weights_only=True``: tensors and plain containers, no code.

        Raises
        ------
        ValueError
            If the file is missing, damaged, or holds no such weights.
        """
        state, dropout = read_mapper(path)
        hidden, image_width = state["layers.0.0.weight"].shape
        mapper = cls(
            image_width,
            state["fc_out.weight"].shape[0],
            hidden=hidden,
            layers=sum(name.startswith("layers.") and name.endswith(".weight") for name in state),
            dropout=dropout,
        )
        mapper.load_state_dict(state)
        return mapper.to(state["fc_out.weight"].dtype).eval()
