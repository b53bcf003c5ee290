"""Radial frequency bands, and foreground pixels as a list of tokens (bo2024famnet).

Ours: the features are never brought up to the mask's size. Bilinear interpolation, choosing the
foreground and average pooling are all linear, so they are folded into one small matrix per image.
"""

from __future__ import annotations

from trialrun.fewshot import _famnet_stack  # noqa: F401

# isort: split
import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

_HALVES = (torch.float16, torch.bfloat16)


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
    masks = torch.fft.ifftshift(radial_masks(rows, columns, cutoff), dim=(-2, -1))
    masks = masks[..., : columns // 2 + 1].to(x.device)
    wide = x.float() if x.dtype in _HALVES else x
    spectrum = torch.fft.rfft2(wide)
    low, high = (torch.fft.irfft2(spectrum * masks[i], s=(rows, columns)) for i in (0, 2))
    return low.to(x.dtype), (wide - low - high).to(x.dtype), high.to(x.dtype)


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
        wide = features.float() if features.dtype in _HALVES else features
        down = interpolation_matrix(mask.shape[1], features.shape[2]).to(wide)
        across = interpolation_matrix(mask.shape[2], features.shape[3]).to(wide)
        mask = mask.to(wide)
        share = mask / (mask.sum(dim=(1, 2), keepdim=True) + 1e-5)
        averaged = torch.einsum("bchw,bhw->bc", wide, down.T @ share @ across)
    return averaged.to(features.dtype)


def _corners(at: Tensor, out: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    place = ((at.double() + 0.5) * size / out - 0.5).clamp(0, size - 1)
    lower = place.floor().long()
    return lower, (lower + 1).clamp(max=size - 1), place - lower


@torch.no_grad()
def token_matrix(
    mask: Bool[Tensor, "rows columns"], size: tuple[int, int], n_tokens: int
) -> Float[Tensor, "places tokens"]:
    """Return the matrix that makes tokens of an (h, w) feature map: one column per token.

    Each foreground pixel, in raster order, is interpolated from the map; the list is then brought
    to ``n_tokens`` by adaptive average pooling, which repeats pixels where there are fewer. A mask
    without foreground gives zeros.

    Examples
    --------
    >>> token_matrix(torch.ones(2, 2, dtype=torch.bool), (2, 2), 2).tolist()
    [[0.5, 0.0], [0.5, 0.0], [0.0, 0.5], [0.0, 0.5]]
    """
    height, width = size
    matrix = torch.zeros(height * width * n_tokens, dtype=torch.float64, device=mask.device)
    rows, columns = mask.nonzero(as_tuple=True)
    pixels = len(rows)
    if not pixels:
        return matrix.view(height * width, n_tokens)
    token = torch.arange(n_tokens, device=mask.device)
    first = token * pixels // n_tokens
    length = -(-(token + 1) * pixels // n_tokens) - first
    owner = token.repeat_interleave(length)
    step = torch.arange(len(owner), device=mask.device)
    pixel = first[owner] + step - (length.cumsum(0) - length)[owner]
    top, bottom, down = _corners(rows[pixel], mask.shape[0], height)
    left, right, across = _corners(columns[pixel], mask.shape[1], width)
    share = 1 / length[owner].double()
    for row, by_row in ((top, 1 - down), (bottom, down)):
        for column, by_column in ((left, 1 - across), (right, across)):
            place = (row * width + column) * n_tokens + owner
            matrix.index_add_(0, place, share * by_row * by_column)
    return matrix.view(height * width, n_tokens)


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
    matrices = torch.stack([token_matrix(one, size, n_tokens) for one in mask])
    return features.flatten(2) @ matrices.to(features)
