"""COCO's object composition: one object of each picture, and the classes of all.

Layout, prompts and the rule for the objects are those of the authors' scripts (saito2023pic2word).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trialrun.representation import _pic2word_stack  # noqa: F401

# isort: split
import numpy as np
from numpy.typing import NDArray

from trialrun.core.errors import UsageError
from trialrun.core.extras import need
from trialrun.core.seeds import rng
from trialrun.representation._pic2word_pictures import open_picture


@dataclass(frozen=True)
class Region:
    """One object of a picture, all else white; calling it opens it.

    ``box`` is left, top, right, bottom, in pixels; ``shapes`` are COCO's polygons or run lengths,
    None where the picture has been masked before.
    """

    path: Path
    box: Sequence[int | float]
    shapes: Any = None

    @property
    def name(self) -> str:
        """Return the file's name."""
        return str(self.path)

    def __call__(self) -> Any:
        """Return the object as a PIL picture, cut out at its box.

        Raises
        ------
        OSError
            If the picture cannot be read.
        """
        need("PIL", extra="pictures")
        from PIL import Image

        picture = open_picture(self.path)
        if self.shapes is not None:
            mask = Image.fromarray(_painted(self.shapes, picture.size))
            picture = Image.composite(picture, Image.new("RGB", picture.size, "white"), mask)
        left, top, right, bottom = (int(side) for side in self.box)
        return picture.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def _painted(shapes: Any, size: tuple[int, int]) -> NDArray[np.uint8]:
    from PIL import Image, ImageDraw

    width, height = size
    if isinstance(shapes, Mapping):
        runs = np.asarray(shapes["counts"], dtype=np.int64)
        values = np.arange(len(runs)) % 2 * 255
        flat = np.repeat(values, runs).astype(np.uint8)
        if flat.size != width * height:
            raise OSError(f"its run lengths cover {flat.size} pixels, not {width * height}")
        return np.ascontiguousarray(flat.reshape(width, height).T)  # runs go down the columns
    mask = Image.new("L", size)
    for points in shapes:
        ImageDraw.Draw(mask).polygon([float(value) for value in points], fill=255)
    return np.asarray(mask)


@dataclass(frozen=True)
class Coco:
    """COCO's object composition: an object of each picture and the classes of all."""

    names: tuple[str, ...]
    paths: tuple[Path, ...]
    regions: tuple[Region, ...]
    classes: tuple[str, ...]
    others: tuple[tuple[str, ...], ...]

    @property
    def prompts(self) -> tuple[str, ...]:
        """Return the published sentences, which name the object's own class as well."""
        return tuple(f"a photo of * and {rest}" for rest in self._rest())

    @property
    def texts(self) -> tuple[str, ...]:
        """Return the sentences of the text baseline."""
        return tuple(f"a photo of {rest}" for rest in self._rest())

    def _rest(self) -> list[str]:
        every = ((own, *more) for own, more in zip(self.classes, self.others))
        return [" and ".join(starless(name) for name in names) for names in every]


def starless(caption: str) -> str:
    """Take out every ``*`` that a caption holds of its own, which would stand for a picture."""
    return " ".join(caption.replace("*", " ").split()) if "*" in caption else caption


def read_json(path: Path, what: str) -> Any:
    """Read one of a data set's lists, or say in a sentence what is wrong with it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{what} needs the file {path}, which is not there") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"{path} is not valid JSON, fetch it anew: {error}") from error


def field(
    entry: Any, key: str, kind: type | tuple[type, ...], path: Path, number: int | None = None
) -> Any:
    """Return one field of one entry of a list, which must be there and of a kind.

    Raises
    ------
    UsageError
        Naming the file, the entry and the field.
    """
    where = str(path) if number is None else f"{path}, entry {number}"
    names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
    if not isinstance(entry, Mapping):
        raise UsageError(f"{where} must be an object with {key!r}, got a {type(entry).__name__}")
    if key not in entry:
        raise UsageError(f"{where} must hold {key!r} ({names}), got {', '.join(map(str, entry))}")
    value = entry[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UsageError(f"{where}: {key!r} must be {names}, got {str(value)[:40]!r}")
    return value


def entries_of(held: Any, path: Path) -> list[Any]:
    """Return a list that holds something.

    Raises
    ------
    UsageError
        If it is no list, or an empty one.
    """
    if not isinstance(held, list) or not held:
        got = "an empty list" if held == [] else f"a {type(held).__name__}"
        raise UsageError(f"{path} must hold a list with at least one entry, got {got}")
    return held


def read_coco(folder: str | Path, *, split: str = "val2017", seed: int = 0) -> Coco:
    """Read COCO for object composition.

    ``coco_eval.csv`` with ``val2017_masked/`` where the authors' script has made them; otherwise
    ``annotations/instances_val2017.json``, of which one object is drawn for each picture among
    those whose box covers less than half of it. Pictures lie in ``val2017/``.

    Parameters
    ----------
    folder : path
    split : str
    seed : int
        Of the draw.

    Raises
    ------
    UsageError
        If a list is missing or damaged, or holds no such object.
    """
    root = Path(folder)
    table = root / "coco_eval.csv"
    rows = _coco_csv(root, table, split) if table.is_file() else _coco_json(root, split, seed)
    if not rows:
        raise UsageError(f"{root} holds no picture with an object that covers less than half of it")
    names, regions, classes, others = zip(*rows)
    paths = tuple(root / split / name for name in names)
    return Coco(names, paths, regions, classes, others)


def _coco_csv(root: Path, table: Path, split: str) -> list[tuple[Any, ...]]:
    rows = []
    with table.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                left, top, right, bottom = map(float, row["query_regions"].split(";"))
                others = tuple(name for name in (row["classes"] or "").split(";") if name)
                place = root / f"{split}_masked" / row["id"]
                region = Region(place, (left, top, right, bottom))
                rows.append((row["id"], region, row["query_class"], others))
            except (KeyError, ValueError, AttributeError) as error:
                raise UsageError(
                    f"{table}, line {number}, must have id, query_regions (x1;y1;x2;y2), "
                    "query_class and classes"
                ) from error
    return rows


def _coco_json(root: Path, split: str, seed: int) -> list[tuple[Any, ...]]:
    path = root / "annotations" / f"instances_{split}.json"
    told = read_json(path, "COCO")
    names: dict[int, str] = {}
    for number, kind in enumerate(field(told, "categories", list, path)):
        names[field(kind, "id", int, path, number)] = field(kind, "name", str, path, number)
    objects: dict[int, list[Any]] = {}
    for number, entry in enumerate(field(told, "annotations", list, path)):
        _check_object(entry, names, path, number)
        objects.setdefault(entry["image_id"], []).append(entry)
    images = field(told, "images", list, path)
    for number, image in enumerate(images):
        field(image, "file_name", str, path, number)
        for key in ("id", "width", "height"):
            field(image, key, int, path, number)
    images = sorted(images, key=lambda image: image["id"])
    rows = []
    for image in images:
        there = objects.get(image["id"], [])
        half = 0.5 * image["width"] * image["height"]
        fit = [entry for entry in there if 0.05 < entry["bbox"][2] * entry["bbox"][3] < half]
        fit = [entry for entry in fit if not _is_compressed(entry["segmentation"])]
        if not fit:
            continue
        chosen = fit[int(rng(seed, "coco", image["id"]).integers(len(fit)))]
        x, y, width, height = chosen["bbox"]
        region = Region(
            root / split / image["file_name"], (x, y, x + width, y + height), chosen["segmentation"]
        )
        own = names[chosen["category_id"]]
        all_of_them = dict.fromkeys(names[entry["category_id"]] for entry in there)
        others = tuple(name for name in all_of_them if name != own)
        rows.append((image["file_name"], region, own, others))
    return rows


def _check_object(entry: Any, names: Mapping[int, str], path: Path, number: int) -> None:
    """Raise a UsageError unless an annotation has what is read of it."""
    field(entry, "image_id", int, path, number)
    own = field(entry, "category_id", int, path, number)
    if own not in names:
        raise UsageError(f"{path}, entry {number}: category_id {own} is in no category")
    box = field(entry, "bbox", list, path, number)
    if len(box) != 4 or not all(isinstance(side, int | float) for side in box):
        raise UsageError(f"{path}, entry {number}: 'bbox' must be four numbers, got {box!r}")
    shapes = field(entry, "segmentation", (list, dict), path, number)
    if isinstance(shapes, dict):
        field(shapes, "counts", (list, str), path, number)


def _is_compressed(shapes: Any) -> bool:
    return isinstance(shapes, Mapping) and isinstance(shapes["counts"], str)
