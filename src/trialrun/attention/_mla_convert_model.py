"""A Llama whose attention keeps a latent cache: what a converted model is.

No class that transformers ships can hold a conversion exactly: each normalises the latent, which
throws its length away, draws its rotary frequencies from the rotary width, and leaves queries
without bias. So this is a Llama with another attention module, registered with transformers under
its own ``model_type``; after ``import trialrun.attention.mla`` the Auto classes read its folders.

The rotary key is one for all heads, as in DeepSeek-V2 (deepseek2024v2, equations 14 to 19). Ours:
each of its pairs turns at a frequency of the host's own table, told by ``rotary_pairs``; there is
one up-projection a key head of the host, not one a query head; the scale is the host's.
"""

from __future__ import annotations

from trialrun.attention import _mla_stack  # noqa: F401

# isort: split
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, eager_attention_forward

from trialrun.attention._mla_cache import check_held
from trialrun.attention._mla_core import as_given, crossover_of, mix_latents
from trialrun.core.errors import UsageError

MODEL_TYPE = "trialrun_latent_llama"


class LatentLlamaConfig(LlamaConfig):
    """A Llama's config with the sizes of its latent cache.

    Parameters
    ----------
    kv_lora_rank : int
        Width of the latent, shared by keys and values.
    qk_rope_head_dim : int
        Width of the rotary key that all heads share; even, may be 0.
    query_bias, rotary_key_bias, output_bias : bool
        Which projections have one.
    converted_from : str
        ``model_type`` of the host.

    Examples
    --------
    >>> LatentLlamaConfig(kv_lora_rank=32, qk_rope_head_dim=16).kv_lora_rank
    32
    """

    model_type = MODEL_TYPE

    kv_lora_rank: int = 512
    qk_rope_head_dim: int = 64
    query_bias: bool = False
    rotary_key_bias: bool = False
    output_bias: bool = False
    converted_from: str = "llama"


class LatentLlamaAttention(nn.Module):
    """Attention on a latent, absorbed for few queries and materialised for many."""

    rotary_pairs: Tensor

    def __init__(self, config: LatentLlamaConfig, layer_idx: int) -> None:
        super().__init__()
        _check_config(config)
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = True
        self.attention_dropout = config.attention_dropout or 0.0
        self.num_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads or self.num_heads
        self.num_key_value_groups = self.num_heads // self.num_key_value_heads
        assert config.head_dim is not None
        self.qk_nope_head_dim = self.v_head_dim = config.head_dim
        self.kv_lora_rank = config.kv_lora_rank
        self.qk_rope_head_dim = config.qk_rope_head_dim
        self.scaling = config.head_dim**-0.5
        width = config.hidden_size
        self.q_proj = nn.Linear(
            width,
            self.num_heads * (self.qk_nope_head_dim + self.qk_rope_head_dim),
            bias=config.query_bias,
        )
        self.kv_a_proj = nn.Linear(width, self.kv_lora_rank, bias=False)
        self.k_rope_proj = (
            nn.Linear(width, self.qk_rope_head_dim, bias=config.rotary_key_bias)
            if self.qk_rope_head_dim
            else None
        )
        self.kv_b_proj = nn.Linear(
            self.kv_lora_rank,
            self.num_key_value_heads * (self.qk_nope_head_dim + self.v_head_dim),
            bias=False,
        )
        self.o_proj = nn.Linear(self.num_heads * self.v_head_dim, width, bias=config.output_bias)
        # A conversion chooses them; a fresh model spreads them over the table.
        spread = torch.linspace(0, config.head_dim // 2 - 1, self.qk_rope_head_dim // 2)
        self.register_buffer("rotary_pairs", spread.round().long())

    def absorbs(self, query: int, cached: int) -> bool:
        """Tell whether ``query`` new tokens on ``cached``, themselves included, are absorbed.

        Expanding is done once a key head, absorbing once a query head, so that a host with g query
        heads a key head changes over g times earlier than `crossover` says. A prompt is always
        expanded.
        """
        limit = crossover_of(self.kv_lora_rank, self.qk_nope_head_dim, self.v_head_dim, cached)
        return query < cached and query * self.num_key_value_groups < limit

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as transformers' decoder layer asks; ``past_key_values`` holds the latent."""
        batch, time = hidden_states.shape[:-1]
        q = self.q_proj(hidden_states).view(batch, time, self.num_heads, -1).transpose(1, 2)
        q_nope, q_rope = q.split([self.qk_nope_head_dim, self.qk_rope_head_dim], dim=-1)
        latent = self.kv_a_proj(hidden_states)[:, None]
        if self.k_rope_proj is None:
            k_rope = latent[..., :0]
        else:
            cos, sin = (x[..., self.rotary_pairs].unsqueeze(1) for x in position_embeddings)
            k_rope = _rotate(self.k_rope_proj(hidden_states)[:, None], cos, sin)
            q_rope = _rotate(q_rope, cos, sin)
        if past_key_values is not None:
            check_held(past_key_values, self, hidden_states)
            latent, k_rope = past_key_values.update(latent, k_rope, self.layer_idx)
        # Masks of another form, such as flex attention's, are for its own function to read.
        plain = attention_mask is None or (
            isinstance(attention_mask, Tensor) and attention_mask.ndim == 4
        )
        dropped = self.attention_dropout if self.training else 0.0
        weights = None
        if plain and not dropped and self.absorbs(time, latent.shape[2]):
            out, weights = self._absorbed(q_nope, q_rope, latent, k_rope, attention_mask)
        else:
            key, value = self.expand_kv(latent, k_rope)
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(
                str(self.config._attn_implementation), eager_attention_forward
            )
            out, weights = attend(
                self,
                torch.cat((q_nope, q_rope), dim=-1),
                key,
                value,
                attention_mask,
                dropout=dropped,
                scaling=self.scaling,
                **kwargs,
            )
        return self.o_proj(out.reshape(batch, time, -1)), weights

    def expand_kv(self, latent: Tensor, k_rope: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of every key head, (batch, kv_heads, key, dim) each."""
        batch, _, length, _ = latent.shape
        both = self.kv_b_proj(latent[:, 0]).view(batch, length, self.num_key_value_heads, -1)
        k_nope, value = both.transpose(1, 2).split([self.qk_nope_head_dim, self.v_head_dim], -1)
        key = torch.cat((k_nope, k_rope.expand(-1, self.num_key_value_heads, -1, -1)), dim=-1)
        return key, value

    def _absorbed(
        self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        batch, heads, time, _ = q_nope.shape
        groups, length = self.num_key_value_heads, latent.shape[2]
        up = self.kv_b_proj.weight.view(groups, -1, self.kv_lora_rank)
        up_k, up_v = up.split([self.qk_nope_head_dim, self.v_head_dim], dim=1)
        with as_given(latent):
            rows = q_nope.reshape(batch, groups, -1, self.qk_nope_head_dim)
            mixed, weights = mix_latents(
                ((rows @ up_k.to(rows.dtype)).view(batch, heads, time, -1), q_rope),
                (latent[:, 0], k_rope[:, 0]),
                scale=self.scaling,
                mask=_causal(time, length, latent.device) if mask is None and time > 1 else mask,
                whole=self.config._attn_implementation == "eager",
            )
            z = mixed.to(latent.dtype).reshape(batch, groups, -1, self.kv_lora_rank)
            out = (z @ up_v.to(z.dtype).transpose(1, 2)).view(batch, heads, time, -1)
        out = out.transpose(1, 2).to(q_nope.dtype)
        return out, weights.to(q_nope.dtype) if weights is not None else None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _causal(queries: int, keys: int, device: torch.device) -> Tensor:
    seen = torch.ones(queries, keys, dtype=torch.bool, device=device)
    return seen.tril(keys - queries)[None, None]


def _check_config(config: LatentLlamaConfig) -> None:
    groups = config.num_key_value_heads or config.num_attention_heads
    sizes = {"kv_lora_rank": config.kv_lora_rank, "qk_rope_head_dim": config.qk_rope_head_dim}
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int):
            raise UsageError(f"{name} must be a whole number, got {size!r}")
    if config.kv_lora_rank < 1:
        raise UsageError(f"kv_lora_rank must be at least 1, got {config.kv_lora_rank}")
    most = groups * (config.head_dim or 0)
    if config.qk_rope_head_dim % 2 or not 0 <= config.qk_rope_head_dim <= most:
        raise UsageError(
            f"qk_rope_head_dim must be an even number from 0 to {most} (key heads times head "
            f"width), got {config.qk_rope_head_dim}"
        )


class LatentLlamaModel(LlamaModel):
    """The decoder of a `LatentLlamaForCausalLM`."""

    config_class = LatentLlamaConfig
    _can_record_outputs = {  # noqa: RUF012 as transformers declares it
        "hidden_states": LlamaDecoderLayer,
        "attentions": LatentLlamaAttention,
    }
    _supports_flash_attn = False

    def __init__(self, config: LatentLlamaConfig) -> None:
        super().__init__(config)
        for index, layer in enumerate(self.layers):
            layer.self_attn = LatentLlamaAttention(config, index)
        self.post_init()


class LatentLlamaForCausalLM(LlamaForCausalLM):
    """A causal language model with a latent cache, read and written as any of transformers' own.

    Parameters
    ----------
    config : LatentLlamaConfig

    Examples
    --------
    >>> sizes = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, vocab_size=32)
    >>> config = LatentLlamaConfig(
    ...     **sizes, num_attention_heads=2, kv_lora_rank=4, qk_rope_head_dim=2
    ... )
    >>> LatentLlamaForCausalLM(config).generate(torch.ones(1, 3, dtype=int), max_new_tokens=2).shape
    torch.Size([1, 5])
    """

    config_class = LatentLlamaConfig
    # Its 2-D masks and its demand for one width of keys and values fit no latent.
    _supports_flash_attn = False

    def __init__(self, config: LatentLlamaConfig) -> None:
        super().__init__(config)
        self.model = LatentLlamaModel(config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, where: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Read a folder that ``save_pretrained`` wrote.

        Raises
        ------
        ValueError
            If weights are missing: a converted model has none that could start at random.
        """
        told = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(where, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        missing = sorted(info["missing_keys"])
        if missing:
            raise UsageError(
                f"{where} lacks {len(missing)} weights of a converted model, first {missing[0]}: "
                f"copy the whole folder that save_pretrained wrote, or convert the host again"
            )
        return (model, info) if told else model


def register() -> None:
    """Tell transformers' Auto classes of the converted model; harmless to repeat."""
    AutoConfig.register(MODEL_TYPE, LatentLlamaConfig, exist_ok=True)
    AutoModelForCausalLM.register(LatentLlamaConfig, LatentLlamaForCausalLM, exist_ok=True)


register()
