"""AbsorbedMLA on every transformers class that re-expands its latent cache."""

import copy

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from tests.attention.mla_hosts import MODELS, make_host
from trialrun.attention import _mla_core, _mla_host
from trialrun.attention.mla import AbsorbedMLA
from trialrun.blocks.patching import patches_of

LENGTH = 9
ALL = pytest.mark.parametrize("kind", sorted(MODELS))
# Its attention sinks exist in eager attention only.
IMPLEMENTATION = {"hy_v4": "eager"}
# Their recurrent layers keep a state that can be neither cropped nor of a fixed length.
RECURRENT = ("bailing_hybrid", "glm5_next", "kimi_linear")


def _host(kind, **given):
    implementation = IMPLEMENTATION.get(kind, "sdpa")
    dtype = torch.float32 if implementation == "eager" else torch.float64
    return make_host(kind, **{"implementation": implementation, "dtype": dtype} | given)


def _ids(batch=2, length=LENGTH, seed=1):
    return torch.randint(2, 97, (batch, length), generator=torch.Generator().manual_seed(seed))


def _left_padded(ids):
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    return mask


def _generate(model, ids, mask=None, **given):
    mask = torch.ones_like(ids) if mask is None else mask
    found = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=8,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
        **given,
    )
    return found.sequences, torch.stack(found.scores)


class Expansions:
    """Count the tokens that go through the up-projections of latents."""

    def __init__(self, model):
        self.tokens = 0
        self.handles = [
            m.register_forward_pre_hook(self._count)
            for n, m in model.named_modules()
            if n.endswith("kv_b_proj")
        ]

    def _count(self, _, args):
        self.tokens += args[0].shape[-2]


def test_every_class_with_the_hook_is_tested():
    assert sorted(MODELS) == sorted(_mla_host.SERVED)


@ALL
@pytest.mark.parametrize("mode", ["padded", "beams"])
def test_generation_is_the_same_and_decoding_expands_nothing(kind, mode):
    model, ids = _host(kind), _ids()
    given = {"num_beams": 3} if mode == "beams" else {}
    mask = _left_padded(ids)
    plain, plain_scores = _generate(model, ids, mask, **given)
    with AbsorbedMLA().attached(model):
        fast, scores = _generate(model, ids, mask, **given)
        count = Expansions(model)
        with torch.no_grad():
            out = model(ids, use_cache=True)
            prompt = count.tokens
            model(ids[:, :1], past_key_values=out.past_key_values, use_cache=True)
    assert torch.equal(plain, fast)
    torch.testing.assert_close(scores, plain_scores, atol=1e-4, rtol=1e-4)
    assert count.tokens == prompt > 0


@ALL
def test_absorbing_the_prompt_too_gives_the_same_logits(kind):
    model, ids = _host(kind), _ids()
    mask = _left_padded(ids)
    with torch.no_grad():
        plain = model(ids, attention_mask=mask).logits[mask.bool()]
        with AbsorbedMLA(max_query=LENGTH).attached(model):
            count = Expansions(model)
            fast = model(ids, attention_mask=mask).logits
    assert count.tokens == 0
    assert fast.isfinite().all()
    torch.testing.assert_close(fast[mask.bool()], plain, atol=1e-4, rtol=1e-4)


@ALL
@torch.no_grad()
def test_going_on_from_a_cropped_or_shared_cache_is_the_same(kind):
    model, ids = _host(kind), _ids()
    logits = []
    for patch in (AbsorbedMLA(max_query=0), AbsorbedMLA(max_query=5)):
        with patch.attached(model):
            cache = DynamicCache(config=model.config.get_text_config())
            model(ids, past_key_values=cache, use_cache=True)
            if kind not in RECURRENT and kind != "dots3_note":
                cache.crop(-3)
            more = _ids(length=4, seed=2)
            logits.append(model(more, past_key_values=cache, use_cache=True).logits)
            logits.append(model(more[:, :1], past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(logits[:2], logits[2:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["deepseek_v2", "deepseek_v3", "youtu"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_static_caches_and_both_attention_functions_give_the_same(kind, implementation):
    model = make_host(kind, implementation=implementation, dtype=torch.float32)
    ids = _ids()
    plain, _ = _generate(model, ids, _left_padded(ids), cache_implementation="static")
    with AbsorbedMLA().attached(model):
        fast, _ = _generate(model, ids, _left_padded(ids), cache_implementation="static")
        if implementation == "eager":
            found = model(ids, output_attentions=True, use_cache=True)
            step = model(ids[:, :1], past_key_values=found.past_key_values, output_attentions=True)
            assert step.attentions[0].shape == (2, 4, 1, LENGTH + 1)
            torch.testing.assert_close(step.attentions[0].sum(-1), torch.ones(2, 4, 1))
    assert torch.equal(plain, fast)


def test_yarn_scales_the_scores_of_both_forms_alike():
    rope = {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }
    for kind in ("deepseek_v2", "deepseek_v3"):
        model, ids = _host(kind, rope_parameters=rope), _ids()
        assert model.model.layers[0].self_attn.scaling != 12**-0.5
        plain = _generate(model, ids)[0]
        with AbsorbedMLA().attached(model):
            assert torch.equal(_generate(model, ids)[0], plain)


def test_scores_in_blocks_and_sinks_agree(monkeypatch):
    for kind in ("deepseek_v2", "deepseek_v32"):
        model, ids = _host(kind), _ids()
        plain = _generate(model, ids, _left_padded(ids))[0]
        monkeypatch.setattr(_mla_core, "BLOCK_SCORES", 1)
        with AbsorbedMLA().attached(model):
            assert torch.equal(_generate(model, ids, _left_padded(ids))[0], plain)
    q, cache = (torch.randn(1, 2, 1, 4), torch.randn(1, 2, 1, 2)), torch.randn(1, 200, 6)
    split, sinks = (cache[..., :4], cache[..., 4:]), torch.tensor([0.3, -2.0])
    blocks = _mla_core.mix_latents(q, split, scale=0.5, sinks=sinks)
    whole = _mla_core.mix_latents(q, split, scale=0.5, sinks=sinks, whole=True)
    torch.testing.assert_close(blocks.latent, whole.latent)
    alone = torch.logsumexp((torch.cat(q, -1) @ cache.transpose(1, 2)[:, None]) * 0.5, -1)
    lost = sinks.exp() / (sinks.exp() + alone[0, :, 0].exp())
    torch.testing.assert_close(whole.weights.sum(-1)[0, :, 0], 1 - lost)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["deepseek_v2", "deepseek_v3", "hy_v4"])
def test_in_16_bits_absorbing_is_as_near_the_truth_as_expanding(kind):
    implementation = IMPLEMENTATION.get(kind, "sdpa")
    ids, errors = _ids(batch=8), []
    exact = make_host(kind, dtype=torch.float32, implementation=implementation)
    truth = exact(ids).logits
    for limit in (0, LENGTH):
        half = copy.deepcopy(exact).bfloat16()
        with AbsorbedMLA(max_query=limit).attached(half):
            errors.append((half(ids).logits - truth).square().mean().sqrt())
    assert errors[1] <= 1.3 * errors[0]


def test_gradients_of_a_patched_model_are_the_models_own():
    model, ids = _host("deepseek_v3", dtype=torch.float32), _ids()
    model.train()
    grads = []
    for limit in (0, None, LENGTH):
        with AbsorbedMLA(max_query=limit).attached(model):
            model.zero_grad()
            model(ids, labels=ids).loss.backward()
            grads.append([w.grad.clone() for w in model.parameters() if w.grad is not None])
    torch.testing.assert_close(grads[1], grads[0])
    torch.testing.assert_close(grads[2], grads[0], atol=1e-5, rtol=1e-3)


def test_attention_dropout_takes_the_models_own_path():
    model, ids = _host("deepseek_v2", dtype=torch.float32, attention_dropout=0.5), _ids()
    model.train()
    with AbsorbedMLA(max_query=LENGTH).attached(model):
        count = Expansions(model)
        model(ids)
    assert count.tokens > 0


def test_a_copy_of_a_patched_model_works_and_can_be_detached_alone():
    model, ids = _host("deepseek_v2"), _ids()
    plain = _generate(model, ids)[0]
    AbsorbedMLA().attach(model)
    other = copy.deepcopy(model)
    AbsorbedMLA().detach(model)
    assert patches_of(other) == ("AbsorbedMLA",)
    assert torch.equal(_generate(other, ids)[0], plain)
    AbsorbedMLA().detach(other)
    assert not hasattr(other.config, "absorbed_mla")
    assert torch.equal(_generate(other, ids)[0], plain)


def test_a_second_model_that_shares_the_config_keeps_its_own_way():
    model, ids = _host("deepseek_v2"), _ids()
    twin = type(model)(model.config).double().eval()
    twin.load_state_dict(model.state_dict())
    plain = _generate(twin, ids)[0]
    with AbsorbedMLA().attached(model):
        assert torch.equal(_generate(twin, ids)[0], plain)


def test_a_cache_of_another_model_is_refused():
    model = _host("deepseek_v2")
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
        )
    )
    cache = llama.double()(_ids(), use_cache=True).past_key_values
    with AbsorbedMLA().attached(model), pytest.raises(ValueError, match="got 4 heads of width 8"):
        model(_ids()[:, :1], past_key_values=cache)


def test_models_that_cannot_be_served_are_refused_with_the_remedy():
    patch = AbsorbedMLA()
    with pytest.raises(ValueError, match="must be a transformers model, got Linear"):
        patch.attach(torch.nn.Linear(1, 1))
    llama = LlamaForCausalLM(LlamaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=9))
    with pytest.raises(ValueError, match="llama keeps no latent cache"):
        patch.attach(llama)
    flex = make_host("deepseek_v3", implementation="flex_attention")
    with pytest.raises(ValueError, match="eager and sdpa, got 'flex_attention'"):
        patch.attach(flex)
    model = _host("deepseek_v3")
    attention = model.model.layers[1].self_attn
    attention.expand_kv = lambda a, b: (a, b)
    with pytest.raises(ValueError, match="expand_kv of DeepseekV3Attention was replaced"):
        patch.attach(model)
    del attention.expand_kv
    attention.kv_b_proj = torch.nn.Sequential(attention.kv_b_proj)
    sentence = r"kv_b_proj of DeepseekV3Attention must be a torch\.nn\.Linear of floats, got "
    with pytest.raises(ValueError, match=sentence + r"torch\.nn\.\S+\.Sequential: dequantize"):
        patch.attach(model)
    plain = torch.nn.Linear(2, 2)
    plain.weight = torch.nn.Parameter(plain.weight.to(torch.int8), requires_grad=False)
    attention.kv_b_proj = plain
    with pytest.raises(ValueError, match=sentence + r"torch\.nn\.Linear of torch\.int8"):
        patch.attach(model)
    with pytest.raises(ValueError, match="are not in memory"):
        patch.attach(_host("deepseek_v3").to("meta"))
    assert patches_of(model) == ()


def test_changing_the_attention_function_underneath_is_noticed():
    model = _host("deepseek_v3")
    patch = AbsorbedMLA()
    patch.attach(model)
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="was changed to 'eager' while AbsorbedMLA"):
        model(_ids())
    patch.detach(model)
    model(_ids())


@pytest.mark.parametrize("value", [-1, True])
def test_max_query_must_be_a_number_of_tokens(value):
    with pytest.raises(ValueError, match="max_query must be None or a number"):
        AbsorbedMLA(max_query=value)
