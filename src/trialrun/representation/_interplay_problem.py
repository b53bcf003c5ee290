"""From views to a problem that can be solved for any regularisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from trialrun.core.errors import UsageError
from trialrun.representation._interplay_checks import check_augment, check_count, check_number
from trialrun.representation._interplay_kernels import Fourier, Kernel, Nystroem, chunks, moments
from trialrun.representation._interplay_solvers import ExactProblem, PrimalProblem, Solution
from trialrun.representation._interplay_views import Array, Groups

SOLVERS = ("exact", "nystroem", "random_features")


@dataclass(frozen=True, eq=False)
class Gram:
    """The kernel with every view, or every landmark. ``views`` is None if precomputed."""

    kernel: Kernel
    views: Array | None

    def __call__(self, x: Array) -> Array:
        """Return the kernel of every row of x with every view."""
        return x if self.views is None else self.kernel(x, self.views)


Features = Gram | Fourier


@dataclass(frozen=True, eq=False)
class Readout:
    """Functions as (features(x)) @ coef - offset."""

    features: Features
    coef: Array
    offset: Array


@dataclass(frozen=True, eq=False)
class Problem:
    """Views made ready: functions are (features(x) - mean) @ coef; mean is 0 where not centred."""

    solver: ExactProblem | PrimalProblem
    features: Gram | Nystroem | Fourier
    mean: Array
    centred: bool

    def readout(self, found: Solution, scale: Array) -> Readout:
        """Return found functions times ``scale`` as a map that needs no more than it must."""
        coef = found.coef * scale
        if self.centred and isinstance(self.solver, ExactProblem):
            coef = coef - coef.mean(axis=0)
        offset = self.mean @ coef
        if isinstance(self.features, Nystroem):
            landmarks = Gram(self.features.kernel, self.features.landmarks)
            return Readout(landmarks, self.features.root @ coef, offset)
        return Readout(self.features, coef, offset)


def make_problem(
    views: Array, groups: Groups, kernel: Kernel, *, solver: str, landmarks: int, beta: float,
    center: bool, tol: float, random: np.random.Generator,
) -> Problem:  # fmt: skip
    """Build what a solver needs of the views.

    Raises
    ------
    ValueError
        If the solver is unknown or does not go with the kernel.
    """
    if solver not in SOLVERS:
        raise UsageError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
    if solver == "exact":
        return _exact(views, groups, kernel, beta, center, tol)
    if kernel.kernel == "precomputed":
        raise UsageError(
            f"solver={solver!r} needs the views themselves: use solver='exact' with "
            "kernel='precomputed'"
        )
    if solver == "nystroem":
        features: Nystroem | Fourier = Nystroem.draw(kernel, views, landmarks, tol, random)
    else:
        features = Fourier.draw(kernel, views.shape[1], landmarks, random)
    found = moments(features, views, groups)
    mean = found.mean if center else np.zeros_like(found.mean)
    product = np.outer(mean, mean)
    problem = PrimalProblem(found.second - product, found.paired - product, beta=beta, tol=tol)
    return Problem(problem, features, mean, center)


def _exact(
    views: Array, groups: Groups, kernel: Kernel, beta: float, center: bool, tol: float
) -> Problem:
    given = kernel.kernel == "precomputed"
    gram = np.array(views) if given else np.ascontiguousarray(kernel(views, views), dtype=float)
    kernel.check(gram, views)
    mean = np.zeros(len(gram))
    if center:
        mean = gram.mean(axis=0)
        gram -= mean
        gram -= mean[:, None]
        gram += mean.mean()
    problem = ExactProblem(gram, groups, beta=beta, tol=tol)
    return Problem(problem, Gram(kernel, None if given else views), mean, center)


def in_chunks(features: Callable[[Array], Array], x: Array, coef: Array) -> Array:
    """Return features(x) @ coef without keeping all features at once."""
    out = np.empty((len(x), coef.shape[1]))
    for part in chunks(len(x)):
        out[part] = features(x[part]) @ coef
    return out


def read_settings(model: Any) -> None:
    """Check an estimator's numbers.

    Raises
    ------
    ValueError
        Naming the setting, what was expected and what came.
    """
    for name in ("n_components", "n_views", "landmarks"):
        check_count(name, getattr(model, name))
    for name in ("beta", "reg", "tol"):
        check_number(name, getattr(model, name))
    if not isinstance(model.center, bool | np.bool_):
        raise UsageError(f"center must be True or False, got {model.center!r}")
    if model.augment is not None:
        check_augment(model.augment)
