"""Checks of numbers that settings are, in words that name the setting."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from trialrun.core.errors import UsageError
from trialrun.core.shapes import check_range


def check_whole(name: str, value: Any, *, low: int, high: int | None = None) -> None:
    """Raise unless ``value`` is a whole number in a range."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise UsageError(f"{name} must be a whole number, got {value!r}")
    check_range(name, int(value), low=low, high=high)


def check_real(name: str, value: Any, *, low: float | int, high: float | int) -> None:
    """Raise unless ``value`` is a number in a range."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise UsageError(f"{name} must be a number, got {value!r}")
    check_range(name, float(value), low=low, high=high)
