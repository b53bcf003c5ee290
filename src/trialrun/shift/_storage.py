"""Keep a fitted estimator as JSON and safetensors; nothing is ever unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sklearn.utils.validation import check_is_fitted
from torch import nn

from trialrun.core.errors import UsageError
from trialrun.shift._atlas import Atlas, Places, Scale
from trialrun.shift._estimator import make_encoder
from trialrun.shift._heads import RelationWeightedHeads
from trialrun.shift._relations import LearnedRelation, Relation
from trialrun.shift._training import Training

FORMAT = "trialrun-d3g-1"
_PLAIN = ("y_mean_", "y_spread_", "n_features_in_", "n_isolated_domains_", "loss_")
_LABELS = ("classes_", "domains_", "feature_names_in_")


def _write_labels(name: str, labels: NDArray) -> dict[str, Any]:
    values = labels.tolist()
    if not all(isinstance(value, str | int | float | bool) for value in values):
        raise UsageError(f"{name} can be saved as strings or numbers only, got {values[0]!r}")
    return {"dtype": "object" if labels.dtype.hasobject else labels.dtype.str, "values": values}


def _settings(estimator: Any) -> dict[str, Any]:
    settings = estimator.get_params(deep=False)
    custom = isinstance(settings["encoder"], nn.Module)
    settings["encoder"] = None if custom else np.atleast_1d(settings["encoder"]).tolist()
    for name in ("relation", "training"):
        if hasattr(settings[name], "get_params"):
            settings[name] = settings[name].get_params()
    state = settings["random_state"]
    settings["random_state"] = int(state) if isinstance(state, int | np.integer) else None
    return settings


def save_estimator(estimator: Any, folder: str | Path) -> None:
    """Write a fitted estimator to ``folder``."""
    check_is_fitted(estimator)
    folder = Path(folder)
    config = {
        "format": FORMAT,
        "class": type(estimator).__name__,
        "settings": _settings(estimator),
        "relation": estimator.atlas_.relation.get_params(),
        "labels": {
            name: _write_labels(name, getattr(estimator, name))
            for name in _LABELS
            if hasattr(estimator, name)
        },
        "plain": {name: getattr(estimator, name) for name in _PLAIN if hasattr(estimator, name)},
        "n_out": estimator.network_.n_out,
        "width": estimator.network_.width,
    }
    tensors = {f"network.{k}": v for k, v in estimator.network_.state_dict().items()}
    if estimator.relation_network_ is not None:
        learned = estimator.relation_network_.state_dict()
        tensors.update({f"relation.{k}": v for k, v in learned.items()})
    arrays = {"x_mean": estimator.x_scale_.mean, "x_spread": estimator.x_scale_.spread}
    if estimator.atlas_.places is not None:
        arrays["metadata"] = estimator.atlas_.places.rows
    if estimator.atlas_.adjacency is not None:
        arrays["adjacency"] = estimator.atlas_.adjacency
    tensors.update({k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items()})
    text = json.dumps(config, indent=1)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "weights.safetensors")
    (folder / "config.json").write_text(text, encoding="utf-8")


def _read(cls: type, folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "weights.safetensors")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"{folder} holds no saved model: expected config.json and weights.safetensors, as "
            "written by save"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise UsageError(f"{folder} holds a damaged model, save it anew: {error}") from error
    found = (config.get("format"), config.get("class")) if isinstance(config, dict) else None
    if found != (FORMAT, cls.__name__):
        raise UsageError(f"{folder} must hold a {cls.__name__} in the format {FORMAT}, got {found}")
    return config, tensors


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def load_estimator(cls: Any, folder: str | Path, encoder: nn.Module | None) -> Any:
    """Read what `save_estimator` wrote into a fitted ``cls``."""
    folder = Path(folder)
    config, tensors = _read(cls, folder)
    settings = config["settings"]
    if settings["encoder"] is None and encoder is None:
        raise UsageError(
            f"the model in {folder} has an encoder of your own: pass load(folder, encoder=module)"
        )
    settings["encoder"] = encoder if settings["encoder"] is None else tuple(settings["encoder"])
    if isinstance(settings["relation"], dict):
        settings["relation"] = Relation(**settings["relation"])
    if settings["training"] is not None:
        settings["training"] = Training(**settings["training"])
    estimator = cls(**settings)
    for name, saved in config["labels"].items():
        setattr(estimator, name, np.array(saved["values"], dtype=saved["dtype"]))
    for name, value in config["plain"].items():
        setattr(estimator, name, value)
    estimator.x_scale_ = Scale(tensors["x_mean"].numpy(), tensors["x_spread"].numpy())
    estimator.atlas_ = _read_atlas(estimator.domains_, config, tensors)
    estimator.network_ = RelationWeightedHeads(
        make_encoder(settings["encoder"], estimator.n_features_in_, 0),
        len(estimator.domains_),
        config["n_out"],
        width=config["width"],
        rank=estimator.rank,
    )
    estimator.network_.load_state_dict(_part(tensors, "network."))
    estimator.network_.eval().requires_grad_(False)
    return estimator


def _read_atlas(labels: NDArray, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Atlas:
    relation, network = Relation(**config["relation"]), None
    adjacency = tensors["adjacency"].numpy() if "adjacency" in tensors else None
    places = Places.of(tensors["metadata"].numpy()) if "metadata" in tensors else None
    learned = _part(tensors, "relation.")
    if learned and places is not None:
        network = LearnedRelation(places.rows.shape[1], heads=relation.heads, width=relation.width)
        network.load_state_dict(learned)
        network.eval().requires_grad_(False)
    return Atlas(labels, relation, places, adjacency, network)
