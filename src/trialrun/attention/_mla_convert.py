"""Turn a trained multi-head or grouped-query model into one with a latent cache.

Sources: ji2025mha2mla and meng2025transmla, whose repositories were read; no code was taken.
A conversion keeps the rotation of some pairs (partial rotary), then factorises what is left of
keys and values together. It is exact where nothing is cut: at full rank, with every rotary pair
kept or with no rotation to lose. What differs from both: one rotary key for all heads whose pairs
may have any of the host's frequencies, no folding of neighbouring frequencies, contributions from
second moments, and exact handling of biases and means.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from trialrun.attention import _mla_stack  # noqa: F401

# isort: split
import torch
from torch import Tensor, nn

from trialrun.attention._mla_convert_healing import Healing, heal
from trialrun.attention._mla_convert_host import (
    as_batches,
    check_host,
    check_ids,
    input_moments,
    latent_config,
    mean_loss,
    projections,
)
from trialrun.attention._mla_convert_model import LatentLlamaForCausalLM
from trialrun.attention._mla_convert_parts import (
    FACTORS,
    SELECTIONS,
    Latent,
    full_rank,
    reduce_layer,
)
from trialrun.core.errors import UsageError
from trialrun.core.seeds import split

Calibration = Tensor | Mapping[str, Tensor] | Sequence[Tensor | Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a conversion chooses what to keep.

    Parameters
    ----------
    select : str
        Rotary pairs that go on turning: ``contribution`` (the largest 2-norm of queries times
        keys), ``high``, ``low`` or ``uniform`` frequencies.
    mix : bool
        Turn the key heads into one another at each frequency first, so that few pairs carry most.
    factor : str or None
        ``pca`` (joint, on activations), ``svd`` (joint, on weights), ``split`` (keys and values
        each for themselves) or ``random``. None is pca with a calibration and svd without.
    balance : bool
        Scale keys and values to equal size before they share a latent.
    seed : int
        Used by ``random`` alone.

    Raises
    ------
    ValueError
        If a name is unknown.

    Examples
    --------
    >>> Recipe(select="low").mix
    True
    """

    select: str = "contribution"
    mix: bool = True
    factor: str | None = None
    balance: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.select not in SELECTIONS:
            raise UsageError(f"select must be one of {', '.join(SELECTIONS)}, got {self.select!r}")
        if self.factor is not None and self.factor not in FACTORS:
            raise UsageError(f"factor must be one of {', '.join(FACTORS)}, got {self.factor!r}")


class ConversionGap(NamedTuple):
    """Mean losses on one text, in nats per token: what each stage of a conversion costs."""

    original: float
    partial_rotary: float
    latent: float
    healed: float | None


def convert_to_mla(
    model: Any,
    kv_rank: int | None,
    rope_dims: int,
    *,
    calibration: Calibration | None = None,
    recipe: Recipe | None = None,
    healing: Healing | None = None,
) -> LatentLlamaForCausalLM:
    """Return a copy of a Llama-like model that caches ``kv_rank + rope_dims`` values a token.

    Parameters
    ----------
    model : transformers Llama, Mistral or Qwen2 for causal language modelling
        Multi-head or grouped-query; left as it is. Its device and dtype are kept.
    kv_rank : int or None
        Width of the latent; None is the smallest that is exact, with ``pca`` and ``svd``: the
        other ways to factorise lose something at any width.
    rope_dims : int
        Width of the rotary key that all heads share; even, up to kv heads times head width.
    calibration : token ids, a mapping with ``input_ids``, or a list of either
        Ids are (batch, time), on which the inputs of every attention layer are taken;
        ``attention_mask`` leaves padding out. None takes inputs for equally spread, and PCA is not
        to be had. Moments take 4 bytes times layers times width squared (8 in float64).
    recipe : Recipe or None
    healing : Healing or None
        Needs a calibration.

    Returns
    -------
    LatentLlamaForCausalLM
        Generates, saves and loads as any transformers model; attention is absorbed in decoding.

    Raises
    ------
    ValueError
        If the model is of another kind, a size is out of range, or the calibration is empty.

    Notes
    -----
    Papers: ji2025mha2mla, meng2025transmla. Rotation is lost for pairs that are not kept, so
    the result is approximate even at full rank unless every pair is.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, vocab_size=32)
    >>> host = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2))
    >>> ids = torch.arange(32)[None]
    >>> mla = convert_to_mla(host, kv_rank=8, rope_dims=4, calibration=ids)
    >>> cache = mla(ids).past_key_values
    >>> cache.layers[0].keys.shape, cache.layers[0].values.shape
    (torch.Size([1, 1, 32, 8]), torch.Size([1, 1, 32, 4]))
    """
    recipe = recipe or Recipe()
    check_host(model)
    rank = _check_sizes(model, kv_rank, rope_dims)
    batches = None if calibration is None else as_batches(calibration, model.config.vocab_size)
    if batches is None and (healing is not None or recipe.factor == "pca"):
        wants = "healing" if healing is not None else "factor 'pca'"
        raise UsageError(f"{wants} needs a calibration: pass token ids of shape (batch, time)")
    moments = None if batches is None else input_moments(model, batches)
    layers = _reduced_layers(model, moments, rank, rope_dims, recipe)
    converted = _assemble(model, layers, rank, rope_dims)
    if healing is not None and batches is not None:
        heal(converted, model, batches, healing)
    return converted


def _check_sizes(model: Any, kv_rank: int | None, rope_dims: int) -> int:
    groups, dim = model.config.num_key_value_heads, model.model.layers[0].self_attn.head_dim
    if not _is_int(rope_dims) or not 0 <= rope_dims <= groups * dim or rope_dims % 2:
        raise UsageError(
            f"rope_dims must be an even number from 0 to {groups * dim} ({groups} key heads of "
            f"width {dim}), got {rope_dims!r}"
        )
    most = full_rank(groups, dim, model.config.hidden_size, rope_dims)
    if kv_rank is None:
        return most
    if not _is_int(kv_rank) or not 1 <= kv_rank <= most:
        raise UsageError(
            f"kv_rank must be a whole number from 1 to {most}, at which the latent is exact beside "
            f"{rope_dims} rotary dims, got {kv_rank!r}"
        )
    return kv_rank


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _reduced_layers(
    model: Any, moments: Sequence[Tensor] | None, rank: int, rope_dims: int, recipe: Recipe
) -> Iterable[Latent]:
    for index, layer in enumerate(model.model.layers):
        yield reduce_layer(
            projections(layer.self_attn),
            None if moments is None else moments[index].to(torch.float64),
            rank=rank,
            rope_dims=rope_dims,
            select=recipe.select,
            mix=recipe.mix,
            factor=recipe.factor or ("svd" if moments is None else "pca"),
            balance=recipe.balance,
            seed=split(recipe.seed, "latent", index),
        )


def _assemble(
    model: Any, layers: Iterable[Latent], rank: int, rope_dims: int
) -> LatentLlamaForCausalLM:
    weight = model.model.embed_tokens.weight
    config = latent_config(model, kv_rank=rank, rope_dims=rope_dims)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        converted = LatentLlamaForCausalLM(config)
    converted = converted.to_empty(device=weight.device).to(weight.dtype)
    host = {k: v for k, v in model.state_dict().items() if ".self_attn." not in k}
    converted.load_state_dict(host, strict=False)
    for new, old, latent in zip(converted.model.layers, model.model.layers, layers):
        _fill(new.self_attn, projections(old.self_attn), latent, _stretch(model))
    for name, buffer in model.model.rotary_emb.named_buffers():
        setattr(converted.model.rotary_emb, name, nn.Buffer(buffer.clone(), persistent=False))
    converted.tie_weights()
    converted.generation_config = deepcopy(model.generation_config)
    return converted.eval()


def _stretch(model: Any) -> float:
    # YaRN and its kin multiply cos and sin; pairs that no longer turn must carry it themselves.
    return float(getattr(model.model.rotary_emb, "attention_scaling", 1.0)) ** 2


@torch.no_grad()
def _fill(attention: Any, host: Any, latent: Latent, stretch: float) -> None:
    nope = host.q * stretch
    queries = torch.cat((nope, latent.q_rope), dim=1).flatten(0, 1)
    _put(attention.q_proj, queries[:, :-1], queries[:, -1])
    _put(attention.kv_a_proj, latent.down, None)
    if attention.k_rope_proj is not None:
        _put(attention.k_rope_proj, latent.k_rope[:, :-1], latent.k_rope[:, -1])
    _put(attention.kv_b_proj, torch.cat((latent.up_k, latent.up_v), dim=1).flatten(0, 1), None)
    _put(attention.o_proj, host.o.flatten(1), latent.o_bias)
    attention.rotary_pairs.copy_(latent.pairs)


def _put(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    linear.weight.copy_(weight)
    if linear.bias is not None and bias is not None:
        linear.bias.copy_(bias)


def conversion_gap(
    model: Any,
    ids: Tensor,
    kv_rank: int,
    rope_dims: int,
    *,
    calibration: Calibration | None = None,
    recipe: Recipe | None = None,
    healing: Healing | None = None,
) -> ConversionGap:
    """Measure what each stage costs: the model, partial rotary alone, the latent, after healing.

    Parameters
    ----------
    model, kv_rank, rope_dims, calibration, recipe, healing
        As for `convert_to_mla`.
    ids : int tensor of shape (batch, time)
        Text to score, not that of the calibration.

    Returns
    -------
    ConversionGap
        Mean losses in nats per token; ``healed`` is None without healing. ``partial_rotary`` is
        what turning fewer pairs costs, with an exact latent whatever the recipe's ``factor``.

    Raises
    ------
    ValueError
        As `convert_to_mla`, or if ``ids`` holds fewer than two tokens a row.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, vocab_size=32)
    >>> host = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2))
    >>> conversion_gap(host, torch.arange(32)[None], kv_rank=8, rope_dims=4).healed is None
    True
    """
    check_ids(ids)
    settings: dict[str, Any] = {"calibration": calibration, "recipe": recipe}
    cut = convert_to_mla(model, kv_rank, rope_dims, **settings)
    exact = replace(recipe or Recipe(), factor="svd")
    partial = convert_to_mla(model, None, rope_dims, calibration=calibration, recipe=exact)
    healed = None
    if healing is not None:
        healed = mean_loss(
            convert_to_mla(model, kv_rank, rope_dims, **settings, healing=healing), ids
        )
    return ConversionGap(
        mean_loss(model, ids), mean_loss(partial, ids), mean_loss(cut, ids), healed
    )
