"""Line up domain labels with the rows of metadata, adjacency and relation tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trialrun.core.errors import UsageError

Array = NDArray[np.float64]


def _listed(labels: Any) -> str:
    shown = ", ".join(str(label) for label in labels[:5])
    return shown if len(labels) <= 5 else f"{shown} and {len(labels) - 5} more"


def read_labels(domains: Any, n_rows: int) -> tuple[NDArray, NDArray[np.intp]]:
    """Return the sorted unique labels and each row's number among them.

    Raises
    ------
    UsageError
        Unless there is one label per row, none of them missing.
    """
    values = np.asarray(domains)
    if values.shape != (n_rows,):
        raise UsageError(
            f"domains must hold one label per row of X, shape ({n_rows},), got {values.shape}"
        )
    missing = [i for i, value in enumerate(values.tolist()) if value is None or value != value]
    if missing:
        raise UsageError(
            f"domains must hold a label in every row, row {missing[0]} has none: drop or name it"
        )
    try:
        labels, index = np.unique(values, return_inverse=True)
    except TypeError as error:
        raise UsageError("domains must be all numbers or all strings, got a mixture") from error
    return labels, index


def _named(label: Any) -> str:
    return label if str(label).startswith("the domain") else f"domain {label}"


def read_rows(name: str, value: Any, labels: NDArray, *, width: int | None, each: str) -> Array:
    """Return a float table with one row per label, from an array or from a mapping.

    Parameters
    ----------
    name, each : str
        The argument and what a row of it is, for messages.
    value : mapping of label to vector, or array of shape (n_labels, width)
        An array's rows are in the order of ``labels``. Entries of a mapping for other labels
        are not looked at.
    width : int or None
        Columns expected; None takes what comes.

    Raises
    ------
    UsageError
        If a label has no row, the counts differ, or an entry is not a finite number.
    """
    if isinstance(value, Mapping):
        lacking = [label for label in labels.tolist() if label not in value]
        if lacking:
            raise UsageError(
                f"{name} has no {each} for domain {_listed(lacking)}: give every domain one"
            )
        value = [value[label] for label in labels.tolist()]
    try:
        rows = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} must hold numbers, {each}s of equal length: {error}") from error
    if rows.ndim == 1 and len(labels) == 1:
        rows = rows[None]
    if rows.ndim != 2 or len(rows) != len(labels):
        raise UsageError(
            f"{name} must have one {each} per domain, {len(labels)} in the sorted order of the "
            f"labels {_listed(labels)}, got shape {rows.shape}: pass a mapping from label to "
            f"{each} to be safe"
        )
    if width is not None and rows.shape[1] != width:
        raise UsageError(f"{name} must have {width} entries per domain, got {rows.shape[1]}")
    bad = np.argwhere(~np.isfinite(rows))
    if len(bad):
        row, column = bad[0]
        raise UsageError(
            f"{name} must be finite, got {rows[row, column]} for {_named(labels[row])}, "
            f"column {column}"
        )
    return rows
