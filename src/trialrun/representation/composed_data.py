"""Read the four data sets that composed retrieval is scored on, from their usual folders.

The layouts, prompts and the rule for COCO's query objects are those of saito2023pic2word, read in
the authors' public code and data notes. Only lists are read here; pictures are opened when they are
encoded, and those that are missing or damaged are then skipped, counted and named.

Ours: COCO's query object is drawn by a seed, where the authors' script draws it anew at each run
(its ``coco_eval.csv`` is read where there is one); crowds in COCO's compressed form are left out.
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
from trialrun.representation._pic2word_pictures import SUFFIXES, open_picture

DOMAINS = ("cartoon", "origami", "toy", "sculpture")
"""ImageNet-R's domains that the published protocol asks for."""

GARMENTS = ("dress", "shirt", "toptee")
"""Fashion-IQ's kinds of garment."""


@dataclass(frozen=True)
class Cirr:
    """CIRR: references and targets are places in the gallery; test splits have no targets."""

    names: tuple[str, ...]
    paths: tuple[Path, ...]
    references: tuple[int, ...]
    targets: tuple[int, ...] | None
    captions: tuple[str, ...]
    pair_ids: tuple[int, ...]

    @property
    def prompts(self) -> tuple[str, ...]:
        """Return the published sentences: a photo of ``*`` , and the caption."""
        return tuple(f"a photo of * , {caption}" for caption in self.captions)


@dataclass(frozen=True)
class FashionIq:
    """One garment of Fashion-IQ; the gallery is the split's list."""

    garment: str
    names: tuple[str, ...]
    paths: tuple[Path, ...]
    references: tuple[int, ...]
    targets: tuple[int, ...]
    captions: tuple[tuple[str, str], ...]

    @property
    def prompts(self) -> tuple[str, ...]:
        """Return the published sentences, the second caption before the first."""
        return tuple(f"a photo of * , {second} and {first}" for first, second in self.captions)


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
        return [" and ".join((own, *more)) for own, more in zip(self.classes, self.others)]


@dataclass(frozen=True)
class DomainPictures:
    """ImageNet-R: drawn pictures by class and domain, and real ones to ask with."""

    paths: tuple[Path, ...]
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    real_paths: tuple[Path, ...]
    real_classes: tuple[str, ...]

    @staticmethod
    def prompt(domain: str) -> str:
        """Return the published sentence of a domain."""
        return f"a {domain} of *"


def _json(path: Path, what: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{what} needs the file {path}, which is not there") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"{path} is not valid JSON, fetch it anew: {error}") from error


def _first_there(candidates: Sequence[Path]) -> Path:
    return next((path for path in candidates if path.exists()), candidates[0])


def _places(names: Sequence[str], wanted: Sequence[str], what: str) -> tuple[int, ...]:
    at = {name: i for i, name in enumerate(names)}
    missing = [name for name in wanted if name not in at]
    if missing:
        raise UsageError(
            f"{what} must be in the split's list of pictures, got {len(missing)} that are not, "
            f"the first {missing[0]!r}"
        )
    return tuple(at[name] for name in wanted)


def _field(entries: Any, key: str, path: Path) -> list[Any]:
    try:
        return [entry[key] for entry in entries]
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path} must hold a list of entries with {key!r}") from error


def read_cirr(folder: str | Path, split: str = "val") -> Cirr:
    """Read CIRR: ``captions/cap.rc2.SPLIT.json``, ``image_splits/split.rc2.SPLIT.json``, pictures.

    Parameters
    ----------
    folder : path
    split : {"val", "test1", "train"}
        ``test1`` has no targets.

    Raises
    ------
    UsageError
        If a list is missing, damaged, or names a picture that the split has not.
    """
    root = Path(folder)
    lists = root / "image_splits" / f"split.rc2.{split}.json"
    told = root / "captions" / f"cap.rc2.{split}.json"
    places, entries = _json(lists, "CIRR"), _json(told, "CIRR")
    if not isinstance(places, dict) or not places:
        raise UsageError(f"{lists} must map names of pictures to their files")
    names = tuple(places)
    paths = tuple(
        _first_there([root / place, root / "img_raw" / place]) for place in places.values()
    )
    has_targets = all("target_hard" in entry for entry in entries)
    return Cirr(
        names,
        paths,
        _places(names, _field(entries, "reference", told), "references"),
        _places(names, _field(entries, "target_hard", told), "targets") if has_targets else None,
        tuple(_field(entries, "caption", told)),
        tuple(_field(entries, "pairid", told)),
    )


def read_fashion_iq(folder: str | Path, garment: str, split: str = "val") -> FashionIq:
    """Read one garment of Fashion-IQ.

    ``image_splits/split.GARMENT.SPLIT.json``, ``captions/`` or ``json/cap.GARMENT.SPLIT.json``, and
    ``images/`` of any picture format.

    Parameters
    ----------
    folder : path
    garment : {"dress", "shirt", "toptee"}
    split : str

    Raises
    ------
    UsageError
        If a list is missing, damaged, or names a picture that the split has not.
    """
    if garment not in GARMENTS:
        raise UsageError(f"garment must be one of {', '.join(GARMENTS)}, got {garment!r}")
    root = Path(folder)
    names = tuple(_json(root / "image_splits" / f"split.{garment}.{split}.json", "Fashion-IQ"))
    file = f"cap.{garment}.{split}.json"
    told = _first_there([root / "captions" / file, root / "json" / file])
    entries = _json(told, "Fashion-IQ")
    images = root / "images"
    paths = tuple(
        _first_there([images / f"{n}{s}" for s in (".png", ".jpg", ".jpeg")]) for n in names
    )
    captions = _field(entries, "captions", told)
    if any(len(pair) != 2 for pair in captions):
        raise UsageError(f"{told} must give two captions for each pair")
    return FashionIq(
        garment,
        names,
        paths,
        _places(names, _field(entries, "candidate", told), "candidates"),
        _places(names, _field(entries, "target", told), "targets"),
        tuple((first, second) for first, second in captions),
    )


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
    told = _json(path, "COCO")
    try:
        names = {category["id"]: category["name"] for category in told["categories"]}
        objects: dict[int, list[Any]] = {}
        for entry in told["annotations"]:
            objects.setdefault(entry["image_id"], []).append(entry)
        images = sorted(told["images"], key=lambda image: image["id"])
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path} must hold images, annotations and categories") from error
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


def _is_compressed(shapes: Any) -> bool:
    return isinstance(shapes, Mapping) and isinstance(shapes["counts"], str)


def read_imagenet_r(
    folder: str | Path,
    *,
    real: str | Path | None = None,
    domains: Sequence[str] = DOMAINS,
) -> DomainPictures:
    """Read ImageNet-R: ``CLASS/DOMAIN_NUMBER.jpg``, with real pictures in ``real/CLASS/``.

    Parameters
    ----------
    folder : path
        ImageNet-R itself, or a folder with ``imagenet-r`` and ``real`` in it.
    real : path, optional
        ImageNet's validation pictures in folders by class.
    domains : sequence of str
        Domains to keep.

    Raises
    ------
    UsageError
        If there is no picture of these domains, or no real picture of their classes.
    """
    root = Path(folder)
    real = root / "real" if real is None else Path(real)
    root = root / "imagenet-r" if (root / "imagenet-r").is_dir() else root
    drawn = [p for p in _by_class(root) if p.name.partition("_")[0] in domains and p.parent != real]
    classes = tuple(path.parent.name for path in drawn)
    if not drawn:
        raise UsageError(
            f"{root} must hold CLASS/DOMAIN_NUMBER.jpg with a domain of {', '.join(domains)}, "
            "got none"
        )
    photos = [path for path in _by_class(real) if path.parent.name in set(classes)]
    if not photos:
        raise UsageError(
            f"{real} must hold CLASS/*.jpg with the same names of classes, got none: name the "
            "folder of real pictures with real="
        )
    return DomainPictures(
        tuple(drawn),
        classes,
        tuple(path.name.partition("_")[0] for path in drawn),
        tuple(photos),
        tuple(path.parent.name for path in photos),
    )


def _by_class(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*/*") if p.suffix.lower() in SUFFIXES and p.is_file())
