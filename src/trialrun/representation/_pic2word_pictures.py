"""Pictures from files, and their embeddings in one pass. Damaged files are skipped and named."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trialrun.representation import _pic2word_stack  # noqa: F401

# isort: split
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from trialrun.core.errors import UsageError
from trialrun.core.extras import need
from trialrun.representation._pic2word_clip import Clip

_DAMAGED = (
    ValueError, SyntaxError, EOFError, struct.error, KeyError, IndexError, TypeError,
    AttributeError, OverflowError, ZeroDivisionError, MemoryError, NotImplementedError,
)  # fmt: skip
INDEX = ("index.safetensors", "index.json")
"""The two files of a picture index, which make its folder no folder of pictures."""
SHEET = "trialrun contact sheet"
"""The text in a PNG that marks a contact sheet."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class Embedded:
    """Embeddings of the pictures that could be read.

    Parameters
    ----------
    features : Tensor (pictures, embed)
        Not normalised, float32, on the CPU.
    kept : tuple of int
        Which of the pictures asked for each row belongs to.
    skipped : tuple of (str, str)
        Name of each picture that could not be read, and why.
    """

    features: Tensor
    kept: tuple[int, ...]
    skipped: tuple[tuple[str, str], ...]


def find_pictures(folder: str | Path) -> tuple[Path, ...]:
    """Return the picture files under a folder, in the order of their names.

    Hidden files and folders, folders that hold a picture index, and contact sheets are left out.

    Raises
    ------
    UsageError
        If it is no folder or holds no picture.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder: name a folder of pictures")
    indexes = {told.parent for told in root.rglob(INDEX[1]) if _is_index(told.parent)}
    found = [
        path
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and path.is_file()
        and path.parent not in indexes
        and not _is_sheet(path)
    ]
    if not found:
        raise UsageError(
            f"{root} holds no picture: expected files that end in {', '.join(SUFFIXES)}"
        )
    return tuple(sorted(found, key=lambda path: path.relative_to(root).as_posix()))


def _is_index(folder: Path) -> bool:
    return all((folder / name).is_file() for name in INDEX)


def _is_sheet(path: Path) -> bool:
    """Tell a contact sheet by the text that stands at the beginning of its file."""
    if path.suffix.lower() != ".png":
        return False
    try:
        with path.open("rb") as file:
            return SHEET.encode() + b"\0" in file.read(256)
    except OSError:
        return False


def open_picture(path: str | Path) -> Any:
    """Open a picture as RGB on white, upright, fully decoded.

    Grey of 16 bits is scaled to 8.

    Raises
    ------
    OSError
        If it is missing or damaged, or its values have no known white (32 bits, floats).
    """
    need("PIL", extra="pictures")
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.mode == "RGB":
                picture.load()
                return picture.copy()
            layered = _eight_bits(picture).convert("RGBA")
    except FileNotFoundError as error:
        raise OSError("no such file") from error
    # PIL's readers raise all of these for files that are cut short, corrupt or no pictures.
    except _DAMAGED as error:
        raise OSError(str(error) or type(error).__name__) from error
    except Image.DecompressionBombError as error:
        raise OSError(str(error)) from error
    white = Image.new("RGBA", layered.size, "white")
    white.alpha_composite(layered)
    return white.convert("RGB")


def _eight_bits(picture: Any) -> Any:
    """Scale grey of 16 bits, which PIL would cut off at 255."""
    from PIL import Image

    if picture.mode == "F":
        raise ValueError("it holds floats, whose white is not known: save it with 8 or 16 bits")
    if not picture.mode.startswith("I"):
        return picture
    values = np.asarray(picture).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(f"it holds {low} to {high}, whose white is not known: save it with 8 bits")
    # PIL opens 16-bit PNGs as "I;16" or, in older versions, "I".
    return Image.fromarray((values * 255 / 65535).round().astype(np.uint8))


def _say(skipped: Sequence[tuple[str, str]], asked: int) -> None:
    if skipped:
        named = "; ".join(f"{name} ({why})" for name, why in skipped[:5])
        more = f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        warnings.warn(
            f"{len(skipped)} of {asked} pictures could not be read and are left out: {named}{more}",
            stacklevel=3,
        )


def _named(picture: Any) -> str:
    return str(getattr(picture, "name", None) or picture)


def embed_pictures(
    clip: Clip,
    preprocess: Callable[[Any], Tensor],
    pictures: Sequence[Any],
    *,
    batch_size: int = 64,
    tick: Callable[[int], None] | None = None,
) -> Embedded:
    """Encode pictures from files, skipping those that cannot be read.

    Parameters
    ----------
    clip : Clip
    preprocess : callable
        From a PIL picture to a tensor (3, height, width).
    pictures : sequence of path or callable
        Files, or functions that return a PIL picture (and raise ``OSError``).
    batch_size : int, at least 1
    tick : callable, optional
        Told the number of pictures done after each batch.

    Returns
    -------
    Embedded

    Raises
    ------
    UsageError
        If no picture could be read.
    """
    rows: list[Tensor] = []
    kept: list[int] = []
    skipped: list[tuple[str, str]] = []
    waiting: list[Tensor] = []

    def flush() -> None:
        if waiting:
            with torch.no_grad(), clip.frozen():
                rows.append(clip.encode_image(torch.stack(waiting)).float().cpu())
            waiting.clear()

    for i, picture in enumerate(pictures):
        try:
            str(picture).encode()
            opened = picture() if callable(picture) else open_picture(picture)
            waiting.append(preprocess(opened))
            kept.append(i)
        except UnicodeEncodeError:
            name = _named(picture).encode(errors="surrogateescape")
            skipped.append((name.decode(errors="backslashreplace"), "its name is not UTF-8"))
        except OSError as error:
            skipped.append((_named(picture), str(error)))
        if len(waiting) >= batch_size:
            flush()
            if tick:
                tick(i + 1)
    flush()
    if not rows:
        first = f"; the first: {skipped[0][0]} ({skipped[0][1]})" if skipped else ""
        raise UsageError(f"none of {len(pictures)} pictures could be read{first}")
    if tick:
        tick(len(pictures))
    _say(skipped, len(pictures))
    return Embedded(torch.cat(rows), tuple(kept), tuple(skipped))


def embed_batches(clip: Clip, loader: Iterable[Any]) -> Float[Tensor, "pictures embed"]:
    """Encode all batches of a loader once, not normalised.

    Parameters
    ----------
    clip : Clip
    loader : iterable
        Of tensors (batch, 3, height, width), or of tuples that begin with one.

    Raises
    ------
    ValueError
        If the loader gives nothing, or something else.
    """
    rows = []
    with torch.no_grad(), clip.frozen():
        for batch in loader:
            pixels = batch[0] if isinstance(batch, tuple | list) else batch
            if not isinstance(pixels, Tensor):
                raise ValueError(  # noqa: TRY004 - the house's one kind for wrong input
                    "the loader must give tensors of shape (batch, 3, height, width), or tuples "
                    f"that begin with one, got {type(pixels).__name__}"
                )
            rows.append(clip.encode_image(pixels).float().cpu())
    if not rows:
        raise ValueError("the loader must give at least one batch, got none")
    return torch.cat(rows)
