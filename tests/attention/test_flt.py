import copy

import numpy as np
import pytest
import torch

from tests.conformance.watch import annotations_unchecked
from tests.naive.flt import (
    naive_flt,
    naive_local_ratio,
    naive_mask,
    naive_mixture_ratio,
    naive_places,
    naive_scenic_ratio,
    naive_transform,
)
from trialrun.attention import _flt_linear, _flt_rpe, flt
from trialrun.attention._flt_features import orthogonal_rows
from trialrun.attention._flt_spectra import _half_normal, tail_of
from trialrun.attention.flt import FLTAttention, SpectralRPE
from trialrun.core.seeds import split

KINDS = ("mixture", "asymmetric", "local", "shift", "laplace")


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small(kind="mixture", dim=1, **settings):
    scale = 1.0 if kind == "scenic" else 3.0
    settings = {"freqs": 4, **settings}
    if dim == 1 and kind != "scenic":
        # Long enough for the tests' 300 tokens.
        scale, settings["freqs"] = 20.0, 8
    return SpectralRPE(dim, kind, heads=2, blobs=3, scale=scale, seed=1, **settings)


def attention(kind="mixture", **settings):
    rpe = settings.pop("rpe", None) or small(kind)
    return FLTAttention(6, 2, rpe=rpe, features=8, seed=2, **settings).double()


def slow(attn, x, coords, real=None):
    """Run the twin on a module's own parameters, head by head, and join the heads."""
    batch, _, width = x.shape
    rpe, size = attn.rpe, width // attn.heads
    q, k, v = (x @ part.T for part in attn.qkv.weight.chunk(3))
    waves = rpe.waves()
    rows = []
    for b in range(batch):
        heads = []
        for h in range(attn.heads):
            cut = slice(h * size, (h + 1) * size)
            odd = None if waves.odd is None else waves.odd[h]
            places = [
                naive_places(r, waves.frequencies[h], waves.even[h], odd, rpe.sides)
                for r in coords[b].double()
            ]
            n1, n2 = (torch.stack(side) for side in zip(*places, strict=True))
            q_h, k_h = q[b, :, cut], k[b, :, cut]
            if rpe.kind == "scenic":
                # What they compute: [q, d^(1/4) N] over (d + 2 r)^(1/4).
                wide = (size + 2 * rpe.freqs) ** 0.25
                q_h, k_h = q_h * size**0.25 / wide, k_h * size**0.25 / wide
                n1, n2 = n1 * size**0.25 / wide, n2 * size**0.25 / wide
            heads.append(
                naive_flt(
                    *(q_h, k_h, v[b, :, cut], attn.projection[h]),
                    N1=n1,
                    N2=n2,
                    causal=attn.causal,
                    feature_map=attn.feature_map,
                    real=None if real is None else real[b],
                )
            )
        rows.append(torch.cat(heads, dim=1) @ attn.out.weight.T)
    return torch.stack(rows)


@pytest.mark.parametrize("time", [1, 7, 63])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("feature_map", ["softmax", "relu"])
def test_outputs_and_gradients_match_the_slow_twin(time, causal, feature_map, monkeypatch):
    monkeypatch.setattr(_flt_linear, "CHUNK", 16)
    monkeypatch.setattr(flt, "SEGMENT", 32)
    attn = attention(causal=causal, feature_map=feature_map)
    x = draw(1, time, 6, seed=time).requires_grad_()
    fast, twin = attn(x), slow(attn, x, torch.arange(time)[None, :, None])
    torch.testing.assert_close(fast, twin)
    uneven = torch.linspace(0.5, 1.5, fast.numel(), dtype=torch.float64).reshape(fast.shape)
    inputs = (x, *attn.parameters())
    found = torch.autograd.grad((fast * uneven).sum(), inputs, allow_unused=True)
    wanted = torch.autograd.grad((twin * uneven).sum(), inputs, allow_unused=True)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("kind", [*KINDS, "scenic"])
def test_every_kind_matches_the_slow_twin_on_points_in_the_plane(kind):
    attn = attention(rpe=small(kind, dim=2))
    x, coords = draw(2, 7, 6), draw(2, 7, 2, seed=1)
    torch.testing.assert_close(attn(x, coords), slow(attn, x, coords))


def test_float32_stays_close_to_the_slow_twin():
    attn = attention(causal=True)
    x = draw(2, 63, 6)
    twin = slow(attn, x, torch.arange(63)[None, :, None].expand(2, -1, -1))
    torch.testing.assert_close(attn.float()(x.float()).double(), twin, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_padding_weighs_nothing_and_gives_zero(causal):
    attn, x = attention(causal=causal), draw(3, 7, 6)
    real = torch.tensor(
        [[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 0, 1, 1], [0, 0, 0, 0, 0, 0, 0]]
    ).bool()
    found = attn(x, padding=real)
    torch.testing.assert_close(
        found[:2], slow(attn, x[:2], torch.arange(7)[None, :, None].expand(2, -1, -1), real[:2])
    )
    assert not found[~real].any()
    moved = attn(torch.where(real[..., None], x, torch.full_like(x, torch.nan)), padding=real)
    torch.testing.assert_close(found, moved, rtol=0, atol=0)
    (grad,) = torch.autograd.grad(attn(x.requires_grad_(), padding=real).square().sum(), x)
    assert grad.isfinite().all()
    assert not grad[~real].any()


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_mixture_ratios_match_the_definition(dim):
    for kind in ("mixture", "asymmetric"):
        rpe = small(kind, dim).double()
        waves, blobs = rpe.waves(), rpe.spectrum
        for h in range(2):
            for m in range(4):
                xi = waves.frequencies[h, m] * rpe.scale
                # On a grid p is 1 over its two halves, which end half a spacing after the last.
                p = 1 / (4 * rpe.freqs * waves.frequencies[h, 0, 0] * rpe.scale)
                p = p if dim == 1 else None
                even, _ = naive_mixture_ratio(
                    xi, blobs.mass[h], blobs.centre[h], blobs.log_width[h], p
                )
                torch.testing.assert_close(waves.even[h, m], even)
                if kind == "asymmetric":
                    _, odd = naive_mixture_ratio(
                        xi, blobs.odd_mass[h], blobs.centre[h], blobs.log_width[h], p
                    )
                    torch.testing.assert_close(waves.odd[h, m], odd)


@pytest.mark.parametrize("kind", ["local", "shift", "laplace"])
def test_on_a_grid_each_wave_adds_the_transform_over_its_cell(kind):
    rpe = small(kind).double()
    waves, spectrum = rpe.waves(), rpe.spectrum
    logs = spectrum.log_half_width[:, 0] if kind == "local" else spectrum.log_length
    for h in range(2):
        spacing = 2 * waves.frequencies[h, 0, 0]
        for m in range(8):
            xi = waves.frequencies[h, m, 0]
            torch.testing.assert_close(xi, (m + 0.5) * spacing, rtol=1e-6, atol=0)
            wanted = naive_transform(kind, xi, spectrum.height[h], logs[h].exp())
            torch.testing.assert_close(waves.even[h, m] / 8, 2 * spacing * wanted)


@pytest.mark.parametrize("dim", [2, 3])
def test_local_and_scenic_ratios_match_the_definition(dim):
    local, scenic = small("local", dim).double(), small("scenic", dim).double()
    for h in range(2):
        for m in range(4):
            box = local.spectrum
            u = local.waves().frequencies[h, m] * box.log_half_width[h].exp()
            wanted = naive_local_ratio(u, box.height[h], tail_of(dim))
            torch.testing.assert_close(local.waves().even[h, m], wanted)
            blobs, xi = scenic.spectrum, scenic.waves().frequencies[h, m]
            wanted = naive_scenic_ratio(xi, blobs.weight[h], blobs.centre[h], blobs.log_width[h])
            torch.testing.assert_close(scenic.waves().even[h, m], wanted)


@pytest.mark.parametrize("kind", [*KINDS, "scenic"])
def test_features_of_places_multiply_to_the_mask(kind):
    rpe = small(kind, dim=2).double()
    coords, waves = draw(5, 2), rpe.waves()
    query, key = rpe(coords)
    even = waves.even.square() if kind == "scenic" else waves.even
    for h in range(2):
        odd = None if waves.odd is None else waves.odd[h]
        for i in range(5):
            for j in range(5):
                wanted = naive_mask(coords[i] - coords[j], waves.frequencies[h], even[h], odd)
                torch.testing.assert_close(query[h, i] @ key[h, j], wanted)
                offset = (coords[i] - coords[j])[None]
                torch.testing.assert_close(rpe.mask(offset)[h, 0], wanted)


def error(kind, freqs, dim=1, **settings):
    """Return the root mean square gap between a mask of three scales' reach and its estimate."""
    gaps = []
    for seed in range(5):
        rpe = SpectralRPE(dim, kind, freqs=freqs, scale=2.0, seed=seed, **settings).double()
        z = draw(300, dim, seed=seed) * 3
        gaps.append((rpe.mask(z) - rpe.exact(z)).detach().square().mean())
    return float(torch.stack(gaps).mean().sqrt())


@pytest.mark.parametrize("kind", KINDS)
def test_estimates_converge_to_the_exact_mask(kind):
    gaps = [error(kind, freqs) for freqs in (16, 64, 256)]
    # The jump of a box costs the root of the frequencies; nothing is lost where masks are smooth.
    rate = {"local": 0.6, "asymmetric": 0.5}.get(kind, 0.3)
    assert gaps[1] < rate * gaps[0]
    assert gaps[2] < max(rate * gaps[1], 1e-4)
    assert gaps[1] < (0.1 if kind == "local" else 0.02)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("kind", ["mixture", "shift"])
def test_estimates_converge_for_points_in_space(kind, dim):
    gaps = [error(kind, freqs, dim) for freqs in (32, 128, 512)]
    assert gaps[1] < 0.7 * gaps[0]
    assert gaps[2] < 0.7 * gaps[1]


def gaps_to_exact(kind, reach, freqs, bare, **settings):
    """Return gaps near and far (beyond 3 scales), in tokens, of heads from half to twice scale."""
    z = torch.arange(16.0 * reach + 1)[:, None]
    found = []
    for seed in range(5):
        rpe = SpectralRPE(1, kind, heads=3, freqs=freqs, reach=float(reach), seed=seed, **settings)
        with torch.no_grad():
            gap = (rpe.mask(z) - rpe.exact(z)).abs()
            if kind == "local":
                half = rpe.spectrum.log_half_width.exp()
                gap[(z[:, 0] - half).abs() < bare] = 0
        found.append(gap)
    gap = torch.cat(found)
    return gap[:, :49], gap[:, 49:]


@pytest.mark.parametrize(
    ("kind", "reach", "near", "far"),
    [
        # Worst gap and root mean square, as parts of a height of 1; 0.35 is the size of mixtures.
        ("local", 16, (0.15, 0.04), (0.04, 0.01)),
        ("local", 64, (0.4, 0.12), (0.1, 0.015)),
        ("shift", 16, (1e-3, 1e-3), (1e-3, 1e-3)),
        ("shift", 64, (0.2, 0.06), (0.05, 0.006)),
        ("laplace", 16, (0.15, 0.02), (0.01, 0.002)),
        ("laplace", 64, (0.45, 0.1), (0.04, 0.005)),
        ("mixture", 16, (0.04, 0.01), (0.02, 0.003)),
        ("mixture", 64, (0.05, 0.015), (0.04, 0.004)),
        ("asymmetric", 16, (0.06, 0.015), (0.02, 0.004)),
        ("asymmetric", 64, (0.1, 0.02), (0.06, 0.005)),
    ],
)
def test_64_frequencies_give_the_mask_at_every_offset_within_reach(kind, reach, near, far):
    """Edges of boxes, rounded over about a quarter of the scale, are left out."""
    gaps = gaps_to_exact(kind, reach, 64, 4.0)
    for gap, (worst, typical) in zip(gaps, (near, far), strict=True):
        assert gap.max() < worst
        assert gap.square().mean().sqrt() < typical


@pytest.mark.parametrize("width", [2.0, 16.0, 100.0, 256.0, 1000.0])
def test_a_box_of_any_width_does_not_return_within_reach(width):
    rpe = SpectralRPE(1, "local")
    z = torch.arange(257.0)[:, None]
    with torch.no_grad():
        rpe.spectrum.log_half_width.fill_(width).log_()
        gap = (rpe.mask(z) - rpe.exact(z))[0].abs()
    # One wider than the reach has its edge there.
    assert gap[(z[:, 0] - min(width, 256.0)).abs() > 8].max() < 0.15
    assert (gap[z[:, 0] > width + 64] < 0.05).all()


def test_no_point_lies_where_a_half_normal_is_infinite():
    """A scrambled Sobol point of this seed rounds to the very edge."""
    points = _flt_rpe._uniform(1, 4096, 1, split(9321, "draw", 0), even=True)
    assert _half_normal(points).isfinite().all()
    assert _half_normal(torch.full((1, 1, 1), 1 - _flt_rpe._EDGE)).isfinite().all()
    assert SpectralRPE(kind="shift", freqs=4096, seed=9321).mask(torch.zeros(1, 1)).isfinite().all()


def test_a_grid_beats_independent_normal_draws_on_the_box():
    """With 64 frequencies; the plain estimate divides the box's transform by a normal density."""
    z = np.linspace(-3, 3, 301)
    plain = []
    for seed in range(20):
        xi = np.random.default_rng(seed).standard_normal(64)
        ratio = 2 * np.sinc(2 * xi) / (np.exp(-(xi**2) / 2) / np.sqrt(2 * np.pi))
        found = (ratio * np.cos(2 * np.pi * np.outer(z, xi))).mean(1)
        plain.append(np.mean((found - (np.abs(z) <= 1)) ** 2))
    rpe = SpectralRPE(1, "local", freqs=64, scale=1.0)
    offsets = torch.from_numpy(z)[:, None].float()
    ours = (rpe.mask(offsets) - rpe.exact(offsets)).detach().square().mean()
    assert float(ours) ** 0.5 < 0.4 * np.mean(plain) ** 0.5


@pytest.mark.parametrize("kind", ["mixture", "scenic"])
def test_a_mask_on_both_sides_is_highest_at_offset_zero(kind):
    for seed in range(5):
        rpe = SpectralRPE(1, kind, sides="both", scale=4.0, seed=seed)
        found = rpe.mask(torch.linspace(-30, 30, 200)[:, None])
        assert (found <= rpe.mask(torch.zeros(1, 1)) + 1e-5).all()
    one = SpectralRPE(1, "mixture", scale=4.0, seed=1)
    with torch.no_grad():
        one.spectrum.mass.neg_()
        one.spectrum.mass.abs_().neg_()
    assert (one.mask(torch.full((1, 1), 30.0)) > one.mask(torch.zeros(1, 1))).all()


def test_only_the_asymmetric_kind_tells_forth_from_back():
    z = torch.linspace(0.5, 9, 20)[:, None]
    for kind in KINDS:
        rpe = SpectralRPE(1, kind, scale=4.0)
        same = torch.allclose(rpe.mask(z), rpe.mask(-z), atol=1e-5)
        assert same == (kind != "asymmetric")


def test_random_features_converge_to_softmax_with_the_mask():
    """The output error falls as one over the root of the number of features."""
    x = draw(1, 24, 16)
    errors = []
    for features in (64, 1024, 16384):
        total = 0.0
        for seed in range(8):
            rpe = SpectralRPE(1, "shift", freqs=16, scale=6.0)
            # Low enough that few features are past the reach of their rarest draws.
            torch.nn.init.constant_(rpe.spectrum.height, 0.3)
            attn = FLTAttention(16, 1, rpe=rpe, features=features, seed=seed).double()
            q, k, v = (x @ part.T for part in attn.qkv.weight.chunk(3))
            at = torch.arange(24)
            mask = rpe.double().mask((at[:, None] - at)[..., None].double())[0]
            wanted = (q @ k.transpose(1, 2) / 4 + mask).softmax(-1) @ v @ attn.out.weight.T
            total += float((attn(x) - wanted).detach().square().mean())
        errors.append((total / 8) ** 0.5)
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 0.4 * errors[1]


def test_projections_are_orthogonal_in_blocks_and_as_long_as_normal_rows():
    generator = torch.Generator().manual_seed(0)
    rows = orthogonal_rows(25, 10, generator)
    gram = rows @ rows.T
    for start in (0, 10, 20):
        block = gram[start : start + 10, start : start + 10]
        torch.testing.assert_close(block, torch.diag(block.diagonal()))
    many = torch.cat([orthogonal_rows(10, 10, generator) for _ in range(2000)])
    torch.testing.assert_close(many.T @ many / len(many), torch.eye(10).double(), atol=0.04, rtol=0)


@pytest.mark.parametrize("feature_map", ["softmax", "relu"])
@pytest.mark.parametrize("loud", [1.0, 1e3])
def test_the_past_does_not_feel_the_future_to_the_last_bit(feature_map, loud):
    attn = attention(causal=True, feature_map=feature_map).float()
    x = draw(2, 300, 6).float()
    changed = x.clone()
    changed[:, 150:] = loud * draw(2, 150, 6, seed=9).float()
    with torch.no_grad():
        assert torch.equal(attn(x)[:, :150], attn(changed)[:, :150])
        assert not torch.allclose(attn(x)[:, 150:], attn(changed)[:, 150:], atol=1e-3)


@pytest.mark.parametrize("causal", [False, True])
def test_batch_mates_are_not_felt_to_the_last_bit(causal):
    attn = attention(causal=causal).float()
    x = draw(3, 40, 6).float()
    loud = torch.cat((x[:1], 1e3 * draw(2, 40, 6, seed=5).float()))
    with torch.no_grad():
        assert torch.equal(attn(x)[0], attn(loud)[0])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("loud", [1e-3, 30.0, 1e4])
def test_outputs_and_gradients_stay_finite_at_any_size_of_input(causal, loud):
    attn = attention(causal=causal).float()
    x = (loud * draw(1, 200, 6).float()).requires_grad_()
    y = attn(x)
    y.square().mean().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in (x, *attn.parameters()))


@pytest.mark.parametrize("time", [1, 127, 128, 129, 300])
def test_chunks_steps_and_prefill_agree(time):
    attn, x = attention(causal=True), draw(2, time, 6)
    with torch.no_grad():
        whole = attn(x)
        state, found = None, []
        for t in range(time):
            y, state = attn.step(x[:, t], state)
            found.append(y)
        torch.testing.assert_close(torch.stack(found, 1), whole)
        cut = time // 3
        first, state = attn.prefill(x[:, :cut])
        rest, state = attn.prefill(x[:, cut:], state)
        torch.testing.assert_close(torch.cat((first, rest), 1), whole)
    assert state.position == time
    assert state.sums.total.shape == (2, 2, 8, 4)


def test_steps_take_the_place_of_a_token_in_space():
    attn = attention(rpe=small(dim=3), causal=True)
    x, coords = draw(2, 5, 6), draw(2, 5, 3, seed=1)
    with torch.no_grad():
        state, found = None, []
        for t in range(5):
            y, state = attn.step(x[:, t], state, coords[:, t])
            found.append(y)
        torch.testing.assert_close(torch.stack(found, 1), attn(x, coords))


def test_gradients_flow_through_steps():
    attn, x = attention(causal=True), draw(1, 5, 6).requires_grad_()
    state, found = None, []
    for t in range(5):
        y, state = attn.step(x[:, t], state)
        found.append(y)
    wanted = torch.autograd.grad(attn(x)[:, -1].sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(found[-1].sum(), x)[0], wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("far", [1000, 10**7])
def test_a_common_shift_of_all_places_leaves_the_mask_also_far_out(kind, far):
    rpe, at = SpectralRPE(1, kind, scale=3.0), torch.arange(9)[:, None]
    (query, key), (far_query, far_key) = rpe(at), rpe(at + far)
    found, wanted = far_query @ far_key.transpose(1, 2), query @ key.transpose(1, 2)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    attn, x = attention(kind), draw(1, 9, 6)
    torch.testing.assert_close(attn(x), attn(x, at))


def test_the_order_of_points_does_not_matter():
    attn = attention(rpe=small(dim=3))
    x, coords, order = draw(2, 9, 6), draw(2, 9, 3, seed=1), torch.randperm(9)
    torch.testing.assert_close(attn(x, coords)[:, order], attn(x[:, order], coords[:, order]))


def test_one_mask_serves_all_heads_and_none_is_a_performer():
    shared = SpectralRPE(freqs=4, blobs=3)
    attn = FLTAttention(6, 2, rpe=shared, features=8).double()
    x = draw(2, 7, 6)
    split = copy.deepcopy(attn)
    split.rpe = SpectralRPE(heads=2, freqs=4, blobs=3)
    split.rpe.points = shared.points.expand(2, -1, -1)
    for name, weight in shared.spectrum.named_parameters():
        repeated = weight.repeat(2, *(1,) * (weight.ndim - 1)).detach()
        setattr(split.rpe.spectrum, name, torch.nn.Parameter(repeated))
    torch.testing.assert_close(attn(x), split.double()(x))
    plain = FLTAttention(6, 2, features=8).double()
    order = torch.randperm(7)
    torch.testing.assert_close(plain(x)[:, order], plain(x[:, order]))


def test_exponentials_stay_in_float32_under_autocast_and_in_half_modules(monkeypatch):
    attn, x = attention(causal=True).float(), draw(1, 64, 6).float()
    seen = []

    def spy(made):
        def call(*args):
            seen.append({a.dtype for a in args})
            return made(*args)

        return call

    wanted = attn(x)
    monkeypatch.setattr(flt, "softmax_features", spy(flt.softmax_features))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attn(x)
    half = copy.deepcopy(attn).bfloat16()(x.bfloat16())
    assert seen == [{torch.float32}] * 4
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, rtol=0.1, atol=0.02)
    torch.testing.assert_close(half.float(), wanted, rtol=0.1, atol=0.02)


def test_half_modules_keep_the_points_that_frequencies_come_from():
    rpe = SpectralRPE()
    points = rpe.points.clone()
    assert torch.equal(rpe.bfloat16().points, points)


def test_redrawing_gives_the_next_of_a_series_and_refuses_old_states():
    attn, other = attention(causal=True), attention(causal=True)
    before = attn.projection.clone()
    _, state = attn.step(draw(1, 6))
    attn.redraw()
    assert not torch.equal(attn.projection, before)
    other.redraw()
    assert torch.equal(attn.projection, other.projection)
    with pytest.raises(ValueError, match="state must come from this very module"):
        attn.step(draw(1, 6), state)
    points = attn.rpe.points.clone()
    _, state = attn.step(draw(1, 6))
    attn.rpe.redraw()
    assert not torch.equal(attn.rpe.points, points)
    with pytest.raises(ValueError, match="or it or its mask redrawn"):
        attn.step(draw(1, 6), state)
    _, state = attn.step(draw(1, 6))
    attn.rpe.load_state_dict(attn.rpe.state_dict())
    with pytest.raises(ValueError, match="or it or its mask redrawn"):
        attn.step(draw(1, 6), state)


@pytest.mark.parametrize("dim", [1, 2])
def test_a_loaded_checkpoint_goes_on_with_the_series_of_draws(dim):
    first, resumed = attention(rpe=small(dim=dim)), attention(rpe=small(dim=dim))
    first.redraw()
    first.rpe.redraw()
    resumed.load_state_dict(first.state_dict())
    assert torch.equal(resumed.projection, first.projection)
    for attn in (first, resumed):
        attn.redraw()
        attn.rpe.redraw()
    assert int(resumed.draws) == int(resumed.rpe.draws) == 2
    assert torch.equal(resumed.projection, first.projection)
    assert torch.equal(resumed.rpe.points, first.rpe.points)


@pytest.mark.parametrize("shared", [False, True])
def test_places_that_are_padded_are_neither_judged_nor_felt(shared):
    attn = attention(rpe=small(dim=2))
    x, real = draw(3, 5, 6), torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0] * 5]).bool()
    coords = draw(5, 2) if shared else draw(3, 5, 2)
    spoilt = coords.clone()
    if shared:
        spoilt[4] = torch.nan
    else:
        spoilt[~real] = torch.tensor([torch.nan, 1e9], dtype=torch.float64)
    spoilt.requires_grad_()
    found = attn(x, spoilt, padding=real)
    torch.testing.assert_close(found, attn(x, coords, padding=real))
    (grad,) = torch.autograd.grad(found.square().sum(), spoilt)
    assert grad.isfinite().all()
    with pytest.raises(ValueError, match="coords must be finite"):
        attn(x, spoilt)


def test_each_row_of_coordinates_is_judged_by_itself():
    attn, x, coords = attention(rpe=small(dim=2)), draw(2, 5, 6), draw(2, 5, 2)
    apart = coords + torch.tensor([0.0, 1e4], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(attn(x, apart)[0], attn(x, coords)[0])
    masks = [q @ k.transpose(-1, -2) for q, k in (attn.rpe(apart), attn.rpe(coords))]
    torch.testing.assert_close(*masks)


def test_indices_are_held_to_the_same_reach_as_given_coordinates():
    rpe = SpectralRPE(freqs=4, scale=2.0)
    attn, x = FLTAttention(4, 1, rpe=rpe, features=8, causal=True), torch.zeros(1, 34, 4)
    at = torch.arange(34)[:, None]
    attn(x[:, :33])
    attn(x[:, :33], at[:33])
    _, state = attn.prefill(x[:, :33])
    for call in (
        lambda: attn(x),
        lambda: attn(x, at),
        lambda: attn.step(x[:, 33], state),
    ):
        with pytest.raises(ValueError, match=r"at most 16 times .* of 2, got 33: divide them"):
            call()


def test_empty_batches_and_sequences_come_back_empty():
    attn = attention(causal=True)
    assert attn(draw(0, 5, 6)).shape == (0, 5, 6)
    assert attn(draw(2, 0, 6)).shape == (2, 0, 6)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("dim must be a whole number, at least 1, got 0", lambda: SpectralRPE(0)),
        ("kind must be one of mixture, .*, got 'gmm'", lambda: SpectralRPE(1, "gmm")),
        ("sides must be one of one, both, got 'left'", lambda: SpectralRPE(sides="left")),
        ("kind 'scenic' has its spectrum on both", lambda: SpectralRPE(1, "scenic", sides="one")),
        ("makes every mask even", lambda: SpectralRPE(1, "asymmetric", sides="both")),
        ("scale must be a positive number, got -1", lambda: SpectralRPE(scale=-1)),
        ("scale must be a positive number, got '16'", lambda: SpectralRPE(scale="16")),
        ("reach must be a positive number, got inf", lambda: SpectralRPE(reach=float("inf"))),
        ("dim must be at most 21201, got 22000", lambda: SpectralRPE(22000, freqs=2)),
        ("coords must be a tensor or None, got list", lambda: attention()(draw(1, 2, 6), [[0.0]])),
        ("coords must be a tensor, got list", lambda: SpectralRPE()([[1.0]])),
        ("coords must hold real", lambda: SpectralRPE()(torch.ones(2, 1).bool())),
        ("offsets must be a tensor, got list", lambda: SpectralRPE().mask([[1.0]])),
        ("of the module's dtype torch.float32, got", lambda: FLTAttention(6, 2)(draw(1, 5, 6))),
        (r"coords must have shape \(\.\.\., time, 2\)", lambda: SpectralRPE(2)(torch.zeros(5, 3))),
        ("coords must be finite", lambda: SpectralRPE()(torch.tensor([[0.0], [torch.nan]]))),
        ("divide them", lambda: SpectralRPE(scale=1.0)(torch.arange(256.0)[:, None])),
        (r"offsets must have shape \(\.\.\., 1\)", lambda: SpectralRPE().mask(torch.zeros(3))),
        ("closed form for sides='one'", lambda: SpectralRPE(sides="both").exact(torch.zeros(1))),
        ("width must be a multiple of heads=4, got 6", lambda: FLTAttention(6, 4)),
        ("features must be a whole number", lambda: FLTAttention(6, 2, features=0)),
        ("feature_map must be one of", lambda: FLTAttention(6, 2, feature_map="elu")),
        ("rpe must be a SpectralRPE or None, got str", lambda: FLTAttention(6, 2, rpe="local")),
        ("rpe must have 1 or 2 heads, got 3", lambda: FLTAttention(6, 2, rpe=SpectralRPE(heads=3))),
        (r"x must have shape \(batch, time, width\)", lambda: attention()(draw(5, 6))),
        ("tokens of width 6, got .* of width 5", lambda: attention()(draw(1, 5, 5))),
        ("x must hold floating-point", lambda: attention()(torch.zeros(1, 5, 6).long())),
        ("coords are needed, of shape .* 3", lambda: attention(rpe=small(dim=3))(draw(1, 5, 6))),
        ("coords are needed, such as index", lambda: attention("scenic")(draw(1, 5, 6))),
        ("coords must have shape .* to fit x", lambda: attention()(draw(1, 5, 6), draw(4, 1))),
        ("one coordinate for each", lambda: attention()(draw(1, 5, 6), draw(5, 2))),
        ("no use without rpe", lambda: FLTAttention(6, 2)(torch.ones(1, 5, 6), torch.ones(5, 1))),
        (
            r"padding must be bool of shape \(batch, time\) = \(1, 5\)",
            lambda: attention()(draw(1, 5, 6), padding=torch.ones(1, 5)),
        ),
        ("needs causal=True", lambda: attention().step(draw(1, 6))),
        ("state must be an FLTState", lambda: attention(causal=True).step(draw(1, 6), {})),
        (
            "state must come from this very module",
            lambda: attention(causal=True).step(
                draw(1, 6), attention(causal=True).step(draw(1, 6))[1]
            ),
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(message, call):
    with pytest.raises(ValueError, match=message) as caught, annotations_unchecked():
        call()
    assert "\n" not in str(caught.value)


def test_a_state_of_another_batch_or_of_loaded_weights_is_refused():
    attn = attention(causal=True)
    _, state = attn.step(draw(2, 6))
    with pytest.raises(ValueError, match=r"same batch size as x \(3\), got 2"):
        attn.step(draw(3, 6), state)
    attn.load_state_dict(attn.state_dict())
    with pytest.raises(ValueError, match="very module since its weights were last loaded"):
        attn.step(draw(2, 6), state)
