"""More layers for a decoder that exists: the config, which layer copies which, and the weights.

zhao2024moxin (digest and project page) has 36 blocks where Mistral has 32 and says no more; how
such a model gets its weights is ours. Two placements are common in the literature (from memory):
copies spread through the stack, with their outputs at zero at first, so that the deeper model
starts as the source (block expansion); and two overlapping stacks on top of each other (depth
up-scaling), which does not start as the source.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trialrun.pretraining import _stack  # noqa: F401  isort: skip
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from trialrun.core.errors import UsageError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
PLACEMENTS = ("spread", "stack")
_LAYERS = "model.layers."
_OUTPUTS = ("self_attn.o_proj.", "mlp.down_proj.")


@dataclass(frozen=True, kw_only=True)
class LayerMap:
    """Say where each layer of a deepened model comes from.

    Parameters
    ----------
    copies : tuple of int
        For each new layer, the source layer whose weights it starts with.
    inserted : tuple of int
        Places, in the new model, of the layers that are second copies.
    silent : bool
        Whether the inserted layers' output projections start at zero, so that each adds nothing
        to its input and the deepened model equals the source.
    """

    copies: tuple[int, ...]
    inserted: tuple[int, ...]
    silent: bool

    def source_of(self, name: str) -> tuple[str, bool]:
        """Return the source's name for a weight of the deepened model, and whether it is zero."""
        if not name.startswith(_LAYERS):
            return name, False
        place, _, rest = name.removeprefix(_LAYERS).partition(".")
        zero = self.silent and int(place) in self.inserted and rest.startswith(_OUTPUTS)
        return f"{_LAYERS}{self.copies[int(place)]}.{rest}", zero


def layer_map(
    source: int, layers: int, *, placement: str = "spread", silent: bool | None = None
) -> LayerMap:
    """Choose which source layer each layer of a deeper model copies.

    Parameters
    ----------
    source : int
        Layers of the model that is there, at least 1.
    layers : int
        Layers wanted, from ``source`` to twice ``source``.
    placement : str
        ``spread`` puts a copy right behind its source at even distances; ``stack`` puts the last
        ``layers // 2`` source layers on top of the first ``layers - layers // 2``.
    silent : bool or None
        Whether copies start with zero output projections. None means yes for ``spread`` and no
        for ``stack``, whose copies have no place of their own.

    Raises
    ------
    UsageError
        For fewer layers than the source has, more than twice as many, an unknown placement, or
        ``silent`` together with ``stack``.

    Examples
    --------
    >>> layer_map(4, 6).copies, layer_map(4, 6).inserted
    ((0, 1, 1, 2, 3, 3), (2, 5))
    >>> layer_map(4, 6, placement="stack").copies
    (0, 1, 2, 1, 2, 3)
    """
    for name, value in (("source", source), ("layers", layers)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise UsageError(f"{name} must be a whole number of layers, got {value!r}")
    if source < 1:
        raise UsageError(f"source must be at least 1 layer, got {source}")
    if layers < source:
        raise UsageError(
            f"layers must be at least the source's {source}, got {layers}: deepening adds layers, "
            f"it takes none away"
        )
    if layers > 2 * source:
        raise UsageError(
            f"layers must be at most twice the source's {source}, got {layers}: deepen in two steps"
        )
    if placement not in PLACEMENTS:
        raise UsageError(f"placement must be one of {', '.join(PLACEMENTS)}, got {placement!r}")
    if placement == "stack":
        if silent:
            raise UsageError(
                "silent must be False for placement 'stack', got True: take placement 'spread' to "
                "start as the source"
            )
        top = layers // 2
        copies = (*range(layers - top), *range(source - top, source))
        return LayerMap(copies=copies, inserted=tuple(range(source, layers)), silent=False)
    extra = layers - source
    doubled = {source * (i + 1) // extra - 1 for i in range(extra)}
    copies = tuple(i for i in range(source) for _ in range(1 + (i in doubled)))
    inserted = tuple(p for p in range(1, layers) if copies[p] == copies[p - 1])
    return LayerMap(copies=copies, inserted=inserted, silent=silent is not False)


def deepen(
    config: PreTrainedConfig, *, layers: int = 36, placement: str = "spread"
) -> PreTrainedConfig:
    """Return a decoder's config with more layers and everything else as it was.

    The paper's model is Mistral-7B's config at 36 layers (zhao2024moxin).

    Parameters
    ----------
    config : Mistral, Llama, Qwen2 or Qwen3 config
    layers : int
        Layers wanted, from the config's own number to twice that.
    placement : str
        ``spread`` or ``stack``, as in `layer_map`; it matters here only where layers differ in
        kind (``layer_types``).

    Raises
    ------
    UsageError
        If ``config`` is none or of another family, or ``layers`` is out of range.

    Examples
    --------
    >>> from transformers import MistralConfig
    >>> deepen(MistralConfig()).num_hidden_layers
    36
    """
    check_config(config)
    _check_family(config)
    plan = layer_map(config.num_hidden_layers, layers, placement=placement)
    deeper = copy.deepcopy(config)
    deeper.num_hidden_layers = layers
    kinds = getattr(config, "layer_types", None)
    if kinds:
        deeper.layer_types = [kinds[i] for i in plan.copies]
    return deeper


def deepen_model(
    model: Any, *, layers: int = 36, placement: str = "spread", silent: bool | None = None
) -> Any:
    """Build a deeper copy of a loaded model (zhao2024moxin); the model itself is left as it is.

    Parameters
    ----------
    model : causal language model of transformers
        Mistral, Llama, Qwen2 or Qwen3.
    layers : int
        Layers wanted, from the model's own number to twice that.
    placement : str
        ``spread`` or ``stack``, see `layer_map`.
    silent : bool or None
        Whether inserted layers start with zero output projections, so that the deeper model gives
        the source's logits bit for bit. None means yes for ``spread``.

    Returns
    -------
    causal language model
        On the same device, in the same dtype and mode; no weight is shared with the source.

    Raises
    ------
    UsageError
        If ``model`` is no causal language model or of another family, or ``layers`` is out of
        range.

    Examples
    --------
    >>> from transformers import MistralConfig, MistralForCausalLM
    >>> small = MistralConfig(vocab_size=8, hidden_size=8, intermediate_size=8,
    ...                       num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
    >>> deepen_model(MistralForCausalLM(small), layers=3).config.num_hidden_layers
    3
    """
    _check_model(model)
    config = model.config
    _check_family(config)
    plan = layer_map(config.num_hidden_layers, layers, placement=placement, silent=silent)
    deeper = empty_model(deepen(config, layers=layers, placement=placement))
    weights = dict(deepened_weights(plan, model.state_dict(), deeper.state_dict()))
    # Assigning leaves alone what is no weight, such as the rotary table made below.
    deeper.load_state_dict(weights, strict=True, assign=True)
    deeper.tie_weights()
    deeper.model.rotary_emb = copy.deepcopy(model.model.rotary_emb)
    deeper.generation_config = copy.deepcopy(model.generation_config)
    for mine, theirs in zip(deeper.parameters(), _parameters(plan, model, deeper)):
        mine.requires_grad_(theirs.requires_grad)
    return deeper.train(model.training)


def _parameters(plan: LayerMap, model: Any, deeper: Any) -> Iterator[Tensor]:
    source = dict(model.named_parameters())
    for name, _ in deeper.named_parameters():
        yield source[plan.source_of(name)[0]]


def empty_model(config: PreTrainedConfig) -> Any:
    """Build a model on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def deepened_weights(
    plan: LayerMap, source: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight of the deepened model, copied from its source layer or zero."""
    for name in wanted:
        origin, zero = plan.source_of(name)
        weight = source[origin].detach()
        yield name, torch.zeros_like(weight) if zero else weight.clone()


def check_config(config: Any) -> None:
    """Raise unless ``config`` is a config of transformers."""
    if isinstance(config, PreTrainedConfig):
        return
    held = isinstance(getattr(config, "config", None), PreTrainedConfig)
    remedy = "give model.config" if held else "load one with AutoConfig.from_pretrained"
    raise UsageError(f"config must be a transformers config, got {type(config).__name__}: {remedy}")


def _check_model(model: Any) -> None:
    if isinstance(model, PreTrainedModel) and model.get_output_embeddings() is not None:
        return
    remedy = "load one with AutoModelForCausalLM.from_pretrained"
    if isinstance(model, PreTrainedConfig):
        remedy = "deepen takes configs"
    elif isinstance(model, str | Path):
        remedy += ", or give a folder to deepen_checkpoint"
    raise UsageError(
        f"model must be a causal language model of transformers, got {type(model).__name__}: "
        f"{remedy}"
    )


def _check_family(config: Any) -> None:
    family = getattr(config, "model_type", None)
    if family not in FAMILIES:
        raise UsageError(
            f"the model must be one of {', '.join(FAMILIES)}, got {family or type(config).__name__}"
        )
