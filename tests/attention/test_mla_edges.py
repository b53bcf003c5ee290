"""MLA where users stray: autocast, odd masks, foreign caches, changed settings, wrong arguments."""

import copy
import pickle
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from tests.attention.mla_hosts import make_host
from trialrun.attention import _mla_convert_healing, _mla_convert_model, _mla_core
from trialrun.attention._mla_convert_healing import Healing
from trialrun.attention.mla import (
    AbsorbedMLA,
    LatentCache,
    LatentLlamaConfig,
    LatentLlamaForCausalLM,
    MultiHeadLatentAttention,
    Recipe,
    absorbed_attention,
    cache_bytes,
    cache_report,
    conversion_gap,
    convert_to_mla,
    materialised_attention,
)

WIDTHS = {"nope_dim": 8, "rope_dim": 4, "v_dim": 6}


def llama(implementation="sdpa", **given):
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(**sizes | given)
        return LlamaForCausalLM._from_config(config, attn_implementation=implementation).eval()


def ids_of(rows=2, time=12):
    return torch.randint(1, 64, (rows, time), generator=torch.Generator().manual_seed(1))


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def step(model, ids):
    with torch.no_grad():
        first = model(ids, use_cache=True)
        return model(ids[:, :1], past_key_values=first.past_key_values).logits.float()


def in_bfloat16():
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("rope", [0, 4])
def test_a_converted_model_decodes_under_autocast(rope):
    model, ids = convert_to_mla(llama(), 8, rope), ids_of()
    wanted = step(model, ids)
    with in_bfloat16():
        found = step(model, ids)
    assert (found - wanted).abs().max() < 0.1 * wanted.std()


@pytest.mark.parametrize("kind", ["deepseek_v2", "deepseek_v3"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_patched_model_decodes_under_autocast(kind, implementation):
    model = make_host(kind, dtype=torch.float32, implementation=implementation)
    ids = ids_of()
    wanted = step(model, ids)
    with AbsorbedMLA().attached(model), in_bfloat16():
        found = step(model, ids)
    assert (found - wanted).abs().max() < 0.2 * wanted.std()


@pytest.mark.parametrize("path", ["absorbed", "materialised"])
def test_the_module_decodes_and_trains_under_autocast(path):
    layer = MultiHeadLatentAttention(24, 3, 10, **WIDTHS)
    x, cache = normal(2, 5, 24), LatentCache()
    wanted = layer(x)
    with in_bfloat16():
        with torch.no_grad():
            parts = [layer(part, cache, path=path) for part in x.split((4, 1), dim=1)]
        out = layer(x, path=path)
        out.float().square().sum().backward()
    assert cache.latent.dtype == torch.bfloat16
    for found in (torch.cat(parts, 1), out):
        torch.testing.assert_close(found.float(), wanted, atol=0.02, rtol=0.05)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("attend", [absorbed_attention, materialised_attention])
@pytest.mark.parametrize("rope", [0, 2])
def test_autocast_rounds_nothing_that_comes_in_float32(attend, rope):
    shapes = ((1, 2, 3, 4), (1, 2, 3, rope), (1, 5, 8), (1, 5, rope), (14, 8))
    parts = [normal(*shape) for shape in shapes]
    wanted = attend(*parts, scale=0.4)
    with in_bfloat16():
        torch.testing.assert_close(attend(*parts, scale=0.4), wanted, atol=0, rtol=0)


@pytest.mark.parametrize("kind", ["deepseek_v32", "glm_moe_dsa", "dots3_note"])
def test_keys_of_an_indexer_are_counted(kind):
    model = make_host(kind, dtype=torch.float32)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids_of(1, 9), past_key_values=cache, use_cache=True)
    held = 0
    for layer in cache.layers:
        for part in (layer.keys, layer.values, getattr(layer, "indexer_keys", None)):
            held += part.nbytes if part is not None else 0
    assert any(getattr(layer, "indexer_keys", None) is not None for layer in cache.layers)
    assert cache_bytes(cache) == held


def test_a_state_of_a_recurrent_layer_is_counted_and_counters_are_not():
    state = SimpleNamespace(conv_states={0: torch.zeros(3)}, count=torch.tensor(7))
    assert cache_bytes(SimpleNamespace(layers=[state])) == 12
    with pytest.raises(ValueError, match="cannot read a layer of SimpleNamespace"):
        cache_bytes(SimpleNamespace(layers=[SimpleNamespace(other=1)]))
    model = llama()
    fixed = StaticCache(config=model.config, max_cache_len=20)
    with torch.no_grad():
        model(ids_of(1, 3), past_key_values=fixed, use_cache=True)
    assert cache_bytes(fixed) == 20 * cache_report(model, 1)["GQA-2"].bytes_per_token


def test_what_is_expanded_has_as_many_heads_as_the_host_has_keys():
    model = llama()
    converted, ids = convert_to_mla(model, 8, 4), ids_of(1, 5)
    with torch.no_grad():
        layer = converted(ids, use_cache=True).past_key_values.layers[0]
        parts = converted.model.layers[0].self_attn.expand_kv(layer.keys, layer.values)
    values = sum(part.numel() for part in parts) // 5
    assert cache_report(converted, 5)["MLA expanded"].values == values
    assert cache_report(model, 5, kv_rank=8, rope_dims=4)["MLA expanded"].values == values


@pytest.mark.parametrize("block", [1, 4_194_304])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_mask_of_minus_infinity_gives_no_nan(monkeypatch, block, implementation):
    model = make_host("deepseek_v2", dtype=torch.float32, implementation=implementation)
    ids, mask = ids_of(2, 200), torch.zeros(2, 1, 1, 201)
    mask[0, ..., :120] = -torch.inf

    def run():
        with torch.no_grad():
            cache = model(ids, use_cache=True).past_key_values
            return model(ids[:, :1], past_key_values=cache, attention_mask=mask).logits

    wanted = run()
    monkeypatch.setattr(_mla_core, "BLOCK_SCORES", block)
    with AbsorbedMLA().attached(model):
        torch.testing.assert_close(run(), wanted, atol=1e-4, rtol=1e-4)


def test_a_host_with_another_attention_function_is_refused():
    model = llama()
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match=r"eager, sdpa, flex_attention, got 'flash_attention_2'"):
        convert_to_mla(model, 8, 4)
    assert not LatentLlamaForCausalLM._supports_flash_attn
    converted = convert_to_mla(llama(), 8, 4)
    with pytest.raises(ValueError, match=r"(?i)flash"):
        converted.set_attn_implementation("flash_attention_2")


@pytest.mark.usefixtures("no_annotation_checks")
def test_a_two_dimensional_mask_is_left_to_the_attention_function(monkeypatch):
    attention = convert_to_mla(llama(), 8, 4).model.layers[0].self_attn
    given = []

    def probe(_module, query, _key, _value, mask, **_):
        given.append(mask.shape)
        return query.new_zeros(1, 1, 4, 8), None

    found = SimpleNamespace(get_interface=lambda *_: probe)
    monkeypatch.setattr(_mla_convert_model, "ALL_ATTENTION_FUNCTIONS", found)
    monkeypatch.setattr(attention, "_absorbed", None)
    held = SimpleNamespace(update=lambda a, b, _: (a.repeat(1, 1, 9, 1), b.repeat(1, 1, 9, 1)))
    turned = (torch.ones(1, 1, 8), torch.zeros(1, 1, 8))
    with torch.no_grad():
        attention(normal(1, 1, 32), turned, torch.ones(1, 9, dtype=torch.int64), held)
    assert given == [(1, 9)]


def test_attention_weights_are_given_under_eager():
    model, ids = llama("eager"), ids_of(1, 6)
    converted = convert_to_mla(model, None, 16)
    with torch.no_grad():
        wanted, found = (m(ids, output_attentions=True).attentions for m in (model, converted))
        cache = converted(ids[:, :-1], use_cache=True).past_key_values
        last = converted(ids[:, -1:], past_key_values=cache, output_attentions=True).attentions
    assert len(found) == len(last) == 2
    for one, two, three in zip(wanted, found, last, strict=True):
        torch.testing.assert_close(two, one, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(three, one[:, :, -1:], atol=1e-4, rtol=1e-3)
    assert len(converted(ids, output_hidden_states=True).hidden_states) == 3


def test_partial_rotary_costs_the_same_whatever_makes_the_latent():
    model, ids = llama(), ids_of(4)
    gaps = [
        conversion_gap(model, ids, 8, 16, calibration=ids, recipe=Recipe(factor=factor))
        for factor in ("svd", "split", "random")
    ]
    for gap in gaps:
        assert gap.partial_rotary == pytest.approx(gaps[0].partial_rotary, rel=1e-6)
    assert gaps[1].latent != gaps[2].latent


def test_a_converted_model_shares_no_setting_with_its_host():
    model = llama()
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    converted = convert_to_mla(model, 8, 4, calibration=ids_of())
    assert [module.training for module in model.modules()] == modes
    before = copy.deepcopy(model.config.rope_parameters)
    converted.generation_config.max_new_tokens = 3
    converted.config.rope_parameters["rope_theta"] = 7.0
    assert model.generation_config.max_new_tokens != 3
    assert model.config.rope_parameters == before


def latent_config(**given):
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    return LatentLlamaConfig(**sizes, num_attention_heads=4, **given)


def test_a_fresh_model_turns_pairs_from_the_whole_table():
    model = LatentLlamaForCausalLM(latent_config(kv_lora_rank=8, qk_rope_head_dim=4))
    assert model.model.layers[0].self_attn.rotary_pairs.tolist() == [0, 3]


@pytest.mark.parametrize(
    ("sizes", "pattern"),
    [
        ((0, 4), "kv_lora_rank must be at least 1, got 0"),
        ((8, 3), "qk_rope_head_dim must be an even number from 0 to 32 .* got 3"),
        ((8, 34), "qk_rope_head_dim must be an even number"),
    ],
)
def test_a_config_that_makes_no_model_is_refused(sizes, pattern):
    config = latent_config(kv_lora_rank=sizes[0], qk_rope_head_dim=sizes[1])
    with pytest.raises(ValueError, match=pattern):
        LatentLlamaForCausalLM(config)


@torch.no_grad()
def test_an_emptied_cache_takes_another_batch():
    layer, cache = MultiHeadLatentAttention(24, 3, 10, **WIDTHS), LatentCache()
    layer(normal(1, 3, 24), cache)
    cache.crop(0)
    assert layer(normal(2, 3, 24), cache).shape == (2, 3, 24)


@pytest.mark.parametrize("reserve", [0, 9])
def test_a_cache_filled_in_inference_mode_goes_on_outside(reserve):
    layer, cache = MultiHeadLatentAttention(24, 3, 10, **WIDTHS), LatentCache(reserve=reserve)
    x = normal(1, 5, 24)
    with torch.inference_mode():
        layer(x[:, :3], cache)
    with torch.no_grad():
        found = torch.cat([layer(x[:, n : n + 1], cache) for n in (3, 4)], dim=1)
        torch.testing.assert_close(found, layer(x)[:, 3:], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_padding_that_hides_nothing_need_not_be_given_again():
    layer, cache, x = MultiHeadLatentAttention(24, 3, 10, **WIDTHS), LatentCache(), normal(2, 4, 24)
    layer(x[:, :3], cache, padding=torch.ones(2, 3, dtype=torch.bool))
    torch.testing.assert_close(layer(x[:, 3:], cache), layer(x)[:, 3:], atol=1e-5, rtol=1e-4)


def test_another_model_s_cache_is_refused_in_a_sentence():
    model, ids = llama(), ids_of()
    cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"one head of latents 9 wide in layer 0, got 2 heads of"):
        convert_to_mla(model, 9, 4)(ids[:, :1], past_key_values=cache)


def strangers(kind):
    """Return a model of two layers and caches that others filled, by what is wrong with them."""
    ids = ids_of()
    if kind == "converted":
        model, shallow, deep = (convert_to_mla(llama(num_hidden_layers=n), 9, 4) for n in (2, 1, 3))
    else:
        model, shallow, deep = (
            make_host(kind, dtype=torch.float32, num_hidden_layers=n, first_k_dense_replace=1)
            for n in (2, 1, 3)
        )
    lazy = DynamicCache()
    with torch.no_grad():
        caches = {
            "shallow": shallow(ids, use_cache=True).past_key_values,
            "lazy": shallow(ids, past_key_values=lazy, use_cache=True).past_key_values,
            "deep": deep(ids, use_cache=True).past_key_values,
            "batch": model(ids[:1], use_cache=True).past_key_values,
        }
    return model, caches


STRANGE = {
    "shallow": r"past_key_values must have a layer 1, got 1 layers: it was filled by another model",
    "lazy": r"past_key_values must have a layer 1, got 1 layers: it was filled by another model",
    "deep": r"no more than the 2 layers of this model, got 3: it was filled by another model",
    "batch": r"must hold a batch of 2, as the new tokens are, got 1 in layer 0: give the rows",
}


@pytest.mark.parametrize("wrong", STRANGE)
@pytest.mark.parametrize("kind", ["converted", "deepseek_v2"])
def test_a_cache_of_another_depth_or_batch_is_refused_in_a_sentence(kind, wrong):
    model, caches = strangers(kind)
    ids = ids_of()[:, :1]
    with nullcontext() if kind == "converted" else AbsorbedMLA().attached(model):
        with pytest.raises(ValueError, match=STRANGE[wrong]), torch.no_grad():
            model(ids, past_key_values=caches[wrong])
        with torch.no_grad():
            own = model(ids_of(), past_key_values=DynamicCache(), use_cache=True).past_key_values
            model(ids, past_key_values=own)
            own.reset()
            model(ids[:1], past_key_values=own)


@torch.no_grad()
def test_a_cache_that_another_layer_filled_is_refused():
    layer, other = (MultiHeadLatentAttention(24, 3, 10, **WIDTHS, seed=seed) for seed in (0, 1))
    cache, x = LatentCache(), normal(2, 3, 24)
    layer(x, cache)
    alike = copy.deepcopy(cache), copy.copy(cache)
    cache.reorder(torch.tensor([1, 0]))
    cache.crop(2)
    for filled in (cache, *alike):
        before = len(filled)
        with pytest.raises(ValueError, match=f"got {before} tokens of another layer: give each"):
            other(x, filled)
        assert len(filled) == before
        layer(x, filled)
    both, moved = copy.deepcopy((layer, cache))
    both(x, moved)
    with pytest.raises(ValueError, match="of another layer"):
        layer(x, moved)
    del both
    with pytest.raises(ValueError, match="of another layer"):
        layer(x, moved)


@torch.no_grad()
@pytest.mark.parametrize("empty", [LatentCache.reset, lambda cache: cache.crop(0)])
def test_an_emptied_or_pickled_cache_goes_to_the_next_layer(empty):
    layer, other = (MultiHeadLatentAttention(24, 3, 10, **WIDTHS, seed=seed) for seed in (0, 1))
    cache, x = LatentCache(), normal(2, 3, 24)
    layer(x, cache)
    read = pickle.loads(pickle.dumps(cache))
    empty(cache)
    for free in (cache, read):
        other(x, free)
        with pytest.raises(ValueError, match="of another layer"):
            layer(x, free)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["model.layers.1.self_attn.k_proj.weight", "lm_head.weight"])
def test_a_host_with_weights_that_are_not_finite_is_refused(name, value):
    model = llama()
    with torch.no_grad():
        model.get_parameter(name)[0, :2] = value
    pattern = rf"must be finite, got 2 NaN or infinite of \d+ in {name}: load the checkpoint"
    with pytest.raises(ValueError, match=pattern):
        convert_to_mla(model, 8, 4, calibration=ids_of())


def test_a_model_that_shares_a_patched_config_is_told_so():
    model = make_host("deepseek_v3", dtype=torch.float32)
    with AbsorbedMLA().attached(model):
        twin = type(model)(model.config)
        with pytest.raises(ValueError, match="give each model its own copy of the config"):
            AbsorbedMLA().attach(twin)


def test_healing_takes_rows_with_something_to_learn_from(monkeypatch):
    model, ids = llama(), ids_of(6, 5)
    mask = torch.ones_like(ids)
    mask[:5, 1:] = 0
    data = {"input_ids": ids, "attention_mask": mask}
    taken = []
    loss = _mla_convert_healing._healing_loss
    monkeypatch.setattr(
        _mla_convert_healing,
        "_healing_loss",
        lambda s, t, b, picked: taken.extend(picked.tolist()) or loss(s, t, b, picked),
    )
    text = Healing(steps=3, teacher=False)
    healed = convert_to_mla(model, 8, 4, calibration=data, healing=text)
    assert taken == [5, 5, 5]
    assert all(p.isfinite().all() for p in healed.parameters())
    with pytest.raises(ValueError, match="at least two tokens, got none"):
        convert_to_mla(model, 8, 4, calibration=ids[:, :1], healing=text)


LAYER = MultiHeadLatentAttention(24, 3, 10, **WIDTHS)
BAD = {
    "dtype by name": (
        r"dtype must be a torch\.dtype, .* got 'float16'",
        lambda: cache_report(LlamaConfig(), 8, dtype="float16"),
    ),
    "odd rotary": (
        "rope_dims must be even, .* got 3",
        lambda: cache_report(LlamaConfig(), 8, kv_rank=4, rope_dims=3),
    ),
    "calibration": (
        "calibration must be token ids .* got int",
        lambda: convert_to_mla(llama(), 8, 4, calibration=5),
    ),
    "ids": (
        "ids must be an int tensor .* got list",
        lambda: conversion_gap(llama(), [[1, 2]], 8, 4),
    ),
    "steps by name": ("steps must be a whole number, .* got 'x'", lambda: Healing(steps="x")),
    "part of a step": ("steps must be a whole number, .* got 1.5", lambda: Healing(steps=1.5)),
    "rate": ("rate must be a positive number, got 'x'", lambda: Healing(rate="x")),
    "float64": (r"x must be torch\.float32", lambda: LAYER(normal(1, 3, 24).double())),
    "float16": (r"x must be torch\.float32", lambda: LAYER(normal(1, 3, 24).half())),
    "int": (r"got torch\.int64", lambda: LAYER(torch.ones(1, 3, 24, dtype=torch.int64))),
    "positions": (
        r"positions must be a tensor of shape \(3,\) or \(1, 3\)",
        lambda: LAYER(normal(1, 3, 24), positions=[0, 1, 2]),
    ),
    "too many positions": (
        r"got \(4,\)",
        lambda: LAYER(normal(1, 3, 24), positions=torch.arange(4)),
    ),
    "scale": (
        "scale must be a number above 0, got 'x'",
        lambda: MultiHeadLatentAttention(24, 3, 10, **WIDTHS, scale="x"),
    ),
    "theta": (
        "rope_theta must be a number above 1, got 0",
        lambda: MultiHeadLatentAttention(24, 3, 10, **WIDTHS, rope_theta=0),
    ),
    "state": ("state must map names to tensors, .* got list", lambda: LAYER.load_attention([1])),
    "layer": (
        "layer must be a whole number from 0 to 1, got 1.0",
        lambda: MultiHeadLatentAttention.from_transformers(make_host("deepseek_v3"), 1.0),
    ),
}


@pytest.mark.usefixtures("no_annotation_checks")
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_a_sentence(case):
    pattern, call = BAD[case]
    with pytest.raises(ValueError, match=pattern):
        call()


def test_a_cache_in_whole_numbers_is_counted():
    report = cache_report(LlamaConfig(), 1, dtype=torch.int8)
    assert (
        report["MHA"].bytes_per_token * 2 == cache_report(LlamaConfig(), 1)["MHA"].bytes_per_token
    )
