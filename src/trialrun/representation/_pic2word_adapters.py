"""CLIPs of open_clip and transformers behind the one face of `Clip` (saito2023pic2word)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trialrun.representation import _pic2word_stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Int
from torch import Tensor, nn

from trialrun.representation._pic2word_clip import Clip

_POOLS = ("argmax", "eos")


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

    def _sides(self) -> tuple[int, int] | None:
        size = getattr(self.model.visual, "image_size", None)
        return (size, size) if isinstance(size, int) else None if size is None else tuple(size)

    def _image_features(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)  # type: ignore[operator]

    def _text_features(self, ids: Tensor, words: Tensor | None, at: Tensor | None) -> Tensor:
        tower, length, dtype = self._tower, ids.shape[1], self._cast()
        x = _with_words(tower.token_embedding(ids).to(dtype), words, at)
        x = x + tower.positional_embedding[:length].to(dtype)
        mask = tower.attn_mask
        x = tower.transformer(x, attn_mask=None if mask is None else mask[:length, :length])
        rows = torch.arange(len(x), device=x.device)
        return self._projected(x[rows, self.end_of_text(ids)])

    def reader(
        self, ids: Int[Tensor, "1 tokens"], at: Int[Tensor, "1 stars"]
    ) -> Callable[[Tensor], Tensor]:
        """Read the words before the first star once, where the tower is `TinyClip`'s.

        It is causal: what follows cannot change how they are read.
        """
        tower = self._tower
        if not hasattr(tower.transformer, "remember"):
            return super().reader(ids, at)
        first, end = int(at.min()), int(self.end_of_text(ids)) + 1
        table, places, mask = tower.token_embedding, tower.positional_embedding, tower.attn_mask
        with torch.no_grad():
            opening = table(ids[:, :first]) + places[:first]
            pasts = tower.transformer.remember(opening, mask[:first, :first])
            rest = table(ids[:, first:end])

        def read(words: Tensor) -> Tensor:
            many = len(words)
            x = _with_words(rest.expand(many, -1, -1), words, (at - first).expand(many, -1))
            x = tower.transformer.after(pasts, x + places[first:end], mask[first:end, :end])
            return self._projected(x[:, -1])

        return read

    def _projected(self, x: Tensor) -> Tensor:
        # Normalisation works position by position, so only the position that is read needs it.
        x = self._tower.ln_final(x)
        projection = self._tower.text_projection
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

    def _sides(self) -> tuple[int, int]:
        size = int(self.model.config.vision_config.image_size)  # type: ignore[union-attr, arg-type]
        return size, size

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
