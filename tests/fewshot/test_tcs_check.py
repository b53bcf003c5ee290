"""What the check of tcs relies on: its control, its equal starts, its own material."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from trialrun.claims.contract import Context, On
from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng
from trialrun.dossiers.tcs import claim
from trialrun.dossiers.tcs.cost import memory
from trialrun.dossiers.tcs.nets import make_teacher
from trialrun.dossiers.tcs.students import ARMS, Lesson, probe, shuffle_features
from trialrun.dossiers.tcs.world import check_on, make_world
from trialrun.fewshot.tcs import TailoredCoordinates

BUDGET = replace(claim.TRIAL.budgets["smoke"], teacher_steps=1, steps=1)


def context(**settings):
    return Context(budget=BUDGET, seed=0, **settings)


@pytest.fixture(scope="module")
def lesson():
    draw = torch.Generator().manual_seed(0)
    images, y = torch.rand(200, 3, 16, 16, generator=draw), torch.arange(200) % 3
    features = rng(0, "features").normal(size=(200, 128)).astype("float32")
    return Lesson(images, y, make_teacher(0).eval(), features, features[::-1].copy(), 3)


def test_shuffling_images_is_no_control_and_shuffling_features_is_one():
    mixed = rng(0, "mix").normal(size=(6, 6))
    table = (rng(0, "x").normal(size=(500, 6)) @ mixed).astype("float32")
    axes = TailoredCoordinates(n_components=2).fit(table).components_
    rows = TailoredCoordinates(n_components=2).fit(rng(0, "rows").permutation(table)).components_
    apart = TailoredCoordinates(n_components=2).fit(shuffle_features(table, 0)).components_
    np.testing.assert_allclose(axes, rows, atol=1e-4)
    overlap = np.linalg.norm(axes @ apart.T) / np.sqrt(2)
    assert overlap < 0.9
    assert sorted(shuffle_features(table, 0)[:, 3]) == sorted(table[:, 3])


def test_every_arm_begins_with_the_same_student(lesson):
    students = [ARMS[arm](context(), lesson).student.state_dict() for arm in sorted(ARMS)]
    for state in students[1:]:
        assert all(torch.equal(state[name], students[0][name]) for name in state)


@pytest.mark.parametrize("arm", sorted(ARMS))
def test_every_arm_has_a_finite_loss_that_reaches_the_student(lesson, arm):
    pupil = ARMS[arm](context(), lesson)
    index = torch.arange(6)
    pupil.loss(lesson.images[index], lesson.y[index], index).backward()
    grads = [p.grad for p in pupil.student.parameters()]
    assert all(grad is not None and torch.isfinite(grad).all() for grad in grads)
    assert max(float(grad.abs().max()) for grad in grads) > 0


def test_a_probe_of_two_classes_has_two_rows(lesson):
    two = replace(lesson, y=lesson.y % 2, classes=2)
    weight, bias = probe(two)
    assert weight.shape == (2, 128)
    assert bias.shape == (2,)


def test_memory_is_the_same_every_time_and_grows_with_a_teacher():
    found = {arm: memory(context(), arm=arm).points["value"] for arm in ("ce", "tailored", "kd")}
    assert memory(context(), arm="ce").points["value"] == found["ce"]
    assert found["ce"] < found["tailored"] < found["kd"]


@pytest.fixture
def own(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(6):
            pixels = rng(number, name).integers(0, 255, (16, 16, 3)).astype("uint8")
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    return tmp_path


def test_own_pictures_are_split_and_kept_as_a_student_that_loads(own, tmp_path_factory, capsys):
    (own / "a" / "bad.png").write_bytes(b"nothing")
    ctx = context(on=On("images", str(own)))
    check_on(ctx)
    assert "1 files could not be read as pictures and were skipped" in capsys.readouterr().err
    world = make_world(ctx)
    assert (len(world.train), len(world.test), world.classes) == (8, 4, 2)
    folder = tmp_path_factory.mktemp("kept")
    names: dict = {}
    exec(claim.keep(ctx, folder), names)
    assert names["model"].eval()(torch.zeros(1, 3, 16, 16)).shape == (1, 2)


def test_a_folder_of_one_class_or_a_model_is_refused(own):
    with pytest.raises(UsageError, match="at least two classes, got 0"):
        check_on(context(on=On("images", str(own / "a"))))
    with pytest.raises(UsageError, match="takes pictures of your own with --on"):
        check_on(context(model="dino"))
