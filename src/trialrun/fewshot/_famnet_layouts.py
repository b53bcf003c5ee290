"""What the files of known data sets are called, and how each is prepared (bo2024famnet)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a data set's files are called, what its labels mean, and how it is prepared.

    Parameters
    ----------
    image, label : str
        Patterns of file names (regular expressions, matched from the start of the name) with a
        group ``case`` that pairs an image with its label.
    organs : mapping of name to label values
        Empty: every value found is an organ of its own, named by its number.
    window : pair of float or None
        Lowest and highest value kept, for CT in HU.
    top_percent : float
        Share of the brightest voxels that is clipped, in percent.
    spacing : float or None
        Millimetres per pixel in the plane; None keeps the file's.
    size : int or None
        Rows and columns; None keeps them.
    folders : pair of str
        Sub-folders of images and labels; empty for anywhere below.

    Examples
    --------
    >>> LAYOUTS["btcv"].window
    (-125.0, 275.0)
    """

    image: str
    label: str
    organs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    window: tuple[float, float] | None = None
    top_percent: float = 0.5
    spacing: float | None = 1.25
    size: int | None = 256
    folders: tuple[str, str] = ("", "")


_NII = r"\.nii(\.gz)?$"
LAYOUTS = {
    "chaos": Layout(
        image=r"image_?(?P<case>\w+)" + _NII,
        label=r"label_?(?P<case>\w+)" + _NII,
        organs={
            "liver": (1, 63),
            "right kidney": (2, 126),
            "left kidney": (3, 189),
            "spleen": (4, 252),
        },
    ),
    "btcv": Layout(
        image=r"(img|image_?)(?P<case>\d+)" + _NII,
        label=r"label_?(?P<case>\d+)" + _NII,
        organs={"spleen": (1,), "right kidney": (2,), "left kidney": (3,), "liver": (6,)},
        window=(-125.0, 275.0),
        top_percent=0.0,
    ),
    "ms-cmrseg": Layout(
        image=r"(?P<case>patient\d+_(LGE|C0|T2))" + _NII,
        label=r"(?P<case>patient\d+_(LGE|C0|T2))_(manual|gd)" + _NII,
        organs={"myocardium": (200,), "left ventricle": (500,), "right ventricle": (600,)},
    ),
    "nifti": Layout(
        image=r"(?P<case>.+?)" + _NII,
        label=r"(?P<case>.+?)" + _NII,
        folders=("images", "labels"),
        spacing=None,
        size=None,
    ),
}
"""CHAOS and BTCV/Synapse after conversion to NIfTI, MS-CMRSeg 2019, and ``images/`` + ``labels/``
with equal names. CHAOS labels may hold class numbers or the grey levels of its pictures."""
