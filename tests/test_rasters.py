"""The one reader: what a raster declares is honoured, or the raster is refused in one sentence."""

import numpy as np
import pandas as pd
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio.warp import transform_bounds

from cropnb import rasters
from cropnb.polarimetry import C2

GRID = GeoBox.from_bbox((600_000, 5_300_000, 600_400, 5_300_400), "EPSG:32652", resolution=10)
NAMES = ("vv_db", "vh_db", "cross_ratio_db")


def save(path, values, names, nodata, scale=1.0, offset=0.0, grid=GRID, units=None):
    place = {"crs": str(grid.crs), "transform": grid.affine, "width": values.shape[2], "height": values.shape[1]}
    options = {"driver": "GTiff", "dtype": values.dtype, "count": len(values), "nodata": nodata}
    with rasterio.open(path, "w", **options, **place) as file:
        file.write(values)
        file.descriptions = names
        if (scale, offset) != (1, 0):
            file.scales, file.offsets = [scale] * len(values), [offset] * len(values)
        if units:
            file.units = units


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([("int16", -32768), ("int16", -9999), ("int32", 0), ("float32", -9999), ("float64", np.nan)]),
    st.sampled_from([1.0, 0.01, 0.1]),
    st.sampled_from([0.0, -30.0]),
    st.integers(0, 2**32 - 1),
)
def test_decibels_come_back_whatever_type_nodata_and_scale_they_are_kept_in(tmp_path, kept, scale, offset, seed):
    dtype, nodata = kept
    rng = np.random.default_rng(seed)
    values = np.stack([rng.normal(mean, 1, (40, 40)) for mean in (-12, -19, -7)])
    number = (values - offset) / scale
    number = (np.rint(number) if "int" in dtype else number).astype(dtype)
    hole = rng.random(values.shape) < 0.2
    number[hole] = nodata
    path = tmp_path / "S1_20180601T0500_FEATURES.tif"
    save(path, number, NAMES, nodata, scale, offset)
    read = np.stack(list(rasters.read(path).values()))
    missing = np.isnan(number) if np.isnan(nodata) else number == nodata
    np.testing.assert_array_equal(np.isnan(read), missing)
    np.testing.assert_allclose(read[~missing], values[~missing], atol=0.51 * scale if "int" in dtype else 1e-4)
    assert rasters.fault(path, "features", GRID) == ""


@pytest.mark.parametrize("nodata", [0, -9999, np.nan])
def test_covariance_of_uncorrelated_channels_is_no_hole(tmp_path, nodata):
    values = np.stack([np.full((40, 40), value, "float32") for value in (0.1, 0.02, 0, 0)])
    values[:, :4] = nodata
    save(tmp_path / "c2.tif", values, C2, nodata)
    read = rasters.read(tmp_path / "c2.tif")
    for plane in read.values():
        assert np.isnan(plane[:4]).all()
        assert np.isfinite(plane[4:]).all()


REFUSED = {
    "linear power as dB": (np.full((3, 40, 40), 0.05, "float32"), {}, r"should lie between -60 and 0 \(dB\)"),
    "hundredths without a scale": (np.full((3, 40, 40), -1200, "int16"), {}, "state its scale and offset"),
    "another unit": (np.full((3, 40, 40), -12, "float32"), {"units": ["W"] * 3}, "gives vv_db in W: bring it to the"),
    "complex": (np.full((3, 40, 40), 1 + 1j, "complex64"), {}, "is complex64"),
    "an unknown band": (
        np.full((3, 40, 40), -12, "float32"),
        {"names": ("VV", "VH", "angle")},
        r"has bands \['VV', 'VH', 'angle'\]: describe them as",
    ),
    "one band twice": (np.full((3, 40, 40), -12, "float32"), {"names": ("vv_db", "vh_db", "vv_db")}, "describe them"),
    "no nodata value": (np.full((3, 40, 40), -12, "float32"), {"nodata": None}, "states no nodata value"),
    "another nodata value than it states": (
        np.where(np.arange(40) < 1, -999, np.full((3, 40, 40), -12)).astype("float32"),
        {},
        "has vv_db from -999 to -12",
    ),
    "zeros for no data": (
        np.where(np.arange(40) < 1, 0, np.full((3, 40, 40), -12)).astype("float32"),
        {},
        "exactly 0 in 2% of its pixels: state 0 as its nodata value",
    ),
    "south up": (
        np.full((3, 40, 40), -12, "float32"),
        {"grid": GRID.flipy()},
        "resample it to the region's grid, north up",
    ),
    "one empty band": (
        np.stack([np.full((40, 40), v, "float32") for v in (-12, -19, -9999)]),
        {},
        "has no valid pixel: remove this acquisition",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(tmp_path, case):
    values, options, message = REFUSED[case]
    save(tmp_path / "x.tif", values, **{"names": NAMES, "nodata": -9999} | options)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(rasters.fault(tmp_path / "x.tif", "features", GRID))


def test_reflectance_is_written_and_read_back(tmp_path):
    rng = np.random.default_rng(1)
    red, swir = rng.uniform(0, 0.6, (40, 40)), rng.uniform(0, 0.6, (20, 20))
    red[0], swir[0] = np.nan, 0
    classes = rng.integers(0, 12, (20, 20))
    time = pd.Timestamp("2018-06-01")
    folder = rasters.write_optical(tmp_path, time, {"red": red, "swir1": swir, "scl": classes}, GRID)
    assert sorted(path.name for path in folder.iterdir()) == ["B04_10m.tif", "B11_20m.tif", "SCL_20m.tif"]
    np.testing.assert_allclose(rasters.read_reflectance(folder / "B04_10m.tif"), red, atol=5.1e-5)
    assert rasters.read_reflectance(folder / "B11_20m.tif")[0] == pytest.approx(1e-4)  # valid, however dark
    np.testing.assert_array_equal(rasters.read_classes(folder / "SCL_20m.tif"), classes)
    for band in ("red", "swir1", "scl"):
        assert rasters.fault(rasters.optical_path(tmp_path, time, band), band, GRID) == ""


@pytest.mark.parametrize(
    ("dtype", "nodata", "factor"), [("uint16", 65535, 1e4), ("int16", -9999, 1e4), ("float32", np.nan, 1)]
)
def test_reflectance_of_others(tmp_path, dtype, nodata, factor):
    truth = np.random.default_rng(2).uniform(0.05, 0.3, (1, 40, 40))
    number = (truth * factor).astype(dtype)
    number[:, :4] = nodata
    save(tmp_path / "B04_10m.tif", number, ("B04",), nodata)
    read = rasters.read_reflectance(tmp_path / "B04_10m.tif")
    assert np.isnan(read[:4]).all()
    np.testing.assert_allclose(read[4:], truth[0, 4:], atol=1.1e-4)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["nodata", "mask", "alpha"]),
    st.booleans(),
    st.sampled_from([None, "EPSG:32651", "EPSG:4326"]),
    st.integers(0, 2**32 - 1),
)
def test_what_is_masked_stays_missing_on_any_grid(tmp_path, kind, south_up, crs, seed):
    """However a raster says what is no data, whichever way up it is, and whatever its CRS."""
    rng = np.random.default_rng(seed)
    around = GRID.pad(60)
    if crs:
        around = GeoBox.from_bbox(transform_bounds(str(GRID.crs), crs, *around.boundingbox), crs, shape=(160, 160))
    hole = rng.random(around.shape) < 0.1
    values = np.where(hole, 0, np.rint(1000 * rng.normal(12, 1, around.shape))).astype("uint16")
    order = slice(None, None, -1 if south_up else 1)
    planes = [values] + [np.where(hole, 0, 255).astype("uint16")] * (kind == "alpha")
    place = {"crs": str(around.crs), "transform": (around.flipy() if south_up else around).affine, "count": len(planes)}
    place |= {"height": around.height, "width": around.width, "nodata": 0 if kind == "nodata" else None}
    options = {"alpha": "YES", "photometric": "MINISBLACK"} if kind == "alpha" else {}
    path = tmp_path / "x.tif"
    inside = rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True)
    with inside, rasterio.open(path, "w", driver="GTiff", dtype="uint16", **place, **options) as file:
        file.write(np.stack(planes)[:, order])
        file.set_band_description(1, "vv_db")
        file.scales = [-0.001, *[1] * (len(planes) - 1)]
        if kind == "mask":
            file.write_mask(~hole[order])
    (read,) = rasters.read(path).values()
    np.testing.assert_array_equal(np.isnan(read[order]), hole)
    np.testing.assert_allclose(read[order][~hole], values[~hole] / -1000, rtol=1e-6)
    (found,) = rasters.onto(path, GRID).values()
    assert found.shape == GRID.shape
    assert -17 < np.nanmin(found) <= np.nanmax(found) < -7  # nothing of 0
    if crs is None:
        np.testing.assert_array_equal(found, read[order][60:-60, 60:-60])
    (away,) = rasters.onto(path, GRID.translate_pix(9000, 0)).values()
    assert np.isnan(away).all()
