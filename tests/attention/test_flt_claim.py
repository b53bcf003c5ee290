"""The dossier's measuring code: fair arms, controls that lose only what they say, own text."""

from pathlib import Path

import pytest
import torch

from trialrun.attention.flt import SpectralRPE
from trialrun.blocks.bytelm import Shape
from trialrun.catalogue.card import parse_card
from trialrun.claims.contract import Context, On
from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng
from trialrun.dossiers.flt import claim, cost, lm, offsets, rivals

SHAPE = Shape(layers=2, width=32, heads=2, length=16)
SMOKE = claim.TRIAL.budgets["smoke"]


def model(arm, seed=0):
    return lm.make_lm(arm, SHAPE, features=16, seed=seed).eval()


def ids(count=3, length=16, seed=0):
    return torch.randint(0, 256, (count, length), generator=torch.Generator().manual_seed(seed))


def test_the_trial_has_the_cards_claims_and_arms():
    card = parse_card(Path(claim.__file__).with_name("card.toml").read_text())
    assert {c.id: set(c.arms) for c in card.claims} == {
        name: set(arms) for name, arms in claim.TRIAL.arms.items()
    }


def shared(model):
    """Return the weights that every arm has, by the end of their names."""
    kept = {}
    for name, weight in model.state_dict().items():
        name = name.replace("attention.inner.", "attention.").replace("embed.weight", "weight")
        if not any(part in name for part in ("rpe", "bias", "places", "projection", "lm_head")):
            kept[name.replace("embed_tokens.embed.", "embed_tokens.")] = weight
    return kept


@pytest.mark.parametrize("arm", lm.ARMS)
def test_arms_start_from_the_same_weights_and_differ_in_positions_alone(arm):
    first, other = shared(model("none")), shared(model(arm))
    assert len(first) == len(other) > 10
    for (a, x), (b, y) in zip(sorted(first.items()), sorted(other.items()), strict=True):
        assert torch.equal(x, y), (a, b)


@pytest.mark.parametrize("arm", [arm for arm in lm.ARMS if arm != "softmax"])
def test_contents_meet_the_same_random_features_in_every_arm(arm):
    def contents(arm):
        parts = [x for n, x in model(arm).state_dict().items() if n.endswith("projection")]
        assert len(parts) == SHAPE.layers
        return torch.stack([x[..., : SHAPE.width // SHAPE.heads] for x in parts])

    assert torch.equal(contents(arm), contents("mixture"))


@pytest.mark.parametrize("arm", lm.ARMS)
def test_every_arm_is_causal_and_trains_all_it_has(arm):
    net, x = model(arm), ids()
    changed = x.clone()
    changed[:, 9:] = ids(seed=1)[:, 9:]
    with torch.no_grad():
        before, after = net(input_ids=x).logits, net(input_ids=changed).logits
    torch.testing.assert_close(before[:, :9], after[:, :9], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before[:, 9:], after[:, 9:], atol=1e-3)
    net(input_ids=x).logits.square().mean().backward()
    for name, weight in net.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all()


@pytest.mark.parametrize("arm", ["absolute", "rotary", "mixture", "local", "softmax", "toeplitz"])
def test_positions_matter_in_each_arm_that_has_them(arm):
    torch.manual_seed(0)
    net = model(arm)
    for name, weight in net.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight)
    x = ids(1)
    swapped = x.clone()
    swapped[:, [0, 1]] = x[:, [1, 0]]
    # One layer's last output sees the same set of tokens either way, but for their order.
    net.model.layers = net.model.layers[:1]
    with torch.no_grad():
        gap = (net(input_ids=x).logits - net(input_ids=swapped).logits)[:, -1].abs().max()
    assert gap > 1e-4
    plain = model("none")
    plain.model.layers = plain.model.layers[:1]
    with torch.no_grad():
        gap = (plain(input_ids=x).logits - plain(input_ids=swapped).logits)[:, -1].abs().max()
    assert gap < 1e-4


@pytest.mark.parametrize("kind", ["mixture", "local"])
def test_the_shuffled_mask_keeps_its_sizes_and_loses_the_offset(kind):
    mixed = lm.Shuffled(kind, heads=2, freqs=8, length=40, seed=3)
    plain = SpectralRPE(1, kind, heads=2, freqs=8, scale=lm.SCALE, seed=3)
    at = torch.arange(40)[:, None]
    for a, b in zip(mixed(at), plain(at), strict=True):
        torch.testing.assert_close(a.square().sum(-1), b.square().sum(-1))
    (query, key), (plain_query, plain_key) = mixed(at), plain(at)

    def wobble(query, key):
        """Return how much the mask varies among pairs at the same offset."""
        found = (query @ key.transpose(1, 2)).detach()
        return torch.stack([found.diagonal(-k, 1, 2).var(-1) for k in range(10)]).mean()

    assert wobble(plain_query, plain_key) < 1e-8
    assert wobble(query, key) > 0.1 * (plain_query @ plain_key.transpose(1, 2)).detach().var()


def test_the_toeplitz_mask_by_fft_gives_what_all_pairs_give():
    draw = torch.Generator().manual_seed(0)
    query, key = torch.rand(2, 2, 3, 37, 8, generator=draw).double().unbind()
    value = torch.randn(2, 3, 37, 5, generator=draw).double()
    bias = torch.randn(3, 37, generator=draw).double()
    step = torch.arange(37)
    weights = query @ key.transpose(2, 3) * bias[:, (step[:, None] - step).clamp(min=0)].exp()
    weights = weights * (step <= step[:, None])
    wanted = weights @ value / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(rivals.toeplitz_by_fft(query, key, value, bias), wanted)


@torch.no_grad()
def test_a_rival_without_bias_is_flt_attention_without_a_mask():
    settings = {"features": 16, "seed": 5}
    rival = rivals.Rival(32, 2, scheme="toeplitz", length=20, **settings)
    x = torch.randn(2, 20, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rival(x), rival.inner(x), rtol=1e-4, atol=1e-5)


def test_one_head_sees_places_and_not_symbols():
    for arm in offsets.ARMS:
        head = offsets.OneHead(arm, features=16, freqs=8, seed=0)
        first, second = offsets.draw_ids(rng(0, "test"), 2)
        logits = head(torch.stack((first, second)))
        renamed = head(torch.stack((15 - first, 15 - second)))
        torch.testing.assert_close(renamed.flip(-1), logits, rtol=1e-4, atol=1e-5)


def test_a_slope_is_a_power():
    assert cost.slope([1, 10, 100], [3.0, 300.0, 30000.0]) == pytest.approx(2)


@pytest.mark.parametrize("arm", cost.ARMS)
def test_every_cost_arm_attends_causally(arm):
    call = cost._call(arm, 0, 64, torch.device("cpu"))
    x = torch.randn(1, 64, cost.WIDTH, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, 40:] += 1
    with torch.no_grad():
        before, after = call(x), call(changed)
    torch.testing.assert_close(before[:, :40], after[:, :40], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(before[:, 40:], after[:, 40:], atol=1e-3)


def words(path, size):
    path.write_text(("all work and no play makes jack a dull boy\n" * (size // 43 + 1))[:size])
    return On("text", str(path))


def test_a_text_of_the_users_own_is_trained_on_scored_and_kept(tmp_path):
    on = words(tmp_path / "own.txt", 200_000)
    ctx = Context(budget=SMOKE, seed=0, on=on, prepared_root=tmp_path)
    claim.check_on(ctx)
    ctx.prepared("mixture").mkdir()
    claim.TRIAL.prepare["mixture"](ctx, ctx.prepared("mixture"))
    measured = claim.TRIAL.arms["no-rpe"]["mixture"](ctx)
    assert 0 < measured.points["value"] < 20
    assert measured.n == SMOKE.windows * 12
    kept = tmp_path / "kept"
    kept.mkdir()
    scope: dict = {}
    exec(claim.keep(ctx, kept), scope)
    with torch.no_grad():
        assert scope["model"](input_ids=ids()).logits.shape == (3, 16, 256)
    assert not scope["model"].training


def test_a_short_text_is_refused_in_one_sentence(tmp_path):
    ctx = Context(budget=SMOKE, seed=0, on=words(tmp_path / "s.txt", 199_999))
    with pytest.raises(UsageError, match=r"s\.txt.* 200000 bytes .*, got 199999$"):
        claim.check_on(ctx)


@pytest.mark.parametrize(
    "make",
    [
        lambda: lm.make_lm("alibi", SHAPE, features=8, seed=0),
        lambda: offsets.OneHead("alibi", features=8, freqs=4, seed=0),
        lambda: cost.growth("alibi", (8, 16), repeats=1, seed=0, device="cpu"),
    ],
)
def test_an_unknown_arm_is_refused(make):
    with pytest.raises(UsageError, match=r"arm must be one of .*, got 'alibi'"):
        make()
