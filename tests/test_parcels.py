"""Labels come in whole, or with a sentence that says what to do, and go to the grid by pixel centres."""

import logging
import os
from decimal import Decimal
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from shapely.geometry import GeometryCollection, LineString, MultiPolygon, Point, Polygon, box

from cropnb.parcels import rasterise, read, statistics

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
    assert set(report.counts[report.counts > 0].index) == {"read", *CLASSES}
    assert (report.counts["read"], report.counts["wheat"], len(report.overlaps)) == (12, 3, 0)


def test_labels_in_another_crs_are_reprojected_and_it_is_said(tmp_path, caplog):
    path = saved(table().to_crs(4326), tmp_path)
    with caplog.at_level(logging.WARNING):
        parcels, report = read(path, crs=CRS, classes=CLASSES)
    assert report.counts["reprojected from EPSG:4326"] == 12
    assert f"{path}, 12 parcels: reprojected from EPSG:4326 12" in caplog.text
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
    assert report.counts["read"] == 17
    assert report.counts["repaired"] == 2
    assert report.counts["dropped parcels"] == report.dropped_parcels == 2
    with pytest.raises(AttributeError, match="counts no harvest"):
        report.harvest  # noqa: B018
    assert report.counts["dropped pieces"] == 2  # the point and line of the collection
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
        (lambda f: f.iloc[:0], {}, r"holds no features"),
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


def test_parcels_outside_the_raster(tmp_path, caplog):
    far = gpd.GeoSeries([square(i) for i in range(4)]).translate(xoff=5_000)
    more = gpd.GeoDataFrame({"crop": ["maize"] * 4}, geometry=far.to_numpy(), crs=CRS)
    path = saved(pd.concat([table(), more], ignore_index=True), tmp_path)
    with caplog.at_level(logging.WARNING):
        inside, report = read(path, crs=CRS, classes=CLASSES, grid=GRID)
    assert inside["parcel_id"].tolist() == list(range(1, 13))
    assert report.counts["outside"] == 4
    assert "outside 4" in caplog.text
    away = saved(table().set_geometry(table().translate(xoff=50_000)), tmp_path, "away.gpkg")
    with pytest.raises(ValueError, match=r"no parcel on the raster.*650000.*EPSG:32652.*600000.*EPSG:32652"):
        read(away, crs=CRS, classes=CLASSES, grid=GRID)


def test_rasters_of_unusable_parcels_are_refused():
    frame = table().assign(parcel_id=range(1, 13))
    with pytest.raises(ValueError, match=r"Crops \['wheat'\] are not among"):
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
    assert report.counts["read"] == report.counts.filter(like="reprojected from").item() == 301
    assert report.counts[list(classes)].to_dict() == {"maize": 49, "wheat": 56, "other": 196}
    grid = GeoBox.from_bbox(tuple(parcels.total_bounds), "EPSG:32632", resolution=10)
    labels = rasterise(parcels, grid, classes)
    result = statistics(parcels, labels)
    declared = gpd.read_file(path)["area"].sum()  # hectares, the file's own column
    assert (result["parcels"] * result["mean_ha"]).sum() == pytest.approx(declared, rel=0.25)
    assert result["pixels"].sum() * 0.01 == pytest.approx(parcels.union_all().area / 1e4, rel=0.02)


def test_a_wrong_column_of_bavaria_is_suggested():
    with pytest.raises(ValueError, match=r"no column 'Nutzart'.*set crop_column='Nutz_ant'"):
        read(bavaria(), crs="EPSG:32632", crop_column="Nutzart", classes=CLASSES)


def test_a_hole_that_touches_its_shell_stays_a_hole(tmp_path):
    left, bottom = 600_100, 5_300_100
    shell = [(left, bottom), (left + 400, bottom), (left + 400, bottom + 400), (left, bottom + 400)]
    hole = [(left, bottom), (left + 400, bottom), (left + 200, bottom + 200)]
    frame = table()
    frame["geometry"] = frame.translate(yoff=600)
    frame.loc[0, "geometry"] = Polygon(shell, [hole])
    parcels, report = read(saved(frame, tmp_path, "labels.parquet"), crs=CRS, classes=CLASSES)
    assert report.counts["repaired"] == 1
    assert parcels.area[0] == pytest.approx(120_000)


def test_several_layers_are_named_and_one_is_chosen(tmp_path):
    path = tmp_path / "survey.gpkg"
    table().to_file(path, layer="fields_2017")
    table(CROPS[::-1]).to_file(path, layer="fields_2018")
    with pytest.raises(ValueError, match="several layers: set layer to one of fields_2017, fields_2018"):
        read(path, crs=CRS, classes=CLASSES)
    with pytest.raises(ValueError, match="no layer 'fields'"):
        read(path, crs=CRS, classes=CLASSES, layer="fields")
    parcels, _ = read(path, crs=CRS, classes=CLASSES, layer="fields_2018")
    assert parcels["crop"].tolist() == CROPS[::-1]
    table().to_file(tmp_path / "styled.gpkg", layer="fields")
    table().to_file(tmp_path / "styled.gpkg", layer="layer_styles")
    assert len(read(tmp_path / "styled.gpkg", crs=CRS, classes=CLASSES)[0]) == 12


@settings(deadline=None, max_examples=15)
@given(
    codes=st.lists(st.integers(0, 10**6), min_size=4, max_size=4, unique=True),
    kind=st.sampled_from(["int", "float", "str", "text of a float", "category", "Decimal"]),
)
def test_codes_are_compared_as_text_whatever_their_column(tmp_path_factory, codes, kind):
    code = dict(zip(CLASSES, codes, strict=True))
    values = [code[crop] for crop in CROPS]
    column = {"int": values, "float": [*map(float, values)], "str": [f" {value} " for value in values]}
    column |= {"text of a float": [f"{value}.0" for value in values], "category": pd.Categorical(values)}
    column |= {"Decimal": [Decimal(f"{value}.00") for value in values]}
    frame = pd.concat([table(code=column[kind]), table(["maize"], code=[None])], ignore_index=True)
    frame.loc[12, "geometry"] = square(40)
    path = saved(frame.drop(columns="crop"), tmp_path_factory.mktemp("codes"), "labels.parquet")
    options = {"crs": CRS, "classes": CLASSES, "crop_column": "code"}
    mapping = {str(number): crop for crop, number in code.items()}
    with pytest.raises(ValueError, match=r"1 crop names.*'' \(1\)"):
        read(path, **options, mapping=mapping)
    parcels, report = read(path, **options, mapping=mapping, leave_out=[None])
    assert parcels["crop"].tolist() == CROPS
    assert report.counts["left out"] == 1
    frame.set_index("code").to_parquet(path)  # an index with a name is a column
    assert read(path, **options, mapping=mapping, leave_out=[None])[0]["crop"].tolist() == CROPS


def test_two_spellings_of_one_letter_are_one_crop(tmp_path):
    names = ["mai\u0308s", "soja", "other"] * 4
    parcels, _ = read(saved(table(names), tmp_path), crs=CRS, classes=["ma\u00efs", "soja", "other"])
    assert set(parcels["crop"]) == {"ma\u00efs", "soja", "other"}


def test_a_parcel_in_the_file_again_counts_once(tmp_path):
    frame = table([*CROPS, "maize", "maize"])
    frame.loc[12, "geometry"] = square(0).reverse()
    frame.loc[13, "geometry"] = square(0).buffer(-5)
    parcels, report = read(saved(frame, tmp_path), crs=CRS, classes=CLASSES)
    assert report.counts["duplicates"] == 1
    assert report.counts["same crop overlaps"] == 1
    assert len(parcels) == 13


def test_a_background_under_the_fields_is_refused(tmp_path):
    frame = table([*CROPS, "other"])
    frame.loc[12, "geometry"] = box(599_000, 5_299_000, 602_000, 5_302_000)
    with pytest.raises(ValueError, match=r"maize, soybean, wheat is claimed.*Parcel 13 overlaps 9 parcels.*background"):
        read(saved(frame, tmp_path), crs=CRS, classes=CLASSES)


def test_what_is_no_polygon_is_called_by_its_name(tmp_path):
    shapes = {"Point": table().centroid, "LineString": table().boundary}
    shapes["GeometryCollection"] = gpd.GeoSeries([GeometryCollection([point]) for point in shapes["Point"]], crs=CRS)
    for name, kept in shapes.items():
        with pytest.raises(ValueError, match=f"12 of type {name} and no polygon"):
            read(saved(table().set_geometry(kept), tmp_path, f"{name}.gpkg"), crs=CRS, classes=CLASSES)
    path = saved(table(), tmp_path, "labels.shp")
    path.with_suffix(".dbf").unlink()
    with pytest.raises(ValueError, match=r"has shapes and no table: a shapefile needs its \.dbf beside it"):
        read(path, crs=CRS, classes=CLASSES)


@settings(deadline=None, max_examples=10)
@given(
    name=st.sampled_from(["labels.gpkg", "labels.fgb", "labels.geojson", "labels.shp", "labels.parquet"]),
    crs=st.sampled_from([CRS, "EPSG:4326", "+proj=utm +zone=52 +datum=WGS84 +units=m", "EPSG:32651", "EPSG:4490"]),
    raised=st.booleans(),
    wrapped=st.sampled_from(["Polygon", "MultiPolygon", "GeometryCollection"]),
    mixed=st.booleans(),
)
def test_parcels_come_in_from_any_format_crs_and_kind_of_geometry(tmp_path_factory, name, crs, raised, wrapped, mixed):
    """Heights, collections, and points among the parcels change nothing of the parcels."""
    wrap = {"Polygon": lambda s: s, "MultiPolygon": lambda s: MultiPolygon([s])}
    wrap["GeometryCollection"] = lambda s: GeometryCollection([s, s.centroid])
    if name.endswith(".shp"):  # holds polygons only, of one kind
        wrapped, mixed = "MultiPolygon", False
    shapes = [wrap[wrapped](shape) for shape in table().geometry] + [square(40).centroid] * mixed
    shapes = shapely.force_3d(np.array(shapes, object), 120.0) if raised else shapes
    frame = gpd.GeoDataFrame({"crop": [*CROPS, *["maize"] * mixed]}, geometry=list(shapes), crs=CRS)
    path = saved(frame.to_crs(crs), tmp_path_factory.mktemp("any"), name)
    parcels, report = read(path, crs=CRS, classes=CLASSES, grid=GRID)
    assert sorted(parcels["crop"]) == sorted(CROPS)  # FlatGeobuf orders by place
    assert not parcels.has_z.any()
    assert np.allclose(parcels.area, table().area, rtol=1e-3)
    assert np.allclose(parcels.total_bounds, table().total_bounds, atol=0.05)
    assert report.counts["dropped parcels"] == mixed
    assert "{" not in report.counts.to_string()  # a CRS without a code goes by its name


def test_swapped_axes_and_metres_called_degrees_get_their_remedy(tmp_path):
    turned = table().to_crs(4326)
    turned["geometry"] = shapely.transform(turned.geometry.to_numpy(), lambda xy: xy[:, ::-1])
    with pytest.raises(ValueError, match="latitude comes first in it"):
        read(saved(turned, tmp_path), crs=CRS, classes=CLASSES, grid=GRID)
    with pytest.raises(ValueError, match="they are not degrees"):
        read(saved(table().set_crs(4326, allow_override=True), tmp_path, "m.gpkg"), crs=CRS, classes=CLASSES)
    frame = table().set_geometry(shapely.transform(table().geometry.to_numpy(), lambda xy: xy[:, ::-1]))
    with pytest.raises(ValueError, match="with x and y swapped they would meet"):
        read(saved(frame.set_crs(CRS, allow_override=True), tmp_path, "s.gpkg"), crs=CRS, classes=CLASSES, grid=GRID)


def test_a_shift_that_is_not_known_is_told_with_its_size(tmp_path):
    path = saved(table().to_crs("EPSG:2439"), tmp_path)  # Beijing 1954, 126 degrees east
    with pytest.raises(ValueError, match=r"Beijing 1954.*move by \d+ to 1\d\d m.*towgs84"):
        read(path, crs=CRS, classes=CLASSES)
    known = "+proj=tmerc +lat_0=0 +lon_0=126 +x_0=500000 +ellps=krass +towgs84=12.646,-155.176,-80.863"
    parcels, _ = read(path, crs=CRS, classes=CLASSES, own_crs=known)
    assert 15 < parcels.centroid.distance(table().centroid).mean() < 150
    _, report = read(saved(table().to_crs("EPSG:4490"), tmp_path, "c.gpkg"), crs=CRS, classes=CLASSES)
    assert report.counts["reprojected from EPSG:4490"] == 12


@pytest.mark.parametrize("classes", [["maize", "maize"], [str(i) for i in range(255)]])
def test_classes_differ_and_fit_a_byte(tmp_path, classes):
    with pytest.raises(ValueError, match="are to differ, and to be at most 254"):
        read(saved(table(), tmp_path), crs=CRS, classes=classes)
