"""What the check of tcs relies on: its control, its equal starts, its own material."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trialrun.catalogue.card import parse_card
from trialrun.claims.contract import Context, On
from trialrun.claims.judge import apply_rule
from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng
from trialrun.dossiers.tcs import claim
from trialrun.dossiers.tcs.arms import ARMS
from trialrun.dossiers.tcs.cost import memory, step_time
from trialrun.dossiers.tcs.lessons import (
    Lesson,
    coordinates,
    make_lesson,
    read_frozen,
    shuffle_features,
)
from trialrun.dossiers.tcs.nets import make_teacher
from trialrun.dossiers.tcs.world import check_on, make_world
from trialrun.fewshot.tcs import TailoredCoordinates

CARD = Path(claim.__file__).with_name("card.toml")
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
    weight, bias = two.probed
    assert weight.shape == (2, 128)
    assert bias.shape == (2,)


def test_memory_is_the_same_every_time_and_grows_with_a_teacher():
    found = {arm: memory(context(), arm=arm).points["value"] for arm in ("ce", "tailored", "kd")}
    assert memory(context(), arm="ce").points["value"] == found["ce"]
    assert found["ce"] < found["tailored"] < found["kd"]


def test_what_a_live_teacher_costs_does_not_grow_with_the_batch():
    """So the ratio of the claim on memory rises with it: the notes say where it hangs."""
    sizes = replace(BUDGET, size=32, batch=16)
    found = {a: memory(Context(budget=sizes, seed=0), arm=a) for a in ("tailored", "kd")}
    once = {arm: m.points["value"] for arm, m in found.items()}
    twice = {arm: m.extra["peak at twice the batch, MB"] for arm, m in found.items()}
    weights = make_teacher(0).state_dict().values()
    teacher = sum(t.numel() * t.element_size() for t in weights) / 1e6
    head = sum(v for name, v in found["tailored"].extra.items() if "adapter" in name)
    for apart in (once["kd"] - once["tailored"], twice["kd"] - twice["tailored"]):
        assert teacher - head - 0.05 < apart < teacher
    assert once["tailored"] / once["kd"] < twice["tailored"] / twice["kd"] < 1


def test_the_verdict_on_memory_hangs_on_the_batch_as_the_notes_say():
    full, bound = claim.TRIAL.budgets["full"], 0.8
    ratios = []
    for batch in (full.batch, 64, 2 * full.batch):
        ctx = Context(budget=replace(full, batch=batch), seed=0)
        ours, kd = (memory(ctx, arm=arm).points["value"] for arm in ("tailored", "kd"))
        ratios.append(ours / kd)
    assert bound - 0.01 < ratios[0] < bound < ratios[1] < ratios[2]


def test_memory_names_what_the_head_adds():
    extra = memory(context(), arm="tailored").extra
    adapter = 128 * 128 * 4 / 1e6
    assert extra["head's adapter, MB"] == extra["gradient of head's adapter, MB"] == adapter
    # AdamW keeps two numbers a weight, and one count a tensor.
    assert extra["optimiser state of head's adapter, MB"] == pytest.approx(2 * adapter + 4e-6)
    assert extra["head's buffers, MB"] >= 128 * 32 * 4 / 1e6
    assert memory(context(), arm="ce").extra["head's adapter, MB"] == 0


@pytest.mark.parametrize("arm", ["kd", "lshl2"])
def test_a_live_teacher_is_asked_before_the_student(lesson, arm):
    pupil, order = ARMS[arm](context(), lesson), []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: order.append(name))
        for name, module in (("teacher", lesson.teacher), ("student", pupil.student))
    ]
    index = torch.arange(6)
    pupil.loss(lesson.images[index], lesson.y[index], index)
    for hook in hooks:
        hook.remove()
    assert order == ["teacher", "student"]


def test_the_teachers_pass_is_timed_warm(monkeypatch):
    calls = []
    monkeypatch.setattr("trialrun.dossiers.tcs.cost._no_grad_pass", lambda *_: calls.append(1))
    step_time(context(), arm="ce")
    assert len(calls) >= 3


def test_an_aligned_start_gives_the_teachers_coordinates_and_leaves_the_student(lesson):
    """On features that a linear map of the student's can give, the start gives them."""
    pupil = ARMS["pca"](context(), lesson)
    before = {name: value.clone() for name, value in pupil.student.state_dict().items()}
    with torch.no_grad():
        own = copy.deepcopy(pupil.student).train()(lesson.images)
        mix = torch.randn(128, 128, generator=torch.Generator().manual_seed(1)) / 11
        told = (own @ mix + 3).numpy()
    kin = replace(lesson, features=told, foreign=told)
    aligned = ARMS["aligned"](context(), kin)
    assert all(torch.equal(aligned.student.state_dict()[k], v) for k, v in before.items())
    aligned.student.train()
    with torch.no_grad():
        aligned.head(aligned.student(lesson.images))
        plain = ARMS["pca"](context(), kin)
        plain.head(plain.student.train()(lesson.images))
    wanted = torch.from_numpy(coordinates(kin, "pca", 0).transform(told))

    def missed(head):
        return float((head.features_ - wanted).square().mean() / wanted.square().mean())

    assert missed(aligned.head) < 0.1 < missed(plain.head)


def test_a_frozen_teacher_is_read_through_its_axes_alone(lesson):
    """Features that a basis leaves out change nothing that is read in it."""
    drawn = torch.randn(9, 128, generator=torch.Generator().manual_seed(2))
    for kind in ("pca", "random"):
        weight, bias = read_frozen(lesson, kind, 0, 8)
        axes = torch.from_numpy(coordinates(lesson, kind, 0, 8).components_)
        outside = drawn - drawn @ axes.T @ axes
        torch.testing.assert_close(
            drawn @ weight.T + bias, (drawn - 5 * outside) @ weight.T + bias, rtol=1e-3, atol=1e-3
        )
    whole, _ = lesson.probed
    assert whole.shape == weight.shape


def test_letters_are_as_many_as_training_pictures():
    full = replace(BUDGET, classes=20, shots=5)
    world = make_world(Context(budget=full, seed=0))
    assert len(world.foreign) == len(world.train.flatten(0, 1)) > 900
    few = replace(world, foreign=world.foreign[:50])
    lesson = make_lesson(context(), few, make_teacher(0).eval(), "all")
    assert len(lesson.basis_rows) == len(lesson.foreign) == 50
    mean = coordinates(lesson, "pca", 0, 5).mean_
    np.testing.assert_allclose(mean, lesson.features[lesson.basis_rows].mean(0), atol=1e-5)
    with pytest.raises(ValueError, match="equally many pictures"):
        replace(lesson, foreign=lesson.foreign[:9])


def test_accuracy_asks_for_more_than_distillation_and_than_shuffled_axes(tmp_path):
    values = {"tailored": 60.0, "kd": 50.0, "shuffled-tailored": 60.5, "shuffled-again": 60.0}
    folder = tmp_path / "school-0"
    folder.mkdir()
    told = {"accuracies": {a: {"all": v} for a, v in values.items()} | {"teacher": {"all": 1.0}}}
    (folder / "accuracies.json").write_text(json.dumps({**told, "items": 3}))
    ctx = context(prepared_root=tmp_path)
    given = claim.beside(ctx, arm="")
    assert given.points == {"all, beside kd": 50.0, "all, beside shuffled-again": 60.0}
    ours = claim.beside(ctx, arm="tailored")
    assert set(ours.points.values()) == {60.0}
    rule = next(c.rule for c in parse_card(CARD.read_text("utf-8")).claims if c.id == "accuracy")
    arms = {
        name: {p: [v, v, v] for p, v in found.points.items()}
        for name, found in (("ours", ours), ("references", given))
    }
    # Ten points over distillation are worth nothing where shuffled axes do as well.
    assert apply_rule(rule, arms["ours"], arms["references"]).word == "does not hold"


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
