"""Choose settings by predicting held-out training domains as if they were new.

Test domains play no part. A shuffled cross-validation would pick settings for domains already
seen, which is another question.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import ParameterGrid

from trialrun.core.errors import UsageError
from trialrun.shift._domains import read_labels, read_rows


@dataclass(frozen=True)
class Selection:
    """What `select_by_leaving_domains_out` found.

    ``scores`` holds one row per setting, in the order of ``settings``, and one column per
    training domain in the order of its sorted labels. ``best_estimator`` is fitted on all.
    """

    best_estimator: Any
    best_setting: dict[str, Any]
    settings: list[dict[str, Any]]
    scores: NDArray[np.float64]


def _folds(n_domains: int, folds: int | None) -> list[NDArray[np.intp]]:
    """Deal domains out in turn, so that neighbours in sorted order are held out apart."""
    n_folds = n_domains if folds is None else min(folds, n_domains)
    return [np.arange(start, n_domains, n_folds) for start in range(n_folds)]


def select_by_leaving_domains_out(
    estimator: BaseEstimator,
    X: Any,
    y: Any,
    grid: Any,
    *,
    domains: Any,
    metadata: Any = None,
    adjacency: Any = None,
    by: str = "mean",
    folds: int | None = None,
) -> Selection:
    """Fit every setting without some training domains and score it on those, as unseen ones.

    Parameters
    ----------
    estimator : D3GClassifier or D3GRegressor
        Cloned, never changed.
    X : array of shape (n, n_features)
    y : array of shape (n,)
    grid : mapping of parameter to values, or list of such mappings
        As in scikit-learn: ``{"relation__sharpness": [1, 5, 25], "lam": [0.0, 0.5]}``. Where
        ``relation`` or ``training`` is swept inside, the estimator must hold an object there.
    domains, metadata, adjacency
        As for ``fit``. Held-out domains are related through their own rows.
    by : {"mean", "worst"}, default="mean"
        Which score over the held-out domains decides; ties go to the earlier setting.
    folds : int of at least 2, or None
        None leaves one domain out at a time; a number deals the domains into that many groups,
        which is faster with many domains.

    Returns
    -------
    Selection

    Raises
    ------
    ValueError
        With fewer than three domains, or none at all in ``grid``.

    Notes
    -----
    yao2023d3g leaves the choice open. With metadata as a mapping, scikit-learn's
    ``GridSearchCV(cv=LeaveOneGroupOut())`` with metadata routing does the same for mean scores.

    Examples
    --------
    >>> from trialrun.shift.d3g import D3GRegressor, Relation, Training
    >>> rng = np.random.default_rng(0)
    >>> domains, X = np.repeat(np.arange(5), 20), rng.normal(size=(100, 1))
    >>> model = D3GRegressor(relation=Relation("fixed", kernel="distance"),
    ...                      training=Training(steps=60), random_state=0)
    >>> found = select_by_leaving_domains_out(
    ...     model, X, domains * X[:, 0], {"relation__sharpness": [0.0, 20.0]},
    ...     domains=domains, metadata=np.arange(5.0)[:, None])
    >>> found.best_setting
    {'relation__sharpness': 20.0}
    """
    if by not in ("mean", "worst"):
        raise UsageError(f"by must be mean or worst, got {by!r}")
    if folds is not None and folds < 2:
        raise UsageError(f"folds must be at least 2, got {folds!r}")
    X, y = np.asarray(X), np.asarray(y)
    labels, index = read_labels(domains, len(X))
    if len(labels) < 3:
        raise UsageError(
            f"leaving domains out needs at least 3 training domains, got {len(labels)}"
        )
    settings = list(ParameterGrid(grid))
    tables = _tables(labels, metadata, adjacency)
    held_out = _folds(len(labels), folds)
    scores = np.array(
        [_scores(clone(estimator).set_params(**s), X, y, index, tables, held_out) for s in settings]
    )
    summary = scores.mean(axis=1) if by == "mean" else scores.min(axis=1)
    best = settings[int(summary.argmax())]
    final = clone(estimator).set_params(**best)
    final.fit(X, y, domains=labels[index], metadata=tables.get("metadata"), **_fit_graph(tables))
    return Selection(final, best, settings, scores)


def _tables(labels: NDArray, metadata: Any, adjacency: Any) -> Mapping[str, Any]:
    tables: dict[str, Any] = {"labels": labels}
    if metadata is not None:
        tables["metadata"] = read_rows("metadata", metadata, labels, width=None, each="vector")
    if adjacency is not None:
        tables["adjacency"] = read_rows(
            "adjacency", adjacency, labels, width=len(labels), each="row"
        )
    return tables


def _fit_graph(tables: Mapping[str, Any]) -> dict[str, Any]:
    return {"adjacency": tables["adjacency"]} if "adjacency" in tables else {}


def _scores(
    estimator: Any,
    X: NDArray,
    y: NDArray,
    index: NDArray[np.intp],
    tables: Mapping[str, Any],
    held_out: list[NDArray[np.intp]],
) -> NDArray[np.float64]:
    labels = tables["labels"]
    scores = np.empty(len(labels))
    for out in held_out:
        kept = np.setdiff1d(np.arange(len(labels)), out)
        inside = np.isin(index, kept)
        known: dict[str, Any] = {}
        if "metadata" in tables:
            known["metadata"] = tables["metadata"][kept]
        if "adjacency" in tables:
            known["adjacency"] = tables["adjacency"][np.ix_(kept, kept)]
        fitted = clone(estimator).fit(X[inside], y[inside], domains=labels[index[inside]], **known)
        for domain in out:
            rows = index == domain
            told: dict[str, Any] = {}
            if "metadata" in tables:
                told["metadata"] = tables["metadata"][domain]
            if "adjacency" in tables:
                told["relations"] = tables["adjacency"][domain, kept]
            scores[domain] = fitted.score(X[rows], y[rows], **told)
    return scores
