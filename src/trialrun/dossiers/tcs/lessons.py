"""What a student of the tcs check is taught from: pictures, the teacher's one pass, its axes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from trialrun.claims.contract import Context
from trialrun.core.seeds import rng, split
from trialrun.dossiers.tcs.world import World
from trialrun.fewshot.tcs import FewRowsWarning, TailoredCoordinates

AXES = 32
"""Axes of every coordinate system, a quarter of the teacher's features: with all of them a basis
would restrict nothing."""
BEFORE = 64
FEW_AXES = 8
"""Fewer than the classes: what a basis leaves out is then missed."""
FROZEN = {
    **{f"frozen-{kind}": (kind, AXES) for kind in ("pca", "random", "foreign", "shuffled")},
    **{f"frozen-{kind}-few": (kind, FEW_AXES) for kind in ("pca", "random")},
}
"""Arms without a student: a classifier reads the teacher's own features in the axes of a basis.
Nothing before the basis can learn here, so that which axes it has must matter."""
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Inverse penalties among which the teacher's probe is chosen, on training pictures alone."""


@dataclass(eq=False)
class Lesson:
    """Pictures and labels of one point, and what the teacher's one pass made of them.

    ``drawings`` successive pictures show one item. ``basis_rows`` names the pictures that
    coordinate systems are computed from: as many as there are foreign ones.
    """

    images: Tensor
    y: Tensor
    teacher: nn.Module
    features: NDArray[np.float32]
    foreign: NDArray[np.float32]
    classes: int
    drawings: int = 1
    basis_rows: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if len(self.images) != len(self.features):
            raise ValueError("a lesson needs one row of features an image")
        if self.basis_rows is None:
            self.basis_rows = np.arange(len(self.features))
        if len(self.basis_rows) != len(self.foreign):
            raise ValueError(
                "bases are computed from equally many pictures of either kind, got "
                f"{len(self.basis_rows)} and {len(self.foreign)} foreign ones"
            )

    @cached_property
    def strength(self) -> float:
        """The inverse penalty of the linear classifier on the teacher's features."""
        return _strength(self.features, self.y.numpy(), self.drawings)

    @cached_property
    def probed(self) -> tuple[Tensor, Tensor]:
        """Weights and biases of that classifier."""
        return _probe(self.features, self.y.numpy(), self.strength)


def pass_of(teacher: nn.Module, images: Tensor, device: str = "cpu") -> NDArray[np.float32]:
    """Run a teacher once over pictures as they are."""
    with torch.no_grad():
        blocks = [teacher(part.to(device)).cpu() for part in images.split(256)]
    return torch.cat(blocks).numpy()


def make_lesson(ctx: Context, world: World, teacher: nn.Module, point: str) -> Lesson:
    """Choose the pictures of a point and run the teacher over them once."""
    images, y = world.shots(ctx, point)
    features = pass_of(teacher, images, ctx.device)
    foreign = pass_of(teacher, world.foreign[: len(images)], ctx.device)
    rows = rng(ctx.seed, "basis rows").permutation(len(images))[: len(foreign)]
    return Lesson(
        images, y, teacher, features, foreign, world.classes, world.train.shape[1], np.sort(rows)
    )


def shuffle_features(features: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Shuffle every feature over the images on its own.

    Shuffling whole rows would leave the principal axes as they are; this keeps what each feature
    is worth alone and takes away how features go together, which is what the axes are.
    """
    return rng(seed, "shuffled teacher").permuted(features, axis=0)


def coordinates(lesson: Lesson, kind: str, seed: int, axes: int = AXES) -> TailoredCoordinates:
    """Fit the coordinate system of an arm."""
    assert lesson.basis_rows is not None
    own = lesson.features[lesson.basis_rows]
    count = min(axes, len(own) - 1)
    table = {
        "foreign": lesson.foreign,
        "shuffled": shuffle_features(own, seed),
        "shuffled again": shuffle_features(own, split(seed, "again")),
    }
    basis = "random" if kind == "random" else "pca"
    fit = TailoredCoordinates(
        n_components=count, basis=basis, random_state=split(seed, "b") % 2**32
    )
    with warnings.catch_warnings():
        # A few shots are one of the points, and the same for every arm.
        warnings.simplefilter("ignore", FewRowsWarning)
        return fit.fit(table.get(kind, own))


def _classifier(strength: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=100))


def _strength(features: NDArray[np.float32], y: NDArray[np.int64], drawings: int) -> float:
    """Choose a penalty by inner cross-validation, drawings of one item on one side of a split."""
    items = np.arange(len(y)) // drawings
    folds = min(3, int(np.bincount(y[::drawings]).min()))
    if folds < 2:
        return 1.0
    grid = {"logisticregression__C": list(STRENGTHS)}
    inner = StratifiedGroupKFold(folds)
    search = GridSearchCV(_classifier(1.0), grid, cv=inner, scoring="neg_log_loss", refit=False)
    with warnings.catch_warnings():
        # A weak penalty may not converge within its steps; then it is seldom the one chosen.
        warnings.simplefilter("ignore", ConvergenceWarning)
        search.fit(features, y, groups=items)
    return float(search.best_params_["logisticregression__C"])


def _probe(
    features: NDArray[np.float32], y: NDArray[np.int64], strength: float
) -> tuple[Tensor, Tensor]:
    """Fit a linear classifier on standardised features, and return what it does to plain ones."""
    model = _classifier(strength)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, y)
    scaler, fitted = model[0], model[1]
    coef = fitted.coef_ / scaler.scale_
    intercept = fitted.intercept_ - coef @ scaler.mean_
    weight, bias = (torch.from_numpy(part).float() for part in (coef, intercept))
    if len(weight) == 1:
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    return weight, bias


def read_frozen(lesson: Lesson, kind: str, seed: int, axes: int) -> tuple[Tensor, Tensor]:
    """Return weights and biases, for whole features, of a classifier that sees a basis's axes.

    Its penalty is the one chosen for whole features, so that it is the same for every basis.
    """
    coords = coordinates(lesson, kind, seed, axes)
    weight, bias = _probe(coords.transform(lesson.features), lesson.y.numpy(), lesson.strength)
    whole = weight @ torch.from_numpy(coords.components_)
    return whole, bias - whole @ torch.from_numpy(coords.mean_)
