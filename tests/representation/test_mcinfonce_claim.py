"""The check's own training: two starts of phase 1, of which held-out pairs choose one."""

import copy
import json

import pytest
import torch

from trialrun.claims.contract import Context
from trialrun.core.seeds import split
from trialrun.dossiers.mcinfonce import claim, training

SIZE = training.McBudget(seeds=1, dim=3, steps=5, batch=16, samples=2, width=8, scored=30)


@pytest.fixture
def world():
    return training.make_world(SIZE, 0, "reference")


def weights(encoder):
    return torch.cat([weight.detach().reshape(-1) for weight in encoder.parameters()])


def test_starts_differ_in_their_weights_alone(world):
    first, second = training.make_starts(SIZE, world, 0)
    again, _ = training.make_starts(SIZE, world, 0)
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(second))


@pytest.mark.parametrize("point", [False, True])
def test_the_start_with_the_lower_held_out_loss_is_kept_in_either_order(world, point):
    starts = training.make_starts(SIZE, world, 0)
    forth = training.train_mu(copy.deepcopy(starts), SIZE, world, 0, point=point)
    back = training.train_mu(copy.deepcopy(starts[::-1]), SIZE, world, 0, point=point)
    assert forth.start == forth.losses.index(min(forth.losses))
    assert forth.losses == back.losses[::-1]
    assert forth.start == 1 - back.start
    assert torch.equal(weights(forth.encoder), weights(back.encoder))


def test_the_kept_start_ends_as_if_it_had_been_alone(world):
    starts = training.make_starts(SIZE, world, 0)
    kept = training.train_mu(copy.deepcopy(starts), SIZE, world, 0)
    alone = training.train_mu([starts[kept.start]], SIZE, world, 0)
    assert torch.equal(weights(kept.encoder), weights(alone.encoder))
    assert all(weight.requires_grad for weight in kept.encoder.parameters())


def test_a_start_that_folds_the_sphere_is_dropped():
    size = training.McBudget(seeds=1, dim=3, steps=120, samples=8)
    world = training.make_world(size, 0, "reference")
    starts = training.make_starts(size, world, 0)
    kept = training.train_mu(starts, size, world, 0)
    rows = claim.Scored(world.inputs(300, seed=1), world.inputs(300, seed=2))
    cosines = [claim.score(start, rows, "start")["mean cosine of mu"] for start in starts]
    assert min(cosines) < 0.7
    assert cosines[kept.start] > 0.95


def test_starts_are_compared_within_the_warm_up_on_pairs_of_their_own(world, monkeypatch):
    seen = []

    def held_out_loss(encoder, loss, pairs, *, point=False):
        seen.append((float(loss.log_kappa.exp()), pairs))
        return 1.0

    monkeypatch.setattr(training, "held_out_loss", held_out_loss)
    kept = training.train_mu(training.make_starts(SIZE, world, 0), SIZE, world, 0)
    assert kept.start == 0
    (first, pairs), (second, same) = seen
    assert 1.0 < first == second < training.KAPPA_POS
    assert pairs is same
    used = next(training.batches(SIZE, world, split(0, "mu"), 0, "cpu")).ref
    assert not bool(torch.isin(pairs.ref, used).any())


def test_the_held_out_loss_repeats_and_leaves_the_draws_of_training_alone(world):
    encoder, _ = training.make_starts(SIZE, world, 0)
    pairs = world.pairs(7, 0, seed=1)
    loss = training.MCInfoNCELoss(20.0, 2, rolled=3, seed=0).train()
    other = copy.deepcopy(loss)
    found = [training.held_out_loss(encoder, loss, pairs) for _ in range(2)]
    assert found[0] == found[1]
    assert loss.training
    post = encoder(pairs.ref)
    assert torch.equal(loss(post, post, None), other(post, post, None))


@pytest.mark.parametrize("name", ["reference", "gaussian", "infonce"])
def test_every_arm_of_a_world_tells_which_start_was_kept_and_both_losses(name, tmp_path):
    ctx = Context(budget=SIZE, seed=0)
    claim.train_world(ctx, tmp_path, world=name)
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert scores.keys() == set(claim._ARMS_OF[name])
    for arm in scores.values():
        losses = [arm[f"held-out loss of start {i}"] for i in (1, 2)]
        assert arm["start kept"] == 1 + losses.index(min(losses))
