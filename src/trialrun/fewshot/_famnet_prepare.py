"""Prepare one volume for the network: clip, resize, cut, z-score (bo2024famnet).

The steps and their defaults (window, spacing, size) are those in use for the known data sets, as we
know them; all can be changed, and `prepare_volume` is the whole of it:

1. clip: a window in HU for CT, the top half percent for MR;
2. resize in the plane to ``spacing`` millimetres (bilinear; labels to the nearest). Ours: where an
   axis shrinks the kernel widens with it, so that fine texture does not alias;
3. cut or pad about the middle to ``size`` x ``size``; padding takes the smallest value;
4. subtract the volume's mean and divide by its standard deviation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trialrun.core.shapes import check_axes
from trialrun.fewshot._famnet_layouts import Layout


def _resize(values: NDArray, axis: int, count: int) -> NDArray:
    """Resize one axis bilinearly, with a kernel as wide as the step where that is above one."""
    size = values.shape[axis]
    step = max(1.0, size / count)
    at = (np.arange(count) + 0.5) * size / count - 0.5
    weights = (1 - np.abs(at[:, None] - np.arange(size)) / step).clip(min=0)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.moveaxis(np.tensordot(weights, values, axes=(1, axis)), 0, axis)


def nearest(values: NDArray, axis: int, count: int) -> NDArray:
    """Resize one axis of labels to ``count``, each taken from the nearest of ``values``."""
    size = values.shape[axis]
    at = (np.arange(count) + 0.5) * size / count
    return values.take(np.floor(at).astype(int).clip(0, size - 1), axis=axis)


def centred(values: NDArray, axis: int, size: int, fill: int | float = 0) -> NDArray:
    """Cut or pad one axis about its middle to ``size``."""
    have = values.shape[axis]
    if have >= size:
        first = (have - size) // 2
        return values.take(np.arange(first, first + size), axis=axis)
    before = (size - have) // 2
    padding = [(0, 0)] * values.ndim
    padding[axis] = (before, size - have - before)
    return np.pad(values, padding, constant_values=fill)


def prepare_volume(
    image: NDArray,
    labels: NDArray,
    spacing: tuple[float, float, float],
    layout: Layout,
) -> tuple[NDArray[np.float32], NDArray, tuple[float, float, float]]:
    """Clip, resize, cut and z-score one volume that lies in axial order already.

    Parameters
    ----------
    image, labels : arrays of shape (slices, rows, columns)
    spacing : triple of float
        Of slices, rows and columns, in millimetres.
    layout : Layout
        Whose window, percentage, spacing and size apply.

    Returns
    -------
    image, labels and their new spacing

    Raises
    ------
    ValueError
        If the shapes differ, or the image holds one value only.

    Examples
    --------
    >>> image = np.random.default_rng(0).normal(size=(2, 40, 40))
    >>> made, _, spacing = prepare_volume(image, image > 1, (5.0, 2.5, 2.5), LAYOUTS["chaos"])
    >>> made.shape, spacing
    ((2, 256, 256), (5.0, 1.25, 1.25))
    """
    check_axes("image", image, ("slices", "rows", "columns"))
    if image.shape != labels.shape:
        raise ValueError(f"labels must have the image's shape {image.shape}, got {labels.shape}")
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("image must be finite, got NaN or infinity")
    if layout.window is not None:
        values = values.clip(*layout.window)
    if layout.top_percent:
        values = values.clip(max=np.percentile(values, 100 - layout.top_percent))
    out = list(spacing)
    for axis in (1, 2):
        if layout.spacing is not None:
            count = max(1, round(values.shape[axis] * spacing[axis] / layout.spacing))
            values = _resize(values, axis, count)
            labels = nearest(labels, axis, count)
            out[axis] = layout.spacing
        if layout.size is not None:
            values = centred(values, axis, layout.size, float(values.min()))
            labels = centred(labels, axis, layout.size)
    spread = values.std()
    if not spread > 0:
        raise ValueError("image must vary, got one value everywhere")
    scored = ((values - values.mean()) / spread).astype(np.float32)
    return scored, labels, (out[0], out[1], out[2])
