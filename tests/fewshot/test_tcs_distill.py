import copy

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, Subset, TensorDataset

from tests.torchvision_stand_in import run_with_backbones
from trialrun.core.errors import NotRunnable, UsageError
from trialrun.core.seeds import rng
from trialrun.fewshot._tcs_batches import loaders
from trialrun.fewshot._tcs_training import adamw
from trialrun.fewshot.tcs import (
    TailoredCoordinates,
    Tailoring,
    cache_features,
    distill,
    features_of,
    few_shots,
    labels_of,
    read_features,
)


def pictures(count=48, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % classes
    x = torch.randn(count, 3, 8, 8, generator=generator) * 0.3
    x[torch.arange(count), y] += 1.0
    return x, y


def network(width, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def loader_of(x, y, batch_size=16, **settings):
    return DataLoader(TensorDataset(x, y), batch_size=batch_size, **settings)


class Counting(nn.Module):
    """A teacher that counts the images it sees."""

    def __init__(self):
        super().__init__()
        self.inner, self.seen = network(7, seed=5), 0

    def forward(self, x):
        self.seen += len(x)
        return self.inner(x)


def test_the_teacher_sees_every_image_once_and_the_student_learns():
    x, y = pictures()
    teacher, student = Counting(), network(5)
    teacher.train()
    made = distill(
        student, teacher, loader_of(x, y, shuffle=True), epochs=15, n_components=4, mimic=0.1,
        optimiser=lambda parameters: torch.optim.AdamW(parameters, lr=0.02),
    )  # fmt: skip
    assert teacher.seen == len(x)
    assert teacher.training
    assert made.losses[-1] < made.losses[0]
    assert (made.model(x).argmax(1) == y).float().mean() > 0.8
    student.eval()
    torch.testing.assert_close(made.model(x), made.head(student(x)), rtol=1e-4, atol=1e-5)
    assert made.coords.n_components_ == 4


def test_the_same_seed_gives_the_same_student_and_global_state_is_left_alone():
    x, y = pictures()
    outputs = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        loader = loader_of(x, y, shuffle=True)
        made = distill(network(5), network(7), loader, epochs=2, n_components=3, seed=4)
        assert torch.equal(before, torch.get_rng_state())
        outputs.append(made.model(x))
    assert torch.equal(*outputs)


def test_the_teachers_features_do_in_its_place(tmp_path):
    x, y = pictures()
    path = cache_features(network(7), x.split(16), tmp_path, count=48)
    outputs = []
    for teacher in (network(7), path, read_features(path)):
        loader = loader_of(x, y, shuffle=True)
        made = distill(network(5), teacher, loader, epochs=2, n_components=3)
        outputs.append(made.model(x))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_tailoring_leaves_as_many_axes_as_asked_for():
    x, y = pictures()
    plan = Tailoring(keep=2, every=1)
    made = distill(
        network(5), network(7), loader_of(x, y, shuffle=True), epochs=3, n_components=6,
        tailoring=plan,
    )  # fmt: skip
    assert int(made.head.kept.sum()) == 2


def test_few_shot_mode_sees_only_its_images():
    x, y = pictures(60)
    teacher = Counting()
    made = distill(network(5), teacher, loader_of(x, y), epochs=1, n_components=3, shots=4, seed=2)
    assert teacher.seen == 12 == len(made.chosen)
    assert np.bincount(y[made.chosen]).tolist() == [4, 4, 4]
    expected = network(7, seed=5).eval()(x[made.chosen]).detach()
    np.testing.assert_allclose(made.features, expected, atol=1e-5)


class Augmented(Dataset):
    """Images that differ every time they are read."""

    def __init__(self, x, y):
        self.x, self.targets, self.reads = x, y.tolist(), 0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.reads += 1
        return self.x[i] + self.reads, self.targets[i]


def test_the_teacher_reads_plain_images_where_they_are_given():
    x, y = pictures()
    data = Augmented(x, y)
    made = distill(
        network(5), network(7), DataLoader(data, 16), epochs=1, n_components=3,
        plain=TensorDataset(x, y),
    )  # fmt: skip
    np.testing.assert_allclose(made.features, network(7).eval()(x).detach(), atol=1e-5)
    with pytest.raises(UsageError, match="plain must hold the same 48 images"):
        distill(network(5), network(7), DataLoader(data, 16), plain=TensorDataset(x[:9], y[:9]))


def test_the_features_lie_in_one_safetensors_file_and_are_used_again(tmp_path):
    x, _ = pictures()
    teacher = Counting()
    path = cache_features(teacher, x.split(10), tmp_path, count=48)
    again = cache_features(teacher, x.split(10), tmp_path, count=48)
    assert path == again
    # All images once, and the first batch again to see that the file is this teacher's.
    assert teacher.seen == 48 + 10
    mapped = read_features(path)
    assert isinstance(mapped, np.memmap)
    with safe_open(path, "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("features"), mapped)
    other = cache_features(network(7, seed=9), x.split(10), tmp_path, count=48)
    moved = cache_features(teacher, (x + 1).split(10), tmp_path, count=48)
    assert len({path, other, moved}) == 3


@pytest.mark.parametrize("harm", [lambda raw: raw[:-4], lambda raw: b"", lambda raw: b"\xff" * 99])
def test_a_broken_file_of_features_is_named_and_made_again(tmp_path, harm):
    x, _ = pictures()
    path = cache_features(network(7), [x], tmp_path, count=48)
    whole = path.read_bytes()
    path.write_bytes(harm(whole))
    with pytest.raises(NotRunnable, match="is no whole file of features: remove it"):
        read_features(path)
    assert cache_features(network(7), [x], tmp_path, count=48).read_bytes() == whole


def test_a_pass_that_breaks_leaves_no_file(tmp_path):
    x, _ = pictures()
    with pytest.raises(UsageError, match="must hold 50 images, got 48"):
        cache_features(network(7), [x], tmp_path, count=50)
    assert list(tmp_path.iterdir()) == []


def test_layers_are_taken_by_name_and_pooled():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.body(x).mean(1))

    model, x = Tokens(), torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(features_of(model, "body")(x), model.body(x).mean(1))
    torch.testing.assert_close(features_of(model, "body", pool="first")(x), model.body(x)[:, 0])
    assert not model.body._forward_hooks
    with pytest.raises(UsageError, match="Tokens has no layer 'boddy': names near it are body"):
        features_of(model, "boddy")
    with pytest.raises(UsageError, match="pool must be one of mean, first"):
        features_of(model, pool="max")
    with pytest.raises(UsageError, match="a layer's output must have shape"):
        features_of(nn.Identity())(torch.zeros(3))


def test_a_students_named_layer_carries_the_classifier():
    x, y = pictures()
    student = network(5)
    made = distill(
        student, network(7), loader_of(x, y), epochs=1, n_components=3, student_layer="2"
    )
    assert made.model(x).shape == (48, 3)
    saved = {k: v.clone() for k, v in made.model.state_dict().items()}
    assert "classifier.weight" in saved


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"teacher": np.zeros((3, 4))}, r"teacher features must have shape \(48, width\)"),
        ({"layer": "norm"}, "has no layer 'norm'"),
        ({"student_layer": "norm"}, "has no layer 'norm'"),
        ({"n_components": 8}, "n_components must be 1 to 7"),
        ({"shots": 17}, "has 16 images, fewer than the 17 shots"),
        ({"shots": 0}, "shots must be at least 1"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"mimic": -1.0}, "mimic must be at least 0"),
        ({"cut": 1}, "at least two classes, got 1"),
        ({"add": 2}, r"classes must be numbered 0, 1, ..., got \[2, 3, 4\]"),
    ],
)
def test_wrong_material_is_named(change, sentence):
    x, y = pictures()
    y = y[: change.pop("cut")] if "cut" in change else y + change.pop("add", 0)
    given = {"teacher": network(7), "epochs": 1, **change}
    with pytest.raises(UsageError, match=sentence):
        distill(network(5), given.pop("teacher"), loader_of(x[: len(y)], y), **given)


def test_labels_come_from_targets_or_item_by_item():
    class Bare(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return torch.zeros(1), i

    assert labels_of(Bare()).tolist() == [0, 1, 2]
    with pytest.raises(UsageError, match="pairs of image and class number"):
        labels_of(TensorDataset(torch.zeros(3, 2)))


def test_shots_are_even_and_seeded():
    labels = rng(0, "labels").integers(0, 4, 80)
    one = few_shots(labels, 5, seed=1)
    assert np.bincount(labels[one]).tolist() == [5] * 4
    np.testing.assert_array_equal(one, few_shots(labels, 5, seed=1))
    assert not np.array_equal(one, few_shots(labels, 5, seed=2))


def test_coordinates_fitted_beforehand_are_used():
    x, y = pictures()
    coords = TailoredCoordinates(n_components=2).fit(rng(0, "x").normal(size=(30, 7)))
    made = distill(network(5), network(7), loader_of(x, y), epochs=1, coords=coords)
    assert made.coords is coords


def test_timm_networks_are_teachers_and_students():
    code = """
import timm, torch
from torch.utils.data import DataLoader, TensorDataset
from trialrun.fewshot.tcs import distill
torch.set_num_threads(1)
torch.manual_seed(0)
x = torch.randn(8, 3, 32, 32)
loader = DataLoader(TensorDataset(x, torch.arange(8) % 2), batch_size=4)
teacher = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0)
student = timm.create_model("resnet10t", num_classes=5)
made = distill(student, teacher, loader, epochs=1, n_components=4)
with torch.no_grad():
    features = student.forward_head(student.forward_features(x), pre_logits=True)
    same = torch.allclose(made.model(x), made.head(features), atol=1e-4)
print(made.model is student, tuple(made.model(x).shape), made.features.shape, same)
"""
    assert run_with_backbones(code).strip() == "True (8, 2) (8, 192) True"


def kept(x, y, folder, teacher, batch_size=8, **settings):
    loader = loader_of(x, y, batch_size=batch_size)
    return distill(network(5), teacher, loader, epochs=1, n_components=3, cache=folder, **settings)


def test_images_changed_after_the_first_batch_do_not_meet_old_features(tmp_path):
    x, y = pictures(24)
    other = x.clone()
    other[20] += 1
    teacher = network(7).eval()
    for images in (x, other, x):
        found = kept(images, y, tmp_path, teacher).features
        np.testing.assert_allclose(found, teacher(images).detach(), atol=1e-5)
    assert len(list(tmp_path.iterdir())) == 2


def test_another_structure_with_the_same_weights_does_not_meet_old_features(tmp_path):
    x, y = pictures(24)

    class Bent(nn.Module):
        def __init__(self, bend):
            super().__init__()
            self.inner, self._bend = network(7), bend

        def forward(self, x):
            return self._bend(self.inner(x))

    # Neither the weights nor the printed structure tell these apart, only what they give.
    for bend in (torch.relu, torch.tanh):
        teacher = Bent(bend).eval()
        found = kept(x, y, tmp_path, teacher).features
        np.testing.assert_allclose(found, teacher(x).detach(), atol=1e-5)


def test_another_draw_of_shots_does_not_meet_old_features(tmp_path):
    x, y = pictures(24)
    teacher = network(7).eval()
    for seed in range(6):
        made = kept(x, y, tmp_path, teacher, batch_size=1, shots=3, seed=seed)
        np.testing.assert_allclose(made.features, teacher(x[made.chosen]).detach(), atol=1e-5)


def test_images_that_can_be_read_once_do_not_use_a_file_unseen(tmp_path):
    x, _ = pictures(24)
    cache_features(network(7), x.split(8), tmp_path, count=24)
    with pytest.raises(UsageError, match="give a list or a loader, not an iterator"):
        cache_features(network(7), iter(x.split(8)), tmp_path, count=24)


def test_the_students_width_is_found_on_its_own_pictures():
    x, y = pictures(24)
    student = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
    large = TensorDataset(nn.functional.interpolate(x, size=16), y)
    before = torch.get_rng_state()
    made = distill(student, network(7), loader_of(x, y), epochs=1, n_components=3, plain=large)
    assert torch.equal(before, torch.get_rng_state())
    assert made.model(x).shape == (24, 3)


def test_tailoring_that_cannot_end_in_time_is_refused():
    x, y = pictures()
    with pytest.raises(UsageError, match="6 axes down to 2 needs 200 steps, and there are 3"):
        distill(
            network(5), network(7), loader_of(x, y), epochs=1, n_components=6,
            tailoring=Tailoring(keep=2),
        )  # fmt: skip


def test_the_mask_is_not_decayed():
    x, y = pictures()
    given = []

    def mine(parameters):
        given.extend(parameters)
        return torch.optim.SGD(parameters, lr=0.0)

    made = distill(
        network(5), network(7), loader_of(x, y), epochs=1, n_components=3, optimiser=mine
    )
    assert given[-1] is made.head.mask
    groups = adamw(given).param_groups
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    assert groups[1]["params"][0] is made.head.mask


def test_the_loaders_settings_are_kept(monkeypatch):
    x, y = pictures(24)

    def begin(_):
        return None

    order = torch.Generator().manual_seed(3)
    loader = loader_of(x, y, shuffle=True, generator=order, worker_init_fn=begin, timeout=0)
    train, once = loaders(loader, None, np.arange(24), 0)
    assert train.worker_init_fn is once.worker_init_fn is begin
    assert train.generator is order
    assert once.generator is not order
    working = loader_of(x, y, num_workers=1, persistent_workers=True, prefetch_factor=3)
    train, once = loaders(working, None, np.arange(24), 0)
    assert train.persistent_workers
    assert once.prefetch_factor == 3


def test_the_teacher_sees_images_that_the_loaders_collate_would_mix():
    x, y = pictures(24)

    def mix(items):
        images = torch.stack([image for image, _ in items])
        return (images + images.flip(0)) / 2, torch.tensor([int(y) for _, y in items])

    teacher = network(7).eval()
    made = distill(network(5), teacher, loader_of(x, y, collate_fn=mix), epochs=1, n_components=3)
    np.testing.assert_allclose(made.features, teacher(x).detach(), atol=1e-5)


def test_a_sampler_that_repeats_images_is_refused():
    x, y = pictures(24)
    data = TensorDataset(x, y)
    for settings in ({"replacement": True}, {"num_samples": 9}):
        loader = DataLoader(data, 8, sampler=RandomSampler(data, **settings))
        with pytest.raises(UsageError, match="read every image once an epoch"):
            distill(network(5), network(7), loader)


def test_labels_pass_through_subsets_and_transforms():
    class Folder(Augmented):
        def target_transform(self, y):
            return 2 - y

        def __getitem__(self, i):
            raise AssertionError("labels must not read images")

    data = Folder(*pictures(6))
    assert labels_of(data).tolist() == [2, 1, 0, 2, 1, 0]
    assert labels_of(Subset(Subset(data, [5, 0, 1]), [2, 0])).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"epochs": 1.5}, "epochs must be a whole number of at least 1, got 1.5"),
        ({"y": 0.5}, "a whole number each, got labels of type float32"),
        ({"channels": 1}, r"the student cannot take images of shape \(1, 8, 8\)"),
        ({"teacher": np.full((48, 4), np.nan)}, "teacher features must be finite"),
        ({"teacher": np.ones((48, 4)), "cache": "x"}, "layer and cache go with a teacher that is"),
        ({"teacher": np.ones((48, 4)), "layer": "x"}, "layer and cache go with a teacher that is"),
        ({"coords": 7, "n_components": 2}, "n_components goes with coords=None"),
        ({"coords": 4}, "coords must be of the teacher's 7 features, got 4"),
    ],
)
def test_more_wrong_material_is_named(change, sentence, no_annotation_checks):
    x, y = pictures()
    change = copy.copy(change)
    if "y" in change:
        y = y + change.pop("y")
    if "channels" in change:
        x = x[:, : change.pop("channels")]
        change["teacher"] = rng(0, "t").normal(size=(48, 4))
    if "coords" in change:
        table = rng(0, "x").normal(size=(30, change["coords"]))
        change["coords"] = TailoredCoordinates(n_components=2).fit(table)
    given = {"teacher": network(7), "epochs": 1, **change}
    with pytest.raises(UsageError, match=sentence):
        distill(network(5), given.pop("teacher"), loader_of(x, y), **given)


@pytest.mark.parametrize("count", [4.0, True, 0, "4"])
def test_axes_that_are_no_whole_number_are_refused_before_the_teacher_runs(
    count, no_annotation_checks
):
    teacher, said = Counting(), f"n_components must be a whole number of at least 1, got {count!r}"
    with pytest.raises(UsageError, match=said):
        distill(network(5), teacher, loader_of(*pictures()), epochs=1, n_components=count)
    assert teacher.seen == 0


def shares_of(change):
    """Make a collate function whose labels are shares of three classes, changed."""

    def collate(items):
        shares = nn.functional.one_hot(torch.tensor([int(y) for _, y in items]), 3).float()
        images = torch.stack([image for image, _ in items])
        return change(images), change(shares)

    return collate


def test_mimicking_refuses_mixed_images_before_the_teacher_runs():
    x, y = pictures()
    mixing = loader_of(x, y, collate_fn=shares_of(lambda part: (part + part.flip(0)) / 2))
    teacher = Counting()
    with pytest.raises(UsageError, match=r"mimic needs images as the teacher saw them.*mimic=0"):
        distill(network(5), teacher, mixing, epochs=1, n_components=3, mimic=6.0)
    assert teacher.seen == 0
    assert len(distill(network(5), teacher, mixing, epochs=1, n_components=3).losses) == 1
    whole = loader_of(x, y, collate_fn=shares_of(lambda part: part))
    distill(network(5), teacher, whole, epochs=1, n_components=3, mimic=6.0)


def test_mimicking_refuses_images_that_a_later_batch_mixes():
    x, y = pictures()

    def late(part):
        return part if len(part) == 2 else (part + part.flip(0)) / 2

    mixing = loader_of(x, y, collate_fn=shares_of(late))
    with pytest.raises(UsageError, match="divided between classes, as of mixed images"):
        distill(network(5), network(7), mixing, epochs=1, n_components=3, mimic=6.0)


class Beside(Dataset):
    """Dictionaries with a path or picture beside the tensor made of it."""

    def __init__(self, x, y, beside):
        self.x, self.targets, self.beside = x, y.tolist(), beside

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"image": self.beside, "pixel_values": self.x[i], "label": self.targets[i]}


def test_a_dictionarys_tensor_is_taken_with_a_path_or_a_picture_beside_it():
    x, y = pictures()
    made = distill(network(5), network(7), loader_of(x, y), epochs=1, n_components=3)

    def tensors(items):
        images = torch.stack([item["pixel_values"] for item in items])
        return {"pixel_values": images, "labels": torch.tensor([item["label"] for item in items])}

    for beside, own in (("a.png", {}), (Image.new("RGB", (8, 8)), {"collate_fn": tensors})):
        loader = DataLoader(Beside(x, y, beside), batch_size=16, **own)
        same = distill(network(5), network(7), loader, epochs=1, n_components=3)
        np.testing.assert_array_equal(same.features, made.features)
        assert same.losses == made.losses


def test_a_teacher_that_cannot_take_the_images_is_named():
    x, y = pictures()
    with pytest.raises(UsageError, match=r"the teacher cannot take images of shape \(1, 8, 8\)"):
        distill(nn.Flatten(), network(7), loader_of(x[:, :1], y), epochs=1)
