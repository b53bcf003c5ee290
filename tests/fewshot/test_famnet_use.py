"""Supervoxels, episodes, training, volumes, folders and pictures."""

import re

import nibabel
import numpy as np
import pytest
import torch

from tests.naive.famnet import naive_felzenszwalb
from trialrun.core.errors import UsageError
from trialrun.fewshot._famnet_volumes import support_slices
from trialrun.fewshot.famnet import (
    LAYOUTS,
    SCHEDULES,
    Augmentation,
    EpisodeSampler,
    FAMNet,
    Layout,
    PrototypeSegmenter,
    Schedule,
    SmallEncoder,
    dice_score,
    encode_volume,
    evaluate_volume,
    foreground_tokens,
    overlay,
    prepare_volume,
    read_folder,
    supervoxels,
    train_episodes,
    write_nifti,
    write_png,
)


def made_volume(seed=0, shape=(5, 24, 24)):
    random = np.random.default_rng(seed)
    volume = random.normal(scale=0.1, size=shape)
    volume[1:, 6:16, 8:18] += 2.0
    return volume.astype(np.float32), (volume > 1).astype(np.uint8)


# Supervoxels


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 7), (3, 4, 5)])
@pytest.mark.parametrize(("scale", "min_size"), [(0.5, 1), (2.0, 1), (0.5, 6)])
def test_supervoxels_match_the_slow_twin(shape, scale, min_size):
    volume = np.random.default_rng(1).normal(size=shape)
    fast = supervoxels(volume, scale=scale, min_size=min_size, mask=np.ones(shape, bool))
    slow = naive_felzenszwalb(volume, scale, min_size)
    places = list(np.ndindex(*shape))
    for p in places:
        together = {q for q in places if fast[q] == fast[p]}
        assert together == slow[p]


def test_supervoxels_keep_to_the_mask_and_are_numbered_by_size():
    volume, mask = made_volume()
    cut = supervoxels(volume, scale=1.0, min_size=20, mask=mask > 0)
    assert (cut[mask == 0] == 0).all()
    sizes = np.bincount(cut.ravel())[1:]
    assert (np.diff(sizes) <= 0).all()
    assert not supervoxels(volume, mask=np.zeros(volume.shape, bool)).any()


@pytest.mark.usefixtures("no_annotation_checks")
def test_supervoxels_refuse_what_they_cannot_cut():
    volume, _ = made_volume()
    with pytest.raises(ValueError, match="volume must have shape"):
        supervoxels(volume[0])
    with pytest.raises(ValueError, match="must be finite"):
        supervoxels(np.full((2, 2, 2), np.nan))
    with pytest.raises(ValueError, match="mask must have the volume's shape"):
        supervoxels(volume, mask=np.ones((2, 2, 2)))
    with pytest.raises(ValueError, match="scale must be above 0"):
        supervoxels(volume, scale=0)


# Episodes and training


def test_an_episode_is_two_neighbouring_slices_of_one_region():
    volume, region = made_volume()
    sampler = EpisodeSampler([volume], [region], min_pixels=90)
    seen = set()
    for step in range(20):
        episode = sampler.batch(step)
        support, query = (
            next(z for z in range(5) if np.array_equal(volume[z], image[0, 0].numpy()))
            for image in (episode.support_image, episode.query_image)
        )
        assert abs(support - query) == 1
        np.testing.assert_array_equal(episode.support_mask[0].numpy(), region[support] == 1)
        seen.add(query - support)
    assert seen == {1, -1}


def test_augmentation_bends_one_slice_and_leaves_the_sampler_repeatable():
    volume, region = made_volume()
    made = EpisodeSampler([volume], [region], min_pixels=90, augmentation=Augmentation(shift=2.0))
    first, again = made.batch(3, 4), made.batch(3, 4)
    for a, b in zip(first, again):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    masks = {region[z].astype(np.float32).tobytes() for z in range(5)}
    for support, query in zip(first.support_mask, first.query_mask):
        kept = [m.numpy().tobytes() in masks for m in (support, query)]
        assert sum(kept) == 1
        assert bool(support.any() and query.any())


def test_what_comes_in_from_outside_a_bent_slice_is_as_dark_as_the_darkest():
    volume, region = made_volume()
    pushed = Augmentation(
        gamma=(1.0, 1.0), degrees=0.0, shear=0.0, shift=9.0, scale=(0.8, 0.9), alpha=0.0
    )
    made = EpisodeSampler([volume - 5], [region], min_pixels=90, augmentation=pushed).batch(1, 8)
    for images in (made.support_image, made.query_image):
        assert float(images.max()) < -2


def test_one_random_curve_changes_both_slices_alike():
    random = np.random.default_rng(0)
    image = np.linspace(-1, 1, 50).reshape(5, 10)
    a, b = Augmentation(curve=True).recurve([image, image], random)
    np.testing.assert_array_equal(a, b)
    assert np.corrcoef(a.ravel(), image.ravel())[0, 1] < 0.99


@pytest.mark.usefixtures("no_annotation_checks")
def test_samplers_refuse_regions_that_do_not_go_with_their_volumes():
    volume, region = made_volume()
    with pytest.raises(ValueError, match="regions must hold one array per volume"):
        EpisodeSampler([volume], [])
    with pytest.raises(ValueError, match="volume 0 and its regions must have the same shape"):
        EpisodeSampler([volume], [region[1:]])
    for wrong in (region.astype(float), -region.astype(int)):
        with pytest.raises(ValueError, match="regions must hold whole numbers"):
            EpisodeSampler([volume], [wrong])
    with pytest.raises(ValueError, match="volume 0 must be finite"):
        EpisodeSampler([volume * np.nan], [region])
    assert EpisodeSampler([volume], [region == 1], min_pixels=90).batch(0)
    with pytest.raises(ValueError, match="no region covers 101 pixels"):
        EpisodeSampler([volume], [region], min_pixels=101)


def test_both_published_schedules_are_there():
    scripts, paper = SCHEDULES["code_scripts"], SCHEDULES["paper"]
    assert (scripts.decay, scripts.every, scripts.keep, scripts.steps) == (0.98, 3000, 39000, 40001)
    assert (paper.decay, paper.every, paper.optimiser) == (0.95, 1000, "sgd")
    with pytest.raises(ValueError, match="keep must be between"):
        Schedule(steps=5, keep=6)


def test_training_learns_keeps_the_step_asked_for_and_repeats():
    volume, region = made_volume()
    sampler = EpisodeSampler([volume], [region], min_pixels=60)

    def trained(steps, keep=None):
        net = FAMNet(SmallEncoder(8, seed=1), channels=8, n_tokens=25, seed=1)
        run = train_episodes(
            net, sampler, Schedule(steps=steps, keep=keep, optimiser="adam", lr=1e-2, batch=2)
        )
        return net, run

    net, run = trained(12)
    assert run.losses[-1] < run.losses[0]
    assert not net.training
    early, kept = trained(12, keep=5)
    assert kept.kept == 5
    for a, b in zip(early.state_dict().values(), trained(5)[0].state_dict().values()):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


# Volumes


class Bright(torch.nn.Module):
    """An encoder that sees brightness alone, at full size."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return torch.cat([x.clamp(min=0), (-x).clamp(min=0) + 1e-3], dim=1) * self.gain


def bright():
    return PrototypeSegmenter(Bright(), channels=2).eval()


def test_a_volume_is_segmented_by_another_and_both_protocols_score():
    volume, label = made_volume()
    scored = (volume - volume.mean()) / volume.std()
    shown = evaluate_volume(bright(), scored, label, scored, label)
    assert shown.dice > 0.98
    assert shown.slices.tolist() == [1, 2, 3, 4]
    assert not shown.prediction[0].any()
    everywhere = evaluate_volume(bright(), scored, label, scored, label, protocol="all-slices")
    assert everywhere.slices.tolist() == [0, 1, 2, 3, 4]
    assert everywhere.dice <= shown.dice
    assert set(everywhere.support_slices) <= set(support_slices(label, 3))


def test_all_slices_do_not_look_at_the_truth_to_choose_a_support_slice():
    volume, label = made_volume()
    other = np.zeros_like(label)
    other[0, 0, 0] = 1
    a, b = (
        evaluate_volume(bright(), volume, label, volume, truth, protocol="all-slices")
        for truth in (label, other)
    )
    np.testing.assert_array_equal(a.prediction, b.prediction)
    np.testing.assert_array_equal(a.support_slices, b.support_slices)


def test_a_volume_without_labels_is_segmented_on_every_slice():
    volume, label = made_volume()
    unlabelled = evaluate_volume(bright(), volume, label, volume)
    scored = evaluate_volume(bright(), volume, label, volume, label, protocol="all-slices")
    np.testing.assert_array_equal(unlabelled.prediction, scored.prediction)
    assert unlabelled.slices.tolist() == [0, 1, 2, 3, 4]
    assert np.isnan(unlabelled.dice)
    empty = evaluate_volume(bright(), volume, label, volume, 0 * label, protocol="all-slices")
    assert empty.dice == 0.0


def test_fewer_query_slices_than_parts_take_the_middle_support_slice():
    volume, label = made_volume()
    few = label.copy()
    few[3:] = 0
    found = evaluate_volume(bright(), volume, label, volume, few)
    assert found.slices.tolist() == [1, 2]
    assert found.support_slices.tolist() == [support_slices(label, 3)[1]] * 2


def test_evaluating_leaves_a_model_in_training_as_it_was():
    encoder = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 4, 4), torch.nn.BatchNorm2d(8))
    net = PrototypeSegmenter(encoder, channels=8)
    volume, label = made_volume()
    for frozen in (True, False):
        encoder[1].train(not frozen)
        modes = [part.training for part in net.modules()]
        before = encoder[1].running_mean.clone()
        evaluate_volume(net, volume, label, volume, label)
        torch.testing.assert_close(encoder[1].running_mean, before, rtol=0, atol=0)
        assert [part.training for part in net.modules()] == modes


def test_support_slices_lie_at_odd_sixths_and_show_the_organ():
    label = np.zeros((30, 2, 2))
    label[6:25] = 1
    assert support_slices(label, 3).tolist() == [9, 15, 21]
    label[15] = 0
    assert label[support_slices(label, 3)].any(axis=(1, 2)).all()
    one = np.zeros((4, 2, 2))
    one[2] = 1
    assert support_slices(one, 3).tolist() == [2, 2, 2]


def test_encoded_volumes_give_what_plain_ones_give():
    net = FAMNet("small", channels=8, n_tokens=9).eval()
    volume, label = made_volume()
    encoded = encode_volume(net, volume)
    a = evaluate_volume(net, encoded, label, encoded, label, batch=2)
    b = evaluate_volume(net, volume, label, volume, label)
    assert a.dice == pytest.approx(b.dice)


def test_dice_says_what_an_empty_truth_or_prediction_counts_as():
    none, some = np.zeros(3), np.array([1, 0, 1])
    assert np.isnan(dice_score(none, none))
    assert dice_score(none, none, empty=1.0) == 1.0
    assert dice_score(none, some) == dice_score(some, none) == 0.0
    assert dice_score(some, some) == 1.0


@pytest.mark.usefixtures("no_annotation_checks")
def test_volumes_and_labels_that_do_not_go_together_get_one_sentence():
    volume, label = made_volume()
    for words, call in (
        ("support_label must have its volume's shape", (volume, label[1:], volume, label)),
        ("query_label must hold 0 and 1", (volume, label, volume, 2 * label)),
        ("query_label must mark the organ", (volume, label, volume, 0 * label)),
        ("volume must have shape", (volume[0], label, volume, label)),
        ("volume must be finite", (volume, label, volume * np.nan, label)),
        ("support_label must have its volume's shape", (volume, label[1:].tolist(), volume, label)),
        ("must have the support's rows", (volume, label, volume[:, 4:], label[:, 4:])),
    ):
        with pytest.raises(ValueError, match=words):
            evaluate_volume(bright(), *call)
    with pytest.raises(ValueError, match="protocol must be one of"):
        evaluate_volume(bright(), volume, label, volume, label, protocol="best")
    with pytest.raises(ValueError, match="prediction must have the truth's shape"):
        dice_score(volume, label[1:])


# Folders


def write(path, values, spacing=(1.0, 1.0, 3.0), affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*spacing, 1.0]) if affine is None else affine
    nibabel.save(nibabel.Nifti1Image(np.asarray(values), affine), path)


def case(seed=0, shape=(12, 10, 4)):
    random = np.random.default_rng(seed)
    return random.normal(100, 30, shape).astype(np.float32), random.integers(0, 3, shape)


@pytest.mark.parametrize(
    ("layout", "image", "label", "values", "organs"),
    [
        ("chaos", "image_1.nii.gz", "label_1.nii.gz", (63, 252), ("liver", "spleen")),
        ("btcv", "img0001.nii.gz", "label0001.nii.gz", (1, 6), ("spleen", "liver")),
        ("ms-cmrseg", "patient1_LGE.nii.gz", "patient1_LGE_manual.nii.gz", (200, 600),
         ("myocardium", "right ventricle")),
        ("nifti", "images/a.nii", "labels/a.nii", (1, 2), ("1", "2")),
    ],
)  # fmt: skip
def test_each_layout_reads_its_files_and_names_its_organs(
    tmp_path, layout, image, label, values, organs
):
    picture, marks = case()
    named = np.array([0, *values])[marks]
    write(tmp_path / image, picture)
    write(tmp_path / label, named.astype(np.int16))
    (volume,) = read_folder(tmp_path, layout, size=16, spacing=1.0).volumes
    assert volume.image.shape == volume.labels.shape == (4, 16, 16)
    assert volume.image.mean() == pytest.approx(0, abs=1e-5)
    assert volume.image.std() == pytest.approx(1, abs=1e-5)
    for value, organ in zip(values, organs):
        assert volume.organ(organ).sum() == (named == value).sum()


def test_files_are_turned_to_one_order_whatever_their_affine(tmp_path):
    picture, marks = case()
    write(tmp_path / "images/a.nii", picture)
    write(tmp_path / "labels/a.nii", marks.astype(np.uint8))
    flipped = np.diag([-1.0, -1.0, 3.0, 1.0])
    flipped[:2, 3] = [11, 9]
    write(tmp_path / "images/b.nii", picture[::-1, ::-1], affine=flipped)
    write(tmp_path / "labels/b.nii", marks[::-1, ::-1].astype(np.uint8), affine=flipped)
    a, b = read_folder(tmp_path).volumes
    np.testing.assert_allclose(a.image, b.image)
    np.testing.assert_array_equal(a.labels, b.labels)
    assert a.spacing == (3.0, 1.0, 1.0)
    # The front of the head is the largest y, and comes first.
    np.testing.assert_array_equal(a.labels[0, 0], marks[:, -1, 0])


def test_an_oblique_stack_of_hearts_keeps_its_slices(tmp_path):
    normal = np.array([0.75, -0.45, 0.48]) / np.linalg.norm([0.75, -0.45, 0.48])
    along = np.cross(normal, [0.0, 0.0, 1.0])
    along /= np.linalg.norm(along)
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([1.25 * along, 1.25 * np.cross(normal, along), 10 * normal])
    picture, marks = case(shape=(12, 10, 4))
    write(tmp_path / "patient1_LGE.nii", picture, affine=affine)
    write(tmp_path / "patient1_LGE_manual.nii", (200 * (marks > 0)).astype(np.int16), affine=affine)
    (volume,) = read_folder(tmp_path, "ms-cmrseg", size=None, spacing=None).volumes
    assert volume.image.shape == (4, 10, 12)
    assert volume.spacing == pytest.approx((10, 1.25, 1.25))
    np.testing.assert_array_equal(volume.organ("myocardium"), (marks > 0).transpose(2, 1, 0))


def test_a_label_that_lies_elsewhere_in_the_world_is_not_paired(tmp_path):
    picture, marks = case()
    for name, affine in (("a", np.diag([-1.0, -1.0, 3.0, 1.0])), ("b", np.diag([1.0, 1.0, 3, 1]))):
        write(tmp_path / f"images/{name}.nii", picture, affine=affine)
        write(tmp_path / f"labels/{name}.nii", marks.astype(np.uint8))
    read = read_folder(tmp_path)
    assert [v.case for v in read.volumes] == ["b"]
    assert "image and label must lie on one grid" in read.skipped["a.nii"]


def test_one_malformed_file_does_not_stop_a_folder(tmp_path):
    picture, marks = case()
    for name in ("good", "code", "zero"):
        write(tmp_path / f"images/{name}.nii", picture)
    colours = np.zeros((12, 10, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    write(tmp_path / "images/colour.nii", colours)
    for name in ("good", "code", "zero", "colour"):
        write(tmp_path / f"labels/{name}.nii", marks.astype(np.uint8))
    code = tmp_path / "images/code.nii"
    raw = bytearray(code.read_bytes())
    raw[70:72] = (777).to_bytes(2, "little")
    code.write_bytes(raw)
    zero = nibabel.Nifti1Image(picture, None)
    zero.header.set_sform(np.zeros((4, 4)), 1)
    nibabel.save(zero, tmp_path / "images/zero.nii")
    read = read_folder(tmp_path)
    assert [v.case for v in read.volumes] == ["good"]
    assert set(read.skipped) == {"code.nii", "colour.nii", "zero.nii"}
    assert all(read.skipped.values())


def test_two_files_of_one_case_are_named(tmp_path):
    picture, marks = case()
    for folder in ("T1DUAL", "T2SPIR"):
        write(tmp_path / folder / "image_1.nii", picture)
        write(tmp_path / folder / "label_1.nii", marks.astype(np.uint8))
    with pytest.raises(UsageError, match=r"T1DUAL.*T2SPIR.* are both case '1'"):
        read_folder(tmp_path, "chaos")
    assert len(read_folder(tmp_path / "T1DUAL", "chaos").volumes) == 1


def test_organ_numbers_mean_the_same_in_all_volumes_and_odd_labels_are_named(tmp_path):
    picture, _ = case()
    labels = {"a": (0, 1, 3), "b": (0, 3), "nan": (0, np.nan), "half": (0, 1.5)}
    for name, values in labels.items():
        marks = np.resize(np.array(values, dtype=np.float32), picture.shape)
        write(tmp_path / f"images/{name}.nii", picture)
        write(tmp_path / f"labels/{name}.nii", marks)
    read = read_folder(tmp_path)
    assert [v.organs for v in read.volumes] == [("1", "3")] * 2
    assert set(np.unique(read.volumes[1].labels)) == {0, 2}
    assert "labels must be finite" in read.skipped["nan.nii"]
    assert "labels must be whole numbers" in read.skipped["half.nii"]
    write(tmp_path / "patient1_LGE.nii", picture)
    write(tmp_path / "patient1_LGE_manual.nii", np.ones(picture.shape, np.uint8))
    with pytest.raises(UsageError, match=r"labels must hold some of the layout's 200, 500, 600"):
        read_folder(tmp_path, "ms-cmrseg")


@pytest.mark.usefixtures("no_annotation_checks")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sise": 3}, "a layout has no setting 'sise': it has image"),
        ({"spacing": 0}, "spacing must be one number above 0"),
        ({"size": -1}, "size must be at least 1"),
        ({"window": (275, -125)}, "window must be"),
        ({"image": "(("}, "image must be a regular expression"),
        ({"label": "label.*"}, "label must have a group"),
        ({"plane": "oblique"}, "plane must be one of"),
        ({"top_percent": 100}, "top_percent must be in"),
        ({"only": "LGE"}, "whose name has 'LGE'"),
    ],
)
def test_wrong_settings_of_a_folder_get_one_sentence(tmp_path, changes, words):
    picture, marks = case()
    write(tmp_path / "image_1.nii", picture)
    write(tmp_path / "label_1.nii", marks.astype(np.uint8))
    with pytest.raises(UsageError, match=words):
        read_folder(tmp_path, "chaos", **changes)


def test_a_layout_checks_itself():
    with pytest.raises(ValueError, match="image must have a group"):
        Layout(image="a", label="(?P<case>b)")


def test_broken_files_are_skipped_counted_and_named(tmp_path):
    picture, marks = case()
    write(tmp_path / "images/good.nii", picture)
    write(tmp_path / "labels/good.nii", marks.astype(np.uint8))
    write(tmp_path / "images/lonely.nii", picture)
    write(tmp_path / "images/small.nii", picture)
    write(tmp_path / "labels/small.nii", marks[:5].astype(np.uint8))
    write(tmp_path / "images/torn.nii.gz", picture)
    write(tmp_path / "labels/torn.nii.gz", marks.astype(np.uint8))
    torn = tmp_path / "images/torn.nii.gz"
    torn.write_bytes(torn.read_bytes()[:200])
    read = read_folder(tmp_path)
    assert [v.case for v in read.volumes] == ["good"]
    assert set(read.skipped) == {"lonely.nii", "small.nii", "torn.nii.gz"}
    assert read.skipped["lonely.nii"] == "it has no label file"
    assert re.search("labels must have the image's shape", read.skipped["small.nii"])
    with pytest.raises(UsageError, match="has no organ 'liver'"):
        read.volumes[0].organ("liver")


def test_folders_that_hold_nothing_say_so(tmp_path):
    with pytest.raises(UsageError, match="must hold images with labels"):
        read_folder(tmp_path, "chaos")
    with pytest.raises(UsageError, match="layout must be one of"):
        read_folder(tmp_path, "dicom")
    with pytest.raises(UsageError, match="is no folder"):
        read_folder(tmp_path / "none")


def test_preparing_clips_by_window_and_keeps_an_area_its_size():
    image = np.full((1, 40, 40), -1000.0)
    image[0, 10:30, 10:30] = 50.0
    image[0, 0, 0] = 3000.0
    labels = (image == 50).astype(np.uint8)
    made, marks, spacing = prepare_volume(image, labels, (5.0, 2.0, 2.0), LAYOUTS["btcv"])
    assert made.shape == (1, 256, 256)
    assert spacing == (5.0, 1.25, 1.25)
    assert marks.sum() * 1.25**2 == pytest.approx(400 * 2.0**2, rel=0.05)
    assert len(np.unique(made.round(3))) > 2
    assert made.max() - made.min() == pytest.approx(
        400 / np.clip(0, 1, 1) / _spread(image), rel=0.1
    )


def _spread(image):
    """Standard deviation of the windowed picture after padding to 256 x 256 at 1.25 mm."""
    clipped = image.clip(-125, 275)
    side = round(40 * 2.0 / 1.25)
    padded = np.full((256, 256), -125.0)
    rows = np.arange(side) * 40 // side
    padded[:side, :side] = clipped[0][np.ix_(rows, rows)]
    return padded.std()


@pytest.mark.usefixtures("no_annotation_checks")
def test_preparing_refuses_what_cannot_be_scored():
    flat = np.ones((2, 8, 8))
    with pytest.raises(ValueError, match="must vary"):
        prepare_volume(flat, flat, (1.0, 1.0, 1.0), LAYOUTS["nifti"])
    with pytest.raises(ValueError, match="must be finite"):
        prepare_volume(flat * np.nan, flat, (1.0, 1.0, 1.0), LAYOUTS["nifti"])


@pytest.mark.parametrize(
    "affine",
    [np.diag([2.0, 2.0, 3.0, 1.0]), np.diag([-2.0, 2.0, 3.0, 1.0]),
     np.array([[0, 0, 3.0, 5], [-2, 0, 0, 1], [0, 2, 0, 0], [0, 0, 0, 1.0]])],
)  # fmt: skip
@pytest.mark.parametrize("changes", [{}, {"size": 31}, {"size": 37, "spacing": 1.0}])
def test_a_mask_goes_back_to_the_scan_it_came_from(tmp_path, affine, changes):
    picture, _ = case(shape=(12, 10, 11))
    marks = np.zeros(picture.shape, np.uint8)
    marks[3:7, 4:8, 2:9] = 1
    marks[8:10, 3:6, 4:6] = 2
    write(tmp_path / "images/a.nii", picture, affine=affine)
    write(tmp_path / "labels/a.nii", marks, affine=affine)
    (volume,) = read_folder(tmp_path, **changes).volumes
    written = nibabel.load(write_nifti(tmp_path / "back.nii.gz", volume.labels, volume))
    np.testing.assert_array_equal(written.affine, affine)
    np.testing.assert_array_equal(np.asarray(written.dataobj), marks)


def test_a_mask_has_the_units_and_the_transforms_of_its_scan(tmp_path):
    picture, marks = case(shape=(12, 10, 4))
    write(tmp_path / "images/a.nii", picture)
    write(tmp_path / "labels/a.nii", marks.astype(np.uint8))
    file = nibabel.Nifti1Image(picture, np.diag([2.0, 2.0, 3.0, 1.0]))
    file.header.set_xyzt_units("mm", "sec")
    file.set_qform(file.affine, 1)
    file.set_sform(file.affine, 4)
    nibabel.save(file, tmp_path / "images/a.nii")
    label = nibabel.Nifti1Image(marks.astype(np.uint8), file.affine)
    nibabel.save(label, tmp_path / "labels/a.nii")
    (volume,) = read_folder(tmp_path).volumes
    header = nibabel.load(write_nifti(tmp_path / "b.nii", volume.labels, volume)).header
    assert header.get_xyzt_units() == ("mm", "sec")
    assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 4)


def test_a_mask_of_a_cut_scan_is_empty_where_it_was_cut(tmp_path):
    picture, marks = case(shape=(12, 10, 4))
    write(tmp_path / "images/a.nii", picture)
    write(tmp_path / "labels/a.nii", marks.astype(np.uint8))
    (volume,) = read_folder(tmp_path, size=6).volumes
    back = np.asarray(nibabel.load(write_nifti(tmp_path / "b.nii", volume.labels, volume)).dataobj)
    np.testing.assert_array_equal(back[3:9, 2:8], marks[3:9, 2:8])
    assert not back[:3].any()
    with pytest.raises(ValueError, match="mask must have shape"):
        write_nifti(tmp_path / "b.nii", volume.labels[1:], volume)


def test_images_without_labels_are_read_alike(tmp_path):
    picture, marks = case()
    write(tmp_path / "images/a.nii", picture)
    with pytest.raises(UsageError, match=r"a\.nii: it has no label file"):
        read_folder(tmp_path)
    (bare,) = read_folder(tmp_path, labels=False, size=16).volumes
    write(tmp_path / "labels/a.nii", marks.astype(np.uint8))
    (labelled,) = read_folder(tmp_path, size=16).volumes
    np.testing.assert_array_equal(bare.image, labelled.image)
    assert not bare.labels.any()
    np.testing.assert_array_equal(labelled.organ(1), labelled.organ("1"))
    with pytest.raises(UsageError, match="has no organ '1': there are none"):
        bare.organ(1)
    with pytest.raises(UsageError, match=r"must hold images, named like image_01\.nii\.gz, got"):
        read_folder(tmp_path / "labels", "chaos", labels=False)


def test_an_encoder_may_return_a_list_of_one_map_and_no_more():
    class Maps(torch.nn.Module):
        def __init__(self, count):
            super().__init__()
            self.count = count
            self.body = torch.nn.Conv2d(1, 8, 4, 4)

        def forward(self, images):
            return [self.body(images)] * self.count

    image, mask = torch.rand(1, 1, 16, 16), torch.ones(1, 16, 16)
    pred, _ = PrototypeSegmenter(Maps(1), channels=8)(image, mask, image)
    assert pred.shape == (1, 2, 16, 16)
    with pytest.raises(TypeError, match=r"must return one feature map, .* got 2 maps: choose one"):
        PrototypeSegmenter(Maps(2), channels=8)(image, mask, image)


# Pictures


def test_an_overlay_tints_the_prediction_and_outlines_the_truth():
    image = np.zeros((8, 8))
    image[0, 0] = 1
    truth = np.zeros((8, 8), int)
    truth[2:6, 2:6] = 1
    plain = overlay(image, zoom=2)
    picture = overlay(image, truth=truth, prediction=truth == 1, zoom=2)
    assert picture.shape == (16, 16, 3)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[0], plain[0])
    assert tuple(picture[4, 4]) == (230, 159, 0)
    assert tuple(picture[8, 8]) not in ((230, 159, 0), tuple(plain[8, 8]))
    side_by_side = overlay(np.stack([image, image]), truth=np.stack([truth, truth]))
    assert side_by_side.shape == (32, 64, 3)


def test_a_written_picture_reads_back(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = write_png(tmp_path / "p.png", picture)
    np.testing.assert_array_equal(np.asarray(pillow.open(path)), picture)
    with pytest.raises(ValueError, match="picture must be uint8"):
        write_png(path, picture[..., 0])


@pytest.mark.usefixtures("no_annotation_checks")
def test_an_overlay_refuses_masks_of_another_size():
    with pytest.raises(ValueError, match="truth must have the image's shape"):
        overlay(np.zeros((4, 4)), truth=np.zeros((2, 2)))


def test_foregrounds_of_a_batch_are_those_of_its_images():
    maps = torch.rand(4, 3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(4, 20, 24, dtype=torch.bool)
    masks[0, 2:19, 3:9], masks[2, 4, 4], masks[3] = True, True, True
    together = foreground_tokens(maps, masks, 7)
    alone = torch.cat([foreground_tokens(maps[i : i + 1], masks[i : i + 1], 7) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-14)
    assert not together[1].any()


def test_a_batch_holds_the_episodes_that_its_numbers_draw():
    volume = np.random.default_rng(0).normal(size=(3, 16, 16))
    regions = np.ones((3, 16, 16), int)
    sampler = EpisodeSampler([volume], [regions], min_pixels=9, augmentation=Augmentation())
    one, three = sampler.batch(5, 1), sampler.batch(5, 3)
    for a, b in zip(one, three):
        torch.testing.assert_close(a[0], b[0])
    # Of each pair one slice at most is bent: the other keeps its mask whole.
    whole = (three.support_mask.flatten(1).all(1), three.query_mask.flatten(1).all(1))
    assert bool((whole[0] | whole[1]).all())


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_that_holds_none_is_told_what_files_are_called(name, tmp_path):
    layout = LAYOUTS[name]
    image, label = layout.example
    for example, pattern in ((image, layout.image), (label, layout.label)):
        assert re.match(pattern, example.rpartition("/")[2])
    pairs = [re.match(layout.image, image.rpartition("/")[2])["case"]]
    assert pairs == [re.match(layout.label, label.rpartition("/")[2])["case"]]
    with pytest.raises(UsageError, match=f"named like {re.escape(image)} and {re.escape(label)}"):
        read_folder(tmp_path, name)
    with pytest.raises(UsageError, match=re.escape(r"named like (?P<case>x) and")):
        read_folder(tmp_path, name, image="(?P<case>x)")
