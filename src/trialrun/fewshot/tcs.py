"""Scale every channel by a learned gain.

A draft made by ``trialrun new``: it shows the form. Put the block in place of the gain.
Say here where it comes from: paper key, what was read, what is ours, what differs.
"""

from __future__ import annotations

from trialrun.fewshot import _tcs_stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Float
from torch import Tensor, nn

from trialrun.core.seeds import split
from trialrun.core.shapes import check_axes, check_range


class Tcs(nn.Module):
    """Scale channels by a learned gain.

    Parameters
    ----------
    channels : int, at least 1
    seed : int
        Seed of the gain, drawn evenly from [0, 1).

    Raises
    ------
    ValueError
        If channels is below 1, or the input has another shape.

    Examples
    --------
    >>> Tcs(channels=3)(torch.ones(2, 5, 3)).shape
    torch.Size([2, 5, 3])
    """

    def __init__(self, *, channels: int, seed: int = 0) -> None:
        super().__init__()
        check_range("channels", channels, low=1)
        self.channels = channels
        generator = torch.Generator().manual_seed(split(seed, "gain"))
        self.gain = nn.Parameter(torch.rand(channels, generator=generator))

    def forward(
        self, x: Float[Tensor, "batch time channels"]
    ) -> Float[Tensor, "batch time channels"]:
        """Scale ``x``, whose last axis holds the channels."""
        check_axes("x", x, ("batch", "time", "channels"))
        if x.shape[-1] != self.channels:
            raise ValueError(f"x must have {self.channels} channels, got {x.shape[-1]}")
        return x * self.gain
