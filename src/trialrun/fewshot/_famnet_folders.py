"""Read folders of labelled NIfTI volumes, and prepare them (bo2024famnet).

DICOM is not read: convert it first (``dcm2niix -z y``), labels to the same grid. Volumes are turned
to the nearest axial order (slices from the feet, rows from the front, columns), unless the layout's
plane is ``stored``: hearts in short axis are oblique, and stay as they were cut. What follows is
`_famnet_prepare`.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trialrun.core.errors import UsageError
from trialrun.core.extras import need
from trialrun.core.shapes import check_axes
from trialrun.fewshot._famnet_layouts import LAYOUTS, Layout
from trialrun.fewshot._famnet_prepare import prepare_volume


@dataclass(frozen=True, eq=False)
class Volume:
    """One prepared case, arrays of shape (slices, rows, columns).

    ``image`` is z-scored float32; ``labels`` holds 0, then 1, 2, ... for ``organs`` in order;
    ``spacing`` is (slices, rows, columns) in millimetres; ``path`` and ``plane`` say where the
    image came from and how it was turned, for `write_nifti`.
    """

    case: str
    image: NDArray[np.float32]
    labels: NDArray[np.uint8]
    organs: tuple[str, ...]
    spacing: tuple[float, float, float]
    path: Path | None = None
    plane: str = "axial"

    def organ(self, name: str | int) -> NDArray[np.bool_]:
        """Return the mask of organ ``name``; a number stands for its text.

        Raises
        ------
        UsageError
            Listing the organs there are.
        """
        name = str(name)
        if name not in self.organs:
            there = ", ".join(map(repr, self.organs)) or "none"
            raise UsageError(f"{self.case} has no organ {name!r}: there are {there}")
        return self.labels == 1 + self.organs.index(name)


@dataclass(frozen=True)
class Folder:
    """What a folder held: ``volumes`` by case, and ``skipped`` files with the reason of each."""

    volumes: tuple[Volume, ...]
    skipped: Mapping[str, str]


_GRID = 1e-2


def _stack(file: Any, plane: str) -> tuple[NDArray, tuple[float, float, float], NDArray]:
    """Return a file's numbers as (slices, rows, columns), their spacing, and the affine."""
    nibabel = need("nibabel", extra="brain")
    if plane == "axial":
        file = nibabel.as_closest_canonical(file)
    data = np.asarray(file.dataobj)
    if data.dtype.kind not in "biuf":
        raise ValueError(f"voxels must be plain numbers, got {data.dtype}")
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    check_axes("volume", data, ("x", "y", "z"))
    x, y, z = (float(size) for size in file.header.get_zooms()[:3])
    turned = data.transpose(2, 1, 0)
    # Canonical rows run from back to front.
    return turned[:, ::-1] if plane == "axial" else turned, (z, y, x), file.affine


def _check_labels(labels: NDArray, layout: Layout) -> None:
    if not np.isfinite(labels).all():
        raise ValueError("labels must be finite, got NaN or infinity")
    if np.abs(labels - np.rint(labels)).max(initial=0) > _GRID:
        raise ValueError("labels must be whole numbers, got fractions")
    values = np.unique(np.rint(labels)).astype(np.int64)
    marked = values[values != 0]
    if len(marked) > 255:
        raise ValueError(f"labels must hold at most 255 organs, got {len(marked)}")
    known = [value for organ in layout.organs.values() for value in organ]
    if known and len(marked) and not np.isin(marked, known).any():
        raise ValueError(
            f"labels must hold some of the layout's {', '.join(map(str, known))}, "
            f"got {', '.join(map(str, marked[:8]))}"
        )


def _found(folder: Path, pattern: str, inside: str, only: str) -> dict[str, Path]:
    root = folder / inside if inside else folder
    found: dict[str, Path] = {}
    for path in sorted(p for p in root.rglob("*.nii*") if p.is_file()):
        match = re.match(pattern, path.name)
        if not match or only not in match["case"]:
            continue
        case = match["case"]
        if case in found:
            raise UsageError(
                f"{found[case]} and {path} are both case {case!r}: name a folder that holds one, "
                "or give patterns that tell them apart"
            )
        found[case] = path
    return found


class _Case(NamedTuple):
    """One case whose organs have no numbers yet."""

    image: NDArray[np.float32]
    labels: NDArray[np.int64]
    spacing: tuple[float, float, float]
    path: Path


def _read_case(image: Path, label: Path | None, layout: Layout) -> _Case:
    nibabel = need("nibabel", extra="brain")
    values, spacing, grid = _stack(nibabel.load(image), layout.plane)
    if label is None:
        nothing = np.zeros(values.shape, dtype=np.int64)
        return _Case(*prepare_volume(values, nothing, spacing, layout), image)
    marks, _, other = _stack(nibabel.load(label), layout.plane)
    if marks.shape == values.shape:
        apart = float(np.abs(grid - other).max())
        if not apart <= _GRID:
            raise ValueError(
                f"image and label must lie on one grid, got affines {apart:g} apart: resample the "
                "label, or give it the image's header if it was drawn on it"
            )
    _check_labels(marks, layout)
    made, kept, spacing = prepare_volume(values, marks, spacing, layout)
    return _Case(made, np.rint(kept).astype(np.int64), spacing, image)


def _numbered(
    labels: NDArray[np.int64], organs: Mapping[str, tuple[int, ...]]
) -> NDArray[np.uint8]:
    out = np.zeros(labels.shape, dtype=np.uint8)
    for number, values in enumerate(organs.values(), start=1):
        out[np.isin(labels, values)] = number
    return out


def chosen_layout(layout: str | Layout, **changes: Any) -> Layout:
    """Return a layout by name, or as given, with settings changed.

    Raises
    ------
    UsageError
        If the layout or a setting is unknown or wrong.
    """
    if isinstance(layout, str):
        if layout not in LAYOUTS:
            raise UsageError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
        layout = LAYOUTS[layout]
    settings = [one.name for one in fields(Layout)]
    for name in changes:
        if name not in settings:
            raise UsageError(f"a layout has no setting {name!r}: it has {', '.join(settings)}")
    if changes.keys() & {"image", "label", "folders"}:
        changes.setdefault("example", None)
    try:
        return replace(layout, **changes)
    except ValueError as error:
        raise UsageError(str(error)) from error


def found_files(
    root: Path, layout: Layout, only: str = ""
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return the image files and the label files of a folder, by case.

    Raises
    ------
    UsageError
        If there is no such folder, two files are one case, or none has ``only`` in its name.
    """
    if not root.is_dir():
        raise UsageError(f"{root} is no folder: name the one that holds the NIfTI files")
    images = _found(root, layout.image, layout.folders[0], only)
    labels = _found(root, layout.label, layout.folders[1], only)
    if only and not images:
        raise UsageError(f"{root} must hold a case whose name has {only!r} (only), got none")
    return images, labels


def broken_files() -> tuple[type[Exception], ...]:
    """Return the errors that a damaged file, or one that is no NIfTI, ends in."""
    nibabel = need("nibabel", extra="brain")
    return (
        OSError, EOFError, TypeError, ValueError, zlib.error,
        nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError,
        nibabel.orientations.OrientationError,
    )  # fmt: skip


def _read_cases(
    images: Mapping[str, Path], labels: Mapping[str, Path] | None, layout: Layout
) -> tuple[dict[str, _Case], dict[str, str]]:
    """Return the readable cases, and the reason why each other file was skipped."""
    skipped: dict[str, str] = {}
    cases: dict[str, _Case] = {}
    broken = broken_files()
    for case, path in images.items():
        if labels is not None and case not in labels:
            skipped[path.name] = "it has no label file"
            continue
        try:
            cases[case] = _read_case(path, None if labels is None else labels[case], layout)
        except broken as error:
            skipped[path.name] = str(error).partition("\n")[0]
    return cases, skipped


def read_folder(
    folder: str | Path,
    layout: str | Layout = "nifti",
    *,
    only: str = "",
    labels: bool = True,
    **changes: Any,
) -> Folder:
    """Read every labelled case of a folder; what cannot be read is skipped, counted and named.

    Parameters
    ----------
    folder : path
    layout : {"chaos", "btcv", "ms-cmrseg", "nifti"} or Layout
    only : str
        Text that a case's name must hold, such as ``LGE``.
    labels : bool
        False reads images alone, prepared alike, with labels 0 everywhere: to train on, or to
        segment.
    **changes
        Settings of the layout to change, such as ``size=128``.

    Returns
    -------
    Folder
        Without ``organs`` in the layout, every value found anywhere in the folder is an organ, so
        that a number means the same in all volumes. An image and a label whose affines place them
        elsewhere in the world are not paired.

    Raises
    ------
    UsageError
        If the layout or a setting is unknown or wrong, two files are the same case, or no labelled
        case can be read; the sentence names a reason.
    MissingExtra
        If nibabel is not installed.

    Examples
    --------
    >>> read_folder("nowhere", "chaos")
    Traceback (most recent call last):
    ...
    trialrun.core.errors.UsageError: nowhere is no folder: name the one that holds the NIfTI files
    """
    root = Path(folder)
    layout = chosen_layout(layout, **changes)
    images, marks = found_files(root, layout, only)
    cases, skipped = _read_cases(images, marks if labels else None, layout)
    if not cases:
        first = next((f": {name}: {why}" for name, why in skipped.items()), "")
        image, label = layout.example or (layout.image, layout.label)
        wanted = f"images with labels, named like {image} and {label}"
        raise UsageError(
            f"{folder} must hold {wanted if labels else f'images, named like {image}'}, got "
            f"{len(images)} images and {len(marks)} labels, none readable{first}"
        )
    values = np.unique(np.concatenate([np.unique(one.labels) for one in cases.values()]))
    organs = layout.organs or {str(v): (v,) for v in values.tolist() if v > 0}
    if len(organs) > 255:
        raise UsageError(f"{folder} must hold at most 255 organs, got {len(organs)}")
    volumes = (
        Volume(
            case,
            one.image,
            _numbered(one.labels, organs),
            tuple(organs),
            one.spacing,
            one.path,
            layout.plane,
        )
        for case, one in cases.items()
    )
    return Folder(tuple(volumes), skipped)
