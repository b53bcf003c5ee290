"""The rolling cache: exact at every length, the window counted rightly, memory that stays."""

import pytest
import torch
from transformers import DynamicCache, MistralConfig, MistralForCausalLM, Qwen2Config
from transformers.models.mistral import modeling_mistral

from tests.naive.moxin_training import naive_ring, naive_window_attention
from trialrun.pretraining._rolling import (
    bytes_needed,
    cache_bytes,
    compact,
    prefill,
    reach,
    rolling_cache,
)

WINDOW = 8


def _model(*, window=WINDOW, layers=2, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=37,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        sliding_window=window,
        initializer_range=0.2,
        attn_implementation="sdpa",
    )
    return MistralForCausalLM(config).to(dtype).eval()


def _ids(length, batch=2):
    return torch.randint(0, 37, (batch, length), generator=torch.Generator().manual_seed(length))


def _by_steps(model, ids, cache):
    steps = [
        model(input_ids=ids[:, t : t + 1], past_key_values=cache, use_cache=True).logits
        for t in range(ids.shape[1])
    ]
    return torch.cat(steps, 1)


def _prefill_with(config, *, static=None, read=0):
    cache = rolling_cache(config, static=static)
    if read:
        _model()(input_ids=_ids(read), past_key_values=cache, use_cache=True)
    return prefill(_model(), _ids(9), cache=cache)


def _prefill_ids(ids):
    return prefill(_model(), torch.tensor([ids]))


def _recomputing():
    model = _model()
    model.gradient_checkpointing_enable()
    return model.train()


def _eager(dtype=torch.float64):
    model = _model(dtype=dtype)
    model.set_attn_implementation("eager")
    return model


def _padding():
    mask = torch.ones_like(_ids(9))
    mask[0, :4] = 0
    return mask


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 7, 8, 9, 63])
@pytest.mark.parametrize("static", [False, True])
def test_token_by_token_equals_one_pass(length, static):
    model, ids = _model(), _ids(length)
    cache = rolling_cache(model.config, static=length if static else None)
    torch.testing.assert_close(
        _by_steps(model, ids, cache), model(ids, use_cache=False).logits, atol=1e-13, rtol=1e-12
    )


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 7, 63])
def test_transformers_attention_is_the_window_of_the_slow_twin(monkeypatch, length):
    seen = {}
    original = modeling_mistral.ALL_ATTENTION_FUNCTIONS["sdpa"]

    def spy(module, query, key, value, *args, **kwargs):
        out = original(module, query, key, value, *args, **kwargs)
        seen["all"] = (query[0], key[0], value[0], out[0][0].transpose(0, 1))
        return out

    model = _model(layers=1)
    monkeypatch.setitem(modeling_mistral.ALL_ATTENTION_FUNCTIONS, "sdpa", spy)
    model(_ids(length, batch=1), use_cache=False)
    query, key, value, out = seen["all"]
    torch.testing.assert_close(out, naive_window_attention(query, key, value, WINDOW))


@torch.no_grad()
def test_a_token_sees_window_minus_one_tokens_back_and_not_one_more():
    model = _model(layers=1)
    ids = _ids(20, batch=1)
    before = model(ids).logits[0, -1]
    for back, seen in ((WINDOW - 1, True), (WINDOW, False)):
        other = ids.clone()
        other[0, -1 - back] = (other[0, -1 - back] + 1) % 37
        assert bool((model(other).logits[0, -1] != before).any()) is seen


@torch.no_grad()
def test_reach_is_where_influence_ends():
    model = _model(layers=3)
    far = reach(model.config)
    assert far == 3 * (WINDOW - 1)
    ids = _ids(40, batch=1)
    before = model(ids).logits[0, -1]
    for back, seen in ((far, True), (far + 1, False)):
        other = ids.clone()
        other[0, -1 - back] = (other[0, -1 - back] + 1) % 37
        assert bool((model(other).logits[0, -1] != before).any()) is seen


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 7, 8, 30])
def test_it_keeps_what_a_ring_of_the_window_would_need_for_the_next_token(length):
    model = _model(layers=1)
    ids = _ids(length, batch=1)
    cache = prefill(model, ids).cache
    everything = DynamicCache()
    model(ids, past_key_values=everything)
    # A ring of W slots overwrites its oldest as the next token comes, which leaves W - 1.
    ring = naive_ring(length, WINDOW - 1)
    torch.testing.assert_close(cache.layers[0].keys, everything.layers[0].keys[:, :, ring])


@torch.no_grad()
@pytest.mark.parametrize("piece", [1, 3, 8, 20, 64])
def test_a_prompt_in_pieces_with_padding_equals_the_row_alone(piece):
    model, ids = _model(), _ids(50)
    mask = torch.ones_like(ids)
    mask[0, :19] = 0
    found = prefill(model, ids, attention_mask=mask, piece=piece)
    alone = [model(ids[:1, 19:]).logits[0, -1], model(ids[1:]).logits[0, -1]]
    torch.testing.assert_close(found.logits, torch.stack(alone), atol=1e-13, rtol=1e-12)
    # It goes on from there, as the padded batch would.
    nxt = torch.tensor([[3], [4]])
    longer = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
    place = (longer.cumsum(-1) - 1)[:, -1:]
    on = model(nxt, past_key_values=found.cache, attention_mask=longer, position_ids=place).logits[
        :, -1
    ]
    expected = [
        model(torch.cat([ids[:1, 19:], nxt[:1]], 1)).logits[0, -1],
        model(torch.cat([ids[1:], nxt[1:]], 1)).logits[0, -1],
    ]
    torch.testing.assert_close(on, torch.stack(expected), atol=1e-13, rtol=1e-12)


@torch.no_grad()
def test_eager_attention_takes_padding_in_float32_and_whole_prompts_in_float64():
    model, ids, mask = _eager(torch.float32), _ids(30), torch.ones_like(_ids(30))
    mask[0, :19] = 0
    found = prefill(model, ids, attention_mask=mask).logits
    alone = torch.stack([model(ids[:1, 19:]).logits[0, -1], model(ids[1:]).logits[0, -1]])
    torch.testing.assert_close(found, alone, atol=5e-6, rtol=1e-5)
    exact = _eager()
    whole = prefill(exact, ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(whole, exact(ids).logits[:, -1], atol=5e-6, rtol=1e-5)


@torch.no_grad()
def test_memory_stays_as_the_text_grows_and_is_what_was_foretold():
    model = _model()
    held = {n: cache_bytes(prefill(model, _ids(n)).cache) for n in (8, 64, 400)}
    for length, found in held.items():
        assert found.held == found.shown == bytes_needed(model.config, length, batch=2, item=8)
    assert len(set(held.values())) == 1
    full = bytes_needed(model.config, 400, batch=2, item=8, rolling=False)
    assert full == 400 * held[400].held // (WINDOW - 1)


@torch.no_grad()
def test_a_prompt_read_at_once_leaves_its_storage_behind_until_compacted():
    model = _model()
    cache = rolling_cache(model.config)
    model(_ids(400), past_key_values=cache)
    found = cache_bytes(cache)
    assert found.held > 50 * found.shown
    compact(cache)
    assert cache_bytes(cache).held == found.shown == cache_bytes(cache).shown


@torch.no_grad()
def test_generation_goes_on_from_a_prefilled_cache():
    model, ids = _model(), _ids(40, batch=1)
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    settings["attention_mask"] = torch.ones_like(ids)
    cache = prefill(model, ids[:, :-1]).cache
    assert torch.equal(
        model.generate(ids, past_key_values=cache, **settings), model.generate(ids, **settings)
    )


def test_float32_agrees_to_a_millionth():
    model, ids = _model(dtype=torch.float32), _ids(63)
    with torch.no_grad():
        found = _by_steps(model, ids, rolling_cache(model.config))
        torch.testing.assert_close(found, model(ids).logits, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("sliding_window of at least 2", lambda: rolling_cache(MistralConfig(sliding_window=None))),
        ("static must be at least 1", lambda: rolling_cache(MistralConfig(), static=0)),
        (
            "layer 0 sees all",
            lambda: rolling_cache(Qwen2Config(use_sliding_window=True, max_window_layers=4)),
        ),
        ("must have shape", lambda: prefill(_model(), torch.zeros(3, dtype=torch.long))),
        ("at least 1 token, got none", lambda: prefill(_model(), _ids(0))),
        ("int64 or int32, got torch.float32", lambda: prefill(_model(), _ids(3).float())),
        ("int64 or int32, got torch.bool", lambda: prefill(_model(), _ids(3).bool())),
        (r"in 0\.\.36, the model's vocabulary, got .*37: enc", lambda: _prefill_ids([0, 37])),
        (r"in 0\.\.36, the model's vocabulary, got -1\.\.0", lambda: _prefill_ids([-1, 0])),
        ("config, got MistralForCausalLM: give model.config", lambda: rolling_cache(_model())),
        ("config, got MistralForCausalLM: give model.config", lambda: reach(_model())),
        (
            "config, got MistralForCausalLM: give model.config",
            lambda: bytes_needed(_model(), 9, rolling=False),
        ),
        ("piece must be", lambda: prefill(_model(), _ids(3), piece=0)),
        ("must have the model's 2 layers, got 1", lambda: _prefill_with(_model(layers=1).config)),
        ("window of 8 tokens, got 3", lambda: _prefill_with(_model(window=3).config)),
        ("got a static one", lambda: _prefill_with(_model().config, static=9)),
        ("one that has read 9 tokens", lambda: _prefill_with(_model().config, read=9)),
        ("model.eval", lambda: prefill(_recomputing(), _ids(9))),
        (
            "attn_implementation='sdpa'",
            lambda: prefill(_eager(), _ids(9), attention_mask=_padding()),
        ),
        (
            "pad prompts on the left",
            lambda: prefill(_model(), _ids(3), attention_mask=torch.tensor([[1, 1, 0], [1, 1, 1]])),
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_gets_one_clear_sentence(words, call):
    with pytest.raises(ValueError, match=words):
        call()
