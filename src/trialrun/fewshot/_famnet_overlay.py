"""Pictures of segmentations: outlines and tints on slices, as arrays and PNG files."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0))


def _grey(image: NDArray) -> NDArray[np.float64]:
    low, high = np.percentile(image, (0.5, 99.5))
    return (255 * ((image - low) / max(high - low, 1e-12))).clip(0, 255)


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def overlay(
    image: NDArray,
    truth: NDArray | None = None,
    prediction: NDArray | None = None,
    *,
    zoom: int = 4,
    tint: int | float = 0.45,
    colours: Sequence[tuple[int, int, int]] = COLOURS,
) -> NDArray[np.uint8]:
    """Draw a slice with the prediction tinted and the truth outlined.

    Parameters
    ----------
    image : array of shape (rows, columns) or (slices, rows, columns)
        Slices are set side by side. Brightness is stretched between its half percentiles.
    truth, prediction : arrays of the image's shape, or None
        0 for background, then 1, 2, ... for organs, or bool.
    zoom : int, at least 1
        Pixels of the picture per pixel of the image, along each side.
    tint : float in [0, 1]
        How much of the colour covers the image.
    colours : sequence of triples from 0 to 255
        One per organ, used in turn.

    Returns
    -------
    array of uint8, shape (rows x zoom, columns x zoom x slices, 3)

    Raises
    ------
    ValueError
        If a mask has another shape than the image, or a setting is out of range.

    Examples
    --------
    >>> overlay(np.eye(8), truth=np.eye(8) > 0, zoom=2).shape
    (16, 16, 3)
    """
    image = np.asarray(image, dtype=np.float64)
    if image.ndim not in (2, 3):
        raise ValueError(f"image must be (rows, columns) or slices of that, got {image.shape}")
    if zoom < 1 or not 0 <= tint <= 1:
        raise ValueError(f"zoom must be at least 1 and tint in [0, 1], got {zoom!r}, {tint!r}")
    layers = {}
    for name, mask in (("truth", truth), ("prediction", prediction)):
        if mask is None:
            continue
        layers[name] = np.asarray(mask).astype(np.int64)
        if layers[name].shape != image.shape:
            raise ValueError(f"{name} must have the image's shape {image.shape}, got {mask.shape}")

    def flat(stack: NDArray) -> NDArray:
        return np.concatenate(list(stack), axis=1) if stack.ndim == 3 else stack

    def zoomed(plane: NDArray) -> NDArray:
        return plane.repeat(zoom, axis=0).repeat(zoom, axis=1)

    picture = zoomed(_grey(flat(image)))[..., None].repeat(3, axis=2)
    for name, mask in layers.items():
        for organ in np.unique(mask[mask > 0]):
            colour = np.array(colours[(int(organ) - 1) % len(colours)], dtype=np.float64)
            area = zoomed(flat(mask == organ))
            if name == "prediction":
                picture[area] = (1 - tint) * picture[area] + tint * colour
            else:
                picture[_outline(area)] = colour
    return picture.round().astype(np.uint8)


def write_png(path: str | Path, picture: NDArray) -> Path:
    """Write a uint8 picture (rows, columns, 3) as a PNG file, with the standard library only.

    Raises
    ------
    ValueError
        If the array is of another kind.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> write_png(folder / "a.png", np.zeros((2, 2, 3), np.uint8)).read_bytes()[1:4]
    b'PNG'
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(
            f"picture must be uint8 (rows, columns, 3), got {picture.dtype} {picture.shape}"
        )
    rows, columns, _ = picture.shape
    lines = np.zeros((rows, 1 + 3 * columns), dtype=np.uint8)
    lines[:, 1:] = picture.reshape(rows, -1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines.tobytes(), 9))
    target = Path(path)
    target.write_bytes(b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b""))
    return target
