"""The terms of SVasP's objective, one by one, and how much each counts (li2025svasp).

Every soft target is taken in log space, so that nothing underflows.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

from trialrun.fewshot import _svasp_stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from trialrun.core.shapes import check_axes, check_range


class DomainLogits(NamedTuple):
    """The discriminator's two logits per picture; ``crop`` is None where there are no crops."""

    crop: Tensor | None
    clean: Tensor
    adv: Tensor


class SVasPParts(NamedTuple):
    """The weighted sum, and every part of it before weighting, in nats."""

    total: Tensor
    fsl: Tensor
    fsl_adv: Tensor
    fsl_kl: Tensor
    cls: Tensor
    dom: Tensor
    crop: Tensor
    cls_adv: Tensor
    cls_kl: Tensor


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """How much every part counts; 0 leaves it out. The defaults are the published ones."""

    fsl: int | float = 1.0
    fsl_adv: int | float = 1.0
    fsl_kl: int | float = 1.0
    cls: int | float = 1.0
    dom: int | float = 1.0
    crop: int | float = 1.0
    cls_adv: int | float = 0.0
    cls_kl: int | float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            check_range(f"weight {field.name}", getattr(self, field.name), low=0)


def soft_cross_entropy(
    logits: Float[Tensor, "batch classes"], target_logits: Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy between two predictions, in nats, without underflow.

    Parameters
    ----------
    logits : tensor of shape (batch, classes)
    target_logits : tensor of shape (batch, classes)
        Their softmax is the target. It is not detached: gradients reach both.

    Raises
    ------
    ValueError
        If the two shapes differ.

    Examples
    --------
    >>> round(soft_cross_entropy(torch.tensor([[0.0, -400.0]]), torch.tensor([[0.0, 0.0]])).item())
    200
    """
    if logits.shape != target_logits.shape or logits.ndim != 2:
        raise ValueError(
            "target_logits must have the shape (batch, classes) of logits, "
            f"{tuple(logits.shape)}, got {tuple(target_logits.shape)}"
        )
    return -(target_logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()


def divergence(clean: Tensor, adv: Tensor) -> Tensor:
    """Return KL(clean || adv), the mean over rows in nats."""
    log_clean = clean.log_softmax(1)
    return functional.kl_div(adv.log_softmax(1), log_clean, reduction="batchmean", log_target=True)


def domain_loss(logits: DomainLogits) -> Tensor:
    """Return the discriminator's mean cross-entropy: restyled pictures are 1, all others 0."""
    parts = [(logits.crop, 0), (logits.clean, 0), (logits.adv, 1)]
    losses = [
        functional.cross_entropy(rows, torch.full((len(rows),), which, device=rows.device))
        for rows, which in parts
        if rows is not None
    ]
    return torch.stack(losses).mean()


def check_logits(
    fsl_ori: Tensor, fsl_adv: Tensor, cls_ori: Tensor, y: Tensor, y_query: Tensor
) -> None:
    """Raise unless logits and labels of one episode go together.

    Raises
    ------
    ValueError
        Naming the shapes, or the labels that are out of range.
    """
    check_axes("fsl_ori", fsl_ori, ("queries", "way"))
    check_axes("cls_ori", cls_ori, ("batch", "classes"))
    if fsl_adv.shape != fsl_ori.shape:
        raise ValueError(
            f"fsl_adv must have the shape of fsl_ori, {tuple(fsl_ori.shape)}, "
            f"got {tuple(fsl_adv.shape)}"
        )
    for name, labels, rows, classes in (
        ("y", y, len(cls_ori), cls_ori.shape[1]),
        ("y_query", y_query, len(fsl_ori), fsl_ori.shape[1]),
    ):
        if tuple(labels.shape) != (rows,):
            raise ValueError(f"{name} must have shape ({rows},), got {tuple(labels.shape)}")
        if rows and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(
                f"{name} must hold classes from 0 to {classes - 1}, got {int(labels.min())} to "
                f"{int(labels.max())}"
            )
