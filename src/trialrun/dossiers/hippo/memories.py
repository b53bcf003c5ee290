"""The memory arms: what is written, and how each one's history is read back."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from trialrun.core.seeds import rng
from trialrun.material.curves import Noise
from trialrun.material.series import Series
from trialrun.sequence.hippo import HiPPO, transition

Signals = Noise | Series


def written(noise: Signals, length: int) -> Tensor:
    """Return the signals (signals, length) in float32."""
    return torch.from_numpy(noise.sampled(length)).float()


class RandomScaled:
    """x' = (A x + B u) / t with a random symmetric A that has LegS's eigenvalues -1, ..., -order.

    B has a random direction and the length of LegS's. It steps by the bilinear method. As in LegS,
    a step is computed in float64 and the state kept in the signal's type.
    """

    def __init__(self, order: int, *, seed: int) -> None:
        random = rng(seed, "random matrix")
        basis, _ = np.linalg.qr(random.standard_normal((order, order)))
        direction = random.standard_normal(order)
        length = float(transition("legs", order).B.norm())
        self.basis = torch.from_numpy(basis)
        self.drive = torch.from_numpy(direction / np.linalg.norm(direction) * length)
        self.order = order

    def encode(self, u: Tensor) -> Tensor:
        """Return the last state (batch, order)."""
        rates = torch.arange(1, self.order + 1, dtype=torch.float64)
        drive = self.drive @ self.basis
        state = torch.nn.functional.pad(u[:, :1], (0, self.order - 1))
        for k, now in enumerate(u.double().unbind(1)[1:], start=2):
            # On the eigenvectors a step is one number for each.
            least = 1 + 0.5 / k * rates
            turned = (2 - least) / least * (state.double() @ self.basis)
            state = ((turned + now[:, None] * drive / (k * least)) @ self.basis.T).to(u.dtype)
        return state


def state_after(arm: str, noise: Signals, length: int, usual: int, order: int, seed: int) -> Tensor:
    """Return an arm's memory of signals sampled ``length`` times where ``usual`` was expected."""
    u = written(noise, length)
    if arm == "random-scaled":
        return RandomScaled(order, seed=seed).encode(u)
    window = {"legs": None, "legt": usual, "legt-told": length, "legs-fixed": usual}[arm]
    measure = "legt" if arm.startswith("legt") else "legs"
    return HiPPO(measure, order, window=window).encode(u).coefficients


def change_of_state(
    arm: str, noise: Signals, *, usual: int, order: int, seed: int
) -> dict[str, float]:
    """Return how much the memory differs from that at the usual rate, relative to it."""
    base = state_after(arm, noise, usual, usual, order, seed).double()
    found = {}
    for name, length in (("half", usual // 2), ("double", 2 * usual)):
        other = state_after(arm, noise, length, usual, order, seed).double()
        found[name] = math.sqrt(float((other - base).square().sum() / base.square().sum()))
    return found


def read_back(
    arm: str, noise: Signals, length: int, *, others: Signals, window: int, order: int, seed: int
) -> Tensor:
    """Return an arm's reconstruction (signals, length) of the whole history.

    ``others`` are signals of the kind to which a random memory's reading may be fitted.
    """
    u = written(noise, length)
    if arm == "bins":
        return merged_bins(u, order)
    if arm == "random":
        return _fitted(u, written(others, length), order, seed)
    chosen = {"legs": None, "legt": window, "legt-told": length}[arm]
    memory = HiPPO("legs" if arm == "legs" else "legt", order, window=chosen)
    # One sample at a time, so that between samples all is in what the state is kept in.
    state = memory.start(u)
    for now in u.unbind(1):
        state = memory.step(now, state)
    known = memory.reconstruct(state)
    # Before its window a memory knows nothing: the mean of the signals, zero, stands there.
    return torch.nn.functional.pad(known, (length - known.shape[1], 0))


def merged_bins(u: Tensor, bins: int) -> Tensor:
    """Average over equal bins, as many as fit after merging neighbours, and interpolate."""
    length = u.shape[1]
    size = 1
    while -(-length // size) > bins:
        size *= 2
    parts = [part.mean(dim=1) for part in u.split(size, dim=1)]
    middles = [0.5 * (i * size + min(length, (i + 1) * size)) for i in range(len(parts))]
    held = torch.stack(parts, dim=1).numpy()
    at = np.arange(length) + 0.5
    return torch.from_numpy(np.stack([np.interp(at, middles, row) for row in held]))


def _fitted(u: Tensor, others: Tensor, order: int, seed: int) -> Tensor:
    """Read a random memory by the linear map that fits other signals of the kind best."""
    memory = RandomScaled(order, seed=seed)
    states, signals = memory.encode(others).double().numpy(), others.double().numpy()
    read, *_ = np.linalg.lstsq(states, signals, rcond=None)
    return torch.from_numpy(memory.encode(u).double().numpy() @ read)
