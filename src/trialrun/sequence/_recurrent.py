"""Recurrent bodies: features (batch, time, width) to features of the same shape, in order."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Recurrent(nn.Module):
    """A stack of plain, LSTM or GRU layers.

    Parameters
    ----------
    kind : str
        ``rnn``, ``lstm`` or ``gru``.
    width : int
        Size of the state.
    layers : int
        Number of layers.
    dropout : float in [0, 1)
        Dropped between layers.
    """

    def __init__(self, kind: str, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        cell = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[kind]
        between = dropout if layers > 1 else 0.0
        self.cell = cell(width, width, layers, batch_first=True, dropout=between)

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        """Run over time from an empty state."""
        return self.cell(x)[0]


class StackRNN(nn.Module):
    """A plain recurrent layer that reads and writes a differentiable stack.

    At every step a softmax weighs three actions, and the stack becomes their average: push a
    new value, pop the top, or leave it (joulin2015stack; the action set of genewein2023mbml).

    Parameters
    ----------
    width : int
        Size of the state.
    cells : int
        Cells of the stack that are kept, at least 2.
    cell_width : int
        Size of a cell.
    """

    def __init__(self, width: int, cells: int, cell_width: int) -> None:
        super().__init__()
        self.cells, self.cell_width = cells, cell_width
        self.read = nn.Linear(width, width)
        self.keep = nn.Linear(width + cell_width, width, bias=False)
        self.act = nn.Linear(width, 3)
        self.value = nn.Linear(width, cell_width)

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        """Run over time from an empty state and an empty stack."""
        batch, _, width = x.shape
        state = x.new_zeros(batch, width)
        stack = x.new_zeros(batch, self.cells, self.cell_width)
        empty = x.new_zeros(batch, 1, self.cell_width)
        out = []
        for step in self.read(x).unbind(1):
            state = torch.tanh(step + self.keep(torch.cat([state, stack[:, 0]], dim=1)))
            push, pop, stay = torch.softmax(self.act(state), dim=1)[:, :, None, None].unbind(1)
            value = torch.tanh(self.value(state))[:, None]
            pushed = torch.cat([value, stack[:, :-1]], dim=1)
            popped = torch.cat([stack[:, 1:], empty], dim=1)
            stack = push * pushed + pop * popped + stay * stack
            out.append(state)
        return torch.stack(out, dim=1)
