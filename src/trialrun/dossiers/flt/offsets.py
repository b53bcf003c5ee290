"""A task that only positions can solve: name the symbol that stood k places back.

One causal head attends over one-hot symbols with weights that see places and nothing else: queries
and keys are the same for every symbol. What it mixes is read linearly, with no path around the
attention. To name the symbol k back the weight at distance k must be the largest of all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trialrun.attention._flt_features import Sized, orthogonal_rows, softmax_features
from trialrun.attention._flt_linear import attend_causal, no_sums
from trialrun.attention.flt import SpectralRPE
from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng, split
from trialrun.dossiers.flt.lm import Shuffled

SYMBOLS = 16
LENGTH = 32
ARMS = ("one-side", "both-sides", "one-side-shuffled", "absolute", "none")


class OneHead(nn.Module):
    """Mix one-hot symbols by place, and read the mixture linearly.

    The ``absolute`` arm gives every place a learned query and key in place of a mask.
    """

    projection: Tensor

    def __init__(self, arm: str, *, features: int, freqs: int, seed: int) -> None:
        super().__init__()
        if arm not in ARMS:
            raise UsageError(f"arm must be one of {', '.join(ARMS)}, got {arm!r}")
        self.rpe = _mask(arm, freqs, seed)
        width = 2 * freqs
        draw = torch.Generator().manual_seed(split(seed, "places"))
        self.places = None
        if arm == "absolute":
            self.places = nn.Parameter(0.1 * torch.randn(2, LENGTH, width, generator=draw))
        rows = orthogonal_rows(features, width, draw).float()
        self.register_buffer("projection", rows)
        self.read = nn.Linear(SYMBOLS, SYMBOLS)
        with torch.no_grad():
            self.read.weight.copy_(torch.eye(SYMBOLS))
            self.read.bias.zero_()

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits (batch, time, symbols)."""
        value = nn.functional.one_hot(ids, SYMBOLS).float().unsqueeze(1)
        query, key = self._sides(ids)
        queries = softmax_features(query @ self.projection.T, torch.zeros_like(query[..., 0]))
        keys = softmax_features(key @ self.projection.T, key.square().sum(-1))
        each = (len(ids), 1, *query.shape[-2:])
        features = queries.values.expand(*each[:3], -1)
        sized = Sized(keys.values.expand(*each[:3], -1), keys.log_size.expand(*each[:3]))
        found, _ = attend_causal(features, sized, value, no_sums(features, value))
        # A fixed gain: shares of a mixture are at most 1, and logits must be free to grow.
        return self.read(10 * found.squeeze(1))

    def _sides(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        if self.rpe is not None:
            query, key = self.rpe(torch.arange(LENGTH, device=ids.device)[:, None])
            return query, key
        if self.places is not None:
            query, key = self.places.unsqueeze(1)
            return query, key
        nothing = self.projection.new_zeros(1, LENGTH, self.projection.shape[1])
        return nothing, nothing


def _mask(arm: str, freqs: int, seed: int) -> SpectralRPE | None:
    own = split(seed, "mask")
    if arm == "one-side-shuffled":
        return Shuffled("mixture", heads=1, freqs=freqs, length=LENGTH, seed=own)
    if arm in ("absolute", "none"):
        return None
    return SpectralRPE(1, "mixture", sides=arm.partition("-")[0], freqs=freqs, scale=2.0, seed=own)


def draw_ids(draw: np.random.Generator, count: int) -> Tensor:
    """Draw sequences of symbols, (count, time)."""
    return torch.from_numpy(draw.integers(0, SYMBOLS, (count, LENGTH)))


def accuracy(
    arm: str, back: int, *, steps: int, scored: int, features: int, seed: int, device: str
) -> float:
    """Train one head to name the symbol ``back`` places back, and return its accuracy."""
    head: Any = OneHead(arm, features=features, freqs=32, seed=seed).to(torch.device(device))
    draw = rng(seed, "offsets", back)
    optimiser = torch.optim.Adam(head.parameters(), lr=3e-2)
    for _ in range(steps):
        ids = draw_ids(draw, 16).to(device)
        logits = head(ids)[:, back:]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, : LENGTH - back].flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    ids = draw_ids(rng(seed, "scored", back), scored).to(device)
    with torch.no_grad():
        named = head(ids)[:, back:].argmax(-1)
    return float((named == ids[:, : LENGTH - back]).float().mean())
