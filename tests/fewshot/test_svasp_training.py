"""Training with attacked styles: arms that can be compared, validation, fine-tuning, measures."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from trialrun.core.errors import UsageError
from trialrun.dossiers.svasp import claim, measures
from trialrun.fewshot.svasp import (
    Conv4,
    CosineHead,
    EpisodicTraining,
    FewShotModel,
    InductiveGNNHead,
    LossWeights,
    Pictures,
    StyleAttack,
    SVasPLoss,
    TransductiveGNNHead,
    evaluate_episodes,
    fine_tune,
    forward_with_styles,
    gradient_agreement,
    jitter,
    loss_rise,
    random_crops,
    train_episodes,
    train_supervised,
)

LABELS = np.repeat(np.arange(8), 20)


def _random(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _world():
    random = np.random.default_rng(0)
    prototypes = random.random((8, 3, 32, 32)) > 0.5
    images = prototypes[LABELS] * 0.6 + 0.4 * random.random((160, 3, 32, 32))
    return Pictures(torch.from_numpy(images).float(), LABELS)


def _model():
    return FewShotModel(Conv4(widths=(8, 8, 8, 8)), classes=8)


@pytest.mark.parametrize("preset", ["code", "paper", "styleadv", "noise"])
def test_training_learns_leaves_global_randomness_alone_and_repeats(preset):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    losses = []
    for _ in range(2):
        model = _model()
        train_supervised(model, _world(), steps=10, flip=False)
        log = train_episodes(
            model, _world(), attack=StyleAttack(stages=Conv4.stages, preset=preset),
            training=EpisodicTraining(shot=1, query=3, episodes=6, flip=False),
        )  # fmt: skip
        losses.append(log.losses)
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "head",
    [
        CosineHead(),
        InductiveGNNHead(8, way=3),
        TransductiveGNNHead(8, way=3),
        TransductiveGNNHead(8, way=3, queries_per_graph=3),
    ],
    ids=["cosine", "inductive", "transductive", "published layout"],
)
def test_every_head_is_trained_with_the_network(head):
    model = FewShotModel(Conv4(widths=(8, 8, 8, 8)), classes=8, head=copy.deepcopy(head))
    log = train_episodes(
        model, _world(), attack=StyleAttack(stages=Conv4.stages),
        training=EpisodicTraining(way=3, shot=1, query=2, episodes=2, flip=False),
    )  # fmt: skip
    assert np.isfinite(log.losses).all()
    for (name, new), old in zip(model.head.named_parameters(), head.parameters()):
        assert not torch.equal(new, old), name
    assert 0 <= evaluate_episodes(model, _world(), way=3, query=2, episodes=3).acc <= 100


def test_arms_that_differ_in_the_attack_see_the_same_clean_episodes():
    seen = []
    for attack in (None, StyleAttack(stages=Conv4.stages)):
        model, log = _model(), []
        model.backbone.register_forward_pre_hook(
            lambda _, args, log=log: log.append(args[0].clone())
        )
        train_episodes(
            model, _world(), attack=attack, loss=SVasPLoss(weights=LossWeights(dom=0)),
            training=EpisodicTraining(shot=1, query=2, episodes=1),
        )  # fmt: skip
        seen.append(log)
    clean, crops = seen[0][0], seen[0][-1]
    assert torch.equal(clean, seen[1][3])  # after one pass per attacked stage
    assert torch.equal(crops, seen[1][-1])


def test_the_best_state_on_source_validation_is_kept():
    model = _model()
    log = train_episodes(
        model, _world(), attack=None, validation=_world(),
        training=EpisodicTraining(
            shot=1, query=2, episodes=4, validate_every=1, validation_episodes=20, lr=0.01
        ),
    )  # fmt: skip
    assert log.best_episode in range(4)
    assert log.best_accuracy is not None
    with pytest.raises(ValueError, match="labels must lie between 0 and 3"):
        train_episodes(FewShotModel(Conv4(), classes=4), _world(), attack=None)
    with pytest.raises(ValueError, match="weight 0 for dom where there is no attack"):
        train_episodes(model, _world(), attack=None, loss=SVasPLoss())
    with pytest.raises(ValueError, match="width must be given: Identity"):
        FewShotModel(nn.Identity(), classes=3)


def test_fine_tuning_changes_a_copy_and_repeats():
    model, support = _model(), _world().images[::20][:5, None]
    before = copy.deepcopy(model.state_dict())
    first, second = (fine_tune(model, support, epochs=2, per_class=3) for _ in range(2))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
    assert not torch.equal(first.backbone.layer1[0].weight, model.backbone.layer1[0].weight)


def test_loss_rise_is_filter_normalised_and_puts_weights_back():
    layer = nn.Linear(4, 3, bias=False)
    before = layer.weight.detach().clone()
    rises = loss_rise(
        layer, lambda: (layer.weight - before).square().sum(), radius=0.5, directions=3
    )
    torch.testing.assert_close(rises, (0.25 * before.square().sum()).expand(3))
    assert torch.equal(layer.weight, before)

    def broken():
        if not torch.equal(layer.weight, before):
            raise RuntimeError("away")
        return torch.zeros(())

    with pytest.raises(RuntimeError, match="away"):
        loss_rise(layer, broken)
    assert torch.equal(layer.weight, before)
    with pytest.raises(ValueError, match="weight matrix or filters"):
        loss_rise(nn.ReLU(), lambda: torch.zeros(()))


def test_agreement_is_a_mean_cosine(no_annotation_checks):
    a = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    assert gradient_agreement(a, a) == pytest.approx(1)
    assert gradient_agreement(a, -a) == pytest.approx(-1)
    with pytest.raises(ValueError, match="second must have the shape"):
        gradient_agreement(a, a[:1])


def test_whitened_pictures_are_not_jittered():
    x = torch.tensor([-2.0, 2.0]).expand(1, 3, 1, 2)
    with pytest.raises(ValueError, match="from 0 to 1, got -2 to 2: jitter first and whiten"):
        jitter(x, strength=0)
    with pytest.raises(ValueError, match="from 0 to 1, got nan"):
        jitter(x * torch.nan)


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        ({}, True, "validate_every must be from 1 to the 2 episodes .* got 0"),
        ({"validate_every": 3}, True, "validate_every must be from 1 to the 2 episodes"),
        ({"validate_every": 1}, False, "validation must be given with validate_every 1"),
    ],
)
def test_half_a_validation_is_refused(settings, given, message):
    with pytest.raises(UsageError, match=message):
        train_episodes(
            _model(), _world(), attack=None, validation=_world() if given else None,
            training=EpisodicTraining(shot=1, query=2, episodes=2, **settings),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"lr": 0.0}, "lr must be at least"),
    ],
)
def test_settings_of_the_warm_start_have_ranges(settings, message):
    with pytest.raises(ValueError, match=message):
        train_supervised(_model(), _world(), **{"steps": 1, **settings})


def test_controls_of_the_claims_lack_what_the_claims_are_about():
    arms = claim.arms_of_training()
    model, x = _model(), _world().images[:40]
    y, crops = torch.from_numpy(LABELS[:40]), random_crops(_world().images[:40], 2)

    def steps(name):
        attack = arms[name].attack
        attack.stages = ("layer1",)
        return attack.steps(model.backbone, model.classifier, x, crops, y, seed=3)[0]

    ours, downhill, strangers = steps("svasp"), steps("descent"), steps("strangers")
    for kind in range(2):  # the same sizes the other way, and the same crops elsewhere
        torch.testing.assert_close(downhill.gradient[kind], -ours.gradient[kind])
        rolled = ours.raw[kind][:-1].roll(8, dims=1)
        torch.testing.assert_close(strangers.raw[kind], torch.cat([rolled, ours.raw[kind][-1:]]))
    assert arms["unmoved"].p_apply == 0
    swapped = forward_with_styles(model.backbone.eval(), x, [ours.style], p_apply=0.0)
    assert torch.equal(swapped, model.backbone(x))


def test_what_is_added_to_both_draws_alike_is_not_taken_for_steadiness():
    raws = [_random(i, 3, 9, 40) for i in range(6)]
    raws[1][:-1] = raws[0][:-1]  # the very same crops in both draws
    first, second = measures.mixed(raws, "others")
    single = measures.mixed(raws, "single")
    added = [mixed - alone for mixed, alone in zip((first, second), single)]
    assert gradient_agreement(*added) < 0.5
