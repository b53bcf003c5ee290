"""One way to talk to open_clip's CLIP, to transformers' and to any model laid out like open_clip's.

Pic2Word (saito2023pic2word) needs five things of a CLIP: un-normalised picture embeddings, the
width of a word, the place where a sentence ends, the text tower with some word vectors put in by
hand, and the temperature. `as_clip` gives them for either library and never changes the model.

The text towers are causal and are read at the end of the text, so whatever follows it cannot matter
and is cut off before the tower runs: "a photo of" and a pseudo-word are 6 tokens and not 77.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from trialrun.representation import _pic2word_stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

STAR = "*"
"""The word that stands for a picture in a prompt."""


class Clip:
    """A CLIP and its tokenizer behind one face; made by `as_clip` or `load_clip`.

    Attributes
    ----------
    model : torch.nn.Module
        The model itself, unchanged.
    tokenizer : callable
        From a list of sentences to ids of shape (sentences, context_length).
    embed_dim, text_width, context_length : int
        Width of an embedding, width of a word vector, longest sentence in tokens.
    """

    model: nn.Module
    embed_dim: int
    text_width: int
    context_length: int

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._star: int | None = None

    @property
    def device(self) -> torch.device:
        """Return where the model lies."""
        return next(self.model.parameters()).device

    @property
    def logit_scale(self) -> float:
        """Return the factor on cosines that the model was trained with (about 100 for CLIP)."""
        return float(self._scale().detach().exp().mean())

    @property
    def star_id(self) -> int:
        """Return the id of ``*``."""
        if self._star is None:
            row = self.tokenize([STAR])
            if int(self.end_of_text(row)[0]) != 2:
                raise ValueError(
                    f"the tokenizer must read {STAR!r} as one token between start and end of text, "
                    f"got the ids {row[0, :6].tolist()}: use the tokenizer of this very model"
                )
            self._star = int(row[0, 1])
        return self._star

    def tokenize(self, texts: Sequence[str]) -> Int[Tensor, "texts tokens"]:
        """Return the ids of ``texts``; every ``*`` becomes a word of its own first.

        "a photo of *, red" would otherwise hold the token "*," in the place of "*".
        """
        if self.tokenizer is None:
            raise ValueError("a tokenizer is needed to read prompts, got None: pass tokenizer=")
        spaced = [text.replace(STAR, f" {STAR} ") for text in texts]
        ids = self.tokenizer(spaced)
        ids = ids["input_ids"] if hasattr(ids, "keys") else ids
        return torch.as_tensor(ids, dtype=torch.long, device=self.device)

    def encode_image(
        self, pixels: Float[Tensor, "pictures 3 height width"]
    ) -> Float[Tensor, "pictures embed"]:
        """Return the embeddings of ``pixels`` after CLIP's projection, not normalised."""
        got = f"got {tuple(pixels.shape)}"
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            hint = ": one picture still needs its first axis" if pixels.ndim == 3 else ""
            raise ValueError(f"pixels must have shape (pictures, 3, height, width), {got}{hint}")
        try:
            return self._image_features(pixels.to(self.device, self._pixel_dtype()))
        except (RuntimeError, ValueError, AssertionError) as error:
            sides = self._sides()  # many networks take others as well
            if sides is None or tuple(pixels.shape[2:]) == sides:
                raise
            raise ValueError(
                f"pixels must have shape (pictures, 3, {sides[0]}, {sides[1]}) for this model, "
                f"{got}: pass pictures through the model's preprocess (load_clip gives it) first"
            ) from error

    def end_of_text(self, ids: Int[Tensor, "texts tokens"]) -> Int[Tensor, texts]:
        """Return the position at which the model itself reads each sentence."""
        raise NotImplementedError

    def encode_text(
        self,
        ids: Int[Tensor, "texts tokens"],
        words: Float[Tensor, "texts stars width"] | None = None,
        at: Int[Tensor, "texts stars"] | None = None,
    ) -> Float[Tensor, "texts embed"]:
        """Return the embeddings of sentences, not normalised.

        Parameters
        ----------
        ids : LongTensor (texts, tokens)
        words : Tensor (texts, stars, width), optional
            Word vectors that take the place of the model's own at positions ``at``, before the
            positional embeddings are added. Gradients flow to them through the tower.
        at : LongTensor (texts, stars), optional
        """
        if (words is None) != (at is None):
            raise ValueError("words and at must come together, got only one of them")
        if words is not None and words.shape[-1] != self.text_width:
            raise ValueError(
                f"words must have {self.text_width} numbers each, as this model's words have, got "
                f"{words.shape[-1]}: the mapper belongs to another model"
            )
        length = int(self.end_of_text(ids).max()) + 1 if self._causal() else ids.shape[1]
        return self._text_features(ids[:, :length], words, at)

    def reader(
        self, ids: Int[Tensor, "1 tokens"], at: Int[Tensor, "1 stars"]
    ) -> Callable[[Tensor], Tensor]:
        """Return a function that reads one sentence with many sets of words put in.

        It takes words (texts, stars, width) and returns embeddings (texts, embed), those of
        `encode_text`. A tower that can (`TinyClip`'s) reads what stands before the first word only
        here, so the function holds as long as the model's weights do not change.
        """

        def read(words: Tensor) -> Tensor:
            return self.encode_text(ids.expand(len(words), -1), words, at.expand(len(words), -1))

        return read

    def insert_at_end(
        self, ids: Int[Tensor, "texts tokens"]
    ) -> tuple[Int[Tensor, "texts tokens"], Int[Tensor, "texts 1"]]:
        """Make room for one word where the text ends: what follows moves on by one.

        Returns the new ids, with ``*`` in the gap, and the positions of the gap. The last id, which
        is padding, drops out.
        """
        ends = self.end_of_text(ids)
        if int(ends.max()) + 1 >= ids.shape[1]:
            raise ValueError(
                f"the prompt fills all {ids.shape[1]} tokens that the text tower reads, so no word "
                "can be added at its end: shorten it"
            )
        places = torch.arange(ids.shape[1], device=ids.device)[None, :]
        moved = torch.cat([ids[:, :1], ids[:, :-1]], dim=1)
        longer = torch.where(places < ends[:, None], ids, moved)
        star = torch.as_tensor(self.star_id, device=ids.device)
        return torch.where(places == ends[:, None], star, longer), ends[:, None]

    def word_table(self) -> Float[Tensor, "words width"]:
        """Return the model's own word vectors."""
        return self._embedding().weight

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Hold the model in eval and its weights without gradients; put both back afterwards.

        Gradients still flow through the text tower to the words put into it.
        """
        modes = [(module, module.training) for module in self.model.modules()]
        wanted = [(weight, weight.requires_grad) for weight in self.model.parameters()]
        self.model.eval()
        for weight, _ in wanted:
            weight.requires_grad_(False)
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            for weight, needs in wanted:
                weight.requires_grad_(needs)

    def _embedding(self) -> nn.Embedding:
        raise NotImplementedError

    def _scale(self) -> Tensor:
        scale = self.model.logit_scale
        assert isinstance(scale, Tensor)
        return scale

    def _causal(self) -> bool:
        return True

    def _pixel_dtype(self) -> torch.dtype:
        raise NotImplementedError

    def _sides(self) -> tuple[int, int] | None:
        """Return height and width of the pictures that the model was made for, if it tells."""
        return None

    def _image_features(self, pixels: Tensor) -> Tensor:
        raise NotImplementedError

    def _text_features(self, ids: Tensor, words: Tensor | None, at: Tensor | None) -> Tensor:
        raise NotImplementedError


def tensor_digest(**tensors: Tensor) -> str:
    """Return a digest of tensors and their names, the same on every machine."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def weights_digest(clip: Clip) -> str:
    """Return a digest of a model's weights, the same on every machine."""
    return tensor_digest(**clip.model.state_dict())
