"""What the check measures: nothing held out is seen before, and arms find what they should."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from trialrun.claims.contract import Context
from trialrun.dossiers.pic2word import claim, world
from trialrun.dossiers.pic2word.claim import TRIAL
from trialrun.representation.retrieval import cosine_scores, ranking


@pytest.fixture(scope="module")
def ctx(tmp_path_factory):
    made = Context(
        budget=TRIAL.budgets["smoke"], seed=3, prepared_root=tmp_path_factory.mktemp("prepared")
    )
    folder = made.prepared("clip")
    folder.mkdir()
    world.prepare(made, folder)
    return made


def test_held_out_code_points_are_in_no_training_picture_or_sentence(ctx):
    train, test = (part.things for part in world.drawn(ctx))
    assert not set(train.keys) & set(test.keys)
    seen = world.world_of(ctx)
    assert len(seen.train) == len(train) * 3
    assert seen.held_out == test
    assert seen.seen == train
    told = {sentence for four in train.captions() for sentence in four}
    assert not told & {test.caption(i, style=s) for i in range(len(test)) for s in test.styles}


def test_seeds_hold_out_other_code_points(ctx):
    larger = replace(ctx.budget, code_points=150)  # several of each sub-category
    one, other = (Context(budget=larger, seed=seed) for seed in (3, 4))
    assert world.drawn(one)[1].things.keys != world.drawn(other)[1].things.keys


def test_the_sentence_is_worded_like_the_captions(ctx):
    seen = world.world_of(ctx)
    assert seen.sentence("twemoji", "*") == "a Twemoji drawing of *"
    assert seen.sentence("openmoji", "x") == "an OpenMoji drawing of x"
    assert {"a", "drawing", "of", "twemoji"} <= set(seen.words.words)


def test_an_oracle_finds_everything_and_the_query_is_not_in_its_gallery(ctx):
    seen = world.world_of(ctx)
    n = len(seen.held_out)
    plain = replace(seen, test=torch.eye(3 * n))
    at = {style: s for s, style in enumerate(seen.styles)}

    def oracle(features, style):
        return torch.eye(3 * n)[features.argmax(1) // 3 * 3 + at[style]]

    best = world.measure(plain, oracle)
    assert best.points["value"] == 100
    assert best.extra["recall at 1"] == 100
    assert best.n == 6 * n
    # The picture alone is its own best match, and that one does not count.
    own = world.measure(plain, lambda features, _: features)
    assert own.extra["recall at 1"] == 0


def test_all_arms_of_a_seed_share_one_clip_and_agree_with_themselves(ctx):
    arms = TRIAL.arms["composition"]
    assert arms["composed"](ctx) == arms["composed"](ctx)
    assert arms["image"](ctx).n == arms["composed"](ctx).n == arms["true-name"](ctx).n
    better = TRIAL.arms["mixture"]["better-part"](ctx).points["value"]
    parts = [TRIAL.arms["mixture"][name](ctx).points["value"] for name in ("image", "text")]
    assert better == max(parts)


def test_the_weighted_sum_is_chosen_on_training_drawings_alone(ctx, monkeypatch):
    train, test = (part.things for part in world.drawn(ctx))
    seen, held = world.training_world(ctx), world.world_of(ctx)
    assert set(seen.held_out.keys) <= set(train.keys)
    assert len(seen.held_out) == len(test)
    places = [train.keys.index(c) for c in seen.held_out.keys]
    assert torch.equal(seen.test.view(len(test), 3, -1), held.train.view(-1, 3, 64)[places])
    # Whatever the held-out drawings say, the share is the same; each arm is one run on them.
    found = {s: claim._weighted(seen, s).points["value"] for s in claim.WEIGHTS}
    best = max(found, key=lambda s: (found[s], -s))
    done = claim.weighted(ctx)
    assert done.extra["share of the picture"] == best
    assert done.points == claim._weighted(held, best).points
    monkeypatch.setattr(claim, "world_of", lambda _: replace(held, test=-held.test))
    assert claim.weighted(ctx).extra["share of the picture"] == best


def test_the_weighted_sum_holds_the_plain_sum_and_both_parts(ctx):
    arms, held = TRIAL.arms["composition"], world.world_of(ctx)
    for share, name in ((0.0, "text"), (0.5, "mixture"), (1.0, "image")):
        assert share in claim.WEIGHTS
        assert claim._weighted(held, share).points == arms[name](ctx).points
    with pytest.raises(ValueError, match="share must be at least 0 and at most 1, got 2"):
        claim.weighted_mixture(torch.eye(2), torch.eye(2), 2)


def test_every_arm_prints_chance_within_the_style_and_the_control_its_distance(ctx):
    arms = TRIAL.arms["composition"]
    n = len(world.world_of(ctx).held_out)
    for name in ("composed", "text", "true-name", "weighted-mixture"):
        assert arms[name](ctx).extra["chance within the right style"] == min(100, 1000 / n)
    torn, ours = arms["permuted"](ctx), arms["composed"](ctx)
    lead = ours.points["value"] - torn.points["value"]
    assert torn.extra["composed minus permuted"] == pytest.approx(lead)
    assert "composed minus permuted" not in arms["mse"](ctx).extra


def test_rank_fusion_adds_reciprocal_ranks(ctx):
    scores = np.array([[0.1, 0.9, 0.5]])
    assert claim._places(scores).tolist() == [[2.0, 0.0, 1.0]]
    seen = world.world_of(ctx)
    table = cosine_scores(seen.test[:2], seen.test)
    order = ranking(table)
    places = claim._places(table)
    assert (np.take_along_axis(places, order, 1) == np.arange(len(seen.test))).all()


def test_the_control_trains_on_pairs_torn_apart(ctx, monkeypatch):
    seen, taken = world.world_of(ctx), {}
    real = world.fit_image_to_word

    def spy(mapper, clip, images, **settings):
        taken["targets"] = settings["targets"]
        return real(mapper, clip, images, **settings)

    monkeypatch.setattr(world, "fit_image_to_word", spy)
    world.fit_mapper(ctx, seen)
    assert taken["targets"] is None
    world.fit_mapper(ctx, seen, permuted=True)
    same = (taken["targets"] == seen.train).all(dim=1).float().mean()
    assert same < 0.2
    assert torch.equal(taken["targets"].sort(dim=0).values, seen.train.sort(dim=0).values)


def test_quick_and_full_use_seeds_of_their_own():
    seeds = [set(TRIAL.budgets[name].all_seeds) for name in ("smoke", "quick", "full")]
    assert not seeds[0] & seeds[1]
    assert not seeds[1] & seeds[2]
    assert not seeds[0] & seeds[2]
