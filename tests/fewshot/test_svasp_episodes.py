"""Episodes, evaluation, training and folders: shared, seeded, and refused where they cannot be."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.naive import svasp as naive
from trialrun.core.errors import UsageError
from trialrun.fewshot.svasp import (
    Conv4,
    CosineHead,
    EpisodeSampler,
    EpisodicTraining,
    Features,
    FewShotModel,
    InductiveGNNHead,
    LossWeights,
    Pictures,
    ProtoNetHead,
    StyleAttack,
    SVasPLoss,
    TransductiveGNNHead,
    bscd_fsl,
    episode_accuracies,
    evaluate_episodes,
    extract_features,
    fine_tune,
    fwt_list,
    gradient_agreement,
    jitter,
    loss_rise,
    mini_imagenet,
    picture_folder,
    pseudo_queries,
    random_crops,
    train_episodes,
    train_supervised,
)

LABELS = np.repeat(np.arange(8), 20)


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


def _draw(folder, names, start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        pixels = np.full((12, 9, 3), (40 * (i + start)) % 256, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)


def test_corrupt_pictures_are_skipped_counted_and_named(tmp_path):
    for place, name in enumerate(("cat", "dog")):
        _draw(tmp_path / name, [f"{i}.png" for i in range(4)], place)
    (tmp_path / "cat" / "torn.png").write_bytes((tmp_path / "cat" / "0.png").read_bytes()[:40])
    (tmp_path / "dog" / "text.jpg").write_text("no picture")
    (tmp_path / "dog" / "notes.txt").write_text("not read at all")
    found = picture_folder(tmp_path, size=8)
    assert found.report() == (
        "8 pictures of 2 classes; 2 skipped that cannot be decoded (torn.png, text.jpg)"
    )
    x = found.take(np.array([7, 0]))
    assert x.shape == (2, 3, 8, 8)
    assert float(x[0, 0, 0, 0]) == pytest.approx(160 / 255, abs=1e-3)
    unchecked = picture_folder(tmp_path, size=8, check=False)
    with pytest.raises(UsageError, match=r"torn\.png cannot be decoded"):
        unchecked.take(np.arange(len(unchecked)))
    score = evaluate_episodes(nn.Flatten(), found, way=2, shot=1, query=2, episodes=3)
    assert 0 <= score.acc <= 100


def test_folders_that_cannot_serve_are_refused_in_one_sentence(tmp_path):
    _draw(tmp_path / "only", ["a.png", "b.png"])
    with pytest.raises(UsageError, match=r"at least two classes are needed, got 1 \(only\)"):
        picture_folder(tmp_path)
    _draw(tmp_path / "more", ["a.png"])
    found = picture_folder(tmp_path)
    with pytest.raises(ValueError, match="at least 5 classes for episodes of 5, got 2"):
        EpisodeSampler(found.labels)
    with pytest.raises(ValueError, match="but class more has 1"):
        EpisodeSampler(found.labels, way=2, shot=1, query=1, names=found.class_names)
    _draw(tmp_path / "third", ["a.png", "b.png"])
    assert list(picture_folder(tmp_path).with_at_least(2).class_names) == ["only", "third"]


def test_mini_imagenet_is_read_in_both_layouts(tmp_path):
    for name in ("n01", "n02"):
        _draw(tmp_path / "a" / "train" / name, ["1.jpg", "2.jpg"])
    assert len(mini_imagenet(tmp_path / "a", size=8)) == 4
    _draw(tmp_path / "b" / "images", ["x1.jpg", "x2.jpg", "y1.jpg"])
    (tmp_path / "b" / "val.csv").write_text("filename,label\nx1.jpg,n1\nx2.jpg,n1\ny1.jpg,n2\n")
    found = mini_imagenet(tmp_path / "b", "val", size=8)
    assert found.labels.tolist() == [0, 0, 1]
    with pytest.raises(UsageError, match=r"test\.csv is missing"):
        mini_imagenet(tmp_path / "b", "test")
    (tmp_path / "b" / "test.csv").write_text("file\n")
    with pytest.raises(UsageError, match="must have the column filename, label"):
        mini_imagenet(tmp_path / "b", "test")


def test_the_four_bscd_sets_are_read_by_their_layout(tmp_path):
    for name in ("Forest", "River"):
        _draw(tmp_path / "eurosat" / "2750" / name, ["1.jpg"])
        _draw(tmp_path / "plants" / "dataset" / "train" / name, ["1.jpg", "2.jpg"])
    assert len(bscd_fsl(tmp_path / "eurosat", "eurosat", size=8)) == 2
    assert len(bscd_fsl(tmp_path / "plants", "cropdisease", size=8)) == 4
    _draw(tmp_path / "isic" / "input", ["I1.jpg", "I2.jpg"])
    table = "image,MEL,NV\nI1,1.0,0.0\nI2,0.0,1.0\n"
    (tmp_path / "isic" / "ISIC2018_Task3_Training_GroundTruth.csv").write_text(table)
    assert list(bscd_fsl(tmp_path / "isic", "isic", size=8).class_names) == ["MEL", "NV"]
    _draw(tmp_path / "chest" / "images", ["1.png", "2.png", "3.png", "4.png"])
    rows = ["1.png,Mass", "2.png,Nodule", "3.png,Mass|Nodule", "4.png,No Finding"]
    text = "\n".join(["Image Index,Finding Labels", *rows])
    (tmp_path / "chest" / "Data_Entry_2017.csv").write_text(text)
    found = bscd_fsl(tmp_path / "chest", "chestx", size=8)
    assert (len(found), list(found.class_names)) == (2, ["Mass", "Nodule"])
    (tmp_path / "chest" / "images" / "1.png").unlink()
    with pytest.raises(UsageError, match="1 could not be decoded"):
        bscd_fsl(tmp_path / "chest", "chestx", size=8)


def test_a_list_made_on_another_machine_is_found_under_a_new_root(tmp_path):
    for name in ("wren", "crow"):
        _draw(tmp_path / "images" / name, ["1.jpg"])
    table = {
        "label_names": ["wren", "crow", "unused"],
        "image_names": ["/home/them/CUB/images/wren/1.jpg", "/home/them/CUB/images/crow/1.jpg"],
        "image_labels": [0, 1],
    }
    file = tmp_path / "novel.json"
    file.write_text(json.dumps(table))
    found = fwt_list(file, root=tmp_path, size=8)
    assert list(found.class_names) == ["crow", "wren"]
    assert found.labels.tolist() == [1, 0]
    with pytest.raises(UsageError, match="2 could not be decoded"):
        fwt_list(file, size=8)
    file.write_text(json.dumps({**table, "image_labels": [0]}))
    with pytest.raises(UsageError, match="one label per picture, got 2 pictures and 1 labels"):
        fwt_list(file)
