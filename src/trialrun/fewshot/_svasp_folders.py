"""Pictures in folders: mini-ImageNet, the four BSCD-FSL sets and the FWT lists, by path.

The layouts are those in which the sets are handed out, as far as we know them (from memory; only
small made-up folders of the same shape are tested). Nothing is downloaded and nothing unpickled.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from trialrun.core.errors import UsageError
from trialrun.fewshot._svasp_picture_folder import PictureFolder, gather

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
    return gather(_in_class_folders(_folder(root)), size, check)


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
        return gather(_in_class_folders(spot / split), size, check)
    rows = _rows(spot / f"{split}.csv", ("filename", "label"))
    return gather([(spot / "images" / r["filename"], r["label"]) for r in rows], size, check)


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
        return gather(_in_class_folders(found[0] if found else spot), size, check)
    pictures = {path.name: path for path in spot.rglob("*") if path.suffix.lower() in SUFFIXES}
    pairs = _isic(spot) if name == "isic" else _chestx(spot)
    return gather([(pictures.get(file, spot / file), label) for file, label in pairs], size, check)


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
    _check_root([Path(name) for name in names], here)
    return gather(
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


def _check_root(names: Sequence[Path], root: Path | None) -> None:
    """Refuse a root that is the folder of some listed pictures while others have other folders.

    Their bare names might be found in it, with the labels of other pictures.
    """
    parents = {name.parent.name for name in names}
    if root is not None and len(parents) > 1 and root.resolve().name in parents:
        raise UsageError(
            f"root must hold the folders of all listed pictures, but {root} is the folder of some "
            f"of them: give {root.resolve().parent}"
        )
