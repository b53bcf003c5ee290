"""MLA's claims: what every arm's model really is, what it is scored on, and --on and --model."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from trialrun.attention.mla import MultiHeadLatentAttention, cache_bytes
from trialrun.blocks.bytelm import Schedule, Shape, make_model, save_model, text_batches, train
from trialrun.catalogue.shelf import find_card
from trialrun.claims.contract import Context, On
from trialrun.claims.judge import DOES_NOT_HOLD, apply_rule
from trialrun.core.errors import NotRunnable, UsageError
from trialrun.dossiers.mla import claim, exactness, hosts, variants

TRIAL = claim.TRIAL
SHAPE = Shape(layers=2, width=96, heads=6, length=64)


@pytest.fixture
def ctx(tmp_path):
    """An untrained model where the preparation leaves the trained one."""
    smoke = TRIAL.budgets["smoke"]
    found = Context(budget=smoke, seed=3, prepared_root=tmp_path / "prepared")
    save_model(make_model(smoke.shape, seed=3), found.prepared("host"))
    return found


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "own.txt"
    path.write_bytes(bytes(range(32, 127)) * 2200)
    return str(path)


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_variants_differ_in_their_attention_alone(name):
    plain = variants.make_variant("mha", SHAPE, seed=1)
    model = variants.make_variant(name, SHAPE, seed=1)
    state = model.state_dict()
    for key, value in plain.state_dict().items():
        if ".self_attn." not in key:
            assert torch.equal(state[key], value), key
    with torch.no_grad():
        ids = torch.randint(0, 256, (2, 9))
        late = ids.clone()
        late[:, 6:] = 1
        first, second = (model(x, use_cache=False).logits[:, :6] for x in (ids, late))
    torch.testing.assert_close(first, second)


def test_caches_are_as_large_as_the_card_says():
    found = variants.cached_values(SHAPE)
    assert found["mha"] == 192
    for name in ("gqa", "gqa-wide", "gqa-wide-full", "gqa-partial"):
        assert variants._attention(name, SHAPE).cached_values == found[name] == 32
    mla = variants._attention("mla", SHAPE)
    assert isinstance(mla, MultiHeadLatentAttention)
    assert mla.kv_a_proj_with_mqa.out_features == found["mla"] == found["frozen"] == 32


def test_shown_arms_differ_from_the_plain_group_in_width_or_in_rotation_alone():
    made = {n: variants._attention(n, SHAPE) for n in variants.VARIANTS if n.startswith("gqa")}
    sizes = {n: (a.head_dim, a.rotary.dim, a.o_proj.in_features // 6) for n, a in made.items()}
    assert sizes == {
        "gqa": (16, 16, 16),
        "gqa-partial": (16, 8, 16),
        "gqa-wide": (32, 8, 24),
        "gqa-wide-full": (32, 32, 32),
    }


def test_a_wide_key_that_turns_whole_is_the_value_before_it_turns():
    attend = variants.GroupedAttention(8, heads=1, kv_heads=1, head_dim=4, rope_dim=4, shared=True)
    x = torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(attend(x), attend.o_proj(attend.k_proj(x)))


@pytest.mark.parametrize(("heads", "width"), [(2, 32), (1, 8), (6, 96)])
def test_a_share_of_the_cache_is_that_share(heads, width):
    host = make_model(Shape(layers=1, width=width, heads=heads, length=8), seed=0)
    for share in (2, 4, 8):
        rank, rope = claim._cut_to(host, share)
        assert rank + rope == 2 * width // share
        assert rank >= 1
        assert rope % 2 == 0


def test_grouped_attention_with_all_heads_and_all_dims_is_the_byte_model_s_own():
    model = variants.make_variant("mha", SHAPE, seed=1).double()
    theirs = model.model.layers[0].self_attn
    ours = variants.GroupedAttention(96, heads=6, kv_heads=6, head_dim=16, rope_dim=16).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 11, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = model.model.rotary_emb(x, torch.arange(11)[None])
    wanted = theirs(x, position_embeddings=turned, attention_mask=None)[0]
    # transformers takes cosines in float32.
    torch.testing.assert_close(ours(x), wanted, atol=1e-5, rtol=1e-5)


def test_the_control_s_latent_projection_stays_as_it_was_drawn():
    small = Shape(layers=1, width=32, heads=2, length=16)
    data = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)
    for name, stays in (("frozen", True), ("mla", False)):
        model = variants.make_variant(name, small, seed=0)
        attention = model.model.layers[0].self_attn.attention
        weight, rank = attention.kv_a_proj_with_mqa.weight, attention.kv_rank
        before = weight.detach().clone()
        schedule = Schedule(steps=20, batch=4, decay=0.0)
        train(model, text_batches(data, small, seed=0), schedule)
        assert torch.equal(weight[:rank], before[:rank]) == stays
        assert not torch.equal(weight[rank:], before[rank:])


def test_a_seed_gives_every_variant_the_same_start_and_other_seeds_another():
    one, same, other = (variants.make_variant("mla", SHAPE, seed=s).state_dict() for s in (1, 1, 2))
    key = "model.layers.1.self_attn.attention.q_proj.weight"
    assert torch.equal(one[key], same[key])
    assert not torch.equal(one[key], other[key])


@pytest.mark.parametrize(
    ("arm", "values"),
    [("mla", 576), ("transformers", 576), ("mqa", 256), ("gqa-8", 2048), ("mha", 4096)],
)
def test_bytes_are_those_of_the_arithmetic(arm, values):
    assert exactness.bytes_per_token(arm, 16, 5) == values * 4


def test_the_control_keeps_keys_and_values_of_every_head():
    assert exactness.bytes_per_token("expanded", 16, 5) == 16 * (192 + 128) * 4


@pytest.mark.parametrize("kind", ["V2", "V3"])
def test_absorbing_decodes_what_expanding_decodes_and_spoiling_shows(kind):
    found = exactness.errors(kind, "absorbed", seed=0, decoded=4)
    assert found.logits < 1e-4
    assert found.greedy == found.expanded == 0
    for arm in ("permuted", "random", "scaled"):
        found = exactness.errors(kind, arm, seed=0, decoded=4)
        assert found.logits > 0.1
        assert found.expanded == 0
        assert found.greedy > 0.1 or arm == "scaled"


@pytest.mark.parametrize("kind", ["V2", "V3"])
def test_what_is_expanded_again_is_counted(kind):
    assert exactness.errors(kind, "expanded", seed=0, decoded=4).expanded == 1
    assert exactness.errors(kind, "whole", seed=0, decoded=4).expanded == 16 / (13 + 14 + 15)


def test_a_patch_that_does_nothing_does_not_pass(monkeypatch, ctx):
    idle = partial(exactness.AbsorbedMLA, max_query=0)
    monkeypatch.setattr(exactness, "AbsorbedMLA", idle)
    card = find_card("mla")
    rule = next(c.rule for c in card.claims if c.id == "absorbed")
    runs = [TRIAL.arms["absorbed"]["absorbed"](dataclasses.replace(ctx, seed=s)) for s in (0, 1, 2)]
    points = {name: [run.points[name] for run in runs] for name in runs[0].points}
    assert points["V2 expanded"] == points["V3 expanded"] == [1, 1, 1]
    assert apply_rule(rule, points, None).word == DOES_NOT_HOLD


def test_absorbed_decoding_is_what_is_measured(monkeypatch):
    used = []
    attach = exactness.AbsorbedMLA.attach
    monkeypatch.setattr(
        exactness.AbsorbedMLA, "attach", lambda self, model: used.append(1) or attach(self, model)
    )
    for arm in ("expanded", "whole"):
        exactness.errors("V2", arm, seed=0, decoded=2)
    assert not used
    exactness.errors("V2", "absorbed", seed=0, decoded=2)
    assert used == [1]


def test_prompts_are_padded_on_the_left():
    ids, mask = exactness.prompts(0, 9)
    assert mask.sum(1).tolist() == [5, 7, 9]
    assert (mask.diff(dim=1) >= 0).all()
    assert ((ids == 0) == (mask == 0)).all()


@pytest.mark.parametrize("arm", TRIAL.arms["conversion"])
def test_conversions_hold_the_share_of_the_cache_that_they_name(ctx, monkeypatch, arm):
    held = []

    def score(context, model):
        with torch.no_grad():
            cache = model(torch.ones(1, 4, dtype=torch.int64), use_cache=True).past_key_values
        held.append(cache_bytes(cache) / (4 * 4 * model.config.num_hidden_layers))
        return float(len(held)), 10

    monkeypatch.setattr(claim, "held_out_loss", score)
    smoke = dataclasses.replace(ctx.budget, shape=SHAPE)
    ctx = dataclasses.replace(ctx, budget=smoke)
    save_model(make_model(SHAPE, seed=3), ctx.prepared("host"))
    measured = TRIAL.arms["conversion"][arm](ctx)
    assert set(measured.points) == set(claim.SHARES)
    wanted = {"original": [192], "partial": [104, 104, 104]}
    assert held == wanted.get(arm, [96, 48, 24])


def test_training_calibration_and_scoring_read_what_they_should(ctx):
    data, _ = hosts.corpus(None)
    seen = hosts.calibration(ctx)
    assert seen.shape == (4, 16)
    flat = data.tobytes()
    assert all(bytes(row.tolist()) in flat for row in seen)
    other = hosts.calibration(dataclasses.replace(ctx, seed=4))
    assert not torch.equal(seen, other)
    _, n = hosts.held_out_loss(ctx, hosts.load_host(ctx))
    assert n == 4 * 8


def test_a_text_of_one_s_own_keeps_its_last_tenth_aside(text_file):
    data, held_out = hosts.corpus(On("text", text_file))
    assert len(data) == 9 * len(held_out)


def test_a_short_text_is_refused(ctx, tmp_path):
    path = tmp_path / "short.txt"
    path.write_bytes(b"a" * 100)
    on = dataclasses.replace(ctx, on=On("text", str(path)))
    with pytest.raises(UsageError, match=r"at least 200000 bytes of text are needed, got 100"):
        TRIAL.check_on(on)


def test_a_model_that_is_not_there_or_of_another_kind_is_refused(ctx, tmp_path):
    with pytest.raises(NotRunnable, match="no model could be read"):
        TRIAL.check_on(dataclasses.replace(ctx, model=str(tmp_path / "none")))
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=16)).save_pretrained(
        tmp_path / "gpt2"
    )
    with pytest.raises(UsageError, match=r"serves llama, mistral, qwen2"):
        TRIAL.check_on(dataclasses.replace(ctx, model=str(tmp_path / "gpt2")))


class _Halves:
    def __call__(self, text, **_):
        return {"input_ids": [half for c in text[:4000] for half in (ord(c) % 128, 200)]}


@pytest.mark.usefixtures("no_annotation_checks")
def test_a_model_of_one_s_own_is_converted_scored_and_kept(ctx, tmp_path, monkeypatch):
    folder = tmp_path / "own"
    save_model(make_model(Shape(layers=1, width=32, heads=2, length=128), seed=0), folder)
    monkeypatch.setattr(hosts.AutoTokenizer, "from_pretrained", lambda where: _Halves())
    own = dataclasses.replace(ctx, model=str(folder))
    TRIAL.check_on(own)
    assert hosts.calibration(own).shape == (1, 64)
    measured = TRIAL.arms["conversion"]["pca"](own)
    assert measured.n == 32
    kept = tmp_path / "kept"
    lines = TRIAL.keep(own, kept)
    assert repr(str(kept)) in lines
    loaded = AutoModelForCausalLM.from_pretrained(kept)
    assert loaded.config.kv_lora_rank + loaded.config.qk_rope_head_dim == 16


@pytest.mark.usefixtures("no_annotation_checks")
def test_a_byte_model_of_one_s_own_text_is_kept(ctx, tmp_path, text_file):
    kept = tmp_path / "kept"
    TRIAL.keep(dataclasses.replace(ctx, on=On("text", text_file)), kept)
    assert AutoModelForCausalLM.from_pretrained(kept).config.model_type == "trialrun_latent_llama"


def test_arms_of_a_claim_share_their_points(ctx):
    for name in ("quality", "conversion"):
        found = {arm: tuple(run(ctx).points) for arm, run in TRIAL.arms[name].items()}
        assert len(set(found.values())) == 1
