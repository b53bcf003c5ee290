"""Distil a frozen teacher into a student: one pass, a coordinate system, a plain training loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader

from trialrun.core.errors import UsageError
from trialrun.fewshot._tcs_batches import loaders
from trialrun.fewshot._tcs_cache import cache_features, pass_features
from trialrun.fewshot._tcs_coords import TailoredCoordinates
from trialrun.fewshot._tcs_file import read_features
from trialrun.fewshot._tcs_head import Tailoring, TCSHead
from trialrun.fewshot._tcs_items import check_order, few_shots, labels_of, warn_of_change
from trialrun.fewshot._tcs_layers import features_of, in_precision
from trialrun.fewshot._tcs_losses import ELSHLoss
from trialrun.fewshot._tcs_student import width_of, with_classifier
from trialrun.fewshot._tcs_training import Course, Optimiser, check_plan, train


@dataclass(eq=False)
class Distilled:
    """What `distill` made.

    Attributes
    ----------
    model : nn.Module
        The student with its classifier, from images to logits, in eval mode: nothing of the
        teacher is left.
    head : TCSHead
        The head before it was folded.
    coords : TailoredCoordinates
    features : array of shape (images, width)
        The teacher's, memory-mapped where they lie in a file.
    losses : list of float
        Mean loss of each epoch, in nats.
    chosen : int64 array
        Numbers of the training images, all of them unless ``shots`` was given.
    """

    model: nn.Module
    head: TCSHead
    coords: TailoredCoordinates
    features: NDArray[np.float32]
    losses: list[float] = field(default_factory=list)
    chosen: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


def _check_settings(
    epochs: int,
    mimic: float,
    n_components: int | None,
    coords: TailoredCoordinates | None,
    precision: str,
    device: str | torch.device,
) -> None:
    if isinstance(epochs, bool) or not isinstance(epochs, int | np.integer) or epochs < 1:
        raise UsageError(f"epochs must be a whole number of at least 1, got {epochs!r}")
    if not 0 <= mimic < np.inf:
        raise UsageError(f"mimic must be at least 0 and finite, got {mimic!r}")
    if n_components is not None and (
        isinstance(n_components, bool)
        or not isinstance(n_components, int | np.integer)
        or n_components < 1
    ):
        raise UsageError(f"n_components must be a whole number of at least 1, got {n_components!r}")
    if coords is not None and n_components is not None:
        raise UsageError("n_components goes with coords=None: coordinates given have their axes")
    if coords is not None and not hasattr(coords, "components_"):
        raise UsageError("coords must be fitted on the teacher's features: call coords.fit")
    in_precision(precision, device)


def _classes(labels: NDArray[np.int64]) -> int:
    """Return how many classes there are, numbered from 0 without a gap."""
    classes = np.unique(labels)
    if len(classes) < 2:
        raise UsageError(
            f"the images must be of at least two classes, got {len(classes)}: give another class"
        )
    if not np.array_equal(classes, np.arange(len(classes))):
        raise UsageError(f"classes must be numbered 0, 1, ..., got {classes.tolist()[:8]}")
    return len(classes)


def _check_axes(
    axes: int | None, tailoring: Tailoring | None, images: int | None, steps: int
) -> None:
    """Raise if more axes are asked for than ``images`` can span, or than can go in time."""
    if axes is None:
        return
    if images is not None and axes > images - 1:
        raise UsageError(
            f"n_components must be at most {images - 1}, as {images} images span no more axes, got "
            f"{axes}: give more images or fewer components"
        )
    check_plan(tailoring, axes, steps)


def _check_teacher(
    teacher: Any, layer: str | None, pool: str, cache: str | Path | None, seen: Any
) -> None:
    """Look at a teacher, and at the images that it is to see, before it sees them."""
    if isinstance(teacher, nn.Module):
        features_of(teacher, layer, pool=pool)
        warn_of_change(seen)
    elif layer is not None or cache is not None:
        raise UsageError(
            "layer and cache go with a teacher that is run, got its features: omit them"
        )


def _coordinates(
    coords: TailoredCoordinates | None, n_components: int | None, features: NDArray[np.float32]
) -> TailoredCoordinates:
    """Return the coordinates given, or those of the teacher's features."""
    if coords is None:
        return TailoredCoordinates(n_components=n_components).fit(features)
    if coords.components_.shape[1] != features.shape[1]:
        raise UsageError(
            f"coords must be of the teacher's {features.shape[1]} features, got "
            f"{coords.components_.shape[1]}"
        )
    return coords


def _teacher_features(
    teacher: Any, once: DataLoader, count: int, folder: str | Path | None, **how: Any
) -> NDArray[np.float32]:
    if isinstance(teacher, nn.Module):
        if folder is not None:
            return read_features(cache_features(teacher, once, folder, count=count, **how))
        return pass_features(teacher, once, **how)
    features = read_features(teacher) if isinstance(teacher, str | Path) else np.asarray(teacher)
    if features.ndim != 2 or len(features) != count:
        raise UsageError(
            f"teacher features must have shape ({count}, width), one row a training image, got "
            f"{tuple(features.shape)}"
        )
    for start in range(0, count, 4096):
        if not np.isfinite(features[start : start + 4096]).all():
            raise UsageError(
                "teacher features must be finite, got NaN or infinity: run the teacher again"
            )
    return features


def distill(
    student: nn.Module,
    teacher: nn.Module | NDArray | str | Path,
    loader: DataLoader,
    *,
    epochs: int = 10,
    n_components: int | None = None,
    coords: TailoredCoordinates | None = None,
    tailoring: Tailoring | None = None,
    mimic: float = 0.0,
    hash_std: float = 1.0,
    shots: int | None = None,
    plain: Any = None,
    layer: str | None = None,
    student_layer: str | None = None,
    pool: str = "mean",
    cache: str | Path | None = None,
    optimiser: Optimiser | None = None,
    device: str | torch.device = "cpu",
    precision: str = "float32",
    seed: int = 0,
) -> Distilled:
    """Train a student in the coordinate system of a frozen teacher's features (zhou2024tcs).

    The teacher is run once over the training images; after that neither it nor its features are
    needed, unless ``mimic`` is above 0. It is left on its device and in its mode. The student is
    trained in place, on ``device``, and is in eval mode afterwards. What can be refused is refused
    before the teacher runs.

    Parameters
    ----------
    student : nn.Module
        From images to features (batch, width); of a timm model the features before its classifier
        are taken, and its classifier is replaced in the end. Of one of transformers the last hidden
        state is taken, as of a teacher.
    teacher : nn.Module, array of shape (images, width), or path of a file of `cache_features`
        A frozen self-supervised backbone, or its features of the training images in their order.
    loader : torch DataLoader
        Gives batches that begin with images and class numbers from 0, or dictionaries that call
        them ``image``, ``images`` or ``pixel_values`` and ``label``, ``labels`` or ``target``. Its
        data set is read by number, so that shuffling is no matter: also for the teacher's pass, in
        order, to the last image, collated by torch's `default_collate`. Its settings for workers
        and its generator are kept; samplers other than shuffling or keeping the order are refused.
        A collate function may mix images and give shares of the classes (batch, classes), but not
        together with ``mimic``. Of several names for the images the first with a tensor counts.
    epochs : int, at least 1
    n_components : int, optional
        Axes of the coordinate system; see `TailoredCoordinates`.
    coords : TailoredCoordinates, optional
        Fitted beforehand, in place of fitting one to the teacher's features.
    tailoring : Tailoring, optional
        How axes are taken away; None keeps all.
    mimic : float, at least 0
        Weight of `ELSHLoss`, for a teacher that was trained for the task; the paper's group used 6.
        Each image of a batch is asked for the teacher's bits of its own number, so that a collate
        function must keep the order and mix nothing. Labels divided between classes are refused;
        a function that mixes images and leaves their labels whole cannot be seen.
    hash_std : float, above 0
        Spread of its hyperplanes.
    shots : int, optional
        Few-shot mode: use only so many images of each class, drawn by ``seed``, for the teacher's
        pass too.
    plain : data set, optional
        The same images in the same order for the teacher: without augmentation, in the size and
        scale that it was trained on. None reads the loader's own data set, with a warning if that
        augments.
    layer, student_layer : str, optional
        Names of submodules whose outputs are the features.
    pool : {"mean", "first"}
        What to make of a layer's tokens.
    cache : path, optional
        Folder to keep the teacher's features in; None keeps them in memory only. They are used
        again only if every image is as it was, and the teacher gives the same on the first batch.
    optimiser : callable, optional
        From parameters to an optimiser; None is AdamW with rate 1e-3 and no weight decay on the
        mask, which is the last of the parameters. The rate of either falls to 0 along a cosine.
    device : str or torch.device
    precision : {"float32", "bfloat16"}
        ``bfloat16`` runs teacher and student under torch's autocast; weights, head and losses stay
        in float32.
    seed : int
        Of the head, the shots, and the order of batches where the loader has no generator. Global
        random state is left alone, apart from what the student's own dropout draws.

    Returns
    -------
    Distilled

    Raises
    ------
    UsageError
        If there are fewer than two classes or too few images, the teacher or student lacks the
        named layer, more axes are asked for than the features have, tailoring needs more steps than
        there are, the teacher's features are not finite, ``mimic`` is given mixed images, or shapes
        do not fit.

    Examples
    --------
    >>> from torch.utils.data import TensorDataset
    >>> draw = torch.Generator().manual_seed(0)
    >>> x = torch.randn(64, 10, generator=draw)
    >>> y = (x[:, 0] > 0).long()
    >>> loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
    >>> student, teacher = nn.Linear(10, 6), nn.Linear(10, 8)
    >>> made = distill(student, teacher, loader, epochs=1, n_components=4)
    >>> made.model(x).shape
    torch.Size([64, 2])
    """
    _check_settings(epochs, mimic, n_components, coords, precision, device)
    labels = labels_of(loader.dataset)
    classes = _classes(labels)
    chosen = np.arange(len(labels)) if shots is None else few_shots(labels, shots, seed=seed)
    batches, once = loaders(loader, plain, chosen, seed)
    axes = n_components if coords is None else coords.n_components_
    _check_axes(axes, tailoring, len(chosen) if coords is None else None, epochs * len(batches))
    _check_teacher(teacher, layer, pool, cache, loader.dataset if plain is None else plain)
    if plain is not None:
        check_order(plain, labels)
    student.to(device)
    give = features_of(student, student_layer, pool=pool)
    # What the student will see: the teacher's pictures may be of another size.
    width = width_of(give, student, loader, device, precision, mimic=mimic)
    how: dict[str, Any] = {"layer": layer, "pool": pool, "device": device, "precision": precision}
    features = _teacher_features(teacher, once, len(chosen), cache, **how)
    coords = _coordinates(coords, n_components, features)
    check_plan(tailoring, coords.n_components_, epochs * len(batches))
    head = TCSHead(width, coords, classes, tailoring=tailoring, seed=seed).to(device)
    mimicking = None
    if mimic > 0:
        mimicking = ELSHLoss(coords, features, std=hash_std, seed=seed).to(device)
    course = Course(
        loader=batches, epochs=epochs, optimiser=optimiser, mimicking=mimicking, mimic=mimic,
        device=device, precision=precision,
    )  # fmt: skip
    losses = train(student, head, give, course)
    model = with_classifier(student, student_layer, head, pool)
    return Distilled(model, head, coords, features, losses, chosen)
