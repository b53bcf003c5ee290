"""One head per training domain on a shared encoder, in one contraction (yao2023d3g).

Written from the digest and the project's notes on the method; no author code exists that we know
of. Ours, not theirs: ``rank`` (heads that share a few bases, for domains with few examples).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn


def linear_layer(n_in: int, n_out: int, generator: torch.Generator) -> nn.Linear:
    """Make a linear layer, uniform within 1/sqrt(n_in), from ``generator`` alone."""
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out)
    bound = 1 / math.sqrt(max(n_in, 1))
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer


def mlp(widths: Sequence[int], generator: torch.Generator) -> nn.Sequential:
    """Make linear layers between ``widths``, each followed by a ReLU.

    Examples
    --------
    >>> mlp((2, 8, 4), torch.Generator().manual_seed(0))(torch.zeros(3, 2)).shape
    torch.Size([3, 4])
    """
    parts: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        parts += [linear_layer(n_in, n_out, generator), nn.ReLU()]
    return nn.Sequential(*parts)


def encoder_width(encoder: nn.Module) -> int:
    """Return the width of the last linear layer in ``encoder``."""
    linears = [part for part in encoder.modules() if isinstance(part, nn.Linear)]
    if not linears:
        raise ValueError(
            "width must be given for an encoder without a linear layer: the number of features "
            "it returns per example"
        )
    return linears[-1].out_features


class RelationWeightedHeads(nn.Module):
    """Give the output of every training domain's head for every example.

    Parameters
    ----------
    encoder : torch.nn.Module
        Maps a batch to features of shape (batch, width). Used as it is, not copied.
    n_domains : int, at least 1
        Number of training domains.
    n_out : int, at least 1
        Outputs per head: classes, or numbers to predict.
    width : int or None
        Features the encoder returns; None takes the width of its last linear layer.
    rank : int or None
        None gives every domain a head of its own. A number makes each head a mixture of that
        many shared bases (biases stay the domain's own).
    seed : int, default=0
        Start of the heads; torch's global generator is left alone.

    Raises
    ------
    ValueError
        For a number below 1, or an encoder that returns another shape than (batch, width).

    Notes
    -----
    yao2023d3g. Time and memory of a step grow with batch x n_domains x n_out x width; with
    ``rank``, with batch x rank x n_out x (width + n_domains).

    Examples
    --------
    >>> net = RelationWeightedHeads(nn.Identity(), n_domains=5, n_out=3, width=2)
    >>> net(torch.zeros(7, 2)).shape
    torch.Size([7, 5, 3])
    """

    def __init__(
        self,
        encoder: nn.Module,
        n_domains: int,
        n_out: int,
        *,
        width: int | None = None,
        rank: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        width = encoder_width(encoder) if width is None else width
        sizes = {"n_domains": n_domains, "n_out": n_out, "width": width}
        for name, size in sizes.items() if rank is None else (*sizes.items(), ("rank", rank)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size!r}")
        self.encoder = encoder
        self.n_domains, self.n_out, self.width, self.rank = n_domains, n_out, width, rank
        generator = torch.Generator().manual_seed(seed)
        bound = 1 / math.sqrt(width)
        n_bases = n_domains if rank is None else rank
        weight = torch.empty(n_bases, n_out, width).uniform_(-bound, bound, generator=generator)
        bias = torch.empty(n_domains, n_out).uniform_(-bound, bound, generator=generator)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        if rank is not None:
            mix = torch.randn(n_domains, rank, generator=generator) / math.sqrt(rank)
            self.mix = nn.Parameter(mix)

    def heads(
        self, features: Float[Tensor, "batch width"]
    ) -> Float[Tensor, "batch domains outputs"]:
        """Apply all heads to encoded examples."""
        if features.ndim != 2 or features.shape[1] != self.width:
            raise ValueError(
                f"encoder must return shape (batch, {self.width}), got {tuple(features.shape)}: "
                "pass width= to RelationWeightedHeads"
            )
        flat = self.weight.reshape(-1, self.width)
        if self.rank is None:
            out = nn.functional.linear(features, flat, self.bias.reshape(-1))
            return out.view(len(features), self.n_domains, self.n_out)
        bases = nn.functional.linear(features, flat).view(len(features), self.rank, self.n_out)
        return self.mix @ bases + self.bias

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch domains outputs"]:
        """Encode a batch once and apply all heads to it."""
        return self.heads(self.encoder(x))
