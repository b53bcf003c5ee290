"""What the networks are examined on, and the painted heads of the shipped check."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trialrun.claims.contract import Budget, Context
from trialrun.core.seeds import split
from trialrun.material.brain import ORGANS, deform, load_brain, make_subject, paint

TARGETS = ("t2", "pd")
SOURCE = "t1"


@dataclass(frozen=True, kw_only=True)
class FAMBudget(Budget):
    """How much of everything a run takes.

    ``warm`` steps of plain prototypes train the encoder that all arms start from, then every arm
    takes ``steps`` of its own; a step is ``batch`` episodes. ``slices`` is the part of the head
    that is used, from below. Of the user's own volumes at most ``own_sources`` are trained on, each
    brought to ``own_size`` rows and columns.
    """

    sources: int
    queries: int
    warm: int
    steps: int
    batch: int
    channels: int
    tokens: int
    organs: int
    slices: tuple[int, int]
    band_step: int
    own_sources: int
    own_size: int


def size(ctx: Context) -> FAMBudget:
    """Return the budget as this dossier's own."""
    assert isinstance(ctx.budget, FAMBudget)
    return ctx.budget


class Ask(NamedTuple):
    """One question: segment ``organ`` in volume ``query`` by the labels of volume ``support``."""

    organ: int
    support: int
    query: int


@dataclass(frozen=True, eq=False)
class Exam:
    """Volumes of one contrast, z-scored, their labels, and what is asked about them.

    ``organs`` numbers run from 1 to this; ``judged`` is False for the contrast trained on.
    """

    images: list[NDArray[np.float32]]
    labels: list[NDArray[np.uint8]]
    asks: list[Ask]
    organs: int
    judged: bool = True

    def save(self, folder: Path) -> None:
        """Write everything into an empty ``folder``."""
        folder.mkdir(parents=True)
        for i, (image, labels) in enumerate(zip(self.images, self.labels)):
            np.save(folder / f"image-{i}.npy", image)
            np.save(folder / f"labels-{i}.npy", labels)
        told = {"asks": self.asks, "organs": self.organs, "judged": self.judged}
        (folder / "asks.json").write_text(json.dumps(told), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Exam:
        """Read what `save` wrote into ``folder``."""
        told = json.loads((folder / "asks.json").read_text(encoding="utf-8"))
        count = len(list(folder.glob("image-*.npy")))
        images, labels = (
            [np.load(folder / f"{part}-{i}.npy") for i in range(count)]
            for part in ("image", "labels")
        )
        return cls(images, labels, [Ask(*ask) for ask in told["asks"]], told["organs"],
                   told["judged"])  # fmt: skip


def save_exams(folder: Path, made: dict[str, Exam]) -> None:
    """Write exams by the name of their point."""
    for number, exam in enumerate(made.values()):
        exam.save(folder / f"exam-{number}")
    (folder / "points.json").write_text(json.dumps(list(made)), encoding="utf-8")


def exams(ctx: Context) -> Iterator[tuple[str, Exam]]:
    """Read the exams of a seed, one at a time, with the names of their points."""
    folder = ctx.prepared("heads")
    names = json.loads((folder / "points.json").read_text(encoding="utf-8"))
    for number, name in enumerate(names):
        yield name, Exam.load(folder / f"exam-{number}")


def scored(volume: NDArray) -> NDArray[np.float32]:
    """Return a volume with mean 0 and standard deviation 1."""
    return ((volume - volume.mean()) / volume.std()).astype(np.float32)


def _person(
    ctx: Context, role: str, number: int
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.uint8]]:
    """Return one head z-scored in every contrast, and its labels; each role has its own people."""
    brain, seed = load_brain(), split(ctx.seed, role, number)
    part = slice(*size(ctx).slices)
    images = {SOURCE: scored(make_subject(brain, seed, contrast=SOURCE).image[part])}
    moved = deform(brain, seed)
    for contrast in TARGETS:
        images[contrast] = scored(paint(moved, contrast, seed)[part])
    return images, moved.labels[part]


def painted_sources(ctx: Context) -> list[NDArray[np.float32]]:
    """Return the T1 heads that are trained on."""
    brain, part = load_brain(), slice(*size(ctx).slices)
    seeds = (split(ctx.seed, "source", i) for i in range(size(ctx).sources))
    return [scored(make_subject(brain, seed, contrast=SOURCE).image[part]) for seed in seeds]


def painted_exams(ctx: Context) -> dict[str, Exam]:
    """Make one exam per contrast: head 0 is the support, every other head a query.

    In the contrast trained on, one query is enough: it is not judged.
    """
    people = [_person(ctx, "support", 0)]
    people += [_person(ctx, "query", q) for q in range(size(ctx).queries)]
    made = {}
    for contrast in (SOURCE, *TARGETS):
        chosen = people if contrast in TARGETS else people[:2]
        asks = [
            Ask(organ, 0, query)
            for query in range(1, len(chosen))
            for organ in range(1, size(ctx).organs + 1)
        ]
        images, labels = zip(*((images[contrast], labels) for images, labels in chosen))
        made[contrast] = Exam(
            list(images), list(labels), asks, len(ORGANS), judged=contrast in TARGETS
        )
    return made
