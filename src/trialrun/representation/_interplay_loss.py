"""The same loss for networks, from mini-batches, without bias."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trialrun.core.errors import UsageError
from trialrun.representation._interplay_checks import check_number

CROSS = ("halves", "pairs", "plain")


def _check(first: Tensor, second: Tensor, least: int) -> None:
    if first.ndim != 2 or first.shape != second.shape:
        raise UsageError(
            "first and second must be views of the same inputs, both of shape (batch, components), "
            f"got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    if len(first) < least:
        raise UsageError(
            f"batch must hold at least {least} inputs for an unbiased estimate, got {len(first)}"
        )


def _covariance(first: Tensor, second: Tensor) -> Tensor:
    return (first.T @ first + second.T @ second) / (2 * len(first))


def _penalty(first: Tensor, second: Tensor, cross: str) -> Tensor:
    """Estimate |E[psi psi^T] - I|^2; the square needs two independent estimates of its inside."""
    eye = torch.eye(first.shape[1], dtype=first.dtype, device=first.device)
    batch = len(first)
    if cross == "halves":
        half = batch // 2
        left = _covariance(first[:half], second[:half])
        right = _covariance(first[half:], second[half:])
        return ((left - eye) * (right - eye)).sum()
    moment = _covariance(first, second)
    if cross == "plain":
        return ((moment - eye) ** 2).sum()
    # All pairs of different inputs: the square of the sum less the squares of its terms.
    own = ((first**2).sum(dim=1) ** 2 + (second**2).sum(dim=1) ** 2) / 4
    own = own + (first * second).sum(dim=1) ** 2 / 2
    square = (batch * (moment**2).sum() - own.sum() / batch) / (batch - 1)
    return square - 2 * moment.diagonal().sum() + first.shape[1]


def vcreg_loss(
    first: Float[Tensor, "batch components"],
    second: Float[Tensor, "batch components"],
    *,
    beta: float | int = 1.0,
    cross: str = "halves",
) -> Float[Tensor, ""]:
    """Estimate the loss of a mini-batch; see `VCRegLoss`.

    Half precision is summed in float32, and the loss is then float32, under autocast too.

    Examples
    --------
    >>> z = torch.eye(4)
    >>> float(vcreg_loss(z, z, cross="plain"))
    2.25
    """
    if cross not in CROSS:
        raise UsageError(f"cross must be one of {', '.join(CROSS)}, got {cross!r}")
    check_number("beta", beta)
    _check(first, second, 1 if cross == "plain" else 2)
    with torch.autocast(first.device.type, enabled=False):
        if first.dtype in (torch.float16, torch.bfloat16):
            first = first.float()
        if second.dtype in (torch.float16, torch.bfloat16):
            second = second.float()
        apart = ((first - second) ** 2).sum() / len(first)
        return beta * apart + _penalty(first, second, cross)


class VCRegLoss(nn.Module):
    """Estimate beta E|psi(v) - psi(v')|^2 + |E[psi psi^T] - I|^2 (cabannes2023interplay).

    What a network minimises to reach the components that `KernelVCReg` gives in closed form.
    The regularisation 2 reg |psi|_H^2 is not in it: for a last layer that is linear in features,
    add 2 reg times the sum of its squared weights.

    Parameters
    ----------
    beta : float, at least 0
        Weight of agreement.
    cross : {"halves", "pairs", "plain"}
        How the square of the covariance is estimated: from two halves of the batch ("halves",
        unbiased), from all pairs of different inputs ("pairs", unbiased with less noise), or by
        squaring the batch's own covariance ("plain", too high by a term of order 1 / batch).

    Raises
    ------
    ValueError
        For settings out of range, views of unlike shapes, or fewer than 2 inputs.

    Examples
    --------
    >>> z = 2**0.5 * torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    >>> abs(round(float(VCRegLoss(cross="plain")(z, z)), 5)), float(VCRegLoss()(z, 0.5 * z)) > 0
    (0.0, True)
    """

    def __init__(self, beta: float | int = 1.0, *, cross: str = "halves") -> None:
        super().__init__()
        check_number("beta", beta)
        if cross not in CROSS:
            raise UsageError(f"cross must be one of {', '.join(CROSS)}, got {cross!r}")
        self.beta, self.cross = float(beta), cross

    def forward(
        self,
        first: Float[Tensor, "batch components"],
        second: Float[Tensor, "batch components"],
    ) -> Float[Tensor, ""]:
        """Return the batch's loss.

        Parameters
        ----------
        first, second : tensor of shape (batch, components)
            psi at two views of every input. Nothing is normalised.
        """
        return vcreg_loss(first, second, beta=self.beta, cross=self.cross)

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"beta={self.beta}, cross={self.cross!r}"
