"""What FLTAttention accepts, and the state that its steps hand on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trialrun.attention import _stack  # noqa: F401

# isort: split
import torch
from torch import Tensor

from trialrun.attention._flt_linear import Sums
from trialrun.attention._flt_rpe import SpectralRPE
from trialrun.core.errors import UsageError
from trialrun.core.shapes import check_axes

_SHORTEST_SCALE = 2.0


@dataclass(frozen=True)
class FLTState:
    """What `FLTAttention.step` hands on: of constant size, whatever was read.

    Parameters
    ----------
    sums : Sums
        Tensors of shape (batch, heads, features, width of a head + 1) and (batch, heads).
    position : int
        Tokens read so far.
    owner : object
        Marks of the module and of its mask, as last loaded or redrawn, that the sums belong to.
    """

    sums: Sums
    position: int
    owner: object


def check_tokens(x: Tensor, padding: Tensor | None, weight: Tensor) -> None:
    """Raise unless ``x`` is (batch, time, width), fit for ``weight``, and ``padding`` fits it."""
    check_axes("x", x, ("batch", "time", "width"))
    width = weight.shape[1]
    if x.shape[2] != width or not x.is_floating_point():
        raise UsageError(
            f"x must hold floating-point tokens of width {width}, got {x.dtype} of width "
            f"{x.shape[2]}"
        )
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise UsageError(
            f"x must be of the module's dtype {weight.dtype}, got {x.dtype}: convert one of them"
        )
    if padding is not None and (padding.shape != x.shape[:2] or padding.dtype is not torch.bool):
        raise UsageError(
            f"padding must be bool of shape (batch, time) = {tuple(x.shape[:2])}, True where a "
            f"token is real, got {padding.dtype} of shape {tuple(padding.shape)}"
        )


def check_state(x: Tensor, state: Any, owner: object) -> None:
    """Raise unless ``state`` is None or comes from ``owner``, for the batch of ``x``."""
    if state is None:
        return
    if not isinstance(state, FLTState):
        raise UsageError(
            f"state must be an FLTState from this module or None, got {type(state).__name__}"
        )
    if state.owner != owner:
        raise UsageError(
            "state must come from this very module since its weights were last loaded, or it or "
            "its mask redrawn, got another's: begin anew with state=None"
        )
    if state.sums.peak.shape[0] != x.shape[0]:
        raise UsageError(
            f"state must be of the same batch size as x ({x.shape[0]}), got "
            f"{state.sums.peak.shape[0]}"
        )


def places_of(
    x: Tensor,
    coords: Tensor | None,
    rpe: SpectralRPE | None,
    *,
    first: int = 0,
    real: Tensor | None = None,
) -> Tensor | None:
    """Return coordinates (time, dim) or (batch, time, dim), or None without a mask.

    Where none are given, they are indices that begin at ``first``, of which index 0 has been read.
    Places that are not ``real`` (batch, time) get the coordinates of one that is.
    """
    if rpe is None:
        if coords is not None:
            raise UsageError("coords are of no use without rpe: give FLTAttention a mask")
        return None
    if coords is None:
        if rpe.dim != 1:
            raise UsageError(
                f"coords are needed, of shape (batch, time, {rpe.dim}): the mask is over points "
                f"of {rpe.dim} dimensions"
            )
        if rpe.scale < _SHORTEST_SCALE:
            raise UsageError(
                f"coords are needed, such as index / length, got None with a mask of scale "
                f"{rpe.scale:g}, which cannot tell whole indices apart: scale must be at least "
                f"{_SHORTEST_SCALE:g} tokens"
            )
        rpe.check_spread(float(max(0, first + x.shape[1] - 1)))
        return torch.arange(first, first + x.shape[1], device=x.device)[:, None]
    if not isinstance(coords, Tensor):
        raise UsageError(f"coords must be a tensor or None, got {type(coords).__name__}")
    if tuple(coords.shape[:-1]) not in ((x.shape[1],), tuple(x.shape[:2])):
        raise UsageError(
            f"coords must have shape (time, {rpe.dim}) or (batch, time, {rpe.dim}) to fit x of "
            f"shape {tuple(x.shape)}, got {tuple(coords.shape)}"
        )
    rpe.check_coords(coords, real)
    return coords if real is None else _without_padded(coords, real)


def _without_padded(coords: Tensor, real: Tensor) -> Tensor:
    """Put each row's first real place, or 0 where it has none, in its padded ones."""
    seen = real if coords.ndim == 3 else real.any(0)
    first = seen.int().argmax(-1)[..., None, None].expand(*seen.shape[:-1], 1, coords.shape[-1])
    stand_in = coords.detach().gather(-2, first)
    stand_in = stand_in.masked_fill(~seen.any(-1)[..., None, None], 0)
    return torch.where(seen.unsqueeze(-1), coords, stand_in)
