"""Pseudo-labels for training without labels: 3-D supervoxels (felzenszwalb2004graph).

Ours, in numpy and a union-find: scikit-image's ``felzenszwalb`` segments planes only, and its
``slic`` cuts cells of even size, which is not what the paper trains on. Edges join the six
neighbours; a voxel outside ``mask`` belongs to nothing. About five seconds per million voxels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trialrun.core.shapes import check_axes


def _edges(
    values: NDArray[np.float64], inside: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    number = np.full(values.shape, -1, dtype=np.int64)
    number[inside] = np.arange(inside.sum())
    starts, ends, weights = [], [], []
    for axis in range(values.ndim):
        before = [slice(None)] * values.ndim
        after = [slice(None)] * values.ndim
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        a, b = tuple(before), tuple(after)
        both = inside[a] & inside[b]
        starts.append(number[a][both])
        ends.append(number[b][both])
        weights.append(np.abs(values[a][both] - values[b][both]))
    start, end, weight = map(np.concatenate, (starts, ends, weights))
    order = np.argsort(weight, kind="stable")
    return start[order], end[order], weight[order]


def _join(
    n: int,
    edges: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]],
    scale: float,
    min_size: int,
) -> NDArray[np.int64]:
    parent, size, limit = list(range(n)), [1] * n, [scale] * n

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    start, end, weight = (part.tolist() for part in edges)
    left = []
    for a, b, w in zip(start, end, weight):
        a, b = root(a), root(b)
        if a == b:
            continue
        if w <= limit[a] and w <= limit[b]:
            if size[a] < size[b]:
                a, b = b, a
            parent[b] = a
            size[a] += size[b]
            # Edges come in order, so this one is the largest inside the joined component.
            limit[a] = w + scale / size[a]
        else:
            left.append((a, b))
    for a, b in left:
        a, b = root(a), root(b)
        if a != b and (size[a] < min_size or size[b] < min_size):
            if size[a] < size[b]:
                a, b = b, a
            parent[b] = a
            size[a] += size[b]
    return np.array([root(i) for i in range(n)], dtype=np.int64)


def supervoxels(
    volume: NDArray,
    *,
    scale: int | float = 0.5,
    min_size: int = 5000,
    mask: NDArray | None = None,
) -> NDArray[np.int32]:
    """Cut a volume into regions of like brightness: graph-based segmentation in three dimensions.

    Parameters
    ----------
    volume : array of shape (slices, rows, columns)
        Brightness; smooth it first where it is noisy.
    scale : float, above 0
        In the volume's unit of brightness, times voxels: larger makes larger regions.
    min_size : int, at least 1
        Smaller regions are joined to a neighbour, in voxels. The paper's scripts use 5000, and 1000
        for the heart.
    mask : bool array of the same shape, or None
        What to cut up; the rest gets 0. None takes all voxels above the volume's smallest value.

    Returns
    -------
    array of int32, the volume's shape
        0 outside, 1, 2, ... by size, the largest first.

    Raises
    ------
    ValueError
        If the shapes disagree, a setting is out of range, or a value is not finite.

    Examples
    --------
    >>> volume = np.zeros((2, 4, 4)); volume[:, :, 2:] = 1.0
    >>> supervoxels(volume, scale=0.1, min_size=2, mask=np.ones((2, 4, 4), bool))[0, 0].tolist()
    [1, 1, 2, 2]
    """
    values = np.asarray(volume, dtype=np.float64)
    check_axes("volume", values, ("slices", "rows", "columns"))
    if not np.isfinite(values).all():
        raise ValueError("volume must be finite, got NaN or infinity: clip or fill it first")
    if not scale > 0 or min_size < 1:
        raise ValueError(
            f"scale must be above 0 and min_size at least 1, got {scale!r} and {min_size!r}"
        )
    inside = values > values.min() if mask is None else np.asarray(mask, dtype=bool)
    if inside.shape != values.shape:
        raise ValueError(f"mask must have the volume's shape {values.shape}, got {inside.shape}")
    out = np.zeros(values.shape, dtype=np.int32)
    if not inside.any():
        return out
    roots = _join(int(inside.sum()), _edges(values, inside), float(scale), min_size)
    _, label, count = np.unique(roots, return_inverse=True, return_counts=True)
    rank = np.empty(len(count), dtype=np.int32)
    rank[np.argsort(-count, kind="stable")] = np.arange(1, len(count) + 1)
    out[inside] = rank[label]
    return out
