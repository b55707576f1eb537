"""How an acquisition lies on disk: names, bands and units, with the one reader and the one writer of rasters.

    sar/S1_<YYYYMMDDTHHMM>_VV.tif, _VH.tif   single-look complex numbers with the tag `calibration`, 2.5 m by 10 m
    sar/S1_<YYYYMMDDTHHMM>_C2.tif            the covariance of VV and VH
    sar/S1_<YYYYMMDDTHHMM>_FEATURES.tif      radar features that another tool made
    optical/S2_<YYYYMMDD>/<band>.tif         reflectance x 10000, and the scene classification of Sen2Cor

The reader gives numbers in the unit of the band: what a raster declares as mask, nodata, scale and offset is applied.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import rasterio
from numpy.typing import ArrayLike
from odc.geo.geobox import GeoBox
from rasterio.enums import MaskFlags
from rasterio.windows import Window

from cropnb import files
from cropnb.polarimetry import C2

BANDS = {"red": "B04_10m", "narrow_nir": "B8A_20m", "swir1": "B11_20m", "scl": "SCL_20m"}
# x and y of each raster, metres
SPACING: dict[str, tuple[float, float]] = dict.fromkeys(("vv", "vh"), (2.5, 10))
SPACING |= dict.fromkeys(("c2", "features", "red"), (10, 10)) | dict.fromkeys(("narrow_nir", "swir1", "scl"), (20, 20))
PIXEL = 10.0  # of the region's grid, metres
UNITS = {"dB": ("db", "decibel"), "1": ("1", "reflectance", "linear")}
QUANTUM = 1e-4  # reflectance of one step of a whole number that states no scale, as Sentinel-2's own


def radar_path(folder: str | Path, time: pd.Timestamp, kind: str) -> Path:
    """Where the VV, VH, C2 or FEATURES of a radar acquisition lie in a region folder."""
    return Path(folder) / "sar" / f"S1_{time:%Y%m%dT%H%M}_{kind}.tif"


def optical_path(folder: str | Path, time: pd.Timestamp, band: str) -> Path:
    """Where a band (a key of `BANDS`) of an optical acquisition lies in a region folder."""
    return Path(folder) / "optical" / f"S2_{time:%Y%m%d}" / f"{BANDS[band]}.tif"


@contextmanager
def new(
    path: str | Path, grid: GeoBox, bands: list[str], dtype: str, nodata: float, **tags: object
) -> Iterator[rasterio.io.DatasetWriter]:
    """A GeoTIFF on `grid` to write into, its bands described; whole or not there."""
    place = {"crs": str(grid.crs), "transform": grid.affine, "height": grid.height, "width": grid.width}
    tiled = {"tiled": True, "blockxsize": 256, "blockysize": 256, "bigtiff": "IF_SAFER"}
    options = {"driver": "GTiff", "count": len(bands), "dtype": dtype, "nodata": nodata}
    with files.whole(path) as part, rasterio.open(part, "w", **options, **place, **tiled) as file:
        file.update_tags(**tags)
        file.descriptions = bands
        yield file


def write(
    path: str | Path, planes: Mapping[str, ArrayLike], grid: GeoBox, dtype: str, nodata: float, **tags: object
) -> None:
    """Write planes (y, x) by the names of their bands, over the extent of `grid` in as many pixels as they have."""
    values = np.stack([np.asarray(plane) for plane in planes.values()])
    with new(path, grid.zoom_to(values.shape[1:]), list(planes), dtype, nodata, **tags) as file:
        file.write(values)


def write_optical(
    folder: str | Path, time: pd.Timestamp, planes: Mapping[str, ArrayLike], grid: GeoBox, **tags: object
) -> Path:
    """Write one optical acquisition, bands by the keys of `BANDS`; the folder of its files.

    Reflectance (NaN where there is none) becomes uint16 x 10000, valid numbers at least 1; "scl" are classes, uint8.
    """
    for band, values in planes.items():
        dtype, number = "uint8", np.asarray(values)
        if band != "scl":
            dtype, number = "uint16", np.rint(round(1 / QUANTUM) * number).clip(1, 65535)
            number = np.where(np.isnan(number), 0, number)
        write(optical_path(folder, time, band), {band: number.astype(dtype)}, grid, dtype, 0, **tags)
    return optical_path(folder, time, "scl").parent


def read(
    path: str | Path, window: Window | None = None, shape: tuple[int, int] | None = None, quantum: float = 1.0
) -> dict[str, np.ndarray]:
    """Bands (y, x) of a raster by their descriptions, float32 in their unit, NaN where masked or nodata.

    Parameters
    ----------
    window
        Part of the raster; None reads all of it.
    shape
        Pixels of the result, to look at a part or a raster coarsely.
    quantum
        What a step of a whole number is worth where the raster states neither scale nor offset.
    """
    with rasterio.open(path) as file:
        held = file.read(window=window, out_shape=shape and (file.count, *shape), masked=True)
        missing = np.ma.getmaskarray(held)
        if set(file.descriptions) == set(C2) and file.nodata == 0:  # VV and VH may well be uncorrelated
            missing = np.broadcast_to(missing.all(axis=0), missing.shape)
        values = np.where(missing, np.nan, held.data).astype("float32", copy=False)
        for plane, scale, offset, dtype in zip(values, file.scales, file.offsets, file.dtypes, strict=True):
            if (scale, offset) != (1, 0):
                plane[:] = plane * scale + offset
            elif "int" in dtype and quantum != 1:
                plane *= np.float32(quantum)
        values[~np.isfinite(values)] = np.nan
        return dict(zip(file.descriptions, values, strict=True))


def read_reflectance(
    path: str | Path, window: Window | None = None, shape: tuple[int, int] | None = None
) -> np.ndarray:
    """Reflectance (y, x) of an optical band, NaN where there is none."""
    return next(iter(read(path, window, shape, QUANTUM).values()))


def read_classes(path: str | Path, window: Window | None = None) -> np.ndarray:
    """Classes (y, x) of a raster of whole numbers, 0 where masked or nodata."""
    with rasterio.open(path) as file:
        return file.read(1, window=window, masked=True).filled(0)


def read_complex(path: str | Path, window: Window | None = None) -> np.ndarray:
    """Calibrated single-look complex amplitude (y, x); 0 where there is none."""
    with rasterio.open(path) as file:
        return file.read(1, window=window) / np.float32(file.tags()["calibration"])


def blocks(read: Callable[[slice, slice], np.ndarray], shape: tuple[int, ...], chunk: int) -> da.Array:
    """A lazy array (..., y, x), float32, whose blocks of `chunk` by `chunk` pixels are ``read(rows, columns)``."""

    def block(block_info: Any = None) -> np.ndarray:
        *_, rows, columns = block_info[None]["array-location"]
        return read(slice(*rows), slice(*columns))

    chunks = da.core.normalize_chunks((*shape[:-2], chunk, chunk), shape)
    return da.map_blocks(block, chunks=chunks, dtype="float32", meta=np.empty((0,) * len(shape), "float32"))


def fault(path: str | Path, kind: str, grid: GeoBox) -> str:
    """What is wrong with a raster of a kind of `SPACING`, with its remedy; empty where nothing is."""
    (width, height), (dx, dy) = grid.shape[::-1], SPACING[kind]
    wanted = grid.zoom_to((round(height * PIXEL / dy), round(width * PIXEL / dx)))
    with rasterio.open(path) as file:
        same = np.allclose(file.transform[:6], wanted.affine[:6], rtol=0, atol=0.01) and file.shape == wanted.shape
        if not same or file.crs != rasterio.CRS.from_user_input(str(grid.crs)):
            here, there = (*file.bounds, *file.res), (*grid.boundingbox.bbox, dx, dy)
            return (
                f"has bounds and spacing {here} m in {file.crs}, its region {there} in {grid.crs}: resample it to the "
                "region's grid, north up"
            )
        if MaskFlags.all_valid in file.mask_flag_enums[0]:
            return "states no nodata value: set it, for example gdal_edit.py -a_nodata 0"
        scaled = {*file.scales, *file.offsets} != {1, 0}
        if kind in ("vv", "vh", "scl") and (scaled or (kind != "scl" and file.nodata != 0)):
            return "has a scale, an offset or another nodata value than 0, which no file of its kind has: write it anew"
        units = dict(zip(file.descriptions, file.units, strict=True))
        is_complex, is_whole = file.dtypes[0].startswith("complex"), "int" in file.dtypes[0]
        if is_complex != (kind in ("vv", "vh")) or (kind == "scl" and not is_whole):
            return f"is {file.dtypes[0]}: give classes as whole numbers, single-look data as complex, others as real"
        # A coarse look is enough unless it finds nothing.
        looks = [{"shape": tuple(np.minimum(file.shape, 64))}, *({"window": w} for _, w in file.block_windows(1))]
    for look in looks:
        planes = _planes(path, kind, **look)
        if all(np.isfinite(plane).any() for plane in planes.values()):
            break
    else:
        return "has no valid pixel: remove this acquisition, it misses the region"
    for name, plane in planes.items():
        unit, low, high = _expected(name)
        if (stated := units.get(name)) and stated.lower() not in UNITS[unit]:
            return f"gives {name} in {stated}: bring it to the unit {unit}"
        if not low <= (middle := float(np.nanmedian(plane))) <= high:
            return (
                f"has {name} with a median of {middle:.4g}, which should lie between {low:g} and {high:g} ({unit}): "
                "bring it to this unit, or state its scale and offset"
            )
    return ""


def _planes(path: str | Path, kind: str, **part: Any) -> dict[str, np.ndarray]:
    """Bands of a part, by the names that `_expected` knows."""
    if kind in ("c2", "features"):
        return {name: plane for name, plane in read(path, **part).items() if name}
    if kind in BANDS and kind != "scl":
        return {kind: read_reflectance(path, **part)}
    with rasterio.open(path) as file:  # 0 is no data
        shape = part.get("shape")
        return {kind: np.where(file.read(1, window=part.get("window"), out_shape=shape) == 0, np.nan, 1)}


def _expected(name: str) -> tuple[str, float, float]:
    """Unit of a band, and the smallest and largest median that it can have over a landscape."""
    if name.endswith("_db"):
        return "dB", -60, 0
    if name in BANDS:
        return "1", 0.002, 1.5
    return "1", (-10 if name.startswith("c12") else 0), 10
