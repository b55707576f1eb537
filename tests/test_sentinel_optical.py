"""L2A products to bands on the grid: a true product of baseline 04.00, and small made ones."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.warp import transform

from cropnb.sentinel import optical

NAME = "S2A_MSIL2A_20221005T115411_N0400_R023_T29UNU_20221005T164454.SAFE"
MADE = "S2A_MSIL2A_20180501T100031_N0207_R122_T32TPS_20180501T120000.SAFE"
FILES = {"B04_10m.tif", "B8A_20m.tif", "B11_20m.tif", "SCL_20m.tif"}
METADATA = """<?xml version="1.0" encoding="UTF-8"?>
<n1:Level-2A_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-2A.xsd">
<PRODUCT_START_TIME>2018-05-01T10:00:31.026Z</PRODUCT_START_TIME>
<PRODUCT_TYPE>S2MSI2A</PRODUCT_TYPE><PROCESSING_BASELINE>02.07</PROCESSING_BASELINE>
<BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE>
</n1:Level-2A_User_Product>"""
CORNER = 600_000, 5_100_000
GRID = GeoBox.from_bbox((CORNER[0], CORNER[1] - 400, CORNER[0] + 400, CORNER[1]), "EPSG:32632", resolution=10)


@pytest.fixture(scope="module")
def real():
    if "CROPNB_DATA" not in os.environ:
        pytest.skip("needs a true product: set CROPNB_DATA to the folder of real data")
    return Path(os.environ["CROPNB_DATA"]) / "s2_l2a_safe_60m" / NAME


@pytest.fixture
def made(tmp_path):
    """A product of baseline 02.07, without offset: 10 and 20 m bands of 400 m, the red one at 20 m too."""
    safe = tmp_path / MADE
    for band, metres in (("B04", 10), ("B04", 20), ("B8A", 20), ("B11", 20), ("SCL", 20)):
        size = 400 // metres
        number = np.arange(size * size).reshape(size, size) + 100
        number = (number % 12).astype("uint8") if band == "SCL" else number.astype("uint16")
        if band != "SCL":
            number[0, 0], number[0, 1], number[:, -2:] = 65535, 3, 0
        image(safe, band, metres, number)
    (safe / "MTD_MSIL2A.xml").write_text(METADATA)
    return safe


def image(safe, band, metres, number):
    path = safe / f"GRANULE/L2A_T32TPS/IMG_DATA/R{metres}m/T32TPS_20180501T100031_{band}_{metres}m.jp2"
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {"crs": GRID.crs.to_wkt(), "transform": rasterio.Affine(metres, 0, CORNER[0], 0, -metres, CORNER[1])}
    profile = {"driver": "JP2OpenJPEG", "width": number.shape[1], "height": number.shape[0], "count": 1}
    lossless = {"QUALITY": "100", "REVERSIBLE": "YES"}
    with rasterio.open(path, "w", **profile, **place, **lossless, dtype=number.dtype) as file:
        file.write(number, 1)


def read(path):
    with rasterio.open(path) as file:
        return file.read(1)


def raw(safe, band):
    return read(next(safe.rglob(f"*_{band}_60m.jp2")))


def test_true_product_on_its_own_zone(real, tmp_path):
    # 9.6 km around a border of the swath, where the product's 60 m pixels end.
    number = {band: raw(real, band) for band in optical.BANDS.values()}
    row = 900
    column = int(np.flatnonzero(np.diff((number["B04"][row] > 0).astype(int)))[0])
    window = slice(row - 80, row + 80), slice(column - 80, column + 80)
    left, top = 499980 + 60 * (column - 80), 5900040 - 60 * (row - 80)
    grid = GeoBox.from_bbox((left, top - 9600, left + 9600, top), "EPSG:32629", resolution=10)
    folder = optical.write(real, grid, tmp_path)
    assert folder == tmp_path / "optical" / "S2_20221005"
    assert {path.name for path in folder.iterdir()} == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["optical"]
    for name in FILES:
        band, step = name[:3], 6 if "10m" in name else 3
        with rasterio.open(folder / name) as file:
            assert file.nodata == 0
            assert (file.bounds.left, file.bounds.top) == (left, top)
            assert file.crs == "EPSG:32629"
            values = file.read(1)
        expected = number[band][window]
        if band != "SCL":
            valid = expected > 0
            assert 0.1 < valid.mean() < 0.9
            expected = np.where(valid, np.maximum(expected.astype(int) - 1000, 1), 0)
        assert values.dtype == ("uint8" if band == "SCL" else "uint16")
        np.testing.assert_array_equal(values, expected.repeat(step, axis=0).repeat(step, axis=1))


def test_true_product_in_another_zone(real, tmp_path):
    x, y = transform("EPSG:32629", "EPSG:32630", [540_000], [5_845_000])
    x, y = round(x[0] / 20) * 20, round(y[0] / 20) * 20
    grid = GeoBox.from_bbox((x, y - 2000, x + 2000, y), "EPSG:32630", resolution=10)
    folder = optical.write(real, grid, tmp_path)
    for name, metres in (("B04_10m", 10), ("SCL_20m", 20)):
        values, number = read(folder / f"{name}.tif"), raw(real, name[:3])
        rng = np.random.default_rng(4)
        rows, columns = rng.integers(0, len(values), (2, 300))
        easts, norths = transform("EPSG:32630", "EPSG:32629", x + metres * (columns + 0.5), y - metres * (rows + 0.5))
        source = number[
            ((5900040 - np.array(norths)) // 60).astype(int), ((np.array(easts) - 499980) // 60).astype(int)
        ]
        if name.startswith("B"):
            source = np.where(source > 0, np.maximum(source.astype(int) - 1000, 1), 0)
        # GDAL warps by an approximation good to an eighth of a pixel, so that a few neighbours differ.
        assert (values[rows, columns] == source).mean() > 0.97


@pytest.mark.parametrize("told", ["S2MSI2A", "S2MSI2Ap", "99.99"])  # also of the pilot, and made at home
def test_product_without_offset(made, tmp_path, told):
    text = METADATA.replace("02.07", told) if told[0] == "9" else METADATA.replace("S2MSI2A", told)
    (made / "MTD_MSIL2A.xml").write_text(text)
    folder = optical.write(made, GRID, tmp_path)
    red = np.arange(1600).reshape(40, 40) + 100
    red[0, 0], red[0, 1], red[:, -2:] = 0, 3, 0  # saturated, and no data
    np.testing.assert_array_equal(read(folder / "B04_10m.tif"), red)
    nir = np.arange(400).reshape(20, 20) + 100
    nir[0, 0], nir[0, 1], nir[:, -2:] = 0, 3, 0
    np.testing.assert_array_equal(read(folder / "B8A_20m.tif"), nir)
    np.testing.assert_array_equal(read(folder / "SCL_20m.tif"), (np.arange(400).reshape(20, 20) + 100) % 12)


def test_offset_belongs_to_its_band(made, tmp_path):
    offsets = "".join(f'<BOA_ADD_OFFSET band_id="{i}">{-100 * i}</BOA_ADD_OFFSET>' for i in range(13))
    names = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12"]
    bands = "".join(f'<Spectral_Information bandId="{i}" physicalBand="{b}"/>' for i, b in enumerate(names))
    text = METADATA.replace("02.07", "05.00").replace("</n1:", f"{offsets}{bands}</n1:")
    (made / "MTD_MSIL2A.xml").write_text(text)
    folder = optical.write(made, GRID, tmp_path)
    red, swir = read(folder / "B04_10m.tif"), read(folder / "B11_20m.tif")
    assert red[20, 20] == 20 * 40 + 20 + 100 - 300
    assert red[0, 1] == 1  # valid, however dark
    assert red[0, -1] == 0
    assert (swir[:, :-2] <= 1).all()  # all numbers are below 1100


def test_a_second_tile_of_the_pass_fills_what_is_empty(made, tmp_path):
    folder = optical.write(made, GRID, tmp_path)
    first = {name: read(folder / name) for name in FILES}
    second = Path(shutil.copytree(made, tmp_path / MADE.replace("32TPS", "32TQS")))
    for band, metres in (("B04", 10), ("B8A", 20), ("B11", 20), ("SCL", 20)):
        image(second, band, metres, np.full((400 // metres,) * 2, 7, "uint8" if band == "SCL" else "uint16"))
    assert optical.write([made, second], GRID, tmp_path) == folder
    for name, earlier in first.items():
        np.testing.assert_array_equal(read(folder / name), np.where(earlier == 0, 7, earlier))
    with rasterio.open(folder / "SCL_20m.tif") as file:
        assert file.tags()["product"] == f"{MADE} {second.name}"
    optical.write(second, GRID, tmp_path)  # makes the day anew
    assert (read(folder / "B04_10m.tif") == 7).all()


def test_products_that_cannot_be_used(made, tmp_path):
    def refused(message, kind=ValueError, grid=GRID):
        with pytest.raises(kind, match=message):
            optical.write(made, grid, tmp_path)
        assert not (tmp_path / "optical").exists()

    metadata = made / "MTD_MSIL2A.xml"
    metadata.write_text(METADATA.replace("S2MSI2A", "S2MSI1C"))
    refused(r"is a product of type S2MSI1C: choose one of type S2MSI2A")
    metadata.write_text(METADATA.replace("02.07", "04.00"))
    refused(r"MTD_MSIL2A.xml of baseline 04.00 gives no BOA_ADD_OFFSET: fetch the product again")
    offsets = "".join(f'<BOA_ADD_OFFSET band_id="{i}">-1000</BOA_ADD_OFFSET>' for i in range(13))
    metadata.write_text(METADATA.replace("02.07", "04.00").replace("</n1:", f"{offsets}</n1:"))
    refused(r"MTD_MSIL2A.xml does not say which offset is that of B04: fetch the product again")
    metadata.write_text(METADATA.replace("?>", '?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'))
    refused(r"MTD_MSIL2A.xml declares the document type 'a', which no SAFE has")
    metadata.write_text(METADATA[:300])
    refused(r"MTD_MSIL2A.xml is not whole XML")
    metadata.rename(made / "MTD_MSIL1C.xml")
    refused(r"MTD_MSIL2A.xml is missing: give the folder of an unpacked L2A product", FileNotFoundError)
    metadata.write_text(METADATA)
    refused(r"A grid of \(40, 39\) pixels splits a 20 m pixel: give it even sides", grid=GRID[:, :39])
    refused(r"has no data on the grid .* choose a product that covers it", grid=GRID.translate_pix(1000, 0))
    path = next(made.rglob("*B11_20m.jp2"))
    contents = path.read_bytes()
    path.write_bytes(contents[: len(contents) // 2])
    refused(rf"{path.name} cannot be read whole .*: fetch the product again")
    path.unlink()
    refused(r"has no image of B11: fetch the product again", FileNotFoundError)
    path.write_bytes(contents)
    shutil.copytree(next(made.glob("GRANULE/*")), made / "GRANULE" / "another")
    refused(r"holds several granules, as products before December 2016: choose a later one")
