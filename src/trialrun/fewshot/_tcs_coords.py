"""The teacher's coordinate system: principal axes of its features, in an order and with signs that
are the same on every machine.

Ours, not the paper's: how many axes there are by default, the sign rule, and the random basis that
the claim is compared with.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from trialrun.core.errors import UsageError

FORMAT = "trialrun-tcs-coordinates-1"
FLOOR = 1e-6
_ROWS = 8192
_BASES = ("pca", "random")


class FewRowsWarning(UserWarning):
    """Say that there are fewer rows than features, so that the covariance has no full rank."""


def fix_signs(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn every row so that its entry of largest size is positive.

    Entries within a millionth of the largest size count as equally large, and the first of them
    decides: two libraries that differ in the last bits then agree.

    Examples
    --------
    >>> fix_signs(np.array([[0.6, -0.8], [0.8, 0.6]])).tolist()
    [[-0.6, 0.8], [0.8, 0.6]]
    """
    size = np.abs(rows)
    first = np.argmax(size >= (1 - 1e-6) * size.max(axis=1, keepdims=True), axis=1)
    return rows * np.where(rows[np.arange(len(rows)), first] < 0, -1.0, 1.0)[:, None]


def _covariance(X: NDArray, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add up the covariance block by block, so that a memory-mapped table is read once."""
    total = np.zeros((X.shape[1], X.shape[1]))
    for start in range(0, len(X), _ROWS):
        block = np.asarray(X[start : start + _ROWS], np.float64) - mean
        total += block.T @ block
    return total / (len(X) - 1)


def _mean(X: NDArray) -> NDArray[np.float64]:
    total = np.zeros(X.shape[1])
    for start in range(0, len(X), _ROWS):
        total += np.asarray(X[start : start + _ROWS], np.float64).sum(axis=0)
    return total / len(X)


def _axes(X: NDArray, mean: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return variances from large to small, and the axes (axes, features) they belong to."""
    rows, features = X.shape
    if rows > features:
        variances, vectors = np.linalg.eigh(_covariance(X, mean))
        return np.maximum(variances[::-1], 0.0), vectors[:, ::-1].T
    centred = np.asarray(X, np.float64) - mean
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    return sizes**2 / (rows - 1), axes


class TailoredCoordinates(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Find the coordinate system in which a teacher's features lie (zhou2024tcs).

    Parameters
    ----------
    n_components : int or None, default=None
        Number of axes. None takes every axis whose variance is above a millionth of the largest,
        at most one fewer than there are rows.
    basis : {"pca", "random"}, default="pca"
        ``random`` puts a random orthonormal basis in place of the principal axes, with the same
        mean and as many axes: the comparison that the paper's claim rests on.
    random_state : int, RandomState or None, default=None
        Only for the random basis.

    Attributes
    ----------
    mean_ : ndarray of shape (n_features,)
    components_ : ndarray of shape (n_components_, n_features)
        Orthonormal rows, the axis of largest variance first; in each the entry of largest size is
        positive.
    explained_variance_ : ndarray of shape (n_components_,)
        Variance of the features along each axis, with n - 1 in the denominator.
    n_components_ : int
    n_features_in_ : int

    Notes
    -----
    Computed in float64 and returned in the dtype of ``X``. Features may be a memory-mapped array
    (`read_features`); with more rows than features they are read block by block.

    Raises
    ------
    ValueError
        In `fit`, if more axes are asked for than the data have, or all rows are equal.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> features = rng.normal(size=(200, 3)) * [5.0, 1.0, 0.1]
    >>> coords = TailoredCoordinates(n_components=2).fit(features)
    >>> coords.transform(features).shape
    (200, 2)
    >>> np.allclose(coords.components_ @ coords.components_.T, np.eye(2))
    True
    """

    def __init__(self, *, n_components=None, basis="pca", random_state=None):
        self.n_components = n_components
        self.basis = basis
        self.random_state = random_state

    def _check(self, rows: int, features: int) -> None:
        if self.basis not in _BASES:
            raise UsageError(f"basis must be one of {', '.join(_BASES)}, got {self.basis!r}")
        most = min(rows - 1, features)
        count = self.n_components
        if count is None:
            return
        if isinstance(count, bool) or not isinstance(count, int | np.integer):
            raise UsageError(f"n_components must be a whole number or None, got {count!r}")
        if not 1 <= count <= most:
            raise UsageError(
                f"n_components must be 1 to {most}, as {rows} rows of {features} features span no "
                f"more axes, got {count!r}: give more images or fewer components"
            )

    def fit(self, X, y=None):  # noqa: ARG002 (scikit-learn passes it)
        """Find mean and axes of features (n_samples, n_features); ``y`` is not used.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If ``X`` is not finite, ``n_components`` is too large, or all rows are equal.
        """
        X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        rows, features = X.shape
        self._check(rows, features)
        mean = _mean(X)
        variances, axes = _axes(X, mean)
        size = float(np.abs(mean).max()) + float(np.sqrt(variances[0]))
        if variances[0] <= (1e-12 if X.dtype == np.float64 else 1e-6) ** 2 * size**2:
            raise UsageError(
                f"X must hold rows that differ, got {rows} equal rows: the features of different "
                "images must differ for a coordinate system to be there"
            )
        there = int(np.count_nonzero(variances[: min(rows - 1, features)] > FLOOR * variances[0]))
        count = there if self.n_components is None else int(self.n_components)
        if count > there:
            raise UsageError(
                f"n_components must be at most {there}, the axes along which the features vary, "
                f"got {count}: ask for fewer"
            )
        if rows - 1 < features:
            warnings.warn(
                f"{rows} rows of {features} features give {there} axes at most, and an uncertain "
                "covariance: with a few images a class the coordinate system is mostly chance",
                FewRowsWarning,
                stacklevel=2,
            )
        if self.basis == "random":
            normal = check_random_state(self.random_state).standard_normal((features, count))
            axes = np.linalg.qr(normal)[0].T
            variances = _variances_along(X, mean, axes)
            order = np.argsort(-variances, kind="stable")
            axes, variances = axes[order], variances[order]
        self.mean_ = mean.astype(X.dtype)
        self.components_ = fix_signs(axes[:count]).astype(X.dtype)
        self.explained_variance_ = variances[:count].astype(X.dtype)
        self.n_components_ = count
        return self

    def transform(self, X):
        """Return coordinates (n_samples, n_components_) of features.

        Raises
        ------
        ValueError
            If ``X`` has another number of features.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return (X - self.mean_) @ self.components_.T

    def inverse_transform(self, X):
        """Return the features (n_samples, n_features) that lie at given coordinates."""
        check_is_fitted(self)
        return np.asarray(X) @ self.components_ + self.mean_

    @property
    def _n_features_out(self) -> int:
        return self.n_components_

    def save(self, folder: str | Path) -> None:
        """Write the fitted coordinates to ``folder`` as one safetensors file."""
        check_is_fitted(self)
        settings = self.get_params()
        if not isinstance(settings["random_state"], int | None):
            settings["random_state"] = None
        told = {"format": FORMAT, "settings": json.dumps(settings)}
        names = ("mean_", "components_", "explained_variance_")
        if hasattr(self, "feature_names_in_"):
            told["names"] = json.dumps([str(name) for name in self.feature_names_in_])
        Path(folder).mkdir(parents=True, exist_ok=True)
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in names}
        save_file(arrays, Path(folder) / "coordinates.safetensors", metadata=told)

    @classmethod
    def load(cls, folder: str | Path) -> TailoredCoordinates:
        """Read what `save` wrote.

        Raises
        ------
        UsageError
            If the folder holds no such file, or a damaged one.
        """
        path = Path(folder) / "coordinates.safetensors"
        if not path.is_file():
            raise UsageError(f"{folder} holds no coordinates.safetensors, as written by save")
        try:
            with safe_open(path, "numpy") as file:
                told: dict[str, Any] = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise UsageError(f"{path} is damaged, save it anew: {error}") from error
        if told.get("format") != FORMAT:
            raise UsageError(f"{path} must be in the format {FORMAT}, got {told.get('format')!r}")
        made = cls(**json.loads(told["settings"]))
        for name, value in arrays.items():
            setattr(made, name, value)
        made.n_components_, made.n_features_in_ = made.components_.shape
        if "names" in told:
            made.feature_names_in_ = np.array(json.loads(told["names"]), dtype=object)
        return made


def _variances_along(X: NDArray, mean: NDArray, axes: NDArray) -> NDArray[np.float64]:
    total = np.zeros(len(axes))
    for start in range(0, len(X), _ROWS):
        block = np.asarray(X[start : start + _ROWS], np.float64) - mean
        total += ((block @ axes.T) ** 2).sum(axis=0)
    return total / (len(X) - 1)
