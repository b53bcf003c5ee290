"""The claim on pictures: its views, its scores, and the user's own class folders."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import scipy.stats
import torch
from PIL import Image

from trialrun.claims.contract import Context, On
from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng, split
from trialrun.dossiers.mcinfonce import claim, picture_arms, training
from trialrun.dossiers.mcinfonce.pictures import (
    SMALLEST,
    Stock,
    check_on,
    divide,
    load_stock,
    resplit,
    standardised,
)
from trialrun.dossiers.mcinfonce.scoring import rank_correlation, reject_area, score_pictures
from trialrun.representation.mcinfonce import MCInfoNCELoss, VMFEncoder, VonMisesFisher

BUDGET = replace(claim.TRIAL.budgets["smoke"], picture_steps=2)


def context(**settings):
    return Context(budget=BUDGET, seed=0, **settings)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits():
    return load_stock(None)


@pytest.fixture
def own(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(4):
            pixels = rng(number, name).integers(0, 255, (16, 16, 3)).astype("uint8")
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    return tmp_path


def test_no_held_out_picture_is_trained_on_and_every_class_is_everywhere(digits):
    parts = divide(digits, 0)
    rows = [{picture.numpy().tobytes() for picture in part.images} for part in parts]
    assert sum(map(len, rows)) == len(set.union(*rows))
    assert all(part.classes == 10 for part in parts)
    assert [len(part.images) for part in divide(digits, 0)] == [len(part.images) for part in parts]
    assert not torch.equal(divide(digits, 1).train.images, parts.train.images)


def test_a_view_shows_its_soft_label_and_a_whole_window_is_the_picture():
    # Two classes of one bright row each: the mean rows of a view give the shares away.
    images = torch.zeros(4, 1, 8, 8)
    images[:2, :, 1], images[2:, :, 6] = 1.0, 1.0
    stock = Stock(images, torch.tensor([0, 0, 1, 1]))
    views = stock.views(stock.soft_labels(400, stream()), stream(1))
    assert float(views.share.min()) >= 0.5
    assert float(views.left.min()) >= SMALLEST
    # The nearer the window is to the whole, the nearer its rows are to the mixture's.
    whole = views.left > 0.97
    rows = views.x[whole].mean((1, 3))
    brighter = (rows[:, 6] > rows[:, 1]).long()
    assert torch.equal(
        brighter[views.share[whole] > 0.6], views.label[whole][views.share[whole] > 0.6]
    )


def test_neither_ink_nor_contrast_gives_the_window_away(digits):
    views = digits.views(digits.soft_labels(200, stream()), stream(1))
    torch.testing.assert_close(views.x.mean((1, 2, 3)), torch.zeros(200), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(views.x.std((1, 2, 3), correction=0), torch.ones(200))
    assert not bool(standardised(torch.ones(2, 1, 8, 8)).any())


def test_pairs_are_two_pictures_of_one_soft_label(digits):
    pairs = digits.pairs(63, seed=3)
    assert pairs.ref.shape == pairs.pos.shape == (63, 1, 8, 8)
    assert not torch.equal(pairs.ref, pairs.pos)
    assert torch.equal(digits.pairs(63, seed=3).pos, pairs.pos)
    with pytest.raises(ValueError, match="negatives must be 0"):
        digits.pairs(63, 2, seed=3)


def test_rejecting_the_doubtful_first_has_the_smaller_area():
    wrong = torch.tensor([False, False, True, True])
    sure = torch.tensor([4.0, 3.0, 2.0, 1.0])
    assert reject_area(wrong, sure) == pytest.approx(100 * (0 + 0 + 1 / 3 + 1 / 2) / 4)
    assert reject_area(wrong, -sure) > reject_area(wrong, sure)


def test_concentrations_at_the_limit_share_a_rank():
    ranked = scipy.stats.spearmanr([5.0, 5.0, 5.0, 1.0, 2.0], [1.0, 2.0, 3.0, 4.0, 5.0]).statistic
    kappa, left = torch.tensor([5.0, 5.0, 5.0, 1.0, 2.0]), torch.arange(5.0)
    assert rank_correlation(kappa, left, shared=True) == pytest.approx(ranked)
    apart = torch.tensor([0.3, 2.0, 1.0, 7.0, 5.0])
    assert rank_correlation(apart, left, shared=True) == rank_correlation(apart, left)


def test_an_encoder_that_knows_the_window_ranks_perfectly(digits):
    parts = divide(digits, 0)
    views = parts.asked.views(parts.asked.soft_labels(60, stream()), stream(1))
    encoder = picture_arms.make_encoder(0)

    class Knowing(torch.nn.Module):
        def forward(self, x):
            post = encoder(x)
            if len(x) == len(views.left):
                return type(post)(post.mu, views.left)
            return post

    scores = score_pictures(Knowing(), views, parts.found, "mcinfonce")
    assert scores["rank"] == pytest.approx(1.0, abs=1e-3)
    assert scores["recall@1"] == pytest.approx(
        score_pictures(encoder, views, parts.found, "mcinfonce")["recall@1"]
    )


def test_concentrations_that_are_alike_but_for_rounding_say_nothing_of_the_window(digits):
    parts = divide(digits, 0)
    views = parts.asked.views(parts.asked.soft_labels(60, stream()), stream(1))
    encoder = picture_arms.make_encoder(0)

    class Indifferent(torch.nn.Module):
        def forward(self, x):
            post = encoder(x)
            grain = views.left if len(x) == len(views.left) else torch.zeros(len(x))
            return type(post)(post.mu, 15 + 1e-4 * grain)

    assert score_pictures(Indifferent(), views, parts.found, "shuffled")["rank"] == 0.0


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 16), (3, 32)])
def test_encoders_of_every_side_give_eight_dimensions(channels, side):
    encoder = picture_arms.make_encoder(0, channels, side)
    assert encoder(torch.randn(5, channels, side, side)).mu.shape == (5, 8)


class Blind(torch.nn.Module):
    """Hides the last feature, so that it reaches the loss through the concentration alone."""

    def forward(self, features):
        return torch.cat([features[..., :-1], torch.zeros_like(features[..., -1:])], dim=-1)


def test_phase_one_does_not_reach_the_shared_backbone_through_the_concentration(digits):
    encoder = picture_arms.make_encoder(0)
    encoder.backbone[-1] = torch.nn.Identity()
    encoder.head.mu.insert(0, Blind())
    layer = encoder.backbone[-3]
    before = layer.weight.detach().clone()
    training.train_mu([encoder], BUDGET, digits, 0)
    assert torch.equal(layer.weight[-1], before[-1])
    assert not torch.equal(layer.weight[0], before[0])


def test_a_posterior_without_a_gradient_in_its_concentration_is_left_as_it_is():
    mu, kappa = torch.eye(3), torch.ones(3, requires_grad=True)
    still = VonMisesFisher(mu, kappa.detach())
    assert training.at_rest(still) is still
    assert not training.at_rest(VonMisesFisher(mu, kappa)).kappa.requires_grad


def test_phase_one_in_the_manual_does_not_either():
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    (block,) = [part for part in page.split("```python\n") if 'for part in ("mu", "kappa")' in part]
    backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 64))
    before = backbone[1].weight.detach().clone()

    def blind(*args, **settings):
        encoder = VMFEncoder(*args, **settings)
        encoder.head.mu.insert(0, Blind())
        return encoder

    pictures = torch.randn(2, 16, 3, 2, 2, generator=stream())
    names = {
        "torch": torch, "VMFEncoder": blind, "MCInfoNCELoss": MCInfoNCELoss, "backbone": backbone,
        "VonMisesFisher": VonMisesFisher, "x_ref": pictures[0], "x_pos": pictures[1],
    }  # fmt: skip
    exec(block.split("```")[0], names)
    assert torch.equal(backbone[1].weight[-1], before[-1])
    assert not torch.equal(backbone[1].weight[0], before[0])


def test_concentrations_start_anew_before_phase_two(digits):
    ctx = context()
    typical = digits.pairs(256, seed=split(0, "calibration")).ref
    start = picture_arms.directed(ctx, digits, picture_arms.make_encoder(0))
    kappa = start(typical).kappa.detach()
    low, high = picture_arms.KAPPA
    assert float(kappa.min()) == pytest.approx(low, rel=1e-4)
    assert float(kappa.max()) == pytest.approx(high, rel=1e-4)


def test_arms_share_phase_one_and_differ_in_their_concentrations(tmp_path):
    picture_arms.train_pictures(context(), tmp_path)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert set(scores) == set(claim.TRIAL.arms["pictures"])
    shared = {scores[arm]["recall@1"] for arm in ("untrained", "mcinfonce", "shuffled", "kernel")}
    assert len(shared) == 1
    assert len({scores[arm]["rank"] for arm in scores}) == len(scores)
    gained = scores["kernel"]["rank gained in phase 2"]
    assert gained == pytest.approx(scores["kernel"]["rank"] - scores["untrained"]["rank"])


def test_own_pictures_are_learned_and_kept_as_an_encoder_that_loads(own, tmp_path_factory, capsys):
    (own / "a" / "bad.png").write_bytes(b"nothing")
    ctx = context(on=On("images", str(own)))
    check_on(ctx)
    said = capsys.readouterr().err
    assert "1 files could not be read as pictures and were skipped: a/bad.png" in said
    assert [len(part.images) for part in divide(load_stock(ctx.on), 0)] == [4, 2, 2]
    assert resplit(ctx) == pytest.approx(3 / 7)
    folder = tmp_path_factory.mktemp("kept")
    picture_arms.train_pictures(ctx, folder)
    assert json.loads((folder / "scores.json").read_text())["mcinfonce"]
    names: dict = {}
    exec(claim.TRIAL.keep(ctx, folder), names)
    post = names["encoder"](names["standardised"](torch.rand(2, 3, 32, 32)))
    assert post.mu.shape == (2, 8)
    again: dict = {}
    exec(claim.TRIAL.keep(ctx, tmp_path_factory.mktemp("again")), again)
    kept, state = names["encoder"].state_dict(), again["encoder"].state_dict()
    assert all(torch.equal(kept[name], state[name]) for name in kept)


def test_folders_that_will_not_do_are_refused_in_a_sentence(own):
    for path, said in (
        (own / "a", "at least two classes, got 0"),
        (own / "none", "is not a folder"),
    ):
        with pytest.raises(UsageError, match=said):
            check_on(context(on=On("images", str(path))))
    (own / "b" / "0.png").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"class b .* at least 4 pictures, got 3 \(1 files could"):
        check_on(context(on=On("images", str(own))))
    with pytest.raises(UsageError, match="takes pictures of your own with --on"):
        check_on(context(model="dino"))
    with pytest.raises(UsageError, match="keep needs pictures of your own"):
        picture_arms.keep(context(), own)
