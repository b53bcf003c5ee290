"""Classifiers that the learning claims train, alike but for their body."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trialrun.core.seeds import rng, split
from trialrun.sequence.hippo import S4D, HiPPO, HiPPORNN, parameter_groups


class Classifier(nn.Module):
    """A body over time, its outputs at the last step or their mean, and a linear head."""

    def __init__(self, body: nn.Module, width: int, classes: int, *, pooled: bool) -> None:
        super().__init__()
        self.body, self.pooled = body, pooled
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes) of sequences (batch, time, features)."""
        out = self.body(x)
        out = out[0] if isinstance(out, tuple) else out
        return self.head(out.mean(dim=1) if self.pooled else out[:, -1])


class S4DStack(nn.Module):
    """Residual blocks of layer normalisation and S4D over an input map, started from LegS."""

    layers: Any
    norms: Any

    def __init__(self, inputs: int, width: int, *, layers: int, seed: int, state: int = 32) -> None:
        super().__init__()
        self.enter = nn.Linear(inputs, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.layers = nn.ModuleList(
            S4D(width, state, init="legs", dt_range=(1e-3, 1e-1), seed=split(seed, i))
            for i in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return features (batch, time, width)."""
        h = self.enter(x)
        for norm, layer in zip(self.norms, self.layers):
            h = h + layer(norm(h))
        return h


def lstm(inputs: int, width: int, *, longest: int) -> nn.LSTM:
    """Make an LSTM whose gates start with memories up to ``longest`` steps (tallec2018chrono)."""
    made = nn.LSTM(inputs, width, batch_first=True)
    reach = 1 + torch.rand(width) * (longest - 2)
    with torch.no_grad():
        for name, bias in made.named_parameters():
            if name.startswith("bias"):
                bias.zero_()
        gates = made.get_parameter("bias_hh_l0")
        gates[:width] = -torch.log(reach)
        gates[width : 2 * width] = torch.log(reach)
    return made


def size_of(net: nn.Module) -> int:
    """Return the number of trained parameters."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def build(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Make a net from a seed, without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(split(seed, "net") % 2**63)
        return make()


def train(
    net: nn.Module, x: Tensor, y: Tensor, *, steps: int, rate: float, seed: int, batch: int = 50
) -> float:
    """Train by Adam at a rate that falls to zero along a cosine; return the last batches' loss."""
    groups = parameter_groups(net, lr=rate, weight_decay=0.0, ssm_lr=min(rate, 5e-3))
    optimiser = torch.optim.AdamW(groups)
    plan = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda t: 0.5 * (1 + math.cos(math.pi * t / max(1, steps)))
    )
    random = rng(seed, "batches")
    recent: list[float] = []
    for _ in range(steps):
        pick = torch.from_numpy(random.choice(len(x), min(batch, len(x)), replace=False))
        loss = nn.functional.cross_entropy(net(x[pick]), y[pick])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        plan.step()
        recent = [*recent[-9:], float(loss.detach())]
    return sum(recent) / max(1, len(recent))


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor, *, batch: int = 250) -> float:
    """Return the percentage of sequences classified rightly."""
    hits = sum(int((net(a).argmax(1) == b).sum()) for a, b in zip(x.split(batch), y.split(batch)))
    return 100 * hits / len(x)


def hippo_rnn(inputs: int, hidden: int, order: int, window: float | None, seed: int) -> HiPPORNN:
    """Make a HiPPO-LegS net: scale-free, or at a fixed step where a window is given."""
    return HiPPORNN(inputs, hidden, HiPPO("legs", order, window=window), seed=seed)
