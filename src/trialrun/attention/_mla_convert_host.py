"""What a conversion reads from its host: checks, weights, and the inputs of its attention."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from trialrun.attention import _mla_stack  # noqa: F401

# isort: split
import torch
from torch import Tensor, nn

from trialrun.attention._mla_convert_model import LatentLlamaConfig
from trialrun.attention._mla_convert_parts import Projections
from trialrun.core.errors import UsageError

HOSTS = ("llama", "mistral", "qwen2")
BACKENDS = ("eager", "sdpa", "flex_attention")
_KEPT = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "rope_parameters",
    "attention_dropout",
    "mlp_bias",
)


def check_host(model: Any, *, weights: bool = True) -> None:
    """Raise unless ``model`` can be converted; its weights are looked at unless told not to.

    Raises
    ------
    ValueError
        With what was found and the remedy.
    """
    config = getattr(model, "config", None)
    if not isinstance(model, nn.Module) or config is None:
        raise UsageError(f"model must be a transformers model, got {type(model).__name__}")
    kind = getattr(config, "model_type", type(model).__name__)
    if getattr(config, "kv_lora_rank", None) is not None:
        raise UsageError(
            f"model has a latent cache already (model_type {kind}): nothing to convert"
        )
    if kind not in HOSTS or not hasattr(model, "lm_head"):
        raise UsageError(
            f"convert_to_mla serves {', '.join(HOSTS)} models for causal language modelling, got "
            f"{type(model).__name__} (model_type {kind})"
        )
    if config._attn_implementation not in BACKENDS:
        raise UsageError(
            f"convert_to_mla works with the attention implementations {', '.join(BACKENDS)}, got "
            f"{config._attn_implementation!r}: detach what is attached to the model and call "
            f"model.set_attn_implementation('sdpa') first"
        )
    layers = getattr(config, "layer_types", None) or ()
    if getattr(config, "sliding_window", None) is not None or "sliding_attention" in layers:
        raise UsageError(
            f"the model's config has an active sliding window of {config.sliding_window} tokens: "
            f"load it with sliding_window=None (Qwen: use_sliding_window=False)"
        )
    decoder: Any = model.model
    for layer in decoder.layers if weights else ():
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            _check_linear(name, getattr(layer.self_attn, name, None))
    for name, weight in model.named_parameters() if weights else ():
        if not weight.is_meta and not bool(weight.isfinite().all()):
            bad = int((~weight.isfinite()).sum())
            raise UsageError(
                f"weights must be finite, got {bad} NaN or infinite of {weight.numel()} in {name}: "
                f"load the checkpoint again, or from one that is whole"
            )


def _check_linear(name: str, linear: Any) -> None:
    weight = getattr(linear, "weight", None)
    if type(linear) is not nn.Linear or not isinstance(weight, Tensor):
        raise UsageError(
            f"{name} must be a plain linear layer, got {type(linear).__name__}: merge adapters and "
            f"load the model without quantisation first"
        )
    if weight.is_meta or not weight.is_floating_point():
        raise UsageError(
            f"{name} must hold floating-point weights in memory, got "
            f"{'the meta device' if weight.is_meta else weight.dtype}: load the model in full"
        )


def projections(attention: Any) -> Projections:
    """Return one layer's projections in float64, biases as a last column."""
    dim = attention.head_dim

    def heads(linear: nn.Linear) -> Tensor:
        weight = linear.weight.detach().to(torch.float64)
        return torch.cat((weight, _bias(linear)[:, None]), dim=1).view(-1, dim, weight.shape[1] + 1)

    out = attention.o_proj
    o = out.weight.detach().to(torch.float64).view(out.weight.shape[0], -1, dim)
    q, k, v = (heads(getattr(attention, name)) for name in ("q_proj", "k_proj", "v_proj"))
    return Projections(q, k, v, o, _bias(out))


def _bias(linear: nn.Linear) -> Tensor:
    if linear.bias is not None:
        return linear.bias.detach().to(torch.float64)
    return torch.zeros(linear.out_features, dtype=torch.float64, device=linear.weight.device)


def latent_config(model: Any, *, kv_rank: int, rope_dims: int) -> LatentLlamaConfig:
    """Return the config of the converted model.

    The output has a bias always: it carries the mean of the values, which costs nothing.
    """
    host = model.config
    attention = model.model.layers[0].self_attn
    config = LatentLlamaConfig(
        **{name: deepcopy(getattr(host, name)) for name in _KEPT if hasattr(host, name)},
        head_dim=attention.head_dim,
        kv_lora_rank=kv_rank,
        qk_rope_head_dim=rope_dims,
        query_bias=attention.q_proj.bias is not None,
        rotary_key_bias=attention.k_proj.bias is not None,
        output_bias=True,
        converted_from=host.model_type,
        dtype=model.dtype,
    )
    config._attn_implementation = host._attn_implementation
    return config


def as_batches(calibration: Any, vocabulary: int) -> list[dict[str, Tensor]]:
    """Return the calibration as mappings of ``input_ids`` and perhaps ``attention_mask``.

    Raises
    ------
    ValueError
        If there is no token in it, or something in it is no batch of token ids.
    """
    if isinstance(calibration, Tensor | Mapping):
        calibration = [calibration]
    if not isinstance(calibration, Iterable) or isinstance(calibration, str | bytes):
        raise UsageError(
            f"calibration must be token ids of shape (batch, time), a mapping with input_ids or a "
            f"list of either, got {type(calibration).__name__}"
        )
    batches = []
    for item in calibration:
        given = item if isinstance(item, Mapping) else {"input_ids": item}
        ids = given.get("input_ids")
        if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point():
            got = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
            raise UsageError(
                f"calibration must hold token ids, an int tensor of shape (batch, time), got {got}"
            )
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
            raise UsageError(
                f"calibration ids must be in 0..{vocabulary - 1}, got {int(ids.min())} to "
                f"{int(ids.max())}: use the model's own tokenizer"
            )
        mask = given.get("attention_mask")
        if mask is not None and (not isinstance(mask, Tensor) or mask.shape != ids.shape):
            got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise UsageError(
                f"attention_mask must be a tensor of the shape of input_ids {tuple(ids.shape)}, "
                f"got {got}"
            )
        tokens = ids.numel() if mask is None else int(mask.sum())
        if tokens:
            batches.append({"input_ids": ids} | ({} if mask is None else {"attention_mask": mask}))
    if not batches:
        raise UsageError("calibration is empty: pass token ids of shape (batch, time)")
    return batches


@torch.no_grad()
def input_moments(model: Any, batches: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
    """Return for each layer the mean of x x', x being an attention input with a 1 appended."""
    layers = model.model.layers
    sums: list[Any] = [0.0] * len(layers)
    real: Tensor | None = None

    def watch(index: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            rows = hidden.flatten(0, 1) if real is None else hidden[real]
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            rows = torch.cat((rows, rows.new_ones(len(rows), 1)), dim=1)
            sums[index] = sums[index] + rows.T @ rows

        return hook

    modes = [(module, module.training) for module in model.modules()]
    handles = [
        layer.self_attn.register_forward_pre_hook(watch(n), with_kwargs=True)
        for n, layer in enumerate(layers)
    ]
    tokens = 0
    try:
        model.eval()
        for batch in batches:
            inputs = {name: x.to(model.device) for name, x in batch.items()}
            mask = inputs.get("attention_mask")
            real = None if mask is None else mask.bool()
            tokens += inputs["input_ids"].numel() if mask is None else int(mask.sum())
            model(**inputs, use_cache=False, logits_to_keep=1)
    finally:
        for module, training in modes:
            module.training = training
        for handle in handles:
            handle.remove()
    return [total / tokens for total in sums]


def check_ids(ids: Any) -> None:
    """Raise unless ``ids`` can be scored."""
    right = isinstance(ids, Tensor) and not ids.is_floating_point() and ids.dim() == 2
    if not right or ids.shape[0] < 1 or ids.shape[1] < 2:
        got = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise UsageError(
            f"ids must be an int tensor of shape (batch, time) with at least two tokens a row, got "
            f"{got}"
        )


@torch.no_grad()
def mean_loss(model: Any, ids: Tensor, *, rows: int = 8) -> float:
    """Return the mean loss of ``model`` on ``ids``, in nats per token.

    Raises
    ------
    ValueError
        If there is nothing to score.
    """
    check_ids(ids)
    total = 0.0
    for part in ids.to(model.device).split(rows):
        logits = model(input_ids=part, use_cache=False).logits[:, :-1].float()
        total += float(
            nn.functional.cross_entropy(logits.transpose(1, 2), part[:, 1:], reduction="sum")
        )
    return total / (ids.shape[0] * (ids.shape[1] - 1))
