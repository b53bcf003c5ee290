"""Classify by the nearest class mean.

A draft made by ``trialrun new``: it shows the form. Put the method in place of the class means.
Say here where it comes from: paper key, what was read, what is ours, what differs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trialrun.representation import _ssl_interplay_stack  # noqa: F401

# isort: split
import numpy as np
from safetensors.numpy import load_file, save_file
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data


class SslInterplay(ClassifierMixin, BaseEstimator):
    """Classify by the nearest class mean.

    Parameters
    ----------
    shrink : float in [0, 1), default=0.0
        Fraction by which each mean moves towards the mean of all rows.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    means_ : ndarray of shape (n_classes, n_features)

    Raises
    ------
    ValueError
        In fit, if shrink is out of range or X and y are not what they must be.

    Examples
    --------
    >>> SslInterplay().fit([[0.0], [1.0]], ["no", "yes"]).predict([[0.9]]).tolist()
    ['yes']
    """

    def __init__(self, *, shrink: float = 0.0) -> None:
        self.shrink = shrink

    def fit(self, X: Any, y: Any) -> SslInterplay:
        """Learn the mean of every class from X (n, n_features) and y (n,)."""
        X, y = validate_data(self, X, y)
        check_classification_targets(y)
        if not 0 <= self.shrink < 1:
            raise ValueError(f"shrink must be in [0, 1), got {self.shrink!r}")
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError("y must hold at least two classes, got one class")
        means = np.stack([X[y == c].mean(axis=0) for c in self.classes_])
        self.means_ = means + self.shrink * (X.mean(axis=0) - means)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the class of every row of X (n, n_features)."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False)
        squares = (self.means_**2).sum(axis=1) - 2.0 * X @ self.means_.T
        return self.classes_[squares.argmin(axis=1)]

    def save(self, folder: Path) -> None:
        """Write settings and means into ``folder``, as JSON and safetensors."""
        check_is_fitted(self)
        settings = {"shrink": self.shrink, "classes": self.classes_.tolist()}
        (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        save_file({"means": self.means_}, folder / "means.safetensors")

    @classmethod
    def load(cls, folder: Path) -> SslInterplay:
        """Read back what `save` wrote into ``folder``."""
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        loaded = cls(shrink=settings["shrink"])
        loaded.classes_ = np.array(settings["classes"])
        loaded.means_ = load_file(folder / "means.safetensors")["means"]
        loaded.n_features_in_ = loaded.means_.shape[1]
        return loaded
