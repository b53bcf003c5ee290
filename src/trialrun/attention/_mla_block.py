"""The attention layer whose cache is one latent per token (deepseek2024v2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trialrun.attention import _mla_stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from trialrun.attention._mla_cache import LatentCache
from trialrun.attention._mla_core import absorbing_is_cheaper
from trialrun.attention._mla_paths import absorbed_attention, crossover, materialised_attention
from trialrun.attention._mla_weights import from_transformers, load_attention
from trialrun.blocks.rotary import Rotary
from trialrun.core.errors import UsageError
from trialrun.core.seeds import split
from trialrun.core.shapes import check_axes, check_range

PATHS = ("auto", "absorbed", "materialised")


class MultiHeadLatentAttention(nn.Module):
    """Attend causally with keys and values that all come from one small latent per token.

    The cache holds ``kv_rank + rope_dim`` numbers per token, whatever the number of heads. Weights
    are named as in DeepSeek's checkpoints (deepseek2024v2, section 2.1): see `load_attention`.

    Parameters
    ----------
    d_model, n_heads, kv_rank : int
        Width of the model, number of heads, width of the latent.
    nope_dim, rope_dim, v_dim : int
        Widths per head of a key's unrotated part, its rotated part (even; 0 for none; one key for
        all heads) and a value.
    q_rank : int or None
        Width of the latent that queries come from; None projects them directly.
    rope_theta : float
        Base of the rotary wavelengths, above 1.
    rope_interleave : bool
        Rotate neighbouring features, as DeepSeek's weights expect, rather than the two halves.
    rotary : Rotary or None
        A rotary embedding of ``rope_dim`` features to use instead of the two settings above.
    scale : float or None
        Factor on the scores; None is ``(nope_dim + rope_dim) ** -0.5``. YaRN multiplies it.
    latent_norm : bool
        Normalise latents by root mean square; without it a linear layer can be split exactly.
    bias : bool
        Give every projection a bias.
    seed : int
        Seed of the initial weights.

    Raises
    ------
    ValueError
        If a width is out of range, ``rope_dim`` is odd or ``rotary`` does not fit it.

    Examples
    --------
    >>> import torch
    >>> attend = MultiHeadLatentAttention(32, 4, 8, nope_dim=8, rope_dim=4, v_dim=8).eval()
    >>> x, cache = torch.ones(1, 6, 32), LatentCache()
    >>> with torch.no_grad():
    ...     whole = attend(x)
    ...     parts = [attend(x[:, :5], cache), attend(x[:, 5:], cache)]
    >>> torch.allclose(torch.cat(parts, 1), whole, atol=1e-5), cache.nbytes // 6 // 4
    (True, 12)
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        kv_rank: int,
        *,
        nope_dim: int,
        rope_dim: int,
        v_dim: int,
        q_rank: int | None = None,
        rope_theta: float = 1e4,
        rope_interleave: bool = False,
        rotary: Rotary | None = None,
        scale: float | None = None,
        latent_norm: bool = True,
        bias: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        sizes = {"d_model": d_model, "n_heads": n_heads, "kv_rank": kv_rank, "v_dim": v_dim}
        _check_widths(sizes | ({"q_rank": q_rank} if q_rank is not None else {}), low=1)
        _check_widths({"nope_dim": nope_dim, "rope_dim": rope_dim}, low=0)
        self.d_model, self.n_heads, self.kv_rank, self.q_rank = d_model, n_heads, kv_rank, q_rank
        self.nope_dim, self.rope_dim, self.v_dim = nope_dim, rope_dim, v_dim
        self.rope_theta, self.rope_interleave = rope_theta, rope_interleave
        self.latent_norm, self.bias, self.seed = latent_norm, bias, seed
        self.rotary = _rotary(rope_dim, rope_theta, rope_interleave, rotary)
        if not nope_dim + rope_dim:
            raise UsageError("nope_dim + rope_dim must be at least 1 feature, got 0")
        if scale is not None and not (_is_number(scale) and math.isfinite(scale) and scale > 0):
            raise UsageError(f"scale must be a number above 0, got {scale!r}")
        self.scale = (nope_dim + rope_dim) ** -0.5 if scale is None else scale
        head = n_heads * (nope_dim + rope_dim)
        norm = nn.RMSNorm if latent_norm else _same
        if q_rank is None:
            self.q_proj = self._linear("q_proj", d_model, head)
        else:
            self.q_a_proj = self._linear("q_a_proj", d_model, q_rank)
            self.q_a_layernorm = norm(q_rank, eps=1e-6)
            self.q_b_proj = self._linear("q_b_proj", q_rank, head)
        self.kv_a_proj_with_mqa = self._linear("kv_a", d_model, kv_rank + rope_dim)
        self.kv_a_layernorm = norm(kv_rank, eps=1e-6)
        self.kv_b_proj = self._linear("kv_b", kv_rank, n_heads * (nope_dim + v_dim))
        self.o_proj = self._linear("o_proj", n_heads * v_dim, d_model)

    def extra_repr(self) -> str:
        """Show the widths in ``repr``."""
        return (
            f"{self.d_model}, {self.n_heads}, {self.kv_rank}, nope_dim={self.nope_dim}, "
            f"rope_dim={self.rope_dim}, v_dim={self.v_dim}, q_rank={self.q_rank}"
        )

    @property
    def crossover(self) -> float:
        """New tokens below which a long cache is attended to absorbed; see `crossover`."""
        return crossover(self.kv_rank, self.nope_dim, self.v_dim)

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        cache: LatentCache | None = None,
        *,
        positions: Shaped[Tensor, "... _"] | None = None,
        padding: Bool[Tensor, "batch key"] | None = None,
        path: str = "auto",
    ) -> Float[Tensor, "batch time width"]:
        """Attend to ``x`` and what ``cache`` holds, and add ``x`` to the cache.

        Parameters
        ----------
        x : tensor of shape (batch, time, width)
            New tokens; ``width`` is ``d_model``.
        cache : LatentCache or None
            Earlier tokens of this layer; inference only.
        positions : tensor of shape (time,) or (batch, time), or None
            Position of every new token. None counts real tokens from 0.
        padding : bool tensor of shape (batch, key) or None
            True where a token is real, over cached and new tokens; padded tokens attend to nothing.
            None means all are real.
        path : str
            ``absorbed``, ``materialised``, or ``auto``: the one that takes fewer products for so
            many new tokens (see `crossover`), and materialised where gradients are recorded.

        Raises
        ------
        ValueError
            If a shape or setting does not fit, or another layer filled the cache; the sentence
            names it.
        """
        self._check_call(x, cache, padding, path)
        past = len(cache) if cache is not None else 0
        if positions is None:
            positions = _count(past, x.shape[1], padding, x.device)
        elif not isinstance(positions, Tensor) or positions.shape not in (
            x.shape[1:2],
            x.shape[:2],
        ):
            got = tuple(positions.shape) if isinstance(positions, Tensor) else type(positions)
            raise UsageError(
                f"positions must be a tensor of shape {tuple(x.shape[1:2])} or "
                f"{tuple(x.shape[:2])}, one for each new token, got {got}"
            )
        q_nope, q_rope = self._queries(x)
        latent, rope_key = self.kv_a_proj_with_mqa(x).split((self.kv_rank, self.rope_dim), dim=-1)
        latent = self.kv_a_layernorm(latent).to(rope_key.dtype)  # Autocast norms in float32.
        if self.rotary is not None:
            q_rope = self.rotary(q_rope, positions)
            rope_key = self.rotary(rope_key, positions)
        if cache is not None:
            latent, rope_key = cache.append(latent, rope_key, layer=self)
            cache.padded = cache.padded or (padding is not None and not bool(padding.all()))
        attend = self._path(path, x.shape[1], latent.shape[1])
        up, shift = self.kv_b_proj.weight, self.kv_b_proj.bias
        out = attend(
            q_nope, q_rope, latent, rope_key, up, scale=self.scale, padding=padding
        ).transpose(1, 2)
        if shift is not None:
            # A key's bias adds the same to all scores of a query, so only the values' is left.
            out = out + shift.unflatten(0, (self.n_heads, -1))[:, self.nope_dim :]
        return self.o_proj(out.flatten(2))

    def absorbed(
        self, x: Float[Tensor, "batch time width"], cache: LatentCache | None = None, **given: Any
    ) -> Float[Tensor, "batch time width"]:
        """Attend without expanding the latents; what is ``given`` goes on to the call."""
        return self(x, cache, path="absorbed", **given)

    def materialised(
        self, x: Float[Tensor, "batch time width"], cache: LatentCache | None = None, **given: Any
    ) -> Float[Tensor, "batch time width"]:
        """Attend to expanded keys and values; what is ``given`` goes on to the call."""
        return self(x, cache, path="materialised", **given)

    def load_attention(self, state: Mapping[str, Tensor], *, prefix: str = "") -> None:
        """Take the weights of one attention layer from a DeepSeek checkpoint.

        Parameters
        ----------
        state : mapping of str to tensor
            Such as a safetensors file; copied, in this module's dtype. Weights say nothing of how
            they are used: DeepSeek's own want ``rope_interleave=True``, their ``rope_theta``, and
            under YaRN its rotary table and the scale that it multiplies. `from_transformers` reads
            all of these from a model.
        prefix : str
            What stands before ``q_proj.weight``, such as ``model.layers.0.self_attn.``.

        Raises
        ------
        ValueError
            If a weight is missing, is of another shape, or has no place here.
        """
        load_attention(self, state, prefix)

    @classmethod
    def from_transformers(cls, model: Any, layer: int = 0) -> MultiHeadLatentAttention:
        """Copy one attention layer of a transformers model, with its rotary table and scale.

        Parameters
        ----------
        model : transformers model
            Of a DeepSeek-V2 or V3 class, or another whose attention is the same: A.X K1, GLM-4
            MoE Lite, MiniCPM3, Youtu.
        layer : int
            Index of the layer.

        Raises
        ------
        ValueError
            If the model's attention does more than this module, or has no such layer.
        """
        return from_transformers(cls, model, layer)

    def _queries(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.q_rank is None:
            q = self.q_proj(x)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q = q.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        return q[..., : self.nope_dim], q[..., self.nope_dim :]

    def _path(self, path: str, query: int, total: int) -> Any:
        if path == "auto":
            widths = (self.kv_rank, self.nope_dim, self.v_dim)
            recording = torch.is_grad_enabled() and self.kv_b_proj.weight.requires_grad
            cheap = not recording and absorbing_is_cheaper(*widths, query=query, cached=total)
            path = "absorbed" if cheap else "materialised"
        return absorbed_attention if path == "absorbed" else materialised_attention

    def _check_call(
        self, x: Tensor, cache: LatentCache | None, padding: Tensor | None, path: str
    ) -> None:
        check_axes("x", x, ("batch", "time", "width"))
        if x.shape[2] != self.d_model:
            raise UsageError(f"x must have d_model={self.d_model} features, got {x.shape[2]}")
        dtype = self.o_proj.weight.dtype
        casts = torch.is_autocast_enabled(x.device.type) if x.device.type != "meta" else False
        if x.dtype != dtype and not (casts and x.is_floating_point()):
            raise UsageError(
                f"x must be {dtype}, as the weights are, got {x.dtype}: convert it, or the module"
            )
        if path not in PATHS:
            raise UsageError(f"path must be one of {', '.join(PATHS)}, got {path!r}")
        if cache is not None and not isinstance(cache, LatentCache):
            raise UsageError(
                f"cache must be a LatentCache, got {type(cache).__name__}: caches of transformers "
                f"go with its own models and AbsorbedMLA"
            )
        past = len(cache) if cache is not None else 0
        if padding is None and past and cache is not None and cache.padded:
            raise UsageError(
                f"earlier tokens came with padding, so padding must cover all "
                f"{past + x.shape[1]} cached and new tokens, got None"
            )
        wanted = (x.shape[0], past + x.shape[1])
        if padding is not None and (padding.shape != wanted or padding.dtype != torch.bool):
            raise UsageError(
                f"padding must be bool of shape {wanted}, cached and new tokens, got "
                f"{padding.dtype} of shape {tuple(padding.shape)}"
            )

    def _linear(self, name: str, wide: int, out: int) -> nn.Linear:
        """Make a projection with weights drawn from the module's own seed."""
        layer = nn.utils.skip_init(nn.Linear, wide, out, bias=self.bias)
        draw = torch.Generator().manual_seed(split(self.seed, name))
        with torch.no_grad():
            layer.weight.uniform_(-(wide**-0.5), wide**-0.5, generator=draw)
            if layer.bias is not None:
                layer.bias.zero_()
        return layer


def _same(width: int, eps: float) -> nn.Module:  # noqa: ARG001 stands where a norm would
    return nn.Identity()


def _check_widths(sizes: Mapping[str, int], *, low: int) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int):
            raise UsageError(f"{name} must be a whole number, got {size!r}")
        check_range(name, size, low=low)


def _rotary(dim: int, theta: float, interleave: bool, given: Rotary | None) -> Rotary | None:
    if given is None:
        if dim % 2:
            raise UsageError(f"rope_dim must be even, for features turn in pairs, got {dim}")
        if not (_is_number(theta) and math.isfinite(theta) and theta > 1):
            raise UsageError(f"rope_theta must be a number above 1, got {theta!r}")
        return Rotary(dim, theta, interleaved=interleave) if dim else None
    if given.dim != dim:
        raise UsageError(
            f"rotary must turn rope_dim={dim} features, got one that turns {given.dim}"
        )
    return given


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(past: int, time: int, padding: Tensor | None, device: torch.device) -> Tensor:
    if padding is None:
        return torch.arange(past, past + time, device=device)
    return (padding.long().cumsum(1) - 1).clamp(min=0)[:, past:]
