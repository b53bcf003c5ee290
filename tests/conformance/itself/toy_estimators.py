"""Toy estimators, sound and broken, with which the suite tries itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.neighbors import NearestCentroid

from trialrun.core.seeds import rng
from trialrun.dossiers.specimen import (
    EstimatorSpecimen,
)


class Centroids(ClassifierMixin, BaseEstimator):
    """Classify by the nearest centroid."""

    def __init__(self, *, shrink=None):
        self.shrink = shrink

    def fit(self, X, y):
        self.inner_ = NearestCentroid(shrink_threshold=self.shrink).fit(X, y)
        self.classes_ = self.inner_.classes_
        return self

    def predict(self, X):
        return self.inner_.predict(X)


class EagerCentroids(Centroids):
    def __init__(self, *, shrink=None):
        self.shrink = None if shrink is None else float(shrink)


class LearnedEarly(Centroids):
    def __init__(self, *, shrink=None):
        self.shrink = shrink
        self.inner_ = None


class PositionalCentroids(Centroids):
    def __init__(self, shrink=None):
        self.shrink = shrink


class SilentFit(Centroids):
    def fit(self, X, y):
        super().fit(X, y)


class SelfChanging(Centroids):
    def fit(self, X, y):
        super().fit(X, y)
        self.shrink = 0.5
        return self


def _table(seed):
    y = np.arange(20) % 2
    return {"X": rng(seed, "X").normal(size=(20, 3)) + y[:, None], "y": y}


def estimator(kind=Centroids, **changes):
    """Make an estimator specimen around one toy."""
    plain = EstimatorSpecimen(
        entry=f"trialrun.toys.toys:{kind.__name__}",
        make=lambda seed: kind(),
        inputs=_table,
        run=lambda fitted, inputs: fitted.predict(inputs["X"]),
        check=kind,
        bad=(),
        expected_failed_checks={},
        save=lambda fitted, folder: None,
        load=lambda folder: kind(),
    )
    return replace(plain, **changes)
