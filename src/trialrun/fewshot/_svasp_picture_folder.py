"""Pictures on disk with a class each, read when they are asked for.

Pictures that cannot be decoded are left out, counted and named in ``skipped``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trialrun.fewshot import _svasp_stack  # noqa: F401

# isort: split
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trialrun.core.errors import UsageError
from trialrun.core.extras import need
from trialrun.core.shapes import check_range


@dataclass(frozen=True, eq=False, repr=False)
class PictureFolder:
    """Hold the paths and classes of pictures on disk, and read them when they are asked for.

    Parameters
    ----------
    paths : sequence of Path
    labels : integer array of shape (n,)
        Places in ``class_names``.
    class_names : sequence of str
    size : int, at least 1
        Pictures are read as squares of this side: the shorter side is scaled, the middle is cut.
    skipped : sequence of str
        Files that could not be decoded, as paths.
    missing : sequence of str
        Files that a table names and that are not there, as paths.

    Raises
    ------
    UsageError
        For fewer than two classes with pictures, labels that do not go with paths or names, or a
        file that has gone bad since.

    Examples
    --------
    >>> PictureFolder((Path("a.png"),), np.array([0]), ("cat",))
    Traceback (most recent call last):
    ...
    trialrun.core.errors.UsageError: pictures of at least two classes are needed, got 1 (cat): ...
    """

    paths: Sequence[Path]
    labels: NDArray[np.int64]
    class_names: Sequence[str]
    size: int = 84
    skipped: Sequence[str] = ()
    missing: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_range("size", self.size, low=1, unit="pixel")
        if len(self.labels) != len(self.paths):
            raise UsageError(
                f"labels must be one per path, {len(self.paths)}, got {len(self.labels)}"
            )
        if len(self.labels):
            low, high, top = (
                int(self.labels.min()),
                int(self.labels.max()),
                len(self.class_names) - 1,
            )
            if low < 0 or high > top:
                raise UsageError(
                    f"labels must be places in class_names, 0 to {top}, got {low} to {high}"
                )
        found = [self.class_names[int(label)] for label in np.unique(self.labels)]
        if len(found) < 2:
            lost = f"; {len(self.skipped)} could not be decoded" if self.skipped else ""
            if self.missing:
                lost += f"; {len(self.missing)} missing, {self.missing[0]} for one"
            raise UsageError(
                f"pictures of at least two classes are needed, got {len(found)} "
                f"({', '.join(found) or 'none'}{lost}): give one folder per class"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return f"PictureFolder({self.report()}, {self.size} px)"

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        """Return one picture as floats and its label, as a DataLoader asks for them."""
        return self.take(np.array([range(len(self))[row]]))[0], int(self.labels[row])

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        """Return pictures of shape (rows, 3, size, size), numbers from 0 to 1.

        ``rows`` are integers. To whiten them, put that layer before the backbone.
        """
        pictures = [read_picture(self.paths[int(row)], self.size) for row in rows]
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255

    def with_at_least(self, count: int) -> PictureFolder:
        """Return the set without classes that have fewer than ``count`` pictures."""
        sizes = np.bincount(self.labels, minlength=len(self.class_names))
        kept = np.flatnonzero(sizes >= count)
        rows = np.flatnonzero(np.isin(self.labels, kept))
        return PictureFolder(
            [self.paths[int(row)] for row in rows],
            np.searchsorted(kept, self.labels[rows]),
            [self.class_names[int(label)] for label in kept],
            self.size,
            self.skipped,
            self.missing,
        )

    def report(self) -> str:
        """Say in one line how many pictures and classes there are, and which were skipped."""
        text = f"{len(self)} pictures of {len(np.unique(self.labels))} classes"
        for files, why in (
            (self.skipped, "skipped that cannot be decoded"),
            (self.missing, "missing"),
        ):
            if files:
                names = ", ".join(Path(name).name for name in files[:5])
                more = ", ..." if len(files) > 5 else ""
                text += f"; {len(files)} {why} ({names}{more})"
        return text


def read_picture(path: Path, size: int) -> NDArray[np.uint8]:
    """Read one picture as (size, size, 3) bytes; 16 bits are scaled, and see-through is white.

    Raises
    ------
    UsageError
        Naming the file, if it is missing or cannot be decoded.
    """
    image_module: Any = need("PIL.Image", extra="pictures")
    try:
        with image_module.open(path) as picture:
            picture.draft("RGB", (2 * size, 2 * size))  # lets JPEG decode at a lower size
            picture = _in_colours(picture)
    except FileNotFoundError as error:
        raise UsageError(f"{path} is missing") from error
    except (OSError, SyntaxError, ValueError, image_module.DecompressionBombError) as error:
        raise UsageError(f"{path} cannot be decoded as a picture: {error}") from error
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(picture.resize((size, size), image_module.Resampling.BILINEAR, box=box))


def _in_colours(picture: Any) -> Any:
    """Return a picture in RGB: 16 bits scaled to 8, and what shows through as white paper."""
    if picture.mode.startswith("I"):  # Pillow would clip these at 255
        levels = np.clip(np.asarray(picture, dtype=np.float64), 0, 65535) / 257
        image_module: Any = need("PIL.Image", extra="pictures")
        return image_module.fromarray(levels.round().astype(np.uint8)).convert("RGB")
    if "A" in picture.getbands() or "transparency" in picture.info:
        image_module = need("PIL.Image", extra="pictures")
        inked = picture.convert("RGBA")
        paper = image_module.new("RGBA", inked.size, (255, 255, 255, 255))
        return image_module.alpha_composite(paper, inked).convert("RGB")
    return picture.convert("RGB")


def gather(
    pairs: Iterable[tuple[Path, str | tuple[str, int]]], size: int, check: bool
) -> PictureFolder:
    """Make a set of (path, class) pairs, leaving out what is missing or cannot be decoded.

    A class is its name, or name and number where names may be alike.
    """
    kept: list[tuple[Path, tuple[str, int]]] = []
    skipped: list[str] = []
    missing: list[str] = []
    for path, found in pairs:
        if check:
            try:
                read_picture(path, 8)
            except UsageError:
                (skipped if path.is_file() else missing).append(str(path))
                continue
        kept.append((path, (found, 0) if isinstance(found, str) else found))
    classes = sorted({one for _, one in kept})
    place = {one: i for i, one in enumerate(classes)}
    labels = np.array([place[one] for _, one in kept], dtype=np.int64)
    names = [name for name, _ in classes]
    return PictureFolder([path for path, _ in kept], labels, names, size, skipped, missing)
