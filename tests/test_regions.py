"""A region's file is checked in sentences; a prepared region goes through the cube whatever it lacks."""

import os

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio.warp import transform_bounds
from shapely.geometry import box

from cropnb import cube, data, regions, scenarios, schema, twin
from cropnb.sentinel import __main__ as commands

MEASURED = {
    "name": "mine",
    "source": "sentinel",
    "crs": "EPSG:32631",
    "bounds": [3.0, 50.8, 3.1, 50.9],
    "season": ["2018-05-01", "2018-09-30"],
    "sentinel1": {"dates": 23},
    "sentinel2": {"max_cloud": 0.1},
    "labels": {"file": "labels.gpkg", "classes": ["maize", "wheat"]},
}


def written(folder, **changes):
    content = {key: value for key, value in (MEASURED | changes).items() if value is not None}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_shipped_regions_are_valid():
    found = {path.stem: regions.read(path) for path in schema.Path("params/regions").glob("*.yaml")}
    shipped = {"beian_twin", "beian_2017", "beziers_2018", "canada_2017", "flanders_2018", "flanders_2019"}
    assert shipped == set(found)
    assert all(name == region.name for name, region in found.items())
    assert found["beian_twin"].without() == []
    assert "region" in found["canada_2017"].lacks()


def test_the_twin_of_the_file_is_the_one_its_functions_write(tmp_path):
    region = regions.read("params/regions/beian_twin.yaml")
    small = {"tracks": {"A": ("2017-05-05T21:42", 1)}, "cloud_cover": {"2017-06-10": 0.02}}
    one = regions.prepare(region.model_copy(update=small), tmp_path / "one", size=800, block_size=400, seed=1)
    other = twin.write(tmp_path / "other", size=800, block_size=400, seed=1, **small)
    assert regions.read_record(one) | {"cloud": 0} == regions.read_record(other) | {"cloud": 0}
    for path in sorted(other.rglob("*.tif")):
        assert path.read_bytes() == (one / path.relative_to(other)).read_bytes()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"bounds": [50.8, 3.0, 50.9, 3.1]}, r"lie outside EPSG:32631.*swapped"),
        ({"bounds": [3.1, 50.8, 3.0, 50.9]}, r"longitude comes first"),
        ({"bounds": [3.0, 150.8, 3.1, 150.9]}, r"no west, south, east, north"),
        ({"bounds": None}, r"either bounds .* or outline"),
        ({"outline": "county.gpkg"}, r"either bounds .* or outline"),
        ({"crs": "EPSG:99999"}, r"is 'EPSG:99999': not known; give a code"),
        ({"crs": "EPSG:4326"}, r"not in metres; give a UTM zone"),
        ({"crs": "EPSG:3857"}, r"a hectare at 50.8 degrees north counts as 2.5\d ha.*such as EPSG:32631"),
        ({"crs": "EPSG:32662"}, r"keeps lengths and areas"),
        ({"bounds": [179.5, -17, -179.5, -16], "crs": "EPSG:32760"}, r"one side of the antimeridian"),
        ({"season": ["2018-09-30", "2018-05-01"]}, r"ends on 2018-05-01, before it begins on 2018-09-30"),
        ({"season": ["2018-09-31", "2018-10-01"]}, r"key 'season.0'"),
        ({"sentinel1": None, "sentinel2": None}, r"name at least one sensor"),
        ({"sentinel1": None}, r"'optical\+m-chi' needs a sensor that is not named"),
        ({"season": ["01/05/2018", "2018-10-01"]}, r"key 'season.0': is '01/05/2018': write a day as 2018-05-01"),
        ({"block_size": 0.5}, r"key 'block_size': is '0.5': blocks are squares of 50 m or more, or 0"),
        ({"labels": {"file": "x", "classes": ["maize", ""]}}, r"key 'labels.classes': .*a class needs a name"),
        ({"labels": {"file": "x", "classes": ["maize", ["a"]]}}, r"key 'labels.classes.1': is \['a'\]"),
        ({"labels": {"file": "x", "classes": ["1", "1.0"]}}, r"1 stands there twice"),
        ({"features": "thermal"}, r"key 'features': is 'thermal'"),
        ({"seeson": []}, r"key 'seeson': not known; did you mean 'season'"),
        ({"labels": None}, r"key 'labels': missing, add it"),
        ({"labels": {"file": "x", "classes": ["maize"]}}, r"key 'labels.classes'"),
        ({"sentinel2": {"max_cloud": 8}}, r"key 'sentinel2.max_cloud': is '8'"),
        ({"name": "My county"}, r"key 'name': is 'My county'"),
        ({"source": "landsat"}, r"key 'source' is 'landsat'; it is one of twin, sentinel"),
    ],
)
def test_a_wrong_file_gets_one_sentence(tmp_path, changes, told):
    path = written(tmp_path, **changes)
    with pytest.raises(ValueError, match=told) as error:
        regions.read(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="beside it lie none"):
        regions.read(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="is not YAML"):
        regions.read(tmp_path / "bad.yaml")


def test_the_grid_is_made_of_whole_coarse_pixels(tmp_path):
    grid = regions.read(written(tmp_path)).grid()
    left, bottom, right, top = grid.boundingbox.bbox
    assert all(value % 20 == 0 for value in (left, bottom, right, top))
    wanted = gpd.GeoSeries([box(*MEASURED["bounds"])], crs=4326).to_crs(32631)
    assert wanted.within(grid.extent.geom.buffer(1)).all()
    wanted.to_frame("geometry").to_file(tmp_path / "county.gpkg")
    for name, told in (("centroid", "1 of type Point and no polygon"), ("boundary", "1 of type LineString and no")):
        getattr(wanted, name).to_frame("geometry").to_file(tmp_path / "none.gpkg")
        with pytest.raises(ValueError, match=told):
            regions.read(written(tmp_path, bounds=None, outline=str(tmp_path / "none.gpkg"))).grid()
    outlined = regions.read(written(tmp_path, bounds=None, outline=str(tmp_path / "county.gpkg"))).grid()
    assert outlined.shape[0] == pytest.approx(grid.shape[0], abs=4)


def test_scenarios_and_chapters_left_out(tmp_path):
    radar = regions.read(written(tmp_path, sentinel2=None, features="m-chi"))
    assert radar.without() == ["twin", "optical"]
    optical = regions.read(written(tmp_path, sentinel1=None, features="optical"))
    assert optical.without() == ["twin", "backscatter", "m-chi"]


def test_products_and_elevation_are_asked_for(tmp_path):
    file = str(tmp_path / "labels.gpkg")
    labels = {"file": file, "classes": ["maize", "wheat"]}
    region = regions.read(written(tmp_path, products=str(tmp_path), labels=labels))
    with pytest.raises(FileNotFoundError, match=r"labels.gpkg does not exist"):
        regions.prepare(region, tmp_path / "region")
    squares = gpd.GeoSeries([box(3.02 + i / 100, 50.82, 3.025 + i / 100, 50.83) for i in range(6)], crs=4326)
    gpd.GeoDataFrame({"crop": ["maize", "wheat"] * 3}, geometry=squares).to_file(file)
    with pytest.raises(FileNotFoundError, match=r"holds no product .*fetch brings them"):
        regions.prepare(region, tmp_path / "region")
    (tmp_path / "S1A_IW_SLC__1SDV_x.SAFE").mkdir()
    with pytest.raises(FileNotFoundError, match=r"elevation raster .*dem.tif of mine is missing"):
        regions.prepare(region, tmp_path / "region")
    assert not (tmp_path / "region").exists()


def test_labels_blocks_and_features_are_looked_at_before_any_product(tmp_path):
    made = tmp_path / "made"
    labels = {"file": str(tmp_path / "labels.gpkg"), "classes": ["maize", "wheat"]}
    options = {"labels": labels, "products": str(made), "features": "optical+backscatter"}
    with pytest.raises(FileNotFoundError, match=r"labels.gpkg does not exist"):
        regions.check(regions.read(written(tmp_path, **options)))
    squares = gpd.GeoSeries([box(3.02 + i / 200, 50.82, 3.022 + i / 200, 50.822) for i in range(12)], crs=4326)
    gpd.GeoDataFrame({"crop": ["maize", "wheat"] * 6}, geometry=squares).to_file(tmp_path / "labels.gpkg")
    with pytest.raises(ValueError, match=r"fewer than three blocks of 10000 m .* Set block_size to (1000|500|200) in"):
        regions.check(regions.read(written(tmp_path, **options)))
    regions.check(regions.read(written(tmp_path, **options, block_size=200)))
    regions.check(regions.read(written(tmp_path, **options, block_size=0)))
    with pytest.raises(ValueError, match=r"With blocks of 200 m .* Set block_size to \d+ in the region"):
        regions.check(regions.read(written(tmp_path, **options, block_size=200)), patch=81)
    few = gpd.GeoSeries([box(3.02 + i / 30, 50.82, 3.022 + i / 30, 50.822) for i in range(3)], crs=4326)
    pairs = gpd.GeoSeries([*few, *few.translate(0.0025)], crs=4326)
    gpd.GeoDataFrame({"crop": ["maize"] * 3 + ["wheat"] * 3}, geometry=pairs).to_file(tmp_path / "labels.gpkg")
    with pytest.raises(ValueError, match=r"locks of 1000 m a single one is left to test, and an accuracy needs two"):
        regions.check(regions.read(written(tmp_path, **options, block_size=1000)), patch=1)
    made.mkdir()
    place = {"width": 2, "height": 2, "crs": "EPSG:32631", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)}
    with rasterio.open(made / "S1_20180602T0500_FEATURES.tif", "w", count=2, dtype="float32", **place) as file:
        file.descriptions = ("vv_db", "vh_db")
    squares.to_frame("geometry").assign(crop=["maize", "wheat"] * 6).to_file(tmp_path / "labels.gpkg")
    regions.check(regions.read(written(tmp_path, **options, block_size=0)))
    with pytest.raises(ValueError, match=r"give no m-chi, which the key features .* asks for: choose others"):
        regions.check(regions.read(written(tmp_path, **options | {"features": "optical+m-chi"})))


def test_points_make_no_region_folder(tmp_path):
    with pytest.raises(ValueError, match="has points and no rasters"):
        regions.prepare(regions.read("params/regions/canada_2017.yaml"), tmp_path / "region")


@pytest.mark.skipif("CROPNB_DATA" not in os.environ, reason="needs the real patches: set CROPNB_DATA")
def test_a_real_place_becomes_a_cube_without_m_chi(tmp_path):
    region = regions.read("params/regions/flanders_2019.yaml")
    folder = regions.prepare(region, tmp_path / "region")
    record = regions.read_record(folder)
    assert list(record["crop_shares"]) == list(region.labels)
    assert sum(record["crop_shares"].values()) == pytest.approx(1, abs=1e-3)
    path = cube.build(folder, tmp_path / "cube.zarr")
    assert set(scenarios.left_out(path)) == {"m-chi", "optical+m-chi", "amplitude"}
    with rasterio.open(folder / "cropland.tif") as file:
        assert 0 < np.mean(file.read(1) == 1) < 1


@pytest.mark.skipif("CROPNB_DATA" not in os.environ, reason="needs the real product: set CROPNB_DATA")
def test_a_real_product_and_a_label_file_become_a_region(tmp_path):
    files = data.fetch("s2_l2a_safe_60m").values()
    safe = next(p for file in files for p in file.parents if p.suffix == ".SAFE")
    (tmp_path / safe.name).symlink_to(safe)
    grid = GeoBox.from_bbox((540000, 5870000, 542000, 5872000), "EPSG:32629", resolution=10)
    squares = [box(540200 + 300 * i, 5870300, 540400 + 300 * i, 5870500) for i in range(6)]
    labels = gpd.GeoDataFrame({"use": ["Mais", "Weizen"] * 3}, geometry=squares, crs=32629)
    labels.to_crs(4326).to_file(tmp_path / "labels.gpkg")
    changes = {
        "crs": "EPSG:32629",
        "bounds": list(transform_bounds("EPSG:32629", "EPSG:4326", *grid.boundingbox)),
        "sentinel1": None,
        "sentinel2": {"max_cloud": 1.0},
        "season": ["2022-05-01", "2022-10-31"],
        "features": "optical",
        "products": str(tmp_path),
        "labels": {
            "file": str(tmp_path / "labels.gpkg"),
            "crop_column": "use",
            "classes": ["maize", "wheat"],
            "mapping": {"Mais": "maize", "Weizen": "wheat"},
        },
    }
    region = regions.read(written(tmp_path, **changes))
    folder = regions.prepare(region, tmp_path / "region")
    assert regions.read_record(folder)["crop_shares"] == pytest.approx({"maize": 0.5, "wheat": 0.5}, abs=0.01)
    path = cube.build(folder, tmp_path / "cube.zarr")
    assert [name for name in scenarios.SCENARIOS if name not in scenarios.left_out(path)] == ["optical"]
    found = scenarios.scenario(path, "optical")
    assert found.sizes["time"] == 1
    assert 0 <= float(found.min()) < float(found.max()) < 2
    away = labels.assign(geometry=labels.translate(3_000_000))
    away.to_file(tmp_path / "labels.gpkg")
    with pytest.raises(ValueError, match="no parcel on the raster"):
        regions.prepare(region, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_commands_say_what_is_wrong_and_find_the_lock_beside_the_region(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setattr("sys.argv", ["sentinel", "plan", "params/regions/beian_twin.yaml"])
    assert commands.main() == 1
    assert "only 'sentinel' has products to fetch" in caplog.text
    path = written(tmp_path, sentinel1=None, features="optical")
    asked = {}

    def search(bounds, start, end, **options):
        asked.update(bounds=bounds, season=(start, end), **options)
        row = {"time": "2018-06-01", "sensor": "optical", "product": "S2A_x", "track": "1", "cloud_cover": 0.0}
        row |= {"covered": 1.0, "bytes": 10, "checksum": "", "url": "https://example.org/x"}
        return commands.catalogue._table([row])

    monkeypatch.setattr(commands.catalogue, "search", search)
    assert commands.plan(path) == tmp_path / "mine.lock.yaml"
    assert asked["sensors"] == ["optical"]
    assert asked["max_cloud"] == 0.1
    assert asked["bounds"][0] == pytest.approx(3.0, abs=0.01)
    monkeypatch.setattr("sys.argv", ["sentinel", "fetch", str(tmp_path / "none.yaml")])
    assert commands.main() == 1


@pytest.mark.parametrize("crs", ["EPSG:32631", "32631", "WGS 84 / UTM zone 31N", "EPSG:32631+5773"])
def test_a_crs_may_be_a_code_a_name_or_compound(tmp_path, crs):
    assert regions.read(written(tmp_path, crs=crs)).crs == "EPSG:32631"


@settings(deadline=None, max_examples=30)
@given(west=st.floats(-179, 178), south=st.floats(-70, 70))
def test_a_utm_zone_is_a_grid_in_its_place_and_the_picture_of_the_web_away_from_the_equator_is_none(west, south):
    zone = 32601 + 100 * (south < 0) + int((west + 180) // 6)
    bounds = (west, south, west + 0.1, south + 0.1)
    schema._check_bounds(bounds, schema.CRS(zone))
    if abs(south) > 20:
        with pytest.raises(ValueError, match=r"lie outside|counts as"):
            schema._check_bounds(bounds, schema.CRS(3857))


def test_yaml_is_read_as_it_stands_and_no_key_twice(tmp_path):
    text = written(tmp_path, labels=None).read_text()
    text += (
        "labels:\n  file: ~/labels.gpkg\n  classes: [NO, 011, 12:30]\n  mapping: {1_0: NO}\n  leave_out: [null, off]\n"
    )
    (tmp_path / "codes.yaml").write_text(text)
    labels = regions.read(tmp_path / "codes.yaml").labels
    assert labels.classes == ["NO", "011", "12:30"]
    assert (labels.mapping, labels.leave_out) == ({"1_0": "NO"}, ["", "off"])
    assert labels.file == str(schema.Path.home() / "labels.gpkg")
    (tmp_path / "twice.yaml").write_text(text.replace("{1_0: NO}", "{corn: NO, rice: NO, corn: '011'}"))
    with pytest.raises(ValueError, match=r"the key 'corn' stands there twice.*line"):
        regions.read(tmp_path / "twice.yaml")
    (tmp_path / "class.yaml").write_text(text.replace("[NO, 011, 12:30]", "[NO, 011, NO]"))
    with pytest.raises(ValueError, match=r"'labels.classes'.*NO stands there twice"):
        regions.read(tmp_path / "class.yaml")


def test_every_file_of_an_input_is_a_source(tmp_path):
    names = ["labels.shp", "labels.dbf", "labels.prj", "dem.tif", "p/S2A_x.SAFE/GRANULE/B04.jp2"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    labels = {"file": str(tmp_path / "labels.shp"), "classes": ["maize", "wheat"]}
    path = written(tmp_path, labels=labels, dem=str(tmp_path / "dem.tif"), products=str(tmp_path / "p"))
    assert {str(file.relative_to(tmp_path)) for file in regions.read(path).sources()} == set(names)


def test_a_network_that_the_dates_cannot_feed_is_told(tmp_path):
    few = written(tmp_path, sentinel1=None, features="optical", sentinel2={"dates": 3})
    assert "13 dates or more, and mine has 3" in regions.read(few).lacks()["cnn3d2d"]
    assert "cnn3d2d" not in regions.read(written(tmp_path)).lacks()
    both = {"sentinel1": {"dates": 10}, "sentinel2": {"dates": 3}}
    assert "cnn3d2d" not in regions.read(written(tmp_path, **both)).lacks()
    assert "cnn3d2d" in regions.read(written(tmp_path, **both, features="m-chi")).lacks()


def test_a_mask_says_what_is_cropland_or_is_refused(tmp_path):
    grid = GeoBox.from_bbox((500_000, 5_600_000, 501_000, 5_601_000), "EPSG:32631", resolution=10)
    half = np.where(np.arange(100)[:, None] < 50, 1, 0) * np.ones((1, 100))

    def cropland(values, dtype="uint8", codes=(), nodata=None, shift=0):
        place = {"crs": "EPSG:32631", "transform": grid.affine * grid.affine.translation(shift, 0)}
        options = {"width": 100, "height": 100, "count": 1, "dtype": dtype, "nodata": nodata}
        with rasterio.open(tmp_path / "mask.tif", "w", driver="GTiff", **place, **options) as file:
            file.write(values.astype(dtype), 1)
        regions.write_cropland(tmp_path / "mask.tif", None, grid, tmp_path / "cropland.tif", codes=codes)
        with rasterio.open(tmp_path / "cropland.tif") as file:
            return file.read(1)

    assert (cropland(half) == half).all()
    assert (cropland(100 * half) == half).all()
    assert (cropland(0.4 * half, "float32") == half).all()
    assert (cropland(40 * half + 10 * (1 - half), codes=[40]) == half).all()
    assert (cropland(half + 255 * (1 - half)) == np.where(half, 1, 255)).all()
    assert (cropland(half, nodata=0) == np.where(half, 1, 255)).all()
    for wrong, told in (
        ({"values": 40 * half + 10}, "cropland_codes"),
        ({"values": 0 * half}, "no cropland"),
        ({"values": half, "shift": 9999}, "another place"),
    ):
        with pytest.raises(ValueError, match=told):
            cropland(**wrong)


def test_the_grid_holds_its_bounds_and_whole_pixels_of_20_m(tmp_path):
    """Bands of 10 and of 20 m share their corners only on multiples of 20 m."""
    for shift in (0.0, 0.00007, 0.00013):  # some 5 and 10 m
        bounds = [side + shift for side in MEASURED["bounds"]]
        grid = regions.read(written(tmp_path, bounds=bounds)).grid()
        left, bottom, right, top = grid.boundingbox
        assert all(side % 20 == 0 for side in (left, bottom, right, top))
        asked = gpd.GeoSeries([box(*bounds)], crs=4326).segmentize(0.01).to_crs(grid.crs).total_bounds
        assert left <= asked[0] < left + 20
        assert bottom <= asked[1] < bottom + 20
        assert right - 20 < asked[2] <= right
        assert top - 20 < asked[3] <= top


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    codes=st.sets(st.integers(0, 254), min_size=1, max_size=3),
    others=st.sets(st.integers(0, 254), min_size=1, max_size=3),
    dtype=st.sampled_from(["uint8", "int16", "float32"]),
    way=st.sampled_from(["tag", "mask", "255"]),
    crs=st.sampled_from(["EPSG:32631", "EPSG:4326", "EPSG:3035"]),
)
def test_cropland_is_where_the_codes_are_in_any_type_and_crs(tmp_path, codes, others, dtype, way, crs):
    """Unknown stays unknown, however the mask says so."""
    assume(others - codes)
    grid = GeoBox.from_bbox((500_000, 5_600_000, 501_000, 5_601_000), "EPSG:32631", resolution=10)
    around = GeoBox.from_bbox(transform_bounds("EPSG:32631", crs, *grid.pad(30).boundingbox), crs, shape=(160, 160))
    third = np.arange(160) // 54
    values = np.choose(third, [min(codes), min(others - codes), 255 if dtype == "uint8" else 300]) * np.ones((160, 1))
    nodata = {"tag": float(values.max()), "mask": None, "255": None}[way]
    assume(way != "255" or dtype == "uint8")
    place = {"crs": crs, "transform": around.affine, "width": 160, "height": 160, "count": 1}
    path = tmp_path / "mask.tif"
    inside = rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True)
    with inside, rasterio.open(path, "w", driver="GTiff", dtype=dtype, nodata=nodata, **place) as file:
        file.write(values.astype(dtype), 1)
        if way == "mask":
            file.write_mask(np.broadcast_to(third < 2, values.shape))
    regions.write_cropland(path, None, grid, tmp_path / "cropland.tif", codes=sorted(codes))
    with rasterio.open(tmp_path / "cropland.tif") as file:
        found = file.read(1)
    assert set(np.unique(found)) == {0, 1, 255}
    row = found[50]
    assert list(dict.fromkeys(row.tolist())) == [1, 0, 255]  # from west to east


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.sampled_from(["dbf", "prj", "cpg", "shx", "qix", "shp.xml"]), unique=True),
    st.lists(st.text("abcS12_", min_size=1, max_size=8), min_size=1, max_size=4),
    st.sampled_from(["labels", "la[b]els", "my labels"]),
)
def test_a_new_file_of_any_input_is_seen(tmp_path_factory, sidecars, nested, stem):
    folder = tmp_path_factory.mktemp("inputs")
    labels = {"file": str(folder / f"{stem}.shp"), "classes": ["maize", "wheat"]}
    region = regions.read(written(folder, labels=labels, products=str(folder / "p")))
    wanted = [folder / f"{stem}.{suffix}" for suffix in ["shp", *sidecars]]
    wanted.append(folder.joinpath("p", *nested) / "image.jp2")
    for path in wanted:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (folder / "other.dbf").touch()
    assert set(region.sources()) == set(wanted)
