"""The user's own volumes: a NIfTI folder, or one folder per modality, with images and labels.

With ``--domain NAME`` every sub-folder is a modality: NAME is trained on, the others are tested.
Without it there is one folder, whole volumes of which are held out at random per seed; then no
contrast changes, and a verdict is about new volumes of the same kind. A case that is tested is
never trained on, in whichever modality: files of equal name are taken for one person.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trialrun.claims.contract import Context, On
from trialrun.core.errors import UsageError
from trialrun.core.extras import need
from trialrun.core.seeds import rng
from trialrun.dossiers.famnet.heads import Ask, Exam, size
from trialrun.fewshot._famnet_folders import broken_files, chosen_layout, found_files
from trialrun.fewshot.famnet import Layout, Volume, read_folder

SINGLE = "held-out volumes"
HELD_OUT = {True: 0.3, False: 0.5}
"""Share of the tested cases that is held out, by whether one folder serves for all."""


@dataclass(frozen=True, eq=False)
class Own:
    """The user's volumes: those trained on, those tested by the name of their point, what failed.

    ``said`` is one sentence about skipped files, or empty; ``spacing`` is in millimetres.
    """

    source: tuple[Volume, ...]
    targets: Mapping[str, tuple[Volume, ...]]
    spacing: float
    said: str

    @property
    def single(self) -> bool:
        """Return whether one folder is both trained on and tested."""
        return SINGLE in self.targets


@dataclass(frozen=True, eq=False)
class Parts:
    """What one seed trains on and what it is examined on."""

    train: list[Volume]
    exams: dict[str, Exam]


def _folders(on: On) -> dict[str, Path]:
    """Return the modalities by name, the one trained on first; one folder alone has the name ''."""
    root = Path(on.path)
    if not root.is_dir():
        raise UsageError(f"{root} is no folder: name the one that holds the NIfTI files")
    named = on.options.get("domain")
    inside = sorted(p for p in root.iterdir() if p.is_dir() and p.name[0] != ".")
    if named is None:
        modal = [p.name for p in inside if (p / "images").is_dir()]
        if len(modal) > 1 and not (root / "images").is_dir():
            raise UsageError(
                f"{root} holds a folder for each of {', '.join(modal)}: add --domain with the one "
                "that is trained on"
            )
        return {"": root}
    names = [p.name for p in inside]
    if named not in names or len(names) < 2:
        raise UsageError(
            f"--domain must be one of at least two folders in {root}, the one that is trained on; "
            f"there are {', '.join(names) or 'none'}, got {named!r}"
        )
    return {p.name: p for p in sorted(inside, key=lambda p: (p.name != named, p.name))}


def _layouts(on: On, names: Sequence[str]) -> dict[str, Layout]:
    """Return the layout of each folder from ``--as``: one word, or ``mr=chaos,ct=btcv``."""
    words = on.options.get("as", "nifti")
    if "=" not in words:
        return dict.fromkeys(names, chosen_layout(words))
    pairs = dict(part.partition("=")[::2] for part in words.split(","))
    if set(pairs) != set(names):
        raise UsageError(
            f"--as must name a layout for each of {', '.join(names) or 'the folder'}, as in "
            f"mr=chaos,ct=btcv, or one for all, got {words!r}"
        )
    return {name: chosen_layout(pairs[name]) for name in names}


def _widest(folder: Path, layout: Layout) -> float:
    """Return the largest extent in the plane, in millimetres, of the images that can be opened."""
    nibabel = need("nibabel", extra="brain")
    images, _ = found_files(folder, layout)
    widest = 0.0
    for path in images.values():
        try:
            file = nibabel.load(path)
            turned = nibabel.orientations.io_orientation(file.affine)[:, 0]
        except broken_files():
            continue
        if len(file.shape) < 3:
            continue
        zooms = file.header.get_zooms()
        inside = [i for i in range(3) if turned[i] < 2] if layout.plane == "axial" else [0, 1]
        reach = max((file.shape[i] * float(zooms[i]) for i in inside), default=0.0)
        widest = max(widest, reach) if np.isfinite(reach) else widest
    return widest


def read_own(on: On, side: int) -> Own:
    """Read the user's folders, all at one spacing at which the widest image fills ``side``.

    Raises
    ------
    UsageError
        If a folder cannot be used; the sentence says why.
    """
    folders = _folders(on)
    layouts = _layouts(on, list(folders))
    spacing = max(_widest(path, layouts[name]) for name, path in folders.items()) / side
    volumes, skipped = {}, []
    for name, path in folders.items():
        # Where nothing can be opened the loader says why.
        wanted = spacing if spacing > 0 else None
        # Training takes no labels: they are read where volumes are tested.
        labelled = len(folders) == 1 or name != next(iter(folders))
        found = read_folder(path, layouts[name], labels=labelled, size=side, spacing=wanted)
        volumes[name] = found.volumes
        skipped += [f"{Path(name) / file} ({why})" for file, why in found.skipped.items()]
        if labelled and not any(volume.labels.any() for volume in found.volumes):
            raise UsageError(
                f"the labels in {path} must mark an organ, got no foreground in any of "
                f"{len(found.volumes)} volumes{_count(skipped)}"
            )
    source, *targets = volumes
    tested = {name: volumes[name] for name in targets} or {SINGLE: volumes[source]}
    said = f"{len(skipped)} files were skipped: {'; '.join(skipped)}" if skipped else ""
    return Own(volumes[source], tested, spacing, said)


def _count(skipped: Sequence[str]) -> str:
    return f" ({len(skipped)} files were skipped: {skipped[0]})" if skipped else ""


def _exam(volumes: Sequence[Volume]) -> Exam:
    """Ask about every organ: the first volume that shows it is the support of the others."""
    asks = []
    organs = len(volumes[0].organs)
    for organ in range(1, organs + 1):
        shown = [i for i, volume in enumerate(volumes) if (volume.labels == organ).any()]
        asks += [Ask(organ, shown[0], query) for query in shown[1:]]
    return Exam([v.image for v in volumes], [v.labels for v in volumes], asks, organs)


def own_parts(own: Own, seed: int, most: int) -> Parts:
    """Hold out cases at random, and train on at most ``most`` of the others.

    Raises
    ------
    UsageError
        If too few volumes are left for either side.
    """
    tested: set[str] = set()
    made = {}
    for name, volumes in own.targets.items():
        where = "" if own.single else f" in {name}"
        least = 3 if own.single else 2
        if len(volumes) < least:
            raise UsageError(
                f"at least {least} labelled volumes are needed{where} (a support, a query"
                f"{', and one to train on' if own.single else ''}), got {len(volumes)}"
                + (f": {own.said}" if own.said else "")
            )
        order = rng(seed, "held out", name).permutation(len(volumes))
        held = [volumes[i] for i in order[: max(2, round(HELD_OUT[own.single] * len(volumes)))]]
        made[name] = _exam(held)
        if not made[name].asks:
            raise UsageError(
                f"no organ shows in two of the {len(held)} volumes{where} held out at seed {seed}: "
                "label it in more volumes"
            )
        tested |= {volume.case for volume in held}
    train = [volume for volume in own.source if volume.case not in tested]
    if not train:
        raise UsageError(
            f"no volume is left to train on at seed {seed}: all {len(own.source)} cases have the "
            "name of one that is tested; add cases, or name different persons differently"
        )
    order = rng(seed, "trained on").permutation(len(train))[:most]
    return Parts([train[i] for i in sorted(order)], made)


def _parts(ctx: Context) -> Parts:
    assert ctx.on is not None
    own = read_own(ctx.on, size(ctx).own_size)
    return own_parts(own, ctx.seed, size(ctx).own_sources)


def own_sources(ctx: Context) -> list[NDArray[np.float32]]:
    """Return the user's volumes that a seed trains on."""
    return [volume.image for volume in _parts(ctx).train]


def own_exams(ctx: Context) -> dict[str, Exam]:
    """Return the user's volumes that a seed is examined on."""
    return _parts(ctx).exams
