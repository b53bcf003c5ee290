"""Nets that predict the next symbol: an input layer, a body that is causal, an output layer.

The input at t is symbol t - 1, or a begin mark at t = 0, so outputs line up with the symbols they
predict (the paper's code emits after reading, which shifts them by one).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from trialrun.sequence._alphabet import whole
from trialrun.sequence._attending import POSITIONS, SNAIL, Transformer
from trialrun.sequence._recurrent import Recurrent, StackRNN

ARCHITECTURES = ("rnn", "lstm", "gru", "stack-rnn", "snail", "transformer", "mlp-window")


@dataclass(frozen=True, kw_only=True)
class NetShape:
    """Sizes of a net. Each architecture reads those that it has.

    Parameters
    ----------
    width : int, default=64
        Features per step.
    layers : int, default=1
        Recurrent layers, Transformer blocks, SNAIL rounds or hidden layers of the window MLP.
    heads : int, default=8
        Attention heads (transformer); must divide ``width``.
    widening : int, default=4
        Hidden over outer width in a Transformer block.
    dropout : float in [0, 1), default=0
        While training: between recurrent layers, and on Transformer updates (the paper: 0.1).
    positions : str, default="sincos"
        How a Transformer knows positions: ``sincos``, ``alibi`` or ``relative``.
    window : int, default=8
        Symbols that the window MLP sees.
    reach : int, default=64
        Steps that SNAIL's convolutions cover, and cells of the stack.
    features : int, default=16
        Features that each part of SNAIL adds, and size of a cell of the stack.

    Raises
    ------
    ValueError
        If a size is out of range.
    """

    width: int = 64
    layers: int = 1
    heads: int = 8
    widening: int = 4
    dropout: float = 0.0
    positions: str = "sincos"
    window: int = 8
    reach: int = 64
    features: int = 16

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "widening", "window", "features"):
            whole(name, getattr(self, name), low=1)
        whole("reach", self.reach, low=2)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout!r}")
        if self.positions not in POSITIONS:
            known = ", ".join(POSITIONS)
            raise ValueError(f"positions must be one of {known}, got {self.positions!r}")


class _Window(nn.Module):
    """A net without memory: it sees the last ``window`` inputs and nothing else."""

    def __init__(self, width: int, layers: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.first = nn.Linear(width * window, width)
        self.rest = nn.Sequential(
            *(m for _ in range(layers) for m in (nn.ReLU(), nn.Linear(width, width)))
        )

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        """Map every run of ``window`` steps to one; the past of the first is the first."""
        past = x[:, :1].expand(-1, self.window - 1, -1)
        seen = torch.cat([past, x], dim=1).unfold(1, self.window, 1)
        return self.rest(self.first(seen.flatten(2)))


class NextSymbolNet(nn.Module):
    """Give the logits of every symbol at every time from the symbols before it.

    Parameters
    ----------
    architecture : str
        One of ``rnn``, ``lstm``, ``gru``, ``stack-rnn``, ``snail``, ``transformer`` and
        ``mlp-window``.
    symbols : int
        Size of the alphabet.
    shape : NetShape
        Sizes.

    Raises
    ------
    ValueError
        For an unknown architecture, or heads that don't divide the width.
    """

    def __init__(self, architecture: str, symbols: int, shape: NetShape) -> None:
        super().__init__()
        if architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise ValueError(f"architecture must be one of {known}, got {architecture!r}")
        if architecture == "transformer" and shape.width % shape.heads:
            raise ValueError(
                f"width must be a multiple of heads, got width={shape.width} and "
                f"heads={shape.heads}"
            )
        self.begin = symbols
        self.embed = nn.Embedding(symbols + 1, shape.width)
        self.body = _body(architecture, shape)
        self.head = nn.Sequential(
            nn.Linear(shape.width, shape.width), nn.ReLU(), nn.Linear(shape.width, symbols)
        )

    def forward(self, x: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time symbols"]:
        """Return logits; entry t is a function of ``x[:, :t]``."""
        first = torch.full_like(x[:, :1], self.begin)
        return self.head(self.body(self.embed(torch.cat([first, x[:, :-1]], dim=1))))


def _body(architecture: str, shape: NetShape) -> nn.Module:
    if architecture in ("rnn", "lstm", "gru"):
        return Recurrent(architecture, shape.width, shape.layers, shape.dropout)
    if architecture == "stack-rnn":
        return StackRNN(shape.width, shape.reach, shape.features)
    if architecture == "snail":
        return SNAIL(shape.width, shape.layers, shape.features, shape.reach)
    if architecture == "mlp-window":
        return _Window(shape.width, shape.layers, shape.window)
    return Transformer(
        shape.width, shape.layers, shape.heads, shape.widening, shape.dropout, shape.positions
    )
