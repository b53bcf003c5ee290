"""Conversion to a latent cache: exact where nothing is cut, best where something is, and whole."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from trialrun.attention import _mla_convert_parts as parts
from trialrun.attention._mla_convert import Healing, Recipe, conversion_gap, convert_to_mla
from trialrun.attention._mla_convert_model import LatentLlamaForCausalLM

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "vocab_size": 97,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
HOSTS = {
    "llama, multi-head": (LlamaConfig, LlamaForCausalLM, {}),
    "llama, grouped": (LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 2}),
    "llama, one key head": (LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 1}),
    "llama, biases": (
        LlamaConfig,
        LlamaForCausalLM,
        {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
    ),
    "llama, wide heads": (
        LlamaConfig,
        LlamaForCausalLM,
        {"num_key_value_heads": 2, "head_dim": 24},
    ),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"num_key_value_heads": 2}),
    "mistral": (
        MistralConfig,
        MistralForCausalLM,
        {"num_key_value_heads": 2, "sliding_window": None},
    ),
}


def make_host(kind="llama, grouped", *, seed=0, dtype=torch.float64, **given):
    config_class, model_class, extra = HOSTS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config_class(**{**SIZES, **extra, **given}))
        for name, parameter in model.named_parameters():
            if "proj" in name:
                torch.nn.init.normal_(parameter, std=0.5 if "bias" in name else 0.2)
    return model.to(dtype).eval()


def make_ids(rows=3, time=23, *, seed=0):
    return torch.randint(2, 97, (rows, time), generator=torch.Generator().manual_seed(seed))


def attend(model, layer, *, time=23, dtype=torch.float64):
    """What one attention layer gives on fixed inputs: the models' norms round to float32."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(2, time, 64, generator=draw, dtype=torch.float64).to(dtype)
    turned = model.model.rotary_emb(x, torch.arange(time)[None])
    with torch.no_grad():
        return model.model.layers[layer].self_attn(
            hidden_states=x, position_embeddings=turned, attention_mask=None
        )[0]


def same_attention(host, converted, *, atol=1e-12):
    for layer in range(2):
        torch.testing.assert_close(
            attend(converted, layer), attend(host, layer), atol=atol, rtol=1e-10
        )


@pytest.mark.parametrize("mix", [True, False])
@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("kind", HOSTS)
def test_with_every_rotary_pair_and_full_rank_nothing_changes(kind, calibrated, mix):
    host = make_host(kind)
    attention = host.model.layers[0].self_attn
    every = attention.k_proj.out_features
    converted = convert_to_mla(
        host,
        None,
        every,
        calibration=make_ids() if calibrated else None,
        recipe=Recipe(mix=mix),
    )
    same_attention(host, converted)
    with torch.no_grad():
        torch.testing.assert_close(
            converted(make_ids()).logits, host(make_ids()).logits, atol=1e-6, rtol=1e-6
        )


@pytest.mark.parametrize("rope_dims", [0, 6])
@pytest.mark.parametrize("select", parts.SELECTIONS)
@pytest.mark.parametrize("kind", ["llama, multi-head", "llama, biases", "qwen2"])
def test_without_rotation_full_rank_is_exact(kind, select, rope_dims):
    host = make_host(kind)
    host.model.rotary_emb.inv_freq.zero_()
    converted = convert_to_mla(
        host, None, rope_dims, calibration=make_ids(), recipe=Recipe(select=select)
    )
    groups = host.config.num_key_value_heads
    assert converted.config.kv_lora_rank == min(2 * groups * 16 - rope_dims, 64)
    same_attention(host, converted)


def test_without_rotation_full_rank_is_exact_in_float32():
    host = make_host("qwen2", dtype=torch.float32)
    host.model.rotary_emb.inv_freq.zero_()
    converted = convert_to_mla(host, None, 0)
    for layer in range(2):
        ours = attend(converted, layer, dtype=torch.float32)
        theirs = attend(host, layer, dtype=torch.float32)
        assert (ours - theirs).abs().max() < 1e-6 * theirs.abs().max() * 10


def naive_partial(host, layer, kept, *, time=9):
    """Attention of one layer that turns only the pairs in ``kept``, by plain loops."""
    attention = host.model.layers[layer].self_attn
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(2, 23, 64, generator=draw, dtype=torch.float64)[:1, :time]
    heads, dim, half = 4, attention.head_dim, attention.head_dim // 2
    groups = host.config.num_key_value_heads
    frequency = host.model.rotary_emb.inv_freq
    q = attention.q_proj(x)[0].view(time, heads, dim)
    k = attention.k_proj(x)[0].view(time, groups, dim)
    v = attention.v_proj(x)[0].view(time, groups, dim)
    out = torch.zeros(time, heads, dim, dtype=torch.float64)
    for h in range(heads):
        g = h // (heads // groups)
        for i in range(time):
            scores = []
            for j in range(i + 1):
                score = 0.0
                for m in range(half):
                    angle = float(frequency[m]) * (i - j) if m in kept else 0.0
                    cos = torch.cos(torch.tensor(angle, dtype=torch.float64))
                    sin = torch.sin(torch.tensor(angle, dtype=torch.float64))
                    a, b = q[i, h, m], q[i, h, m + half]
                    c, d = k[j, g, m], k[j, g, m + half]
                    score = score + (a * c + b * d) * cos + (a * d - b * c) * sin
                scores.append(score * dim**-0.5)
            shares = torch.stack(scores).softmax(0)
            for j in range(i + 1):
                out[i, h] += shares[j] * v[j, g]
    return attention.o_proj(out.flatten(1))


@pytest.mark.parametrize(
    ("select", "kept"), [("high", {0, 1}), ("low", {6, 7}), ("uniform", {0, 7})]
)
@pytest.mark.parametrize("mix", [True, False])
def test_partial_rotary_turns_just_the_chosen_pairs(select, kept, mix):
    host = make_host("llama, biases")
    converted = convert_to_mla(
        host, None, 8, calibration=make_ids(), recipe=Recipe(select=select, mix=mix)
    )
    with torch.no_grad():
        slow = naive_partial(host, 0, kept)
    fast = attend(converted, 0)[0, :9]
    # transformers takes cosines in float32.
    torch.testing.assert_close(fast, slow, atol=2e-6, rtol=1e-6)


def test_contribution_keeps_the_loudest_pairs():
    host = make_host()
    loud = (3, 5)
    with torch.no_grad():
        for layer in host.model.layers:
            for name in ("q_proj", "k_proj"):
                weight = getattr(layer.self_attn, name).weight.view(-1, 16, 64)
                for m in loud:
                    weight[:, [m, m + 8]] *= 30
    converted = convert_to_mla(host, None, 8, calibration=make_ids())
    for layer in converted.model.layers:
        assert layer.self_attn.rotary_pairs.tolist() == [3, 3, 5, 5]


def test_mixing_heads_makes_half_the_pairs_enough_where_key_heads_are_alike():
    host = make_host()
    with torch.no_grad():
        for layer in host.model.layers:
            weight = layer.self_attn.k_proj.weight.view(2, 16, 64)
            weight[1] = 0.5 * weight[0]
    same_attention(host, convert_to_mla(host, None, 16), atol=1e-9)
    apart = convert_to_mla(host, None, 16, recipe=Recipe(mix=False))
    assert (attend(apart, 0) - attend(host, 0)).abs().max() > 1e-2


def test_principal_components_lose_what_the_smallest_eigenvalues_say():
    draw = torch.Generator().manual_seed(0)
    keys = torch.randn(12, 20, generator=draw, dtype=torch.float64)
    values = torch.randn(10, 20, generator=draw, dtype=torch.float64)
    root = torch.randn(20, 20, generator=draw, dtype=torch.float64)
    covariance = root @ root.T

    def lost(factor, rank=7):
        down, up_k, up_v = parts.factorise(
            keys, values, covariance, rank, factor=factor, balance=False, seed=0
        )
        off = torch.cat((keys - up_k @ down, values - up_v @ down))
        return float((off @ covariance * off).sum())

    both = torch.cat((keys, values))
    eigenvalues = torch.linalg.eigvalsh(both @ covariance @ both.T)
    assert lost("pca") == pytest.approx(float(eigenvalues[:-7].sum()), rel=1e-5)
    for other in ("svd", "split", "random"):
        assert lost(other) > 1.05 * lost("pca")


@pytest.mark.parametrize("shape", [(9, 30), (30, 9)])
def test_the_cheap_decomposition_of_large_layers_agrees(monkeypatch, shape):
    draw = torch.Generator().manual_seed(1)
    rows = torch.randn(shape, generator=draw, dtype=torch.float64)
    root = torch.eye(shape[1], dtype=torch.float64)
    down, up = parts._principal(rows, root, 5)
    monkeypatch.setattr(parts, "EXACT_UP_TO", 0)
    cheap_down, cheap_up = parts._principal(rows, root, 5)
    torch.testing.assert_close(cheap_up @ cheap_down, up @ down, atol=1e-9, rtol=0)


def test_balance_keeps_large_values_from_crowding_out_keys():
    draw = torch.Generator().manual_seed(0)
    keys = torch.randn(12, 20, generator=draw, dtype=torch.float64)
    values = 1000 * torch.randn(12, 20, generator=draw, dtype=torch.float64)
    eye = torch.eye(20, dtype=torch.float64)

    def key_error(balance):
        down, up_k, _ = parts.factorise(
            keys, values, eye, 12, factor="svd", balance=balance, seed=0
        )
        return float((keys - up_k @ down).norm() / keys.norm())

    assert key_error(True) < 0.75 * key_error(False)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama, multi-head", "qwen2"])
def test_decoding_absorbed_gives_what_expanding_gives(monkeypatch, kind, implementation):
    # In float64 transformers' eager attention gives NaN on padding by itself.
    dtype = torch.float32 if implementation == "eager" else torch.float64
    host = make_host(kind, attn_implementation=implementation, dtype=dtype)
    converted = convert_to_mla(host, 20, 8, calibration=make_ids())
    attention = type(converted.model.layers[0].self_attn)
    ids, mask = make_ids(), torch.ones(3, 23, dtype=torch.int64)
    mask[0, :4] = 0

    def decode(absorbs, steps):
        used = []

        def choose(self, query, cached):
            used.append(query < cached and absorbs)
            return used[-1]

        monkeypatch.setattr(attention, "absorbs", choose)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache, found, start = None, [], 0
        for stop in steps:
            with torch.no_grad():
                out = converted(
                    ids[:, start:stop],
                    attention_mask=mask[:, :stop],
                    position_ids=positions[:, start:stop],
                    past_key_values=cache,
                    use_cache=True,
                )
            cache, start = out.past_key_values, stop
            found.append(out.logits)
        assert any(used) == absorbs
        return torch.cat(found, dim=1)[mask.bool()]

    whole = decode(False, [23])
    for steps in ([12, 13, 16, 23], [8, 9, 10, 11, 23]):
        torch.testing.assert_close(decode(True, steps), whole, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(decode(False, steps), whole, atol=1e-5, rtol=1e-5)


def test_cheapest_path_is_taken():
    converted = convert_to_mla(make_host("llama, multi-head"), 40, 8)
    attention = converted.model.layers[0].self_attn
    assert attention.absorbs(1, 1000)
    assert not attention.absorbs(1000, 1000)
    limit = 1 / (1 / 1000 + (2 * 40 - 32) / (40 * 32))
    assert attention.absorbs(int(limit), 1000)
    assert not attention.absorbs(int(limit) + 1, 1000)


def test_the_cache_holds_latents_alone():
    converted = convert_to_mla(make_host(), 20, 8, calibration=make_ids())
    with torch.no_grad():
        cache = converted(make_ids(), use_cache=True).past_key_values
    for layer in cache.layers:
        assert layer.keys.shape == (3, 1, 23, 20)
        assert layer.values.shape == (3, 1, 23, 8)


def _generate(model, ids, **how):
    settings = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0, **how}
    return model.generate(ids, **settings)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"cache_implementation": "static"}])
def test_generation_with_the_cache_gives_what_it_gives_without(how):
    converted = convert_to_mla(make_host("qwen2"), 20, 8, calibration=make_ids())
    ids = make_ids(2, 7, seed=4)
    mask = torch.ones_like(ids)
    plain = {name: value for name, value in how.items() if name == "num_beams"}
    without = _generate(converted, ids, attention_mask=mask, use_cache=False, **plain)
    assert torch.equal(_generate(converted, ids, attention_mask=mask, **how), without)


def test_a_row_padded_on_the_left_generates_what_it_does_alone():
    converted = convert_to_mla(make_host(), 20, 8, calibration=make_ids())
    ids = make_ids(1, 6, seed=5)
    alone = _generate(converted, ids, attention_mask=torch.ones_like(ids))[0, 6:]
    padded = torch.cat((torch.zeros(1, 3, dtype=ids.dtype), ids), dim=1)
    both = torch.cat((padded, make_ids(1, 9, seed=6)))
    mask = torch.ones_like(both)
    mask[0, :3] = 0
    assert torch.equal(_generate(converted, both, attention_mask=mask)[0, 9:], alone)


def test_a_cropped_cache_goes_on_as_if_the_rest_had_not_been():
    converted = convert_to_mla(make_host(), 20, 8)
    ids = make_ids(1, 12)
    with torch.no_grad():
        cache = converted(ids, use_cache=True).past_key_values
        cache.crop(7 - 12)
        resumed = converted(ids[:, 7:9], past_key_values=cache).logits
        whole = converted(ids[:, :9]).logits[:, 7:]
    torch.testing.assert_close(resumed, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("no_annotation_checks")
@pytest.mark.parametrize("kind", ["llama, grouped", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_is_read_by_the_auto_class(tmp_path, kind, tied):
    host = make_host(kind, tie_word_embeddings=tied, dtype=torch.float32)
    converted = convert_to_mla(host, 20, 8, calibration=make_ids())
    converted.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, LatentLlamaForCausalLM)
    assert loaded.config.converted_from == host.config.model_type
    with torch.no_grad():
        assert torch.equal(loaded(make_ids()).logits, converted(make_ids()).logits)
    ids = make_ids(2, 7)
    mask = torch.ones_like(ids)
    assert torch.equal(
        _generate(loaded, ids, attention_mask=mask), _generate(converted, ids, attention_mask=mask)
    )


@pytest.mark.usefixtures("no_annotation_checks")
def test_a_checkpoint_with_missing_weights_is_refused(tmp_path):
    convert_to_mla(make_host(dtype=torch.float32), 20, 8).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    del state["model.layers.1.self_attn.kv_b_proj.weight"]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights .*layers\.1\.self_attn\.kv_b_proj"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_host_and_random_state_stay_and_the_dtype_is_kept(dtype):
    host = make_host("qwen2", dtype=dtype)
    before = copy.deepcopy(host.state_dict())
    torch.manual_seed(7)
    state = torch.get_rng_state()
    converted = convert_to_mla(
        host, 20, 8, calibration=make_ids(), healing=Healing(steps=2, batch=2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], x) for name, x in host.state_dict().items())
    assert {p.dtype for p in converted.parameters()} == {dtype}
    assert all(p.requires_grad for p in converted.parameters())
    assert not converted.training
    mine = {p.data_ptr() for p in converted.parameters()}
    assert not mine & {p.data_ptr() for p in host.parameters()}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "rope_theta": 1e4,
            "original_max_position_embeddings": 16,
        },
    ],
)
def test_a_scaled_rotary_table_is_taken_over(rope):
    host = make_host(rope_parameters=rope, max_position_embeddings=64)
    same_attention(host, convert_to_mla(host, None, 32), atol=1e-7)
    host.model.rotary_emb.inv_freq.zero_()
    same_attention(host, convert_to_mla(host, None, 6), atol=1e-6)


def test_padding_is_left_out_of_the_calibration():
    host = make_host()
    ids = make_ids(2, 12)
    mask = torch.ones_like(ids)
    padded = torch.cat((torch.zeros(2, 5, dtype=ids.dtype), ids), dim=1)
    padded_mask = torch.cat((torch.zeros(2, 5, dtype=ids.dtype), mask), dim=1)
    positions_alike = convert_to_mla(host, 20, 8, calibration=[ids[:1], ids[1:]])
    plain = convert_to_mla(host, 20, 8, calibration=ids)
    given = {"input_ids": padded, "attention_mask": padded_mask}
    masked = convert_to_mla(host, 20, 8, calibration=given)
    for other in (positions_alike, masked):
        torch.testing.assert_close(attend(other, 0), attend(plain, 0), atol=1e-4, rtol=1e-4)


def test_more_latent_loses_less():
    host = make_host()
    ids = make_ids(8, 40)
    with torch.no_grad():
        wanted = host(ids).logits
        lost = [
            float((convert_to_mla(host, r, 16, calibration=ids)(ids).logits - wanted).norm())
            for r in (4, 16, 32, 48)
        ]
    assert lost == sorted(lost, reverse=True)


@pytest.mark.parametrize("teacher", [True, False])
def test_healing_trains_the_attention_alone_and_brings_it_nearer(teacher):
    host = make_host(dtype=torch.float32)
    ids = make_ids(16, 24)
    cut = convert_to_mla(host, 8, 4, calibration=ids)
    healing = Healing(steps=30, batch=8, rate=3e-3, teacher=teacher)
    healed = convert_to_mla(host, 8, 4, calibration=ids, healing=healing)
    again = convert_to_mla(host, 8, 4, calibration=ids, healing=healing)
    for (name, a), b, c in zip(cut.named_parameters(), healed.parameters(), again.parameters()):
        assert torch.equal(b, c)
        if ".self_attn." not in name:
            assert torch.equal(a, b), name

    def score(model):
        with torch.no_grad():
            found = model(ids).logits.log_softmax(-1)
            if not teacher:
                return -float(found[:, :-1].gather(-1, ids[:, 1:, None]).mean())
            wanted = host(ids).logits.log_softmax(-1)
            return float((wanted.exp() * (wanted - found)).sum(-1).mean())

    assert score(healed) < 0.95 * score(cut)


def test_the_gap_tells_each_stage():
    host = make_host()
    ids = make_ids(4, 30)
    every = conversion_gap(host, ids, 64 - 32, 32)
    assert every.original == pytest.approx(every.partial_rotary, abs=1e-6)
    assert every.latent == pytest.approx(every.original, abs=1e-6)
    assert every.healed is None
    cut = conversion_gap(host, ids, 8, 4, calibration=ids, healing=Healing(steps=1, batch=2))
    assert cut.healed is not None
    assert cut.partial_rotary != cut.original != cut.latent


def _refused(model):
    return lambda: convert_to_mla(model, 8, 4)


def _tiny(config_class, model_class, **given):
    sizes = {**SIZES, "num_key_value_heads": 2, "num_hidden_layers": 1, **given}
    return model_class(config_class(**sizes))


BAD = {
    "not a model": (r"must be a transformers model, got Linear", _refused(torch.nn.Linear(2, 2))),
    "gpt2": (
        r"serves llama, mistral, qwen2 .* got GPT2LMHeadModel",
        lambda: _refused(GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2, n_layer=1)))(),
    ),
    "key norms": (
        r"model_type qwen3",
        lambda: _refused(_tiny(Qwen3Config, Qwen3ForCausalLM))(),
    ),
    "no head": (
        r"for causal language modelling, got LlamaModel",
        lambda: _refused(_tiny(LlamaConfig, LlamaModel))(),
    ),
    "sliding window": (
        r"sliding window of 8 tokens: load it",
        lambda: _refused(_tiny(MistralConfig, MistralForCausalLM, sliding_window=8))(),
    ),
    "twice": (
        r"has a latent cache already",
        lambda: _refused(convert_to_mla(make_host(), 8, 4))(),
    ),
    "on meta": (
        r"q_proj must hold floating-point weights in memory, got the meta device",
        lambda: _refused(make_host().to("meta"))(),
    ),
    "odd rotary": (
        r"rope_dims must be an even number from 0 to 32 .* got 3",
        lambda: convert_to_mla(make_host(), 8, 3),
    ),
    "wide rotary": (
        r"rope_dims must be .* got 34",
        lambda: convert_to_mla(make_host(), 8, 34),
    ),
    "no rank": (
        r"kv_rank must be a whole number from 1 to 60, .* got 0",
        lambda: convert_to_mla(make_host(), 0, 4),
    ),
    "large rank": (r"kv_rank must be .* got 61", lambda: convert_to_mla(make_host(), 61, 4)),
    "fraction": (r"kv_rank must be .* got 8\.5", lambda: convert_to_mla(make_host(), 8.5, 4)),
    "empty": (
        r"calibration is empty: pass token ids",
        lambda: convert_to_mla(make_host(), 8, 4, calibration=[]),
    ),
    "empty tensor": (
        r"calibration is empty",
        lambda: convert_to_mla(make_host(), 8, 4, calibration=torch.zeros(0, 5, dtype=torch.int64)),
    ),
    "all padding": (
        r"calibration is empty",
        lambda: convert_to_mla(
            make_host(),
            8,
            4,
            calibration={
                "input_ids": make_ids(),
                "attention_mask": torch.zeros(3, 23, dtype=torch.int64),
            },
        ),
    ),
    "text": (
        r"calibration must hold token ids, .* got str",
        lambda: convert_to_mla(make_host(), 8, 4, calibration=["some text"]),
    ),
    "one row": (
        r"of shape \(batch, time\), got \(5,\)",
        lambda: convert_to_mla(make_host(), 8, 4, calibration=torch.ones(5, dtype=torch.int64)),
    ),
    "foreign ids": (
        r"ids must be in 0\.\.96, got 97",
        lambda: convert_to_mla(make_host(), 8, 4, calibration=torch.full((1, 4), 97)),
    ),
    "mask shape": (
        r"attention_mask must be a tensor of the shape of input_ids \(3, 23\), got \(3, 2\)",
        lambda: convert_to_mla(
            make_host(),
            8,
            4,
            calibration={"input_ids": make_ids(), "attention_mask": torch.ones(3, 2)},
        ),
    ),
    "pca of nothing": (
        r"factor 'pca' needs a calibration",
        lambda: convert_to_mla(make_host(), 8, 4, recipe=Recipe(factor="pca")),
    ),
    "healing on nothing": (
        r"healing needs a calibration",
        lambda: convert_to_mla(make_host(), 8, 4, healing=Healing()),
    ),
    "unknown selection": (r"select must be one of contribution", lambda: Recipe(select="best")),
    "unknown factor": (r"factor must be one of pca", lambda: Recipe(factor="qr")),
    "no steps": (
        r"healing steps must be a whole number, at least 1, got 0",
        lambda: Healing(steps=0),
    ),
    "no rate": (r"healing rate must be a positive number, got 0", lambda: Healing(rate=0)),
    "nothing to score": (
        r"at least two tokens a row, got torch.int64 \(3, 1\)",
        lambda: conversion_gap(make_host(), make_ids(3, 1), 8, 4),
    ),
}


@pytest.mark.usefixtures("no_annotation_checks")
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_a_sentence(case):
    pattern, call = BAD[case]
    with pytest.raises(ValueError, match=pattern):
        call()
