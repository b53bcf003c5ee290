"""Read the four data sets that composed retrieval is scored on, from their usual folders.

The layouts, prompts and the rule for COCO's query objects are those of saito2023pic2word, read in
the authors' public code and data notes. Only lists are read here; pictures are opened when they are
encoded, and those that are missing or damaged are then skipped, counted and named.

Ours: COCO's query object is drawn by a seed, where the authors' script draws it anew at each run
(its ``coco_eval.csv`` is read where there is one); crowds in COCO's compressed form are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trialrun.representation import _pic2word_stack  # noqa: F401

# isort: split

from trialrun.core.errors import UsageError
from trialrun.representation._pic2word_coco import (
    Coco,
    Region,
    entries_of,
    field,
    read_coco,
    read_json,
    starless,
)
from trialrun.representation._pic2word_pictures import SUFFIXES

__all__ = [
    "DOMAINS",
    "GARMENTS",
    "Cirr",
    "Coco",
    "DomainPictures",
    "FashionIq",
    "Region",
    "read_cirr",
    "read_coco",
    "read_fashion_iq",
    "read_imagenet_r",
]

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
        """Return the published sentences: a photo of ``*`` , and the caption.

        A ``*`` of the caption's own is left out; it would stand for a picture.
        """
        return tuple(f"a photo of * , {starless(caption)}" for caption in self.captions)


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
        """Return the published sentences, the second caption before the first.

        A ``*`` of a caption's own is left out; it would stand for a picture.
        """
        plain = ((starless(first), starless(second)) for first, second in self.captions)
        return tuple(f"a photo of * , {second} and {first}" for first, second in plain)


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


def _column(entries: list[Any], key: str, kind: type, path: Path) -> list[Any]:
    return [field(entry, key, kind, path, number) for number, entry in enumerate(entries)]


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
    places, entries = read_json(lists, "CIRR"), read_json(told, "CIRR")
    if not isinstance(places, dict) or not places:
        raise UsageError(f"{lists} must map names of pictures to their files")
    entries = entries_of(entries, told)
    names = tuple(places)
    files = [field(places, name, str, lists) for name in names]
    paths = tuple(_first_there([root / place, root / "img_raw" / place]) for place in files)
    # A split without targets has none at all; one entry that lacks its own is an error.
    has_targets = any(isinstance(entry, dict) and "target_hard" in entry for entry in entries)
    return Cirr(
        names,
        paths,
        _places(names, _column(entries, "reference", str, told), "references"),
        _places(names, _column(entries, "target_hard", str, told), "targets")
        if has_targets
        else None,
        tuple(_column(entries, "caption", str, told)),
        tuple(_column(entries, "pairid", int, told)),
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
    lists = root / "image_splits" / f"split.{garment}.{split}.json"
    names = tuple(entries_of(read_json(lists, "Fashion-IQ"), lists))
    if not all(isinstance(name, str) for name in names):
        raise UsageError(f"{lists} must hold names of pictures, got something else")
    file = f"cap.{garment}.{split}.json"
    told = _first_there([root / "captions" / file, root / "json" / file])
    entries = entries_of(read_json(told, "Fashion-IQ"), told)
    images = root / "images"
    paths = tuple(
        _first_there([images / f"{n}{s}" for s in (".png", ".jpg", ".jpeg")]) for n in names
    )
    captions = _column(entries, "captions", list, told)
    if any(len(pair) != 2 or not all(isinstance(c, str) for c in pair) for pair in captions):
        raise UsageError(f"{told} must give two captions for each pair")
    return FashionIq(
        garment,
        names,
        paths,
        _places(names, _column(entries, "candidate", str, told), "candidates"),
        _places(names, _column(entries, "target", str, told), "targets"),
        tuple((first, second) for first, second in captions),
    )


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
