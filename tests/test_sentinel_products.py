"""The rules of selection, and what lies in a folder of products."""

import shutil

import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from test_rasters import NAMES, save
from test_sentinel_optical import METADATA, image

from cropnb import cube, rasters, regions
from cropnb.sentinel import products
from cropnb.sentinel.choice import choose, row

AREA = shapely.box(0, 0, 1, 1)
SEASON = pd.Timestamp("2018-05-01"), pd.Timestamp("2018-09-30")


def radar(start, stop="", made="A1B2", footprint=AREA, track="88", version="", orbit="016447"):
    name = f"S1A_IW_SLC__1SDV_{pd.Timestamp(start):%Y%m%dT%H%M%S}_{stop or start}_{orbit}_01B4A6_{made}"
    return row(name, "sar", time=pd.Timestamp(start), footprint=footprint, track=track, version=version)


def chosen(*rows, **options):
    passes = choose(rows, AREA, "nothing", **({"season": SEASON} | options))
    return [[each["product"] for each in one] for one in passes]


def test_every_reason_is_told():
    rows = [
        radar("2018-06-01T05:00"),
        radar("2017-06-01T05:00"),
        radar("2018-06-13T05:00", track="7"),
        radar("2018-06-25T05:00", footprint=shapely.box(0, 0, 0.01, 1)),
        radar("2018-07-07T05:00", footprint=shapely.box(2, 2, 3, 3)),
        row("S1A_x", "sar"),
        row("S1A_y", "sar", why="without a download"),
    ]
    assert len(chosen(*rows, orbits=(88,))) == 1
    assert [each["why"] for each in rows] == [
        "",
        "out of the season",
        "of another track",
        "cover less than 99% of the region",
        "off the region",
        "without a time",
        "without a download",
    ]


@pytest.mark.parametrize("second", ["2018-05-06T00:00:15", "2018-05-05T23:59:59"])
def test_slices_of_one_pass_over_midnight_or_the_equator_are_one_acquisition(second):
    north, south = shapely.box(0, 0.5, 1, 1), shapely.box(0, 0, 1, 0.52)
    one = radar("2018-05-05T23:59:50", footprint=south, track="135"), radar(second, footprint=north, track="136")
    one[1]["product"] = one[1]["product"].replace("016447", "016448")
    assert [len(found) for found in chosen(*one)] == [2]


def test_a_slice_listed_twice_is_used_once_in_its_newest_processing():
    rows = radar("2018-06-01T05:00:13", version="2018"), radar("2018-06-01T05:00:14", made="C3D4", version="2021")
    assert chosen(*rows) == [[rows[1]["product"]]]
    assert rows[0]["why"] == "of an older processing"


@given(st.lists(st.sampled_from(range(20)), unique=True, min_size=1), st.integers(0, 25))
def test_dates_are_spread_and_every_product_has_one_fate(days, wanted):
    rows = [radar(pd.Timestamp("2018-06-01T05:00") + pd.Timedelta(days=day)) for day in days]
    passes = choose(rows, AREA, "nothing", season=SEASON, dates=wanted)
    assert len(passes) == min(wanted or len(days), len(days))
    assert sum(not each["why"] for each in rows) == len(passes)
    if wanted > 1:
        assert passes[0][0]["time"].day == min(days) + 1


def product(folder, day, classes=4, baseline="02.07"):
    """A product over all of the grid, of one class."""
    safe = folder / f"S2A_MSIL2A_{day}T100031_N{baseline.replace('.', '')}_R122_T32TPS_{day}T120000.SAFE"
    for band, metres in (("B04", 10), ("B8A", 20), ("B11", 20), ("SCL", 20)):
        size = 400 // metres
        image(safe, band, metres, np.full((size, size), *((classes, "uint8") if band == "SCL" else (1000, "uint16"))))
    time = f"{day[:4]}-{day[4:6]}-{day[6:]}T10:00:31.026Z"
    text = METADATA.replace("2018-05-01T10:00:31.026Z", time).replace("02.07", baseline)
    (safe / "MTD_MSIL2A.xml").write_text(text)
    return safe


@pytest.fixture
def region(tmp_path):
    """Of the source `sentinel`; its folder of products is `products`."""
    from test_sentinel_optical import GRID as PLACE

    labels = {"file": "x.gpkg", "classes": ["maize", "other"]}
    content = {"name": "mine", "source": "sentinel", "crs": str(PLACE.crs), "season": ["2018-05-01", "2018-09-30"]}
    content |= {"bounds": [10.2, 46.0, 10.3, 46.1], "products": str(tmp_path / "products"), "labels": labels}
    content |= {"sentinel1": {}, "sentinel2": {"max_cloud": 0.5}, "features": "optical"}
    return regions.Measured.model_validate(content), PLACE, tmp_path / "products"


def test_a_folder_as_people_have_it(region, tmp_path):
    rules, grid, folder = region
    product(folder / "2018" / "06", "20180601")
    zipped = product(folder, "20180701")
    shutil.make_archive(str(zipped) + "-saved-by-a-browser", "zip", folder, zipped.name)
    shutil.rmtree(zipped)
    product(folder, "20190601")
    product(folder, "20180801", classes=9)
    product(folder, "20180801", baseline="02.04")
    (folder / "._S2A_MSIL2A_20180601T100031.SAFE").mkdir()
    (folder / "__MACOSX" / "S2A_MSIL2A_20180602T100031.SAFE").mkdir(parents=True)
    (folder / "S2A_MSIL2A_20180603T100031_N0207_R122_T32TPS_x.SAFE").mkdir()
    number = np.stack([np.full((40, 40), value, "int16") for value in (-1200, -1900, -700)])
    number[:, :1, :1] = -32768
    save(folder / "S1_20180602T0500_FEATURES.tif", number, NAMES, -32768, 0.01, grid=grid)
    table = pd.DataFrame(products.bring(rules, grid, tmp_path / "made")).set_index("product")
    why = table.why.groupby(level=0).first()
    assert sorted(path.name for path in tmp_path.glob("made/*/*")) == [
        "S1_20180602T0500_FEATURES.tif", "S2_20180601", "S2_20180701",
    ]  # fmt: skip
    assert why.filter(like="_20190601").tolist() == ["out of the season"]
    assert sorted(why.filter(like="_20180801")) == ["above 50% cloud", "of an older processing"]
    assert why.filter(like="_20180603").iloc[0].startswith("that cannot be read: ")
    assert sorted(path.name for path in folder.iterdir() if path.suffix == ".SAFE")[0].startswith("._")  # untouched
    record = {"name": "mine", "simulated": False, "crs": str(grid.crs), "bounds": list(grid.boundingbox.bbox)}
    regions.write_record(tmp_path / "made", record | {"max_cloud": 0.5, "pixel_size": 10})
    sar = cube.open_cube(cube.build(tmp_path / "made", tmp_path / "cube.zarr"), "sar")
    assert float(sar.vv_db.max()) == float(sar.vv_db.min()) == pytest.approx(-12)
    assert int(np.isnan(sar.vv_db).sum()) == 1


def test_the_cross_ratio_follows_from_both_polarisations(region, tmp_path):
    rules, grid, folder = region
    folder.mkdir()
    number = np.stack([np.full((40, 40), value, "int16") for value in (-1200, -1900)])
    number[0, 0, 0] = -32768
    save(folder / "S1_20180602T0500_FEATURES.tif", number, NAMES[:2], -32768, 0.01, grid=grid)
    products.bring(rules, grid, tmp_path / "made")
    planes = rasters.read(next(tmp_path.glob("made/sar/*.tif")))
    assert list(planes) == ["vv_db", "vh_db", "cross_ratio_db"]
    assert np.nanmin(planes["cross_ratio_db"]) == pytest.approx(-7) == np.nanmax(planes["cross_ratio_db"])
    assert np.isnan(planes["cross_ratio_db"]).sum() == 1
    assert rules.without() == ["twin", "m-chi"]
    assert rules.most_dates() == np.inf  # of optical, none of which is there yet
    assert rules.model_copy(update={"features": "backscatter"}).most_dates() == 1


def test_products_smaller_than_the_region_are_told_to_be(region, tmp_path):
    rules, grid, folder = region
    product(folder, "20180601")
    with pytest.raises(ValueError, match=r"1 cover less than 99% .* or draw the bounds inside what they cover"):
        products.bring(rules, grid.pad(5), tmp_path / "made")


def test_a_folder_with_nothing_to_use_says_why(region, tmp_path):
    rules, grid, folder = region
    product(folder, "20190601")
    with pytest.raises(ValueError, match=r"no optical acquisition to use .* \(1 out of the season\)"):
        products.bring(rules, grid, tmp_path / "made")


def test_radar_of_other_tools_that_cannot_be_used_is_left_out_and_told(region, tmp_path):
    """What such a raster does not say cannot be known once it is on the region's grid."""
    rules, grid, folder = region
    folder.mkdir()
    number = np.stack([np.full((40, 40), value, "int16") for value in (-1200, -1900, -700)])
    save(folder / "S1_20180602T0500_FEATURES.tif", number, NAMES, -32768, 0.01, grid=grid)
    save(folder / "S1_20180603T0500_FEATURES.tif", number, NAMES, None, 0.01, grid=grid)
    save(folder / "S1_20180604T0500_FEATURES.tif", number, ("VV", "VH", "ratio"), -32768, 0.01, grid=grid)
    (folder / "S1_20180601T0500_FEATURES.tif").write_bytes(b"")
    whole = (folder / "S1_20180602T0500_FEATURES.tif").read_bytes()
    (folder / "S1_20180605T0500_FEATURES.tif").write_bytes(whole[: len(whole) // 2])
    table = pd.DataFrame(products.bring(rules, grid, tmp_path / "made")).set_index("product").why
    assert table["S1_20180602T0500_FEATURES"] == ""
    for day, told in ((1, "not recognized"), (3, "states no nodata value"), (4, "describe them as"), (5, "S1_2018")):
        assert table[f"S1_2018060{day}T0500_FEATURES"].startswith("that cannot be read: ")
        assert told in table[f"S1_2018060{day}T0500_FEATURES"]
    assert rules.without() == ["twin", "m-chi"]


def test_what_is_named_otherwise_or_damaged_is_told_and_stops_nothing(region, tmp_path):
    rules, grid, folder = region
    product(folder, "20180601")
    (folder / "S2A_MSIL2A_20180701T100031_N0207_R122_T32TPS_x.ZIP").write_bytes(b"PK of half a download")
    (lacking,) = product(folder, "20180702").rglob("*_B11_*")
    lacking.unlink()
    for day, old, new in (("20180703", "02.07", ""), ("20180704", ">10000<", "><"), ("20180705", "02.07", "latest")):
        about = product(folder, day) / "MTD_MSIL2A.xml"
        about.write_text(about.read_text().replace(old, new))
    number = np.stack([np.full((40, 40), value, "int16") for value in (-1200, -1900, -700)])
    others = ("S1_20180602T050012_FEATURES.tif", "S1_20180602T0500Z_FEATURES.tif", "S1_20180602T0500_FEATURES.TIF")
    for name in ("S1_20181302T0500_FEATURES.tif", "S1_20180603T0500_FEATURES.tif", *others):
        save(folder / name, number, NAMES, -32768, 0.01, grid=grid)
    table = pd.DataFrame(products.bring(rules, grid, tmp_path / "made")).set_index("product").why
    assert sorted(path.name for path in tmp_path.glob("made/*/*")) == ["S1_20180603T0500_FEATURES.tif", "S2_20180601"]
    assert "cut short or damaged" in table.filter(like="_20180701").iloc[0]
    assert "has no image of B11" in table.filter(like="_20180702").iloc[0]
    for day in (3, 4, 5):
        assert "PROCESSING_BASELINE or BOA_QUANTIFICATION_VALUE" in table.filter(like=f"_2018070{day}").iloc[0]
    assert "month must be in 1..12" in table["S1_20181302T0500_FEATURES"]
    assert table.str.contains("radar of other tools is named S1_YYYYMMDDTHHMM_FEATURES.tif").sum() == len(others)
    assert rules.model_copy(update={"features": "backscatter"}).most_dates() == 2  # by their names, at most
