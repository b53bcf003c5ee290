"""Latent attention: agreement with the slow twin, the crossover, the cache, and weights."""

import math
import pickle

import jaxtyping
import pytest
import torch

from tests.attention.mla_hosts import make_host
from tests.naive.mla import naive_latent_attention, naive_mla
from trialrun.attention import _mla_core
from trialrun.attention.mla import (
    LatentCache,
    MultiHeadLatentAttention,
    absorbed_attention,
    crossover,
    materialised_attention,
)
from trialrun.blocks.rotary import Rotary

BOTH = pytest.mark.parametrize("attend", [absorbed_attention, materialised_attention])
SIZES = {"nope_dim": 6, "rope_dim": 4, "v_dim": 5}


@pytest.fixture
def unchecked():
    """Let wrong inputs reach the library's own checks where the run also checks annotations."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def _parts(queries, keys, *, batch=2, heads=3, nope=4, rope=2, value=5, rank=6, seed=0):
    draw = torch.Generator().manual_seed(seed)
    shapes = (
        (batch, heads, queries, nope),
        (batch, heads, queries, rope),
        (batch, keys, rank),
        (batch, keys, rope),
        (heads * (nope + value), rank),
    )
    return [torch.randn(s, generator=draw, dtype=torch.float64).requires_grad_() for s in shapes]


def _layer(seed=0, **given):
    layer = MultiHeadLatentAttention(12, 3, 7, **SIZES | given, seed=seed).double()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(torch.randn(weight.shape, generator=draw, dtype=torch.float64) * 0.5)
    return layer


def _x(time, batch=2, seed=1):
    return torch.randn(
        batch, time, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def _agrees(attend, parts, padding=None):
    fast = attend(*parts, scale=0.3, padding=padding)
    slow = naive_latent_attention(*parts, scale=0.3, padding=padding)
    torch.testing.assert_close(fast, slow, atol=1e-12, rtol=1e-10)
    up = torch.randn(fast.shape, generator=torch.Generator().manual_seed(5), dtype=fast.dtype)
    used = [x for x in parts if x.numel()]
    mine = torch.autograd.grad((fast * up).sum(), used)
    theirs = torch.autograd.grad((slow * up).sum(), used)
    torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=1e-9)


@BOTH
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (7, 7), (1, 9), (4, 11)])
@pytest.mark.parametrize("widths", [{}, {"rope": 0}, {"nope": 0}, {"value": 9}])
def test_outputs_and_gradients_match_the_slow_twin(attend, queries, keys, widths):
    _agrees(attend, _parts(queries, keys, **widths))


@BOTH
def test_sixty_three_tokens_match(attend):
    _agrees(attend, _parts(63, 63, batch=1, heads=2))


@BOTH
@pytest.mark.parametrize("queries", [1, 5, 13])
@pytest.mark.parametrize("kind", ["left", "right", "holes", "empty row"])
def test_padded_keys_count_for_nothing_and_padded_queries_give_zero(attend, queries, kind):
    padding = torch.ones(2, 13, dtype=torch.bool)
    spots = {"left": slice(0, 4), "right": slice(-3, None), "holes": slice(5, 8)}
    padding[0, spots.get(kind, slice(None))] = False
    parts = _parts(queries, 13)
    out = attend(*parts, scale=0.3, padding=padding)
    assert not out[0, :, ~padding[0, -queries:]].any()
    if queries == 13 and kind == "holes":
        _agrees(attend, parts, padding)
    else:
        slow = naive_latent_attention(*parts, scale=0.3, padding=padding)
        torch.testing.assert_close(out, slow, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("padded", [False, True])
def test_scores_in_blocks_give_what_whole_scores_give(monkeypatch, padded):
    parts = [x.detach() for x in _parts(5, 300)]
    padding = torch.ones(2, 300, dtype=torch.bool)
    padding[0, :130] = not padded
    whole = absorbed_attention(*parts, scale=0.9, padding=padding if padded else None)
    monkeypatch.setattr(_mla_core, "BLOCK_SCORES", 1)
    blocks = absorbed_attention(*parts, scale=0.9, padding=padding if padded else None)
    torch.testing.assert_close(blocks, whole, atol=1e-12, rtol=1e-10)


def test_scores_of_16_bit_latents_are_as_good_as_float32_ones():
    parts = [x.detach() for x in _parts(1, 63)]
    exact = absorbed_attention(*parts, scale=0.3)
    half = absorbed_attention(*(x.bfloat16() for x in parts), scale=0.3)
    assert half.dtype == torch.bfloat16
    rounded = absorbed_attention(*(x.bfloat16().double() for x in parts), scale=0.3)
    assert (half - rounded).abs().max() <= 2**-8 * rounded.abs().max() * 1.01
    torch.testing.assert_close(half.double(), exact, atol=5e-2, rtol=5e-2)


def test_large_scores_do_not_overflow():
    parts = [x.detach().float() * 1e3 for x in _parts(1, 9)]
    assert absorbed_attention(*parts, scale=1.0).isfinite().all()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("q_rope", (2, 3, 4, 4)),
        ("latent", (2, 11, 5)),
        ("rope_key", (2, 9, 2)),
        ("up", (26, 6)),
        ("padding", (2, 4)),
    ],
)
@BOTH
@pytest.mark.usefixtures("unchecked")
def test_a_part_that_does_not_fit_is_named(attend, name, shape):
    names = ("q_nope", "q_rope", "latent", "rope_key", "up")
    parts = dict(zip(names, (x.detach() for x in _parts(4, 11)))) | {"padding": None}
    parts[name] = torch.ones(shape, dtype=torch.bool if name == "padding" else torch.float64)
    with pytest.raises(ValueError, match=f"{name} must"):
        attend(**parts, scale=1.0)


def _products(rank, nope, value, query, cached):
    expanded = cached * rank * (nope + value) + query * cached * (nope + value)
    absorbed = query * rank * (nope + value) + query * cached * 2 * rank
    return absorbed, expanded


@pytest.mark.parametrize(
    ("rank", "nope", "value"), [(512, 128, 128), (16, 8, 8), (8, 8, 8), (4, 32, 8), (512, 1, 0)]
)
@pytest.mark.parametrize("cached", [1, 2, 50, 4096, 10**9])
def test_the_crossover_is_where_the_products_are_equal(rank, nope, value, cached):
    at = crossover(rank, nope, value, cached=cached)
    for query in {1, 2, 7, cached, max(1, math.floor(min(at, 1e12))), cached // 2 + 1}:
        if query <= cached:
            absorbed, expanded = _products(rank, nope, value, query, cached)
            assert (query < at) == (absorbed < expanded)


def test_a_latent_narrower_than_keys_and_values_is_always_absorbed():
    assert crossover(8, 8, 8) == math.inf
    assert crossover(8, 9, 8, cached=5) > 5
    assert round(crossover(512, 128, 128), 2) == 170.67


@pytest.mark.parametrize("time", [1, 7])
@pytest.mark.parametrize(
    "given", [{}, {"q_rank": 5, "rope_interleave": True}, {"latent_norm": False, "bias": True}]
)
def test_the_layer_matches_the_slow_twin_in_outputs_and_gradients(time, given):
    layer, x = _layer(**given), _x(time)
    padding = torch.ones(2, time, dtype=torch.bool)
    padding[1, : time // 3] = False
    weights = dict(layer.named_parameters())
    slow = naive_mla(
        x,
        weights,
        heads=3,
        nope=6,
        rope=4,
        interleave=given.get("rope_interleave", False),
        padding=padding,
    )
    for path in ("absorbed", "materialised"):
        fast = layer(x, padding=padding, path=path)
        torch.testing.assert_close(fast, slow, atol=1e-11, rtol=1e-9)
        mine = torch.autograd.grad(fast.square().sum(), weights.values(), allow_unused=True)
        theirs = torch.autograd.grad(
            slow.square().sum(), weights.values(), allow_unused=True, retain_graph=True
        )
        torch.testing.assert_close(
            [g for g in mine if g is not None],
            [g for g in theirs if g is not None],
            atol=1e-10,
            rtol=1e-8,
        )


@torch.no_grad()
def test_chunks_through_the_cache_give_what_one_pass_gives():
    layer, x = _layer(q_rank=5).eval(), _x(13)
    padding = torch.ones(2, 13, dtype=torch.bool)
    padding[1, :4] = False
    for real in (None, padding):
        whole, cache, parts = layer(x, padding=real), LatentCache(), []
        for start, stop in ((0, 6), (6, 7), (7, 9), (9, 13)):
            seen = None if real is None else real[:, :stop]
            parts.append(layer(x[:, start:stop], cache, padding=seen))
        torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-12, rtol=1e-9)
    assert cache.nbytes == 2 * 13 * (7 + 4) * 8


@torch.no_grad()
def test_auto_absorbs_few_new_tokens_and_expands_many(monkeypatch):
    layer, x, used = _layer().eval(), _x(13), []
    real = torch.nn.functional.linear
    monkeypatch.setattr(
        "trialrun.attention._mla_paths.F.linear",
        lambda *args: used.append(args[0].shape) or real(*args),
    )
    cache = LatentCache()
    layer(x[:, :10], cache)
    layer(x[:, 10:11], cache)
    expanded = [shape for shape in used if shape[-1] == 7]
    assert expanded == [(2, 10, 7)]


def test_positions_move_only_the_rotary_part():
    layer, x = _layer(), _x(9)
    shifted = layer(x, positions=torch.arange(9) + 40)
    torch.testing.assert_close(shifted, layer(x), atol=1e-10, rtol=1e-8)
    spread = layer(x, positions=torch.arange(9) * 3)
    assert not torch.allclose(spread, layer(x), atol=1e-3)
    table = Rotary.from_frequencies(Rotary(4).inverse * 3)
    own = _layer(rotary=table)(x)
    torch.testing.assert_close(own, spread, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("match", "given"),
    [
        ("kv_rank must be at least 1", {"kv_rank": 0}),
        ("n_heads must be a whole number", {"n_heads": 2.0}),
        ("rope_dim must be even", {"rope_dim": 3}),
        ("nope_dim \\+ rope_dim", {"nope_dim": 0, "rope_dim": 0}),
        ("rotary must turn rope_dim=4", {"rotary": Rotary(6)}),
        ("scale must be a number above 0", {"scale": 0.0}),
        ("q_rank must be at least 1", {"q_rank": 0}),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_setting_out_of_range_is_named(match, given):
    settings = {"d_model": 12, "n_heads": 3, "kv_rank": 7} | SIZES | given
    with pytest.raises(ValueError, match=match):
        MultiHeadLatentAttention(**settings)


@torch.no_grad()
@pytest.mark.usefixtures("unchecked")
def test_bad_calls_end_in_one_sentence():
    layer, x, cache = _layer(), _x(5), LatentCache()
    with pytest.raises(ValueError, match="x must have d_model=12"):
        layer(x[..., :3])
    with pytest.raises(ValueError, match="path must be one of"):
        layer(x, path="fast")
    with pytest.raises(ValueError, match="cache must be a LatentCache, got list"):
        layer(x, [])
    with pytest.raises(ValueError, match="padding must be bool of shape \\(2, 5\\)"):
        layer(x, padding=torch.ones(2, 4, dtype=torch.bool))
    padding = torch.ones(2, 5, dtype=torch.bool)
    padding[0, 0] = False
    layer(x, cache, padding=padding)
    with pytest.raises(ValueError, match="padding must cover all 6 cached and new tokens"):
        layer(x[:, :1], cache)
    with pytest.raises(ValueError, match="filled by another layer or batch"):
        layer(x[:1], cache, padding=torch.ones(1, 10, dtype=torch.bool))
    other, wide = LatentCache(), MultiHeadLatentAttention(12, 3, 9, **SIZES).double()
    wide(x, other)
    read = pickle.loads(pickle.dumps(other))
    with pytest.raises(ValueError, match="got 5 tokens of another layer"):
        layer(x, other)
    with pytest.raises(ValueError, match="latents 9 and rotary keys 4 wide"):
        layer(x, read)
    wide(x, read)


@pytest.mark.usefixtures("unchecked")
def test_the_cache_takes_no_gradients():
    with pytest.raises(ValueError, match="a LatentCache is for inference"):
        _layer()(_x(3), LatentCache())


@torch.no_grad()
@pytest.mark.usefixtures("unchecked")
def test_a_cropped_or_reordered_cache_goes_on_as_if_it_had_always_been_so():
    layer, x = _layer().eval(), _x(9)
    cache = LatentCache(reserve=4)
    layer(x[:, :8], cache)
    cache.crop(5)
    cache.crop(-1)
    assert len(cache) == 4
    cache.reorder(torch.tensor([1, 1, 0]))
    rows = torch.tensor([1, 1, 0])
    got = layer(x[rows, 4:9], cache)
    torch.testing.assert_close(got, layer(x[rows])[:, 4:9], atol=1e-12, rtol=1e-9)
    for call, match in (
        (lambda: cache.crop(10), "tokens must be between -9 and 9"),
        (lambda: cache.crop(-10), "tokens must be between"),
        (lambda: cache.reorder(torch.tensor([3])), "rows must be a vector of rows 0 to 2"),
        (lambda: LatentCache().reorder(torch.tensor([0])), "empty"),
        (lambda: LatentCache(reserve=-1), "reserve must be at least 0"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    cache.reset()
    assert len(cache) == cache.nbytes == cache.nbytes_allocated == 0


@torch.no_grad()
def test_a_growing_cache_holds_at_most_five_per_cent_in_advance():
    cache = LatentCache()
    cache.append(torch.zeros(1, 512, 7), torch.zeros(1, 512, 2))
    for _ in range(200):
        cache.append(torch.zeros(1, 1, 7), torch.zeros(1, 1, 2))
        assert cache.nbytes <= cache.nbytes_allocated <= 1.05 * cache.nbytes
    exact = LatentCache(reserve=712)
    exact.append(torch.zeros(1, 712, 7), torch.zeros(1, 712, 2))
    assert exact.nbytes_allocated == cache.nbytes


YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "mscale": 0.7,
    "mscale_all_dim": 0.9,
}


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("deepseek_v2", {"rope_parameters": YARN}),
        ("deepseek_v2", {"q_lora_rank": None, "attention_bias": True}),
        ("deepseek_v3", {"rope_interleave": True, "rope_parameters": YARN}),
        ("deepseek_v3", {"rope_interleave": False}),
        ("youtu", {}),
        ("minicpm3", {}),
        ("axk1", {}),
        ("glm4_moe_lite", {}),
    ],
)
def test_a_layer_taken_from_transformers_gives_what_the_host_gives(kind, given):
    model = make_host(kind, dtype=torch.float32, **given)
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    host = model.model.layers[1].self_attn
    at = torch.arange(9)[None]
    theirs = host(x, position_embeddings=model.model.rotary_emb(x, at), attention_mask=None)[0]
    mine = MultiHeadLatentAttention.from_transformers(model, 1)
    for path in ("absorbed", "materialised"):
        torch.testing.assert_close(mine(x, path=path), theirs, atol=2e-5, rtol=2e-4)


@pytest.mark.usefixtures("unchecked")
def test_a_checkpoint_that_does_not_fit_is_refused_with_the_names():
    model = make_host("deepseek_v3", dtype=torch.float32)
    layer = MultiHeadLatentAttention.from_transformers(model, 0)
    place = "model.layers.0.self_attn."
    state = dict(model.state_dict())
    layer.load_attention(state, prefix=place)
    lacking = {k: v for k, v in state.items() if k != f"{place}kv_b_proj.weight"}
    with pytest.raises(ValueError, match=r"lacks model\.layers\.0\.self_attn\.kv_b_proj\.weight"):
        layer.load_attention(lacking, prefix=place)
    with pytest.raises(ValueError, match=r"has .*g_proj\.weight, for which"):
        layer.load_attention(state | {f"{place}g_proj.weight": torch.ones(1)}, prefix=place)
    wrong = state | {f"{place}o_proj.weight": torch.ones(3, 3)}
    with pytest.raises(ValueError, match=r"o_proj\.weight must have shape \(32, 24\), got \(3, 3"):
        layer.load_attention(wrong, prefix=place)
    with pytest.raises(ValueError, match="layer must be a whole number from 0 to 1, got 2"):
        MultiHeadLatentAttention.from_transformers(model, 2)
    with pytest.raises(ValueError, match="plain latent attention"):
        MultiHeadLatentAttention.from_transformers(torch.nn.Linear(1, 1))
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    moving = make_host("youtu", rope_parameters=rope)
    with pytest.raises(ValueError, match=r"change with the length \(rope_type 'dynamic'"):
        MultiHeadLatentAttention.from_transformers(moving)
