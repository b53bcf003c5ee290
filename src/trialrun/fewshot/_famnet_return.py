"""Bring a segmentation back to the scan it was made on: ours, not a step of bo2024famnet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trialrun.core.extras import need
from trialrun.fewshot._famnet_folders import Volume
from trialrun.fewshot._famnet_prepare import centred, nearest


def write_nifti(path: str | Path, mask: NDArray, volume: Volume) -> Path:
    """Write a mask of a prepared volume as a NIfTI file on the grid of the scan it came from.

    Units and both transforms are the scan's; the rest of its header is not carried over.

    Parameters
    ----------
    path : path
        Ending in ``.nii`` or ``.nii.gz``.
    mask : array of the volume's shape (slices, rows, columns)
        Bool, or 0, 1, 2, ... for organs. What preparation cut away gets 0.
    volume : Volume
        From `read_folder`; its image file must still lie where it was read.

    Raises
    ------
    ValueError
        If the mask has another shape, or the volume was not read from a file.

    Examples
    --------
    >>> image = np.zeros((1, 2, 2), np.float32)
    >>> made = Volume("a", image, image.astype(np.uint8), (), (1.0, 1.0, 1.0))
    >>> write_nifti("a.nii", image, made)
    Traceback (most recent call last):
    ...
    ValueError: volume must come from read_folder, which knows its file, got one without a path
    """
    nibabel = need("nibabel", extra="brain")
    if volume.path is None:
        raise ValueError(
            "volume must come from read_folder, which knows its file, got one without a path"
        )
    if mask.shape != volume.image.shape:
        raise ValueError(f"mask must have shape {volume.image.shape}, got {mask.shape}")
    file = nibabel.load(volume.path)
    turned = volume.plane == "axial"
    straight = nibabel.orientations.axcodes2ornt("RAS")
    stored = nibabel.orientations.io_orientation(file.affine) if turned else straight
    shape, zooms = file.shape[:3], file.header.get_zooms()[:3]
    out = np.asarray(mask).astype(np.uint8)
    # Rows are the world's second axis and columns its first, slices the third.
    for axis, world in ((1, 1), (2, 0)):
        own = int(np.flatnonzero(stored[:, 0] == world)[0])
        count = max(1, round(shape[own] * float(zooms[own]) / volume.spacing[axis]))
        out = nearest(centred(out, axis, count), axis, shape[own])
    out = (out[:, ::-1] if turned else out).transpose(2, 1, 0)
    back = nibabel.orientations.ornt_transform(straight, stored)
    out = nibabel.orientations.apply_orientation(out, back)
    target = Path(path)
    made = nibabel.Nifti1Image(np.ascontiguousarray(out), file.affine)
    made.header.set_xyzt_units(*file.header.get_xyzt_units())
    for of, put in ((file.get_qform, made.set_qform), (file.get_sform, made.set_sform)):
        affine, code = of(coded=True)
        if code:
            put(affine, code)
    nibabel.save(made, target)
    return target
