"""The objective: clean and adversarial few-shot losses, discrepancy and consistency (li2025svasp).

The published code carries a classification loss of adversarial pictures and its divergence with
weight 0; both are here, at 0.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from trialrun.core.shapes import check_axes, check_range
from trialrun.fewshot._svasp_terms import (
    DomainLogits,
    LossWeights,
    SVasPParts,
    check_logits,
    divergence,
    domain_loss,
    soft_cross_entropy,
)


class SVasPLoss(nn.Module):
    """Add up the parts of SVasP's objective (li2025svasp).

    Parameters
    ----------
    weights : LossWeights or None
        Weight of every part; None takes the published ones.
    lambda_crop : float in [0, 1]
        Share of the clean prediction, against the label, in what crops are taught.

    Raises
    ------
    ValueError
        For a weight below 0, logits whose shapes do not go together, or a part that is asked for
        without its logits.

    Notes
    -----
    The discriminator's loss is minimised by the backbone too: there is no reversal of gradients,
    and clean and adversarial pictures are pushed to look unlike. This is what the published code
    does for "maximise visual discrepancy".

    Examples
    --------
    >>> fsl, cls, dom = torch.zeros(6, 5), torch.zeros(6, 8), torch.zeros(6, 2)
    >>> y, y_query = torch.arange(6), torch.tensor([0, 1, 2, 3, 4, 0])
    >>> logits = DomainLogits(dom.repeat(2, 1), dom, dom)
    >>> loss = SVasPLoss()(fsl, fsl, cls, cls.repeat(2, 1), logits, y, y_query)
    >>> round(loss.item(), 2)  # 2 log 5 + 2 log 8 + log 2
    8.07
    """

    def __init__(
        self, *, weights: LossWeights | None = None, lambda_crop: int | float = 0.2
    ) -> None:
        super().__init__()
        check_range("lambda_crop", lambda_crop, low=0, high=1)
        self.weights = weights
        self.lambda_crop = lambda_crop

    def forward(
        self,
        fsl_ori: Float[Tensor, "queries way"],
        fsl_adv: Float[Tensor, "queries way"],
        cls_ori: Float[Tensor, "batch classes"],
        cls_crop: Float[Tensor, "all_crops classes"] | None,
        dom_logits: DomainLogits | None,
        y: Int[Tensor, batch],
        y_query: Int[Tensor, queries],
        cls_adv: Float[Tensor, "batch classes"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the weighted sum in nats.

        ``fsl_ori``, ``fsl_adv``, ``cls_ori``, ``cls_crop``, ``dom_logits``, ``y``, ``y_query``
        and ``cls_adv`` are those of `parts`.
        """
        return self.parts(
            fsl_ori, fsl_adv, cls_ori, cls_crop, dom_logits, y, y_query, cls_adv
        ).total

    def parts(
        self,
        fsl_ori: Float[Tensor, "queries way"],
        fsl_adv: Float[Tensor, "queries way"],
        cls_ori: Float[Tensor, "batch classes"],
        cls_crop: Float[Tensor, "all_crops classes"] | None,
        dom_logits: DomainLogits | None,
        y: Int[Tensor, batch],
        y_query: Int[Tensor, queries],
        cls_adv: Float[Tensor, "batch classes"] | None = None,
    ) -> SVasPParts:
        """Return the sum and its parts.

        Parameters
        ----------
        fsl_ori, fsl_adv : tensors of shape (queries, way)
            Few-shot logits of the clean and of the adversarial queries.
        cls_ori : tensor of shape (batch, classes)
            Base-class logits of the clean pictures.
        cls_crop : tensor of shape (crops x batch, classes), or None without crops
            Base-class logits of the crops: all first crops, then all second ones. None only where
            the weight of ``crop`` is 0.
        dom_logits : DomainLogits or None
            None where the weight of ``dom`` is 0.
        y : integer tensor of shape (batch,)
            Base classes.
        y_query : integer tensor of shape (queries,)
            The queries' places among the episode's classes.
        cls_adv : tensor of shape (batch, classes), or None
            Needed only where ``cls_adv`` or ``cls_kl`` has a weight.
        """
        weights = self.weights or LossWeights()
        check_logits(fsl_ori, fsl_adv, cls_ori, y, y_query)
        none = cls_ori.new_zeros(())
        crop, dom, adv, adv_kl = none, none, none, none
        if weights.crop:
            if cls_crop is None:
                raise ValueError(
                    "cls_crop must be given where the weight of crop is above 0: "
                    "leave crops out with LossWeights(crop=0)"
                )
            crop = self._crop_loss(cls_crop, cls_ori, y)
        if weights.dom:
            if dom_logits is None:
                raise ValueError("dom_logits must be given where the weight of dom is above 0")
            dom = domain_loss(dom_logits)
        if weights.cls_adv or weights.cls_kl:
            if cls_adv is None:
                raise ValueError("cls_adv must be given where cls_adv or cls_kl has a weight")
            adv, adv_kl = functional.cross_entropy(cls_adv, y), divergence(cls_ori, cls_adv)
        found = {
            "fsl": functional.cross_entropy(fsl_ori, y_query),
            "fsl_adv": functional.cross_entropy(fsl_adv, y_query),
            "fsl_kl": divergence(fsl_ori, fsl_adv),
            "cls": functional.cross_entropy(cls_ori, y),
            "dom": dom,
            "crop": crop,
            "cls_adv": adv,
            "cls_kl": adv_kl,
        }
        total = torch.stack([getattr(weights, name) * part for name, part in found.items()]).sum()
        return SVasPParts(total, **found)

    def _crop_loss(self, cls_crop: Tensor, cls_ori: Tensor, y: Tensor) -> Tensor:
        check_axes("cls_crop", cls_crop, ("all_crops", "classes"))
        count, rest = divmod(len(cls_crop), len(y))
        if rest or not count or cls_crop.shape[1] != cls_ori.shape[1]:
            raise ValueError(
                f"cls_crop must have a whole number of rows for each of {len(y)} pictures and "
                f"{cls_ori.shape[1]} classes, got shape {tuple(cls_crop.shape)}"
            )
        hard = functional.cross_entropy(cls_crop, y.repeat(count))
        soft = soft_cross_entropy(cls_crop, cls_ori.repeat(count, 1))
        return (1 - self.lambda_crop) * hard + self.lambda_crop * soft


def svasp_loss(
    fsl_ori: Float[Tensor, "queries way"],
    fsl_adv: Float[Tensor, "queries way"],
    cls_ori: Float[Tensor, "batch classes"],
    cls_crop: Float[Tensor, "all_crops classes"] | None,
    dom_logits: DomainLogits | None,
    y: Int[Tensor, batch],
    y_query: Int[Tensor, queries] | None = None,
    *,
    lambda_crop: int | float = 0.2,
) -> Float[Tensor, ""]:
    """Return SVasP's objective in nats, with the published weights (li2025svasp).

    Parameters
    ----------
    fsl_ori, fsl_adv : tensors of shape (queries, way)
        Few-shot logits of the clean and of the adversarial queries.
    cls_ori : tensor of shape (batch, classes)
        Base-class logits of the clean pictures.
    cls_crop : tensor of shape (crops x batch, classes), or None
        None leaves the crops' part out.
    dom_logits : DomainLogits
    y : integer tensor of shape (batch,)
        Base classes.
    y_query : integer tensor of shape (queries,), or None
        The queries' places among the episode's classes. None stands for queries that come one of
        each class in turn, as `EpisodeSampler` and `episode_loss` order them.
    lambda_crop : float in [0, 1]

    Raises
    ------
    ValueError
        As `SVasPLoss`, and for queries that are no whole number per class where ``y_query`` is
        None.

    Examples
    --------
    >>> dom = DomainLogits(None, torch.zeros(2, 2), torch.zeros(2, 2))
    >>> two = torch.zeros(2, 2)
    >>> y = torch.tensor([0, 1])
    >>> round((svasp_loss(two, two, two, None, dom, y, y) / torch.tensor(2.0).log()).item(), 3)
    4.0
    """
    if y_query is None:
        check_axes("fsl_ori", fsl_ori, ("queries", "way"))
        queries, way = fsl_ori.shape
        if queries % way:
            raise ValueError(
                f"y_query must be given: {queries} queries are no whole number for each of "
                f"{way} classes"
            )
        y_query = torch.arange(way, device=fsl_ori.device).repeat(queries // way)
    weights = None if cls_crop is not None else LossWeights(crop=0)
    return SVasPLoss(weights=weights, lambda_crop=lambda_crop)(
        fsl_ori, fsl_adv, cls_ori, cls_crop, dom_logits, y, y_query
    )
