"""Few-shot heads on features: prototypes and cosines (snell2017, gidaris2018).

All take any number of leading axes, so that many episodes go through in one call.
"""

from __future__ import annotations

from trialrun.fewshot import _svasp_stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from trialrun.core.shapes import check_range
from trialrun.fewshot._svasp_style import at_least_single


def check_episode(support: Tensor, query: Tensor) -> None:
    """Raise unless support is (..., way, shot, width) and query (..., queries, width).

    Raises
    ------
    ValueError
        Naming both shapes.
    """
    good = support.ndim >= 3 and query.ndim == support.ndim - 1
    good = good and support.shape[-1] == query.shape[-1]
    if not good or support.shape[:-3] != query.shape[:-2]:
        raise ValueError(
            "support must have shape (..., way, shot, width) and query (..., queries, width), "
            f"got {tuple(support.shape)} and {tuple(query.shape)}"
        )


class ProtoNetHead(nn.Module):
    """Score queries by their squared distance to the mean of each class (snell2017).

    Parameters
    ----------
    scale : float, above 0
        Factor on the negative squared distance.

    Raises
    ------
    ValueError
        For a scale that is not above 0, or features whose shapes do not go together.

    Examples
    --------
    >>> support = torch.tensor([[[0.0, 0.0]], [[3.0, 4.0]]])  # two classes, one picture each
    >>> ProtoNetHead()(support, torch.tensor([[0.0, 0.0]]))
    tensor([[ -0., -25.]])
    """

    def __init__(self, *, scale: int | float = 1.0) -> None:
        super().__init__()
        check_range("scale", scale, low=1e-12)
        self.scale = scale

    def forward(
        self,
        support: Float[Tensor, "*episodes way shot width"],
        query: Float[Tensor, "*episodes queries width"],
    ) -> Float[Tensor, "*episodes queries way"]:
        """Return logits of shape (..., queries, way).

        ``support`` has shape (..., way, shot, width), ``query`` (..., queries, width).
        """
        check_episode(support, query)
        prototypes = at_least_single(support).mean(dim=-2)
        # Distances do not mind a shift, but products of large numbers cancel.
        middle = prototypes.mean(dim=-2, keepdim=True)
        prototypes, query = prototypes - middle, at_least_single(query) - middle
        cross = torch.einsum("...qd,...wd->...qw", query, prototypes)
        sizes = prototypes.square().sum(-1).unsqueeze(-2) + query.square().sum(-1, keepdim=True)
        return (-self.scale * (sizes - 2 * cross)).to(support.dtype)

    def nearest(self, support: Tensor, query: Tensor) -> Tensor:
        """Return the place of the nearest class, (..., queries), without the distances.

        ``support`` and ``query`` are those of `forward`. A query's own length is the same for all
        classes, so it is left out.
        """
        check_episode(support, query)
        support, query = at_least_single(support), at_least_single(query)
        middle = support.mean(dim=(-3, -2))
        prototypes = support.mean(dim=-2) - middle[..., None, :]
        half = prototypes.square().sum(-1, keepdim=True) / 2
        scores = torch.matmul(prototypes, (query - middle[..., None, :]).mT) - half
        # Over this axis the kernel of max is many times as fast as that of argmax.
        return scores.max(dim=-2).indices


class CosineHead(nn.Module):
    """Score queries by the cosine with the mean of each class, times a learned temperature.

    Parameters
    ----------
    temperature : float, above 0
        Where the learned factor on the cosines starts (gidaris2018).

    Raises
    ------
    ValueError
        For a temperature that is not above 0, or features whose shapes do not go together.

    Examples
    --------
    >>> support = torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]])
    >>> CosineHead(temperature=10)(support, torch.tensor([[5.0, 0.0]])).detach()
    tensor([[10.,  0.]])
    """

    def __init__(self, *, temperature: int | float = 10.0) -> None:
        super().__init__()
        check_range("temperature", temperature, low=1e-12)
        self.temperature = nn.Parameter(torch.tensor(float(temperature)))

    def forward(
        self,
        support: Float[Tensor, "*episodes way shot width"],
        query: Float[Tensor, "*episodes queries width"],
    ) -> Float[Tensor, "*episodes queries way"]:
        """Return logits of shape (..., queries, way).

        ``support`` has shape (..., way, shot, width), ``query`` (..., queries, width).
        """
        check_episode(support, query)
        prototypes = functional.normalize(support.mean(dim=-2), dim=-1)
        unit = functional.normalize(query, dim=-1)
        return self.temperature * torch.einsum("...qd,...wd->...qw", unit, prototypes)
