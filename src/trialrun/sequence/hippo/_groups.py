"""Parameter groups for an optimiser, as state space layers want them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from trialrun.core.errors import UsageError
from trialrun.core.shapes import check_range
from trialrun.sequence.hippo._checks import Number, number, positive
from trialrun.sequence.hippo._layer import SSMLayer


def parameter_groups(
    model: nn.Module, *, lr: Number, weight_decay: Number = 0.01, ssm_lr: Number = 1e-3
) -> list[dict[str, Any]]:
    """Split a model's parameters for an optimiser, as state space layers want it (gu2022s4).

    What sets a system's poles, its low rank part, its input and its step is learnt at most at
    ``ssm_lr`` and never decayed; decaying it would change how long the layer remembers. C, D and
    all else are ordinary parameters.

    Parameters
    ----------
    model : nn.Module
        Any model that has `S4` or `S4D` layers in it, or none.
    lr, weight_decay : float
        For the ordinary parameters.
    ssm_lr : float
        Upper limit of the learning rate of the dynamics.

    Returns
    -------
    list of dict
        For ``torch.optim.AdamW(groups)``; empty groups are left out.

    Raises
    ------
    ValueError
        If a rate is not above 0, or nothing can be trained.

    Examples
    --------
    >>> from trialrun.sequence.hippo import S4D
    >>> groups = parameter_groups(S4D(2, 4), lr=0.01)
    >>> [(g["lr"], g["weight_decay"], len(g["params"])) for g in groups]
    [(0.01, 0.01, 4), (0.001, 0.0, 3)]
    """
    for name, value in (("lr", lr), ("ssm_lr", ssm_lr)):
        positive(name, value)
    check_range("weight_decay", number("weight_decay", weight_decay), low=0)
    if not isinstance(model, nn.Module):
        raise UsageError(f"model must be an nn.Module, got {type(model).__name__}")
    special = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, SSMLayer)
        for name, parameter in module.named_parameters(recurse=False)
        if name in module.dynamics
    }
    trained: Iterable[nn.Parameter] = [p for p in model.parameters() if p.requires_grad]
    ordinary = [p for p in trained if id(p) not in special]
    dynamics = [p for p in trained if id(p) in special]
    groups: list[dict[str, Any]] = [
        {"params": ordinary, "lr": lr, "weight_decay": weight_decay},
        {"params": dynamics, "lr": min(lr, ssm_lr), "weight_decay": 0.0},
    ]
    kept = [group for group in groups if group["params"]]
    if not kept:
        raise ValueError("model must have at least one parameter to train, got none")
    return kept
