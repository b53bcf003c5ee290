"""The file of a teacher's features: one safetensors table, written as it comes, read by mapping."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trialrun.core.errors import NotRunnable


def header(count: int, width: int) -> bytes:
    """Return the head of a file of ``count`` rows of ``width`` numbers in float32."""
    entry = {"dtype": "F32", "shape": [count, width], "data_offsets": [0, 4 * count * width]}
    text = json.dumps({"features": entry}).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _layout(path: Path) -> tuple[int, tuple[int, int]]:
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        entry = json.loads(file.read(min(size, 1 << 16)))["features"]
    count, width = entry["shape"]
    if entry["dtype"] != "F32" or 8 + size + 4 * count * width != path.stat().st_size:
        raise ValueError("the length of the file does not fit its header")
    return 8 + size, (count, width)


def is_whole(path: Path) -> bool:
    """Tell whether a file is there and as long as its head says."""
    try:
        _layout(path)
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return False
    return True


def read_features(path: str | Path) -> NDArray[np.float32]:
    """Return the features (images, width) of a file, memory-mapped and read-only.

    Raises
    ------
    NotRunnable
        If the file is missing or not whole.

    Examples
    --------
    >>> read_features("gone.safetensors")
    Traceback (most recent call last):
    trialrun.core.errors.NotRunnable: gone.safetensors is no whole file of features: ...
    """
    path = Path(path)
    try:
        start, shape = _layout(path)
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise NotRunnable(
            f"{path} is no whole file of features: remove it and run the teacher again ({error})"
        ) from error
    return np.memmap(path, "<f4", "r", offset=start, shape=shape)
