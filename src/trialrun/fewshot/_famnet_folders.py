"""Read folders of labelled NIfTI volumes, and prepare them (bo2024famnet).

DICOM is not read: convert it first (``dcm2niix -z y``), labels to the same grid. The steps and
their defaults (window, spacing, size) are those in use for these data sets, as we know them; all
can be changed, and `prepare_volume` is the whole of it:

1. turn to the nearest axial order: (slices from the feet, rows from the front, columns);
2. clip: a window in HU for CT, the top half percent for MR;
3. resize in the plane to ``spacing`` millimetres (bilinear; labels to the nearest);
4. cut or pad about the middle to ``size`` x ``size``; padding takes the smallest value;
5. subtract the volume's mean and divide by its standard deviation.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trialrun.core.errors import UsageError
from trialrun.core.extras import need
from trialrun.core.shapes import check_axes
from trialrun.fewshot._famnet_layouts import LAYOUTS, Layout


@dataclass(frozen=True, eq=False)
class Volume:
    """One prepared case, arrays of shape (slices, rows, columns).

    ``image`` is z-scored float32; ``labels`` holds 0, then 1, 2, ... for ``organs`` in order;
    ``spacing`` is (slices, rows, columns) in millimetres.
    """

    case: str
    image: NDArray[np.float32]
    labels: NDArray[np.uint8]
    organs: tuple[str, ...]
    spacing: tuple[float, float, float]

    def organ(self, name: str) -> NDArray[np.bool_]:
        """Return the mask of organ ``name``.

        Raises
        ------
        UsageError
            Listing the organs there are.
        """
        if name not in self.organs:
            raise UsageError(
                f"{self.case} has no organ {name!r}: there are {', '.join(self.organs)}"
            )
        return self.labels == 1 + self.organs.index(name)


@dataclass(frozen=True)
class Folder:
    """What a folder held: ``volumes`` by case, and ``skipped`` files with the reason of each."""

    volumes: tuple[Volume, ...]
    skipped: Mapping[str, str]


def _resize(values: NDArray, axis: int, count: int, *, nearest: bool) -> NDArray:
    size = values.shape[axis]
    at = ((np.arange(count) + 0.5) * size / count - 0.5).clip(0, size - 1)
    if nearest:
        return values.take(np.floor(at + 0.5).astype(int).clip(0, size - 1), axis=axis)
    lower = np.floor(at).astype(int)
    share = (at - lower).reshape([-1 if i == axis else 1 for i in range(values.ndim)])
    upper = (lower + 1).clip(max=size - 1)
    return values.take(lower, axis=axis) * (1 - share) + values.take(upper, axis=axis) * share


def _centred(values: NDArray, axis: int, size: int, fill: int | float) -> NDArray:
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
            values = _resize(values, axis, count, nearest=False)
            labels = _resize(labels, axis, count, nearest=True)
            out[axis] = layout.spacing
        if layout.size is not None:
            values = _centred(values, axis, layout.size, float(values.min()))
            labels = _centred(labels, axis, layout.size, 0)
    spread = values.std()
    if not spread > 0:
        raise ValueError("image must vary, got one value everywhere")
    scored = ((values - values.mean()) / spread).astype(np.float32)
    return scored, labels, (out[0], out[1], out[2])


def _axial(file: Any) -> tuple[NDArray, tuple[float, float, float]]:
    """Return a file's numbers as (feet to head, front to back, left to right), and spacing."""
    nibabel = need("nibabel", extra="brain")
    nearest = nibabel.as_closest_canonical(file)
    data = np.asarray(nearest.dataobj)
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    check_axes("volume", data, ("x", "y", "z"))
    x, y, z = (float(size) for size in nearest.header.get_zooms()[:3])
    return data.transpose(2, 1, 0)[:, ::-1], (z, y, x)


def _named(labels: NDArray, layout: Layout) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    whole = np.rint(labels).astype(np.int64)
    organs = layout.organs or {str(v): (v,) for v in np.unique(whole).tolist() if v > 0}
    if len(organs) > 255:
        raise ValueError(f"labels must hold at most 255 organs, got {len(organs)}")
    out = np.zeros(whole.shape, dtype=np.uint8)
    for number, values in enumerate(organs.values(), start=1):
        out[np.isin(whole, values)] = number
    return out, tuple(organs)


def _found(folder: Path, pattern: str, inside: str) -> dict[str, Path]:
    root = folder / inside if inside else folder
    files = sorted(p for p in root.rglob("*.nii*") if p.is_file())
    matched = ((re.match(pattern, path.name), path) for path in files)
    return {match["case"]: path for match, path in matched if match}


def _read_case(case: str, image: Path, label: Path, layout: Layout) -> Volume:
    nibabel = need("nibabel", extra="brain")
    values, spacing = _axial(nibabel.load(image))
    marks, _ = _axial(nibabel.load(label))
    made, kept, spacing = prepare_volume(values, marks, spacing, layout)
    numbers, organs = _named(kept, layout)
    return Volume(case, made, numbers, organs, spacing)


def read_folder(
    folder: str | Path, layout: str | Layout = "nifti", *, only: str = "", **changes: Any
) -> Folder:
    """Read every labelled case of a folder; what cannot be read is skipped, counted and named.

    Parameters
    ----------
    folder : path
    layout : {"chaos", "btcv", "ms-cmrseg", "nifti"} or Layout
    only : str
        Text that a case's name must hold, such as ``LGE``.
    **changes
        Settings of the layout to change, such as ``size=128``.

    Raises
    ------
    UsageError
        If the layout is unknown, or no labelled case can be read; the sentence names a reason.
    MissingExtra
        If nibabel is not installed.

    Examples
    --------
    >>> read_folder("nowhere", "chaos")
    Traceback (most recent call last):
    ...
    trialrun.core.errors.UsageError: nowhere is no folder: name the one that holds the NIfTI files
    """
    nibabel = need("nibabel", extra="brain")
    root = Path(folder)
    if isinstance(layout, str):
        if layout not in LAYOUTS:
            raise UsageError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
        layout = LAYOUTS[layout]
    layout = replace(layout, **changes)
    if not root.is_dir():
        raise UsageError(f"{folder} is no folder: name the one that holds the NIfTI files")
    images = _found(root, layout.image, layout.folders[0])
    labels = _found(root, layout.label, layout.folders[1])
    skipped, volumes = {}, []
    broken = (OSError, EOFError, ValueError, zlib.error, nibabel.filebasedimages.ImageFileError)
    for case, path in images.items():
        if only not in case:
            continue
        if case not in labels:
            skipped[path.name] = "it has no label file"
            continue
        try:
            volumes.append(_read_case(case, path, labels[case], layout))
        except broken as error:
            skipped[path.name] = str(error).partition("\n")[0]
    if not volumes:
        first = next((f": {name}: {why}" for name, why in skipped.items()), "")
        raise UsageError(
            f"{folder} must hold images with labels as {layout.image} and {layout.label}, "
            f"got {len(images)} images and {len(labels)} labels, none readable{first}"
        )
    return Folder(tuple(volumes), skipped)
