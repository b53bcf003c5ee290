"""One way to talk to open_clip's CLIP, to transformers' and to any model laid out like open_clip's.

Pic2Word (saito2023pic2word) needs five things of a CLIP: un-normalised picture embeddings, the
width of a word, the place where a sentence ends, the text tower with some word vectors put in by
hand, and the temperature. `as_clip` gives them for either library and never changes the model.

The text towers are causal and are read at the end of the text, so whatever follows it cannot matter
and is cut off before the tower runs: "a photo of" and a pseudo-word are 6 tokens and not 77.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from trialrun.representation import _pic2word_stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

STAR = "*"
"""The word that stands for a picture in a prompt."""

_POOLS = ("argmax", "eos")


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
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(
                "pixels must have shape (pictures, 3, height, width), "
                f"got {tuple(pixels.shape)}: one picture still needs its first axis"
            )
        return self._image_features(pixels.to(self.device, self._pixel_dtype()))

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

    def _image_features(self, pixels: Tensor) -> Tensor:
        raise NotImplementedError

    def _text_features(self, ids: Tensor, words: Tensor | None, at: Tensor | None) -> Tensor:
        raise NotImplementedError


def _with_words(embedded: Tensor, words: Tensor | None, at: Tensor | None) -> Tensor:
    if words is None or at is None:
        return embedded
    rows = torch.arange(len(embedded), device=embedded.device)[:, None].expand_as(at)
    return embedded.index_put((rows, at), words.to(embedded.dtype))


def _first(ids: Tensor, end: int) -> Tensor:
    hits = ids == end
    if not bool(hits.any(dim=1).all()):
        row = int((~hits.any(dim=1)).nonzero()[0])
        raise ValueError(
            f"sentence {row} has no end-of-text id {end} among its ids: "
            "use the tokenizer that belongs to the model"
        )
    return hits.int().argmax(dim=1)


class _OpenClip(Clip):
    """``open_clip.CLIP``, ``CustomTextCLIP`` and models with the same names."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        own = hasattr(model, "token_embedding")
        self._tower: Any = model if own else model.text
        prefix = "text_" if own else ""
        self._pool = getattr(self._tower, f"{prefix}pool_type", "argmax")
        self._eos = int(getattr(self._tower, f"{prefix}eos_id", None) or 0)
        if self._pool not in _POOLS or getattr(self._tower, "cls_emb", None) is not None:
            raise ValueError(
                f"clip must read sentences at their end of text, got a {type(model).__name__} that "
                f"pools by {self._pool!r}: Pic2Word needs a text tower like CLIP's"
            )
        self.context_length = int(self._tower.positional_embedding.shape[0])
        self.text_width = int(self._tower.token_embedding.weight.shape[1])
        projection = self._tower.text_projection
        if projection is None:
            self.embed_dim = self.text_width
        elif isinstance(projection, nn.Linear):
            self.embed_dim = projection.out_features
        else:
            self.embed_dim = int(projection.shape[1])

    def end_of_text(self, ids: Int[Tensor, "texts tokens"]) -> Int[Tensor, texts]:
        """Return where the highest id stands, or the first end-of-text id, as the model does."""
        if self._pool == "argmax":
            return ids.argmax(dim=1)
        return _first(ids, self._eos)

    def _embedding(self) -> nn.Embedding:
        return self._tower.token_embedding

    def _causal(self) -> bool:
        return self._tower.attn_mask is not None

    def _cast(self) -> torch.dtype:
        transformer = self._tower.transformer
        if hasattr(transformer, "get_cast_dtype"):
            return transformer.get_cast_dtype()
        return self._tower.token_embedding.weight.dtype

    def _pixel_dtype(self) -> torch.dtype:
        return next(self.model.visual.parameters()).dtype  # type: ignore[union-attr]

    def _image_features(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)  # type: ignore[operator]

    def _text_features(self, ids: Tensor, words: Tensor | None, at: Tensor | None) -> Tensor:
        tower, length, dtype = self._tower, ids.shape[1], self._cast()
        x = _with_words(tower.token_embedding(ids).to(dtype), words, at)
        x = x + tower.positional_embedding[:length].to(dtype)
        mask = tower.attn_mask
        x = tower.transformer(x, attn_mask=None if mask is None else mask[:length, :length])
        # Normalisation works position by position, so only the position that is read needs it.
        rows = torch.arange(len(x), device=x.device)
        x = tower.ln_final(x[rows, self.end_of_text(ids)])
        projection = tower.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Linear) else x @ projection


class _TransformersClip(Clip):
    """``transformers.CLIPModel``; words are put in by a hook on the token embedding.

    The model then adds positions, masks, and finds the end of the text by itself.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, _padded(tokenizer, model.config.text_config))
        text = model.config.text_config
        self.context_length = int(text.max_position_embeddings)
        self.text_width = int(text.hidden_size)
        self.embed_dim = int(model.config.projection_dim)
        self._eos = int(getattr(model.text_model, "eos_token_id", text.eos_token_id))

    def end_of_text(self, ids: Int[Tensor, "texts tokens"]) -> Int[Tensor, texts]:
        """Return where the model reads: old checkpoints say 2 for their end-of-text id.

        It is not, and transformers then takes the highest id; otherwise the first id that matches,
        since sentences may be padded with it.
        """
        if self._eos == 2:
            return ids.argmax(dim=1)
        return _first(ids, self._eos)

    def _embedding(self) -> nn.Embedding:
        return self.model.text_model.get_input_embeddings()  # type: ignore[union-attr, operator]

    def _pixel_dtype(self) -> torch.dtype:
        return next(self.model.vision_model.parameters()).dtype  # type: ignore[union-attr]

    def _image_features(self, pixels: Tensor) -> Tensor:
        return _pooled(self.model.get_image_features(pixel_values=pixels))  # type: ignore[operator]

    def _text_features(self, ids: Tensor, words: Tensor | None, at: Tensor | None) -> Tensor:
        handle = self._embedding().register_forward_hook(
            lambda _module, _args, embedded: _with_words(embedded, words, at)
        )
        try:
            return _pooled(self.model.get_text_features(input_ids=ids))  # type: ignore[operator]
        finally:
            handle.remove()


def _pooled(output: Any) -> Tensor:
    """Return the features: transformers 5 wraps what version 4 gave as a tensor."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _padded(tokenizer: Any, text: Any) -> Any:
    """Make a transformers tokenizer pad and cut to the model's context, as open_clip's do."""
    if tokenizer is None or not hasattr(tokenizer, "model_max_length"):
        return tokenizer

    def read(texts: list[str]) -> Tensor:
        return tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=text.max_position_embeddings,
            return_tensors="pt",
        )["input_ids"]

    return read


def as_clip(model: Any, tokenizer: Any = None) -> Clip:
    """Put a CLIP of open_clip or transformers behind one face.

    Parameters
    ----------
    model : torch.nn.Module or Clip
        ``open_clip.CLIP``, ``open_clip.CustomTextCLIP`` with its own text tower,
        ``transformers.CLIPModel``, `TinyClip`, or any module with open_clip's names. A `Clip` is
        returned as it is, or with ``tokenizer`` in place of its own.
    tokenizer : callable, optional
        The one that belongs to the model: open_clip's, or transformers' ``CLIPTokenizer``.

    Raises
    ------
    ValueError
        If the model has no causal text tower read at its end of text.
    """
    if isinstance(model, Clip):
        if tokenizer is None or tokenizer is model.tokenizer:
            return model
        return type(model)(model.model, tokenizer)
    if hasattr(model, "text_model") and hasattr(model, "visual_projection"):
        return _TransformersClip(model, tokenizer)
    tower = model if hasattr(model, "token_embedding") else getattr(model, "text", None)
    names = ("token_embedding", "positional_embedding", "transformer", "ln_final")
    if tower is not None and all(hasattr(tower, name) for name in names):
        return _OpenClip(model, tokenizer)
    raise ValueError(
        "clip must be a CLIP of open_clip or transformers, or laid out like open_clip's, got "
        f"{type(model).__name__}"
    )
