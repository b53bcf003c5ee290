"""The user's own drawings: what is read, what is left out and said, and what is kept."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from trialrun.claims.contract import Context, On
from trialrun.core.errors import UsageError
from trialrun.dossiers.pic2word import own, world
from trialrun.dossiers.pic2word.claim import TRIAL
from trialrun.representation.pic2word import load_clip

STYLES = ("ink", "wet_paint")


def picture(i, style):
    """Draw a square whose place tells the thing, in the colour of a style."""
    pixels = np.full((40, 40, 3), 255, dtype=np.uint8)
    x, y = 4 * (i % 8), 4 * (i // 8)
    pixels[y : y + 8, x : x + 8] = ((20, 20, 20), (200, 40, 90))[style]
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    for s, style in enumerate(STYLES):
        (root / style).mkdir()
        for i in range(own.LEAST):
            picture(i, s).save(root / style / f"thing-{i}.{('png', 'bmp')[s]}")
    return root


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "own")


def context(folder, tmp_path=None, budget="smoke", **changed):
    size = replace(TRIAL.budgets[budget], **changed)
    return Context(budget=size, seed=3, on=On("drawings", str(folder)), prepared_root=tmp_path)


def test_names_shared_by_all_styles_are_read_whatever_their_endings(original):
    read = own.read_own(original)
    assert read.drawings.images.shape == (own.LEAST, 2, 32, 32, 3)
    assert read.remarks == ()
    things = read.drawings.things
    assert things.styles == STYLES
    i = things.keys.index("thing-7")
    assert things.caption(i, style="wet_paint") == "a wet paint drawing of thing 7"
    assert things.captions()[0] == ["an ink drawing of thing 0", "a drawing of thing 0"]
    assert read.drawings.images[i, :, 3, 25].tolist() == [[20, 20, 20], [200, 40, 90]]


def test_pictures_are_cut_as_the_kept_clip_cuts_them(tmp_path):
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 90, 3), dtype=np.uint8))
    wide.save(tmp_path / "wide.png")
    half = own.Preprocess(own.SIZE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    mine = world.standardised(torch.from_numpy(own._square(str(tmp_path / "wide.png")))[None])[0]
    torch.testing.assert_close(mine, half(wide), rtol=0, atol=1e-6)


def test_damaged_unpaired_and_second_pictures_are_left_out_and_named(folder, capsys):
    for i in range(3):
        picture(60 + i, 0).save(folder / "ink" / f"more-{i}.png")
        picture(60 + i, 1).save(folder / "wet_paint" / f"more-{i}.png")
    (folder / "ink" / "thing-5.png").write_bytes(b"no picture")
    (folder / "ink" / "thing-6.png").unlink()
    picture(8, 0).save(folder / "ink" / "THING-8.bmp")
    read = own.read_own(folder)
    assert len(read.drawings.things) == own.LEAST + 1
    assert not {"thing-5", "thing-6"} & set(read.drawings.things.keys)
    TRIAL.check_on(context(folder))
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3
    assert "pictures that cannot be read, whose names are left out: 1 (ink/thing-5.png (" in told[0]
    assert told[1].endswith("names left out because some style lacks them: 1 (thing-6)")
    assert told[2].endswith("pictures left out because another has their name: 1 (ink/thing-8.png)")


def test_names_of_the_same_words_are_one_thing(folder, capsys):
    for s, style in enumerate(STYLES):
        for i in range(30):
            picture(59 - i, s).save(folder / style / f"thing_{i}.png")
    things = own.read_own(folder).drawings.things
    assert len(things) == len(set(things.phrases)) == own.LEAST
    assert not [key for key in things.keys if "_" in key]
    for seed in range(3):
        train, test = world.drawn(replace(context(folder, code_points=None), seed=seed))
        assert not set(train.things.phrases) & set(test.things.phrases)
    TRIAL.check_on(context(folder))
    (told,) = capsys.readouterr().err.splitlines()
    assert told.endswith(
        "names left out because another reads as the same words: 30 "
        "(thing_0 as thing-0, thing_1 as thing-1, thing_10 as thing-10, ...)"
    )


def test_a_second_name_stands_in_where_the_first_cannot_be_read(folder):
    picture(5, 0).save(folder / "ink" / "thing_5.png")
    picture(5, 1).save(folder / "wet_paint" / "thing_5.png")
    (folder / "ink" / "thing-5.png").write_bytes(b"no picture")
    read = own.read_own(folder)
    assert "thing_5" in read.drawings.things.keys
    assert len(read.remarks) == 1


def test_the_same_picture_under_two_names_is_counted_and_named(folder):
    shutil.copy(folder / "ink" / "thing-7.png", folder / "ink" / "thing-9.png")
    (said,) = own.read_own(folder).remarks
    assert said.endswith("what is held out may have been seen: 1 (thing-9 as thing-7)")
    # The same picture in both styles of one name is no leak.
    shutil.copy(folder / "ink" / "thing-7.png", folder / "wet_paint" / "thing-7.bmp")
    assert own.read_own(folder).remarks == (said,)
    for style, ending in zip(STYLES, ("png", "bmp")):
        for i in range(own.LEAST):
            picture(0, 0).save(folder / style / f"thing-{i}.{ending}")
    (said,) = own.read_own(folder).remarks
    assert f"been seen: {own.LEAST - 1} (" in said


def test_a_changed_picture_is_read_again(folder):
    before = own.read_own(folder).drawings.images[0, 0].copy()
    key = own.read_own(folder).drawings.things.keys[0]
    Image.new("RGB", (9, 9), (1, 2, 3)).save(folder / "ink" / f"{key}.png")
    assert not np.array_equal(own.read_own(folder).drawings.images[0, 0], before)


def _gone(folder):
    shutil.rmtree(folder)


def _one_style(folder):
    shutil.rmtree(folder / "ink")


def _too_few(folder):
    (folder / "ink" / "thing-0.png").unlink()


def _too_few_readable(folder):
    (folder / "ink" / "thing-0.png").write_bytes(b"")


def _empty_style(folder):
    (folder / "blank").mkdir()


def _alike(folder):
    (folder / "Ink_").mkdir()


def _no_words(folder):
    (folder / "__").mkdir()


def _same_words(folder):
    for style, ending in zip(STYLES, ("png", "bmp")):
        (folder / style / f"thing-1.{ending}").rename(folder / style / f"Thing_0.{ending}")


def _wordless(folder):
    for i, style in enumerate(STYLES):
        for name in ("--", "_", "-_-", "( )"):
            picture(i, i).save(folder / style / f"{name}.png")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_gone, r"own is not a folder: give one that holds a folder for each style"),
        (_one_style, "must hold a folder of pictures for each of at least two styles, got 1"),
        (
            _too_few,
            r"must share at least 60 names .*, got 59 \(pictures: ink 59, wet_paint 60; ",
        ),
        (
            _too_few_readable,
            r"got 59 \(pictures: ink 60, wet_paint 60; pictures that cannot .*: 1 ",
        ),
        (_empty_style, r"got 0 \(pictures: blank 0, ink 60, wet_paint 60"),
        (_alike, "the style folders 'Ink_' and 'ink' read as the same words, 'ink': rename one"),
        (_no_words, "the style folder '__' must be named in 1 to 8 words, got 0: rename it"),
        (
            _same_words,
            r"no two of the same words, got 59 \(.*another reads as the same words: 1 "
            r"\(thing_0 as thing-0\)\)$",
        ),
        (
            _wordless,
            r"must be named in words, .* got 4 without a letter or digit "
            r"\('\( \)', '--', '-_-', ...\): rename them or take them out$",
        ),
    ],
)
def test_folders_that_will_not_do_are_one_sentence(folder, spoil, said):
    spoil(folder)
    with pytest.raises(UsageError, match=said) as caught:
        TRIAL.check_on(context(folder))
    assert "\n" not in str(caught.value)


def test_a_model_alone_is_refused():
    with pytest.raises(UsageError, match="drawings of your own with --on FOLDER, not a model"):
        TRIAL.check_on(Context(budget=TRIAL.budgets["smoke"], seed=0, model="x"))


def test_names_are_held_out_by_seed_and_the_arms_run_on_them(original, tmp_path):
    ctx = context(original, tmp_path, code_points=40)
    train, test = world.drawn(ctx)
    assert len(train.things) == 28
    assert len(test.things) == 12
    assert not set(train.things.keys) & set(test.things.keys)
    assert world.drawn(replace(ctx, seed=4))[1].things.keys != test.things.keys
    folder = ctx.prepared("clip")
    folder.mkdir()
    world.prepare(ctx, folder)
    done = TRIAL.arms["composition"]["composed"](ctx)
    assert done.n == 2 * 12
    assert {"ink to wet_paint", "wet_paint to ink"} <= set(done.extra)
    assert TRIAL.resplit(ctx) == pytest.approx(3 / 7)


def test_what_is_kept_loads_and_finds_a_picture_in_the_style_asked_for(
    original, tmp_path, monkeypatch
):
    ctx = context(original, tmp_path, clip_steps=60, epochs=40)
    monkeypatch.chdir(original.parent)
    ctx = replace(ctx, on=On("drawings", original.name))
    lines = TRIAL.keep(ctx, tmp_path)
    monkeypatch.chdir(tmp_path)  # the lines run from anywhere, however the folder was given
    held = {}
    exec(lines, held)  # what the user is told to run
    assert torch.allclose(held["query"].norm(), torch.tensor(1.0))
    clip, prepare, _ = load_clip(tmp_path / "clip")
    gallery = [picture(i, s) for s in range(2) for i in range(own.LEAST)]
    features = clip.encode_image(torch.stack([prepare(one) for one in gallery]))
    best = (torch.nn.functional.normalize(features, dim=1) @ held["query"]).argmax()
    assert best >= own.LEAST  # wet paint, as asked for
