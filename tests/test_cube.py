import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import xarray as xr
import zarr
from odc.geo.geobox import GeoBox
from sklearn.preprocessing import MinMaxScaler

from cropnb import acquisitions, cube, polarimetry, regions, scenarios, twin

TRACKS = {"A": ("2017-05-05T21:42", 2), "B": ("2017-05-10T21:50", 2)}
CLOUD = {"2017-05-11": 0.02, "2017-06-30": 0.7}


@pytest.fixture(scope="module")
def region(tmp_path_factory):
    """80 x 80 pixels, four radar dates, one clear and one cloudy optical date."""
    return twin.write(tmp_path_factory.mktemp("twin") / "region", size=800, tracks=TRACKS, cloud_cover=CLOUD)


@pytest.fixture(scope="module")
def built(region):
    return cube.build(region, region.parent / "cube.zarr")


@pytest.fixture
def spoilt(region, tmp_path):
    return shutil.copytree(region, tmp_path / "region")


def test_acquisitions_in_date_order_and_chosen_by_cloud(region):
    table = acquisitions.find(region)
    assert table.time.is_monotonic_increasing
    assert (table.sensor == "sar").sum() == 4
    assert table.track[table.sensor == "sar"].tolist() == ["A", "B", "A", "B"]
    optical = table[table.sensor == "optical"].set_index("time")
    assert optical.used.tolist() == [True, False]
    assert optical.cloud_cover.iloc[0] < acquisitions.MAX_CLOUD <= optical.cloud_cover.iloc[1]
    assert acquisitions.find(region, max_cloud=1.01).used.all()


def test_cloud_cover_counts_the_cloud_and_shadow_classes_of_valid_pixels(spoilt):
    path = spoilt / "optical" / "S2_20170511" / "SCL_20m.tif"
    with rasterio.open(path, "r+") as file:
        classes = np.full(file.shape, 4, "uint8")
        classes[:20] = 0  # half nodata; of the 800 others
        classes[20, :10] = 3
        classes[20, 10:30] = [8, 9, 10, 10, 5, 6, 7, 11, 2, 4] * 2
        file.write(classes, 1)
    assert acquisitions.find(spoilt).cloud_cover.iloc[2] == pytest.approx(
        (10 + 10) / 800
    )  # snow (11) is a bright cloud in summer


def test_cube_has_the_promised_groups(built):
    for sensor, dates in (("sar", 4), ("optical", 1)):
        group = cube.open_cube(built, sensor)
        assert set(group.data_vars) == set(acquisitions.FEATURES[sensor])
        for values in group.values():
            assert values.dtype == "float32"
            assert values.dims == ("time", "y", "x")
            assert values.shape == (dates, 80, 80)
            assert "units" in values.attrs
        assert group.rio.crs.to_epsg() == 32652
        assert group.attrs["Conventions"].startswith("CF")
        assert group.attrs["simulated"] == 1
    assert cube.open_cube(built, "sar").attrs["window"] == 5
    record = regions.read_record(built.parent / "region")
    assert group.x[0] == record["bounds"][0] + 5
    assert group.y[0] == record["bounds"][3] - 5
    assert zarr.open(built)["sar/vv_db"].chunks[0] == 4


def test_features_agree_with_each_other(built):
    sar = cube.open_cube(built, "sar").compute()
    xr.testing.assert_allclose(sar.cross_ratio_db, sar.vh_db - sar.vv_db, atol=1e-4)
    span = sar.vv_amplitude**2 + sar.vh_amplitude**2
    xr.testing.assert_allclose(sar.ps**2 + sar.pd**2 + sar.pv**2, span, rtol=1e-4)
    assert np.isfinite(sar.to_dataarray()).all()


def test_blocks_equal_the_whole(region, built, tmp_path):
    """Bit for bit, with blocks that do not divide the image and are hardly wider than the margin."""
    blocks = cube.build(region, tmp_path / "blocks.zarr", chunk=22)
    for sensor in acquisitions.FEATURES:
        xr.testing.assert_equal(cube.open_cube(blocks, sensor).compute(), cube.open_cube(built, sensor).compute())


def test_features_are_lazy_on_dask_and_equal(region):
    files = acquisitions.find(region).files[0]
    c2 = cube.c2_from_slc(files, slice(0, 80), slice(0, 80)).expand_dims("time")
    lazy = cube.sar_features(c2.chunk(y=32, x=32))
    assert all(values.chunks for values in lazy.values())
    xr.testing.assert_equal(lazy.compute(), cube.sar_features(c2))


def test_planted_backscatter_of_a_homogeneous_field_is_recovered(tmp_path):
    """120 x 120 pixels of four looks on each of 12 dates: the mean power has a relative standard error of 0.12 %,
    or 0.005 dB. Plain averages are unbiased; the multi-temporal filter
    may lose 0.1 dB. Power is averaged, not dB: the mean of a logarithm lies under the logarithm of the mean."""
    planted = np.float32([-10, -17, 0.1, 0.3, 0.2])
    scene = twin.Scene(
        ids=np.zeros((480, 480), "int32"),
        texture=np.zeros((7, 5, 120, 120), "float32"),
        months=np.arange(4.0, 11),
        signal=np.broadcast_to(planted, (1, 7, 5)),
        shift=np.zeros(1),
        rho=np.zeros(1, "complex64"),
        grid=GeoBox.from_bbox((0, 0, 1200, 1200), "EPSG:32652", resolution=10),
        seed=3,
    )
    for time, track in twin.acquisition_times()[::2]:
        twin._write_radar(tmp_path, time, track, scene)
    twin._write_optical(tmp_path, "2017-06-10", 0.02, scene)
    record = {"name": "field", "simulated": True, "crs": "EPSG:32652", "bounds": (0, 0, 1200, 1200), "pixel_size": 10}
    (tmp_path / "region.json").write_text(json.dumps(record))
    path = cube.build(tmp_path, tmp_path / "cube.zarr", polarimetric_filter=False)
    sar, optical = (cube.open_cube(path, sensor).compute() for sensor in acquisitions.FEATURES)
    vv, vh, *filtered = (
        10 * float(np.log10(power.mean()))
        for power in (sar.vv_amplitude**2, sar.vh_amplitude**2, 10 ** (sar.vv_db / 10), 10 ** (sar.vh_db / 10))
    )
    assert [vv, vh] == pytest.approx([-10, -17], abs=0.02)
    assert filtered == pytest.approx([-10, -17], abs=0.1)
    assert float(sar.cross_ratio_db.mean()) == pytest.approx(-7, abs=0.03)
    optical = optical.mean(("time", "y", "x"))
    assert [float(optical[name]) for name in ("red", "narrow_nir", "swir1")] == pytest.approx([0.1, 0.3, 0.2], abs=1e-3)


def test_optical_is_masked_where_classified_cloud_or_shadow(region, built):
    files = acquisitions.find(region).files[2]
    with rasterio.open(files["scl"]) as scl, rasterio.open(files["swir1"]) as swir, rasterio.open(files["red"]) as red:
        masked = np.isin(scl.read(1), (3, 8, 9, 10)).repeat(2, 0).repeat(2, 1)
        swir1, red = swir.read(1) / 1e4, red.read(1) / 1e4
    optical = cube.open_cube(built, "optical").isel(time=0).compute()
    assert masked.any()
    for name, values in (("red", red), ("swir1", swir1.repeat(2, 0).repeat(2, 1))):
        expected = np.where(masked, np.nan, values)
        np.testing.assert_allclose(optical[name], expected, rtol=1e-6)


@pytest.mark.parametrize(("name", "steps"), [(n, 4 * (n != "optical") + ("optical" in n)) for n in scenarios.SCENARIOS])
def test_scenarios(built, name, steps):
    array = scenarios.scenario(built, name)
    assert array.dims == ("time", "y", "x", "feature")
    assert array.shape == (steps, 80, 80, 3)
    assert array.chunks is not None
    assert array.time.to_index().is_monotonic_increasing
    assert array.feature.values.tolist() == ["1", "2", "3"]
    assert array.dtype == "float32"
    for step in array.compute():
        sensor = step.sensor.item()
        source = cube.open_cube(built, sensor).sel(time=step.time)
        for i, channel in enumerate(array.attrs[sensor]):
            if channel != "amplitude_ratio":
                np.testing.assert_array_equal(step[..., i], source[channel])


def test_amplitude_control_ends_with_the_ratio(built):
    array = scenarios.scenario(built, "amplitude").compute()
    np.testing.assert_allclose(array[..., 2], array[..., 1] / array[..., 0], rtol=1e-6)


def test_scaler_sees_training_pixels_alone(built):
    steps = scenarios.scenario(built, "optical+backscatter").compute()
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, 40, (2, 50))
    scaler = scenarios.fit_scaler(steps, rows, columns)
    elsewhere = steps.copy(deep=True)
    elsewhere[:, 40:] *= 1000
    assert scenarios.fit_scaler(elsewhere, rows, columns) == scaler
    inside = steps.values[:, rows, columns]
    for sensor in ("sar", "optical"):
        values = inside[steps.sensor.values == sensor].reshape(-1, 3)
        expected = MinMaxScaler().fit_transform(values)
        scaled = scenarios.scale(steps, scaler).values[:, rows, columns][steps.sensor.values == sensor].reshape(-1, 3)
        np.testing.assert_allclose(scaled, expected, atol=1e-5)
        assert np.nanmin(scaled, axis=0) == pytest.approx(0)
        assert np.nanmax(scaled, axis=0) == pytest.approx(1)


def test_scaling_is_lazy_and_survives_a_round_trip(built):
    steps = scenarios.scenario(built, "optical+m-chi")
    scaler = json.loads(json.dumps(scenarios.fit_scaler(steps, [1, 2, 3], [4, 5, 6])))  # as a run keeps it
    scaled = scenarios.scale(steps, scaler)
    assert scaled.chunks is not None
    assert scaled.dtype == "float32"
    assert scaled.attrs["sar"] == ["ps", "pd", "pv"]
    with pytest.raises(ValueError, match=r"fitted to \['ps', 'pd', 'pv'\] but sar shows \['vv_db'.*fit it again"):
        scenarios.scale(scenarios.scenario(built, "backscatter"), scaler)


def test_a_scaler_without_its_values_is_refused(built):
    steps = scenarios.scenario(built, "backscatter")
    old = {"sar": {"channels": list(steps.attrs["sar"]), "minimum": [0.0] * 3, "maximum": [1.0] * 3}}
    with pytest.raises(ValueError, match="lacks its values for zero and one: fit it again"):
        scenarios.scale(steps, old)


def test_standard_scaling_centres_the_training_pixels(built):
    steps = scenarios.scenario(built, "optical+m-chi")
    rows, columns = np.mgrid[30:50, 30:50].reshape(2, -1)
    scaled = scenarios.scale(steps, scenarios.fit_scaler(steps, rows, columns, "standard")).values[:, rows, columns]
    for sensor in ("sar", "optical"):
        values = scaled[steps.sensor.values == sensor].reshape(-1, 3)
        np.testing.assert_allclose(np.nanmean(values, axis=0), 0, atol=1e-4)
        np.testing.assert_allclose(np.nanstd(values, axis=0), 1, rtol=1e-4)
    with pytest.raises(ValueError, match="choose 'min-max' or 'standard'"):
        scenarios.fit_scaler(steps, rows, columns, "robust")


def test_scaler_needs_valid_pixels(built):
    steps = scenarios.scenario(built, "optical") * np.float32(np.nan)
    steps.attrs = {"optical": ["red", "narrow_nir", "swir1"]}
    with pytest.raises(ValueError, match="No training pixel has a valid optical value"):
        scenarios.fit_scaler(steps, [0], [0])


def replace_radar(folder, kind, planes):
    """Put one raster of constant bands in the place of each acquisition's VV and VH."""
    bounds = regions.read_record(folder)["bounds"]
    for path in sorted((folder / "sar").glob("*_VV.tif")):
        with rasterio.open(path) as file:
            shape, crs, tags = (file.height, file.width // 4), file.crs, file.tags()
        options = {"driver": "GTiff", "dtype": "float32", "crs": crs, "nodata": np.nan, "count": len(planes)}
        options |= {"height": shape[0], "width": shape[1]}
        options["transform"] = rasterio.transform.from_bounds(*bounds, shape[1], shape[0])
        with rasterio.open(folder / "sar" / path.name.replace("_VV", f"_{kind}"), "w", **options) as file:
            file.write(np.stack([np.full(shape, value, "float32") for value in planes.values()]))
            file.descriptions = tuple(planes)
            file.update_tags(orbit_track=tags["orbit_track"])
        path.unlink()
        Path(str(path).replace("_VV", "_VH")).unlink()


def test_covariance_on_disk_makes_the_same_cube(spoilt, tmp_path):
    replace_radar(spoilt, "C2", {"c22": 0.02, "c11": 0.1, "c12_real": 0.0, "c12_imag": 0.0})
    sar = cube.open_cube(cube.build(spoilt, tmp_path / "cube.zarr"), "sar")
    np.testing.assert_allclose(sar.vv_db, -10, atol=1e-4)
    np.testing.assert_allclose(sar.vh_amplitude, np.sqrt(0.02), rtol=1e-5)
    assert scenarios.left_out(tmp_path / "cube.zarr") == {}


def test_features_of_others_are_taken_as_they_are_and_what_lacks_is_left_out(spoilt, tmp_path):
    replace_radar(spoilt, "FEATURES", {"pv": 0.3, "ps": 0.1, "pd": 0.2})
    for path in spoilt.glob("optical/*/B8A_20m.tif"):
        path.unlink()
    path = cube.build(spoilt, tmp_path / "cube.zarr")
    assert set(cube.open_cube(path, "sar").data_vars) == {"ps", "pd", "pv"}
    assert set(cube.open_cube(path, "optical").data_vars) == {"red", "swir1"}
    np.testing.assert_allclose(scenarios.scenario(path, "m-chi").isel(feature=2), 0.3, rtol=1e-6)
    reasons = scenarios.left_out(path)
    assert list(reasons) == ["backscatter", "optical+backscatter", "optical+m-chi", "optical", "amplitude"]
    assert reasons["optical"] == "the region has no narrow_nir"
    assert cube.complete(path).any()
    with pytest.raises(ValueError, match=r"cannot give the scenario 'optical', .* no narrow_nir: choose .*'m-chi'"):
        scenarios.scenario(path, "optical")


@pytest.mark.parametrize(("absent", "kept"), [("sar", "optical"), ("optical", "m-chi")])
def test_a_region_with_one_sensor(spoilt, tmp_path, absent, kept):
    shutil.rmtree(spoilt / absent)
    record = json.loads((spoilt / "region.json").read_text())
    record |= {"sar_times": {}} if absent == "sar" else {"optical_dates": {}}
    (spoilt / "region.json").write_text(json.dumps(record))
    path = cube.build(spoilt, tmp_path / "cube.zarr")
    assert cube.open_cube(path).rio.shape == cube.complete(path).shape
    assert kept in scenarios.SCENARIOS.keys() - scenarios.left_out(path).keys()
    assert scenarios.left_out(path)["optical+m-chi"] == f"the region has no {absent} acquisitions"
    with pytest.raises(ValueError, match=f"has no {absent} acquisitions"):
        cube.open_cube(path, absent)
    shutil.rmtree(spoilt / ("sar" if absent == "optical" else "optical"))
    with pytest.raises(ValueError, match="neither radar nor optical"):
        acquisitions.find(spoilt)


def test_one_kind_of_radar_product_a_region(spoilt):
    first = {path: path.read_bytes() for path in spoilt.glob("sar/*20170505*")}
    replace_radar(spoilt, "C2", {"c11": 0.1, "c22": 0.02, "c12_real": 0.0, "c12_imag": 0.0})
    for path, content in first.items():
        path.write_bytes(content)
    next(spoilt.glob("sar/*20170505*C2.tif")).unlink()
    with pytest.raises(ValueError, match="products of two kinds"):
        acquisitions.find(spoilt)


def test_a_cube_is_built_anew(region, tmp_path):
    for window in (5, 3):
        path = cube.build(region, tmp_path / "cube.zarr", window=window)
    assert cube.open_cube(path, "sar").attrs["window"] == 3


def test_nodata_stays_missing(spoilt, tmp_path):
    """Both polarisations 0 in a corner is off the swath: NaN in every radar feature, and only there and around."""
    for path in (spoilt / "sar").glob("*20170505*"):
        with rasterio.open(path, "r+") as file:
            values = file.read(1)
            values[:30, :120] = 0
            file.write(values, 1)
    sar = cube.open_cube(cube.build(spoilt, tmp_path / "cube.zarr", chunk=20), "sar").isel(time=0)
    missing = np.isnan(sar.to_dataarray())
    assert missing.isel(y=slice(0, 30), x=slice(0, 30)).all()
    assert not missing.isel(y=slice(40, None)).any()


def test_a_failed_build_leaves_nothing_that_looks_whole(region, tmp_path, monkeypatch):
    monkeypatch.setattr(polarimetry, "m_chi", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cube.build(region, tmp_path / "cube.zarr")
    assert not (tmp_path / "cube.zarr").exists()


# Every bad input: how to spoil a region, and what the one sentence says.


def first(region, pattern="*_VH.tif"):
    return min((region / "sar").glob(pattern))


def rewrite(path, change_profile=None, values=None, tags=None):
    """Write a raster again with another profile, all pixels `values`, or other tags (None takes one away)."""
    with rasterio.open(path) as file:
        profile, data, old = file.profile, file.read(1), file.tags()
    keep = ("driver", "width", "height", "count", "dtype", "crs", "transform", "nodata")
    path.unlink()
    with rasterio.open(path, "w", **({key: profile[key] for key in keep} | (change_profile or {}))) as file:
        data = data if values is None else np.full_like(data, values)
        file.write(data.real if file.dtypes[0] == "float32" else data, 1)
        file.update_tags(**{name: value for name, value in (old | (tags or {})).items() if value is not None})


def move_grid(region):
    with rasterio.open(first(region)) as file:
        shifted = rasterio.Affine.translation(file.transform.c + 30, file.transform.f)
        shifted = rasterio.Affine(2.5, 0, shifted.c, 0, -10, shifted.f)
    rewrite(first(region), {"transform": shifted})


def relabel(region):
    path = first(region)
    path.rename(path.with_name(path.name.replace("VH", "HH")))


def repeat(region):
    for path in list((region / "sar").glob("S1_20170505*")):
        shutil.copy(path, path.with_name(path.name.replace("T2142", "T2143")))


BAD = {
    "no region.json": (lambda r: (r / "region.json").unlink(), r"region\.json is missing: write the region first"),
    "missing polarisation": (lambda r: first(r).unlink(), r"S1_20170505T2142_VH\.tif is missing: add it"),
    "wrong polarisation": (relabel, r"_HH\.tif is not named S1_.*_VV, _VH, _C2 or _FEATURES: rename or remove it"),
    "wrong polarisation tag": (
        lambda r: rewrite(first(r), tags={"polarisation": "HV"}),
        r"_VH\.tif holds polarisation HV: give the product's VV and VH",
    ),
    "detected data": (
        lambda r: rewrite(first(r), {"dtype": "float32"}, 1),
        r"_VH\.tif is float32, detected data: give the single-look complex",
    ),
    "no calibration": (
        lambda r: rewrite(first(r), tags={"calibration": None}),
        r"_VH\.tif has no tag `calibration`: store K",
    ),
    "odd name": (lambda r: (r / "sar" / "x.tif").touch(), r"x\.tif is not named S1_.*rename or remove it"),
    "odd folder": (lambda r: (r / "optical" / "x").mkdir(), r"x is not named S2_YYYYMMDD: rename or remove it"),
    "missing date": (
        lambda r: [p.unlink() for p in (r / "sar").glob("S1_20170510*")],
        r"sar lacks the acquisition of 2017-05-10 that region\.json lists: fetch it",
    ),
    "missing optical date": (
        lambda r: shutil.rmtree(r / "optical" / "S2_20170511"),
        r"optical lacks the acquisition of 2017-05-11",
    ),
    "repeated date": (repeat, r"S1_20170505T2143_VV\.tif repeats a date of its track: mosaic"),
    "repeated optical date": (
        lambda r: shutil.copytree(r / "optical" / "S2_20170511", r / "optical" / "S2_20170511_T52UDV"),
        r"S2_20170511_T52UDV/B04_10m\.tif repeats a date",
    ),
    "band missing": (
        lambda r: (r / "optical" / "S2_20170511" / "B8A_20m.tif").unlink(),
        r"S2_20170511/B8A_20m\.tif is missing: fetch the band or remove S2_20170511",
    ),
    "band missing of a tile": (
        lambda r: (
            shutil.copytree(r / "optical" / "S2_20170511", r / "optical" / "S2_20170512_T52UDV")
            .joinpath("SCL_20m.tif")
            .unlink()
        ),
        r"S2_20170512_T52UDV/SCL_20m\.tif is missing: fetch the band or remove S2_20170512_T52UDV",
    ),
    "different grid": (move_grid, r"_VH\.tif has bounds and spacing .*: resample it to the region's grid"),
    "different CRS": (
        lambda r: rewrite(r / "optical" / "S2_20170511" / "B04_10m.tif", {"crs": "EPSG:32651"}),
        r"B04_10m\.tif has bounds .* in EPSG:32651, its region .* in EPSG:32652: resample",
    ),
    "no nodata value": (
        lambda r: rewrite(r / "optical" / "S2_20170511" / "B11_20m.tif", {"nodata": None}),
        r"B11_20m\.tif states no nodata value: set it",
    ),
    "radar date without data": (
        lambda r: rewrite(first(r), values=0),
        r"_VH\.tif has no valid pixel: remove this acquisition",
    ),
    "optical date without data": (
        lambda r: rewrite(r / "optical" / "S2_20170630" / "SCL_20m.tif", values=0),
        r"SCL_20m\.tif has no valid pixel: remove this acquisition",
    ),
    "all dates cloudy": (
        lambda r: rewrite(r / "optical" / "S2_20170511" / "SCL_20m.tif", values=9),
        r"no usable optical date: raise max_cloud or add acquisitions",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_answered_by_one_sentence(spoilt, tmp_path, case):
    spoil, message = BAD[case]
    spoil(spoilt)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        cube.build(spoilt, tmp_path / "cube.zarr")
    assert str(error.value).count("\n") == 0
    assert not (tmp_path / "cube.zarr").exists()


def test_bad_parameters(region, built, tmp_path):
    with pytest.raises(ValueError, match="A block of 33 pixels splits a 20 m pixel: choose an even one, say 34"):
        cube.build(region, tmp_path / "cube.zarr", chunk=33)
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="mine holds something that is no cube: give another path"):
        cube.build(region, tmp_path / "mine")
    with pytest.raises(ValueError, match="Unknown scenario 'radar': choose one of"):
        scenarios.scenario(built, "radar")
    with pytest.raises(FileNotFoundError, match="build the cube first"):
        scenarios.scenario(tmp_path / "none.zarr", "m-chi")


def test_dates_in_the_cube_are_those_of_the_region(region, built):
    listed = pd.to_datetime(list(regions.read_record(region)["sar_times"]))
    assert cube.open_cube(built, "sar").time.to_index().equals(listed.rename("time"))


def test_a_damaged_or_missing_chunk_is_named(built, tmp_path):
    path = shutil.copytree(built, tmp_path / "cube.zarr")
    cube.check(path)
    chunk = path / "sar/vv_db/c/0/0/0"
    content = chunk.read_bytes()
    for place in np.linspace(12, len(content) - 1, 9).astype(int):
        chunk.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match=r"sar/vv_db/c/0/0/0 is damaged .*remove the cube and run the build again"):
            cube.check(path)
        with pytest.raises((RuntimeError, ValueError)):
            cube.open_cube(path, "sar").vv_db.compute()
    chunk.unlink()
    with pytest.raises(ValueError, match=r"sar/vv_db lacks 1 of its chunks: remove the cube"):
        cube.open_cube(path, "sar")


def test_a_date_without_a_value_is_told(spoilt, tmp_path):
    path = spoilt / "optical" / "S2_20170630" / "SCL_20m.tif"
    rewrite(path, values=9)
    with pytest.raises(ValueError, match="has no valid optical pixel on 2017-06-30: remove it or lower max_cloud"):
        cube.build(spoilt, tmp_path / "cube.zarr", max_cloud=1.01)
