"""The user's own table of domains, from CSV or Parquet files, with its faults named.

Two files: the table (a target column, a domain column, numeric features) and the metadata (the
same domain column, one row per domain, numeric columns). Every numeric column of the table other
than the target and the domain is a feature; a column of anything else is an error, so that none
is dropped in silence.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trialrun.core.errors import UsageError
from trialrun.core.extras import need

TASKS = ("classification", "regression")
MOST_CLASSES = 20


@dataclass(frozen=True, eq=False)
class DomainTable:
    """A checked table: ``metadata`` has one row per label of ``labels``, which are sorted.

    ``task`` is ``classification`` (``y`` holds labels) or ``regression`` (floats).
    """

    X: NDArray[np.float64]
    y: NDArray
    domains: NDArray
    labels: NDArray
    metadata: NDArray[np.float64]
    features: tuple[str, ...]
    task: str


def read_frame(path: str | Path) -> Any:
    """Read a CSV or Parquet file into a pandas frame.

    Raises
    ------
    UsageError
        If the file is missing, empty, of another kind, or cannot be read as what it says.
    """
    pandas = need("pandas", extra="shift")
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".csv", ".parquet"):
        raise UsageError(f"{path} must be a .csv or .parquet file, got the ending {kind!r}")
    if not path.is_file():
        raise UsageError(f"{path} is not a file: give the path of a .csv or .parquet table")
    if path.stat().st_size == 0:
        raise UsageError(f"{path} is an empty file: expected a table with a header")
    if kind == ".parquet":
        need("pyarrow", extra="shift")
    try:
        frame = pandas.read_csv(path) if kind == ".csv" else pandas.read_parquet(path)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is no text in UTF-8 (byte {error.start + 1}): save the table as CSV in UTF-8"
        ) from error
    except (ValueError, OSError) as error:
        first = str(error).strip().partition("\n")[0]
        raise UsageError(f"{path} cannot be read as {kind.removeprefix('.')}: {first}") from error
    frame.columns = [str(name) for name in frame.columns]
    if not len(frame):
        raise UsageError(f"{path} has a header and no rows: expected one row per example")
    return frame


def _check_column(frame: Any, column: str, path: str | Path, option: str) -> None:
    if column not in frame.columns:
        raise UsageError(
            f"{path} has no column {column!r} (named by {option}): it has "
            f"{', '.join(frame.columns)}"
        )


def _check_filled(frame: Any, column: str, path: str | Path) -> None:
    missing = np.flatnonzero(frame[column].isna().to_numpy())
    if len(missing):
        raise UsageError(
            f"{path} has {len(missing)} empty cell(s) in column {column!r}, first in data row "
            f"{missing[0] + 1}: fill or drop them"
        )


def _numbers(frame: Any, columns: list[str], path: str | Path, what: str) -> NDArray[np.float64]:
    """Return columns as finite floats, or name the first that is not."""
    types = need("pandas", extra="shift").api.types
    if not columns:
        raise UsageError(f"{path} has no {what} columns: it has {', '.join(frame.columns)}")
    for column in columns:
        if not types.is_numeric_dtype(frame[column]):
            raise UsageError(
                f"{path} has the {what} column {column!r} of type {frame[column].dtype}, expected "
                "numbers: encode it as numbers or drop it"
            )
        _check_filled(frame, column, path)
        bad = np.flatnonzero(~np.isfinite(frame[column].to_numpy(dtype=float)))
        if len(bad):
            raise UsageError(
                f"{path} has an infinite number in column {column!r}, data row {bad[0] + 1}"
            )
    return np.ascontiguousarray(frame[columns].to_numpy(dtype=float))


def _task(target: Any, task: str | None) -> str:
    types = need("pandas", extra="shift").api.types
    numeric = types.is_numeric_dtype(target) and not types.is_bool_dtype(target)
    if task is None:
        whole = types.is_integer_dtype(target) and target.nunique() <= MOST_CLASSES
        return "regression" if numeric and not whole else "classification"
    if task not in TASKS:
        raise UsageError(f"--task must be one of {', '.join(TASKS)}, got {task!r}")
    if task == "regression" and not numeric:
        raise UsageError(
            f"--task regression needs a numeric target, got column {target.name!r} of type "
            f"{target.dtype}"
        )
    fraction = target[target % 1 != 0] if task == "classification" and numeric else ()
    if len(fraction):
        raise UsageError(
            f"--task classification needs labels, got column {target.name!r} with numbers such as "
            f"{fraction.iloc[0]}: use --task regression"  # type: ignore[union-attr] # not empty here
        )
    return task


def _target(frame: Any, column: str, path: str | Path, task: str) -> NDArray:
    _check_filled(frame, column, path)
    if task == "regression":
        return _numbers(frame, [column], path, "target")[:, 0]
    y = frame[column].to_numpy()
    y = y.astype(str) if y.dtype.hasobject or y.dtype.kind not in "biuf" else y
    if len(np.unique(y)) < 2:
        raise UsageError(
            f"{path} has one class only in column {column!r}, {y[0]!s}: at least two are needed, "
            "or pass --task regression for a numeric target"
        )
    return y


def _same_kind(left: Any, right: Any) -> tuple[NDArray, NDArray]:
    """Return two label columns as numbers if both are, else as text."""
    types = need("pandas", extra="shift").api.types
    if types.is_numeric_dtype(left) and types.is_numeric_dtype(right):
        return left.to_numpy(), right.to_numpy()
    return left.to_numpy().astype(str), right.to_numpy().astype(str)


def read_domain_table(
    path: str | Path,
    *,
    target: str,
    domain: str,
    metadata: str | Path,
    task: str | None = None,
    least_domains: int = 2,
) -> DomainTable:
    """Read and check a table of domains and its metadata.

    Parameters
    ----------
    path, metadata : path of a .csv or .parquet file
    target, domain : str
        Column names; ``domain`` is in both files.
    task : {"classification", "regression"} or None
        None takes text, booleans and whole numbers of at most 20 kinds for classes.
    least_domains : int
        Fewest domains the table must hold.

    Raises
    ------
    UsageError
        With one sentence naming the file, the column and the row.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "t.csv").write_text("region,x,y\\nb,1.5,0\\na,2,1\\n")
    >>> _ = (folder / "m.csv").write_text("region,height\\na,10\\nb,20\\n")
    >>> table = read_domain_table(folder / "t.csv", target="y", domain="region",
    ...                           metadata=folder / "m.csv")
    >>> table.features, table.task, table.labels.tolist(), table.metadata.tolist()
    (('x',), 'classification', ['a', 'b'], [[10.0], [20.0]])
    """
    frame, told = read_frame(path), read_frame(metadata)
    _check_column(frame, target, path, "--target")
    _check_column(frame, domain, path, "--domain")
    _check_column(told, domain, metadata, "--domain")
    if target == domain:
        raise UsageError(f"--target and --domain must be two columns, got {target!r} for both")
    for table, where in ((frame, path), (told, metadata)):
        _check_filled(table, domain, where)
    features = [name for name in frame.columns if name not in (target, domain)]
    columns = [name for name in told.columns if name != domain]
    X = _numbers(frame, features, path, "feature")
    rows = _numbers(told, columns, metadata, "metadata")
    task = _task(frame[target], task)
    y = _target(frame, target, path, task)
    domains, known = _same_kind(frame[domain], told[domain])
    labels = np.unique(domains)
    if len(labels) < least_domains:
        raise UsageError(
            f"{path} has {len(labels)} domain(s) in column {domain!r}, expected at least "
            f"{least_domains}, so that some can be held out"
        )
    place = {label: i for i, label in enumerate(known.tolist())}
    if len(place) < len(known):
        twice = next(label for i, label in enumerate(known.tolist()) if place[label] != i)
        raise UsageError(f"{metadata} has several rows for domain {twice!r}, expected one")
    lacking = [label for label in labels.tolist() if label not in place]
    if lacking:
        raise UsageError(
            f"{metadata} has no row for domain {lacking[0]!r} of {path} ({len(lacking)} lack "
            "one): add it"
        )
    order = [place[label] for label in labels.tolist()]
    return DomainTable(X, y, domains, labels, rows[order], tuple(features), task)
