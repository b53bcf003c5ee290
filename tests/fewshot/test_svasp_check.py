"""What the check of svasp is tried on: styles, emoji, and the user's own pictures."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from trialrun.catalogue import find_card
from trialrun.claims.contract import Context, On
from trialrun.claims.judge import apply_rule
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


def draw(root, classes, pictures, side=12, first=0):
    """Fill a folder: each class has a brightness of its own, by which a picture tells its class."""
    for number in range(first, first + classes):
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


def told(tmp_path, **targets):
    """Write down accuracies of networks, as a run does before it reads them."""
    (tmp_path / "networks-0").mkdir()
    found = {"judged": SHIFTED, **{name: {"targets": rows} for name, rows in targets.items()}}
    (tmp_path / "networks-0" / "found.json").write_text(json.dumps(found))
    return context(prepared_root=tmp_path)


def test_natural_judges_emoji_alone_and_leaves_the_other_claims_as_they_were(tmp_path):
    targets = dict.fromkeys(SHIFTED, 50.0) | {"clean": 90.0, "digits": 40.0}
    ctx = told(tmp_path, svasp=targets | dict(zip(DRAWERS, (30.0, 33.0, 36.0))))
    natural = claim.natural(ctx, name="svasp")
    assert natural.points == {"beside unmoved": 33.0, "beside none": 33.0}
    assert natural.extra["digits"] == 40.0
    attack = claim.accuracy(ctx, name="svasp")
    assert attack.points == {"value": 50.0}
    assert set(attack.extra) == {*SHIFTED, "clean", "digits"}


@pytest.mark.parametrize(
    ("unmoved", "none", "word"), [(30, 30, "holds"), (30, 34, "does not hold"), (34, 30, "does")]
)
def test_natural_asks_to_be_ahead_of_both_references(tmp_path, unmoved, none, word):
    arms = {"svasp": 33, "unmoved": unmoved, "none": none}
    ctx = told(tmp_path, **{name: dict.fromkeys(DRAWERS, value) for name, value in arms.items()})
    card = {one.id: one for one in find_card("svasp").claims}["natural"]
    ours, both = (claim.natural(ctx, name=name) for name in ("svasp", card.rule.against))
    wobble = (0.01, -0.01, 0.0)
    found = apply_rule(
        card.rule,
        {point: [value + step for step in wobble] for point, value in ours.points.items()},
        {point: [value] * 3 for point, value in both.points.items()},
    )
    assert found.word.startswith(word)
    assert both.extra == {}


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
    draw(tmp_path / "target", 5, 16, first=6)
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
    lines = own.keep(ctx, kept)
    assert "read_pictures('FOLDER')" in lines
    exec(lines, names)
    assert names["backbone"].eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 64)


def test_a_run_says_which_way_a_folder_was_read(tmp_path, capsys):
    one, pair = draw(tmp_path / "one", 10, 16), tmp_path / "pair"
    draw(pair / "source", 5, 8)
    draw(pair / "target", 5, 16, first=5)
    own.check_on(context(one))
    assert "read as one folder of classes" in capsys.readouterr().err
    own.check_on(context(pair))
    said = capsys.readouterr().err
    assert "read as source and target: all of source is trained on" in said
    assert said.count("trialrun:") == 1
    runs = tmp_path / "run"
    (runs / "networks-0").mkdir(parents=True)
    for folder, judged, point in (
        (one, SHIFTED, "held-out classes, restyled"), (pair, ("target",), "target as it is"),
    ):  # fmt: skip
        found = {"judged": judged, "svasp": {"targets": dict.fromkeys(judged, 40.0)}}
        (runs / "networks-0" / "found.json").write_text(json.dumps(found))
        ctx = context(folder, prepared_root=runs)
        assert claim.accuracy(ctx, name="svasp").points == {point: 40.0}


def test_pictures_in_source_and_target_and_classes_of_one_name_are_counted(tmp_path, capsys):
    draw(tmp_path / "source", 5, 9)
    target = draw(tmp_path / "target", 5, 16, first=4)
    own.check_on(context(tmp_path))
    said = capsys.readouterr().err
    assert "9 of 80 pictures of target are in source as well, so they were seen" in said
    assert "c04/0.png, c04/1.png, c04/10.png, ..." not in said  # the tenth is target's own
    assert "c04/0.png, c04/1.png, c04/2.png, ..." in said
    assert "1 of 5 classes of target have the name of a class of source" in said
    for path in (target / "c04").glob("1?.png"):
        path.unlink()
    for path in (target / "c04").glob("9.png"):
        path.unlink()
    for i in range(9):  # the source's own pictures, some of them twice, under other names
        shutil.copy(tmp_path / "source" / "c04" / f"{i}.png", target / "c04" / f"again{i}.png")
    with pytest.raises(UsageError, match=r"c04 of target .* all 18 .* class c04 of source"):
        own.check_on(context(tmp_path))


def test_copies_across_classes_are_counted_and_a_copied_class_is_refused(tmp_path, capsys):
    folder = draw(tmp_path, 10, 17)
    for i in range(3):
        shutil.copy(folder / "c03" / f"{i}.png", folder / "c05" / f"of{i}.png")
    own.check_on(context(folder))
    assert "6 pictures are in two or more classes: c03/0.png, c03/1.png" in capsys.readouterr().err
    shutil.copytree(folder / "c03", folder / "other name")
    with pytest.raises(UsageError, match=r"class c03 .* of its own, but all 17 .* other name as"):
        own.check_on(context(folder))


def test_a_kept_backbone_reads_pictures_as_it_was_trained_on_them(tmp_path):
    folder = draw(tmp_path, 10, 16, side=45)
    found = own.read_pictures(folder)
    own_pictures = own.own_world(replace(context(folder)), On("images", str(folder)))
    trained = {bytes((x * 255).round().byte().numpy()) for x in own_pictures.base.images}
    assert trained <= {bytes(x.numpy()) for x in found.images}


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
