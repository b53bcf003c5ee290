"""A short training run that brings a converted attention back to its host."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trialrun.attention import _mla_stack  # noqa: F401

# isort: split
import torch
from torch import Tensor

from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng


@dataclass(frozen=True, kw_only=True)
class Healing:
    """A short training run of the converted attention.

    Parameters
    ----------
    steps, batch : int
        AdamW steps and sequences a step, drawn from the calibration.
    rate : float
        Highest learning rate; it falls linearly to zero.
    teacher : bool
        Follow the host's distribution (Kullback-Leibler) instead of the text itself.
    seed : int

    Raises
    ------
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> Healing(steps=20).teacher
    True
    """

    steps: int = 100
    batch: int = 8
    rate: float = 3e-4
    teacher: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(
                    f"healing {name} must be a whole number, at least 1, got {value!r}"
                )
        number = isinstance(self.rate, int | float) and not isinstance(self.rate, bool)
        if not number or not 0 < self.rate < math.inf:
            raise UsageError(f"healing rate must be a positive number, got {self.rate!r}")


def heal(
    student: Any,
    teacher: Any,
    batches: Sequence[Mapping[str, Tensor]],
    healing: Healing,
) -> None:
    """Train the attention of ``student`` on the calibration, in place.

    Raises
    ------
    ValueError
        If no row has a token to learn from.
    """
    usable = [_targets(batch, teacher=healing.teacher).any(1).nonzero()[:, 0] for batch in batches]
    rows = [n for n, some in enumerate(usable) for _ in range(len(some))]
    if not rows:
        raise UsageError(
            "healing on the text itself needs a calibration row of at least two tokens, got none: "
            "give longer rows, or teacher=True"
        )
    trained = [p for layer in student.model.layers for p in layer.self_attn.parameters()]
    others = {id(p) for p in trained}
    frozen = [p for p in student.parameters() if id(p) not in others]
    for parameter in frozen:
        parameter.requires_grad_(False)
    draw = rng(healing.seed, "healing")
    optimiser = torch.optim.AdamW(trained, lr=healing.rate, weight_decay=0.0)
    for step in range(healing.steps):
        for group in optimiser.param_groups:
            group["lr"] = healing.rate * (1 - step / healing.steps)
        n = rows[int(draw.integers(len(rows)))]
        order = torch.from_numpy(draw.permutation(len(usable[n]))[: healing.batch])
        picked = usable[n][order.to(usable[n].device)]
        loss = _healing_loss(student, teacher if healing.teacher else None, batches[n], picked)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
    for parameter in student.parameters():
        parameter.requires_grad_(True)


def _healing_loss(
    student: Any, teacher: Any, batch: Mapping[str, Tensor], picked: Tensor
) -> Tensor:
    device = student.device
    inputs = {name: x[picked.to(x.device)].to(device) for name, x in batch.items()}
    targets = _targets(inputs, teacher=teacher is not None)
    logits = student(**inputs, use_cache=False).logits.float().log_softmax(-1)
    if teacher is not None:
        with torch.no_grad():
            wanted = teacher(**inputs, use_cache=False).logits.float().log_softmax(-1)
        each = (wanted.exp() * (wanted - logits)).sum(-1)
        return each[targets].mean()
    each = -logits[:, :-1].gather(-1, inputs["input_ids"][:, 1:, None]).squeeze(-1)
    return each[targets].mean()


def _targets(batch: Mapping[str, Tensor], *, teacher: bool) -> Tensor:
    """Tell where there is something to learn: at real tokens, or at those with a real next one."""
    ids = batch["input_ids"]
    real = batch.get("attention_mask", torch.ones_like(ids)).bool()
    return real if teacher else real[:, :-1] & real[:, 1:]
