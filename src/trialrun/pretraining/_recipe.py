"""A recipe file: what to train, on what, in which phases, and where to keep it.

YAML with a fixed set of keys; anything else is refused, so that a misspelt ``warm_up`` cannot pass
for no warm-up. Paths are relative to the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from trialrun.pretraining import _stack  # noqa: F401  isort: skip
import torch
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedConfig

from trialrun.core.errors import UsageError
from trialrun.core.extras import need
from trialrun.core.seeds import split
from trialrun.pretraining._deepen import deepen, deepen_model
from trialrun.pretraining._loading import BROKEN, load_model
from trialrun.pretraining._phases import Phase, Phases, Rate
from trialrun.pretraining._sources import (
    Vocabulary,
    byte_vocabulary,
    hub_vocabulary,
    open_source,
)
from trialrun.pretraining._training import Optimiser, Saving

PRECISIONS = ("no", "bf16")


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """Which model to start from.

    Parameters
    ----------
    config : mapping or None
        Settings of a new Mistral, drawn from the seed.
    start : str or None
        A transformers folder or hub id to go on from; just one of ``config`` and ``start``.
    layers : int or None
        Deepen to so many layers, see `deepen`.
    placement : str
        See `layer_map`.
    recompute : bool
        Recompute activations in the backward pass (gradient checkpointing): less memory, more
        time.
    """

    config: Mapping[str, Any] | None = None
    start: str | None = None
    layers: int | None = None
    placement: str = "spread"
    recompute: bool = False

    def __post_init__(self) -> None:
        if (self.config is None) == (self.start is None):
            raise UsageError("model must have either config or start, and not both")

    def make(self, *, seed: int) -> Any:
        """Return the model, in float32; a new one's weights depend on ``seed`` alone.

        Raises
        ------
        UsageError
            If the model cannot be read or built, or one that is read lacks weights.
        """
        if self.start is not None:
            model = load_model(self.start, dtype=torch.float32)
            if self.layers is not None:
                model = deepen_model(model, layers=self.layers, placement=self.placement)
        else:
            config: PreTrainedConfig = _mistral(self.config or {})
            if self.layers is not None:
                config = deepen(config, layers=self.layers, placement=self.placement)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(split(seed, "weights"))
                try:
                    model = AutoModelForCausalLM.from_config(config)
                except BROKEN as error:
                    words = " ".join(str(error).split())
                    raise UsageError(f"model.config makes no Mistral: {words}") from error
        if self.recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return model


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run.

    Parameters
    ----------
    model : ModelPlan
    sources : mapping of name to path
        ``.npy`` token files (see `write_tokens`) or ``.jsonl`` chats or pairs.
    phases : Phases
    saving : Saving
    optimiser : Optimiser
    seed : int
    precision : str
        ``no`` (float32) or ``bf16`` (weights stay float32, products in bfloat16).
    micro_batch : int
        Most sequences one process puts through the model at once.
    vocabulary : str
        ``bytes``, or a tokenizer's folder or hub id, for chats and pairs.
    """

    model: ModelPlan
    sources: Mapping[str, Path]
    phases: Phases
    saving: Saving
    optimiser: Optimiser
    seed: int = 0
    precision: str = "no"
    micro_batch: int = 8
    vocabulary: str = "bytes"

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UsageError(f"seed must be 0 or above, got {self.seed}")
        if self.micro_batch < 1:
            raise UsageError(f"micro_batch must be at least 1 sequence, got {self.micro_batch}")

    def open_sources(self) -> dict[str, Any]:
        """Return the sources, opened but not read."""
        return {name: open_source(path) for name, path in self.sources.items()}

    def check_vocabulary(self, model: Any) -> None:
        """Refuse bytes for chats and pairs of a model that was not made for them."""
        talks = [phase.name for phase in self.phases.phases if phase.objective != "text"]
        size = byte_vocabulary().size
        if self.model.start is None or self.vocabulary != "bytes" or not talks:
            return
        if model.config.vocab_size != size:
            raise UsageError(
                f"vocabulary must be the tokenizer of {self.model.start!r} for phase "
                f"{talks[0]!r}, got bytes, which take a model of {size} tokens and not "
                f"{model.config.vocab_size}"
            )

    def open_vocabulary(self) -> Vocabulary:
        """Return the vocabulary that chats and pairs are encoded with."""
        return byte_vocabulary() if self.vocabulary == "bytes" else hub_vocabulary(self.vocabulary)


def read_recipe(path: Path | str) -> Recipe:
    """Read a recipe file and check it, before anything is loaded.

    Parameters
    ----------
    path : path of a YAML file

    Raises
    ------
    UsageError
        Naming the key, what was expected and what came.
    """
    path = Path(path)
    yaml = need("yaml", extra="pretraining")
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"no recipe at {path}: give the path of a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        words = " ".join(str(error).split())
        raise UsageError(f"{path} is not valid YAML: {words}") from error
    return parse_recipe(table, home=path.parent)


def parse_recipe(table: Any, *, home: Path) -> Recipe:
    """Check what a recipe file holds; relative paths start at ``home``.

    Raises
    ------
    UsageError
        Naming the key, what was expected and what came.
    """
    known = ("out", "save_every", "keep", *(f.name for f in fields(Recipe) if f.name != "saving"))
    _check_keys("recipe", table, known, ("out", "model", "sources", "phases"))
    sources = _table("sources", table["sources"])
    if not sources:
        raise UsageError("sources must name at least one file, got none")
    precision = table.get("precision", "no")
    # YAML reads a bare no as false.
    precision = "no" if precision is False else precision
    if precision not in PRECISIONS:
        raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    rows = table["phases"]
    if not isinstance(rows, list):
        raise UsageError(f"phases must be a list, got {rows!r}")
    model = dict(_table("model", table["model"]))
    for key in ("start",):
        if isinstance(model.get(key), str) and (home / model[key]).is_dir():
            model[key] = str(home / model[key])
    saving = {"folder": home / _value("out", str, table["out"])}
    saving |= {
        to: _count(key, table[key])
        for key, to in (("save_every", "every"), ("keep", "keep"))
        if key in table
    }
    plain = {key: table[key] for key in ("seed", "micro_batch", "vocabulary") if key in table}
    return Recipe(
        model=_make(ModelPlan, "model", model),
        sources={n: home / _value(f"sources.{n}", str, p) for n, p in sources.items()},
        phases=Phases([_phase(i, row, home) for i, row in enumerate(rows)]),
        saving=Saving(**saving),
        optimiser=_make(Optimiser, "optimiser", table.get("optimiser", {})),
        precision=precision,
        **{key: _value(key, str if key == "vocabulary" else int, v) for key, v in plain.items()},
    )


def _phase(index: int, row: Any, home: Path) -> Phase:
    where = f"phases[{index}]"
    _check_keys(where, row, _names(Phase), _required(Phase))
    row = dict(row)
    row["rate"] = _make(Rate, f"{where}.rate", row["rate"])
    row["mixture"] = {
        name: _value(f"{where}.mixture.{name}", float, weight)
        for name, weight in _table(f"{where}.mixture", row["mixture"]).items()
    }
    if isinstance(row.get("reference"), str):
        row["reference"] = str(home / row["reference"])
    return _make(Phase, where, row)


def _make(cls: Any, where: str, table: Any) -> Any:
    _check_keys(where, table, _names(cls), _required(cls))
    kinds = {"int": int, "float": float, "str": str, "bool": bool}
    values = {}
    for field in fields(cls):
        if field.name in table:
            kind = kinds.get(str(field.type).removesuffix(" | None"))
            value = table[field.name]
            values[field.name] = (
                value if kind is None else _value(f"{where}.{field.name}", kind, value)
            )
    try:
        return cls(**values)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error


def _value(where: str, kind: type, value: Any) -> Any:
    allowed: tuple[type, ...] = (int, float) if kind is float else (kind,)
    if not isinstance(value, allowed) or (kind is not bool and isinstance(value, bool)):
        hint = ": write 3.0e-4 for a number" if kind is float and isinstance(value, str) else ""
        raise UsageError(f"{where} must be of type {kind.__name__}, got {value!r}{hint}")
    return float(str(value)) if kind is float else value


def _count(where: str, value: Any) -> int:
    if _value(where, int, value) < 1:
        raise UsageError(f"{where} must be at least 1, got {value}")
    return int(value)


def _table(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{where} must be a table, got {value!r}")
    return value


def _names(cls: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(cls))


def _required(cls: Any) -> tuple[str, ...]:
    return tuple(f.name for f in fields(cls) if f.default is MISSING)


def _check_keys(where: str, table: Any, known: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    for key in _table(where, table):
        if key not in known:
            raise UsageError(f"{where} has the unknown key {key!r}: it takes {', '.join(known)}")
    missing = [key for key in wanted if key not in table]
    if missing:
        raise UsageError(f"{where} lacks {', '.join(missing)}")


def _mistral(settings: Mapping[str, Any]) -> MistralConfig:
    known = set(MistralConfig().to_dict())
    unknown = [key for key in settings if key not in known]
    if unknown:
        raise UsageError(
            f"model.config has the unknown key {unknown[0]!r}: it takes the settings of "
            f"transformers' MistralConfig"
        )
    try:
        config = MistralConfig(**settings)
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        epsilon = float(config.rms_norm_eps)
        sizes = {"num_attention_heads": heads, "num_key_value_heads": groups}
    except (*BROKEN, ZeroDivisionError) as error:
        words = " ".join(str(error).split())
        raise UsageError(f"model.config makes no Mistral: {words}") from error
    for key, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise UsageError(f"model.config.{key} must be a whole number from 1 up, got {value!r}")
    if heads % groups:
        raise UsageError(
            f"model.config.num_attention_heads must be a multiple of num_key_value_heads {groups}, "
            f"got {heads}"
        )
    if not epsilon > 0:
        raise UsageError(f"model.config.rms_norm_eps must be above 0, got {epsilon}")
    return config
