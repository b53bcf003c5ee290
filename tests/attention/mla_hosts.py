"""Tiny random models of every transformers class that re-expands a latent cache."""

import dataclasses
import inspect
from importlib import import_module

import torch

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "initializer_range": 0.3,
}
# Six keys a query are fewer than the tests have tokens, so that choosing keys matters.
INDEXER = {"index_topk": 6, "index_head_dim": 8, "index_n_heads": 2}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "head_dim": 8,
}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}

# Class of the config, class of the model, settings.
MODELS = {
    "deepseek_v2": ("DeepseekV2Config", "DeepseekV2ForCausalLM", {}),
    "deepseek_v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM", {}),
    "axk1": ("AXK1Config", "AXK1ForCausalLM", {}),
    "axk2": ("AXK2Config", "AXK2ForCausalLM", INDEXER),
    "bailing_hybrid": ("BailingHybridConfig", "BailingHybridForCausalLM", LINEAR),
    "deepseek_v32": ("DeepseekV32Config", "DeepseekV32ForCausalLM", INDEXER),
    "dots3_note": (
        "Dots3NoteTextConfig",
        "Dots3NoteForCausalLM",
        {
            **INDEXER,
            "head_dim": 12,
            "num_hidden_layers": 3,
            "sliding_window": 5,
            "swa_num_attention_heads": 2,
            "swa_num_key_value_heads": 2,
            "swa_q_lora_rank": 8,
            "swa_kv_lora_rank": 12,
            "swa_head_dim": 12,
            "swa_qk_nope_head_dim": 8,
            "swa_v_head_dim": 8,
        },
    ),
    "glm4_moe_lite": ("Glm4MoeLiteConfig", "Glm4MoeLiteForCausalLM", {}),
    "glm5_next": (
        "Glm5NextTextConfig",
        "Glm5NextForConditionalGeneration",
        {
            **INDEXER,
            **LINEAR,
            "layer_types": ["linear_attention", "indexed_attention"],
            "mlp_layer_types": ["dense", "sparse"],
            "indexer_types": ["full", "full"],
            "qk_rope_head_dim": 0,
            "index_kpool": 2,
        },
    ),
    "glm_moe_dsa": ("GlmMoeDsaConfig", "GlmMoeDsaForCausalLM", INDEXER),
    "hy_v4": ("HYV4Config", "HYV4ForCausalLM", INDEXER),
    "kimi_linear": ("KimiLinearConfig", "KimiLinearForCausalLM", LINEAR),
    "longcat_flash": ("LongcatFlashConfig", "LongcatFlashForCausalLM", {"head_dim": 4}),
    "minicpm3": ("MiniCPM3Config", "MiniCPM3ForCausalLM", {}),
    "mistral4": ("Mistral4Config", "Mistral4ForCausalLM", {}),
    "mistral_large4": (
        "MistralLarge4TextConfig",
        "MistralLarge4ForConditionalGeneration",
        {**INDEXER, "num_hidden_layers": 4, "kv_source_layers": [0, 1, 0, 3]},
    ),
    "youtu": ("YoutuConfig", "YoutuForCausalLM", {}),
}
WRAPPED = {"glm5_next": "Glm5NextConfig", "mistral_large4": "MistralLarge4Config"}


def make_config(kind, **given):
    name, _, extra = MODELS[kind]
    module = import_module(f"transformers.models.{kind}.configuration_{kind}")
    cls = getattr(module, name)
    known = {f.name for f in dataclasses.fields(cls)} | set(inspect.signature(cls).parameters)
    settings = {k: v for k, v in SIZES.items() if k in known} | extra | given
    config = cls(**settings)
    if kind in WRAPPED:
        vision = {**VISION, "num_hidden_layers": 1, "depth": 1, "num_heads": 2}
        outer = getattr(module, WRAPPED[kind])
        if kind == "mistral_large4":
            vision["model_type"] = "pixtral"
        config = outer(text_config=config.to_dict(), vision_config=vision)
        config.text_config._experts_implementation = "eager"
    config._experts_implementation = "eager"
    return config


def make_host(kind, *, seed=0, implementation="sdpa", dtype=torch.float64, **given):
    module = import_module(f"transformers.models.{kind}.modeling_{kind}")
    cls = getattr(module, MODELS[kind][1])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = cls._from_config(make_config(kind, **given), attn_implementation=implementation)
    return model.to(dtype).eval()
