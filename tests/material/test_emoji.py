import sys

import numpy as np
import pytest

from trialrun.core.errors import MissingExtra, NotRunnable, UsageError
from trialrun.material import _rasters, pulling
from trialrun.material._emoji_names import with_article
from trialrun.material._emoji_styles import style_named
from trialrun.material.emoji import EmojiSet, load_emoji

FOX = "\N{FOX FACE}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def emoji(folder) -> EmojiSet:
    return load_emoji(size=16, cache=folder)


def test_every_code_point_has_one_picture_a_style_and_no_two_look_alike(emoji):
    assert emoji.images.shape == (len(emoji), 3, 16, 16, 3)
    assert len(emoji) == len(set(emoji.code_points)) > 1600
    for style in range(3):
        drawn = emoji.images[:, style].reshape(len(emoji), -1)
        assert (drawn.min(1) < 255).all()
        assert len(np.unique(drawn, axis=0)) == len(emoji)


def test_there_are_no_skin_tones_and_every_emoji_has_a_group(emoji):
    assert not any(chr(tone) in "".join(emoji.code_points) for tone in range(0x1F3FB, 0x1F400))
    assert len(set(emoji.groups)) == 9
    assert all(emoji.subgroups)


def test_names_are_unique_and_bilingual(emoji):
    fox = emoji.code_points.index(FOX)
    assert (emoji.names["en"][fox], emoji.names["zh"][fox]) == ("fox", "狐狸")
    assert all(len(set(emoji.names[lang])) == len(emoji) for lang in ("en", "zh"))
    assert (emoji.groups[fox], emoji.subgroups[fox]) == ("Animals & Nature", "animal-mammal")


def test_captions_name_the_style_or_leave_it_out(emoji):
    fox = emoji.code_points.index(FOX)
    assert emoji.caption(fox, "noto-line") == "a Noto line drawing of a fox"
    assert emoji.caption(fox, None) == "a drawing of a fox"
    assert emoji.caption(fox, "twemoji", "zh") == "一幅 Twemoji 风格的狐狸图画"
    assert emoji.caption(fox, None, "zh") == "一幅狐狸图画"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ant", "an ant"),
        ("unicorn", "a unicorn"),
        ("hourglass done", "an hourglass done"),
        ("grapes", "grapes"),
        ("cooked rice", "cooked rice"),
        ("bus", "a bus"),
        ("face with tears of joy", "a face with tears of joy"),
        ("flag of Sweden", "the flag of Sweden"),
        ("SOS button", "an SOS button"),
    ],
)
def test_articles(name, said):
    assert with_article(name) == said


def test_the_file_gives_the_same_pictures_as_drawing_did(emoji, folder):
    again = load_emoji(size=16, cache=folder)
    np.testing.assert_array_equal(again.images, emoji.images)
    few = load_emoji(size=16, limit=20, seed=1, cache=folder)
    drawn = load_emoji(size=16, limit=20, seed=1, cache=folder / "empty")
    np.testing.assert_array_equal(few.images, drawn.images)
    assert not (folder / "empty").exists()
    rows = [emoji.code_points.index(text) for text in few.code_points]
    np.testing.assert_array_equal(few.images, emoji.images[rows])


@pytest.mark.parametrize("harm", [b"", b"\x93NUMPY", None])
def test_a_broken_file_is_drawn_again(tmp_path, harm):
    path = tmp_path / "x.npy"
    pixels = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    _rasters.write(path, pixels)
    whole = path.read_bytes()
    # One changed byte in the middle of the array is found by the sum at the end.
    path.write_bytes(whole[:-6] + b"\x07" + whole[-5:] if harm is None else harm)
    assert _rasters.read(path, (1, 2, 2, 3)) is None
    np.testing.assert_array_equal(_rasters.kept(path, pixels.shape, lambda: pixels), pixels)
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["x.npy"]


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="could not be kept"):
        _rasters.write(tmp_path / "file" / "x.npy", np.zeros((1, 8, 8), np.uint8))


def test_a_split_is_disjoint_whole_and_even_over_sub_categories(emoji):
    train, test = emoji.split(held_out=0.3, seed=4)
    assert sorted([*train, *test]) == list(range(len(emoji)))
    assert abs(len(test) - 0.3 * len(emoji)) <= 1
    for group in set(emoji.subgroups):
        members = [i for i, name in enumerate(emoji.subgroups) if name == group]
        assert abs(np.isin(members, test).sum() - 0.3 * len(members)) < 2
    np.testing.assert_array_equal(emoji.split(0.3, 4)[1], test)
    assert not np.array_equal(emoji.split(0.3, 5)[1], test)


def test_a_limit_is_spread_over_sub_categories(emoji, folder):
    few = load_emoji(size=16, limit=120, seed=0, cache=folder)
    counts = [few.subgroups.count(name) for name in set(emoji.subgroups)]
    assert min(counts) >= 1
    assert max(counts) <= 2
    assert list(few.code_points) == [c for c in emoji.code_points if c in set(few.code_points)]
    other = load_emoji(size=16, limit=120, seed=1, cache=folder)
    assert other.code_points != few.code_points


def test_sub_categories_can_be_chosen(emoji, folder):
    some = load_emoji(size=16, subgroups=("drink", "hotel"), cache=folder)
    rows = [i for i, name in enumerate(emoji.subgroups) if name in ("drink", "hotel")]
    np.testing.assert_array_equal(some.images, emoji.images[rows])
    with pytest.raises(UsageError, match=r"subgroups must be different names .* got 'soup'"):
        load_emoji(size=16, subgroups=("soup",))


def test_taking_some_keeps_their_order(emoji):
    some = emoji.take([5, 2])
    assert some.code_points == (emoji.code_points[5], emoji.code_points[2])
    assert some.names["zh"][1] == emoji.names["zh"][2]
    np.testing.assert_array_equal(some.images[1], emoji.images[2])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"styles": ("openmoji", "comic")}, "different names of openmoji, .*; got 'comic'"),
        ({"styles": ()}, "styles must be different names"),
        ({"styles": ("twemoji", "twemoji")}, "styles must be different names"),
        ({"size": 7}, "size must be 8 to 512 whole pixels, got 7"),
        ({"size": 16.0}, "whole pixels, got 16.0"),
        ({"limit": 0}, "limit must be 1 to 1691 code points, got 0"),
        ({"limit": 5000}, "limit must be 1 to 1691 code points, got 5000"),
    ],
)
def test_wrong_settings_are_named(settings, sentence):
    with pytest.raises(UsageError, match=sentence):
        load_emoji(**settings)


def test_wrong_questions_are_named(emoji):
    with pytest.raises(UsageError, match="lang must be different names of en, zh; got 'sv'"):
        emoji.caption(0, lang="sv")
    with pytest.raises(UsageError, match=r"style must be .* got 'comic'"):
        emoji.caption(0, "comic")
    with pytest.raises(UsageError, match="add up to 1"):
        emoji.split(held_out=1.0)
    with pytest.raises(UsageError, match="1 are too few to split"):
        emoji.take([0]).split()


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setattr("trialrun.material._rasters.version", _gone)
    with pytest.raises(MissingExtra, match=r"trialrun\[pictures\]"):
        load_emoji(("openmoji",), limit=1)


def _gone(package):
    raise _rasters.PackageNotFoundError(package)


def test_a_missing_renderer_names_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(MissingExtra, match=r"trialrun\[pictures\]"):
        load_emoji(("openmoji",), limit=1, cache=tmp_path)


def test_another_version_than_the_pinned_is_refused(monkeypatch):
    monkeypatch.setattr("trialrun.material._rasters.version", lambda _: "1.0")
    with pytest.raises(NotRunnable, match=r"must be version .*, got 1.0: run pip install"):
        load_emoji(("openmoji",), limit=1)


def test_a_style_that_was_not_pulled_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("TRIALRUN_DATA", str(tmp_path))
    style_named.cache_clear()
    with pytest.raises(NotRunnable, match="run trialrun data pull noto-emoji"):
        load_emoji(("noto",), limit=1)
    assert pulling.pull_command("emoji") == "pip install 'trialrun[pictures]'"


def _icon_set(folder, icons):
    folder.mkdir(parents=True)
    (folder / "PACK").write_text("")
    (folder / "chars.json").write_text('{"1f98a": "fox-face"}')
    (folder / "icons.json").write_text(icons)


def test_an_icon_set_is_drawn_through_its_aliases(monkeypatch, tmp_path):
    monkeypatch.setenv("TRIALRUN_DATA", str(tmp_path))
    icons = (
        '{"width": 4, "height": 4, "aliases": {"fox-face": {"parent": "fox"}}, '
        '"icons": {"fox": {"body": "<path fill=\\"#f00\\" d=\\"M0 0h2v4h-2z\\"/>"}}}'
    )
    _icon_set(tmp_path / "noto-emoji-1.2.9", icons)
    style_named.cache_clear()
    drawn = load_emoji(("noto",), size=8)
    style_named.cache_clear()
    assert drawn.code_points == (FOX,)
    assert (drawn.images[0, 0, :, :4] == (255, 0, 0)).all()
    assert (drawn.images[0, 0, :, 4:] == 255).all()


def test_a_broken_icon_set_says_how_to_get_it_again(monkeypatch, tmp_path):
    monkeypatch.setenv("TRIALRUN_DATA", str(tmp_path))
    _icon_set(tmp_path / "noto-emoji-1.2.9", '{"icons": {')
    style_named.cache_clear()
    with pytest.raises(
        NotRunnable, match=r"remove the folder .* run trialrun data pull noto-emoji"
    ):
        load_emoji(("noto",), size=8)
    style_named.cache_clear()
