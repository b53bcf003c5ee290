"""Generated curves and MNIST pixels: the same function at any rate, and what is refused."""

import numpy as np
import pytest

from trialrun.core.errors import MissingExtra, NotRunnable
from trialrun.material import digits
from trialrun.material.curves import band_limited_noise, pen_strokes
from trialrun.material.digits import load_digits, pixel_sequences


def test_noise_is_one_function_whatever_the_rate_and_has_no_frequency_above_its_band():
    noise = band_limited_noise(5, seed=0, cycles=8)
    coarse, fine = noise.sampled(100), noise.sampled(300)
    np.testing.assert_allclose(coarse, fine[:, 1::3], atol=1e-12)
    spectrum = np.abs(np.fft.rfft(fine))
    assert spectrum[:, 9:].max() < 1e-9
    assert spectrum[:, 0].max() < 1e-9
    assert band_limited_noise(4000, seed=1).sampled(7).var() == pytest.approx(1, rel=0.05)


def test_strokes_are_one_curve_whatever_the_rate_and_classes_differ():
    strokes = pen_strokes(200, seed=0)
    coarse, fine = strokes.sampled(33), strokes.sampled(65)
    np.testing.assert_allclose(coarse, fine[:, ::2], atol=1e-12)
    assert set(strokes.y) == set(range(10))
    other = pen_strokes(200, seed=0, draw="test")
    assert not np.array_equal(other.control, strokes.control)
    means = np.stack([coarse[strokes.y == c].mean(0) for c in range(10)])
    found = ((other.sampled(33)[:, None] - means) ** 2).sum((2, 3)).argmin(1)
    assert (found == other.y).mean() > 0.9


def test_a_stroke_is_smooth_in_its_velocity():
    fine = pen_strokes(20, seed=1).sampled(2001)
    velocity = np.diff(fine, axis=1)
    assert np.abs(np.diff(velocity, axis=1)).max() < 0.02 * np.abs(velocity).max()


def test_digits_come_in_ten_equal_classes():
    found = load_digits()
    assert found.pixels.shape == (5000, 28, 28)
    assert found.pixels.dtype == np.float32
    assert (found.pixels.min(), found.pixels.max()) == (0.0, 1.0)
    assert np.bincount(found.y).tolist() == [500] * 10


def test_pixels_are_read_row_by_row_and_pooled_by_squares():
    image = np.zeros((1, 28, 28), dtype=np.float32)
    image[0, 0, 3], image[0, 5, 1] = 1, 0.5
    plain = pixel_sequences(image)
    assert plain.shape == (1, 784, 1)
    assert plain[0, 3, 0] == 1
    assert plain[0, 5 * 28 + 1, 0] == 0
    pooled = pixel_sequences(image, pool=2)
    assert pooled[0, 1, 0] == -0.5
    assert pooled[0, 2 * 14, 0] == -0.75


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: band_limited_noise(0, seed=0), "signals must be at least 1, got 0"),
        (lambda: band_limited_noise(1, seed=0, cycles=0), "cycles must be at least 1"),
        (lambda: band_limited_noise(1, seed=0).sampled(0), "length must be at least 1"),
        (lambda: band_limited_noise(1.5, seed=0), "signals must be a whole number, got 1.5"),
        (lambda: pen_strokes(3, seed=0, classes=1), "classes must be at least 2"),
        (lambda: pen_strokes(3, seed=0, wobble=-1), "wobble must be at least 0"),
        (lambda: pen_strokes(3, seed=0).sampled(1), "length must be at least 2"),
        (lambda: pixel_sequences(np.zeros((1, 28, 28), np.float32), pool=3), "pool must divide"),
    ],
)
def test_bad_sizes_are_one_clear_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_missing_package_or_another_file_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(digits, "find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"pip install 'trialrun\[data\]'"):
        load_digits()
    monkeypatch.setattr(digits, "_file", lambda: tmp_path / "nothing")
    with pytest.raises(NotRunnable, match="must have the SHA-256"):
        load_digits()
