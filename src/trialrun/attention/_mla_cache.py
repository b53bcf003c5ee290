"""The cache of one latent attention layer: latents and rotated keys side by side in one buffer."""

from __future__ import annotations

from trialrun.attention import _mla_stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Float, Int
from torch import Tensor

from trialrun.core.errors import UsageError
from trialrun.core.shapes import check_axes, check_range

_SLACK = 32
"""A full buffer is copied into one longer by 1/32, so at most about 3 % is held in advance."""


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

    def __len__(self) -> int:
        return self._length

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
    ) -> tuple[Tensor, Tensor]:
        """Add tokens and return the latents and rotated keys of all of them.

        Parameters
        ----------
        latent, rope_key : tensors of shape (batch, time, rank) and (batch, time, rope)

        Returns
        -------
        tuple of tensors of shape (batch, tokens, rank) and (batch, tokens, rope)
            Views that the next `append` may leave behind.

        Raises
        ------
        ValueError
            If the tokens do not fit those held, as with a cache filled by another layer's shape,
            or record gradients.
        """
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
        self.padded = False

    def _filled(self) -> Tensor:
        if self._buffer is None:
            raise UsageError("this LatentCache is empty: append tokens first")
        return self._buffer[:, : self._length]

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


def check_held(cache: object, layer: int, rank: int) -> None:
    """Say so where a transformers cache holds another model's keys, before they meet this one's."""
    layers = getattr(cache, "layers", ())
    keys = getattr(layers[layer], "keys", None) if layer < len(layers) else None
    if not isinstance(keys, Tensor) or keys.ndim != 4:
        return
    got = (keys.shape[1], keys.shape[3])
    if got != (1, rank):
        raise UsageError(
            f"past_key_values must hold one head of latents {rank} wide in layer {layer}, got "
            f"{got[0]} heads of width {got[1]}: it was filled by another model, so start with an "
            f"empty cache"
        )
