"""Collapse: components that training lets live, against those that the closed form calls."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from trialrun.claims.contract import Context, Measurement
from trialrun.core.seeds import rng, split
from trialrun.dossiers.ssl_interplay._sizes import COMPONENTS, GAMMA, N_VIEWS, size_of
from trialrun.dossiers.ssl_interplay.worlds import Array, grouped, half_moons, jittered
from trialrun.representation.ssl_interplay import KernelVCReg, interplay_path, vcreg_loss

DECAYS = (0.01, 0.02, 0.03, 0.05, 0.08)
STRONG = 0.4
ALIVE = 0.02
FEATURES, BATCH = 128, 128


def _cosines(rows: Array, seed: int) -> Array:
    """Return random features of the kernel, drawn for the trained map alone."""
    random = rng(seed, "network")
    frequencies = np.sqrt(2 * GAMMA) * random.normal(size=(rows.shape[-1], FEATURES))
    phases = random.uniform(0, 2 * np.pi, FEATURES)
    return np.sqrt(2 / FEATURES) * np.cos(rows @ frequencies + phases)


def train(ctx: Context, folder: Path) -> None:
    """Train linear maps of random features by mini-batches at every weight decay."""
    steps = size_of(ctx).steps
    moons = half_moons(2000, ctx.seed, "training").points
    generator = torch.Generator().manual_seed(split(ctx.seed, "batches"))
    start = torch.randn(len(DECAYS), FEATURES, COMPONENTS, generator=generator)
    weights = (0.1 * start).requires_grad_()
    optimiser = torch.optim.Adam([weights], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    random = rng(ctx.seed, "fresh views")
    with torch.enable_grad():
        for _ in range(steps):
            rows = moons[random.integers(len(moons), size=BATCH)]
            pair = rows + STRONG * random.normal(size=(2, *rows.shape))
            first, second = torch.from_numpy(_cosines(pair, ctx.seed)).float()
            total = torch.zeros(())
            for reg, w in zip(DECAYS, weights):
                apart = vcreg_loss(first @ w, second @ w, cross="pairs")
                total = total + apart + 2 * reg * (w**2).sum()
            optimiser.zero_grad()
            total.backward()
            optimiser.step()
            schedule.step()
    fresh = half_moons(2000, ctx.seed, "held out").points
    phi = _cosines(fresh + STRONG * random.normal(size=fresh.shape), ctx.seed)
    psi = phi @ weights.detach().double().numpy()
    spectra = [np.linalg.eigvalsh(p.T @ p / len(p))[::-1].tolist() for p in psi]
    (folder / "spectra.json").write_text(json.dumps(spectra), encoding="utf-8")


def collapse(ctx: Context, *, how: str) -> Measurement:
    """Call which components live and count the calls that training bears out, in percent."""
    text = (ctx.prepared("networks") / "spectra.json").read_text(encoding="utf-8")
    lived = np.array(json.loads(text)) > ALIVE
    points = half_moons(size_of(ctx).prediction, ctx.seed, "prediction").points
    views = jittered(points, scale=STRONG, n_views=N_VIEWS, seed=ctx.seed)
    made = grouped(views, shuffled=how == "shuffled", seed=ctx.seed)
    model = KernelVCReg(gamma=GAMMA, n_components=COMPONENTS, pairs="distinct")
    if how == "kernel-alone":  # T = 1: a component lives where K's eigenvalue is above lambda
        alone = np.arange(len(made.rows))
        path = interplay_path(
            made.rows, regs=DECAYS, model=model.set_params(pairs="all"), groups=alone
        )
    elif how == "augmentation-alone":  # the same reg, however strong the decay is
        path = interplay_path(
            made.rows, regs=np.full(len(DECAYS), 1e-6), model=model, groups=made.groups
        )
    else:
        path = interplay_path(made.rows, regs=DECAYS, model=model, groups=made.groups)
    called = path.eigenvalues > 0
    living = {f"{reg}": float(n) for reg, n in zip(DECAYS, lived.sum(axis=1))}
    return Measurement.of(100 * float((called == lived).mean()), n=lived.size, **living)
