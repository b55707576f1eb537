"""The Canadian field points of 2017: monthly Sentinel-1 and Sentinel-2 values with a crop label.

The table is long (one row a point and month) and needs care: its time stamps are shifted by the time
zone, its backscatter is a digital number, and 65535 stands for no data.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from cropnb import data

DATASET = "canada_2017_points"
TABLE = "test_long_parquet_2017_CAN_AAFC-ACIGTD.parquet"
CROPS = ("maize", "soybean", "wheat", "other")
MONTHS = tuple(range(4, 11))  # April to October, the growing season

NODATA = 65535
ARABLE = 11
CROP_OF_CODE = {1100: "wheat", 1110: "wheat", 1120: "wheat", 1200: "maize", 4100: "soybean"}
BANDS = {
    "vv_db": "S1-SIGMA0-VV",
    "vh_db": "S1-SIGMA0-VH",
    "red": "S2-L2A-B04",
    "narrow_nir": "S2-L2A-B08",  # the table has no B8A; B8 covers it with a wider band
    "swir1": "S2-L2A-B11",
}
UNITS = ["dB", "dB", "1", "1", "1"]  # of the bands, in order
FEATURES = {
    "backscatter": ("vv_db", "vh_db", "cross_ratio_db"),
    "optical": ("red", "narrow_nir", "swir1"),
    "both": ("vv_db", "vh_db", "cross_ratio_db", "red", "narrow_nir", "swir1"),
}
CELLS = {"group": "h3_l3_cell", "cell": "h3_l5_cell", "neighbourhood": "h3_l8_cell"}
LABELS = ("sample_id", "timestamp", *CELLS.values(), "LANDCOVER_LABEL", "CROPTYPE_LABEL")


def read(path: str | Path | None = None, year: int = 2017) -> xr.Dataset:
    """Arable points: ``values (point, month, band)`` with ``crop (point)`` and ``group (point)``.

    Months are April to October of ``year``; backscatter is in dB, reflectance a fraction (bright cloud and
    snow exceed 1).  Gaps are interpolated over the year's months; ``observed`` (same dims) is false there.
    ``group`` is the H3 cell of level 3 (about 12,000 square kilometres), ``cell`` that of level 5 (about 250),
    ``neighbourhood`` that of level 8 (about 0.7).  ``path`` defaults to the file of the data manifest.

    Raises ValueError for a table that lacks a column, holds a value outside its code list or a point twice
    in a month or never observed, and for a year without points.
    """
    if path is None:
        path = data.fetch(DATASET)[TABLE]
    table = _arable(pd.read_parquet(path), Path(path).name, year)
    labels = table.groupby("sample_id")[["CROPTYPE_LABEL", *CELLS.values()]].first()
    observed = [_monthly(table, column, labels.index) for column in BANDS.values()]
    filled = [band.interpolate(axis=1, limit_direction="both")[list(MONTHS)] for band in observed]
    for band in filled:
        if band.isna().any(axis=None):
            point = band.index[band.isna().any(axis=1)][0]
            raise ValueError(f"{Path(path).name}: point {point} lacks a band throughout {year}; drop the point.")
    crop = labels["CROPTYPE_LABEL"].map(CROP_OF_CODE).fillna("other").to_numpy(dtype=str)
    dims = ("point", "month", "band")
    points = xr.Dataset(
        {
            "values": (dims, np.stack(filled, axis=-1)),
            "observed": (dims, np.stack([band[list(MONTHS)].notna() for band in observed], axis=-1)),
        },
        coords={
            "point": labels.index.to_numpy(dtype=str),
            "month": list(MONTHS),
            "band": list(BANDS),
            "units": ("band", UNITS),
            "crop": ("point", crop),
            **{name: ("point", labels[column].to_numpy(dtype=str)) for name, column in CELLS.items()},
        },
    )
    points.attrs |= {"source": DATASET, "year": year, "gaps": "linear over the months of the year"}
    return points


def features(values: xr.DataArray, name: str) -> xr.DataArray:
    """The bands of feature set ``name`` ("backscatter", "optical" or "both"): dims (..., month, band).

    The cross ratio is VH - VV in dB.  Raises ValueError for an unknown name.
    """
    if name not in FEATURES:
        raise ValueError(f"Unknown feature set {name!r}: choose one of {', '.join(FEATURES)}.")
    ratio = (values.sel(band="vh_db") - values.sel(band="vv_db")).assign_coords(band="cross_ratio_db")
    return xr.concat([values.drop_vars("units", errors="ignore"), ratio], "band").sel(band=list(FEATURES[name]))


def _arable(table: pd.DataFrame, name: str, year: int) -> pd.DataFrame:
    """Rows of arable land in ``year`` with a ``month`` column, after the checks that ``read`` promises."""
    missing = [column for column in (*LABELS, *BANDS.values()) if column not in table]
    if missing:
        raise ValueError(f"{name}: column {', '.join(missing)} is missing; fetch the file again.")
    limits = {"LANDCOVER_LABEL": (10, 70), "CROPTYPE_LABEL": (0, 9999)} | dict.fromkeys(BANDS.values(), (1, NODATA))
    for column, (low, high) in limits.items():
        if len(wrong := table[column][~table[column].between(low, high)]):
            raise ValueError(f"{name}: unexpected value {wrong.iloc[0]} in {column}; check the column's unit.")
    for column in ("sample_id", *CELLS.values()):
        if table[column].isna().any():
            raise ValueError(f"{name}: {column} is empty in a row; fetch the file again.")
    local = table["timestamp"] + pd.Timedelta(hours=3)  # stored as 22 or 23 h of the day before
    table = table.assign(month=local.dt.month)[(table["LANDCOVER_LABEL"] == ARABLE) & (local.dt.year == year)]
    if table.empty:
        raise ValueError(f"{name}: no arable point in {year}; the table covers 2017 and part of 2018.")
    twice = table.duplicated(["sample_id", "month"])
    if twice.any():
        point, month = table.loc[twice, ["sample_id", "month"]].iloc[0]
        raise ValueError(f"{name}: point {point} appears twice in month {month}; keep one row a month.")
    return table


def _monthly(table: pd.DataFrame, column: str, points: pd.Index) -> pd.DataFrame:
    """One band in its physical unit, a row a point and a column a month (1-12), NaN where not observed."""
    wide = table.pivot_table(index="sample_id", columns="month", values=column)
    number = wide.reindex(index=points, columns=range(1, 13)).astype("float64")
    number = number.where(number != NODATA)
    return number.map(np.log10) * 20 - 83 if column.startswith("S1") else number * 1e-4
