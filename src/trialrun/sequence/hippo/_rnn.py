"""A recurrent net that keeps what it computes in a HiPPO memory (gu2020hippo)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trialrun.core.errors import UsageError
from trialrun.core.seeds import split
from trialrun.sequence.hippo._checks import Number, fits, floats, whole, wide
from trialrun.sequence.hippo._layer import seeded_linear
from trialrun.sequence.hippo._memory import HiPPO, HiPPOState, check_owner
from trialrun.sequence.hippo._transition import Transition

_CACHED = 1 << 22


class RNNState(NamedTuple):
    """``hidden`` (batch, hidden), and the memory of its ``channels`` (batch * channels, order)."""

    hidden: Tensor
    memory: HiPPOState


class HiPPORNN(nn.Module):
    """Run a gated cell that writes to a HiPPO memory and reads all of it (gu2020hippo).

    At each step the cell sees the input and the memory's coefficients, and a linear map of the new
    hidden state is what the memory takes in. With scale-free ``legs`` the memory of a sequence
    hardly depends on how densely it was sampled. The memory is kept in float32, or in float64 with
    weights in float64, under autocast and for weights in half precision too; beyond some millions
    of steps of scale-free ``legs`` its updates are lost in float32.

    Parameters
    ----------
    inputs : int, at least 1
        Features of the input.
    hidden : int, at least 1
    memory : HiPPO
        Which memory; its settings, not its content.
    channels : int, at least 1
        Numbers written at each step.
    seed : int

    Raises
    ------
    ValueError
        If a size or a shape is wrong.

    Examples
    --------
    >>> net = HiPPORNN(inputs=2, hidden=8, memory=HiPPO("legs", order=16))
    >>> outputs, state = net(torch.zeros(3, 20, 2))
    >>> outputs.shape, state.memory.elapsed
    (torch.Size([3, 20, 8]), 20.0)
    """

    def __init__(
        self, inputs: int, hidden: int, memory: HiPPO, *, channels: int = 1, seed: int = 0
    ) -> None:
        super().__init__()
        inputs, hidden = whole("inputs", inputs, low=1), whole("hidden", hidden, low=1)
        channels = whole("channels", channels, low=1)
        if not isinstance(memory, HiPPO):
            raise UsageError(f"memory must be a HiPPO, got {type(memory).__name__}")
        self.inputs, self.hidden, self.channels, self.memory = inputs, hidden, channels, memory
        random = torch.Generator().manual_seed(split(seed, "hippo-rnn"))
        self.read = seeded_linear(inputs + channels * memory.order, 3 * hidden, random)
        self.gates = seeded_linear(hidden, 3 * hidden, random)
        self.write = seeded_linear(hidden, channels, random)
        self._kept: tuple[HiPPO, tuple[Number, int], Transition] | None = None

    def forward(
        self, x: Float[Tensor, "batch time features"], state: RNNState | None = None
    ) -> tuple[Float[Tensor, "batch time hidden"], RNNState]:
        """Run over sequences; the state goes on where a former call ended.

        Parameters
        ----------
        x : tensor of shape (batch, time, inputs)
        state : RNNState or None

        Raises
        ------
        ValueError
            If ``x`` or the state has another shape, or the state is of another memory.
        """
        floats("x", x, ("batch", "time", "features"))
        if x.shape[2] != self.inputs:
            raise ValueError(f"x must have {self.inputs} features, got {x.shape[2]}")
        fits("x", x, self.read.weight, "net")
        hidden, memory, elapsed = self._begun(x, state)
        outputs = []
        block = max(1, _CACHED // self.memory.order**2)
        for part in x.split(block, dim=1):
            A, B = (v.to(memory) for v in self._systems(elapsed, part.shape[1]))
            for t, now in enumerate(part.unbind(1)):
                seen = torch.cat([now, memory.reshape(len(x), -1).to(now.dtype)], dim=1)
                hidden = self._cell(seen, hidden)
                written = self.write(hidden).reshape(-1, 1).to(memory.dtype)
                with torch.autocast(x.device.type, enabled=False):
                    memory = memory @ A[t].T + written * B[t]
                outputs.append(hidden)
            elapsed += part.shape[1]
        kept = HiPPOState(memory, elapsed, self.memory.basis)
        return torch.stack(outputs, dim=1), RNNState(hidden, kept)

    def _cell(self, seen: Tensor, hidden: Tensor) -> Tensor:
        reset, update, new = self.read(seen).chunk(3, dim=1)
        reset_h, update_h, new_h = self.gates(hidden).chunk(3, dim=1)
        update = torch.sigmoid(update + update_h)
        new = torch.tanh(new + torch.sigmoid(reset + reset_h) * new_h)
        # Under autocast the parts are of several types, which lerp would refuse.
        return new + update * (hidden - new)

    def _begun(self, x: Tensor, state: RNNState | None) -> tuple[Tensor, Tensor, float]:
        rows = x.shape[0] * self.channels
        kind = wide(self.read.weight.dtype)
        if state is None:
            blank = x.new_zeros(rows, self.memory.order, dtype=kind)
            return x.new_zeros(len(x), self.hidden), blank, 0.0
        expected = ((len(x), self.hidden), (rows, self.memory.order))
        if not isinstance(state, RNNState) or not isinstance(state.memory, HiPPOState):
            raise UsageError(
                f"state must be what an earlier call returned, got {type(state).__name__}"
            )
        got = tuple(state.hidden.shape), tuple(state.memory.coefficients.shape)
        if got != expected:
            raise ValueError(
                f"state must hold shapes {expected[0]} and {expected[1]}, got {got[0]} and "
                f"{got[1]}: is it another net's?"
            )
        check_owner(state.memory, self.memory.basis)
        return state.hidden.to(x.dtype), state.memory.coefficients.to(kind), state.memory.elapsed

    def _systems(self, elapsed: Number, time: int) -> Transition:
        """Return each step's matrices, kept for the next call of the same length."""
        kept, asked = self._kept, (elapsed, time)
        if kept is None or kept[0] is not self.memory or kept[1] != asked:
            # Matrices made in inference mode could not be trained through later.
            with torch.inference_mode(False):
                kept = self._kept = (self.memory, asked, self.memory.systems(elapsed, time))
        return kept[2]
