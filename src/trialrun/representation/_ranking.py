"""Scores, and the order of a gallery: ties are decided the same way everywhere.

Scores that agree to six decimals tie, and are never compared in half precision.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

DECIMALS = 6


def matrix(name: str, values: Any) -> NDArray[np.floating]:
    """Return a finite table in float32 or float64, from an array or a tensor."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.double() if str(values.dtype) == "torch.float64" else values.float()
    array = np.asarray(values)
    wide: NDArray[np.floating] = array.astype(
        np.float64 if array.dtype == np.float64 else np.float32, copy=False
    )
    if wide.ndim != 2:
        raise ValueError(f"{name} must have shape (rows, columns), got {wide.shape}")
    if not np.isfinite(wide).all():
        bad = int(np.flatnonzero(~np.isfinite(wide).all(axis=1))[0])
        raise ValueError(f"{name} must be finite, got something else in row {bad}")
    return wide


def cosine_scores(queries: ArrayLike, gallery: ArrayLike) -> NDArray[np.floating]:
    """Return the cosine of every query with every item of the gallery, in float32 at least.

    Parameters
    ----------
    queries : array (queries, embed)
    gallery : array (items, embed)
    """
    left, right = matrix("queries", queries), matrix("gallery", gallery)
    if left.shape[1] != right.shape[1]:
        raise ValueError(
            f"queries and gallery must have equal widths, got {left.shape[1]} and {right.shape[1]}"
        )
    tiny = np.finfo(np.float32).tiny
    left = left / np.maximum(np.linalg.norm(left, axis=1, keepdims=True), tiny)
    right = right / np.maximum(np.linalg.norm(right, axis=1, keepdims=True), tiny)
    return left @ right.T


def ranking(
    scores: ArrayLike, *, relevant: ArrayLike | None = None, exclude: ArrayLike | None = None
) -> NDArray[np.int64]:
    """Order the gallery for every query, best first.

    Parameters
    ----------
    scores : array (queries, items)
        Higher is better. Ties (equal to six decimals) go by the item's number.
    relevant : bool array (queries, items), optional
        In a tie these stand last.
    exclude : int array (queries,), optional
        One item for each query that is not in its gallery (the query itself, the reference
        picture), -1 for none. It comes last of all.

    Examples
    --------
    >>> ranking([[0.5, 0.5, 0.9]], relevant=[[True, False, False]]).tolist()
    [[2, 1, 0]]
    """
    wide = np.round(matrix("scores", scores), DECIMALS)
    keep = np.ones(wide.shape, dtype=bool)
    if exclude is not None:
        keep = ~one_hot(exclude, wide.shape)
    right = np.zeros(wide.shape, bool) if relevant is None else mask_of(relevant, wide.shape)
    return np.lexsort((right, -wide, ~keep), axis=-1)


def one_hot(exclude: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return where each row's one item stands; -1 stands nowhere."""
    chosen = np.asarray(exclude)
    if chosen.shape != shape[:1] or chosen.dtype.kind not in "iu":
        raise ValueError(
            f"exclude must hold one item's number for each of {shape[0]} queries, got "
            f"{chosen.dtype} of shape {chosen.shape}"
        )
    if chosen.size and not (chosen.min() >= -1 and chosen.max() < shape[1]):
        raise ValueError(f"exclude must be in -1 ... {shape[1] - 1}, got {chosen.max()}")
    out = np.zeros(shape, dtype=bool)
    rows = np.flatnonzero(chosen >= 0)
    out[rows, chosen[rows]] = True
    return out


def mask_of(relevant: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return truth values of a shape, or say what came."""
    mask = np.asarray(relevant)
    if mask.shape != shape or mask.dtype != bool:
        raise ValueError(
            f"relevant must be truth values of shape {shape}, got {mask.dtype} of {mask.shape}"
        )
    return mask
