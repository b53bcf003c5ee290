import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tests.torchvision_stand_in import run_with_backbones
from trialrun.core.errors import NotRunnable, UsageError
from trialrun.core.seeds import rng
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
    assert teacher.seen == 48
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
        ({"epochs": 0}, "epochs must be at least 1"),
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
