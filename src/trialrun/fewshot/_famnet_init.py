"""Initial weights from a seed, with the global generator left as it was."""

from __future__ import annotations

from trialrun.fewshot import _famnet_stack  # noqa: F401

# isort: split
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trialrun.core.seeds import split


@contextmanager
def seeded(seed: int, *names: str) -> Iterator[None]:
    """Draw a block's weights from ``seed`` and give the global generator back untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(split(seed, *names))
        yield
