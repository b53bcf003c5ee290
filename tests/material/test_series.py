"""Series from .ts files: the format, resampling, blocks, and aeon where it is installed."""

from importlib.machinery import ModuleSpec

import numpy as np
import pytest

from trialrun.core.errors import NotRunnable, UsageError
from trialrun.material import series
from trialrun.material.series import Series, aeon_set, read_ts

HEAD = "# a remark\n@problemName Toy\n@timeStamps false\n@classLabel true up down\n@data\n"


def file(tmp_path, text):
    spot = tmp_path / "toy.ts"
    spot.write_text(text)
    return spot


def test_cases_channels_and_classes_are_read(tmp_path):
    found = read_ts(file(tmp_path, HEAD + "1,2,3:4,5,?:up\n0,1:2,2:down\n"))
    assert found.labels == ("up", "down")
    assert found.values[0].shape == (2, 3)
    assert np.isnan(found.values[0][1, 2])
    signals = found.series()
    assert len(signals) == 3  # a channel that never changes is no signal
    assert [len(s) for s in signals.signals] == [3, 2, 2]
    assert signals.signals[0].mean() == pytest.approx(0)
    assert signals.signals[0].std() == pytest.approx(1)


def test_a_file_without_classes_has_empty_ones(tmp_path):
    found = read_ts(file(tmp_path, "@classLabel false\n@data\n1,2\n"))
    assert found.labels == ("",)


def test_sampling_at_the_own_length_gives_the_samples_back():
    signal = np.array([0.0, 2.0, 1.0, -1.0])
    made = Series((signal,))
    np.testing.assert_allclose(made.sampled(4)[0], signal)
    np.testing.assert_allclose(made.sampled(2)[0], [1.0, 0.0])
    assert made.sampled(9).shape == (1, 9)


def test_blocks_are_disjoint_and_the_others_are_the_rest():
    made = Series(tuple(np.full(3, float(i)) for i in range(7)))
    first, others = made.block(0, 3)
    second, _ = made.block(1, 3)
    assert [s[0] for s in first.signals] == [0, 1]
    assert [s[0] for s in second.signals] == [2, 3]
    assert [s[0] for s in others.signals] == [2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("@data\n", "must hold cases after a line @data, got none"),
        ("@classLabel false\n@data\n1,x\n", "line 3: could not convert .* expected numbers"),
        ("@classLabel false\n@data\n1,2:3\n", "line 3: channels must be equally long"),
        ("@timeStamps true\n@data\n(0,1)\n", "without time stamps"),
    ],
)
def test_a_bad_file_is_one_clear_sentence(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        read_ts(file(tmp_path, text))


def test_missing_files_blocks_and_lengths_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"must be a readable .ts file"):
        read_ts(tmp_path / "nothing.ts")
    with pytest.raises(UsageError, match="at least 3 signals, got 1"):
        Series((np.ones(2),)).block(0, 3)
    with pytest.raises(UsageError, match="length must be at least 1"):
        Series((np.ones(2),)).sampled(0)


def test_aeons_sets_are_read_where_it_is_installed_and_asked_for_where_not(tmp_path, monkeypatch):
    monkeypatch.setattr(series, "find_spec", lambda _: None)
    with pytest.raises(NotRunnable, match=r"pip install aeon==1.6.0"):
        aeon_set("Toy")
    folder = tmp_path / "datasets" / "data" / "Toy"
    folder.mkdir(parents=True)
    (folder / "Toy_TRAIN.ts").write_text(HEAD + "1,2:up\n")
    spec = ModuleSpec("aeon", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(series, "find_spec", lambda _: spec)
    assert aeon_set("Toy").labels == ("up",)
    with pytest.raises(UsageError, match="no set Other with a part TRAIN: it has Toy"):
        aeon_set("Other")
