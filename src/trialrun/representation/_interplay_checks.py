"""What a setting, a kernel or a label must be, each refused in one sentence."""

from __future__ import annotations

import inspect
import math
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from trialrun.core.errors import UsageError

PARAMS = {"rbf": (), "laplacian": (), "polynomial": ("degree", "coef0"), "precomputed": ()}
TAKEN = ("X", "Y", "metric", "filter_params", "n_jobs")
NEGATIVE = 1e-7
"""Share of a Gram matrix's trace down to which a negative eigenvalue passes for rounding."""


def real(value: Any) -> bool:
    """Tell whether a value is one finite real number."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_number(name: str, value: Any) -> None:
    """Raise unless ``value`` is a finite number of at least 0.

    Raises
    ------
    ValueError
        Naming the setting and what came.
    """
    if not (real(value) and value >= 0):
        raise UsageError(f"{name} must be a finite number of at least 0, got {value!r}")


def check_count(name: str, value: Any) -> None:
    """Raise unless ``value`` is a whole number of at least 1.

    Raises
    ------
    ValueError
        Naming the setting and what came.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < 1:
        raise UsageError(f"{name} must be a whole number of at least 1, got {value!r}")


def check_gamma(gamma: Any) -> None:
    """Raise unless gamma is None or a finite number above 0.

    Raises
    ------
    ValueError
        Saying what came.
    """
    if gamma is not None and not (real(gamma) and gamma > 0):
        raise UsageError(
            "gamma must be above 0, a finite number, or None for 1 / n_features, got "
            f"{_brief(gamma)}"
        )


def check_kernel(kernel: Any, names: tuple[str, ...]) -> None:
    """Raise unless the kernel is a function or one of ``names``.

    Raises
    ------
    ValueError
        Saying what came; a matrix is pointed to ``kernel='precomputed'``.
    """
    if isinstance(kernel, str | type(None)) or callable(kernel):
        if callable(kernel) or kernel in names:
            return
        got = repr(kernel)
    else:
        got = f"{_brief(kernel)}; for a Gram matrix use kernel='precomputed' and pass it as X"
    raise UsageError(
        f"kernel must be one of {', '.join(names)} or a function of two rows, got {got}"
    )


def read_params(kernel: Any, params: Any) -> dict[str, Any]:
    """Return the kernel's further settings, checked.

    Raises
    ------
    ValueError
        If they are no dict, or hold a name that the kernel has no use for.
    """
    if params is None:
        return {}
    if not isinstance(params, dict):
        raise UsageError(
            f"kernel_params must be a dict such as {{'degree': 2}}, or None, got {_brief(params)}"
        )
    if callable(kernel):
        wrong = [name for name in params if name in TAKEN]
        known = "names that the kernel function takes, not " + ", ".join(TAKEN)
    else:
        wrong = [name for name in params if name not in PARAMS[kernel]]
        known = f"settings of {kernel!r} ({', '.join(PARAMS[kernel]) or 'it has none'})"
    if wrong:
        remedy = ": set gamma by its own argument" if "gamma" in wrong else ""
        raise UsageError(f"kernel_params must hold {known}, got {wrong[0]!r}{remedy}")
    if not callable(kernel):
        for name, value in params.items():
            if not real(value) or (name == "degree" and value < 0):
                least = " of at least 0" if name == "degree" else ""
                raise UsageError(
                    f"kernel_params[{name!r}] must be a finite number{least}, got {_brief(value)}"
                )
    return dict(params)


def doubtful(kernel: Any, params: dict[str, Any]) -> bool:
    """Tell whether a kernel may fail to be positive semi-definite."""
    if kernel == "polynomial":
        return bool(params.get("coef0", 1) < 0 or params.get("degree", 3) % 1 != 0)
    return callable(kernel) or kernel == "precomputed"


def check_gram(gram: NDArray[np.float64]) -> None:
    """Raise unless a Gram matrix is finite, symmetric and positive semi-definite up to rounding.

    Raises
    ------
    ValueError
        Saying which of these it is not.
    """
    size = float(np.abs(gram).max())
    if not np.isfinite(size):
        raise UsageError(
            "kernel must be a finite number between any two views, got NaN or infinity"
        )
    if not np.allclose(gram, gram.T, rtol=1e-6, atol=1e-8 * size):
        raise UsageError("kernel must be symmetric between the views, got one that is not")
    slack = NEGATIVE * len(gram) * size
    system = (gram + gram.T) / 2
    system.flat[:: len(gram) + 1] += slack
    try:
        linalg.cholesky(system, lower=True, overwrite_a=True, check_finite=False)
    except linalg.LinAlgError as error:
        if not size:
            return
        raise UsageError(
            "kernel must be positive semi-definite on the views: its Gram matrix has an eigenvalue "
            f"below -{slack:.3g}; use another kernel"
        ) from error


def floor(tol: float, count: int) -> float:
    """Return the share of the largest eigenvalue below which one of ``count`` is rounding."""
    return max(float(tol), count * float(np.finfo(float).eps))


def read_labels(labels: Any) -> NDArray[Any]:
    """Return group labels (n,), of which none is missing.

    Raises
    ------
    ValueError
        If a label is None or NaN, or the labels cannot be put in order.
    """
    found = np.asarray(labels)
    if found.ndim != 1:
        raise UsageError(
            f"groups must hold one label per view, shape (n,), got shape {found.shape}"
        )
    missing: list[int] = []
    if found.dtype.kind in "fcmM":
        missing = np.flatnonzero(found != found).tolist()
    elif found.dtype.kind == "O":
        missing = [i for i, label in enumerate(found.tolist()) if _missing(label)]
    if missing:
        raise UsageError(
            f"groups must say the input of every view, got none at row {missing[0]} "
            f"({found[missing[0]]!r}): give such a view a label or leave it out"
        )
    if found.dtype.kind == "O":
        try:
            np.unique(found)
        except TypeError as error:
            raise UsageError(
                "groups must hold labels of one kind, numbers or text, got a mixture"
            ) from error
    return found


def _missing(label: Any) -> bool:
    try:
        return label is None or bool(label != label)
    except (TypeError, ValueError):
        return True


def check_augment(augment: Any) -> None:
    """Raise unless ``augment`` can be called with rows and a generator.

    Raises
    ------
    ValueError
        Saying what came.
    """
    if not callable(augment):
        raise UsageError(f"augment must be a function of (X, generator) or None, got {augment!r}")
    try:
        signature = inspect.signature(augment)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise UsageError(
            f"augment must be a function of (X, generator), got one of {signature}: take the "
            "random generator as its second argument"
        ) from error


def _brief(value: Any) -> str:
    if hasattr(value, "shape") and np.ndim(value):
        return f"an array of shape {tuple(value.shape)}"
    return repr(value)
