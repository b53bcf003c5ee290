"""Other ways to give linear attention positions, and softmax attention, meant as a ceiling.

All share FLTAttention's projections and random features for their seed. Causal and written out
over all pairs, which gives the numbers of their linear forms and is faster at these lengths; the
linear form of the Toeplitz mask, by FFT, is `toeplitz_by_fft`, for the claim about cost.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trialrun.attention._flt_features import Sized, softmax_features
from trialrun.attention.flt import FLTAttention, SpectralRPE
from trialrun.blocks.rotary import Rotary


class Rival(nn.Module):
    """Causal attention over tokens (batch, time, width) with another position scheme.

    ``rotary`` turns features by their place, in the numerator alone, as rotary embedding is
    used with linear attention; ``toeplitz`` multiplies the weights by exp(b(i - j)) with a free b
    for every distance up to ``length`` (the mask that NPRF evaluates by FFT); ``all-pairs`` does so
    with the mask ``rpe``, which then goes round the random features and their noise; ``softmax``
    adds a free b to the logits of softmax attention.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        scheme: str,
        features: int,
        length: int,
        seed: int,
        rpe: SpectralRPE | None = None,
    ) -> None:
        super().__init__()
        self.scheme, self.heads = scheme, heads
        self.inner = FLTAttention(width, heads, features=features, causal=True, seed=seed)
        self.rotary = Rotary(features // 2 * 2)
        if scheme == "softmax":
            self.inner.register_buffer("projection", None)
        self.rpe = rpe
        if scheme in ("toeplitz", "softmax"):
            self.bias = nn.Parameter(torch.zeros(heads, length))

    def forward(self, x: Tensor) -> Tensor:
        """Attend causally over x (batch, time, width)."""
        split = self.inner.qkv(x).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        weights, total = self._weights(query, key)
        found = weights @ value / total.unsqueeze(-1)
        return self.inner.out(found.transpose(1, 2).flatten(2))

    def _weights(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        time, width = query.shape[2], query.shape[3]
        step = torch.arange(time, device=query.device)
        later = step > step[:, None]
        if self.scheme == "softmax":
            scores = query @ key.transpose(-1, -2) * width**-0.5 + self._by_distance(step)
            weights = scores.masked_fill(later, -torch.inf).softmax(-1)
            return weights, weights.sum(-1)
        queries, keys = self._features(query, key)
        # Causal sizes: the largest so far, so that the future cannot be felt.
        gap = keys.log_size.unsqueeze(-2) - keys.log_size.cummax(-1).values.unsqueeze(-1)
        gap = gap.masked_fill(later, -torch.inf)
        if self.scheme != "rotary":
            weights = (
                queries @ keys.values.transpose(-1, -2) * (gap + self._by_distance(step)).exp()
            )
            return weights, weights.sum(-1)
        total = (queries @ keys.values.transpose(-1, -2) * gap.exp()).sum(-1)
        turned = self.rotary(queries, step) @ self.rotary(keys.values, step).transpose(-1, -2)
        return turned * gap.exp(), total

    def _features(self, query: Tensor, key: Tensor) -> tuple[Tensor, Sized]:
        shrink = query.shape[-1] ** -0.25
        rows = self.inner.projection.transpose(-1, -2)
        queries = softmax_features(query * shrink @ rows, torch.zeros_like(query[..., 0]))
        keys = softmax_features(key * shrink @ rows, (key * shrink).square().sum(-1))
        return queries.values, keys

    def _by_distance(self, step: Tensor) -> Tensor:
        if self.rpe is not None:
            places = self.rpe(step[:, None])
            return places.query @ places.key.transpose(-1, -2)
        return self.bias[:, (step[:, None] - step).clamp(min=0)]


def toeplitz_by_fft(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Attend causally with weights (q_i . k_j) exp(b(i - j)), in time L log L.

    ``query`` and ``key`` are features (batch, heads, time, features), ``bias`` is (heads, time).
    """
    time = query.shape[2]
    wide = torch.cat((value, torch.ones_like(value[..., :1])), dim=-1)
    outer = key.unsqueeze(-1) * wide.unsqueeze(-2)
    mask = torch.fft.rfft(bias.exp(), n=2 * time)[..., None, None]
    mixed = torch.fft.irfft(torch.fft.rfft(outer, n=2 * time, dim=2) * mask, n=2 * time, dim=2)
    total = (query.unsqueeze(-2) @ mixed[:, :, :time]).squeeze(-2)
    return total[..., :-1] / total[..., -1:]
