"""The LegS memory at O(order) a step, and over a whole sequence without a loop over time.

Row n of LegS reads x_n' = (sqrt(2n+1) (u - S_n) - (n+1) x_n) / t, where S_n is the sum of
sqrt(2m+1) x_m over m < n. Two consequences, both used here:

- within a step, S runs along n as a first-order recurrence, so a step is one scan over the order;
- over time, row n is a scalar first-order recurrence driven by the rows above it, so a whole
  sequence is one scan over time for each row (ours: gu2020hippo steps through time).

Both compute in float64, whatever the state is kept in: a factor is 1 less about 1 / t, which
float32 rounds to 1 from some ten million samples on, and the memory would then stop forgetting.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from trialrun.blocks.scan import linear_scan


def legs_step(
    state: Float[Tensor, "*rows order"], u: Float[Tensor, "*rows"], h: float, new: float
) -> Float[Tensor, "*rows order"]:
    """Advance by one step of relative length ``h``; ``new`` is the implicit share of the method."""
    order, kind = state.shape[-1], state.dtype
    state, u = state.double(), u.double()
    n = torch.arange(order, dtype=torch.float64)
    root, old = torch.sqrt(2 * n + 1), 1 - new
    weighted = state * root.to(state)
    before = weighted.cumsum(-1) - weighted
    kept = state * (1 - old * h * (n + 1)).to(state)
    driven = kept + (h * root).to(state) * (u.unsqueeze(-1) - old * before)
    if not new:
        return driven.to(kind)
    least = 1 + new * h * (n + 1)
    ready = driven / least.to(state)
    # S_{n+1} = S_n + root_n x_n, and x_n = ready_n - new h root_n S_n / least_n.
    factor = (1 - new * h * n) / least
    summed = linear_scan(factor.to(state), (ready * root.to(state)).reshape(-1, order))
    given = torch.nn.functional.pad(summed[:, :-1], (1, 0)).reshape(state.shape)
    return (ready - (new * h * root / least).to(state) * given).to(kind)


def legs_sweep(
    u: Float[Tensor, "batch time"],
    h: Float[Tensor, " time"],
    state: Float[Tensor, "batch order"],
    new: float,
    *,
    every: bool,
) -> Float[Tensor, "batch order"] | Float[Tensor, "batch time order"]:
    """Advance through a whole sequence; return the last state, or with ``every`` all of them."""
    kind = state.dtype
    h, u, state = h.double(), u.double(), state.double()
    now, before, begun = torch.zeros_like(u), torch.zeros_like(u), torch.zeros_like(state[:, 0])
    rows = []
    for n in range(state.shape[1]):
        root = math.sqrt(2 * n + 1)
        least = 1 + new * h * (n + 1)
        keep = (1 - (1 - new) * h * (n + 1)) / least
        forced = h * root / least * (u - new * now - (1 - new) * before)
        row = linear_scan(keep[None], forced, state[:, n])
        begun = begun + root * state[:, n]
        now = now + root * row
        before = torch.cat([begun[:, None], now[:, :-1]], dim=1)
        rows.append((row if every else row[:, -1]).to(kind))
    return torch.stack(rows, dim=-1)
