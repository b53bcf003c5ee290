import numpy as np
import pytest

from trialrun.core.errors import MissingExtra, UsageError
from trialrun.material import _glyph_shapes as shapes
from trialrun.material import _rasters
from trialrun.material.glyphs import GlyphSet, load_glyphs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def glyphs(folder) -> GlyphSet:
    return load_glyphs(("latin", "greek", "thai"), drawers=("regular-upright",), cache=folder)


def test_the_22_scripts_hold_2_800_letters():
    counts = [len(shapes.characters(script)) for script in shapes.SCRIPTS]
    assert sum(counts) > 2800
    assert min(counts) >= 30


def test_every_letter_is_drawn_and_no_two_look_alike(glyphs):
    assert glyphs.images.shape == (len(glyphs), 1, 32, 32)
    drawn = glyphs.images.reshape(len(glyphs), -1)
    assert (drawn.min(1) < 128).all()
    assert len(np.unique(drawn, axis=0)) == len(glyphs)
    assert "A" in glyphs.characters
    assert "\N{GREEK CAPITAL LETTER ALPHA}" not in glyphs.characters
    assert "é" not in glyphs.characters


def test_no_letter_touches_the_edge_in_any_shape():
    every = load_glyphs(limit=100, seed=3, size=24)
    edges = [every.images[..., 0, :], every.images[..., -1, :]]
    edges += [every.images[..., 0], every.images[..., -1]]
    assert min(edge.min() for edge in edges) > 128
    assert every.drawers == shapes.FOR_EVERY_SCRIPT
    assert set(every.scripts) == set(shapes.SCRIPTS)


def test_a_bold_letter_has_more_ink_and_a_narrow_one_is_narrower():
    drawers = ("regular-upright", "bold-upright", "regular-narrow", "regular-slanted")
    one = load_glyphs(("latin",), drawers=drawers, limit=40)
    ink = (255 - one.images.astype(float)).sum((0, 2, 3))
    assert ink[1] > 1.2 * ink[0]
    wide = (one.images.min(2) < 200).sum((0, 2))
    assert wide[2] < 0.85 * wide[0]
    assert not np.array_equal(one.images[:, 3], one.images[:, 0])


def test_slanting_moves_the_top_to_the_right_and_keeps_the_middle():
    bar = load_glyphs(("latin",), drawers=("bold-upright", "bold-slanted", "bold-leaning"), size=64)
    upright, slanted, leaning = 255 - bar.images[bar.characters.index("I")].astype(float)
    across = np.arange(64)

    def lean(picture):
        rows = np.flatnonzero(picture.sum(1) > 100)
        first, last = rows[2], rows[-3]
        return [picture[row] @ across / picture[row].sum() for row in (first, last)]

    assert lean(slanted)[0] - lean(slanted)[1] > 6
    assert lean(leaning)[1] - lean(leaning)[0] > 6
    assert abs(lean(upright)[0] - lean(upright)[1]) < 0.5
    assert abs(np.mean(lean(slanted)) - np.mean(lean(upright))) < 1


def test_the_file_gives_the_same_pictures_as_drawing_did(glyphs, folder):
    again = load_glyphs(glyphs_scripts(), drawers=glyphs.drawers, cache=folder)
    np.testing.assert_array_equal(again.images, glyphs.images)
    few = load_glyphs(glyphs_scripts(), drawers=glyphs.drawers, limit=9, cache=folder)
    drawn = load_glyphs(glyphs_scripts(), drawers=glyphs.drawers, limit=9, cache=folder / "empty")
    np.testing.assert_array_equal(few.images, drawn.images)
    assert [few.scripts.count(name) for name in glyphs_scripts()] == [3, 3, 3]
    rows = [glyphs.characters.index(letter) for letter in few.characters]
    np.testing.assert_array_equal(few.images, glyphs.images[rows])


def glyphs_scripts():
    return ("latin", "greek", "thai")


def test_italics_are_the_designers_own():
    drawers = ("regular-upright", "regular-italic")
    both = load_glyphs(("cyrillic",), drawers=drawers, limit=20)
    assert not np.array_equal(both.images[:, 0], both.images[:, 1])
    with pytest.raises(UsageError, match="need scripts of latin, greek, cyrillic, got thai"):
        load_glyphs(("latin", "thai"), drawers=drawers)


def test_a_split_is_disjoint_whole_and_even_over_scripts(glyphs):
    split = glyphs.split(seed=1)
    assert sorted(np.concatenate(split)) == list(range(len(glyphs)))
    for part, fraction in zip(split, (0.6, 0.2, 0.2)):
        assert abs(len(part) - fraction * len(glyphs)) <= 1.5
        thai = [i for i, name in enumerate(glyphs.scripts) if name == "thai"]
        assert abs(np.isin(thai, part).sum() - fraction * len(thai)) < 2
    some = glyphs.take(split[2])
    assert some.characters[0] == glyphs.characters[split[2][0]]
    np.testing.assert_array_equal(some.images, glyphs.images[split[2]])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"scripts": ("latin", "runes")}, "scripts must be different names .* got 'runes'"),
        ({"drawers": ("bold-wavy",)}, "drawers must be different names .* got 'bold-wavy'"),
        ({"size": 4}, "size must be 8 to 512 whole pixels, got 4"),
        ({"scripts": ("thai",), "limit": 99}, "limit must be 1 to 5. characters, got 99"),
    ],
)
def test_wrong_settings_are_named(settings, sentence):
    with pytest.raises(UsageError, match=sentence):
        load_glyphs(**settings)


def test_a_missing_package_names_its_extra(monkeypatch):
    def gone(package):
        raise _rasters.PackageNotFoundError(package)

    monkeypatch.setattr("trialrun.material._rasters.version", gone)
    with pytest.raises(MissingExtra, match=r"trialrun\[pictures\]"):
        load_glyphs(limit=30)
