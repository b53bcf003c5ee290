"""What the files of known data sets are called, and how each is prepared (bo2024famnet)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

PLANES = ("axial", "stored")


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
    plane : {"axial", "stored"}
        ``axial`` turns a volume to the nearest axial order. ``stored`` keeps the slices as they
        lie in the file, along its third axis: for stacks cut obliquely, such as hearts in short
        axis, whose nearest axial order would run through the slices.
    example : pair of str or None
        An image and a label that the patterns fit, to name when none is found.

    Raises
    ------
    ValueError
        If a pattern or a setting cannot be used.

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
    plane: str = "axial"
    example: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        for name, pattern in (("image", self.image), ("label", self.label)):
            try:
                groups = re.compile(pattern).groupindex
            except re.error as error:
                raise ValueError(
                    f"{name} must be a regular expression, got {pattern!r}: {error}"
                ) from error
            if "case" not in groups:
                raise ValueError(f"{name} must have a group (?P<case>...), got {pattern!r}")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError(f"window must be (lowest, highest) or None, got {self.window!r}")
        if not 0 <= self.top_percent < 100:
            raise ValueError(f"top_percent must be in [0, 100), got {self.top_percent!r}")
        if self.spacing is not None and not (
            isinstance(self.spacing, (int, float)) and self.spacing > 0
        ):
            raise ValueError(f"spacing must be one number above 0 mm or None, got {self.spacing!r}")
        if self.size is not None and (self.size < 1 or self.size != int(self.size)):
            raise ValueError(f"size must be at least 1 pixel or None, got {self.size!r}")
        if self.plane not in PLANES:
            raise ValueError(f"plane must be one of {', '.join(PLANES)}, got {self.plane!r}")


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
        example=("image_01.nii.gz", "label_01.nii.gz"),
    ),
    "btcv": Layout(
        image=r"(img|image_?)(?P<case>\d+)" + _NII,
        label=r"label_?(?P<case>\d+)" + _NII,
        organs={"spleen": (1,), "right kidney": (2,), "left kidney": (3,), "liver": (6,)},
        window=(-125.0, 275.0),
        top_percent=0.0,
        example=("img0001.nii.gz", "label0001.nii.gz"),
    ),
    "ms-cmrseg": Layout(
        image=r"(?P<case>patient\d+_(LGE|C0|T2))" + _NII,
        label=r"(?P<case>patient\d+_(LGE|C0|T2))_(manual|gd)" + _NII,
        organs={"myocardium": (200,), "left ventricle": (500,), "right ventricle": (600,)},
        plane="stored",
        example=("patient1_LGE.nii.gz", "patient1_LGE_manual.nii.gz"),
    ),
    "nifti": Layout(
        image=r"(?P<case>.+?)" + _NII,
        label=r"(?P<case>.+?)" + _NII,
        folders=("images", "labels"),
        spacing=None,
        size=None,
        example=("images/case.nii.gz", "labels/case.nii.gz"),
    ),
}
"""CHAOS and BTCV/Synapse after conversion to NIfTI, MS-CMRSeg 2019, and ``images/`` + ``labels/``
with equal names. CHAOS labels may hold class numbers or the grey levels of its pictures. The hearts
are cut in short axis and stay in that plane."""
