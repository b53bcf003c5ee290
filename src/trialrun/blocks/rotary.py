"""Rotary position embedding as one object: any layout, any positions (su2021roformer).

Written from the definition: pair ``m`` of a vector at position ``p`` is turned by the angle
``p * base**(-2m/dim)``. Ours: negative and fractional positions, rotation of the first ``dim``
features only, and a choice between the half-split layout (Llama and its relatives) and the
interleaved one (the paper's).
"""

from __future__ import annotations

from typing import Any

from trialrun.blocks import _stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from trialrun.core.shapes import check_range


class Rotary(nn.Module):
    """Turn feature pairs by angles that grow with position.

    Angles are computed in float32, or in float64 for float64 input, whatever the dtype of the
    vectors, and the result has the dtype of the input (su2021roformer).

    Parameters
    ----------
    dim : int
        Number of leading features that are turned; even, at least 2. Features beyond it pass
        through unchanged.
    base : float
        Wavelengths run from 2 pi to 2 pi times ``base``, in tokens; above 1.
    interleaved : bool
        Pair features (0, 1), (2, 3), ... instead of (0, dim/2), (1, dim/2 + 1), ....

    Raises
    ------
    ValueError
        If ``dim`` is not an even positive number or ``base`` is not above 1.

    Examples
    --------
    >>> import torch
    >>> rotary = Rotary(4)
    >>> x = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    >>> rotary(x, torch.tensor([0.0])).tolist()
    [[1.0, 0.0, 0.0, 0.0]]
    >>> there = rotary(x, torch.tensor([2.5]))
    >>> torch.allclose(rotary(there, torch.tensor([-2.5])), x)
    True
    """

    inverse: Tensor

    def __init__(self, dim: int, base: float = 10000.0, *, interleaved: bool = False) -> None:
        super().__init__()
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 2 or dim % 2:
            raise ValueError(f"dim must be an even number of features, at least 2, got {dim!r}")
        check_range("base", base, low=1.0 + 1e-9)
        self.dim = dim
        self.base = base
        self.interleaved = interleaved
        powers = torch.arange(0, dim, 2, dtype=torch.float64) / dim
        self.register_buffer("inverse", base**-powers, persistent=False)

    @classmethod
    def from_frequencies(
        cls, frequencies: Float[Tensor, " pairs"], *, interleaved: bool = False
    ) -> Rotary:
        """Make a rotary with given angles per token, such as a loaded model's own table.

        Parameters
        ----------
        frequencies : tensor of shape (pairs,)
            Radians per token of each pair; kept as they are.
        interleaved : bool
            Layout of the pairs, as in the class.

        Raises
        ------
        ValueError
            If ``frequencies`` is not a vector.
        """
        if frequencies.ndim != 1 or not len(frequencies):
            raise ValueError(
                f"frequencies must be a vector, one per pair, got {tuple(frequencies.shape)}"
            )
        rotary = cls(2 * len(frequencies), interleaved=interleaved)
        rotary.base = float("nan")
        rotary.inverse = frequencies.detach().clone()
        return rotary

    def _apply(self, fn: Any, recurse: bool = True) -> Rotary:
        # `module.half()` must not round the table: angles at position 10**5 would be lost.
        table = self.inverse
        super()._apply(fn, recurse)
        self.inverse = table.to(self.inverse.device)
        return self

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return f"{self.dim}, base={self.base:g}, interleaved={self.interleaved}"

    def forward(
        self, x: Float[Tensor, "*rows time width"], positions: Shaped[Tensor, "*groups steps"]
    ) -> Float[Tensor, "*rows time width"]:
        """Rotate ``x``.

        Parameters
        ----------
        x : tensor of shape (..., time, width)
            Vectors; ``width`` is at least ``dim``.
        positions : tensor of shape (time,) or (batch, time)
            Position of each vector in tokens; integers, fractions and negative numbers alike. A
            batch axis is matched with the first axis of ``x``; a ``time`` of 1 is shared by all.

        Raises
        ------
        ValueError
            If ``x`` is narrower than ``dim`` or ``positions`` does not fit it.
        """
        if x.shape[-1] < self.dim:
            raise ValueError(f"x must have at least {self.dim} features, got {x.shape[-1]}")
        fits = positions.ndim in (1, 2) and positions.shape[-1] in (1, x.shape[-2])
        if not fits or (positions.ndim == 2 and positions.shape[0] not in (1, x.shape[0])):
            raise ValueError(
                f"positions must have shape (time,) or (batch, time) to fit x of shape "
                f"{tuple(x.shape)}, got {tuple(positions.shape)}"
            )
        kind = torch.float64 if x.dtype == torch.float64 else torch.float32
        angle = positions.to(kind).unsqueeze(-1) * self.inverse.to(x.device, kind)
        if positions.ndim == 2:
            angle = angle.reshape(angle.shape[0], *(1,) * (x.ndim - 3), *angle.shape[1:])
        return self._turn(x, angle.cos(), angle.sin())

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        turned, rest = x[..., : self.dim], x[..., self.dim :]
        if self.interleaved:
            even, odd = turned[..., 0::2], turned[..., 1::2]
            pairs = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
            turned = pairs.flatten(-2)
            return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned
        half = self.dim // 2
        first, second = turned[..., :half], turned[..., half:]
        parts = (first * cos - second * sin, second * cos + first * sin)
        return torch.cat((*parts, rest), dim=-1) if rest.shape[-1] else torch.cat(parts, dim=-1)
