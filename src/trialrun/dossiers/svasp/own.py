"""The user's own pictures in place of letters: a folder for each class, or source and target.

One folder of classes is split by class for every seed, and the classes held out are restyled as
letters are. Folders named ``source`` and ``target`` are taken as they are: trained on the one,
tested on the other, and nothing is restyled.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from trialrun.claims.contract import Context, On
from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng
from trialrun.dossiers.svasp.copies import check_copies, copies_said
from trialrun.dossiers.svasp.networks import (
    SHOT,
    TRAINED,
    WAY,
    WIDTHS,
    arms_of_training,
    warm_started,
)
from trialrun.dossiers.svasp.networks import train as train_network
from trialrun.dossiers.svasp.styles import SHIFTED, STYLES
from trialrun.dossiers.svasp.worlds import SIDE, World, restyled
from trialrun.fewshot.svasp import Pictures
from trialrun.material.class_folders import ClassFolders, read_class_folders

TESTED = SHOT + 15
"""Pictures that a class of a test episode must have: those shown and fifteen queries."""
HELD_OUT = 0.4
MOST = 60
"""Pictures of a class that a seed takes at most, drawn anew by each."""
TESTED_ON = ("target as it is", "held-out classes, restyled")
"""What accuracy is of, by whether one folder was split by class."""


class Own(NamedTuple):
    """What was read: the classes to train on and, where the user gave it, the unseen target."""

    source: ClassFolders
    target: ClassFolders | None

    def said(self) -> list[str]:
        """Return sentences about how the folder was read and what in it is amiss."""
        if self.target is None:
            how = (
                "read as one folder of classes: some are trained on and the others, in four "
                "styles, are the targets"
            )
        else:
            how = (
                "read as source and target: all of source is trained on, and target is tested on "
                "as it is"
            )
        parts = [part for part in self if part is not None]
        return [how, *(part.said() for part in parts if part.said()), *copies_said(*self)]


def _is_pair(root: Path) -> bool:
    names = {path.name for path in root.iterdir() if path.is_dir() and path.name[0] != "."}
    return names == {"source", "target"} and any(p.is_dir() for p in (root / "source").iterdir())


def _check_classes(found: ClassFolders, root: Path, least: int, remedy: str) -> ClassFolders:
    if len(found.classes) < least:
        raise UsageError(
            f"{root} must hold a folder for each of at least {least} classes, got "
            f"{len(found.classes)}: {remedy}"
        )
    return found


def read_own(on: On) -> Own:
    """Read the user's pictures, and refuse what no episode could be drawn from.

    Raises
    ------
    UsageError
        For a path that is no folder, too few classes, a class with too few pictures, or one whose
        pictures are all in a class on the other side as well.
    """
    root = Path(on.path)
    if root.is_dir() and _is_pair(root):
        parts = [
            _check_classes(
                read_class_folders(root / name, size=SIDE, least=least), root / name, WAY,
                f"episodes are of {WAY} classes",
            )
            for name, least in (("source", TRAINED), ("target", TESTED))
        ]  # fmt: skip
        check_copies(*parts)
        return Own(*parts)
    found = read_class_folders(root, size=SIDE, least=TESTED)
    remedy = (
        f"{WAY} are trained on and {WAY} held out; or give folders named source and target with "
        f"{WAY} each"
    )
    _check_classes(found, root, 2 * WAY, remedy)
    check_copies(found, None)
    return Own(found, None)


def read_pictures(folder: str | Path) -> Pictures:
    """Read a folder with a folder for each class as the check does, for a backbone that it kept."""
    found = read_class_folders(folder, size=SIDE)
    images = torch.from_numpy(found.images).permute(0, 3, 1, 2).contiguous()
    return Pictures(images, found.labels)


def _held_out(classes: int) -> int:
    return max(WAY, round(HELD_OUT * classes))


def _taken(
    found: ClassFolders, classes: NDArray[np.int64], random: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return ink and labels of some classes, no more than so many pictures of each."""
    rows = [random.permutation(np.flatnonzero(found.labels == one))[:MOST] for one in classes]
    labels = np.repeat(np.arange(len(rows)), [len(part) for part in rows])
    pixels = np.moveaxis(found.images[np.concatenate(rows)], -1, 1)
    return 1 - pixels.astype(np.float32) / 255, labels


def own_world(ctx: Context, on: On) -> World:
    """Return the world of one seed, of the user's pictures."""
    found, random = read_own(on), rng(ctx.seed, "own pictures")
    order = rng(ctx.seed, "own classes").permutation(len(found.source.classes))
    if found.target is not None:
        base = restyled(*_taken(found.source, order, random), "clean", ctx.seed)
        every = np.arange(len(found.target.classes))
        target = restyled(*_taken(found.target, every, random), "clean", ctx.seed)
        return World(base, {"target": target}, ("target",))
    held = _held_out(len(order))
    base = restyled(*_taken(found.source, order[held:], random), "clean", ctx.seed)
    novel = _taken(found.source, order[:held], random)
    return World(base, {style: restyled(*novel, style, ctx.seed) for style in STYLES}, SHIFTED)


def check_on(ctx: Context) -> None:
    """Read the user's pictures before anything runs, and say how, and what is amiss in them."""
    if ctx.on is None:
        raise UsageError("svasp takes pictures of your own with --on FOLDER, not a model")
    for said in read_own(ctx.on).said():
        print(f"trialrun: {said}", file=sys.stderr)


def resplit(ctx: Context) -> float:
    """Return held-out to training classes where seeds split one folder anew, else 0."""
    assert ctx.on is not None
    found = read_own(ctx.on)
    classes = len(found.source.classes)
    held = 0 if found.target is not None else _held_out(classes)
    return held / (classes - held)


def keep(ctx: Context, folder: Path) -> str:
    """Train SVasP on every class to train on, the held-out ones as well, and save its backbone."""
    if ctx.on is None:
        raise UsageError("keep needs pictures of your own: pass --on")
    torch.set_num_threads(1)
    found = read_own(ctx.on).source
    every = np.arange(len(found.classes))
    base = restyled(*_taken(found, every, rng(ctx.seed, "own pictures")), "clean", ctx.seed)
    model = copy.deepcopy(warm_started(ctx, base))
    train_network(ctx, model, base, arms_of_training()["svasp"])
    weights = {name: part.contiguous() for name, part in model.cpu().backbone.state_dict().items()}
    save_file(weights, folder / "backbone.safetensors")
    return (
        "from safetensors.torch import load_file\n"
        "from trialrun.dossiers.svasp.own import read_pictures\n"
        "from trialrun.fewshot.svasp import Conv4, evaluate_episodes\n"
        f"backbone = Conv4(widths={WIDTHS})\n"
        f"backbone.load_state_dict(load_file({str(folder / 'backbone.safetensors')!r}))\n"
        "# backbone.eval()(images) takes images in [0, 1] of shape (n, 3, "
        f"{SIDE}, {SIDE}); on other pictures, read as these were:\n"
        "# evaluate_episodes(backbone, read_pictures('FOLDER'), 5, 1, 15)"
    )
