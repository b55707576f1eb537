"""Sentinel-2 L2A SAFE products to surface reflectance and scene classification on a map grid."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from cropnb import rasters
from cropnb.sentinel.files import read_xml

BANDS = {"red": "B04", "narrow_nir": "B8A", "swir1": "B11", "scl": "SCL"}
TYPES = ("S2MSI2A", "S2MSI2Ap")  # and of the pilot, until March 2018
LOCAL = 99  # baseline that Sen2Cor writes at home; before version 2.10 without offsets
_AGAIN = "fetch the product again"

log = logging.getLogger(__name__)


def write(safes: str | Path | Sequence[Path], grid: GeoBox, folder: str | Path) -> Path:
    """Write one acquisition to ``folder/optical/S2_<date>/{B04_10m,B8A_20m,B11_20m,SCL_20m}.tif``; returns that folder.

    `safes` are its products, the tiles of one pass: a further one fills what is empty. Bands are uint16 reflectance
    x 10000, valid ones at least 1, 0 where the product has no data or is saturated; SCL is uint8 with the classes of
    Sen2Cor. Each band is read at the finest resolution the product has of it and resampled to the nearest neighbour,
    from another UTM zone too. grid: 10 m pixels, sides even, so that a 20 m grid has the same extent.

    Raises
    ------
    FileNotFoundError
        For a missing product or band.
    ValueError
        For another product than L2A, no offset since baseline 04.00, a file cut short, XML that declares entities,
        an odd grid, a product without data on the grid.
    """
    safes = [Path(safes)] if isinstance(safes, str | Path) else list(safes)
    if any(side % 2 for side in grid.shape):
        raise ValueError(f"A grid of {tuple(grid.shape)} pixels splits a 20 m pixel: give it even sides.")
    planes: dict[str, np.ndarray] = {}
    for safe in safes:
        scale, offsets = _scale(safe)
        for name, band in BANDS.items():
            number = _warped(_file(safe, band), grid if name == "red" else grid.zoom_out(2))
            values = number if name == "scl" else _reflectance(number, offsets[band], scale)
            held = planes.get(name, values)
            planes[name] = np.where((held == 0) if name == "scl" else np.isnan(held), values, held)
    if not np.isfinite(planes["red"]).any():
        place = grid.boundingbox.bbox
        raise ValueError(f"{safes[0]} has no data on the grid {place}: choose a product that covers it.")
    time = describe(safes[0], grid)[0]["time"]
    final = rasters.write_optical(folder, time, planes, grid, product=" ".join(safe.name for safe in safes))
    log.info("bands of %s in %s", safes[0].name, final)
    return final


def describe(safe: Path, grid: GeoBox) -> tuple[dict, np.ndarray]:
    """Time, track and version of a product that can be read, and its scene classification on a grid of 20 m."""
    root, track = _root(safe), re.search(r"_R(\d{3})_", safe.name)
    about = {
        "time": pd.to_datetime(root.findtext(".//PRODUCT_START_TIME", ""), utc=True).tz_localize(None),
        "version": root.findtext(".//PROCESSING_BASELINE", ""),
        "track": str(int(track[1])) if track else "",
    }
    _scale(safe)
    images = {band: _file(safe, band) for band in BANDS.values()}
    return about, _warped(images["SCL"], grid.zoom_out(2))


def _root(safe: Path) -> ElementTree.Element:
    path = safe / "MTD_MSIL2A.xml"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: give the folder of an unpacked L2A product (not L1C).")
    root = read_xml(path)
    if (kind := root.findtext(".//PRODUCT_TYPE")) not in TYPES:
        raise ValueError(f"{safe} is a product of type {kind}: choose one of type S2MSI2A (L2A).")
    return root


def _scale(safe: Path) -> tuple[float, dict[str, float]]:
    """Quantification value of a product, and the number to add to each band before dividing by it."""
    root = _root(safe)
    added = {e.get("band_id"): float(e.text or 0) for e in root.iter("BOA_ADD_OFFSET")}
    baseline = root.findtext(".//PROCESSING_BASELINE", "")
    scale = next((e.text for e in root.iter() if e.tag.endswith("BOA_QUANTIFICATION_VALUE")), "")  # pilot: L2A_BOA_
    if not re.fullmatch(r"\d+(\.\d+)?", baseline) or not re.fullmatch(r"[1-9]\d*(\.\d+)?", scale or ""):
        raise ValueError(
            f"{safe / 'MTD_MSIL2A.xml'} gives no PROCESSING_BASELINE or BOA_QUANTIFICATION_VALUE that can be: {_AGAIN}."
        )
    if not added and 4 <= float(baseline) < LOCAL:
        raise ValueError(f"{safe / 'MTD_MSIL2A.xml'} of baseline {baseline} gives no BOA_ADD_OFFSET: {_AGAIN}.")
    # Physical bands are B4 where files say B04.
    bands = {e.get("physicalBand"): e.get("bandId") for e in root.iter("Spectral_Information")}
    offsets = {}
    for band in ("B04", "B8A", "B11"):
        offset = added.get(bands.get(band.replace("B0", "B"))) if added else 0.0
        if offset is None:
            raise ValueError(f"{safe / 'MTD_MSIL2A.xml'} does not say which offset is that of {band}: {_AGAIN}.")
        offsets[band] = offset
    return float(scale or 0), offsets


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
    """Reflectance of a band's numbers; 0 is no data and 65535 saturated, both become NaN."""
    value = (number + np.float32(offset)) / np.float32(scale)
    return np.where((number == 0) | (number == 65535), np.nan, value.clip(1e-4))
