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
from trialrun.dossiers.svasp import claim, measures
from trialrun.fewshot._svasp_picture_folder import read_picture
from trialrun.fewshot.svasp import (
    Conv4,
    CosineHead,
    EpisodeSampler,
    EpisodicTraining,
    Features,
    FewShotModel,
    InductiveGNNHead,
    LossWeights,
    PictureFolder,
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
    forward_with_styles,
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
    with pytest.raises(UsageError, match=r"1 missing, .*1\.png for one"):
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
    with pytest.raises(UsageError, match="2 missing"):
        fwt_list(file, size=8)
    file.write_text(json.dumps({**table, "image_labels": [0]}))
    with pytest.raises(UsageError, match="one label per picture, got 2 pictures and 1 labels"):
        fwt_list(file)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_crops_of_any_precision_are_those_of_single(dtype):
    for side in (9, 224):
        x = _random(3, 1, 3, side, side).sigmoid().to(dtype)
        found = random_crops(x, 1)
        assert found.dtype == dtype
        right = random_crops(x.float(), 1)
        torch.testing.assert_close(found.float(), right, atol=4e-3, rtol=4e-3)


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
    "labels", [LABELS.astype(np.int32), torch.from_numpy(LABELS), LABELS.tolist()]
)
def test_labels_of_any_kind_are_kept_as_integers(labels, no_annotation_checks):
    pictures = Pictures(_world().images, labels)
    assert pictures.labels.dtype == np.int64
    assert len(train_supervised(_model(), pictures, steps=1, batch_size=4)) == 1
    with pytest.raises(ValueError, match="labels must be integers of shape"):
        Pictures(_world().images, [[0], [1, 2]])


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


def test_deep_and_see_through_pictures_keep_what_is_seen(tmp_path):
    levels = np.linspace(0, 65535, 16 * 16).astype(np.uint16).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    found = read_picture(tmp_path / "deep.png", 16)
    assert np.abs(found[..., 0] - levels / 257).max() <= 1
    drawn = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    drawn.paste((0, 0, 0, 255), (4, 4, 12, 12))
    drawn.save(tmp_path / "clear.png")
    seen = read_picture(tmp_path / "clear.png", 16)
    assert (seen[0] == 255).all()
    assert (seen[8, 8] == 0).all()
    with pytest.raises(UsageError, match=r"none\.png is missing"):
        read_picture(tmp_path / "none.png", 8)


def test_classes_of_one_name_stay_apart_and_bad_tables_are_named(tmp_path):
    for name in ("a", "b"):
        _draw(tmp_path / name, ["0.png"])
    (tmp_path / "l.json").write_text(json.dumps({
        "image_names": ["a/0.png", "b/0.png"], "image_labels": [0, 1], "label_names": ["x", "x"],
    }))  # fmt: skip
    found = fwt_list(tmp_path / "l.json", root=tmp_path, size=8)
    assert (found.labels.tolist(), list(found.class_names)) == ([0, 1], ["x", "x"])
    table = tmp_path / "ISIC2018_Task3_Training_GroundTruth.csv"
    table.write_text("image,MEL,NV\nz,yes,0\n")
    with pytest.raises(UsageError, match="numbers for every class, but the row of z does not"):
        bscd_fsl(tmp_path, "isic")
    with pytest.raises(UsageError, match="labels must be one per path, 2, got 3"):
        PictureFolder(found.paths, np.array([0, 1, 1]), ["a", "b"])
    with pytest.raises(UsageError, match="places in class_names, 0 to 1, got 0 to 2"):
        PictureFolder(found.paths, np.array([0, 2]), ["a", "b"])
    with pytest.raises(ValueError, match="class x has 1"):
        evaluate_episodes(nn.Flatten(), found, way=2, query=1)


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


def test_pictures_go_into_a_loader_and_folders_print_in_a_line(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(9):
            Image.new("RGB", (8, 8), (10 * i, 0, 0)).save(tmp_path / name / f"{i}.png")
    found = picture_folder(tmp_path, size=8)
    for source in (found, Pictures(found.take(np.arange(18)), found.labels)):
        x, y = next(iter(torch.utils.data.DataLoader(source, batch_size=18)))
        assert torch.equal(x, found.take(np.arange(18)))
        assert y.tolist() == found.labels.tolist()
        assert torch.equal(source[-1][0], x[-1])
        with pytest.raises(IndexError):
            source[18]
    assert repr(found) == "PictureFolder(18 pictures of 2 classes, 8 px)"
    assert repr(StyleAttack(stages=("layer1",))).startswith("StyleAttack(stages=('layer1',), eps=")


def test_a_list_is_not_read_from_the_folder_of_one_of_its_classes(tmp_path):
    for name in ("c0", "c1"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{i}.png")
    names = [f"/far/{name}/{i}.png" for name in ("c0", "c1") for i in range(2)]
    file = tmp_path / "l.json"
    file.write_text(json.dumps({"image_names": names, "image_labels": [0, 0, 1, 1]}))
    assert len(fwt_list(file, root=tmp_path, size=8)) == 4
    with pytest.raises(UsageError, match=r"c0 is the folder of some of them: give .*"):
        fwt_list(file, root=tmp_path / "c0", size=8)
