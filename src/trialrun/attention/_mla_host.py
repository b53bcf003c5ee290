"""How absorbed attention sits in transformers models that cache latents.

Read in transformers 5.23: seventeen model files write latents and rotated keys to the cache, then
call ``expand_kv`` on all of them at every step, then an attention function chosen by the config.
Both are replaced, ``expand_kv`` on the instance by one that hands the latents on, and the function
by one that absorbs them or, for many new tokens, expands them after all and calls the model's own.
What a model does before and after (rescaled latents, normalised or absent rotary keys, gates,
choosing keys by an indexer) stays its own code.
"""

from __future__ import annotations

from trialrun.attention import _mla_stack  # noqa: F401

# isort: split
import sys
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from trialrun.attention._mla_cache import check_held
from trialrun.attention._mla_core import (
    absorbing_is_cheaper,
    into_latent,
    mix_latents,
    out_of_latent,
    per_head,
)
from trialrun.core.errors import UsageError

SERVED = (
    "axk1",
    "axk2",
    "bailing_hybrid",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "dots3_note",
    "glm4_moe_lite",
    "glm5_next",
    "glm_moe_dsa",
    "hy_v4",
    "kimi_linear",
    "longcat_flash",
    "minicpm3",
    "mistral4",
    "mistral_large4",
    "youtu",
)
BACKENDS = ("eager", "sdpa")
PLAN = "_absorbed_mla"
_OWN = {name: f"trialrun_absorbed_mla_{name}" for name in BACKENDS}
# Settings of attention functions that only the model's own function knows how to follow.
_FOREIGN = ("softcap", "position_bias", "cache")


def check_host(model: Any) -> list[Any]:
    """Return the model's latent attention modules, or say why they cannot be served.

    Raises
    ------
    ValueError
        With what was found and the remedy.
    """
    config = getattr(model, "config", None)
    if not isinstance(model, nn.Module) or config is None:
        raise UsageError(f"model must be a transformers model, got {type(model).__name__}")
    kind = getattr(config, "model_type", type(model).__name__)
    found = [m for m in model.modules() if hasattr(type(m), "expand_kv")]
    if not found:
        raise UsageError(
            f"{kind} keeps no latent cache to absorb: convert_to_mla makes one of a Llama-like "
            f"model, and AbsorbedMLA serves {', '.join(SERVED)}"
        )
    for module in found:
        _check_module(module)
    return found


def _check_module(module: Any) -> None:
    name = type(module).__name__
    family = type(module).__module__.rpartition(".")[2].removeprefix("modeling_")
    if hasattr(module, "absorbs"):
        raise UsageError(f"{name} chooses absorbed attention by itself: it needs no patch")
    if family not in SERVED:
        raise UsageError(f"AbsorbedMLA was not tested on {name}: it serves {', '.join(SERVED)}")
    implementation = module.config._attn_implementation
    if implementation in _OWN.values():
        raise UsageError(
            f"{name} shares its config with a model that AbsorbedMLA is attached to: give each "
            f"model its own copy of the config, made with copy.deepcopy before attaching"
        )
    if implementation not in BACKENDS:
        raise UsageError(
            f"AbsorbedMLA works with the attention implementations {' and '.join(BACKENDS)}, got "
            f"{implementation!r}: call model.set_attn_implementation('sdpa') first"
        )
    if "expand_kv" in vars(module):
        raise UsageError(
            f"expand_kv of {name} was replaced by another kernel: load the model with "
            f"use_kernels=False"
        )
    up = module.kv_b_proj
    if type(up) is not nn.Linear or not up.weight.is_floating_point():
        raise UsageError(
            f"kv_b_proj of {name} must be a torch.nn.Linear of floats, got {_described(up)}: "
            f"dequantize the model, or merge its adapters, first"
        )
    if up.weight.device.type == "meta":
        raise UsageError(
            f"the weights of {name} are not in memory: load the model without offloading"
        )


def _described(layer: Any) -> str:
    """Name a layer's class in full, and the dtype that makes a plain one unfit."""
    if type(layer) is nn.Linear:
        return f"torch.nn.Linear of {layer.weight.dtype}"
    return f"{type(layer).__module__}.{type(layer).__qualname__}"


def install(module: Any, max_query: int | None) -> Any:
    """Make one module hand latents on; return the handle of its check of caches."""
    vars(module)[PLAN] = max_query
    module.expand_kv = MethodType(_hand_on, module)
    return module.register_forward_pre_hook(_check_cache, with_kwargs=True)


def uninstall(module: Any) -> None:
    """Undo `install`."""
    hooks = module._forward_pre_hooks
    for key in [k for k, hook in hooks.items() if hook is _check_cache]:
        del hooks[key]
        module._forward_pre_hooks_with_kwargs.pop(key, None)
    for name in (PLAN, "expand_kv"):
        vars(module).pop(name, None)


def register() -> None:
    """Tell transformers the names that stand for absorbed attention; harmless to repeat."""
    for base, own in _OWN.items():
        ALL_ATTENTION_FUNCTIONS.register(own, partial(_attend, base=base))
        ALL_MASK_ATTENTION_FUNCTIONS.register(own, ALL_MASK_ATTENTION_FUNCTIONS[base])


def switch(config: Any) -> None:
    """Let ``config`` choose absorbed attention; sub-configs keep what they have."""
    config._attn_implementation_internal = _OWN[config._attn_implementation]


def switch_back(config: Any, implementation: str) -> None:
    """Undo `switch`."""
    config._attn_implementation_internal = implementation


def _hand_on(self: Any, kv_nope: Tensor, k_rot: Tensor) -> tuple[Tensor, Tensor]:
    if self.config._attn_implementation not in _OWN.values():
        raise UsageError(
            f"the attention implementation was changed to {self.config._attn_implementation!r} "
            f"while AbsorbedMLA is attached: detach first, change it, and attach again"
        )
    return kv_nope, k_rot


def _check_cache(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Say so where the cache holds another model's keys, before they meet this model's."""
    hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    check_held(kwargs.get("past_key_values"), module, hidden)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    *,
    base: str,
    **rest: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend in place of ``base``; ``key`` and ``value`` are latents and rotated keys."""
    mine = PLAN in vars(module)
    own = _own_function(module, base)
    if not mine:
        # A module without latents that shares the config of one that has them.
        return own(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **rest
        )
    chosen = rest.pop("indices", None)
    mask = _causal(module, query, key, attention_mask, base, rest.get("is_causal"))
    if chosen is not None:
        attention_mask = mask = _only_chosen(mask, chosen, key.shape[2])
    foreign = any(rest.get(name) is not None for name in _FOREIGN)
    if dropout or foreign or not _absorbs(module, query.shape[2], key.shape[2]):
        k, v = type(module).expand_kv(module, key, value)
        return own(module, query, k, v, attention_mask, scaling=scaling, dropout=dropout, **rest)
    if chosen is not None and query.shape[2] == 1 and chosen.shape[-1] < key.shape[2]:
        key, value, mask = _gather(key, value, mask, chosen)
    return _absorbed(module, query, (key, value), mask, scaling, base, rest.get("s_aux"))


def _absorbed(
    module: Any,
    query: Tensor,
    cache: tuple[Tensor, Tensor],
    mask: Tensor | None,
    scaling: float,
    base: str,
    sinks: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    nope = query.shape[-1] - cache[1].shape[-1]
    up_key, up_value = per_head(module.kv_b_proj.weight, query.shape[1], nope)
    mixed = mix_latents(
        (into_latent(query[..., :nope], up_key), query[..., nope:]),
        (cache[0][:, 0], cache[1][:, 0]),
        scale=scaling,
        mask=mask,
        sinks=sinks,
        whole=base == "eager",
    )
    out = out_of_latent(mixed.latent, up_value).to(query.dtype).transpose(1, 2).contiguous()
    return out, mixed.weights.to(query.dtype) if mixed.weights is not None else None


def _absorbs(module: Any, query: int, cached: int) -> bool:
    limit = vars(module)[PLAN]
    if limit is not None:
        return query <= limit
    widths = (module.kv_lora_rank, module.qk_nope_head_dim, module.v_head_dim)
    return absorbing_is_cheaper(*widths, query=query, cached=cached)


def _own_function(module: Any, base: str) -> Any:
    if base == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[base]


def _causal(
    module: Any, query: Tensor, key: Tensor, mask: Tensor | None, base: str, causal: bool | None
) -> Tensor | None:
    """Return the mask that the function ``base`` would follow."""
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if mask is not None or base != "sdpa" or query.shape[2] == 1 or not causal:
        return mask
    square = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
    return square.tril(key.shape[2] - query.shape[2])[None, None]


def _only_chosen(mask: Tensor | None, chosen: Tensor, total: int) -> Tensor:
    """Hide all keys but those at ``chosen`` (batch, query, number) from a mask."""
    picked = torch.zeros(*chosen.shape[:2], total, dtype=torch.bool, device=chosen.device)
    picked = picked.scatter_(-1, chosen.long(), True).unsqueeze(1)
    if mask is None:
        return picked
    if mask.dtype == torch.bool:
        return mask & picked
    return mask.masked_fill(~picked, torch.finfo(mask.dtype).min)


def _gather(
    key: Tensor, value: Tensor, mask: Tensor | None, chosen: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keep only the chosen keys of a single query, so that a step costs no more than they do."""
    at = chosen.long()  # (batch, 1, number)
    some = (x.gather(2, at.unsqueeze(-1).expand(-1, -1, -1, x.shape[-1])) for x in (key, value))
    if mask is not None:
        mask = mask.expand(at.shape[0], -1, -1, -1).gather(3, at.unsqueeze(1))
    latent, turned = some
    return latent, turned, mask
