"""The user's own pictures: one folder a class, of PNG, JPEG, WebP, BMP or GIF files.

Files that cannot be read as pictures are skipped, counted and named; they are never fatal unless a
class is left with too few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trialrun.core.errors import UsageError
from trialrun.core.extras import need
from trialrun.material._rasters import Pixels, check_size

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


@dataclass(frozen=True, eq=False)
class ClassFolders:
    """Pictures in classes: ``images`` (n, size, size, 3) in uint8 and ``labels`` (n,).

    ``skipped`` holds the files that could not be read, in order.
    """

    images: Pixels
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    files: tuple[str, ...]
    skipped: tuple[str, ...]

    def said(self) -> str:
        """Return one sentence about the skipped files, or an empty text."""
        if not self.skipped:
            return ""
        some = ", ".join(self.skipped[:3]) + (", ..." if len(self.skipped) > 3 else "")
        return f"{len(self.skipped)} files could not be read as pictures and were skipped: {some}"


def _square(path: Path, size: int) -> Pixels | None:
    """Read a picture, put it on white and cut its middle to a square; None if it is damaged."""
    image_module = need("PIL.Image", extra="pictures")
    try:
        with image_module.open(path) as opened:
            drawn = opened.convert("RGBA")
    except (OSError, ValueError, SyntaxError, image_module.DecompressionBombError):
        return None
    white = image_module.new("RGBA", drawn.size, (255, 255, 255, 255))
    flat = image_module.alpha_composite(white, drawn).convert("RGB")
    side = min(flat.size)
    left, top = (flat.width - side) // 2, (flat.height - side) // 2
    cut = flat.crop((left, top, left + side, top + side))
    return np.asarray(cut.resize((size, size), image_module.Resampling.LANCZOS))


def read_class_folders(
    folder: str | Path, *, size: int = 32, least: int = 2, endings: Sequence[str] = ENDINGS
) -> ClassFolders:
    """Read every picture of a folder whose folders are classes.

    Parameters
    ----------
    folder : path
    size : int, 8 to 512
        Side in pixels; a picture's middle square is scaled to it.
    least : int
        Pictures that each class must have.

    Raises
    ------
    UsageError
        If it is no folder, holds fewer than two classes, or a class has too few readable pictures.
    """
    check_size(size)
    root = Path(folder)
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder: give one that holds a folder for each class")
    names = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != "."))
    if len(names) < 2:
        raise UsageError(
            f"{root} must hold a folder for each of at least two classes, got {len(names)}"
        )
    images, labels, files, skipped = [], [], [], []
    for label, name in enumerate(names):
        for path in sorted((root / name).rglob("*")):
            if path.suffix.lower() not in endings or not path.is_file():
                continue
            pixels = _square(path, size)
            if pixels is None:
                skipped.append(str(path.relative_to(root)))
                continue
            images.append(pixels)
            labels.append(label)
            files.append(str(path.relative_to(root)))
    counts = np.bincount(np.array(labels, np.int64), minlength=len(names))
    if counts.min() < least:
        poor = names[int(counts.argmin())]
        lost = f" ({len(skipped)} files could not be read: {skipped[0]})" if skipped else ""
        raise UsageError(
            f"the class {poor} in {root} must hold at least {least} pictures, got "
            f"{counts.min()}{lost}"
        )
    return ClassFolders(
        np.stack(images), np.array(labels, np.int64), names, tuple(files), tuple(skipped)
    )
