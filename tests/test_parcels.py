"""Labels come in whole, or with a sentence that says what to do, and go to the grid by pixel centres."""

import logging
import os
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from shapely.geometry import GeometryCollection, LineString, MultiPolygon, Point, Polygon, box

from cropnb.parcels import rasterise, read, statistics, within

CLASSES = ("maize", "soybean", "wheat", "other")
CRS = "EPSG:32652"
GRID = GeoBox.from_bbox((600_000, 5_300_000, 601_000, 5_300_800), CRS, resolution=10)
CROPS = [crop for crop in CLASSES for _ in range(3)]


def square(i, side=90):
    """A parcel of `side` m in cell i of a grid of 100 m cells, ten a row."""
    x, y = 600_000 + i % 10 * 100, 5_300_000 + i // 10 * 100
    return box(x, y, x + side, y + side)


def table(crops=CROPS, **columns):
    """Twelve square parcels, three of each class."""
    frame = gpd.GeoDataFrame({"crop": list(crops)}, geometry=[square(i) for i in range(len(crops))], crs=CRS)
    return frame.assign(**columns)


def saved(frame, folder, name="labels.gpkg"):
    path = folder / name
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_file(path)
    return path


@pytest.mark.parametrize("name", ["labels.gpkg", "labels.shp", "labels.geojson", "labels.parquet"])
def test_any_vector_file_gives_the_same_parcels(tmp_path, name):
    parcels, report = read(saved(table(), tmp_path, name), crs=CRS, classes=CLASSES)
    assert list(parcels.columns) == ["parcel_id", "crop", "geometry"]
    assert parcels["parcel_id"].dtype == np.int64
    assert parcels.crs == CRS
    assert parcels["crop"].tolist() == CROPS
    assert parcels.geometry.normalize().geom_equals_exact(table().geometry.normalize(), 1e-6).all()
    assert (report.read, report.reprojected, report.repaired, len(report.overlaps)) == (12, 0, 0, 0)
    assert report.table().loc["wheat", "count"] == 3


def test_labels_in_another_crs_are_reprojected_and_it_is_said(tmp_path, caplog):
    path = saved(table().to_crs(4326), tmp_path)
    with caplog.at_level(logging.WARNING):
        parcels, report = read(path, crs=CRS, classes=CLASSES)
    assert report.reprojected == 12
    assert report.crs == "EPSG:4326"
    assert f"{path}: reprojected from EPSG:4326 to EPSG:32652" in caplog.text
    assert np.allclose(parcels.total_bounds, table().total_bounds, atol=1e-3)


def test_polygons_are_repaired_or_dropped_and_counted(tmp_path):
    bow_tie = Polygon([(600_500, 5_300_500), (600_580, 5_300_580), (600_580, 5_300_500), (600_500, 5_300_580)])
    corner, tip, back = (600_780, 5_300_580), (600_780, 5_300_640), (600_700, 5_300_580)
    spike = Polygon([(600_700, 5_300_500), (600_780, 5_300_500), corner, tip, corner, back])
    frame = table([*CROPS, *["maize"] * 5])
    frame.loc[12:, "geometry"] = [
        bow_tie,
        spike,
        None,
        Polygon(),
        GeometryCollection([square(70), Point(600_000, 5_300_000), LineString([(0, 0), (1, 1)])]),
    ]
    parcels, report = read(saved(frame, tmp_path, "labels.parquet"), crs=CRS, classes=CLASSES)
    assert report.read == 17
    assert report.repaired == 2
    assert report.dropped_parcels == 2
    assert report.dropped_pieces == 3  # the line left of the spike, the point and line of the collection
    assert len(parcels) == 15
    assert parcels.is_valid.all()
    assert set(parcels.geom_type) <= {"Polygon", "MultiPolygon"}
    assert parcels["parcel_id"].tolist() == [*range(1, 15), 17]  # a number never moves to another parcel
    assert parcels.geometry[12].area == pytest.approx(80 * 80 / 2)


def test_overlapping_crops_are_named_and_the_contested_pixels_are_nobodys(tmp_path, caplog):
    frame = table()
    frame.loc[3, "geometry"] = box(600_280, 5_300_000, 600_390, 5_300_090)  # soybean over the third maize parcel
    frame.loc[1, "geometry"] = box(600_080, 5_300_000, 600_190, 5_300_090)  # maize over maize
    path = saved(frame, tmp_path)
    with caplog.at_level(logging.WARNING):
        parcels, report = read(path, crs=CRS, classes=CLASSES)
    assert report.overlaps.values.tolist() == [[3, "maize", 4, "soybean", 900.0]]
    assert "parcels 3 (maize) and 4 (soybean) overlap by 900 m2, which nobody gets" in caplog.text
    labels = rasterise(parcels, GRID, CLASSES)
    contested = labels.sel(x=slice(600_280, 600_290), y=slice(5_300_090, 5_300_000))
    assert contested.sizes == {"y": 9, "x": 1}
    assert (contested.crop == 255).all()
    assert (contested.parcel == 0).all()
    agreed = labels.sel(x=slice(600_080, 600_090), y=slice(5_300_090, 5_300_000))
    assert (agreed.crop == 0).all()


def test_unknown_crops_are_all_listed_with_counts_and_keys(tmp_path):
    path = saved(table([*CROPS, "Silomais", "Silomais", "Raps"]), tmp_path)
    with pytest.raises(ValueError, match=r"labels.gpkg has 2 crop names.*'Silomais' \(2\), 'Raps' \(1\)") as error:
        read(path, crs=CRS, classes=CLASSES)
    assert "such as {'Silomais': 'other', 'Raps': 'other'}" in str(error.value)
    mapping = {"Silomais": "maize", "Raps": "other"}
    parcels, _ = read(path, crs=CRS, classes=CLASSES, mapping=mapping)
    assert parcels["crop"].tolist() == [*CROPS, "maize", "maize", "other"]


def test_a_parcel_without_a_crop_name_is_an_unknown_crop(tmp_path):
    with pytest.raises(ValueError, match=r"'' \(1\)"):
        read(saved(table([*CROPS, None]), tmp_path), crs=CRS, classes=CLASSES)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda f: f.set_crs(None, allow_override=True), {}, r"has no CRS: write it into the file"),
        (lambda f: f.iloc[:0], {}, r"holds no parcels"),
        (lambda f: f.rename(columns={"crop": "crops"}), {}, r"no column 'crop' but \['crops'\].*='crops'"),
        (lambda f: f, {"id_column": "number"}, r"no column 'number'.*set id_column"),
        (lambda f: f.assign(number=[*range(11), 10]), {"id_column": "number"}, r"3 values.*first is 0"),
        (lambda f: f.assign(number="A7"), {"id_column": "number"}, r"12 values.*'A7'.*leave id_column out"),
        (lambda f: f.iloc[:-1], {}, r"too few parcels of {'other': 2}.*map the crop to another class"),
        (lambda f: f, {"mapping": {"maize": "corn"}}, r"leads to no class: {'maize': 'corn'}.*'soybean'"),
        (lambda f: f, {"crs": "EPSG:4326"}, r"projected CRS in metres, not WGS 84"),
    ],
)  # fmt: skip
def test_bad_labels_are_answered_by_one_sentence(tmp_path, change, options, message):
    path = saved(change(table()), tmp_path, "labels.parquet")
    with pytest.raises(ValueError, match=message):
        read(path, **({"crs": CRS, "classes": CLASSES} | options))


def test_files_that_are_not_labels(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.gpkg does not exist"):
        read(tmp_path / "nowhere.gpkg", crs=CRS, classes=CLASSES)
    (tmp_path / "text.gpkg").write_text("hello")
    with pytest.raises(ValueError, match=r"text.gpkg is no vector file geopandas reads"):
        read(tmp_path / "text.gpkg", crs=CRS, classes=CLASSES)
    (tmp_path / "table.csv").write_text("crop,area\nmaize,1\n")
    with pytest.raises(ValueError, match=r"table.csv is a table without geometry"):
        read(tmp_path / "table.csv", crs=CRS, classes=CLASSES)
    table()[["crop"]].to_parquet(tmp_path / "table.parquet")
    with pytest.raises(ValueError, match=r"table.parquet is no vector file"):
        read(tmp_path / "table.parquet", crs=CRS, classes=CLASSES)


def test_ids_of_the_file_are_kept_whatever_its_index(tmp_path):
    frame = table(number=[f"{n}" for n in range(101, 113)]).set_index(np.arange(50, 62))
    parcels, _ = read(saved(frame, tmp_path, "labels.parquet"), crs=CRS, id_column="number", classes=CLASSES)
    assert parcels["parcel_id"].tolist() == list(range(101, 113))
    assert parcels["crop"].tolist() == CROPS


def test_parcels_outside_the_raster(caplog):
    frame = table().assign(parcel_id=range(1, 13))
    shifted = frame.copy()
    shifted.loc[:3, "geometry"] = shifted.geometry[:4].translate(xoff=5_000)
    with caplog.at_level(logging.WARNING):
        inside = within(shifted, GRID)
    assert inside["parcel_id"].tolist() == list(range(5, 13))
    assert "4 of 12 parcels lie outside the raster and are dropped" in caplog.text
    far = frame.set_geometry(frame.translate(xoff=50_000))
    with pytest.raises(ValueError, match=r"no parcel lies on.*650000.*EPSG:32652.*600000.*EPSG:32652"):
        within(far, GRID)
    with pytest.raises(ValueError, match=r"EPSG:4326.*EPSG:32652.*read the parcels with crs='EPSG:32652'"):
        within(frame.to_crs(4326), GRID)


def test_rasters_of_unusable_parcels_are_refused():
    frame = table().assign(parcel_id=range(1, 13))
    with pytest.raises(ValueError, match=r"crops \['wheat'\] are not among"):
        rasterise(frame, GRID, ("maize", "soybean", "other"))
    for wrong in (0, 2, 2**31):
        with pytest.raises(ValueError, match=r"from 1 to 2147483647"):
            rasterise(frame.assign(parcel_id=[wrong, *range(2, 13)]), GRID, CLASSES)


@settings(deadline=None, max_examples=25)
@given(
    corners=st.tuples(st.floats(0, 900), st.floats(0, 700), st.floats(5, 300), st.floats(5, 300)),
    crop=st.sampled_from(CLASSES),
)
def test_a_pixel_belongs_to_the_parcel_that_holds_its_centre(corners, crop):
    x, y, width, height = corners
    left, bottom = 600_000 + round(x, 1) + 0.03, 5_300_000 + round(y, 1) + 0.03  # never exactly on a centre
    shape = box(left, bottom, left + round(width, 1), bottom + round(height, 1))
    parcel = gpd.GeoDataFrame({"parcel_id": [7], "crop": [crop]}, geometry=[shape], crs=CRS)
    labels = rasterise(parcel, GRID, CLASSES)
    bounds = shape.bounds
    inside = (labels.x > bounds[0]) & (labels.x < bounds[2]) & (labels.y > bounds[1]) & (labels.y < bounds[3])
    inside = inside.transpose("y", "x").values
    assert (labels.parcel.values == np.where(inside, 7, 0)).all()
    assert (labels.crop.values == np.where(inside, CLASSES.index(crop), 255)).all()


def test_raster_types_and_place():
    labels = rasterise(table().assign(parcel_id=range(1, 13)), GRID, CLASSES)
    assert labels.parcel.dtype == np.int32
    assert labels.crop.dtype == np.uint8
    assert labels.odc.geobox == GRID
    assert labels.crop.attrs["flag_meanings"] == "maize soybean wheat other"


def test_a_parcel_of_two_parts_is_one_parcel():
    shape = MultiPolygon([square(0), square(25)])
    parcel = gpd.GeoDataFrame({"parcel_id": [4], "crop": ["wheat"]}, geometry=[shape], crs=CRS)
    assert int((rasterise(parcel, GRID, CLASSES).parcel == 4).sum()) == 162


def test_statistics_count_pixels_and_hectares():
    frame = table().assign(parcel_id=range(1, 13))
    result = statistics(frame, rasterise(frame, GRID, CLASSES))
    assert result.index.tolist() == list(CLASSES)
    assert result["parcels"].tolist() == [3] * 4
    assert result["pixels"].tolist() == [243] * 4
    assert result["share"].sum() == pytest.approx(1)
    assert np.allclose(result["mean_ha"], 0.81)


BAVARIA = {
    "Silomais": "maize",
    "Koernermais": "maize",
    "Silomais mit Bluehstreifen/Bejagungsschneisen": "maize",
    "Winterweizen (Weichweizen)": "wheat",
}


def bavaria():
    root = os.environ.get("CROPNB_DATA")
    path = Path(root or "") / "bavaria_parcels_2018" / "Test_area.shp"
    if not root or not path.exists():
        pytest.skip("needs the Bavarian parcels: set CROPNB_DATA to the folder of real data")
    return path


def test_real_declarations_of_bavaria():
    path, classes = bavaria(), ("maize", "wheat", "other")
    options = {"crs": "EPSG:32632", "crop_column": "Nutz_ant", "classes": classes}
    with pytest.raises(ValueError, match=r"31 crop names.*'Wiesen \(einschl. Streuobstwiesen\)' \(74\)"):
        read(path, **options, mapping=BAVARIA)
    names = gpd.read_file(path)["Nutz_ant"].unique()
    mapping = dict.fromkeys(names, "other") | BAVARIA
    parcels, report = read(path, **options, mapping=mapping)
    assert (report.read, report.reprojected) == (301, 301)
    assert report.per_class == {"maize": 49, "wheat": 56, "other": 196}
    grid = GeoBox.from_bbox(tuple(parcels.total_bounds), "EPSG:32632", resolution=10)
    labels = rasterise(within(parcels, grid), grid, classes)
    result = statistics(parcels, labels)
    declared = gpd.read_file(path)["area"].sum()  # hectares, the file's own column
    assert (result["parcels"] * result["mean_ha"]).sum() == pytest.approx(declared, rel=0.25)
    assert result["pixels"].sum() * 0.01 == pytest.approx(parcels.union_all().area / 1e4, rel=0.02)


def test_a_wrong_column_of_bavaria_is_suggested():
    with pytest.raises(ValueError, match=r"no column 'Nutzart'.*set crop_column='Nutz_ant'"):
        read(bavaria(), crs="EPSG:32632", crop_column="Nutzart", classes=CLASSES)
