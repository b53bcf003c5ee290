"""Checks of ranks and ranges whose messages name the argument."""

from collections.abc import Sequence
from typing import Any


def check_axes(name: str, value: Any, axes: Sequence[str]) -> None:
    """Raise unless ``value`` has one axis per name in ``axes``.

    Raises
    ------
    ValueError
        Naming the argument, the axes expected and the shape that came.

    Examples
    --------
    >>> import numpy as np
    >>> check_axes("x", np.zeros((2, 3)), ("batch", "time"))
    """
    shape = getattr(value, "shape", None)
    if shape is None or len(shape) != len(axes):
        got = type(value).__name__ if shape is None else f"shape {tuple(shape)}"
        raise ValueError(f"{name} must have shape ({', '.join(axes)}), got {got}")


def check_range(
    name: str,
    value: float,
    *,
    low: float | None = None,
    high: float | None = None,
    unit: str = "",
) -> None:
    """Raise unless ``low <= value <= high``; a bound of None is open.

    Raises
    ------
    ValueError
        Naming the argument, the range and what came.

    Examples
    --------
    >>> check_range("beta", 0.5, low=0, high=1)
    """
    too_low = low is not None and not value >= low
    too_high = high is not None and not value <= high
    if too_low or too_high or value != value:
        bounds = [f"at least {low}" if low is not None else ""]
        bounds.append(f"at most {high}" if high is not None else "")
        wanted = " and ".join(part for part in bounds if part) or "a number"
        raise ValueError(f"{name} must be {wanted}{unit and ' ' + unit}, got {value!r}")
