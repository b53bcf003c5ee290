"""ReRoPE: agreement with its slow twin, what its map of distances promises, and the patch."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.naive.rerope import naive_distance, naive_rerope
from trialrun.attention.rerope import ReRoPE, rerope_attention
from trialrun.blocks.rotary import Rotary

WIDTH = 8
ROTARY = Rotary(WIDTH)


def _inputs(queries, keys, *, batch=2, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)

    def make(heads, time):
        x = torch.randn(batch, heads, time, WIDTH, generator=draw, dtype=torch.float64)
        return x.to(dtype).requires_grad_()

    return make(4, queries), make(2, keys), make(2, keys)


def _agrees(inputs, *, backend="auto", logn=None, **kwargs):
    fast = rerope_attention(*inputs, rotary=ROTARY, backend=backend, logn_train_len=logn, **kwargs)
    slow = naive_rerope(*inputs, train_len=logn, **kwargs)
    torch.testing.assert_close(fast, slow, atol=1e-12, rtol=1e-10)
    up = torch.randn(fast.shape, generator=torch.Generator().manual_seed(5), dtype=fast.dtype)
    mine = torch.autograd.grad((fast * up).sum(), inputs)
    theirs = torch.autograd.grad((slow * up).sum(), inputs)
    torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("slope", [None, 3.0])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (7, 7), (1, 9), (4, 11)])
@pytest.mark.parametrize("window", [1, 4, 20])
def test_outputs_and_gradients_match_the_slow_twin(slope, queries, keys, window):
    _agrees(_inputs(queries, keys), window=window, slope=slope, logn=5)


def test_sixty_three_tokens_match_and_both_kernels_agree():
    inputs = _inputs(63, 63, batch=1)
    settings = {"window": 9, "slope": 4.0}
    _agrees(inputs, **settings)
    both = [
        rerope_attention(*inputs, rotary=ROTARY, backend=name, **settings)
        for name in ("sdpa", "eager")
    ]
    torch.testing.assert_close(*both, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("queries", [1, 5, 13])
@pytest.mark.parametrize("kind", ["left", "right", "holes", "empty row"])
def test_padding_moves_no_distance_and_padded_queries_give_zero(queries, kind):
    padding = torch.ones(2, 13, dtype=torch.bool)
    spots = {"left": slice(0, 4), "right": slice(-3, None), "holes": slice(5, 8)}
    padding[0, spots.get(kind, slice(None))] = False
    inputs = _inputs(queries, 13)
    _agrees(inputs, window=4, slope=3.0, logn=5, padding=padding)
    out = rerope_attention(*inputs, rotary=ROTARY, window=4, padding=padding)
    assert not out[0, :, ~padding[0, -queries:]].any()


@pytest.mark.parametrize("slope", [None, 3.0])
def test_positions_and_not_indices_decide_near_and_far(slope):
    positions = torch.stack([torch.arange(13) * 2 + 1, torch.arange(13) + 30])
    _agrees(_inputs(13, 13), window=5, slope=slope, logn=9, positions=positions)
    _agrees(_inputs(4, 13), window=5, slope=slope, logn=9, positions=positions[:1].expand(2, -1))


def test_float32_stays_within_a_hundred_thousandth():
    inputs = _inputs(63, 63, dtype=torch.float32)
    fast = rerope_attention(*inputs, rotary=ROTARY, window=9, slope=4.0)
    exact = naive_rerope(*(x.double() for x in inputs), window=9, slope=4.0)
    torch.testing.assert_close(fast.double(), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "loose"), [(torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
def test_sixteen_bit_has_no_nan_where_nothing_is_far(dtype, loose):
    inputs = _inputs(21, 21, dtype=dtype)
    fast = rerope_attention(*inputs, rotary=ROTARY, window=6)
    exact = naive_rerope(*(x.double() for x in inputs), window=6)
    torch.testing.assert_close(fast.double(), exact, atol=loose, rtol=loose)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(0, 3000))
def test_a_common_shift_of_all_positions_changes_nothing(seed, window, shift):
    inputs = [x.detach() for x in _inputs(12, 12, seed=seed)]
    at = torch.arange(12) + shift
    moved = rerope_attention(*inputs, rotary=ROTARY, window=window, positions=at)
    still = rerope_attention(*inputs, rotary=ROTARY, window=window)
    torch.testing.assert_close(moved, still, atol=1e-11, rtol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 11))
def test_later_tokens_never_change_earlier_outputs(seed, cut):
    q, k, v = (x.detach() for x in _inputs(12, 12, seed=seed))
    full = rerope_attention(q, k, v, rotary=ROTARY, window=4, slope=2.0)
    part = [x[:, :, :cut] for x in (q, k, v)]
    torch.testing.assert_close(
        full[:, :, :cut], rerope_attention(*part, rotary=ROTARY, window=4, slope=2.0)
    )


def test_beyond_the_window_the_order_of_far_tokens_does_not_matter():
    q, k, v = (x.detach() for x in _inputs(1, 12))
    swap = torch.tensor([3, 1, 2, 0, *range(4, 12)])
    same = [
        rerope_attention(q, a, b, rotary=ROTARY, window=5)
        for a, b in ((k, v), (k[:, :, swap], v[:, :, swap]))
    ]
    torch.testing.assert_close(*same)
    leaky = rerope_attention(q, k[:, :, swap], v[:, :, swap], rotary=ROTARY, window=5, slope=2.0)
    straight = rerope_attention(q, k, v, rotary=ROTARY, window=5, slope=2.0)
    assert not torch.allclose(leaky, straight)


def test_reach_is_where_the_used_distance_meets_the_training_length():
    for window, train_len, slope in ((4, 16, 2.0), (8, 16, 5.0)):
        reach = ReRoPE(window=window, train_len=train_len, slope=slope).reach
        assert naive_distance(reach, window, slope) == train_len
    assert ReRoPE(window=4, train_len=16).reach == float("inf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 0}, "window must be"),
        ({"slope": 1.0}, "slope must be"),
        ({"logn_train_len": 1}, "logn_train_len must be at least 2"),
        ({"padding": torch.ones(2, 6, dtype=torch.bool)}, "padding must be bool of shape"),
        ({"positions": torch.arange(4)}, "positions must give every key's position"),
        ({"backend": "fast"}, "backend must be one of"),
        ({"rotary": Rotary(16)}, "turns 16 features"),
    ],
)
def test_a_bad_call_is_answered_by_one_sentence(change, message):
    inputs = _inputs(7, 7)
    with pytest.raises(ValueError, match=message):
        rerope_attention(*inputs, **{"rotary": ROTARY, "window": 3, **change})


COMMON = {
    "vocab_size": 31,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
HOSTS = {
    "llama": lambda **kw: LlamaForCausalLM(LlamaConfig(**{**COMMON, **kw})),
    "mistral": lambda **kw: MistralForCausalLM(
        MistralConfig(**{**COMMON, "sliding_window": None, **kw})
    ),
    "qwen2": lambda **kw: Qwen2ForCausalLM(Qwen2Config(**{**COMMON, **kw})),
    "qwen3": lambda **kw: Qwen3ForCausalLM(Qwen3Config(**{**COMMON, "head_dim": 8, **kw})),
}
IDS = torch.randint(2, 31, (2, 24), generator=torch.Generator().manual_seed(3))
PATCHES = {
    "flat": ReRoPE(window=6, train_len=16, logn=True),
    "leaky": ReRoPE(window=6, train_len=16, slope=4.0),
}


def _host(kind="llama", **config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return HOSTS[kind](**config).double().eval()


def _logits(model, ids=IDS, **kwargs):
    with torch.no_grad():
        return model(ids, **kwargs).logits


@pytest.mark.parametrize("kind", list(HOSTS))
@pytest.mark.parametrize("name", list(PATCHES))
def test_chunks_and_single_tokens_give_what_one_pass_gives(kind, name):
    model = PATCHES[name].attach(_host(kind))
    whole = _logits(model)
    cache, parts, done = DynamicCache(config=model.config), [], 0
    for step in (5, 1, 1, 7, 1, 9):
        ids = IDS[:, done : done + step]
        parts.append(_logits(model, ids, past_key_values=cache, use_cache=True))
        done += step
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-11, rtol=1e-9)


def test_within_the_window_the_patched_model_is_the_model():
    model = _host()
    plain = _logits(model)
    with ReRoPE(window=6, train_len=16).attached(model):
        found = _logits(model)
    torch.testing.assert_close(found[:, :7], plain[:, :7], atol=1e-6, rtol=1e-6)
    assert (found[:, 8:] - plain[:, 8:]).abs().max() > 1e-5


@pytest.mark.parametrize("name", list(PATCHES))
def test_a_left_padded_batch_generates_what_each_row_does_alone(name):
    model = PATCHES[name].attach(_host())
    ids = IDS.clone()
    ids[1, :9] = 0
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    settings = {"max_new_tokens": 12, "do_sample": False}
    both = model.generate(ids, attention_mask=mask, **settings)
    assert torch.equal(both[0], model.generate(IDS[:1], **settings)[0])
    assert torch.equal(both[1, 9:], model.generate(IDS[1:, 9:], **settings)[0])


@pytest.mark.parametrize("name", list(PATCHES))
@pytest.mark.parametrize(
    "way",
    [
        {"use_cache": False},
        {"prompt_lookup_num_tokens": 3},
        {"prefill_chunk_size": 5},
    ],
)
def test_every_way_of_greedy_decoding_gives_the_same_tokens(name, way):
    model = PATCHES[name].attach(_host())
    settings = {"max_new_tokens": 15, "do_sample": False}
    straight = model.generate(IDS[:1], **settings)
    assert torch.equal(model.generate(IDS[:1], **settings, **way), straight)


def test_beam_search_scores_what_a_single_pass_scores():
    model = PATCHES["flat"].attach(_host())
    found = model.generate(
        IDS[:1],
        max_new_tokens=10,
        num_beams=3,
        do_sample=False,
        length_penalty=0.0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    logits = _logits(model, found.sequences)[0, 23:-1].log_softmax(-1)
    total = logits.gather(1, found.sequences[0, 24:, None]).sum()
    torch.testing.assert_close(found.sequences_scores[0].double(), total, atol=1e-4, rtol=1e-4)


def test_settings_travel_and_plain_transformers_ignores_them(tmp_path):
    model = _host()
    plain = _logits(model)
    with PATCHES["leaky"].attached(model):
        wanted = _logits(model)
        model.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert torch.equal(_logits(loaded), plain)
    ReRoPE.from_config(loaded.config).attach(loaded)
    assert torch.equal(_logits(loaded), wanted)


def test_detaching_restores_a_deep_copy_too():
    model = _host()
    plain = _logits(model)
    twin = copy.deepcopy(PATCHES["flat"].attach(model))
    PATCHES["leaky"].detach(twin)
    assert torch.equal(_logits(twin), plain)
    assert not torch.equal(_logits(model), plain)
    PATCHES["flat"].detach(model)
    assert torch.equal(_logits(model), plain)
    assert model.config._attn_implementation == twin.config._attn_implementation == "sdpa"


def test_training_through_the_patch_gives_the_slow_gradients():
    grads = []
    for backend in ("sdpa", "eager"):
        model = ReRoPE(window=6, train_len=16, slope=4.0, backend=backend).attach(_host())
        model.train()(IDS, labels=IDS).loss.backward()
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*grads, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(
    ("build", "patch", "message"),
    [
        (
            lambda: GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9)),
            {"window": 4, "train_len": 8},
            "gpt2 has none",
        ),
        (lambda: _host("mistral", sliding_window=8), {"window": 4}, "sliding_window=None"),
        (
            lambda: _host("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=0),
            {"window": 4},
            "use_sliding_window=False",
        ),
        (
            lambda: _host(rope_parameters={"rope_type": "linear", "factor": 2, "rope_theta": 1e4}),
            {"window": 4},
            "already scaled",
        ),
        (_host, {"window": 16}, "below the training length of 16"),
        (lambda: torch.nn.Linear(2, 2), {"window": 4}, "must be a transformers model"),
    ],
)
def test_a_model_it_cannot_serve_is_refused_untouched(build, patch, message):
    model = build()
    before = dict(vars(model))
    with pytest.raises(ValueError, match=message):
        ReRoPE(**patch).attach(model)
    assert vars(model).keys() == before.keys()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda model: model.generate(
                IDS, max_new_tokens=2, do_sample=False, cache_implementation="static"
            ),
            "use DynamicCache",
        ),
        (
            lambda model: model.generate(
                IDS,
                attention_mask=torch.ones_like(IDS),
                max_new_tokens=2,
                do_sample=False,
                cache_implementation="static",
            ),
            "use DynamicCache",
        ),
        (lambda model: model(IDS, position_ids=torch.arange(24)[None] * 2), "position_ids|packed"),
        (lambda model: model(IDS, attention_mask=torch.ones(2, 1, 24, 24)), "shape"),
        (lambda model: model.train()(IDS), "attention_dropout to 0"),
    ],
)
def test_a_use_it_cannot_serve_is_answered_by_one_sentence(call, message):
    model = ReRoPE(window=6, train_len=16).attach(_host(attention_dropout=0.1))
    with pytest.raises(ValueError, match=message):
        call(model)
