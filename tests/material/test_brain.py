import numpy as np
import pytest

from trialrun.core.errors import UsageError
from trialrun.material import _brain_files
from trialrun.material import brain as material
from trialrun.material.brain import (
    ORGANS,
    SEQUENCES,
    TISSUES,
    deform,
    load_brain,
    make_subject,
    paint,
    spin_echo,
)


@pytest.fixture(scope="module")
def brain():
    return load_brain()


def test_labels_lie_at_the_right_side_and_depth_of_the_head(brain):
    assert brain.t1.shape == brain.labels.shape == material.SHAPE
    middles = {}
    for number, organ in enumerate(ORGANS, start=1):
        places = np.argwhere(brain.labels == number)
        assert len(places) > 800
        assert (brain.t1[brain.labels == number] > 0).mean() > 0.95
        middles[organ] = places.mean(axis=0)
        off = middles[organ][2] - 39.5
        assert abs(off) < 2 if organ == "cerebellum" else off < -3
    # Slices go up, rows go back.
    assert middles["cerebellum"][0] < middles["left hippocampus"][0] < middles["left thalamus"][0]
    assert middles["left caudate"][1] < middles["left thalamus"][1] < middles["cerebellum"][1]


def test_tissue_maps_agree_with_the_picture_they_belong_to(brain):
    white, grey = brain.white > 0.9, brain.grey > 0.9
    fluid = (brain.t1 > 0.02) & (brain.grey + brain.white < 0.1)
    means = [brain.t1[where].mean() for where in (white, grey, fluid)]
    assert means[0] > means[1] > means[2]


def test_painted_contrasts_have_the_order_of_the_signal_equation(brain):
    for contrast in material.PAINTED:
        image = paint(brain, contrast, 0, bias=0.0, noise=0.0)
        measured = [image[brain.white > 0.95].mean(), image[brain.grey > 0.95].mean()]
        signals = {name: spin_echo(TISSUES[name], SEQUENCES[contrast]) for name in TISSUES}
        top = max(signals.values())
        np.testing.assert_allclose(
            measured, [signals["white"] / top, signals["grey"] / top], atol=0.02
        )
        assert measured[0] < measured[1]


def test_noise_is_rician_where_there_is_no_head(brain):
    image = paint(brain, "t2", 0, noise=0.05)
    outside = image[brain.t1 == 0]
    # A Rayleigh distribution: mean sigma x sqrt(pi / 2).
    assert outside.mean() == pytest.approx(0.05 * np.sqrt(np.pi / 2), rel=0.02)


def test_a_seed_gives_one_anatomy_in_every_contrast_and_others_differ(brain):
    t1, again, t2 = (make_subject(brain, 4, contrast=c) for c in ("t1", "t1", "t2"))
    np.testing.assert_array_equal(t1.image, again.image)
    np.testing.assert_array_equal(t1.labels, t2.labels)
    assert (t1.synthetic, t2.synthetic) == (False, True)
    other = make_subject(brain, 5)
    assert 0.02 < (other.labels != t1.labels).mean() < 0.3
    assert set(np.unique(other.labels)) == set(range(7))


def test_deforming_by_nothing_changes_nothing(brain):
    same = deform(brain, 1, amplitude=0.0, scale=0.0, shift=0.0, degrees=0.0)
    np.testing.assert_array_equal(same.labels, brain.labels)
    np.testing.assert_allclose(same.t1, brain.t1, atol=1e-6)


def test_the_cache_gives_what_was_built(tmp_path, brain):
    fresh = load_brain(cache=tmp_path)
    np.testing.assert_array_equal(fresh.t1, brain.t1)
    assert {p.suffix for p in tmp_path.iterdir()} == {".npy"}
    _brain_files._load.cache_clear()
    np.testing.assert_array_equal(load_brain(cache=tmp_path).labels, brain.labels)
    with pytest.raises(ValueError, match="read-only"):
        fresh.t1[0] = 1


def test_unknown_contrasts_and_wild_settings_get_one_sentence(brain):
    with pytest.raises(UsageError, match="contrast must be one of t1, t1-other, t2, pd"):
        make_subject(brain, 0, contrast="ct")
    with pytest.raises(UsageError, match="contrast must be one of t2, pd"):
        paint(brain, "t1", 0)
    with pytest.raises(ValueError, match="rough must be at least 2 voxels"):
        deform(brain, 0, rough=1.0)
    with pytest.raises(ValueError, match="times must be positive"):
        spin_echo(TISSUES["grey"], material.SpinEcho(0.0, 10.0))
