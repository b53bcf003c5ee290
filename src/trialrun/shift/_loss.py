"""The D3G loss: own head, and the other heads combined by relation (yao2023d3g).

An example of domain d is predicted by head d, and again by the other heads weighted by their
relation to d; both are held to its label. An example whose domain is related to no other has no
second prediction and leaves the mean of that term (ours; the source doesn't say).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

COMBINE = ("logits", "prob")


def check_combine(combine: str) -> None:
    """Raise unless ``combine`` is a known way to combine heads."""
    if combine not in COMBINE:
        raise ValueError(f"combine must be one of {', '.join(COMBINE)}, got {combine!r}")


def combine_heads(
    outputs: Float[Tensor, "batch domains outputs"],
    weights: Float[Tensor, "batch domains"],
    *,
    combine: str = "logits",
) -> Float[Tensor, "batch outputs"]:
    """Combine heads by weights that sum to 1 per example.

    ``logits`` returns the weighted mean of the outputs; ``prob`` the logarithm of the weighted
    mean of the heads' softmax probabilities.

    Examples
    --------
    >>> outputs = torch.tensor([[[0.0, 2.0], [4.0, 0.0]]])
    >>> combine_heads(outputs, torch.tensor([[0.5, 0.5]]))
    tensor([[2., 1.]])
    """
    check_combine(combine)
    rows = weights.unsqueeze(1)
    if combine == "logits":
        return torch.bmm(rows, outputs).squeeze(1)
    mixed = torch.bmm(rows, outputs.softmax(dim=2)).squeeze(1)
    return mixed.clamp_min(torch.finfo(mixed.dtype).tiny).log()


def normalise_relations(
    relations: Float[Tensor, "rows domains"],
) -> Float[Tensor, "rows domains"]:
    """Clip negative relations at 0 and make each row sum to 1; a row of zeros stays zero.

    Examples
    --------
    >>> normalise_relations(torch.tensor([[3.0, -1.0, 1.0], [0.0, 0.0, -2.0]]))
    tensor([[0.7500, 0.0000, 0.2500],
            [0.0000, 0.0000, 0.0000]])
    """
    clipped = relations.clamp_min(0)
    total = clipped.sum(dim=1, keepdim=True)
    return clipped / torch.where(total > 0, total, torch.ones_like(total))


class LossTerms(NamedTuple):
    """The two parts of the loss, before the second is multiplied by ``lam``."""

    prediction: Tensor
    consistency: Tensor


class D3GLoss(nn.Module):
    """Add the loss of each example's own head and ``lam`` times that of the related heads.

    Parameters
    ----------
    lam : float, at least 0, default=0.5
        Weight of the relation-aware consistency term. The default is ours.
    combine : {"logits", "prob"}, default="logits"
        Whether the heads' outputs or their softmax probabilities are averaged. ``prob`` is for
        classes only.

    Raises
    ------
    ValueError
        For a negative ``lam``, an unknown ``combine``, or shapes that do not fit each other.

    Notes
    -----
    yao2023d3g. The consistency term is one (batch x domains) x (domains x outputs) contraction.
    Whole numbers as labels mean cross-entropy, in nats; floats mean squared error.

    Examples
    --------
    >>> outputs = torch.zeros(4, 3, 2, requires_grad=True)   # batch, domains, classes
    >>> y, domains = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 2, 2])
    >>> loss = D3GLoss(lam=0.5)(outputs, y, domains, torch.ones(3, 3))
    >>> round(loss.item(), 4)
    1.0397
    """

    def __init__(self, lam: float = 0.5, *, combine: str = "logits") -> None:
        super().__init__()
        if not lam >= 0:
            raise ValueError(f"lam must be at least 0, got {lam!r}")
        check_combine(combine)
        self.lam, self.combine = lam, combine

    def forward(
        self,
        outputs: Float[Tensor, "batch domains outputs"],
        y: Shaped[Tensor, "batch ..."],
        domains: Int[Tensor, " batch"],
        relations: Float[Tensor, "domains domains"],
    ) -> Float[Tensor, ""]:
        """Return the loss of a batch.

        Parameters
        ----------
        outputs : Tensor of shape (batch, domains, outputs)
            What `RelationWeightedHeads` returns.
        y : Tensor of shape (batch,) or (batch, outputs)
            Class numbers (integers) or numbers to predict (floats).
        domains : Tensor of shape (batch,)
            Number of each example's domain, from 0.
        relations : Tensor of shape (domains, domains)
            Row d holds the relation of domain d to every domain. The diagonal is not used;
            negative entries count as 0; rows need not sum to 1.
        """
        terms = self.terms(outputs, y, domains, relations)
        return terms.prediction + self.lam * terms.consistency

    def terms(self, outputs: Tensor, y: Tensor, domains: Tensor, relations: Tensor) -> LossTerms:
        """Return both terms apart; ``outputs``, ``y``, ``domains`` and ``relations`` as above."""
        y = self._checked_labels(outputs, y, domains, relations)
        pick = domains.view(-1, 1, 1).expand(-1, 1, outputs.shape[2])
        prediction = loss_per_example(outputs.gather(1, pick).squeeze(1), y).mean()
        if self.lam == 0 or outputs.shape[1] == 1:
            return LossTerms(prediction, prediction.new_zeros(()))
        itself = torch.eye(len(relations), dtype=torch.bool, device=relations.device)
        others = relations.to(outputs.dtype).masked_fill(itself, 0)
        rows = normalise_relations(others)[domains]
        losses = loss_per_example(combine_heads(outputs, rows, combine=self.combine), y)
        related = rows.detach().sum(dim=1) > 0
        consistency = torch.where(related, losses, 0).sum() / related.sum().clamp_min(1)
        return LossTerms(prediction, consistency)

    def _checked_labels(
        self, outputs: Tensor, y: Tensor, domains: Tensor, relations: Tensor
    ) -> Tensor:
        if outputs.ndim != 3:
            raise ValueError(
                f"outputs must have shape (batch, domains, outputs), got {tuple(outputs.shape)}"
            )
        batch, n_domains, n_out = outputs.shape
        if tuple(relations.shape) != (n_domains, n_domains):
            raise ValueError(
                f"relations must have shape ({n_domains}, {n_domains}), one row per domain of "
                f"outputs, got {tuple(relations.shape)}"
            )
        if tuple(domains.shape) != (batch,):
            raise ValueError(
                f"domains must have shape ({batch},), one number per example, "
                f"got {tuple(domains.shape)}"
            )
        # On a GPU this check would wait for the device; the gather below reports it there.
        if domains.device.type == "cpu" and batch:
            low, high = int(domains.min()), int(domains.max())
            if low < 0 or high >= n_domains:
                raise ValueError(
                    f"domains must be numbers from 0 to {n_domains - 1}, got {low} to {high}"
                )
        if y.is_floating_point():
            if self.combine == "prob":
                raise ValueError("combine='prob' is for class labels; y holds floats")
            y = y.unsqueeze(1) if y.ndim == 1 else y
            wanted: tuple[int, ...] = (batch, n_out)
        else:
            wanted = (batch,)
        if tuple(y.shape) != wanted:
            raise ValueError(f"y must have shape {wanted}, got {tuple(y.shape)}")
        return y


def loss_per_example(outputs: Tensor, y: Tensor) -> Tensor:
    """Return cross-entropy in nats for class numbers, mean squared error for floats."""
    if y.is_floating_point():
        return (outputs - y).square().mean(dim=1)
    return nn.functional.cross_entropy(outputs, y.long(), reduction="none")
