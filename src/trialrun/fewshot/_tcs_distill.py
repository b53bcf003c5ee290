"""Distil a frozen teacher into a student: one pass, a coordinate system, a plain training loop."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
)

from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng, split
from trialrun.fewshot._tcs_coords import TailoredCoordinates
from trialrun.fewshot._tcs_features import (
    cache_features,
    evaluating,
    features_of,
    pass_features,
    read_features,
    taken,
)
from trialrun.fewshot._tcs_head import Tailoring, TCSHead
from trialrun.fewshot._tcs_losses import ELSHLoss

Optimiser = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class _Numbered(Dataset):
    """A data set whose items also carry their number."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.items[index], index


@dataclass(frozen=True)
class _Collate:
    """Collate items with their own function, and their numbers beside them."""

    own: Callable[[list[Any]], Any]

    def __call__(self, batch: list[tuple[Any, int]]) -> tuple[Any, Tensor]:
        return self.own([item for item, _ in batch]), torch.tensor([index for _, index in batch])


@dataclass(eq=False)
class Distilled:
    """What `distill` made.

    Attributes
    ----------
    model : nn.Module
        The student with its classifier, from images to logits: nothing of the teacher is left.
    head : TCSHead
        The head before it was folded.
    coords : TailoredCoordinates
    features : array of shape (images, width)
        The teacher's, memory-mapped where the teacher was run here.
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


def labels_of(dataset: Any) -> NDArray[np.int64]:
    """Return the labels of a data set: its ``targets`` or ``labels``, else read item by item.

    Raises
    ------
    UsageError
        If items are no pairs of an image and a whole number.
    """
    if isinstance(dataset, Subset):
        return labels_of(dataset.dataset)[np.asarray(dataset.indices, np.int64)]
    change = getattr(dataset, "target_transform", None)
    for name in ("targets", "labels"):
        found = getattr(dataset, name, None)
        if found is not None and not callable(found) and len(found) == len(dataset):
            told = found if change is None else [change(y) for y in _listed(found)]
            return _whole_numbers(told)
    if isinstance(dataset, torch.utils.data.TensorDataset) and len(dataset.tensors) > 1:
        return _whole_numbers(dataset.tensors[1])
    try:
        told = [dataset[i][1] for i in range(len(dataset))]
        told = [y.item() if isinstance(y, Tensor) else y for y in told]
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise UsageError(f"items must be pairs of image and class number ({error})") from error
    return _whole_numbers(told)


def _listed(found: Any) -> list[Any]:
    return found.tolist() if hasattr(found, "tolist") else list(found)


def _whole_numbers(found: Any) -> NDArray[np.int64]:
    table = np.asarray(found.cpu() if isinstance(found, Tensor) else found)
    if table.ndim != 1 or (len(table) and table.dtype.kind not in "iu"):
        raise UsageError(
            "items must be pairs of image and class number, a whole number each, got labels of "
            f"type {table.dtype} and shape {table.shape}: turn them into integers of shape (n,)"
        )
    return table.astype(np.int64)


def few_shots(labels: Sequence[int] | NDArray, shots: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Choose ``shots`` images of every class.

    Parameters
    ----------
    labels : integers of shape (images,)
    shots : int, at least 1
    seed : int

    Returns
    -------
    int64 array
        Sorted numbers of the images.

    Raises
    ------
    UsageError
        If a class has fewer images.

    Examples
    --------
    >>> few_shots([0, 0, 0, 1, 1], shots=2, seed=0).size
    4
    """
    labels = np.asarray(labels)
    if isinstance(shots, bool) or not isinstance(shots, int | np.integer) or shots < 1:
        raise UsageError(f"shots must be at least 1 image a class, got {shots!r}")
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) and counts.min() < shots:
        poor = classes[counts.argmin()]
        raise UsageError(
            f"class {poor} has {counts.min()} images, fewer than the {shots} shots asked for: give "
            "more images or fewer shots"
        )
    random = rng(seed, "shots")
    picked = [random.choice(np.flatnonzero(labels == c), shots, replace=False) for c in classes]
    return np.sort(np.concatenate(picked)) if picked else np.zeros(0, np.int64)


_KEPT = ("batch_size", "num_workers", "worker_init_fn", "pin_memory", "timeout")
_KEPT_OF_WORKERS = ("persistent_workers", "prefetch_factor", "multiprocessing_context")


def _loaders(
    loader: DataLoader, plain: Any, chosen: NDArray[np.int64], seed: int
) -> tuple[DataLoader, DataLoader]:
    """Return batches to train on, with their numbers, and batches for the teacher in order."""
    if loader.batch_size is None:
        raise UsageError("loader must make batches: give it a batch_size")
    if not isinstance(loader.sampler, RandomSampler | SequentialSampler):
        raise UsageError(
            f"loader must shuffle or keep the order, got a {type(loader.sampler).__name__}: the "
            "images are read by number, so choose them in the data set"
        )
    if isinstance(loader.sampler, RandomSampler) and (
        loader.sampler.replacement or loader.sampler.num_samples != len(loader.sampler.data_source)
    ):
        raise UsageError(
            "loader must read every image once an epoch, got a RandomSampler with replacement or "
            "num_samples: use shuffle=True"
        )
    whole: Any = loader.dataset
    data = whole if len(chosen) == len(whole) else Subset(whole, chosen.tolist())
    same: dict[str, Any] = {name: getattr(loader, name) for name in _KEPT}
    if loader.num_workers:
        same |= {name: getattr(loader, name) for name in _KEPT_OF_WORKERS}
    order = loader.generator or torch.Generator().manual_seed(split(seed, "batches"))
    numbered: Any = _Numbered(data)
    shuffled = isinstance(loader.sampler, RandomSampler)
    train = DataLoader(
        numbered,
        sampler=RandomSampler(numbered, generator=order) if shuffled else None,
        collate_fn=_Collate(loader.collate_fn),
        drop_last=loader.drop_last,
        generator=order,
        **same,
    )
    seen: Any = plain if plain is not None else whole
    if len(seen) != len(whole):
        raise UsageError(
            f"plain must hold the same {len(whole)} images as the loader, got {len(seen)}"
        )
    seen = seen if len(chosen) == len(seen) else Subset(seen, chosen.tolist())
    # A generator of its own: whether the teacher runs must not change the order of the batches.
    apart = torch.Generator().manual_seed(split(seed, "pass"))
    # The loader's own collate function may mix images (mixup); the teacher sees them as they are.
    once = DataLoader(seen, collate_fn=default_collate, generator=apart, **same)
    return train, once


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


def _width(
    give: Callable[[Tensor], Tensor], student: nn.Module, data: Any, loader: DataLoader, device: Any
) -> int:
    """Return the width of a student's features of one item, and leave random states alone."""
    python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]), evaluating(student):
            images = loader.collate_fn([data[0]])[0].to(device)
            found = taken(give, images, "student")
    finally:
        random.setstate(python)
        np.random.set_state(of_numpy)  # noqa: NPY002
    return int(found.shape[1])


def _whole(student: nn.Module, layer: str | None, head: TCSHead, pool: str) -> nn.Module:
    """Put the folded head where the student's own classifier was, or after the student."""
    linear = head.fold()
    if (
        layer is None
        and hasattr(student, "reset_classifier")
        and hasattr(student, "get_classifier")
    ):
        model: Any = student
        with torch.random.fork_rng(devices=[]):
            model.reset_classifier(head.n_classes)
        own = model.get_classifier()
        if isinstance(own, nn.Linear) and own.weight.shape == linear.weight.shape:
            own.to(linear.weight.device).load_state_dict(linear.state_dict())
            return student.eval()
    return _WithClassifier(student, layer, linear, pool).eval()


class _WithClassifier(nn.Module):
    """A student whose features, from a layer of it, go through one linear classifier."""

    def __init__(
        self, student: nn.Module, layer: str | None, classifier: nn.Linear, pool: str
    ) -> None:
        super().__init__()
        self.student, self.classifier = student, classifier
        self._layer, self._pool = layer, pool

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(features_of(self.student, self._layer, pool=self._pool)(images))


def _batches(loader: DataLoader, device: Any) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for items, index in loader:
        images, y = items[0], items[1]
        yield images.to(device), y.to(device).long(), index.to(device)


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
    device: str = "cpu",
    seed: int = 0,
) -> Distilled:
    """Train a student in the coordinate system of a frozen teacher's features (zhou2024tcs).

    The teacher is run once over the training images; after that neither it nor its features are
    needed, unless ``mimic`` is above 0. The student is trained in place.

    Parameters
    ----------
    student : nn.Module
        From images to features (batch, width); of a timm model the features before its classifier
        are taken, and its classifier is replaced in the end.
    teacher : nn.Module, array of shape (images, width), or path of a file of `cache_features`
        A frozen self-supervised backbone, or its features of the training images in their order.
    loader : torch DataLoader
        Gives batches that begin with images and class numbers from 0. Its data set is read by
        number: also for the teacher's pass, in order, collated by torch's `default_collate`. Its
        settings for workers and its generator are kept; samplers other than shuffling or keeping
        the order are refused.
    epochs : int, at least 1
    n_components : int, optional
        Axes of the coordinate system; see `TailoredCoordinates`.
    coords : TailoredCoordinates, optional
        Fitted beforehand, in place of fitting one to the teacher's features.
    tailoring : Tailoring, optional
        How axes are taken away; None keeps all.
    mimic : float, at least 0
        Weight of `ELSHLoss`, for a teacher that was trained for the task; the paper's group used 6.
    hash_std : float, above 0
        Spread of its hyperplanes.
    shots : int, optional
        Few-shot mode: use only so many images of each class, drawn by ``seed``, for the teacher's
        pass too.
    plain : data set, optional
        The same images in the same order without augmentation, for the teacher; None reads the
        loader's own data set, which then should not augment.
    layer, student_layer : str, optional
        Names of submodules whose outputs are the features.
    pool : {"mean", "first"}
        What to make of a layer's tokens.
    cache : path, optional
        Folder to keep the teacher's features in; None keeps them in memory only. They are used
        again only if every image is as it was, and the teacher gives the same on the first batch.
    optimiser : callable, optional
        From parameters to an optimiser; None is AdamW with rate 1e-3, with a cosine to 0 and no
        weight decay on the mask, which is the last of the parameters.
    device : str
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
        there are, or shapes do not fit.

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
    if isinstance(epochs, bool) or not isinstance(epochs, int | np.integer) or epochs < 1:
        raise UsageError(f"epochs must be a whole number of at least 1, got {epochs!r}")
    if not 0 <= mimic < np.inf:
        raise UsageError(f"mimic must be at least 0 and finite, got {mimic!r}")
    if coords is not None and n_components is not None:
        raise UsageError("n_components goes with coords=None: coordinates given have their axes")
    if not isinstance(teacher, nn.Module) and (layer is not None or cache is not None):
        raise UsageError(
            "layer and cache go with a teacher that is run, got its features: omit them"
        )
    labels = labels_of(loader.dataset)
    classes = np.unique(labels)
    if len(classes) < 2:
        raise UsageError(
            f"the images must be of at least two classes, got {len(classes)}: give another class"
        )
    if not np.array_equal(classes, np.arange(len(classes))):
        raise UsageError(f"classes must be numbered 0, 1, ..., got {classes.tolist()[:8]}")
    chosen = np.arange(len(labels)) if shots is None else few_shots(labels, shots, seed=seed)
    train, once = _loaders(loader, plain, chosen, seed)
    if isinstance(teacher, nn.Module):
        teacher.to(device)
    student.to(device)
    how: dict[str, Any] = {"layer": layer, "pool": pool, "device": device}
    features = _teacher_features(teacher, once, len(chosen), cache, **how)
    if coords is None:
        coords = TailoredCoordinates(n_components=n_components).fit(features)
    give = features_of(student, student_layer, pool=pool)
    # What the student will see: the teacher's pictures may be of another size.
    width = _width(give, student, loader.dataset, loader, device)
    _check_plan(tailoring, coords.n_components_, epochs * len(train))
    if coords.components_.shape[1] != features.shape[1]:
        raise UsageError(
            f"coords must be of the teacher's {features.shape[1]} features, got "
            f"{coords.components_.shape[1]}"
        )
    head = TCSHead(width, coords, len(classes), tailoring=tailoring, seed=seed).to(device)
    mimicking = None
    if mimic > 0:
        mimicking = ELSHLoss(coords, features, std=hash_std, seed=seed).to(device)
    made = Distilled(student, head, coords, features, chosen=chosen)
    _train(made, give, train, mimicking, mimic, epochs, optimiser, device)
    made.model = _whole(student, student_layer, head, pool)
    return made


def _check_plan(tailoring: Tailoring | None, axes: int, steps: int) -> None:
    if tailoring is None or tailoring.keep >= axes:
        return
    there, removals = axes, 0
    while there > tailoring.keep:
        there -= min(max(int(tailoring.fraction * there), 1), there - tailoring.keep)
        removals += 1
    needed = removals * tailoring.every
    if needed > steps:
        raise UsageError(
            f"tailoring {axes} axes down to {tailoring.keep} needs {needed} steps, and there are "
            f"{steps}: train for more epochs, or lower every or raise fraction"
        )


def _train(
    made: Distilled,
    give: Callable[[Tensor], Tensor],
    train: DataLoader,
    mimicking: ELSHLoss | None,
    mimic: float,
    epochs: int,
    optimiser: Optimiser | None,
    device: str,
) -> None:
    student, head = made.model, made.head
    # The mask comes last: by default it is not drawn to 0, which is for its scores to decide.
    parameters = [
        p
        for part in (student, head)
        for p in part.parameters()
        if p.requires_grad and p is not head.mask
    ] + [head.mask]
    updates = _adamw(parameters) if optimiser is None else optimiser(parameters)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(updates, max(epochs * len(train), 1))
    student.train()
    step = 0
    for _ in range(epochs):
        total, seen = 0.0, 0
        for images, y, index in _batches(train, device):
            loss = functional.cross_entropy(head(give(images)), y)
            if mimicking is not None and head.features_ is not None:
                loss = loss + mimic * mimicking(head.features_, index)
            updates.zero_grad(set_to_none=True)
            loss.backward()
            head.accumulate_scores()
            updates.step()
            rates.step()
            step += 1
            head.prune(step)
            total, seen = total + float(loss.detach()) * len(y), seen + len(y)
        if not seen:
            raise UsageError("the loader gave no batch: its batch_size is above the data's size")
        made.losses.append(total / seen)
    head.features_ = None


def _adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    *others, mask = parameters
    groups: list[dict[str, Any]] = [{"params": others}, {"params": [mask], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.01)
