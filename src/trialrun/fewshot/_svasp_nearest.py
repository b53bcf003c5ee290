"""The nearest class mean by plain distances, where products of matrices cannot tell.

Ours: slower than products by far, and right for any finite numbers, so it is asked only about
queries that products leave in doubt.
"""

from __future__ import annotations

from trialrun.fewshot import _svasp_stack  # noqa: F401

# isort: split
import torch
from torch import Tensor

from trialrun.core.errors import UsageError

_NUMBERS = 2**18
"""About how many differences are held at a time."""


def nearest_rows(table: Tensor, support: Tensor, asked: Tensor) -> Tensor:
    """Return for every query the place of the class whose mean is nearest, the first of equals.

    ``table`` has shape (n, width), ``support`` (queries, way, shot) and ``asked`` (queries,); the
    last two hold rows. Differences are taken in double precision and measured in units of the
    nearest class's largest, so that no square of that one is too large or too small.

    Raises
    ------
    UsageError
        If double precision cannot hold the differences.
    """
    step = max(1, _NUMBERS // max(1, support[:1].numel() * table.shape[1]))
    parts = []
    for start in range(0, len(asked), step):
        rows, wanted = support[start : start + step], asked[start : start + step]
        means = table[rows].double().mean(dim=2)
        apart = (means - table[wanted].double().unsqueeze(1)).abs_()
        largest = apart.amax(dim=2)
        if not largest.isfinite().all():
            raise UsageError(
                "features must be numbers whose differences can be held in double precision, got "
                f"one of size {float(table[wanted].abs().max()):.3g}: divide them by a number"
            )
        unit = largest.amin(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
        apart /= unit[:, None, None]
        parts.append(apart.square_().sum(dim=2).argmin(dim=1))
    return torch.cat(parts)
