"""The two real places of Flanders come into the cube's layout without a value changed or a cloud let in."""

import json
import os

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from scipy.ndimage import maximum_filter

from cropnb import batches, cube, data, flanders, parcels, regions, samples, scenarios

PLACE, HALF = "A1", 6  # rows and columns of 20 m


def grid(step):
    n = HALF * 20 // step
    return {"y": 5000.0 - step / 2 - step * np.arange(n), "x": 500.0 + step / 2 + step * np.arange(n)}


def days(first, last, step):
    # Stored by their hours, as the source does by seconds; Sentinel-1A and -1B come a minute apart.
    return pd.date_range(first, last, freq=f"{step}D") + pd.to_timedelta(17, "h")


@pytest.fixture
def files(tmp_path):
    """A place as the source writes it: two tracks, coded missing values, a September cloud taken for snow."""
    rng = np.random.default_rng(0)
    one, other = days("2018-04-02", "2018-09-30", 6), days("2018-04-07", "2018-09-10", 6)
    times = one.union(other + pd.to_timedelta(8, "min"))
    dims = ("timestamp", "y", "x")
    attrs = {"epsg": 32631}

    def store(name, variables, coords, encoding):
        xr.Dataset(variables, coords, attrs).to_netcdf(
            tmp_path / name, engine="h5netcdf", encoding=dict.fromkeys(variables, encoding) | extra
        )
        return tmp_path / name

    extra = {}
    scaled = {"dtype": "int32", "scale_factor": 1e-4, "_FillValue": 0}
    shape = (len(times), HALF, HALF)
    vv = rng.uniform(-20, -5, shape)
    vv[~times.isin(one)] = -3.0  # the other track is told by its values
    radar = {"VV": (dims, vv), "VH": (dims, vv - rng.uniform(5, 9, shape))}
    optical = pd.to_datetime(["2018-05-10", "2018-06-01", "2018-07-08", "2018-07-20", "2018-09-01", "2018-09-23"])
    n = len(optical)
    classes = np.full((n, HALF, HALF), 4, "uint8")
    classes[0, :3] = 9  # clouds over half of one date
    classes[2, 0, 0] = 8  # one cloudy pixel on both dates of July, fewer on the first
    classes[3, :2] = 10
    classes[5] = 11
    bands = {b: (dims, rng.uniform(0.1, 0.5, (n, HALF, HALF))) for b in ("B8A", "B11")}
    found = {
        f"{PLACE}/S1_GRD.nc": store("s1.nc", radar, {"timestamp": times, **grid(20)}, scaled),
        f"{PLACE}/S2_L2A_10m.nc": store(
            "s10.nc",
            {"B04": (dims, rng.uniform(0.1, 0.5, (n, 2 * HALF, 2 * HALF)))},
            {"timestamp": optical, **grid(10)},
            scaled,
        ),
    }
    extra["SCL"] = {"dtype": "uint8", "_FillValue": 0}
    found[f"{PLACE}/S2_L2A_20m.nc"] = store(
        "s20.nc", bands | {"SCL": (dims, classes)}, {"timestamp": optical, **grid(20)}, scaled
    )
    extra.clear()
    codes = np.zeros((2 * HALF, 2 * HALF), "float32")
    codes[:5], codes[7:, :4] = 1200, 1110
    extra["CT"] = {"_FillValue": 0.0}
    xr.Dataset({"CT": (("y", "x"), codes, attrs)}, grid(10), attrs).to_netcdf(
        tmp_path / "out.nc", engine="h5netcdf", encoding=extra
    )
    return found | {f"{PLACE}/OUTPUT.nc": tmp_path / "out.nc"}


def built(files, place, folder):
    """A place as a cube, by way of a region folder."""
    grid = flanders.write_acquisitions(files, place, folder / "region")
    fields = gpd.GeoDataFrame({"crop": ["maize"]}, geometry=[grid.extent.geom], crs=str(grid.crs))
    record = {"name": place, "simulated": False, "pixel_size": 10.0} | regions.describe(fields, ["maize"], grid)
    (folder / "region/region.json").write_text(json.dumps(record))
    return cube.build(folder / "region", folder / "cube.zarr", max_cloud=1.01)


NAMES = {1200: "maize", 1110: "wheat"}


def test_a_place_becomes_a_cube_of_one_track_and_clear_dates(files, tmp_path):
    path = built(files, PLACE, tmp_path)
    steps = scenarios.scenario(path, "optical+backscatter")
    assert dict(steps.sizes) == {"time": 26, "y": 2 * HALF, "x": 2 * HALF, "feature": 3}
    radar = steps[(steps.sensor == "sar").to_numpy()]
    assert radar.sizes["time"] == 23
    assert set((np.diff(radar.time) / np.timedelta64(1, "D")).tolist()) <= {6.0, 12.0}
    assert float(radar[..., 0].max()) < -4.9  # nothing of the other track
    np.testing.assert_allclose(radar[..., 2], radar[..., 1] - radar[..., 0], atol=1e-5)
    optical = cube.open_cube(path, "optical")
    assert optical.time.dt.strftime("%m-%d").values.tolist() == ["06-01", "07-08", "09-01"]  # not the snow
    np.testing.assert_allclose(optical.cloud_cover, [0, 1 / HALF**2, 0])
    missing = np.isnan(optical.to_dataarray()).any("variable").to_numpy()
    assert missing[1, :2, :2].all()
    assert missing.sum() == 4
    assert optical.attrs["simulated"] == 0


def test_twenty_metre_values_fill_their_four_pixels(files, tmp_path):
    path = built(files, PLACE, tmp_path)
    vv = cube.open_cube(path, "sar")["vv_db"]
    source = xr.open_dataset(files[f"{PLACE}/S1_GRD.nc"], engine="h5netcdf")["VV"].rename(timestamp="time")
    nearest = source.sel(time=vv.time).sel(y=vv.y, x=vv.x, method="nearest")
    np.testing.assert_allclose(vv, nearest, atol=1e-5)
    for axis, centres in grid(10).items():
        np.testing.assert_array_equal(vv[axis], centres)


def test_declarations_are_parcels_that_draw_the_same_raster(files):
    pieces = flanders.declarations(files, PLACE, NAMES)
    assert sorted(zip(pieces["crop"], pieces.area, strict=True)) == [("maize", 6000), ("wheat", 2000)]
    box = GeoBox((2 * HALF, 2 * HALF), Affine(10, 0, 500, 0, -10, 5000), "EPSG:32631")
    drawn = parcels.rasterise(pieces, box, ["maize", "wheat"])["crop"].values
    assert (drawn[:5] == 0).all()
    assert (drawn[7:, :4] == 1).all()
    assert (drawn == parcels.NO_CROP).sum() == (2 * HALF) ** 2 - 60 - 20


def test_bad_input_is_named(files, tmp_path):
    with pytest.raises(ValueError, match=r"codes \[1110\] without a name"):
        flanders.declarations(files, PLACE, {1200: "maize"})
    radar = files.pop(f"{PLACE}/S1_GRD.nc")
    with pytest.raises(FileNotFoundError, match="No S1_GRD file of A1"):
        built(files, PLACE, tmp_path)
    few = xr.open_dataset(radar, engine="h5netcdf").isel(timestamp=slice(-20, None))
    few.to_netcdf(tmp_path / "few.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match=r"A1 has \d+ Sentinel-1 dates in its season, and 23 are needed"):
        built(files | {f"{PLACE}/S1_GRD": tmp_path / "few.nc"}, PLACE, tmp_path)


@pytest.mark.skipif("CROPNB_DATA" not in os.environ, reason="needs the real patches: set CROPNB_DATA")
def test_the_real_places_give_patches_of_the_papers_shape(tmp_path):
    files = data.fetch("flanders_patches")
    for place in sorted({name.split("/")[0] for name in files}):
        steps = scenarios.scenario(built(files, place, tmp_path / place), "optical+backscatter")
        row, col = np.mgrid[5:59, 5:59].reshape(2, -1)
        table = pd.DataFrame({"row": row, "col": col, "crop": "any", "set": "test"})
        scaled = scenarios.scale(steps, scenarios.fit_scaler(steps, row, col))
        dataset = batches.PatchDataset(samples.materialise(scaled), table, ["any"])
        assert dataset[0][0].shape == (128, 26, 11, 11, 3)
        gaps = maximum_filter(np.isnan(steps).any(("time", "feature")).to_numpy(), 11, mode="constant")
        assert dataset.dropped["with missing values"] == gaps[row, col].sum()
        assert -25 < np.median(cube.open_cube(tmp_path / place / "cube.zarr", "sar")["vv_db"]) < 0  # VV, dB
