"""Weights of DeepSeek attention layers, from checkpoints and from transformers models.

Read in transformers 5.23: the classes below compute plain latent attention. The others with the
same hook add gates, sinks, rescaled latents, normalised rotary keys or a choice of keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from trialrun.attention import _mla_stack  # noqa: F401

# isort: split
import torch
from torch import Tensor, nn

from trialrun.blocks.rotary import Rotary
from trialrun.core.errors import UsageError

PLAIN = ("deepseek_v2", "deepseek_v3", "axk1", "glm4_moe_lite", "minicpm3", "youtu")
Module = TypeVar("Module", bound=nn.Module)
_FIXED_ROPE = ("default", "linear", "yarn", "llama3")


def load_attention(module: nn.Module, state: Mapping[str, Tensor], prefix: str) -> None:
    """Copy the weights under ``prefix`` into ``module``, or say which are missing or do not fit."""
    if not isinstance(state, Mapping) or not isinstance(prefix, str):
        raise UsageError(
            f"state must map names to tensors, as a safetensors file does, and prefix be a string, "
            f"got {type(state).__name__} and {prefix!r}"
        )
    own = module.state_dict()
    found = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    missing = [k for k in own if k not in found and not k.endswith("bias")]
    if missing:
        raise UsageError(
            f"the checkpoint lacks {', '.join(prefix + k for k in missing)}: give the prefix of "
            f"one attention layer, such as 'model.layers.0.self_attn.', and the layer's own q_rank"
        )
    extra = [k for k in found if k not in own]
    if extra:
        raise UsageError(
            f"the checkpoint has {', '.join(prefix + k for k in extra)}, for which this module has "
            f"no place: make it with the layer's own q_rank, latent_norm and bias"
        )
    for name, weight in own.items():
        if name in found and found[name].shape != weight.shape:
            raise UsageError(
                f"{prefix}{name} must have shape {tuple(weight.shape)}, got "
                f"{tuple(found[name].shape)}: make the module with the checkpoint's widths"
            )
    with torch.no_grad():
        for name, weight in own.items():
            # DeepSeek's attention_bias leaves some projections without one.
            weight.copy_(found[name]) if name in found else weight.zero_()


def from_transformers(kind: type[Module], model: Any, layer: int) -> Module:
    """Make a module of ``kind`` with the settings and weights of one layer of ``model``."""
    host, rotary = _find(model, layer)
    state = {k: v.detach().clone() for k, v in host.state_dict().items()}
    settings: dict[str, Any] = {
        "nope_dim": host.qk_nope_head_dim,
        "rope_dim": host.qk_rope_head_dim,
        "v_dim": host.v_head_dim,
        "q_rank": host.q_lora_rank,
        "rotary": rotary,
        "scale": float(host.scaling),
        "bias": any(k.endswith("bias") for k in state),
    }
    # The host multiplies both rotated vectors; once on the queries gives the same scores.
    factor = float(_rotary_module(model).attention_scaling) ** 2
    name = "q_proj" if host.q_lora_rank is None else "q_b_proj"
    for key in (f"{name}.weight", f"{name}.bias"):
        if key in state and factor != 1.0:
            state[key].unflatten(0, (host.num_heads, -1))[:, host.qk_nope_head_dim :] *= factor
    made = kind(host.hidden_size, host.num_heads, host.kv_lora_rank, **settings)
    like = state["o_proj.weight"]
    made.to(device=like.device, dtype=like.dtype)
    load_attention(made, state, "")
    for norm in ("q_a_layernorm", "kv_a_layernorm"):
        if getattr(host, norm, None) is not None:
            getattr(made, norm).eps = getattr(host, norm).variance_epsilon
    return made


def _rotary_module(model: nn.Module) -> Any:
    return next(m for n, m in model.named_modules() if n.endswith("rotary_emb"))


def _find(model: Any, layer: int) -> tuple[Any, Rotary]:
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in PLAIN or not isinstance(model, nn.Module):
        raise UsageError(
            f"model must have plain latent attention, as {', '.join(PLAIN)} do, got {kind}"
        )
    found = [m for m in model.modules() if hasattr(m, "kv_b_proj") and hasattr(m, "expand_kv")]
    whole = isinstance(layer, int) and not isinstance(layer, bool)
    if not whole or not 0 <= layer < len(found):
        raise UsageError(f"layer must be a whole number from 0 to {len(found) - 1}, got {layer!r}")
    host: Any = found[layer]
    rotary = _rotary_module(model)
    form = host.config.rope_parameters["rope_type"]
    if form not in _FIXED_ROPE:
        raise UsageError(
            f"the model's rotary angles change with the length (rope_type {form!r}): only "
            f"{', '.join(_FIXED_ROPE)} can be copied"
        )
    config = host.config
    interleaved = config.rope_interleave if hasattr(config, "rope_interleave") else None
    if interleaved is None:
        interleaved = kind == "deepseek_v2"
    table = rotary.inv_freq.to(torch.float32)
    return host, Rotary.from_frequencies(table, interleaved=interleaved)
