"""What the check of svasp is tried on: styles, emoji, and the user's own pictures."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from trialrun.claims.contract import Context, On
from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng
from trialrun.dossiers.svasp import claim, own
from trialrun.dossiers.svasp.networks import arms_of_training, train, warm_started
from trialrun.dossiers.svasp.styles import SHIFTED, STYLES
from trialrun.dossiers.svasp.worlds import DRAWERS, LEAST, MOST, letter_world
from trialrun.fewshot.svasp import Conv4, CosineHead, FewShotModel, attacked_pixels, draw_styles

BUDGET = replace(claim.TRIAL.budgets["smoke"], warm=1, probe=4, test_episodes=2)


def context(folder=None, **settings):
    on = None if folder is None else On("images", str(folder))
    return Context(budget=BUDGET, seed=0, on=on, **settings)


def draw(root, classes, pictures, side=12):
    """Fill a folder: each class has a brightness of its own, by which a picture tells its class."""
    for number in range(classes):
        folder = root / f"c{number:02d}"
        folder.mkdir(parents=True)
        for i in range(pictures):
            pixels = np.full((side, side, 3), 10 * number, dtype=np.uint8)
            pixels[i % side, i // side] = 255
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def classes_in(pictures):
    return set((pictures.images.flatten(1).median(dim=1).values * 25.5).round().int().tolist())


@pytest.mark.parametrize("style", sorted(STYLES))
def test_grey_pictures_in_three_planes_are_restyled_as_letters_are(style):
    ink = rng(0, "ink").random((4, 1, 8, 8), dtype=np.float32)
    one = STYLES[style](ink, rng(1, style))
    three = STYLES[style](np.repeat(ink, 3, axis=1), rng(1, style))
    assert one.shape == three.shape == (4, 3, 8, 8)
    assert one.dtype == three.dtype == np.float32
    np.testing.assert_allclose(one, three, atol=1e-6)
    assert one.min() >= 0
    assert one.max() <= 1


def test_emoji_are_the_same_code_points_in_every_drawer_and_fill_their_classes():
    targets = letter_world(context()).targets
    first, *others = (targets[drawer] for drawer in DRAWERS)
    counts = np.bincount(first.labels)
    assert counts.min() >= LEAST
    assert counts.max() <= MOST
    for other in others:
        assert (other.labels == first.labels).all()
        assert not torch.equal(other.images, first.images)


def test_natural_judges_emoji_alone_and_leaves_the_other_claims_as_they_were(tmp_path):
    targets = dict.fromkeys(SHIFTED, 50.0) | {"clean": 90.0, "digits": 40.0}
    targets |= dict(zip(DRAWERS, (30.0, 33.0, 36.0)))
    (tmp_path / "networks-0").mkdir()
    told = {"judged": SHIFTED, "svasp": {"targets": targets}}
    (tmp_path / "networks-0" / "found.json").write_text(json.dumps(told))
    ctx = context(prepared_root=tmp_path)
    natural = claim.natural(ctx, name="svasp")
    assert natural.points == {"value": 33.0}
    assert natural.extra["digits"] == 40.0
    attack = claim.accuracy(ctx, name="svasp")
    assert attack.points == {"value": 50.0}
    assert set(attack.extra) == {*SHIFTED, "clean", "digits"}


def test_one_folder_is_split_by_class_and_the_held_out_classes_are_restyled(tmp_path):
    ctx = context(draw(tmp_path, 12, 16))
    world = claim.make_world(ctx)
    assert list(world.targets) == list(STYLES)
    assert world.judged == SHIFTED
    novel, base = classes_in(world.targets["clean"]), classes_in(world.base)
    assert len(novel) == 5
    assert len(base) == 7
    assert not novel & base
    again = classes_in(claim.make_world(replace(ctx, seed=1)).base)
    assert again != base
    assert own.resplit(ctx) == 5 / 7


def test_a_folder_of_source_and_target_is_trained_on_the_one_and_tested_on_the_other(tmp_path):
    draw(tmp_path / "source", 6, 9)
    draw(tmp_path / "target", 5, 16)
    ctx = context(tmp_path)
    world = claim.make_world(ctx)
    assert world.judged == ("target",)
    assert (len(world.base.labels), len(world.targets["target"].labels)) == (54, 80)
    assert own.resplit(ctx) == 0
    assert (world.base.labels == claim.make_world(replace(ctx, seed=1)).base.labels).all()


def test_no_class_takes_more_than_its_share(tmp_path, monkeypatch):
    monkeypatch.setattr(own, "MOST", 17)
    world = claim.make_world(context(draw(tmp_path, 10, 20)))
    assert set(np.bincount(world.base.labels)) == {17}


def test_damaged_pictures_are_counted_and_named_and_the_backbone_is_kept(tmp_path, capsys):
    folder = draw(tmp_path / "own", 10, 16)
    (folder / "c03" / "bad.png").write_bytes(b"nothing")
    ctx = context(folder)
    own.check_on(ctx)
    said = capsys.readouterr().err
    assert "1 files could not be read as pictures and were skipped: c03/bad.png" in said
    kept = tmp_path / "kept"
    kept.mkdir()
    names: dict = {}
    exec(own.keep(ctx, kept), names)
    assert names["backbone"].eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 64)


@pytest.mark.parametrize(
    ("classes", "pictures", "said"),
    [
        (1, 16, "at least two classes, got 1"),
        (9, 16, "at least 10 classes, got 9: 5 are trained on and 5 held out"),
        (10, 15, "c00 in .* must hold at least 16 pictures, got 15"),
    ],
)
def test_too_little_is_refused_in_a_sentence(tmp_path, classes, pictures, said):
    with pytest.raises(UsageError, match=said):
        own.check_on(context(draw(tmp_path, classes, pictures)))


def test_a_target_too_small_and_a_file_and_a_model_are_refused(tmp_path):
    draw(tmp_path / "source", 5, 8)
    draw(tmp_path / "target", 4, 16)
    with pytest.raises(UsageError, match=r"target must hold .* at least 5 classes, got 4"):
        own.check_on(context(tmp_path))
    with pytest.raises(UsageError, match="is not a folder"):
        own.check_on(context(tmp_path / "source" / "c00" / "0.png"))
    with pytest.raises(UsageError, match="takes pictures of your own with --on"):
        own.check_on(context(model="dino"))


def test_the_cosine_arm_is_trained_and_tested_with_a_cosine_head(tmp_path):
    ctx = context(draw(tmp_path, 10, 16))
    world = claim.make_world(ctx)
    model = warm_started(ctx, world.base)
    plain = {name: part.clone() for name, part in model.backbone.state_dict().items()}
    train(ctx, model, world.base, arms_of_training()["svasp-cosine"])
    assert isinstance(model.head, CosineHead)
    assert float(model.head.temperature.detach()) != 10
    now = model.backbone.state_dict()
    assert not torch.equal(now["layer1.0.weight"], plain["layer1.0.weight"])


def test_a_sheet_shows_every_column_under_its_heading():
    model = FewShotModel(Conv4(widths=(4, 4, 4, 6)), classes=5)
    x, y = (
        torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 4]),
    )
    moved = attacked_pixels(model, x, y)
    assert model.training
    assert 0 <= float(moved.min()) < float(moved.max()) <= 1
    assert not torch.equal(moved, attacked_pixels(model, x, y, preset="noise"))
    sheet = np.asarray(draw_styles({"a": x, "b": moved}, scale=2))
    assert sheet.shape == (2 * 64 + 16, 2 * 64, 3)
    lower = torch.from_numpy(sheet[16::2, 64::2].copy()).permute(2, 0, 1)
    assert torch.equal(lower[:, 32:], (moved[1] * 255).round().byte())
    for column in (sheet[:16, :64], sheet[:16, 64:]):
        assert column.min() < 128
    with pytest.raises(UsageError, match="all of one shape, got none"):
        draw_styles({})
