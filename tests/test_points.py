"""The points are read as their description says, and a table that breaks it is refused."""

import numpy as np
import pandas as pd
import pytest

from cropnb import data, points

BANDS = list(points.BANDS.values())


def table(months=range(1, 13), **changes):
    """Two points (a: winter wheat, b: maize) in the layout of the real table, a row a point and month."""
    rows = [
        {
            "sample_id": name,
            # stored in UTC for midnight in central Europe: the evening before the first of the month
            "timestamp": pd.Timestamp(2017, month, 1) - pd.Timedelta(hours=2 if 4 <= month <= 10 else 1),
            "h3_l3_cell": "83" + name,
            "h3_l5_cell": "85" + name,
            "h3_l8_cell": "88" + name,
            "LANDCOVER_LABEL": 11,
            "CROPTYPE_LABEL": code,
            **dict.fromkeys(BANDS, 1000 + 10 * month),
        }
        for name, code in (("a", 1110), ("b", 1200))
        for month in months
    ]
    frame = pd.DataFrame(rows)
    for (row, column), value in changes.items():
        frame.loc[row, column] = value
    return frame


def read(frame, tmp_path, **options):
    frame.to_parquet(tmp_path / "points.parquet")
    return points.read(tmp_path / "points.parquet", **options)


def test_units_months_and_labels(tmp_path):
    made = read(table(), tmp_path)
    assert dict(made.sizes) == {"point": 2, "month": 7, "band": 5}
    assert made["crop"].values.tolist() == ["wheat", "maize"]
    assert made["group"].values.tolist() == ["83a", "83b"]
    july = made["values"].sel(month=7, point="a")
    assert july.sel(band="red") == pytest.approx(0.107)
    assert july.sel(band="vv_db") == pytest.approx(20 * np.log10(1070) - 83)
    assert made["observed"].all()


def test_gaps_are_interpolated_over_months_and_marked(tmp_path):
    frame = table()
    frame.loc[(frame["sample_id"] == "a") & frame["timestamp"].dt.month.isin([6, 7]), "S2-L2A-B04"] = 65535
    made = read(frame, tmp_path)  # the time stamps of June and July belong to July and August
    red = made.sel(point="a", band="red")
    np.testing.assert_array_equal(red["observed"], [True, True, True, False, False, True, True])
    np.testing.assert_allclose(red["values"], 0.1 + 0.001 * np.arange(4, 11))
    assert made.sel(point="b")["observed"].all()


def test_a_gap_at_the_end_of_the_year_holds_the_last_value(tmp_path):
    frame = table()
    frame.loc[frame["timestamp"].dt.month.isin([8, 9, 10, 11]), "S2-L2A-B11"] = 65535
    frame.loc[frame["timestamp"] > "2017-11-15", "S2-L2A-B11"] = 65535
    swir = read(frame, tmp_path)["values"].sel(point="a", band="swir1")
    np.testing.assert_allclose(swir.sel(month=[8, 9, 10]), 0.108)


def test_features(tmp_path):
    values = read(table(), tmp_path)["values"]
    both = points.features(values, "both")
    assert list(both["band"].values) == list(points.FEATURES["both"])
    np.testing.assert_allclose(both.sel(band="cross_ratio_db"), 0)
    assert list(points.features(values, "optical")["band"].values) == ["red", "narrow_nir", "swir1"]
    with pytest.raises(ValueError, match="Unknown feature set 'radar': choose one of backscatter"):
        points.features(values, "radar")


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (table().drop(columns="S2-L2A-B11"), "points.parquet: column S2-L2A-B11 is missing"),
        (table().assign(CROPTYPE_LABEL=-1), "unexpected value -1 in CROPTYPE_LABEL"),
        (table().assign(LANDCOVER_LABEL=99), "unexpected value 99 in LANDCOVER_LABEL"),
        (table().assign(**{"S1-SIGMA0-VV": 0}), "unexpected value 0 in S1-SIGMA0-VV"),
        (table().assign(**{"S2-L2A-B04": 65535}), "point a lacks a band throughout 2017"),
        (table().assign(LANDCOVER_LABEL=20), "no arable point in 2017"),
        (pd.concat([table(), table(months=[5])]), "point a appears twice in month 5"),
        (table().assign(h3_l3_cell=None), "h3_l3_cell is empty"),
    ],
)
def test_bad_tables(frame, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(frame.reset_index(drop=True), tmp_path)


def test_the_real_points():
    if not data.is_available(points.DATASET):
        pytest.skip("canada_2017_points is not in the cache; `make data` fetches it")
    made = points.read()
    crops = dict(zip(*np.unique(made["crop"], return_counts=True), strict=True))
    assert crops == {"maize": 517, "soybean": 562, "wheat": 853, "other": 387}
    assert made.sizes["point"] == 2319
    assert len(np.unique(made["group"])) == 45
    assert np.isfinite(made["values"]).all()
    assert made["values"].sel(band="vv_db").mean() == pytest.approx(-9.4, abs=0.5)
    assert (~made["observed"]).mean() < 0.1
