"""Radial frequency bands, and foreground pixels as a list of tokens (bo2024famnet).

Ours: the features are never brought up to the mask's size. Bilinear interpolation, choosing the
foreground and average pooling are all linear, so they are folded into one small matrix per image.
"""

from __future__ import annotations

from trialrun.fewshot import _famnet_stack  # noqa: F401

# isort: split
import math
from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

_HALVES = (torch.float16, torch.bfloat16)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type to sum in: half precision cannot hold a sum over many pixels."""
    return torch.float32 if dtype in _HALVES else dtype


def radial_masks(rows: int, columns: int, cutoff: float) -> Bool[Tensor, "3 rows columns"]:
    """Return the low, middle and high band of a centred spectrum as masks that share nothing.

    Parameters
    ----------
    rows, columns : int
        Size of the spectrum; frequency zero lies at ``(rows // 2, columns // 2)``.
    cutoff : float in (0, 0.5)
        With R half the diagonal, ``hypot(rows / 2, columns / 2)``: low is up to ``cutoff R`` from
        the centre, high from ``(1 - cutoff) R`` on, the middle strictly between. Sizes are not
        halved in whole numbers; that would differ at odd sizes, not at the paper's 30 x 30.

    Raises
    ------
    ValueError
        If a size is below 1 or the cutoff is out of range.

    Examples
    --------
    >>> radial_masks(30, 30, 0.3).sum(dim=(1, 2)).tolist()
    [129, 552, 219]
    """
    check_cutoff(cutoff)
    if rows < 1 or columns < 1:
        raise ValueError(f"rows and columns must be at least 1, got {rows} and {columns}")
    return _radial_masks(rows, columns, cutoff).clone()


@lru_cache(maxsize=32)
def _radial_masks(rows: int, columns: int, cutoff: float) -> Tensor:
    far = torch.hypot(
        torch.arange(rows, dtype=torch.float64)[:, None] - rows // 2,
        torch.arange(columns, dtype=torch.float64)[None, :] - columns // 2,
    )
    radius = math.hypot(rows / 2, columns / 2)
    low, high = far <= cutoff * radius, far >= (1 - cutoff) * radius
    return torch.stack([low, ~(low | high), high])


def check_cutoff(cutoff: float) -> None:
    """Raise unless the cutoff leaves room for three bands."""
    if not 0 < cutoff < 0.5:
        raise ValueError(f"cutoff must be in (0, 0.5) so that three bands exist, got {cutoff!r}")


def split_bands(
    x: Float[Tensor, "*batch rows columns"], cutoff: float
) -> tuple[
    Float[Tensor, "*batch rows columns"],
    Float[Tensor, "*batch rows columns"],
    Float[Tensor, "*batch rows columns"],
]:
    """Split the last two axes into low, middle and high frequencies that sum to ``x``.

    The masks are symmetric about frequency zero, so a real transform does; the middle is what the
    others leave. Half precision is transformed in float32.

    Raises
    ------
    ValueError
        If the cutoff is out of range.

    Examples
    --------
    >>> low, middle, high = split_bands(torch.ones(4, 4), 0.3)
    >>> bool(torch.allclose(low, torch.ones(4, 4))), float(high.abs().max())
    (True, 0.0)
    """
    rows, columns = x.shape[-2:]
    masks = _outer_masks(rows, columns, cutoff).to(x.device)
    wide = x.to(_wide(x.dtype))
    spectrum = torch.fft.rfft2(wide)[..., None, :, :] * masks
    low, high = torch.fft.irfft2(spectrum, s=(rows, columns)).unbind(-3)
    return low.to(x.dtype), (wide - low - high).to(x.dtype), high.to(x.dtype)


@lru_cache(maxsize=32)
def _outer_masks(rows: int, columns: int, cutoff: float) -> Tensor:
    """Return the low and the high mask over the half spectrum that `rfft2` gives."""
    masks = torch.fft.ifftshift(radial_masks(rows, columns, cutoff), dim=(-2, -1))
    return masks[::2, :, : columns // 2 + 1]


def split_token_bands(
    tokens: Float[Tensor, "*batch tokens"], cutoff: float
) -> tuple[
    Float[Tensor, "*batch tokens"], Float[Tensor, "*batch tokens"], Float[Tensor, "*batch tokens"]
]:
    """Fold a list of tokens into a square, split the square's frequencies, and unfold.

    The square is a list folded at an arbitrary width, not the image plane: the bands depend on the
    tokens' order. Lists that fill no square are padded with zeros at the end.

    Raises
    ------
    ValueError
        If the list is empty or the cutoff is out of range.

    Examples
    --------
    >>> low, middle, high = split_token_bands(torch.randn(2, 7), 0.3)
    >>> low.shape
    torch.Size([2, 7])
    """
    n = tokens.shape[-1]
    if n < 1:
        raise ValueError("tokens must hold at least one token, got none")
    side = math.isqrt(n - 1) + 1
    square = F.pad(tokens, (0, side * side - n)).unflatten(-1, (side, side))
    low, middle, high = (band.flatten(-2)[..., :n] for band in split_bands(square, cutoff))
    return low, middle, high


def interpolation_matrix(out: int, size: int) -> Float[Tensor, "out size"]:
    """Return the matrix of one axis of bilinear resizing, ``align_corners=False``, in float64.

    Examples
    --------
    >>> interpolation_matrix(4, 2)[1].tolist()
    [0.75, 0.25]
    """
    at = ((torch.arange(out, dtype=torch.float64) + 0.5) * size / out - 0.5).clamp(0, size - 1)
    lower = at.floor().long()
    upper = (lower + 1).clamp(max=size - 1)
    share = at - lower
    matrix = torch.zeros(out, size, dtype=torch.float64)
    rows = torch.arange(out)
    matrix[rows, lower] += 1 - share
    matrix[rows, upper] += share
    return matrix


@lru_cache(maxsize=32)
def _interpolation(out: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a matrix that is kept: nobody may write to it."""
    return interpolation_matrix(out, size).to(device, dtype)


def masked_average(
    features: Float[Tensor, "batch channels h w"], mask: Float[Tensor, "batch rows columns"]
) -> Float[Tensor, "batch channels"]:
    """Average features under a mask, as if they had been resized to the mask's size.

    The denominator is the mask's sum plus 1e-5. Half precision is averaged in float32, with
    autocast off: a sum over many pixels would not fit.

    Examples
    --------
    >>> masked_average(torch.ones(1, 2, 3, 3), torch.ones(1, 9, 9)).round(decimals=3)
    tensor([[1., 1.]])
    """
    with torch.autocast(features.device.type, enabled=False):
        wide = features.to(_wide(features.dtype))
        down, across = (
            _interpolation(mask.shape[axis], wide.shape[axis + 1], wide.dtype, wide.device)
            for axis in (1, 2)
        )
        mask = mask.to(wide)
        share = mask / (mask.sum(dim=(1, 2), keepdim=True) + 1e-5)
        averaged = torch.einsum("bchw,bhw->bc", wide, down.T @ share @ across)
    return averaged.to(features.dtype)


def _corners(at: Tensor, out: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    place = ((at.double() + 0.5) * size / out - 0.5).clamp(0, size - 1)
    lower = place.floor().long()
    return lower, (lower + 1).clamp(max=size - 1), place - lower


@torch.no_grad()
def token_matrices(
    mask: Bool[Tensor, "batch rows columns"],
    size: tuple[int, int],
    n_tokens: int,
    dtype: torch.dtype = torch.float64,
) -> Float[Tensor, "batch places tokens"]:
    """Return the matrices that make tokens of (h, w) feature maps: one column per token.

    Each foreground pixel, in raster order, is interpolated from the map; the list is then brought
    to ``n_tokens`` by adaptive average pooling, which repeats pixels where there are fewer. A mask
    without foreground gives zeros. All images are done at once: a pixel that serves a token is an
    entry of one long list.

    Examples
    --------
    >>> token_matrices(torch.ones(1, 2, 2, dtype=torch.bool), (2, 2), 2)[0].tolist()
    [[0.5, 0.0], [0.5, 0.0], [0.0, 0.5], [0.0, 0.5]]
    """
    (height, width), device = size, mask.device
    places = height * width
    matrix = torch.zeros(len(mask) * places * n_tokens, dtype=dtype, device=device)
    _, rows, columns = mask.nonzero(as_tuple=True)
    pixels = mask.flatten(1).sum(dim=1)[:, None]
    token = torch.arange(n_tokens, device=device)
    first = token * pixels // n_tokens
    length = ((token + 1) * pixels + n_tokens - 1) // n_tokens - first
    start = (first + pixels.cumsum(0) - pixels).flatten()
    length = length.flatten()
    column = torch.arange(len(mask), device=device)[:, None] * (places * n_tokens) + token
    owner = torch.arange(len(length), device=device).repeat_interleave(length)
    step = torch.arange(len(owner), device=device)
    pixel = step + (start - (length.cumsum(0) - length))[owner]
    column, share = column.flatten()[owner], (1 / length.double())[owner]
    top, bottom, down = (part[pixel] for part in _corners(rows, mask.shape[1], height))
    left, right, across = (part[pixel] for part in _corners(columns, mask.shape[2], width))
    for row, by_row in ((top, 1 - down), (bottom, down)):
        for place, by_place in ((left, 1 - across), (right, across)):
            at = (row * width + place) * n_tokens + column
            matrix.index_add_(0, at, (share * by_row * by_place).to(dtype))
    return matrix.view(len(mask), places, n_tokens)


def foreground_tokens(
    features: Float[Tensor, "batch channels h w"],
    mask: Bool[Tensor, "batch rows columns"],
    n_tokens: int,
) -> Float[Tensor, "batch channels tokens"]:
    """Take the foreground of a feature map as a list of exactly ``n_tokens`` tokens.

    Parameters
    ----------
    features : tensor of shape (batch, channels, h, w)
    mask : bool tensor of shape (batch, rows, columns)
        At any size; pixels are taken in raster order.
    n_tokens : int, at least 1

    Raises
    ------
    ValueError
        If ``n_tokens`` is below 1.

    Examples
    --------
    >>> foreground_tokens(torch.ones(1, 4, 8, 8), torch.ones(1, 32, 32, dtype=torch.bool), 9).shape
    torch.Size([1, 4, 9])
    """
    if n_tokens < 1:
        raise ValueError(f"n_tokens must be at least 1, got {n_tokens!r}")
    size = (features.shape[2], features.shape[3])
    matrices = token_matrices(mask, size, n_tokens, _wide(features.dtype))
    return features.flatten(2) @ matrices.to(features)
