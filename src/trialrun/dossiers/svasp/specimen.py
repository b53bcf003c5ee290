"""Smallest working instances of svasp, for the conformance suite."""

from __future__ import annotations

from typing import Any

import torch

from trialrun.core.seeds import split
from trialrun.dossiers.specimen import BlockSpecimen
from trialrun.fewshot.svasp import Svasp


def _block(seed: int) -> Svasp:
    return Svasp(channels=3, seed=seed)


def _inputs(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(split(seed, "x"))
    return {"x": torch.randn(2, 5, 3, generator=generator)}


def _turned(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = _inputs(seed)["x"]
    return _block(seed)(x).flip(1), _block(seed)(x.flip(1))


SPECIMENS = (
    BlockSpecimen(
        entry="trialrun.fewshot.svasp:Svasp",
        make=_block,
        inputs=_inputs,
        run=lambda block, inputs: block(inputs["x"]),
        bad=(
            ("channels must be at least 1", lambda: Svasp(channels=0)),
            ("x must have shape", lambda: _block(0)(torch.zeros(3))),
            ("x must have 3 channels", lambda: _block(0)(torch.zeros(1, 1, 2))),
        ),
        batched=("x",),
        differentiable=True,
        invariances=(("the order in time does not matter", _turned),),
    ),
)
