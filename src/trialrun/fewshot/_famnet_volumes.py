"""Segment a volume by a labelled one, and Dice by two protocols (bo2024famnet).

The published protocol asks only about query slices that show the organ, chosen by the truth; that
flatters. ``protocol="all-slices"`` asks about every slice and chooses the support slice by relative
depth, without the truth.
"""

from __future__ import annotations

from trialrun.blocks.modes import evaluating
from trialrun.fewshot import _famnet_stack  # noqa: F401

# isort: split
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trialrun.core.shapes import check_axes
from trialrun.fewshot._famnet_prototype import PrototypeSegmenter

PROTOCOLS = ("organ-present", "all-slices")


@dataclass(frozen=True, eq=False)
class EncodedVolume:
    """A volume's features (slices, channels, h, w), thresholds (slices,) and own shape."""

    features: Tensor
    thresholds: Tensor
    shape: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class VolumeResult:
    """Dice of one organ of one volume, and what it was computed from.

    ``prediction`` is bool, (slices, rows, columns), False on slices that were not asked about;
    ``slices`` are those asked about and ``support_slices`` the support slice of each. ``dice`` is
    NaN where there was no truth.
    """

    dice: float
    prediction: NDArray[np.bool_]
    slices: NDArray[np.int64]
    support_slices: NDArray[np.int64]


def dice_score(prediction: NDArray, truth: NDArray, *, empty: int | float = float("nan")) -> float:
    """Return the Dice overlap 2 |A and B| / (|A| + |B|), from 0 to 1.

    Parameters
    ----------
    prediction, truth : arrays of equal shape
        Bool, or 0 and 1. (bo2024famnet)
    empty : float
        The value where both are empty: NaN, to be left out of means, or 1. Where one of them
        alone is empty the overlap is 0.

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> dice_score(np.array([1, 1, 0]), np.array([1, 0, 0]))
    0.6666666666666666
    """
    a, b = np.asarray(prediction) > 0.5, np.asarray(truth) > 0.5
    if a.shape != b.shape:
        raise ValueError(f"prediction must have the truth's shape {b.shape}, got {a.shape}")
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else float(empty)


def encode_volume(
    model: PrototypeSegmenter, volume: NDArray | Tensor | EncodedVolume, *, batch: int = 16
) -> EncodedVolume:
    """Encode all slices of a volume once, so that several organs can share the work.

    The model is run in eval mode and left in the mode it was in.

    Parameters
    ----------
    model : FAMNet or PrototypeSegmenter
        (bo2024famnet)
    volume : array of shape (slices, rows, columns), or EncodedVolume
        Brightness, z-scored; what is encoded already comes back as it is.
    batch : int
        Slices at a time.

    Raises
    ------
    ValueError
        If the volume has another number of axes, or holds NaN or infinity.

    Examples
    --------
    >>> net = PrototypeSegmenter("small", channels=8).eval()
    >>> encode_volume(net, np.zeros((3, 16, 16))).features.shape
    torch.Size([3, 8, 4, 4])
    """
    if isinstance(volume, EncodedVolume):
        return volume
    check_axes("volume", volume, ("slices", "rows", "columns"))
    weight = next(model.parameters())
    given = volume if isinstance(volume, Tensor) else torch.as_tensor(np.ascontiguousarray(volume))
    images = given.to(weight.dtype)[:, None]
    if not bool(torch.isfinite(images).all()):
        raise ValueError("volume must be finite, got NaN or infinity")
    with evaluating(model), torch.no_grad():
        made = [model.encode(part.to(weight.device)) for part in images.split(batch)]
    features, thresholds = (torch.cat(part) for part in zip(*made))
    slices, _, rows, columns = images.shape
    return EncodedVolume(features, thresholds, (slices, rows, columns))


def support_slices(label: NDArray, n_parts: int) -> NDArray[np.int64]:
    """Return the slices at 1/2n, 3/2n, ... of the labelled range; the nearest that show the organ.

    Examples
    --------
    >>> label = np.zeros((9, 2, 2)); label[1:8] = 1
    >>> support_slices(label, 3).tolist()
    [2, 4, 6]
    """
    shown = np.flatnonzero(np.asarray(label).reshape(len(label), -1).any(axis=1))
    if not len(shown):
        raise ValueError("support_label must mark the organ on at least one slice, got none")
    wanted = shown[0] + (shown[-1] - shown[0]) * (2 * np.arange(n_parts) + 1) / (2 * n_parts)
    return shown[np.abs(shown[:, None] - wanted[None, :]).argmin(axis=0)]


def _pairs(
    chosen: NDArray[np.int64], truth: NDArray | None, depth: tuple[int, int], protocol: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if truth is not None and protocol == "organ-present":
        slices = np.flatnonzero(truth.reshape(len(truth), -1).any(axis=1))
        if len(slices) < len(chosen):
            return slices, np.full(len(slices), chosen[len(chosen) // 2])
        parts = np.array_split(slices, len(chosen))
        return slices, np.concatenate([np.full(len(p), z) for z, p in zip(chosen, parts)])
    support_depth, query_depth = depth
    slices = np.arange(query_depth)
    places = (slices + 0.5) / query_depth
    far = np.abs(places[:, None] - (chosen[None, :] + 0.5) / support_depth)
    return slices, chosen[far.argmin(axis=1)]


def _organ_mask(name: str, label: NDArray, shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    mask = np.asarray(label)
    if mask.shape != shape:
        raise ValueError(f"{name} must have its volume's shape {shape}, got {mask.shape}")
    if mask.dtype != bool and not ((mask == 0) | (mask == 1)).all():
        raise ValueError(f"{name} must hold 0 and 1: pick one organ, as in labels == 2")
    return mask.astype(bool)


def evaluate_volume(
    model: PrototypeSegmenter,
    support_volume: NDArray | Tensor | EncodedVolume,
    support_label: NDArray,
    query_volume: NDArray | Tensor | EncodedVolume,
    query_label: NDArray | None = None,
    *,
    n_parts: int = 3,
    protocol: str = "organ-present",
    batch: int = 16,
) -> VolumeResult:
    """Segment one organ of a volume by another volume's labels, and score it.

    Parameters
    ----------
    model : FAMNet or PrototypeSegmenter
        Run in eval mode, and left in the mode it was in. (bo2024famnet)
    support_volume, query_volume : arrays of shape (slices, rows, columns), or `EncodedVolume`
        Brightness, z-scored per volume.
    support_label : array of the support's shape
        Of one organ: bool, or 0 and 1.
    query_label : array of the query's shape, or None
        The truth. Without one every slice is segmented and the Dice is NaN; a truth that marks
        nothing goes with ``all-slices`` only.
    n_parts : int, at least 1
        Support slices. Where the published protocol asks about fewer query slices than these, the
        middle one serves them all.
    protocol : {"organ-present", "all-slices"}
        Which query slices are asked about.
    batch : int
        Slices at a time.

    Raises
    ------
    ValueError
        If a label has another size than its volume, holds more than one organ, or marks nothing.

    Examples
    --------
    >>> net = PrototypeSegmenter("small", channels=8).eval()
    >>> volume = np.random.default_rng(0).normal(size=(4, 16, 16))
    >>> label = volume > 1
    >>> 0 <= evaluate_volume(net, volume, label, volume, label).dice <= 1
    True
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    if n_parts < 1 or batch < 1:
        raise ValueError(f"n_parts and batch must be at least 1, got {n_parts} and {batch}")
    support = encode_volume(model, support_volume, batch=batch)
    query = encode_volume(model, query_volume, batch=batch)
    if support.shape[1:] != query.shape[1:]:
        raise ValueError(
            f"query_volume must have the support's rows and columns {support.shape[1:]}, "
            f"got {query.shape[1:]}: prepare both with the same spacing and size"
        )
    mask = _organ_mask("support_label", support_label, support.shape)
    truth = None
    if query_label is not None:
        truth = _organ_mask("query_label", query_label, query.shape)
        if protocol == "organ-present" and not truth.any():
            raise ValueError(
                "query_label must mark the organ on at least one slice, got none: "
                'use protocol="all-slices", or leave the label out'
            )
    chosen = support_slices(mask, n_parts)
    depth = (support.shape[0], query.shape[0])
    slices, partners = _pairs(chosen, truth, depth, protocol)
    weight = query.features
    marks = torch.as_tensor(mask.astype(np.float32)).to(weight)
    prediction = np.zeros(query.shape, dtype=bool)
    for at in range(0, len(slices), batch):
        part = slice(at, at + batch)
        z, s = (torch.as_tensor(where[part]).to(weight.device) for where in (slices, partners))
        with evaluating(model), torch.no_grad():
            pred, _ = model.segment(
                support.features[s], marks[s], query.features[z], query.thresholds[z]
            )
        prediction[slices[part]] = (pred[:, 1] > 0.5).cpu().numpy()
    score = float("nan") if truth is None else dice_score(prediction[slices], truth[slices])
    return VolumeResult(score, prediction, slices, partners)
