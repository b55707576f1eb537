"""Sentinel-2 L2A SAFE products to surface reflectance and scene classification on a map grid."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from cropnb.sentinel.files import new_geotiff, other_products, read_xml

BANDS = {"B04": 10, "B8A": 20, "B11": 20, "SCL": 20}  # metres of the result
SCALE = 10_000  # stored numbers are reflectance times this
_AGAIN = "fetch the product again"

log = logging.getLogger(__name__)


def write(safe: str | Path, grid: GeoBox, folder: str | Path) -> Path:
    """Write one product to ``folder/optical/S2_<date>/{B04_10m,B8A_20m,B11_20m,SCL_20m}.tif``; returns that folder.

    Bands are uint16 reflectance x 10000, valid ones at least 1, 0 where the product has no data or is saturated; SCL
    is uint8 with the classes of Sen2Cor. Each band is read at the finest resolution the product has of it and
    resampled to the nearest neighbour, from another UTM zone too. A further tile of the same day fills what is empty;
    a product written before replaces the day.

    safe: folder of a product; grid: 10 m pixels, sides even, so that a 20 m grid has the same extent.

    Raises
    ------
    FileNotFoundError
        For a missing product or band.
    ValueError
        For another product than L2A, no offset since baseline 04.00, a file cut short, XML that declares entities,
        an odd grid, a product without data on the grid.
    """
    safe, folder = Path(safe), Path(folder)
    if any(side % 2 for side in grid.shape):
        raise ValueError(f"A grid of {tuple(grid.shape)} pixels splits a 20 m pixel: give it even sides.")
    date, scale, offsets = _metadata(safe)
    planes = {}
    for band, metres in BANDS.items():
        target = grid if metres == 10 else grid.zoom_out(2)
        number = _warped(_file(safe, band), target)
        planes[f"{band}_{metres}m"] = target, number if band == "SCL" else _reflectance(number, offsets[band], scale)
    if not planes["B04_10m"][1].any():
        raise ValueError(f"{safe} has no data on the grid {grid.boundingbox.bbox}: choose a product that covers it.")
    final = folder / "optical" / f"S2_{date:%Y%m%d}"
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for name, (target, values) in planes.items():
        earlier = other_products(final / f"{name}.tif", target, safe.name)
        if earlier:
            with rasterio.open(final / f"{name}.tif") as file:
                values = np.where(file.read(1) == 0, values, file.read(1))
        tags = {"product": f"{earlier} {safe.name}".strip()}
        with new_geotiff(partial / f"{name}.tif", target, 1, values.dtype, 0, **tags) as file:
            file.write(values, 1)
    final.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    log.info("bands of %s in %s", safe.name, final)
    return final


def _metadata(safe: Path) -> tuple[pd.Timestamp, float, dict[str, float]]:
    """Date of the product, its quantification value, and the number to add to each band before dividing by it."""
    path = safe / "MTD_MSIL2A.xml"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: give the folder of an unpacked L2A product (not L1C).")
    root = read_xml(path)
    if (kind := root.findtext(".//PRODUCT_TYPE")) not in ("S2MSI2A", "S2MSI2Ap"):  # p: the pilot of early 2018
        raise ValueError(f"{safe} is a product of type {kind}: choose one of type S2MSI2A (L2A).")
    added = {e.get("band_id"): float(e.text) for e in root.iter("BOA_ADD_OFFSET")}
    baseline = root.findtext(".//PROCESSING_BASELINE")
    if not added and float(baseline) >= 4:
        raise ValueError(f"{path} of baseline {baseline} gives no BOA_ADD_OFFSET: {_AGAIN}.")
    # Physical bands are B4 where files say B04.
    bands = {e.get("physicalBand"): e.get("bandId") for e in root.iter("Spectral_Information")}
    offsets = {band: added[bands[band.replace("B0", "B")]] if added else 0.0 for band in BANDS if band != "SCL"}
    time = root.findtext(".//PRODUCT_START_TIME")
    scale = next(
        (e.text for e in root.iter() if e.tag.endswith("BOA_QUANTIFICATION_VALUE")), "nan"
    )  # pilot: L2A_BOA_...
    return pd.Timestamp(time), float(scale), offsets


def _file(safe: Path, band: str) -> Path:
    """The image of a band at the finest resolution."""
    found = sorted(safe.glob(f"GRANULE/*/IMG_DATA/R*m/*_{band}_*m.jp2"), key=lambda path: path.parent.name)
    if not found:
        raise FileNotFoundError(f"{safe} has no image of {band}: {_AGAIN}, with all its bands.")
    if len({path.parents[2] for path in found}) > 1:
        raise ValueError(f"{safe} holds several granules, as products before December 2016: choose a later one.")
    return found[0]


def _warped(path: Path, grid: GeoBox) -> np.ndarray:
    """Numbers of an image on the grid (y, x), nearest neighbour, 0 outside it."""
    place = {"crs": str(grid.crs), "transform": grid.affine, "width": grid.width, "height": grid.height}
    try:
        with (
            rasterio.open(path) as file,
            WarpedVRT(file, **place, resampling=Resampling.nearest, src_nodata=0, nodata=0) as warped,
        ):
            return warped.read(1)
    except rasterio.errors.RasterioError as error:
        raise ValueError(f"{path} cannot be read whole ({error}): {_AGAIN}.") from error


def _reflectance(number: np.ndarray, offset: float, scale: float) -> np.ndarray:
    """Reflectance x 10000 (uint16) of a band's numbers; 0 is no data and 65535 saturated, both become 0."""
    value = np.rint((number + np.float32(offset)) * np.float32(SCALE / scale)).clip(1, 65535)
    return np.where((number == 0) | (number == 65535), 0, value).astype("uint16")
