"""Checks whose messages name the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

Number = float | int


def whole(name: str, value: Any, *, low: int) -> None:
    """Raise unless ``value`` is a whole number of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name} must be a whole number of at least {low}, got {value!r}")


def one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Raise unless ``value`` is one of the words allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def floats(name: str, value: Any, axes: tuple[str, ...]) -> None:
    """Raise unless ``value`` is a real floating tensor with these axes, none of them empty."""
    if not isinstance(value, Tensor) or value.ndim != len(axes) or not value.numel():
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"{name} must be a tensor of shape ({', '.join(axes)}) with no empty axis, got {shape}"
        )
    if not value.is_floating_point():
        raise ValueError(f"{name} must hold real floating-point numbers, got {value.dtype}")
