"""Pictures in folders: mini-ImageNet, the four BSCD-FSL sets and the FWT lists, by path.

The layouts are those in which the sets are handed out, as far as we know them (from memory; only
small made-up folders of the same shape are tested). Nothing is downloaded and nothing unpickled.
Pictures that cannot be decoded are left out, counted and named in ``skipped``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trialrun.core.errors import UsageError
from trialrun.core.extras import need
from trialrun.core.shapes import check_range

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")

CHESTX_CLASSES = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumothorax",
)


@dataclass(frozen=True, eq=False)
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


def _gather(
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


def _folder(root: str | Path) -> Path:
    spot = Path(root).expanduser()
    if not spot.is_dir():
        raise UsageError(f"root must be a folder, got {spot}: there is none")
    return spot


def _in_class_folders(root: Path) -> list[tuple[Path, str]]:
    return [
        (path, folder.name)
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]


def picture_folder(root: str | Path, *, size: int = 84, check: bool = True) -> PictureFolder:
    """Index a folder that holds one folder of pictures per class.

    Parameters
    ----------
    root : str or Path
    size : int, at least 1
        Side of the squares that are read.
    check : bool
        Decode every picture once, and leave out those that cannot be; a few milliseconds each.
        Without it a bad file is an error when its turn comes.

    Raises
    ------
    UsageError
        If there is no such folder, or fewer than two classes.

    Examples
    --------
    >>> picture_folder("no/such/folder")
    Traceback (most recent call last):
    ...
    trialrun.core.errors.UsageError: root must be a folder, got no/such/folder: there is none
    """
    return _gather(_in_class_folders(_folder(root)), size, check)


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    if not path.is_file():
        raise UsageError(f"{path} is missing: it names the classes of the pictures")
    with path.open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file)
        lacking = [name for name in columns if name not in (table.fieldnames or ())]
        if lacking:
            raise UsageError(f"{path} must have the column {', '.join(lacking)}")
        return list(table)


def mini_imagenet(
    root: str | Path, split: str = "train", *, size: int = 84, check: bool = True
) -> PictureFolder:
    """Index a split of mini-ImageNet.

    Parameters
    ----------
    root : str or Path
        Holds either ``train``, ``val`` and ``test`` with a folder per class, or ``images`` with
        ``train.csv``, ``val.csv`` and ``test.csv`` (columns ``filename`` and ``label``).
    split : {"train", "val", "test"}
    size, check
        As in `picture_folder`.

    Raises
    ------
    UsageError
        If the split is unknown or neither layout is there.

    Examples
    --------
    >>> mini_imagenet(".", "testing")
    Traceback (most recent call last):
    ...
    trialrun.core.errors.UsageError: split must be one of train, val, test, got 'testing'
    """
    if split not in ("train", "val", "test"):
        raise UsageError(f"split must be one of train, val, test, got {split!r}")
    spot = _folder(root)
    if (spot / split).is_dir():
        return _gather(_in_class_folders(spot / split), size, check)
    rows = _rows(spot / f"{split}.csv", ("filename", "label"))
    return _gather([(spot / "images" / r["filename"], r["label"]) for r in rows], size, check)


def bscd_fsl(root: str | Path, name: str, *, size: int = 84, check: bool = True) -> PictureFolder:
    """Index one of the four BSCD-FSL target sets.

    Parameters
    ----------
    root : str or Path
        The unpacked set.
    name : {"eurosat", "cropdisease", "isic", "chestx"}
        ``eurosat`` has class folders, possibly inside ``2750``; ``cropdisease`` class folders,
        possibly inside ``train``; ``isic`` the table
        ``ISIC2018_Task3_Training_GroundTruth.csv``; ``chestx`` the table ``Data_Entry_2017.csv``,
        of which pictures with one finding out of seven are taken.
    size, check
        As in `picture_folder`.

    Raises
    ------
    UsageError
        If the name is unknown or a table is missing.

    Examples
    --------
    >>> bscd_fsl(".", "cub")
    Traceback (most recent call last):
    ...
    trialrun.core.errors.UsageError: name must be one of eurosat, cropdisease, isic, chestx, got ...
    """
    inside = {"eurosat": "2750", "cropdisease": "train"}
    if name not in (*inside, "isic", "chestx"):
        raise UsageError(f"name must be one of eurosat, cropdisease, isic, chestx, got {name!r}")
    spot = _folder(root)
    if name in inside:
        found = [path for path in sorted(spot.rglob(inside[name])) if path.is_dir()]
        return _gather(_in_class_folders(found[0] if found else spot), size, check)
    pictures = {path.name: path for path in spot.rglob("*") if path.suffix.lower() in SUFFIXES}
    pairs = _isic(spot) if name == "isic" else _chestx(spot)
    return _gather([(pictures.get(file, spot / file), label) for file, label in pairs], size, check)


def _table(spot: Path, name: str) -> Path:
    return next(iter(sorted(spot.rglob(name))), spot / name)


def _isic(spot: Path) -> list[tuple[str, str]]:
    table = _table(spot, "ISIC2018_Task3_Training_GroundTruth.csv")
    found = []
    for row in _rows(table, ("image",)):
        try:
            marked = [
                key for key, value in row.items() if key != "image" and float(value or 0) == 1
            ]
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"{table} must hold numbers for every class, but the row of {row['image']} does "
                f"not: {error}"
            ) from error
        if len(marked) == 1:
            found.append((f"{row['image']}.jpg", marked[0]))
    return found


def _chestx(spot: Path) -> list[tuple[str, str]]:
    rows = _rows(_table(spot, "Data_Entry_2017.csv"), ("Image Index", "Finding Labels"))
    return [
        (row["Image Index"], row["Finding Labels"])
        for row in rows
        if row["Finding Labels"] in CHESTX_CLASSES
    ]


def fwt_list(
    file: str | Path, *, root: str | Path | None = None, size: int = 84, check: bool = True
) -> PictureFolder:
    """Index a list of pictures in the form of the FWT splits (CUB, Cars, Places, Plantae).

    Parameters
    ----------
    file : str or Path
        JSON with ``image_names``, ``image_labels`` and, if there are any, ``label_names``.
    root : str or Path or None
        Where the pictures lie now. Lists hold the paths of the machine they were made on: the
        longest ending of such a path that exists under ``root`` is taken. None keeps the paths.
    size, check
        As in `picture_folder`.

    Raises
    ------
    UsageError
        If the file is no such list, or its two lists differ in length. Two labels of one name stay
        two classes.

    Examples
    --------
    >>> fwt_list("novel.json")
    Traceback (most recent call last):
    ...
    trialrun.core.errors.UsageError: novel.json cannot be read as a JSON list of pictures: ...
    """
    spot = Path(file).expanduser()
    try:
        table = json.loads(spot.read_text(encoding="utf-8"))
        names, labels = list(table["image_names"]), [int(label) for label in table["image_labels"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{spot} cannot be read as a JSON list of pictures: {error or type(error).__name__}"
        ) from error
    if len(names) != len(labels):
        raise UsageError(
            f"{spot} must hold one label per picture, got {len(names)} pictures and "
            f"{len(labels)} labels"
        )
    words = table.get("label_names") or []
    here = None if root is None else _folder(root)
    return _gather(
        [
            (
                _moved(Path(name), here),
                (str(words[label]) if 0 <= label < len(words) else f"{label:06d}", label),
            )
            for name, label in zip(names, labels)
        ],
        size,
        check,
    )


def _moved(path: Path, root: Path | None) -> Path:
    if root is None:
        return path
    parts = [part for part in path.parts if part not in ("/", "..", ".")]
    for start in range(len(parts)):
        if (root / Path(*parts[start:])).is_file():
            return root / Path(*parts[start:])
    return root / path.name
