"""Repeat at a distance: a span is written, other symbols follow, and the span comes again.

Each symbol of a span carries its place in it, so that its successor can be found by content in
one step of attention. Without that, an induction head would have to form first, which takes far
longer than these budgets. Spans and filler have symbols of their own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.random import Generator
from torch import Tensor

from trialrun.blocks.bytelm import Shape
from trialrun.core.seeds import rng

SPAN = 12
CHOICES = 16
FILLER = 16
LEAD = 8
CHANCE = 1 / CHOICES


def copy_shape(shape: Shape) -> Shape:
    """Return the model's shape with the task's alphabet."""
    return replace(shape, vocabulary=SPAN * CHOICES + FILLER)


def sequences(
    draw: Generator, distances: Int[np.ndarray, " batch"], *, length: int, repeat: bool = True
) -> Int[Tensor, "batch time"]:
    """Draw sequences whose last ``SPAN`` symbols stood ``distances`` earlier as well.

    With ``repeat`` off, another span stands there, so that there is nothing to copy.
    """
    size, spans = len(distances), SPAN * CHOICES
    found = draw.integers(spans, spans + FILLER, size=(size, length))
    places = np.arange(SPAN) * CHOICES
    last = places + draw.integers(0, CHOICES, size=(size, SPAN))
    first = last if repeat else places + draw.integers(0, CHOICES, size=(size, SPAN))
    found[:, -SPAN:] = last
    columns = length - SPAN - distances[:, None] + np.arange(SPAN)
    np.put_along_axis(found, columns, first, axis=1)
    return torch.from_numpy(found)


class CopyBatches:
    """Training batches: one repeat each, at any distance that the training length holds."""

    def __init__(self, length: int, *, seed: int) -> None:
        self.length = length
        self._draw = rng(seed, "copying")

    def __call__(self, size: int) -> Tensor:
        distances = self._draw.integers(SPAN, self.length + 2 - SPAN, size=size)
        return sequences(self._draw, distances, length=self.length + 1)

    def weigh(self, ids: Tensor) -> Tensor:
        """Weigh the copied symbols fully and the unpredictable rest by a fiftieth."""
        weights = torch.full((len(ids), self.length), 0.02)
        weights[:, -(SPAN - 1) :] = 1.0
        return weights


def copy_length(distance: int) -> int:
    """Return the length of a sequence with a repeat at a distance, in tokens."""
    return distance + SPAN + LEAD


@torch.no_grad()
def copy_accuracy(
    model: Any, *, distance: int, count: int, seed: int, repeat: bool = True
) -> float:
    """Return the share of a span's symbols, after its first, that the model predicts rightly."""
    draw = rng(seed, "copying", "test", distance)
    length = copy_length(distance)
    ids = sequences(draw, np.full(count, distance), length=length, repeat=repeat)
    device = next(model.parameters()).device
    right = []
    for part in ids.split(max(1, 8192 // length)):
        part = part.to(device)
        logits = model(part[:, :-1], use_cache=False, logits_to_keep=SPAN - 1).logits
        right.append((logits.argmax(-1) == part[:, -(SPAN - 1) :]).float().cpu())
    return float(torch.cat(right).mean())
