"""Episodes, features, crops and jitter of SVasP."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.naive import svasp as naive
from trialrun.core.errors import UsageError
from trialrun.fewshot.svasp import (
    Conv4,
    CosineHead,
    EpisodeSampler,
    Features,
    FewShotModel,
    InductiveGNNHead,
    Pictures,
    ProtoNetHead,
    StyleAttack,
    episode_accuracies,
    evaluate_episodes,
    extract_features,
    jitter,
    pseudo_queries,
    random_crops,
    train_episodes,
    train_supervised,
)

LABELS = np.repeat(np.arange(8), 20)


def _world():
    random = np.random.default_rng(0)
    prototypes = random.random((8, 3, 32, 32)) > 0.5
    images = prototypes[LABELS] * 0.6 + 0.4 * random.random((160, 3, 32, 32))
    return Pictures(torch.from_numpy(images).float(), LABELS)


def _model():
    return FewShotModel(Conv4(widths=(8, 8, 8, 8)), classes=8)


def _random(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("way", "shot", "query"), [(2, 1, 1), (5, 7, 13), (8, 1, 15)])
def test_an_episode_holds_distinct_pictures_of_its_classes(way, shot, query):
    found = EpisodeSampler(LABELS, way=way, shot=shot, query=query)(70)
    rows = np.concatenate([found.support, found.query], axis=2)
    assert (LABELS[rows] == found.classes[..., None]).all()
    assert all(len(set(row)) == shot + query for row in rows.reshape(-1, shot + query).tolist())
    assert all(len(set(row)) == way for row in found.classes.tolist())


def test_the_same_seed_gives_the_same_episodes_however_many_are_asked_for():
    draw = EpisodeSampler(LABELS, seed=3)
    np.random.seed(1)
    many = draw(130)
    torch.manual_seed(5)
    few = EpisodeSampler(LABELS, seed=3)(10)
    assert all((a == b[:10]).all() for a, b in zip(few, many))
    assert any((a != b).any() for a, b in zip(EpisodeSampler(LABELS, seed=4)(10), few))


def test_every_picture_and_class_is_drawn_about_equally_often():
    labels = np.repeat(np.arange(6), [5, 6, 7, 8, 30, 31])
    found = EpisodeSampler(labels, way=3, shot=1, query=3)(3000)
    by_class = np.bincount(found.classes.ravel(), minlength=6) / 9000
    assert np.abs(by_class - 1 / 6).max() < 0.02
    rows = np.concatenate([found.support, found.query], axis=2).ravel()
    shots = np.bincount(rows, minlength=len(labels))
    for label in range(6):
        share = shots[labels == label] / shots[labels == label].sum()
        assert np.abs(share * len(share) - 1).max() < 0.3


@pytest.mark.parametrize("count", [1, 7, 63])
def test_accuracies_match_the_slow_twin(count):
    features = Features(_random(0, 160, 6).double(), LABELS)
    found = EpisodeSampler(LABELS, way=3, shot=2, query=4)(count)
    slow = naive.naive_accuracies(features.features, found.support, found.query)
    assert episode_accuracies(ProtoNetHead(), features, found).tolist() == pytest.approx(slow)
    if count > 1:
        score = evaluate_episodes(None, features, 3, 2, 4, count)
        assert tuple(score) == pytest.approx(naive.naive_interval(slow))


def test_an_evaluation_in_many_small_steps_scores_as_one_in_a_single_step(monkeypatch):
    labels = np.repeat(np.arange(7), 9)
    features = Features(torch.randn(63, 5, generator=torch.Generator().manual_seed(0)), labels)
    draw = EpisodeSampler(labels, way=3, shot=2, query=4)(23)
    whole = episode_accuracies(ProtoNetHead(), features, draw)
    monkeypatch.setattr("trialrun.fewshot.episodes._NUMBERS", 400)  # ten episodes, then the rest
    monkeypatch.setattr("trialrun.fewshot.episodes._GATHERED", 130)  # two, and one left over
    assert torch.equal(episode_accuracies(ProtoNetHead(), features, draw), whole)
    slow = naive.naive_accuracies(features.features, draw.support, draw.query)
    assert whole.tolist() == pytest.approx(slow)


def test_a_model_a_backbone_and_cached_features_agree():
    pictures = Pictures((_random(1, 160, 3, 32, 32).sigmoid() * 255).byte(), LABELS)
    model = FewShotModel(Conv4(widths=(4, 4, 4, 6)), classes=8)
    model.backbone.layer1.eval()
    modes = [m.training for m in model.modules()]
    score = evaluate_episodes(model, pictures, query=5, episodes=20)
    features = extract_features(model.backbone, pictures, batch_size=37)
    assert evaluate_episodes(model.backbone, pictures, query=5, episodes=20) == score
    assert evaluate_episodes(None, features, query=5, episodes=20) == score
    assert [m.training for m in model.modules()] == modes
    graph = InductiveGNNHead(6)
    assert 0 <= evaluate_episodes(graph, features, query=5, episodes=3).acc <= 100


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        (LABELS, {"query": 20}, "every class must have 21 pictures .* class 0 has 20"),
        (LABELS, {"query": 20, "names": "abcdefgh"}, "class a has 20: lower query"),
        (np.zeros(50, int), {}, "at least 5 classes for episodes of 5, got 1"),
        (np.arange(8), {"way": 5, "shot": 2}, "5 x 2 need at least 10 pictures, got 8"),
        (LABELS, {"way": 1}, "way must be at least 2 classes"),
        (LABELS, {"shot": 0}, "shot must be at least 1"),
        (LABELS.astype(float), {}, "labels must be integers"),
    ],
)
def test_impossible_episodes_are_refused_in_one_sentence(
    labels, settings, message, no_annotation_checks
):
    with pytest.raises(ValueError, match=message):
        EpisodeSampler(labels, **settings)


def test_features_and_labels_must_go_together(no_annotation_checks):
    with pytest.raises(ValueError, match="one per picture, 3, got 160"):
        Features(torch.zeros(3, 2), LABELS)
    with pytest.raises(ValueError, match="episodes must be drawn from these 9 rows, got row"):
        episode_accuracies(
            ProtoNetHead(), Features(torch.zeros(9, 2), LABELS[:9]), EpisodeSampler(LABELS)(3)
        )
    with pytest.raises(ValueError, match="backbone must give one vector per picture"):
        extract_features(nn.Identity(), Pictures(torch.zeros(160, 3, 2, 2), LABELS))


def test_crops_show_the_stated_share_of_the_picture():
    rows = torch.linspace(0, 1, 64).view(1, 1, 64, 1).expand(50, 1, 64, 64)
    both = torch.cat([rows, rows.mT], dim=1)
    crops = random_crops(both, 4, area=(0.2, 0.4), seed=1)
    span = crops.amax((3, 4)) - crops.amin((3, 4))  # share of each side
    area = span.prod(dim=2)
    assert float(area.min()) > 0.15
    assert float(area.max()) < 0.42
    assert float(area.std()) > 0.03
    whole = random_crops(both, 1, area=(1, 1), seed=0)
    assert (whole[0].mean() - both.mean()).abs() < 0.05
    with pytest.raises(ValueError, match="area must be two shares"):
        random_crops(both, 1, area=(0.5, 0.2))
    with pytest.raises(ValueError, match="at least one picture"):
        random_crops(both[:0])


def test_jitter_and_pseudo_queries_stay_in_range_and_vary():
    x = _random(2, 4, 3, 16, 16).sigmoid()
    moved = jitter(x, seed=1)
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1
    assert not torch.equal(moved, jitter(x, seed=2))
    torch.testing.assert_close(jitter(x, strength=0, flip=False), x)
    made = pseudo_queries(x[:, None], 6, seed=0)
    assert made.shape == (4, 6, 3, 16, 16)
    assert len({float(picture.sum()) for picture in made[0]}) == 6
    assert pseudo_queries(x[:, None, :, :12], 2).shape == (4, 2, 3, 12, 16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_crops_of_any_precision_are_those_of_single(dtype):
    for side in (9, 224):
        x = _random(3, 1, 3, side, side).sigmoid().to(dtype)
        found = random_crops(x, 1)
        assert found.dtype == dtype
        right = random_crops(x.float(), 1)
        torch.testing.assert_close(found.float(), right, atol=4e-3, rtol=4e-3)


@pytest.mark.parametrize(
    "labels", [LABELS.astype(np.int32), torch.from_numpy(LABELS), LABELS.tolist()]
)
def test_labels_of_any_kind_are_kept_as_integers(labels, no_annotation_checks):
    pictures = Pictures(_world().images, labels)
    assert pictures.labels.dtype == np.int64
    assert len(train_supervised(_model(), pictures, steps=1, batch_size=4)) == 1
    with pytest.raises(ValueError, match="labels must be integers of shape"):
        Pictures(_world().images, [[0], [1, 2]])


def test_features_that_cannot_be_scored_are_refused(no_annotation_checks):
    features = Features(_random(0, 160, 6), LABELS)
    with pytest.raises(UsageError, match=r"head of \(support, query\), or None, .* got Conv4"):
        evaluate_episodes(Conv4(), features)
    with pytest.raises(UsageError, match=r"must be floating-point numbers, got torch\.int64"):
        Features(torch.ones(160, 6, dtype=torch.int64), LABELS)
    features.features[3, 1] = torch.nan
    with pytest.raises(UsageError, match=r"NaN or infinity in 1 of 160 rows, .* row 3"):
        evaluate_episodes(None, features, query=5, episodes=2)
    with pytest.raises(UsageError, match="width must be 64, that of Conv4's features, got 7"):
        FewShotModel(Conv4(), classes=8, width=7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_shift_of_all_features_changes_no_accuracy(dtype):
    base = _random(0, 8, 64).repeat_interleave(20, 0) + 2 * _random(1, 160, 64)
    shifted = (base + 30).to(dtype)
    draw = EpisodeSampler(LABELS, query=5)(40)
    right = episode_accuracies(ProtoNetHead(), Features(shifted.double() - 30, LABELS), draw)
    assert torch.equal(episode_accuracies(ProtoNetHead(), Features(shifted, LABELS), draw), right)


def _awkward(kind):
    """Features of eight classes that are easy to tell apart, made hard to do sums with."""
    base = _random(0, 8, 16).repeat_interleave(20, 0) + 0.7 * _random(1, 160, 16)
    halves = torch.where(torch.from_numpy(LABELS < 4), 1.0, -1.0)[:, None]
    outlier = torch.zeros(160, 1)
    outlier[0] = 1
    return {
        "one picture of 1e6": base + 1e6 * outlier,
        "one picture of 3e19": base + 3e19 * outlier,
        "two groups far apart": base + 1e4 * halves,
        "sums beyond single precision": base + 3e38 * torch.from_numpy(LABELS == 7)[:, None],
        "far too large": 1e20 * base,
        "far too small": 1e-25 * base,
        "large times small": torch.cat([1e15 * base[:80], 1e-24 * base[80:]]),
        "double, far too large": 1e200 * base.double(),
        "double, far too small": 1e-200 * base.double(),
        "all alike": base[:1].expand(160, 16),
        "full of ties": base.sign(),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["one picture of 1e6", "one picture of 3e19", "two groups far apart", "far too large",
     "sums beyond single precision", "far too small", "large times small", "double, far too large",
     "double, far too small", "all alike", "full of ties"],
)  # fmt: skip
@pytest.mark.parametrize("shot", [1, 4])
def test_accuracies_are_right_whatever_the_sizes_of_features(kind, shot):
    table = _awkward(kind)
    draw = EpisodeSampler(LABELS, way=5, shot=shot, query=5)(40)
    found = episode_accuracies(ProtoNetHead(), Features(table, LABELS), draw)
    exact = table.double().numpy().astype(np.longdouble)  # whose squares are held for all of these
    means = exact[draw.support].mean(axis=2)
    apart = ((exact[draw.query][:, :, :, None] - means[:, None, None]) ** 2).sum(axis=-1)
    right = 100 * (apart.argmin(axis=-1) == np.arange(5)[:, None]).mean(axis=(1, 2))
    kept = ~(draw.query == 0).any(axis=(1, 2))  # row 0 as a query may be equally far from all
    assert kept.sum() > 20
    np.testing.assert_allclose(found.numpy()[kept], right[kept])


def test_a_head_without_weights_derived_from_prototypes_scores_as_they_do():
    class Mine(ProtoNetHead):
        pass

    draw = EpisodeSampler(LABELS, query=5)(40)
    for kind in ("two groups far apart", "far too large", "far too small"):
        features = Features(_awkward(kind), LABELS)
        assert torch.equal(
            episode_accuracies(Mine(), features, draw),
            episode_accuracies(ProtoNetHead(), features, draw),
        )


def test_what_a_head_cannot_score_is_refused_and_never_counted_as_a_place():
    draw = EpisodeSampler(LABELS, query=5)(3)
    for kind in ("far too large", "far too small"):
        with pytest.raises(UsageError, match=r"largest size of 1e-09 to 1e\+18 for CosineHead"):
            episode_accuracies(CosineHead(), Features(_awkward(kind), LABELS), draw)
    broken = CosineHead()
    broken.temperature.data.fill_(torch.nan)
    with pytest.raises(UsageError, match=r"logits of CosineHead must be finite, got NaN"):
        episode_accuracies(broken, Features(_random(0, 160, 6), LABELS), draw)
    far = torch.zeros(160, 2, dtype=torch.float64)
    far[::2], far[1::2] = 1.5e308, -1.5e308
    with pytest.raises(UsageError, match=r"differences can be held in double .* 1\.5e\+308"):
        episode_accuracies(ProtoNetHead(), Features(far, LABELS), draw)


def test_bytes_arrays_and_other_data_sets_are_refused_in_a_sentence(no_annotation_checks):
    model, x = _model(), torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    for use in (
        lambda: random_crops(x, 2),
        lambda: StyleAttack(stages=("layer1",), crop_decay=0)(
            model.backbone, model.classifier, x, None, torch.zeros(4, dtype=torch.long)
        ),
    ):
        with pytest.raises(UsageError, match=r"x must hold floating-point .* got torch.uint8"):
            use()
    with pytest.raises(UsageError, match=r"images must be a tensor, got ndarray: give torch.from"):
        Pictures(np.zeros((4, 3, 8, 8)), np.arange(4))
    other = torch.utils.data.TensorDataset(x, torch.arange(4))
    for use in (
        lambda: evaluate_episodes(model, other),
        lambda: extract_features(model.backbone, other),
        lambda: train_episodes(model, other, attack=None),
    ):
        with pytest.raises(UsageError, match=r"must hold pictures .* got TensorDataset: make Pict"):
            use()
