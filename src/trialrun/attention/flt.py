"""FourierLearner-Transformers: linear attention with a learned position mask (choromanski2023flt).

Attention exp(q_i . k_j / sqrt(d) + f(r_i - r_j)), rows normalised, in time linear in length: the
mask f is learned through its Fourier transform, its sampled waves are appended to queries and
keys, and positive random features replace the exponential (choromanski2021performers).

Written from the digest, the formulas and the public functions of scenic2023performer; no author
code was used. Ours, not theirs: the causal form, chunked and recurrent; sizes taken out token by
token, so that no output depends on batch mates or on the future; the one-sided spectrum (theirs is
squared); one projection a head; frequencies on a grid or evenly spread. What differs: no
quartic features, no attention dropout, no packed segments.
"""

from __future__ import annotations

from typing import Any

from trialrun.attention import _stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from trialrun.attention._flt_checks import FLTState, check_state, check_tokens, places_of
from trialrun.attention._flt_features import (
    MAPS,
    Sized,
    leave_out,
    orthogonal_rows,
    relu_features,
    softmax_features,
)
from trialrun.attention._flt_linear import (
    Sums,
    add_keys,
    attend_causal,
    look,
    no_sums,
)
from trialrun.attention._flt_rpe import Sides, SpectralRPE, check_whole
from trialrun.core.errors import UsageError
from trialrun.core.seeds import split
from trialrun.core.shapes import check_axes

__all__ = ["FLTAttention", "FLTState", "SpectralRPE"]

SEGMENT = 1024
"""Tokens read at a time; a multiple of a chunk."""


class FLTAttention(nn.Module):
    """Attend in linear time, with a learned mask over relative positions (choromanski2023flt).

    Parameters
    ----------
    width : int
        Width of the tokens; a multiple of ``heads``.
    heads : int
        Attention heads.
    rpe : SpectralRPE or None
        The mask; its ``heads`` are 1 or these. None attends without positions (a Performer).
    features : int
        Random features for each head. Their noise falls as one over the root of their number.
    feature_map : str
        ``softmax``: positive features, which estimate the exponential above without bias;
        ``relu``: max(., 0), another kernel, often as good once trained.
    causal : bool
        Let a token see itself and those before it only; needed by `step` and `prefill`.
    seed : int
        Decides projections and initial weights. Give every layer its own.

    Notes
    -----
    Random features are noisy, by a factor of about exp(|q + k|^2 / sqrt(d) + 2 (s + f)) - 1 in
    relative variance over their number; s is the mean size of the mask's waves, which is no less
    than the mask. A query that shares no feature with any key it may see, within the range of
    float32, gives 0: some do when logits of contents reach the hundreds.

    Raises
    ------
    ValueError
        If a setting, a shape or a state does not fit; the sentence says which and what to do.

    Examples
    --------
    >>> import torch
    >>> attn = FLTAttention(8, 2, rpe=SpectralRPE(heads=2), features=16, causal=True)
    >>> x = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    >>> y, state = attn.prefill(x[:, :4])
    >>> last, state = attn.step(x[:, 4], state)
    >>> torch.allclose(last, attn(x)[:, 4], atol=1e-5), state.position
    (True, 5)
    """

    projection: Tensor
    draws: Tensor

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        rpe: SpectralRPE | None = None,
        features: int = 128,
        feature_map: str = "softmax",
        causal: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("heads", heads), ("features", features)):
            check_whole(name, value)
        if width % heads:
            raise UsageError(f"width must be a multiple of heads={heads}, got {width}")
        if feature_map not in MAPS:
            raise UsageError(f"feature_map must be one of {', '.join(MAPS)}, got {feature_map!r}")
        if rpe is not None and not isinstance(rpe, SpectralRPE):
            raise UsageError(f"rpe must be a SpectralRPE or None, got {type(rpe).__name__}")
        if rpe is not None and rpe.heads not in (1, heads):
            raise UsageError(f"rpe must have 1 or {heads} heads, got {rpe.heads}")
        self.width, self.heads, self.causal = width, heads, causal
        self.features, self.feature_map, self.seed = features, feature_map, seed
        self.rpe = rpe
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(split(seed, "weights"))
            self.qkv = nn.Linear(width, 3 * width, bias=False)
            self.out = nn.Linear(width, width, bias=False)
        self.register_buffer("projection", self._draw_projection())
        self._owner = object()

    def _draw_projection(self) -> Tensor:
        seed = split(self.seed, "projection", int(self.draws))
        generator = torch.Generator().manual_seed(seed)
        wide = self.width // self.heads + (2 * self.rpe.freqs if self.rpe is not None else 0)
        rows = [orthogonal_rows(self.features, wide, generator) for _ in range(self.heads)]
        return torch.stack(rows).float()

    @property
    def _mark(self) -> tuple[object, object]:
        return self._owner, None if self.rpe is None else self.rpe.mark

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return (
            f"{self.width}, {self.heads}, features={self.features}, "
            f"feature_map={self.feature_map!r}, causal={self.causal}"
        )

    def redraw(self) -> None:
        """Draw other projections, the next of a series that the seed decides.

        States from before are refused afterwards. The mask's frequencies stay as they are: see
        `SpectralRPE.redraw`.
        """
        self.draws += 1
        self.projection.copy_(self._draw_projection())
        self._owner = object()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._owner = object()

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        coords: Shaped[Tensor, "... _"] | None = None,
        *,
        padding: Shaped[Tensor, "... _"] | None = None,
    ) -> Float[Tensor, "batch time width"]:
        """Attend over a batch of sequences or point sets.

        Parameters
        ----------
        x : tensor of shape (batch, time, width)
        coords : tensor of shape (time, dim) or (batch, time, dim), or None
            Where each token lies, in the unit of the mask's ``scale``. None is the index of the
            token, for a mask of one dimension.
        padding : bool tensor of shape (batch, time) or None
            True where a token is real; others weigh nothing and give 0, but keep their index.
            Whatever stands in them or in their coordinates is not looked at.
        """
        check_tokens(x, padding, self.qkv.weight)
        if not x.numel():
            return torch.zeros_like(x)
        places, projected = places_of(x, coords, self.rpe, real=padding), self.qkv(x)
        with torch.autocast(x.device.type, enabled=False):
            if padding is not None:
                # Whatever stands in a padded place, infinite or missing numbers too, is gone here.
                projected = projected.masked_fill(~padding.unsqueeze(-1), 0.0)
            found, _ = self._read(projected, places, padding, None)
            if padding is not None:
                found = found * padding[:, None, :, None]
        return self._join(found, x)

    def prefill(
        self,
        x: Float[Tensor, "batch time width"],
        state: FLTState | None = None,
        coords: Shaped[Tensor, "... _"] | None = None,
    ) -> tuple[Float[Tensor, "batch time width"], FLTState]:
        """Read several tokens after those in ``state``; return their outputs and the new state.

        Parameters
        ----------
        x : tensor of shape (batch, time, width)
        state : FLTState or None
            From this module, since it or its mask was last redrawn; None begins anew.
        coords : tensor of shape (time, dim) or (batch, time, dim), or None
            As in `forward`; None counts on from the state. The reach of given ones is checked
            within a call, not from one to the next.
        """
        check_tokens(x, None, self.qkv.weight)
        if not self.causal:
            raise UsageError(
                "reading step by step needs causal=True, got an attention that sees the future"
            )
        check_state(x, state, self._mark)
        position = state.position if state is not None else 0
        places, projected = places_of(x, coords, self.rpe, first=position), self.qkv(x)
        with torch.autocast(x.device.type, enabled=False):
            past = state.sums if state is not None else None
            found, sums = self._read(projected, places, None, past)
        return self._join(found, x), FLTState(sums, position + x.shape[1], self._mark)

    def step(
        self,
        x: Float[Tensor, "batch width"],
        state: FLTState | None = None,
        coords: Shaped[Tensor, "... _"] | None = None,
    ) -> tuple[Float[Tensor, "batch width"], FLTState]:
        """Read one token of each sequence in constant time and memory.

        Parameters
        ----------
        x : tensor of shape (batch, width)
        state : FLTState or None
            From the step before; None begins anew.
        coords : tensor of shape (dim,) or (batch, dim), or None
            Where the token lies; None counts on from the state.
        """
        check_axes("x", x, ("batch", "width"))
        if isinstance(coords, Tensor) and coords.ndim:
            coords = coords.unsqueeze(-2)
        y, state = self.prefill(x.unsqueeze(1), state, coords)
        return y.squeeze(1), state

    def _read(
        self, projected: Tensor, places: Tensor | None, padding: Tensor | None, past: Sums | None
    ) -> tuple[Tensor, Sums]:
        """Attend a segment at a time: what one needs stays in a processor's cache."""
        parts = []
        for first in range(0, max(1, projected.shape[1]), SEGMENT):
            cut = slice(first, first + SEGMENT)
            query, key, value = self._sized(
                projected[:, cut],
                None if places is None else places[..., cut, :],
                None if padding is None else padding[:, cut],
            )
            past = no_sums(query, value) if past is None else past
            if self.causal and value.shape[2] != 1:
                found, past = attend_causal(query, key, value, past)
            else:
                past = add_keys(key, value, past)
                found = look(query, past) if self.causal else query
            parts.append(found)
        assert past is not None
        if not self.causal:
            parts = [look(query, past) for query in parts]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)), past

    def _sized(
        self, projected: Tensor, places: Tensor | None, padding: Tensor | None
    ) -> tuple[Tensor, Sized, Tensor]:
        """Return query features (their sizes cancel), sized key features, and values."""
        kind = torch.float64 if projected.dtype == torch.float64 else torch.float32
        split_heads = projected.to(kind).unflatten(-1, (3, self.heads, -1))
        query, key, value = split_heads.permute(2, 0, 3, 1, 4)
        head = query.shape[-1]
        shrink = head**-0.25
        content, position = self.projection.to(kind).split(
            [head, self.projection.shape[2] - head], dim=-1
        )
        sides = None
        if self.rpe is not None and places is not None:
            sides = self._sides(places, kind)
            if self.rpe.kind == "scenic":
                # There the features' width is that of content and places together.
                wide = (head + 2 * self.rpe.freqs) ** -0.25
                sides = Sides(*(side * (wide / shrink) for side in sides))
                shrink = wide
        query, key = query * shrink, key * shrink
        content = content.transpose(-1, -2)
        query_logits, key_logits = query @ content, key @ content
        length = key.square().sum(-1)
        if sides is not None:
            query_logits = query_logits + sides.query @ position.transpose(-1, -2)
            key_logits = key_logits + sides.key @ position.transpose(-1, -2)
            length = length + sides.key.square().sum(-1)
        if self.feature_map == "relu":
            queries, keys = relu_features(query_logits), relu_features(key_logits)
        else:
            queries = softmax_features(query_logits, torch.zeros_like(length))
            keys = softmax_features(key_logits, length)
        if padding is not None:
            keys = leave_out(keys, padding)
        return queries.values, keys, value

    def _sides(self, places: Tensor, kind: torch.dtype) -> Sides:
        """Return the features of places as (heads or 1, time, ...) or (batch, heads or 1, ...)."""
        assert self.rpe is not None
        sides = self.rpe.features(places)
        if places.ndim == 3:
            sides = Sides(*(side.transpose(0, 1) for side in sides))
        return Sides(*(side.to(kind) for side in sides))

    def _join(self, found: Tensor, x: Tensor) -> Tensor:
        return self.out(found.transpose(1, 2).flatten(2).to(x.dtype))
