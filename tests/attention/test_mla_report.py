"""Cache bytes: what is counted from a config is what real caches hold."""

import pytest
import torch
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DynamicCache,
    Gemma2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MiniCPM3Config,
    MiniCPM3ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    YoutuConfig,
    YoutuForCausalLM,
)

from tests.attention.mla_hosts import MODELS, make_config, make_host
from trialrun.attention._mla_report import INDEXED, UNCOUNTED
from trialrun.attention._mla_report import LATENT as PLAIN
from trialrun.attention.mla import (
    LatentCache,
    MultiHeadLatentAttention,
    cache_bytes,
    cache_report,
    convert_to_mla,
)

SIZES = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 20,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
}
DENSE = {**LATENT, "first_k_dense_replace": 2}
KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 2}),
    "llama, wide": (LlamaConfig, LlamaForCausalLM, {"head_dim": 20}),
    "mistral": (
        MistralConfig,
        MistralForCausalLM,
        {"num_key_value_heads": 1, "sliding_window": None},
    ),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"num_key_value_heads": 2}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"num_key_value_heads": 2, "head_dim": 14}),
    "deepseek_v2": (DeepseekV2Config, DeepseekV2ForCausalLM, DENSE),
    "deepseek_v3": (DeepseekV3Config, DeepseekV3ForCausalLM, DENSE),
    "youtu": (YoutuConfig, YoutuForCausalLM, LATENT),
    "minicpm3": (MiniCPM3Config, MiniCPM3ForCausalLM, LATENT),
}


def make(kind):
    config_class, model_class, extra = KINDS[kind]
    with torch.random.fork_rng():
        return model_class(config_class(**SIZES | extra)).eval()


def held_by(model, *, batch=2, tokens=13):
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.ones(batch, tokens, dtype=torch.int64), past_key_values=cache)
    return cache_bytes(cache)


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_counts_what_a_real_cache_holds(kind):
    model = make(kind)
    report = cache_report(model, 13, batch=2)
    assert report[report.own].bytes_total == held_by(model)
    half = cache_report(model.to(torch.bfloat16), 13, batch=2)
    assert half[half.own].bytes_total == held_by(model)


@pytest.mark.parametrize("kind", sorted({*PLAIN, *INDEXED} - {"trialrun_latent_llama"}))
def test_the_report_counts_what_each_latent_class_holds(kind):
    implementation = "eager" if kind == "hy_v4" else "sdpa"
    model = make_host(kind, dtype=torch.float32, implementation=implementation)
    report = cache_report(model, 13, batch=2)
    assert report.own == ("MLA + indexer" if kind in INDEXED else "MLA")
    assert report[report.own].bytes_total == held_by(model)


@pytest.mark.parametrize("kind", ["glm_moe_dsa", "hy_v4"])
def test_layers_that_share_an_indexer_keep_no_keys_for_it(kind):
    types = ["full", "full", "shared"]
    given = {"num_hidden_layers": 3, "indexer_types": types}
    model = make_host(kind, dtype=torch.float32, implementation="eager", **given)
    report = cache_report(model, 13, batch=2)
    assert report["MLA + indexer"].bytes_total == held_by(model)
    assert report["MLA + indexer"].values == pytest.approx(20 + 8 * 2 / 3)
    assert "25.3333" in str(report)


@pytest.mark.parametrize("kind", sorted(UNCOUNTED))
def test_classes_whose_layers_keep_other_things_are_refused_with_the_reason(kind):
    config = make_config(kind)
    for given in (config, config.get_text_config(decoder=True)):
        with pytest.raises(ValueError, match=f"cannot count {kind}.*, {UNCOUNTED[kind]}: run"):
            cache_report(given, 8)
    assert held_by(make_host(kind, dtype=torch.float32)) > 0


def test_every_class_that_absorbed_mla_serves_is_counted_or_refused():
    assert {*PLAIN, *INDEXED, *UNCOUNTED} == {*MODELS, "trialrun_latent_llama"}


def test_a_converted_model_holds_what_was_asked_for():
    model = make("llama")
    converted = convert_to_mla(model, 16, 4)
    report = cache_report(converted, 13, batch=2)
    assert report.own == "MLA"
    assert report["MLA"].values == 20
    assert report["MLA"].bytes_total == held_by(converted)
    foreseen = cache_report(model, 13, batch=2, kv_rank=16, rope_dims=4)
    assert foreseen.own == "GQA-2"
    assert foreseen["MLA"] == report["MLA"]


def test_the_module_s_own_cache_counts_the_same():
    attention = MultiHeadLatentAttention(16, 2, 12, nope_dim=8, rope_dim=4, v_dim=8)
    cache = LatentCache()
    with torch.no_grad():
        attention(torch.zeros(3, 7, 16), cache=cache)
    assert cache_bytes(cache) == cache_bytes([cache]) == 3 * 7 * (12 + 4) * 4


@pytest.mark.parametrize(("heads", "share"), [(16, 9 / 64), (128, 9 / 512)])
def test_deepseek_s_cache_is_two_and_a_quarter_groups(heads, share):
    config = DeepseekV2Config(num_attention_heads=heads, num_key_value_heads=heads)
    report = cache_report(config, 1)
    assert report["MLA"].values == 576 == 2.25 * report["MQA"].values
    assert report["MLA"].share_of_mha == pytest.approx(share)
    assert report["MLA expanded"].values == heads * 320
    assert report["GQA-8"].values == 2048


def test_the_table_marks_the_model_itself():
    lines = str(cache_report(make("qwen2"), 4096)).splitlines()
    assert [line.split()[1] for line in lines if line.startswith("*")] == ["GQA-2"]
    assert "MiB" in lines[1]


def test_an_empty_cache_holds_nothing():
    assert cache_bytes(DynamicCache()) == cache_bytes([]) == 0


@pytest.mark.usefixtures("no_annotation_checks")
@pytest.mark.parametrize(
    ("call", "pattern"),
    [
        (lambda: cache_report(Gemma2Config(), 8), r"cache_report knows llama.* got gemma2"),
        (lambda: cache_report(torch.nn.Linear(2, 2), 8), r"got Linear: run the model"),
        (lambda: cache_report(MistralConfig(sliding_window=8), 8), r"sliding window"),
        (lambda: cache_report(LlamaConfig(), 0), r"seq_len must be .* got 0"),
        (lambda: cache_report(LlamaConfig(), 8, batch=1.5), r"batch must be .* got 1\.5"),
        (lambda: cache_report(LlamaConfig(), 8, kv_rank=4), r"must be given together"),
        (lambda: cache_report(LlamaConfig(), 8, kv_rank=0, rope_dims=4), r"kv_rank must be"),
        (
            lambda: cache_report(YoutuConfig(), 8, kv_rank=4, rope_dims=4),
            r"go with models without a latent",
        ),
        (lambda: cache_bytes("cache"), r"must be a transformers cache, .* got str"),
    ],
)
def test_bad_input_is_told_in_a_sentence(call, pattern):
    with pytest.raises(ValueError, match=pattern):
        call()


def test_an_unknown_row_is_told_with_the_known_ones():
    with pytest.raises(KeyError, match="choose one of MHA"):
        cache_report(LlamaConfig(), 8)["mha"]
