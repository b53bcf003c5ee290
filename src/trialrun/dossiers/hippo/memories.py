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

    B has a random direction and the length of LegS's. On the eigenvectors the bilinear recurrence
    is one number for each, so the last state is a product with known weights.
    """

    def __init__(self, order: int, *, seed: int) -> None:
        random = rng(seed, "random matrix")
        basis, _ = np.linalg.qr(random.standard_normal((order, order)))
        direction = random.standard_normal(order)
        length = float(transition("legs", order).B.norm())
        self.basis = torch.from_numpy(basis).float()
        self.drive = torch.from_numpy(direction / np.linalg.norm(direction) * length).float()
        self.order = order

    def encode(self, u: Tensor) -> Tensor:
        """Return the last state (batch, order), in float32."""
        half = 0.5 / torch.arange(2, u.shape[1] + 1, dtype=torch.float64)[:, None]
        least = 1 + half * torch.arange(1, self.order + 1)
        factor = (2 - least) / least
        # What is left of each sample in the last state: the product of the later factors.
        later = torch.cat([factor[1:], torch.ones(1, self.order)]).flip(0).cumprod(0).flip(0)
        first = (factor[:1] * later[:1] * self.basis[0]).float()
        rest = (2 * half / least * later * (self.drive.double() @ self.basis.double())).float()
        return u @ torch.cat([first, rest]) @ self.basis.T


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
    state = memory.encode(u)
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
