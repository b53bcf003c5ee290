"""Frequency-aware matching and multi-spectral fusion (bo2024famnet).

Written from the description of the module, no author code was used; parameter names follow the
authors' checkpoints so that those load. Ours: bands computed by a real transform, the choice of
what each band is weighted by, ``layout="grid"`` and ``cutoff=None``.
"""

from __future__ import annotations

from trialrun.fewshot import _famnet_stack  # noqa: F401

# isort: split
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from trialrun.core.shapes import check_axes, check_range
from trialrun.fewshot._famnet_bands import (
    check_cutoff,
    foreground_tokens,
    split_bands,
    split_token_bands,
)
from trialrun.fewshot._famnet_init import seeded

LAYOUTS = ("tokens", "grid")
WEIGHTINGS = ("sim", "1-sim", "none", "drop")
_SLOPES = {"sim": (1.0, 0.0), "1-sim": (-1.0, 1.0), "none": (0.0, 1.0)}
"""What a band is multiplied by: slope and offset of the similarity."""
PAPER_WEIGHTING = ("1-sim", "sim", "1-sim")


class Bands(NamedTuple):
    """Matched tokens of each band, (batch, channels, 2 x n_tokens): support's, then query's."""

    low: Tensor
    middle: Tensor
    high: Tensor


class _Matching(nn.Module):
    """One band's matching along the token axis; shared by the bands."""

    def __init__(self, n_tokens: int) -> None:
        super().__init__()
        hidden = max(1, n_tokens // 10)

        def bottleneck(tokens: int, inner: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(tokens, inner), nn.ReLU(), nn.Linear(inner, tokens))

        self.fc_spt = bottleneck(n_tokens, hidden)
        self.fc_qry = bottleneck(n_tokens, hidden)
        self.fc_fusion = bottleneck(2 * n_tokens, max(1, n_tokens // 5))

    def similarity(self, support: Tensor, query: Tensor) -> Tensor:
        """Return how alike two lists are, token by token, from 0 to 1; the channels' axis is 1."""
        return torch.sigmoid(F.cosine_similarity(support, query, dim=-2))[..., None, :]

    def forward(self, support: Tensor, query: Tensor, words: Sequence[str]) -> Tensor:
        """Match stacked bands, each weighted by its word: (bands, batch, channels, tokens)."""
        similar = self.similarity(support, query)
        turned = similar.new_tensor([_SLOPES[word] for word in words]).view(-1, 1, 1, 1, 2)
        weights = turned[..., 0] * similar + turned[..., 1]
        both = [F.relu(self.fc_spt(support)) * weights, F.relu(self.fc_qry(query)) * weights]
        return F.relu(self.fc_fusion(torch.cat(both, dim=-1)))


class FrequencyAwareMatching(nn.Module):
    """Match the foreground of support and query band by band.

    Parameters
    ----------
    n_tokens : int, at least 1
        Length N to which the list of foreground pixels is pooled.
    cutoff : float in (0, 0.5), or None
        Where the bands part, as a share of the spectrum's largest radius. None splits nothing:
        all of the signal is the middle band, and low and high are zero.
    layout : {"tokens", "grid"}
        ``tokens`` folds the list of foreground pixels into a square and splits that, as the paper's
        network does; ``grid`` splits the feature map itself, which is another method.
    weighting : tuple of three words
        For low, middle, high: ``sim``, ``1-sim``, ``none`` or ``drop``.
    seed : int
        Of the weights.

    Notes
    -----
    With ``tokens`` nothing here is invariant: shifting or turning a slice changes the order in
    which pixels are met, hence the square, hence the bands. An organ of fewer than ``n_tokens``
    pixels is stretched by repetition, which moves it towards low frequencies.

    Raises
    ------
    ValueError
        If a setting is out of range, or features and masks do not go together.

    Examples
    --------
    >>> match = FrequencyAwareMatching(n_tokens=16)
    >>> maps, mask = torch.rand(2, 8, 6, 6), torch.ones(2, 24, 24, dtype=torch.bool)
    >>> match(maps, mask, maps, mask).middle.shape
    torch.Size([2, 8, 32])
    """

    def __init__(
        self,
        n_tokens: int = 900,
        cutoff: float | None = 0.30,
        *,
        layout: str = "tokens",
        weighting: tuple[str, str, str] = PAPER_WEIGHTING,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_range("n_tokens", n_tokens, low=1, unit="token")
        if n_tokens != int(n_tokens):
            raise ValueError(f"n_tokens must be a whole number, got {n_tokens!r}")
        n_tokens = int(n_tokens)
        if cutoff is not None:
            check_cutoff(cutoff)
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
        if len(weighting) != 3 or any(word not in WEIGHTINGS for word in weighting):
            raise ValueError(
                f"weighting must be three of {', '.join(WEIGHTINGS)}, for low, middle and high, "
                f"got {weighting!r}"
            )
        self.n_tokens, self.cutoff, self.layout = n_tokens, cutoff, layout
        self.weighting = tuple(weighting)
        with seeded(seed, "matching"):
            self.attention_matching = _Matching(n_tokens)

    def tokens(
        self,
        features: Float[Tensor, "batch channels h w"],
        mask: Bool[Tensor, "batch rows columns"],
    ) -> tuple[Tensor, ...]:
        """Return the bands of one image's foreground tokens, each (batch, channels, n_tokens)."""
        if self.layout == "grid" and self.cutoff is not None:
            # One matrix for all bands: their channels are stacked.
            stacked = torch.cat(split_bands(features, self.cutoff), dim=1)
            return foreground_tokens(stacked, mask, self.n_tokens).chunk(3, dim=1)
        listed = foreground_tokens(features, mask, self.n_tokens)
        if self.cutoff is None:
            return torch.zeros_like(listed), listed, torch.zeros_like(listed)
        return split_token_bands(listed, self.cutoff)

    def forward(
        self,
        support_features: Tensor,
        support_mask: Tensor,
        query_features: Tensor,
        query_mask: Tensor,
    ) -> Bands:
        """Match the two foregrounds.

        ``support_features`` and ``query_features`` are (batch, channels, h, w); ``support_mask``
        and ``query_mask`` are bool, (batch, rows, columns), at any size. A query without
        foreground counts as zeros.
        """
        for name, features, mask in (
            ("support", support_features, support_mask),
            ("query", query_features, query_mask),
        ):
            check_axes(f"{name}_features", features, ("batch", "channels", "h", "w"))
            check_axes(f"{name}_mask", mask, ("batch", "rows", "columns"))
            if len(mask) != len(features):
                raise ValueError(
                    f"{name}_mask must have one mask for each of {len(features)} images, "
                    f"got {len(mask)}"
                )
            if mask.dtype != torch.bool:
                raise ValueError(f"{name}_mask must be bool, got {mask.dtype}: use mask > 0.5")
        if support_features.shape[:2] != query_features.shape[:2]:
            raise ValueError(
                "query_features must have the support's batch and channels "
                f"{tuple(support_features.shape[:2])}, got {tuple(query_features.shape[:2])}"
            )
        support = self.tokens(support_features, support_mask)
        query = self.tokens(query_features, query_mask)
        words = self.weighting if self.cutoff is not None else ("drop", self.weighting[1], "drop")
        # Bands share one module: those that count go through it together.
        used = [i for i, word in enumerate(words) if word != "drop"]
        empty = torch.cat([torch.zeros_like(support[0]), torch.zeros_like(query[0])], dim=-1)
        bands = [empty] * 3
        if used:
            stacked = (torch.stack([part[i] for i in used]) for part in (support, query))
            matched = self.attention_matching(*stacked, [words[i] for i in used])
            for i, band in zip(used, matched):
                bands[i] = band
        return Bands(*bands)


class _CrossAttention(nn.Module):
    """Single-head attention of one band's tokens over another's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)

    def forward(self, asking: Tensor, told: Tensor) -> Tensor:
        # An axis for the one head, without which the fused kernel is not chosen.
        parts = (self.query(asking), self.key(told), self.value(told))
        return F.scaled_dot_product_attention(*(part[:, None] for part in parts))[:, 0]


class MultiSpectralFusion(nn.Module):
    """Let the middle band ask the low and the high one, and add the three up.

    Parameters
    ----------
    channels : int, at least 1
        Width of a token.
    seed : int
        Of the weights.

    Raises
    ------
    ValueError
        If the width is below 1, or a band has another shape.

    Examples
    --------
    >>> band = torch.rand(2, 8, 32)
    >>> MultiSpectralFusion(8)(band, band, band).shape
    torch.Size([2, 8, 32])
    """

    def __init__(self, channels: int = 512, *, seed: int = 0) -> None:
        super().__init__()
        check_range("channels", channels, low=1)
        self.channels = channels
        with seeded(seed, "fusion"):
            self.CA1 = _CrossAttention(channels)
            self.CA2 = _CrossAttention(channels)

    def forward(self, low: Tensor, middle: Tensor, high: Tensor) -> Tensor:
        """Fuse ``low``, ``middle`` and ``high``, each (batch, channels, tokens)."""
        for name, band in (("low", low), ("middle", middle), ("high", high)):
            check_axes(name, band, ("batch", "channels", "tokens"))
            if band.shape[1] != self.channels or band.shape != middle.shape:
                raise ValueError(
                    f"{name} must have {self.channels} channels and the middle band's shape "
                    f"{tuple(middle.shape)}, got {tuple(band.shape)}"
                )
        low, asking, high = (band.transpose(1, 2) for band in (low, middle, high))
        fused = self.CA1(asking, low) + asking + self.CA2(asking, high)
        return F.relu(fused).transpose(1, 2)
