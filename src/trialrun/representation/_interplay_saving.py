"""A fitted model as JSON and safetensors, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from trialrun.core.errors import UsageError
from trialrun.representation._interplay_kernels import Fourier, Kernel
from trialrun.representation._interplay_problem import Gram

RANDOM = (np.random.RandomState, np.random.Generator)
_KEPT = {"Gram": ("views",), "Fourier": ("frequencies", "phases")}


def write(model: Any, folder: Path) -> None:
    """Write what ``transform`` of a fitted model needs into ``folder``.

    Raises
    ------
    ValueError
        If the kernel is a function, or its ``kernel_params`` hold what JSON cannot.
    """
    if callable(model.kernel):
        raise UsageError("a kernel that is a function cannot be saved: use a named kernel")
    told = {name: _plain(name, value) for name, value in model.get_params(deep=False).items()
            if name != "augment" and not isinstance(value, RANDOM)}  # fmt: skip
    names = getattr(model, "feature_names_in_", None)
    words = {
        "settings": told, "features": type(model.features_).__name__, "loss": model.loss_,
        "gamma": model.gamma_, "n_features": model.n_features_in_,
        "feature_names": None if names is None else list(names),
        "had_augment": model.augment is not None,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(words), encoding="utf-8")
    arrays = {
        name: getattr(model, f"{name}_")
        for name in ("coef", "offset", "eigenvalues", "invariance", "norms")
    }
    for name in _KEPT[type(model.features_).__name__]:
        value = getattr(model.features_, name)
        if value is not None:
            arrays[f"features.{name}"] = value
    whole = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    save_file(whole, folder / "arrays.safetensors")


def read(kind: Any, folder: Path) -> Any:
    """Return the model of class ``kind`` that `write` left in ``folder``."""
    words = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    arrays = load_file(folder / "arrays.safetensors")
    made = kind(**words["settings"])
    made.n_features_in_, made.loss_, made.gamma_ = (
        words["n_features"], words["loss"], words["gamma"],
    )  # fmt: skip
    made._lost_augment = words["had_augment"]
    if words["feature_names"] is not None:
        made.feature_names_in_ = np.array(words["feature_names"], dtype=object)
    for name in ("coef", "offset", "eigenvalues", "invariance", "norms"):
        setattr(made, f"{name}_", arrays[name])
    made.collapsed_ = ~(made.eigenvalues_ > 0)
    kernel = Kernel.read(made.kernel, made.gamma_, made.kernel_params, made.n_features_in_)
    kept: dict[str, Any] = {
        name: arrays.get(f"features.{name}") for name in _KEPT[words["features"]]
    }
    if words["features"] == "Fourier":
        made.features_ = Fourier(**kept)
    else:
        made.features_ = Gram(kernel, **kept)
    return made


def _plain(name: str, value: Any) -> Any:
    """Return a setting as JSON holds it, numpy's scalars as numbers.

    Raises
    ------
    ValueError
        For what a file of settings cannot hold.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, dict):
        return {key: _plain(f"{name}[{key!r}]", one) for key, one in value.items()}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise UsageError(
        f"{name} must be text, a number, True, False or None to be saved, got {value!r}"
    )
