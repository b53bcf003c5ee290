"""Checks whose messages name the argument, what was expected and what came."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

Number = float | int


def whole(name: str, value: Any, *, low: int) -> int:
    """Return ``value`` as an int, or raise unless it is a whole number of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
        raise ValueError(f"{name} must be a whole number of at least {low}, got {shown(value)}")
    return int(value)


def number(name: str, value: Any) -> float:
    """Return ``value`` as a float, or raise unless it is one finite real number."""
    if isinstance(value, Tensor) and not value.ndim and not value.is_complex():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {shown(value)}")
    return float(value)


def positive(name: str, value: Any, unit: str = "") -> float:
    """Return ``value`` as a float, or raise unless it is a finite number above 0."""
    try:
        found = number(name, value)
    except ValueError:
        found = 0.0
    if found <= 0:
        raise ValueError(f"{name} must be a number above 0{unit}, got {shown(value)}")
    return found


def shown(value: Any) -> str:
    """Return a value as a message shows it: a tensor of several numbers by its shape."""
    if isinstance(value, Tensor) and value.ndim:
        return f"a tensor of shape {tuple(value.shape)}"
    return repr(value.item() if isinstance(value, Tensor) else value)


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


def fits(name: str, value: Tensor, weights: Tensor, owner: str) -> None:
    """Raise if a tensor is of a wider type than the weights, which autocast may mend."""
    if torch.promote_types(value.dtype, weights.dtype) == weights.dtype:
        return
    if value.dtype == torch.float64 or not torch.is_autocast_enabled(value.device.type):
        raise ValueError(
            f"{name} must be of the {owner}'s type {weights.dtype} or narrower, got "
            f"{value.dtype}: convert one of them with .to"
        )


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type that is computed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
