"""Where real material is awkward: dictionaries, mixing loaders, half precision, odd teachers."""

import functools
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from tests.fewshot.test_tcs_distill import (
    Counting,
    loader_of,
    network,
    pictures,
)
from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng
from trialrun.fewshot._tcs_batches import batches, loaders
from trialrun.fewshot._tcs_training import Course, train
from trialrun.fewshot.tcs import (
    ELSHLoss,
    FewRowsWarning,
    TailoredCoordinates,
    Tailoring,
    TCSHead,
    cache_features,
    distill,
    features_of,
    labels_of,
    pass_features,
    read_features,
)


class Named(Dataset):
    """Items that are dictionaries."""

    def __init__(self, x, y, image="pixel_values", label="label"):
        self.items = [{image: a, label: int(b)} for a, b in zip(x, y, strict=True)]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def made_of(loader, teacher=None, **settings):
    settings = {"epochs": 1, "n_components": 3, **settings}
    return distill(network(5), network(7) if teacher is None else teacher, loader, **settings)


@pytest.mark.parametrize("names", [("image", "label"), ("pixel_values", "labels")])
def test_dictionaries_train_the_same_student_as_pairs(names, tmp_path):
    x, y = pictures(24)
    pairs = made_of(loader_of(x, y, shuffle=True), mimic=0.5)
    named = made_of(DataLoader(Named(x, y, *names), 16, shuffle=True), mimic=0.5, cache=tmp_path)
    assert torch.equal(pairs.model(x), named.model(x))


def test_dictionaries_with_other_names_are_named():
    x, y = pictures(24)
    with pytest.raises(UsageError, match="must hold one of label, labels, target, got image, cls"):
        made_of(DataLoader(Named(x, y, "image", "cls"), 8))
    with pytest.raises(UsageError, match="must hold one of image, images, pixel_values, got x"):
        made_of(DataLoader(Named(x, y, "x"), 8))


def test_items_with_more_than_a_pair_will_do():
    x, y = pictures(24)
    longer = [(image, int(label), f"{n}.png") for n, (image, label) in enumerate(zip(x, y))]
    made = made_of(DataLoader(longer, 8))
    assert torch.equal(made.model(x), made_of(loader_of(x, y, 8)).model(x))


def test_the_teacher_sees_the_last_batch_that_training_drops():
    x, y = pictures(25)
    teacher = Counting()
    made = made_of(loader_of(x, y, 8, drop_last=True), teacher)
    assert teacher.seen == 25 == len(made.features)
    teacher = Counting()
    with pytest.raises(UsageError, match="gives no batch: its batch_size 30 is above the 25"):
        made_of(loader_of(x, y, 30, drop_last=True), teacher)
    assert teacher.seen == 0


@pytest.mark.parametrize("shots", [None, 5])
def test_shuffled_images_meet_their_own_rows_of_the_teacher(shots, monkeypatch):
    x, y = pictures(24)
    seen, pairs = [], []

    class Seeing(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network(5)

        def forward(self, images):
            seen.append(images)
            return self.inner(images)

    def spy(self, coordinates, index, right=None):
        pairs.append((seen[-1], index))
        return coordinates.sum() * 0

    monkeypatch.setattr(ELSHLoss, "forward", spy)
    made = distill(
        Seeing(), network(7), loader_of(x, y, 7, shuffle=True), epochs=2, n_components=3, mimic=1.0,
        shots=shots,
    )  # fmt: skip
    order = [number for _, index in pairs for number in index.tolist()]
    assert order[: len(made.chosen)] != sorted(order[: len(made.chosen)])
    for images, index in pairs:
        torch.testing.assert_close(images, x[made.chosen][index])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"student_layer": "gone"}, "has no layer 'gone'"),
        ({"layer": "gone"}, "has no layer 'gone'"),
        ({"n_components": 24}, "n_components must be at most 23, as 24 images span no more"),
        ({"n_components": 3, "tailoring": Tailoring(keep=4)}, "keep must be at most the 3 axes"),
        ({"n_components": 3, "tailoring": Tailoring(keep=2)}, "needs 50 steps, and there are 3"),
        ({"n_components": None, "coords": TailoredCoordinates()}, "coords must be fitted"),
        ({"precision": "float16"}, "precision must be one of float32, bfloat16, got 'float16'"),
        ({"wide": True}, r"the student cannot take images of shape \(3, 8, 8\)"),
    ],
)
def test_what_can_be_refused_is_refused_before_the_teacher_runs(settings, sentence):
    x, y = pictures(24)
    teacher = Counting()
    student = nn.Linear(9, 5) if settings.pop("wide", False) else network(5)
    with pytest.raises(UsageError, match=sentence):
        distill(student, teacher, loader_of(x, y, 8), **{"epochs": 1, **settings})
    assert teacher.seen == 0


def test_fewer_images_than_features_give_fewer_axes_and_a_warning():
    x, y = pictures(6, classes=2)
    with pytest.warns(FewRowsWarning, match="6 rows of 7 features give 5 axes at most"):
        made = distill(network(5), network(7), loader_of(x, y, 6), epochs=1)
    assert made.coords.n_components_ <= 5
    assert torch.isfinite(made.model(x)).all()


class Moving(nn.Linear):
    """A teacher that notes where it is sent."""

    def __init__(self):
        super().__init__(192, 6)
        self.went = []

    def to(self, *where, **how):
        self.went += [str(place) for place in where]
        return super().to(*where, **how)

    def forward(self, images):
        return super().forward(images.flatten(1))


@pytest.mark.parametrize("kept", [False, True])
def test_the_teacher_is_sent_back_before_the_student_trains(kept, tmp_path):
    x, y = pictures(24)
    teacher, went = Moving(), []
    optimiser = functools.partial(torch.optim.SGD, lr=0.1)

    def noting(parameters):
        went.extend(teacher.went)
        return optimiser(parameters)

    made_of(loader_of(x, y), teacher, optimiser=noting, cache=tmp_path if kept else None)
    assert went == ["cpu", "cpu"]
    with pytest.raises(UsageError, match="cannot take images"):
        pass_features(teacher, [torch.zeros(2, 5)])
    assert teacher.went[-1] == "cpu"


def test_bfloat16_learns_as_float32_does_and_keeps_its_own_features(tmp_path):
    x, y = pictures(48)
    made = {}
    for precision in ("float32", "bfloat16"):
        made[precision] = distill(
            network(5), network(7), loader_of(x, y, shuffle=True), epochs=15, n_components=4,
            optimiser=lambda parameters: torch.optim.AdamW(parameters, lr=0.02), cache=tmp_path,
            precision=precision, mimic=0.1,
        )  # fmt: skip
    one, half = made["float32"], made["bfloat16"]
    assert len(list(tmp_path.iterdir())) == 2
    assert half.features.dtype == np.float32
    assert not np.array_equal(one.features, half.features)
    np.testing.assert_allclose(one.features, half.features, atol=0.02)
    assert half.losses != one.losses
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}
    assert (half.model(x).argmax(1) == y).float().mean() > 0.8


def test_a_pass_in_bfloat16_is_used_again(tmp_path):
    x, _ = pictures(24)
    teacher = Counting()
    paths = {
        cache_features(teacher, x.split(8), tmp_path, count=24, precision="bfloat16")
        for _ in range(2)
    }
    assert len(paths) == 1
    assert teacher.seen == 24 + 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_teacher_of_another_type_takes_the_images_in_it(dtype):
    x, _ = pictures(24)
    found = pass_features(network(7).to(dtype), [x])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, pass_features(network(7), [x]), atol=0.05)


def test_features_that_are_not_finite_are_not_kept(tmp_path):
    x, y = pictures(24)
    x[20] = torch.inf
    for cache in (None, tmp_path):
        with pytest.raises(UsageError, match="the teacher's features must be finite, got NaN or"):
            made_of(loader_of(x, y), cache=cache)
    assert list(tmp_path.iterdir()) == []


class Output:
    """What networks of transformers give."""

    def __init__(self, tokens):
        self.last_hidden_state = tokens


class Tokens(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.body, self._wrap = nn.Linear(8, 6), wrap

    def forward(self, images):
        return self._wrap(self.body(images.flatten(1, 2)))


def test_the_last_hidden_state_is_taken_and_other_outputs_are_named():
    x, y = pictures(24)
    with torch.random.fork_rng():
        teacher = Tokens(Output)
    expected = teacher.body(x.flatten(1, 2))
    torch.testing.assert_close(features_of(teacher)(x), expected.mean(1))
    torch.testing.assert_close(features_of(teacher, pool="first")(x), expected[:, 0])
    assert made_of(loader_of(x, y), teacher).features.shape == (24, 6)
    with pytest.raises(UsageError, match="Tokens must give a tensor, got tuple: name a layer"):
        features_of(Tokens(lambda tokens: (tokens,)))(x)


def test_a_network_of_transformers_is_a_teacher(no_annotation_checks):
    from transformers import Dinov2Config, Dinov2Model

    with torch.random.fork_rng():
        config = Dinov2Config(
            hidden_size=12, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
        )
        teacher = Dinov2Model(config)
    x, y = pictures(24)
    made = made_of(DataLoader(Named(x, y), 8), teacher, pool="first")
    with torch.no_grad():
        told = teacher.eval()(x).last_hidden_state[:, 0]
    np.testing.assert_allclose(made.features, told, atol=1e-5)


def bend():
    return lambda x: x


class Bent(nn.Linear):
    """A teacher that prints where a function lies, and keeps more than tensors."""

    def __init__(self, scale=2):
        super().__init__(4, 3)
        self.bend, self.scale = bend(), scale

    def extra_repr(self):
        return f"bend={self.bend}"

    def get_extra_state(self):
        return {"scale": self.scale}

    def set_extra_state(self, state):
        self.scale = state["scale"]


def test_a_structure_that_names_a_place_in_memory_meets_its_features_again(tmp_path):
    one, two, other = Bent(), Bent(), Bent(scale=3)
    for copied in (two, other):
        copied.weight, copied.bias = one.weight, one.bias
    assert repr(one) != repr(two)
    paths = [
        cache_features(m, [torch.ones(5, 4)], tmp_path, count=5).name for m in (one, two, other)
    ]
    assert paths[0] == paths[1] != paths[2]


def test_a_loader_that_mixes_images_gives_shares_of_the_classes():
    x, y = pictures(24)

    def mix(items):
        assert len(items) % 2 == 0
        images = torch.stack([image for image, _ in items])
        hot = nn.functional.one_hot(torch.tensor([int(y) for _, y in items]), 3).float()
        return 0.7 * images + 0.3 * images.flip(0), 0.7 * hot + 0.3 * hot.flip(0)

    made = made_of(loader_of(x, y, collate_fn=mix), epochs=2)
    assert np.isfinite(made.losses).all()
    for wrong in (lambda hot: hot[:, :2], lambda hot: hot.argmax(1).float()):

        def broken(items, wrong=wrong):
            images, hot = mix(items)
            return images, wrong(hot)

        with pytest.raises(UsageError, match="labels must be whole numbers of shape"):
            made_of(loader_of(x, y, collate_fn=broken))


def test_a_batch_of_one_image_says_what_to_do():
    x, y = pictures(9)
    student = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4))
    with pytest.raises(UsageError, match=r"a batch of one image .*drop_last=True"):
        distill(student, network(7), loader_of(x, y, 4), epochs=1, n_components=3)


def test_images_without_numbers_and_batch_samplers_are_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            yield torch.zeros(3, 8, 8), 0

    with pytest.raises(UsageError, match="read by number, which a Stream does not offer"):
        labels_of(Stream())
    x, y = pictures(24)
    data = loader_of(x, y).dataset
    own = DataLoader(data, batch_sampler=[[0, 1], [2, 3]])
    with pytest.raises(UsageError, match="no batch_sampler of its own"):
        made_of(own)


def test_the_teachers_workers_end_with_its_pass():
    x, y = pictures(24)
    loader = loader_of(x, y, num_workers=1, persistent_workers=True)
    training, once = loaders(loader, None, np.arange(24), 0)
    assert training.persistent_workers
    assert not once.persistent_workers


def test_features_in_a_file_mimic_without_a_warning(tmp_path, recwarn):
    x, y = pictures(24)
    path = cache_features(network(7), [x], tmp_path, count=24)
    inside = made_of(loader_of(x, y), read_features(path), mimic=1.0)
    assert torch.equal(made_of(loader_of(x, y), mimic=1.0).model(x), inside.model(x))
    assert not [w for w in recwarn if "not writable" in str(w.message)]


def test_losses_are_means_over_images():
    x, y = pictures(10)
    coords = TailoredCoordinates(n_components=2).fit(rng(0, "x").normal(size=(30, 6)))
    head = TCSHead(5, coords, 3)
    training, _ = loaders(loader_of(x, y, 4), None, np.arange(10), 0)
    still = functools.partial(torch.optim.SGD, lr=0.0)
    course = Course(
        loader=training, epochs=1, optimiser=still, mimicking=None, mimic=0.0, device="cpu",
        precision="float32",
    )  # fmt: skip
    student = network(5)
    told = train(student, head, lambda images: student.eval()(images), course)
    expected = nn.functional.cross_entropy(head(student(x)), y)
    assert told == [pytest.approx(float(expected.detach()), rel=1e-6)]
    assert [len(index) for *_, index in batches(training, 3, "cpu", mimic=0)] == [4, 4, 2]


def test_plain_images_in_another_order_are_refused():
    x, y = pictures(24)
    teacher = Counting()
    for data in (loader_of(x.flip(0), y.flip(0)).dataset, Named(x.flip(0), y.flip(0))):
        with pytest.raises(UsageError, match="in the same order, got another label for image 0"):
            made_of(loader_of(x, y), teacher, plain=data)
    assert teacher.seen == 0
    for data in (loader_of(x, y).dataset, Named(x, y), TensorDataset(x)):
        assert len(made_of(loader_of(x, y), plain=data).features) == 24


class Noisy(Named):
    """Items with noise from the global random state."""

    def __getitem__(self, i):
        item = self.items[i]
        return {**item, "pixel_values": item["pixel_values"] + torch.randn(3, 8, 8)}


def test_a_teacher_that_would_see_augmented_images_is_warned_of():
    x, y = pictures(24)
    before = torch.get_rng_state()
    noisy = DataLoader(Noisy(x, y), 8, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="give plain= the same images without augmentation"):
        made_of(noisy, epochs=1)
    torch.set_rng_state(before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made_of(noisy, plain=TensorDataset(x, y))
        made_of(loader_of(x, y))


class Sized(nn.Linear):
    """A teacher that asserts its images' size, as timm's do."""

    def forward(self, images):
        assert images.shape[-1] == 16, "Input height (8) doesn't match model (16)."
        return super().forward(images.mean((1, 2)))


def test_a_teacher_of_another_size_names_plain():
    x, y = pictures(24)
    with pytest.raises(UsageError, match=r"Input height .8. doesn't match .*; plain= takes"):
        made_of(loader_of(x, y), Sized(16, 6))
    large = TensorDataset(nn.functional.interpolate(x, size=16), y)
    assert made_of(loader_of(x, y), Sized(16, 6), plain=large).features.shape == (24, 6)
