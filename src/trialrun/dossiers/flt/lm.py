"""Byte models that differ in their attention alone.

The host is the Llama of `blocks.bytelm` with its attention replaced: embeddings, feed-forward
layers, norms, data and schedule are the same for every arm of a seed, down to the first weights
and to the part of the random features that sees contents.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from trialrun.attention.flt import FLTAttention, SpectralRPE
from trialrun.blocks.bytelm import Shape, make_model
from trialrun.claims.contract import On
from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng, split
from trialrun.dossiers.flt.rivals import Rival
from trialrun.material.stdlib_text import load_stdlib_text

SCALE = 4.0
"""Scale of the masks in bytes: frequencies reach about half a turn a byte, and more is waste."""

LINEAR = ("none", "absolute", "mixture", "local", "mixture-shuffled", "local-shuffled")
ARMS = (*LINEAR, "rotary", "toeplitz", "softmax", "mixture-all-pairs")


class Swapped(nn.Module):
    """Stands where a Llama layer keeps its attention."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        """Return what the attention makes of the hidden states."""
        return self.attention(hidden_states), None


class Placed(nn.Module):
    """Adds a learned vector for each place to the embedded bytes."""

    def __init__(self, embed: nn.Embedding, length: int, seed: int) -> None:
        super().__init__()
        self.embed = embed
        draw = torch.Generator().manual_seed(split(seed, "places"))
        size = embed.weight.detach().std()
        self.places = nn.Parameter(size * torch.randn(length, embed.embedding_dim, generator=draw))

    def forward(self, ids: Tensor) -> Tensor:
        """Embed ids (batch, time)."""
        return self.embed(ids) + self.places[: ids.shape[1]]


class Shuffled(SpectralRPE):
    """The control: each place's query side takes the frequencies in an order of its own.

    Sizes and what is learned stay as they are; that the product depends on the offset is lost.
    """

    order: Tensor

    def __init__(self, kind: str, *, heads: int, freqs: int, length: int, seed: int) -> None:
        super().__init__(1, kind, heads=heads, freqs=freqs, scale=SCALE, seed=seed)
        order = rng(seed, "shuffle").random((length, freqs)).argsort(1)
        order = np.concatenate((order, order + freqs), axis=1)
        self.register_buffer("order", torch.from_numpy(order))

    def features(self, coords: Tensor) -> Any:
        """Return the features of places, those of the query side in another order."""
        sides = super().features(coords)
        order = self.order[coords[:, 0].long()].expand_as(sides.query)
        return sides._replace(query=sides.query.gather(-1, order))


def make_lm(arm: str, shape: Shape, *, features: int, seed: int, freqs: int = 64) -> Any:
    """Make an untrained byte model with the attention of ``arm``.

    Raises
    ------
    ValueError
        If there is no such arm.
    """
    if arm not in ARMS:
        raise UsageError(f"arm must be one of {', '.join(ARMS)}, got {arm!r}")
    model = make_model(shape, seed=seed)
    for index, layer in enumerate(model.model.layers):
        own = split(seed, "attention", index)
        layer.self_attn = Swapped(_attention(arm, shape, features, freqs, own))
    if arm == "absolute":
        embed = model.model.embed_tokens
        assert isinstance(embed, nn.Embedding)
        model.model.embed_tokens = Placed(embed, shape.length, seed)
    return model


def _attention(arm: str, shape: Shape, features: int, freqs: int, seed: int) -> nn.Module:
    size = (shape.width, shape.heads)
    model = _bare_attention(arm, shape, features, freqs, seed)
    plain = model.inner if isinstance(model, Rival) else model
    if getattr(plain, "projection", None) is not None and plain.rpe is None:
        # Contents meet the same random features as beside a mask: those of the wider draw.
        beside = SpectralRPE(1, "shift", freqs=freqs)
        wide = FLTAttention(*size, rpe=beside, features=features, causal=True, seed=seed)
        plain.projection.copy_(wide.projection[..., : plain.projection.shape[-1]])
    return model


def _bare_attention(
    arm: str, shape: Shape, features: int, freqs: int, seed: int
) -> FLTAttention | Rival:
    size = (shape.width, shape.heads)
    kind, _, changed = arm.partition("-")
    rpe: SpectralRPE | None = None
    if changed == "shuffled":
        rpe = Shuffled(kind, heads=shape.heads, freqs=freqs, length=shape.length, seed=seed)
    elif kind in ("mixture", "local"):
        rpe = SpectralRPE(1, kind, heads=shape.heads, freqs=freqs, scale=SCALE, seed=seed)
    if arm in LINEAR:
        return FLTAttention(*size, rpe=rpe, features=features, causal=True, seed=seed)
    settings: dict[str, Any] = {"features": features, "length": shape.length, "seed": seed}
    return Rival(*size, scheme=changed or arm, rpe=rpe, **settings)


def save_lm(model: Any, folder: Path) -> None:
    """Write a byte model's weights as safetensors."""
    save_model(model, str(folder / "model.safetensors"))


def load_lm(folder: Path, arm: str, shape: Shape, *, features: int, seed: int) -> Any:
    """Read what `save_lm` wrote, for the same settings."""
    model = make_lm(arm, shape, features=features, seed=seed)
    load_model(model, str(folder / "model.safetensors"))
    return model.eval()


def corpus(on: On | None) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return bytes to train on and bytes held out: the standard library's, or the user's file.

    A file of the user's own keeps its last tenth aside.
    """
    if on is None:
        text = load_stdlib_text()
        return text.train, text.held_out
    data = np.frombuffer(Path(on.path).read_bytes(), dtype=np.uint8)
    if len(data) < 200_000:
        raise UsageError(
            f"--on {on.path}: at least 200000 bytes of text are needed, got {len(data)}"
        )
    cut = len(data) * 9 // 10
    return data[:cut], data[cut:]
