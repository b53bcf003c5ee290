"""The cache of one latent attention layer: latents and rotated keys side by side in one buffer."""

from __future__ import annotations

from trialrun.attention import _mla_stack  # noqa: F401

# isort: split
import weakref
from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from trialrun.core.errors import UsageError
from trialrun.core.shapes import check_axes, check_range

_SLACK = 32
"""A full buffer is copied into one longer by 1/32, so at most about 3 % is held in advance."""
_FOREIGN = "it was filled by another model, so start with an empty cache"


class LatentCache:
    """Keep one latent and one rotated key per token, for all heads (deepseek2024v2).

    Tokens are written in place. A full buffer is copied into one that is 1/32 longer: for that
    moment this layer's cache is held twice. Give ``reserve`` to have neither copy nor slack. One
    cache serves one layer; it is for inference and takes no tensor that records gradients.

    Parameters
    ----------
    reserve : int
        Tokens to make room for at the first `append`, at least 0.

    Raises
    ------
    ValueError
        If ``reserve`` is negative.

    Examples
    --------
    >>> import torch
    >>> cache = LatentCache()
    >>> latent, rope_key = cache.append(torch.zeros(1, 3, 8), torch.zeros(1, 3, 2))
    >>> len(cache), tuple(latent.shape), cache.nbytes
    (3, (1, 3, 8), 120)
    >>> cache.crop(1)
    >>> len(cache)
    1
    """

    def __init__(self, *, reserve: int = 0) -> None:
        check_range("reserve", reserve, low=0, unit="tokens")
        self.reserve = reserve
        self.padded = False
        self._buffer: Tensor | None = None
        self._length = self._rank = 0
        self._owner: weakref.ref[nn.Module] | None = None

    def __len__(self) -> int:
        return self._length

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_owner": None}

    def __copy__(self) -> LatentCache:
        made = type(self)()
        vars(made).update(vars(self))
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> LatentCache:
        made = memo[id(self)] = type(self)()
        vars(made).update({name: deepcopy(held, memo) for name, held in vars(self).items()})
        owner = memo.get(id(self._owner())) if self._owner is not None else None
        if owner is not None:
            made._owner = weakref.ref(owner)
        return made

    def __repr__(self) -> str:
        return f"LatentCache({self._length} tokens, {self.nbytes} bytes)"

    @property
    def latent(self) -> Float[Tensor, "batch time rank"]:
        """Give the normalised latents of all tokens, a view."""
        return self._filled()[..., : self._rank]

    @property
    def rope_key(self) -> Float[Tensor, "batch time rope"]:
        """Give the rotated keys of all tokens, shared by all heads; a view."""
        return self._filled()[..., self._rank :]

    @property
    def nbytes(self) -> int:
        """Count the bytes of the tokens held: (rank + rope) numbers for each."""
        return self._filled().nbytes if self._buffer is not None else 0

    @property
    def nbytes_allocated(self) -> int:
        """Count the bytes of the buffer, with the room for tokens to come."""
        return self._buffer.nbytes if self._buffer is not None else 0

    def append(
        self,
        latent: Float[Tensor, "batch time rank"],
        rope_key: Float[Tensor, "batch time rope"],
        *,
        layer: nn.Module | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Add tokens and return the latents and rotated keys of all of them.

        Parameters
        ----------
        latent, rope_key : tensors of shape (batch, time, rank) and (batch, time, rope)
        layer : module or None
            Whose tokens they are; the cache is its own from now on. Copies stay with the layer, or
            go with its copy where both are copied at once; a pickle belongs to none. None asks
            nothing.

        Returns
        -------
        tuple of tensors of shape (batch, tokens, rank) and (batch, tokens, rope)
            Views that the next `append` may leave behind.

        Raises
        ------
        ValueError
            If the tokens do not fit those held, as with a cache filled by another layer, or record
            gradients.
        """
        if layer is not None:
            self._check_owner(layer)
        self._check(latent, rope_key)
        batch, time, rank = latent.shape
        width = rank + rope_key.shape[2]
        total = self._length + time
        if self._buffer is None or total > self._buffer.shape[1] or _is_frozen(self._buffer):
            room = max(self.reserve, total + total // _SLACK if self._length else total)
            grown = latent.new_empty(batch, room, width)
            if self._buffer is not None:
                grown[:, : self._length] = self._filled()
            self._buffer, self._rank = grown, rank
        new = self._buffer[:, self._length : total]
        new[..., :rank], new[..., rank:] = latent, rope_key
        self._length = total
        if layer is not None and (self._owner is None or self._owner() is not layer):
            self._owner = weakref.ref(layer)
        return self.latent, self.rope_key

    def crop(self, tokens: int) -> None:
        """Keep the first ``tokens``; a negative number drops that many from the end.

        Later tokens only: rotated keys hold absolute positions, so the start cannot be cut off.

        Raises
        ------
        ValueError
            If more tokens are to be kept or dropped than there are.
        """
        kept = self._length + tokens if tokens < 0 else tokens
        if not 0 <= kept <= self._length:
            raise UsageError(
                f"tokens must be between -{self._length} and {self._length}, the tokens held, got "
                f"{tokens}"
            )
        self._length = kept
        if not kept:
            self.reset()

    def reorder(self, rows: Int[Tensor, " new_batch"]) -> None:
        """Put row ``rows[i]`` at row i, as beam search asks; rows may repeat or be left out.

        Raises
        ------
        ValueError
            If the cache is empty or a row does not exist.
        """
        if self._buffer is None:
            raise UsageError("reorder needs a cache that holds tokens, got an empty one")
        batch = self._buffer.shape[0]
        if rows.ndim != 1 or not len(rows) or not bool(((rows >= 0) & (rows < batch)).all()):
            raise UsageError(f"rows must be a vector of rows 0 to {batch - 1}, got {rows.tolist()}")
        self._buffer = self._buffer.index_select(0, rows.to(self._buffer.device))

    def reset(self) -> None:
        """Forget all tokens and give the buffer back."""
        self._buffer = None
        self._length = self._rank = 0
        self._owner = None
        self.padded = False

    def _filled(self) -> Tensor:
        if self._buffer is None:
            raise UsageError("this LatentCache is empty: append tokens first")
        return self._buffer[:, : self._length]

    def _check_owner(self, layer: nn.Module) -> None:
        if self._length and self._owner is not None and self._owner() is not layer:
            raise UsageError(
                f"cache must be empty or filled by this layer, got {self._length} tokens of "
                f"another layer: give each layer a LatentCache of its own, or reset this one"
            )

    def _check(self, latent: Tensor, rope_key: Tensor) -> None:
        check_axes("latent", latent, ("batch", "time", "rank"))
        check_axes("rope_key", rope_key, ("batch", "time", "rope"))
        if latent.shape[:2] != rope_key.shape[:2] or latent.dtype != rope_key.dtype:
            raise UsageError(
                f"rope_key must have the batch, time and dtype of latent {tuple(latent.shape)} "
                f"{latent.dtype}, got {tuple(rope_key.shape)} {rope_key.dtype}"
            )
        if torch.is_grad_enabled() and (latent.requires_grad or rope_key.requires_grad):
            raise UsageError(
                "a LatentCache is for inference, got a tensor that records gradients: call under "
                "torch.no_grad(), or leave the cache out to train"
            )
        if self._buffer is None:
            return
        held = (self._buffer.shape[0], self._rank, self._buffer.shape[2] - self._rank)
        come = (latent.shape[0], latent.shape[2], rope_key.shape[2])
        if (
            held != come
            or self._buffer.dtype != latent.dtype
            or self._buffer.device != latent.device
        ):
            raise UsageError(
                f"this cache holds batch {held[0]} of latents {held[1]} and rotary keys {held[2]} "
                f"wide ({self._buffer.dtype} on {self._buffer.device}), got batch {come[0]}, "
                f"{come[1]} and {come[2]} ({latent.dtype} on {latent.device}): it was filled by "
                f"another layer or batch, so give each layer a LatentCache of its own"
            )


def _is_frozen(buffer: Tensor) -> bool:
    """Tell whether torch forbids to write here: made in inference mode, which is left by now."""
    return buffer.is_inference() and not torch.is_inference_mode_enabled()


def check_held(cache: object, attention: Any, hidden: Tensor) -> None:
    """Say so where a transformers cache was filled by another model, before it meets this one.

    Looked at are the cache's depth, the batch, and the widths of what it holds for this layer.
    """
    layers = getattr(cache, "layers", None)
    if layers is None:
        return
    layer, depth = attention.layer_idx, attention.config.num_hidden_layers
    if any(_keys(held) is not None for held in layers[depth:]):
        raise UsageError(
            f"past_key_values must hold no more than the {depth} layers of this model, got "
            f"{len(layers)}: {_FOREIGN}"
        )
    if layer >= len(layers):
        # A cache that grows has no layer yet at its first tokens, which all layers get in turn.
        before = _keys(layers[-1]) if layers else None
        grows = getattr(cache, "layer_class_to_replicate", None) is not None
        if not grows or (before is not None and before.shape[2] > hidden.shape[1]):
            raise UsageError(
                f"past_key_values must have a layer {layer}, got {len(layers)} layers: {_FOREIGN}"
            )
        return
    keys = _keys(layers[layer])
    if keys is None:
        return
    got = (keys.shape[1], keys.shape[3])
    if got != (1, attention.kv_lora_rank):
        raise UsageError(
            f"past_key_values must hold one head of latents {attention.kv_lora_rank} wide in layer "
            f"{layer}, got {got[0]} heads of width {got[1]}: {_FOREIGN}"
        )
    if keys.shape[0] != hidden.shape[0]:
        raise UsageError(
            f"past_key_values must hold a batch of {hidden.shape[0]}, as the new tokens are, got "
            f"{keys.shape[0]} in layer {layer}: give the rows that it was filled with, or start "
            f"with an empty cache"
        )


def _keys(layer: object) -> Tensor | None:
    """Return what a layer of a transformers cache holds, None where that is nothing yet."""
    keys = getattr(layer, "keys", None)
    return keys if isinstance(keys, Tensor) and keys.ndim == 4 else None
