"""Compare what methods take and return: containers of tensors, arrays, tables and modules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from inspect import isroutine
from typing import Any

import numpy as np

from tests.conformance.harness import Broken

_PLAIN = (str, bytes, int, float, complex, bool, type(None), type, range)


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "detach") and hasattr(value, "untyped_storage")


def _as_array(tensor: Any) -> np.ndarray:
    cpu = tensor.detach().cpu()
    # numpy has no bfloat16; widening it loses nothing.
    return (cpu.float() if str(cpu.dtype) == "torch.bfloat16" else cpu).numpy()


def _children(value: Any) -> Iterator[tuple[str, Any]] | None:
    if isinstance(value, Mapping):
        return iter((f"[{key!r}]", item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return iter((f"[{i}]", item) for i, item in enumerate(value))
    if isinstance(value, set | frozenset):
        return iter([("", sorted(map(repr, value)))])
    if hasattr(value, "state_dict"):
        return iter([(".state", value.state_dict())])
    if hasattr(value, "bit_generator"):
        return iter([(".state", value.bit_generator.state)])
    if hasattr(value, "to_dict") and hasattr(value, "columns"):
        columns = [(f".{c}", value[c].to_numpy()) for c in value.columns]
        return iter([(".index", value.index.to_numpy()), *columns])
    if hasattr(value, "get_state") and hasattr(value, "initial_seed"):
        return iter([(".state", value.get_state())])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return iter((f".{f.name}", getattr(value, f.name)) for f in fields)
    return None


def leaves(value: Any, path: str = "", seen: tuple[int, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield every leaf with its path: numpy arrays and plain Python values."""
    if _is_tensor(value):
        yield f"{path} ({value.dtype})", _as_array(value)
        return
    if isinstance(value, np.ndarray | np.generic):
        yield f"{path} ({value.dtype})", np.asarray(value)
        return
    if isinstance(value, _PLAIN) or isroutine(value) or id(value) in seen:
        yield path, value if isinstance(value, _PLAIN) else type(value)
        return
    inner = _children(value)
    if inner is None:
        inner = iter((f".{k}", v) for k, v in getattr(value, "__dict__", {}).items())
    yield f"{path} {type(value).__name__}", None
    for step, item in inner:
        yield from leaves(item, path + step, (*seen, id(value)))


def _same_leaf(a: Any, b: Any) -> bool:
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
        return type(a) is type(b) and (a == b or a != a)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype == object:
        return all(x == y or x != x for x, y in zip(a.ravel(), b.ravel()))
    return a.tobytes() == b.tobytes()


def difference(a: Any, b: Any) -> str:
    """Say where two values first differ bit for bit; empty where they do not."""
    left, right = list(leaves(a)), list(leaves(b))
    for (path_a, x), (path_b, y) in zip(left, right):
        if path_a != path_b:
            return f"{path_a.strip() or 'value'} against {path_b.strip() or 'value'}"
        if not _same_leaf(x, y):
            return f"at {path_a.strip() or 'value'}: {_brief(x)} against {_brief(y)}"
    if len(left) != len(right):
        return f"{len(left)} parts against {len(right)}"
    return ""


def _brief(value: Any) -> str:
    text = np.array2string(value, threshold=6) if isinstance(value, np.ndarray) else repr(value)
    return " ".join(text.split())[:120]


def arrays(value: Any) -> list[np.ndarray]:
    """Return the arrays in a value, in order."""
    return [leaf for _, leaf in leaves(value) if isinstance(leaf, np.ndarray)]


def _tolerances(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    kinds = {x.dtype for x in (a, b)}
    if np.dtype(np.float16) in kinds:
        return 1e-3, 1e-3
    return (1e-5, 1e-6) if np.dtype(np.float32) in kinds else (1e-7, 1e-9)


def assert_close(a: Any, b: Any, what: str) -> None:
    """Raise unless two values agree to a few roundings of their own precision.

    Raises
    ------
    Broken
        Also when there is nothing to compare.
    """
    left, right = list(leaves(a)), list(leaves(b))
    if len(left) != len(right) or not left:
        raise Broken(f"{what}: {len(left)} parts against {len(right)}")
    compared = 0
    for (path, x), (_, y) in zip(left, right):
        if x is None and y is None:
            continue
        x, y = np.asarray(x), np.asarray(y)
        compared += x.size
        rtol, atol = _tolerances(x, y)
        numeric = x.dtype.kind in "fciub" and y.dtype.kind in "fciub"
        same = x.shape == y.shape and (
            np.allclose(x, y, rtol=rtol, atol=atol, equal_nan=True)
            if numeric
            else np.array_equal(x, y)
        )
        if not same:
            raise Broken(f"{what}: differs at {path or 'value'}: {_brief(x)} against {_brief(y)}")
    if not compared:
        raise Broken(f"{what}: there is nothing to compare")


def map_arrays(change: Callable[[str, Any], Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return inputs with ``change(name, value)`` in place of each top-level tensor or array."""
    return {
        name: change(name, value) if _is_tensor(value) or isinstance(value, np.ndarray) else value
        for name, value in inputs.items()
    }


def is_floating(value: Any) -> bool:
    """Tell whether a value is a tensor or array of floating-point numbers."""
    if _is_tensor(value):
        return value.is_floating_point()
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def cast(value: Any, dtype: str) -> Any:
    """Return a floating tensor or array as another floating type; anything else as it is."""
    if not is_floating(value):
        return value
    if _is_tensor(value):
        import torch

        return value.to(getattr(torch, dtype))
    return value.astype(dtype)
