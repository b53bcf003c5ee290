"""How the claims train encoders: mu first with kappa at rest, then kappa with mu at rest.

While mu is trained, no gradient passes through kappa: a backbone that both networks share would
otherwise learn to raise concentrations, although the kappa network's own weights are frozen.

Ours, not the paper's: phase 1 raises the loss's concentration from 1 to its value. Started at once
with the full value, encoders often kept the sphere folded in development runs. Phase 1 also has two
starts; after part of it the one with the lower loss on held-out pairs goes on. They are compared
while the concentration is low and the loss sees the whole sphere: at the full value a folded sphere
can have the lower loss.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from trialrun.claims.contract import Budget, Context
from trialrun.core.seeds import split
from trialrun.representation.mcinfonce import (
    ELKLoss,
    HIBLoss,
    MCInfoNCELoss,
    Pairs,
    VMFEncoder,
    VMFWorld,
    VonMisesFisher,
)

KAPPA = (8.0, 64.0)
KAPPA_POS = 20.0
WARM_UP = 0.7
STARTS = ("encoder", "encoder again")
"""Streams of the initial weights that phase 1 starts from."""

TRIED = 0.4
"""Share of phase 1 after which the starts are compared; within the warm-up."""

_AT_ONCE = 25


class Source(Hashable, Protocol):
    """What pairs are drawn from: a generated world, or pictures."""

    def pairs(self, batch: int, negatives: int = 1, *, seed: int) -> Pairs:
        """Draw pairs.

        Parameters
        ----------
        batch, negatives : int
            Rows, and negatives per row.
        seed : int
            Seed of these pairs.
        """


class Chosen(NamedTuple):
    """The encoder phase 1 kept, the number of its start, and the held-out losses compared."""

    encoder: VMFEncoder
    start: int
    losses: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class McBudget(Budget):
    """Size of a run: latent coordinates, updates per phase, rows, draws, and rows scored.

    ``kappa_pos`` is the loss's k; a world's own is ``KAPPA_POS``.
    """

    dim: int = 4
    steps: int
    batch: int = 128
    samples: int = 16
    width: int = 64
    rate: float = 5e-3
    rolled: int = 8
    kappa_pos: float = KAPPA_POS
    scored: int = 1000
    picture_steps: int = 80


def budget_of(ctx: Context) -> McBudget:
    """Return the budget as what it is."""
    return cast(McBudget, ctx.budget)


def make_world(size: McBudget, seed: int, kind: str) -> VMFWorld:
    """Make the world of a kind: ``vmf``, ``reference``, or the law of a truth that is no vMF.

    Worlds of another law take the reference's positives, with which the loss is right for a vMF
    truth; else there would be no calibration to lose. The published constant is known in 10
    dimensions only; elsewhere it is the exact one.
    """
    labelled = kind in ("reference", "gaussian", "laplace")
    published = labelled and size.dim == 10
    return VMFWorld(
        size.dim,
        kappa=KAPPA,
        kappa_pos=KAPPA_POS,
        positives="reference" if labelled else "vmf",
        constant="published" if published else "exact",
        posterior=kind if kind in ("gaussian", "laplace") else "vmf",
        seed=split(seed, "world"),
    )


def make_starts(
    size: McBudget, world: VMFWorld, seed: int, device: str = "cpu"
) -> list[VMFEncoder]:
    """Make the untrained encoders phase 1 starts from."""
    return [make_encoder(size, world, seed, device, stream=stream) for stream in STARTS]


def make_encoder(
    size: McBudget, world: VMFWorld, seed: int, device: str = "cpu", *, stream: str = STARTS[0]
) -> VMFEncoder:
    """Make an untrained encoder; its concentrations start within 16 to 32, as in the paper."""
    encoder = VMFEncoder(
        nn.Identity(),
        size.dim,
        head="mlps",
        width=world.x_dim,
        hidden=(size.width, size.width),
        example_dims=1,
        seed=split(seed, stream),
    )
    return encoder.calibrate(world.inputs(500, seed=split(seed, "calibration")).x).to(device)


@lru_cache(maxsize=32)
def _block(world: Source, rows: int, negatives: int, seed: int) -> Pairs:
    """Draw pairs; arms and starts that see the same ones share them."""
    return world.pairs(rows, negatives, seed=seed)


def batches(
    size: McBudget, world: Source, seed: int, negatives: int, device: str
) -> Iterator[Pairs]:
    """Yield fresh pairs without end."""
    block = 0
    while True:
        made = _block(world, size.batch * _AT_ONCE, negatives, split(seed, "pairs", block))
        parts = [part.to(device).split(size.batch) for part in made]
        yield from (Pairs(*rows) for rows in zip(*parts))
        block += 1


def _shuffled(pairs: Pairs, seed: int, step: int) -> Pairs:
    generator = torch.Generator().manual_seed(split(seed, "shuffled", step))
    return pairs._replace(pos=pairs.pos[torch.randperm(len(pairs.pos), generator=generator)])


def _updates(
    encoder: VMFEncoder,
    part: str,
    loss: nn.Module,
    size: McBudget,
    world: Source,
    seed: int,
    *,
    negatives: int = 0,
    shuffled: bool = False,
    warm: bool = False,
    point: bool = False,
) -> Iterator[None]:
    """Train a part of an encoder, one update for every step of the iterator."""
    device = str(next(encoder.parameters()).device)
    mine = [*encoder.parameters_of(part)]
    for weight in encoder.parameters():
        weight.requires_grad_(any(weight is own for own in mine))
    loss.to(device).train()
    optimiser = torch.optim.Adam([*mine, *loss.parameters()], lr=size.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, size.steps)
    stream = batches(size, world, split(seed, part), negatives, device)
    for step in range(size.steps):
        if warm:
            share = min(1.0, step / (WARM_UP * size.steps))
            cast(MCInfoNCELoss, loss).set_kappa(size.kappa_pos**share)
        pairs = next(stream)
        pairs = _shuffled(pairs, split(seed, part), step) if shuffled else pairs
        ref, pos = encoder(pairs.ref), encoder(pairs.pos)
        neg = encoder(pairs.neg) if negatives else None
        if point:
            ref, pos = as_point(ref), as_point(pos)
        elif part == "mu":
            ref, pos = at_rest(ref), at_rest(pos)
        optimiser.zero_grad()
        loss(ref, pos, neg).backward()
        optimiser.step()
        schedule.step()
        yield
    encoder.requires_grad_(True)


def as_point(post: VonMisesFisher) -> VonMisesFisher:
    """Return the posterior without its spread, which turns MCInfoNCE into InfoNCE."""
    return VonMisesFisher(post.mu, torch.full_like(post.kappa, math.inf), validate_args=False)


def at_rest(post: VonMisesFisher) -> VonMisesFisher:
    """Return the posterior with a concentration that passes no gradient on."""
    if not post.kappa.requires_grad:
        return post
    return VonMisesFisher(post.mu, post.kappa.detach(), validate_args=False)


@torch.no_grad()
def held_out_loss(
    encoder: VMFEncoder, loss: nn.Module, pairs: Pairs, *, point: bool = False
) -> float:
    """Return the loss on pairs as it stands, with draws that are the same at every call."""
    device = next(encoder.parameters()).device
    ref, pos = encoder(pairs.ref.to(device)), encoder(pairs.pos.to(device))
    if point:
        ref, pos = as_point(ref), as_point(pos)
    value = float(loss.eval()(ref, pos, None))
    loss.train()
    return value


def train_mu(
    starts: Sequence[VMFEncoder],
    size: McBudget,
    world: Source,
    seed: int,
    *,
    point: bool = False,
) -> Chosen:
    """Train mu with MCInfoNCE, concentrations at rest; ``point`` makes it InfoNCE.

    All starts are trained on the same pairs for the share ``TRIED`` of the updates. The one with
    the lowest loss on held-out pairs then goes on; the truth has no say in it.
    """
    tried = max(1, round(TRIED * size.steps))
    held_out = world.pairs(size.scored, 0, seed=split(seed, "held-out pairs"))
    runs, losses = [], []
    for encoder in starts:
        loss = MCInfoNCELoss(
            size.kappa_pos,
            1 if point else size.samples,
            rolled=size.rolled,
            seed=split(seed, "mu draws"),
        )
        run = _updates(encoder, "mu", loss, size, world, seed, warm=True, point=point)
        _exhaust(islice(run, tried))
        runs.append(run)
        losses.append(held_out_loss(encoder, loss, held_out, point=point))
    kept = min(range(len(starts)), key=losses.__getitem__)
    _exhaust(runs[kept])
    return Chosen(starts[kept], kept, tuple(losses))


def _exhaust(updates: Iterator[None]) -> None:
    deque(updates, maxlen=0)


def train_kappa(
    encoder: VMFEncoder, size: McBudget, world: Source, seed: int, arm: str
) -> VMFEncoder:
    """Train kappa by one arm's loss, mu at rest.

    ``shuffled`` arms train on positives of other rows, which say nothing of an input's own spread.
    """
    rolled, draws = size.rolled, split(seed, "kappa draws")
    loss: nn.Module
    if arm == "hib":
        loss = HIBLoss(n_samples=size.samples, rolled=rolled, seed=draws)
    elif arm.startswith("elk"):
        loss = ELKLoss(rolled=rolled)
    else:
        samples = 1 if arm in ("single", "single-again") else size.samples
        average = "kernel" if arm == "kernel" else "probability"
        loss = MCInfoNCELoss(size.kappa_pos, samples, rolled=rolled, average=average, seed=draws)
    stream = split(seed, "again") if arm in ("repeat", "single-again") else seed
    negatives = rolled if arm == "drawn" else 0
    _exhaust(
        _updates(
            encoder, "kappa", loss, size, world, stream,
            negatives=negatives, shuffled=arm.startswith("shuffled"),
        )
    )  # fmt: skip
    return encoder


def raw_length(encoder: VMFEncoder, x: Tensor) -> Tensor:
    """Return the length of the mu network's output, InfoNCE's stand-in for a concentration."""
    return encoder.head.mu(encoder.features(x)).norm(dim=-1)
