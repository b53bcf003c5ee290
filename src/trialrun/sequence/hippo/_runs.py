"""Run a linear memory over a whole sequence: step by step, or chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from trialrun.sequence.hippo._transition import Transition

_CHUNK = 1024


def run_each(
    u: Float[Tensor, "batch time"],
    memory: Float[Tensor, "batch order"],
    steps: Float[Tensor, " time"],
    system_of: Callable[[Tensor], Transition],
    *,
    every: bool,
) -> Tensor:
    """Advance one step at a time, where every step has matrices of its own.

    Returns the last state, or with ``every`` all of them.
    """
    seen = []
    for begin in range(0, u.shape[1], _CHUNK):
        systems = system_of(steps[begin : begin + _CHUNK])
        for A, B, now in zip(systems.A.to(u), systems.B.to(u), u[:, begin:].unbind(1)):
            memory = memory @ A.T + now[:, None] * B
            if every:
                seen.append(memory)
    return torch.stack(seen, dim=1) if every else memory


def run_fixed(
    u: Float[Tensor, "batch time"],
    memory: Float[Tensor, "batch order"],
    system: Transition,
    *,
    every: bool,
) -> Tensor:
    """Advance a chunk at a time, each by one product with the powers of the matrix.

    Returns the last state, or with ``every`` all of them.
    """
    powers, whole_chunk = _impulses(system, min(_CHUNK, u.shape[1]))
    seen = []
    for part in u.split(len(powers), dim=1):
        time = part.shape[1]
        if every:
            seen.append(_chunk_states(part, memory, system))
            memory = seen[-1][:, -1]
        else:
            last = time < len(powers)
            jump = torch.linalg.matrix_power(system.A, time) if last else whole_chunk
            memory = memory @ jump.T.to(u) + part @ powers[:time].flip(0).to(u)
    return torch.cat(seen, dim=1) if every else memory


def _chunk_states(u: Tensor, memory: Tensor, system: Transition) -> Tensor:
    """Return all states of a short chunk, doubling the reach of each in every round."""
    states = u[:, :, None] * system.B.to(u)
    first = states[:, :1] + (memory @ system.A.T.to(u))[:, None]
    states = torch.cat([first, states[:, 1:]], dim=1)
    jump, reach = system.A, 1
    while reach < u.shape[1]:
        carried = states[:, :-reach] @ jump.T.to(u)
        states = torch.cat([states[:, :reach], states[:, reach:] + carried], dim=1)
        jump, reach = jump @ jump, 2 * reach
    return states


def _impulses(system: Transition, count: int) -> tuple[Tensor, Tensor]:
    """Return B, AB, ..., A**(count - 1) B as rows, and A**count, by doubling."""
    rows, jump = system.B[None], system.A
    while len(rows) < count:
        rows = torch.cat([rows, rows @ jump.T])
        jump = jump @ jump
    return rows[:count], torch.linalg.matrix_power(system.A, count)
