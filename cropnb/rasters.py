"""How an acquisition lies on disk: names, bands and units, with the one reader and the one writer of rasters.

    sar/S1_<YYYYMMDDTHHMM>_VV.tif, _VH.tif   single-look complex numbers with the tag `calibration`, 2.5 m by 10 m
    sar/S1_<YYYYMMDDTHHMM>_C2.tif            the covariance of VV and VH
    sar/S1_<YYYYMMDDTHHMM>_FEATURES.tif      radar features that another tool made
    optical/S2_<YYYYMMDD>/<band>.tif         reflectance x 10000, and the scene classification of Sen2Cor

The reader gives numbers in the unit of the band: what a raster declares as mask, nodata, scale and offset is applied.
A raster that does not declare what it must, or whose numbers cannot be what their band says, is refused by `fault`.
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
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.warp import reproject, transform_bounds
from rasterio.windows import Window

from cropnb import files
from cropnb.polarimetry import C2

BANDS = {"red": "B04_10m", "narrow_nir": "B8A_20m", "swir1": "B11_20m", "scl": "SCL_20m"}
# x and y of each raster, metres
SPACING: dict[str, tuple[float, float]] = dict.fromkeys(("vv", "vh"), (2.5, 10))
SPACING |= dict.fromkeys(("c2", "features", "red"), (10, 10)) | dict.fromkeys(("narrow_nir", "swir1", "scl"), (20, 20))
_SIGMA0 = "surface_backwards_scattering_coefficient_of_radar_wave"
FEATURES = {
    "sar": {
        "vv_db": {"long_name": "backscatter VV", "standard_name": _SIGMA0, "units": "dB"},
        "vh_db": {"long_name": "backscatter VH", "standard_name": _SIGMA0, "units": "dB"},
        "cross_ratio_db": {"long_name": "cross ratio VH - VV", "units": "dB"},
        "ps": {"long_name": "m-chi single bounce, amplitude", "units": "1"},
        "pd": {"long_name": "m-chi double bounce, amplitude", "units": "1"},
        "pv": {"long_name": "m-chi volume scattering, amplitude", "units": "1"},
        "vv_amplitude": {"long_name": "amplitude VV, after the m-chi window", "units": "1"},
        "vh_amplitude": {"long_name": "amplitude VH, after the m-chi window", "units": "1"},
    },
    "optical": {
        name: {"long_name": long_name, "standard_name": "surface_bidirectional_reflectance", "units": "1"}
        for name, long_name in {"red": "red, B4", "narrow_nir": "narrow NIR, B8A", "swir1": "SWIR1, B11"}.items()
    },
}
NAMES = {"c2": C2, "features": tuple(FEATURES["sar"])}
PIXEL = 10.0  # of the region's grid, metres
UNITS = {"dB": ("db", "decibel", "decibels"), "1": ("1", "reflectance", "linear")}
LOOK = 512  # pixels a side of a raster that are looked at
FILLED = 0.01  # of exact zeros beyond which they stand for no data
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
        bands = [band for band in file.indexes if file.colorinterp[band - 1] != ColorInterp.alpha]
        held = file.read(bands, window=window, out_shape=shape and (len(bands), *shape), masked=True)
        missing = np.ma.getmaskarray(held)
        if set(file.descriptions) == set(C2) and file.nodata == 0:  # VV and VH may well be uncorrelated
            missing = np.broadcast_to(missing.all(axis=0), missing.shape)
        values = np.where(missing, np.nan, held.data).astype("float32", copy=False)
        for plane, band in zip(values, bands, strict=True):
            scale, offset = file.scales[band - 1], file.offsets[band - 1]
            if (scale, offset) != (1, 0):
                plane[:] = plane * scale + offset
            elif "int" in file.dtypes[band - 1] and quantum != 1:
                plane *= np.float32(quantum)
        values[~np.isfinite(values)] = np.nan
        return {file.descriptions[band - 1] or f"band {band}": plane for band, plane in zip(bands, values, strict=True)}


def onto(
    path: str | Path,
    grid: GeoBox,
    resampling: Resampling = Resampling.bilinear,
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> dict[str, np.ndarray]:
    """Bands of a raster as of `read` on a grid (y, x), in any CRS and either way up; nearest where pixels coincide.

    limits: numbers outside are no data.
    """
    with rasterio.open(path) as file:
        bounds = transform_bounds(str(grid.crs), file.crs, *grid.pad(2).boundingbox)
        places = np.array([~file.transform * (x, y) for x in bounds[::2] for y in bounds[1::2]])
        size = np.array([file.width, file.height])
        left, top = (places.min(axis=0) - 3).clip(0, size - 1)
        right, bottom = (places.max(axis=0) + 3).clip(1, size)
        window = Window.from_slices((int(top), int(bottom)), (int(left), int(right)))  # a pixel at least
        crs, transform = file.crs, file.window_transform(window)
    held = read(path, window)
    shift = ~grid.affine * (transform * (0, 0))
    steps = np.allclose(transform[:6:4], grid.affine[:6:4]) and np.allclose(shift, np.round(shift), atol=1e-3)
    if steps and crs == rasterio.CRS.from_user_input(str(grid.crs)):
        resampling = Resampling.nearest
    planes = np.stack([np.where((plane < limits[0]) | (plane > limits[1]), np.nan, plane) for plane in held.values()])
    out = np.full((len(planes), *grid.shape), np.nan, "float32")
    place = {"dst_crs": str(grid.crs), "dst_transform": grid.affine, "src_nodata": np.nan, "dst_nodata": np.nan}
    reproject(planes, out, src_crs=crs, src_transform=transform, resampling=resampling, **place)
    return dict(zip(held, out, strict=True))


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


def track(path: str | Path) -> str:
    """Relative orbit that a radar raster names; empty where it names none."""
    with rasterio.open(path) as file:
        return file.tags().get("orbit_track", "")


def blocks(read: Callable[[slice, slice], np.ndarray], shape: tuple[int, ...], chunk: int) -> da.Array:
    """A lazy array (..., y, x), float32, whose blocks of `chunk` by `chunk` pixels are ``read(rows, columns)``."""

    def block(block_info: Any = None) -> np.ndarray:
        *_, rows, columns = block_info[None]["array-location"]
        return read(slice(*rows), slice(*columns))

    chunks = da.core.normalize_chunks((*shape[:-2], chunk, chunk), shape)
    return da.map_blocks(block, chunks=chunks, dtype="float32", meta=np.empty((0,) * len(shape), "float32"))


def fault(path: str | Path, kind: str, grid: GeoBox | None = None) -> str:
    """What is wrong with a raster of a kind of `SPACING`, with its remedy; empty where nothing is.

    grid: that of the region whose raster it is; None where it is still to be brought onto one.
    """
    with rasterio.open(path) as file:
        if grid and (why := _misplaced(file, kind, grid)):
            return why
        if file.crs is None:
            return "has no CRS: write it into the file"
        bands = [
            name for name, is_of in zip(file.descriptions, file.colorinterp, strict=True) if is_of != ColorInterp.alpha
        ]
        known = NAMES.get(kind, bands)
        if not set(bands) <= set(known) or len(set(bands)) < len(bands) or (kind == "c2" and len(bands) < len(C2)):
            return f"has bands {bands}: describe them as {list(known)}"
        if MaskFlags.all_valid in file.mask_flag_enums[0]:
            return "states no nodata value: set it, for example gdal_edit.py -a_nodata 0"
        tags, name = file.tags(), kind.upper()
        if kind in ("vv", "vh") and tags.get("polarisation", name) != name:
            return f"holds polarisation {tags['polarisation']}: give the product's VV and VH, each in its file"
        if kind in ("vv", "vh") and not file.dtypes[0].startswith("complex"):
            return f"is {file.dtypes[0]}, detected data: give the single-look complex (SLC) product"
        if kind in ("vv", "vh") and "calibration" not in tags:
            return "has no tag `calibration`: store K of sigma0 amplitude = number / K there"
        scaled = {*file.scales, *file.offsets} != {1, 0}
        if kind in ("vv", "vh", "scl") and (scaled or (kind != "scl" and file.nodata != 0)):
            return "has a scale, an offset or another nodata value than 0, which no file of its kind has: write it anew"
        units = dict(zip(file.descriptions, file.units, strict=True))
        if ("complex" in file.dtypes[0] and kind not in ("vv", "vh")) or (
            kind == "scl" and "int" not in file.dtypes[0]
        ):
            return f"is {file.dtypes[0]}: give classes as whole numbers, single-look data as complex, others as real"
        # A coarse look is enough unless it finds nothing.
        looks = [{"shape": tuple(np.minimum(file.shape, LOOK))}, *({"window": w} for _, w in file.block_windows(1))]
    for look in looks:
        planes = _planes(path, kind, **look)
        if all(np.isfinite(plane).any() for plane in planes.values()):
            return next(filter(None, (_doubt(name, plane, units.get(name)) for name, plane in planes.items())), "")
    return "has no valid pixel: remove this acquisition, it misses the region"


def _misplaced(file: rasterio.DatasetReader, kind: str, grid: GeoBox) -> str:
    """How a raster of a region lies otherwise than its kind is to; empty where it does not."""
    (width, height), (dx, dy) = grid.shape[::-1], SPACING[kind]
    wanted = grid.zoom_to((round(height * PIXEL / dy), round(width * PIXEL / dx)))
    same = np.allclose(file.transform[:6], wanted.affine[:6], rtol=0, atol=0.01) and file.shape == wanted.shape
    if same and file.crs == rasterio.CRS.from_user_input(str(grid.crs)):
        return ""
    here, there = (*file.bounds, *file.res), (*grid.boundingbox.bbox, dx, dy)
    return (
        f"has bounds and spacing {here} m in {file.crs}, its region {there} in {grid.crs}: resample it to the "
        "region's grid, north up"
    )


def _doubt(name: str, plane: np.ndarray, stated: str | None) -> str:
    """Why the numbers of a band cannot be what its name and the unit that it states say."""
    unit, (least, low, high, most) = _expected(name)
    if stated and stated.strip().lower() not in UNITS[unit]:
        return f"gives {name} in {stated}: bring it to the unit {unit}"
    if not low <= (middle := float(np.nanmedian(plane))) <= high:
        return (
            f"has {name} with a median of {middle:.4g}, which should lie between {low:g} and {high:g} ({unit}): "
            "bring it to this unit, or state its scale and offset"
        )
    ends, zeros = (float(np.nanmin(plane)), float(np.nanmax(plane))), float((plane == 0).mean())
    if ends[0] < least or ends[1] > most:
        return f"has {name} from {ends[0]:.4g} to {ends[1]:.4g} ({unit}): state the number that stands for no data"
    if zeros > FILLED and (unit == "dB" or name in BANDS):
        return f"has {name} of exactly 0 in {zeros:.0%} of its pixels: state 0 as its nodata value"
    return ""


def _planes(path: str | Path, kind: str, **part: Any) -> dict[str, np.ndarray]:
    """Bands of a part, by the names that `_expected` knows."""
    if kind in ("c2", "features"):
        return read(path, **part)
    if kind in BANDS and kind != "scl":
        return {kind: read_reflectance(path, **part)}
    with rasterio.open(path) as file:  # 0 is no data
        shape = part.get("shape")
        return {kind: np.where(file.read(1, window=part.get("window"), out_shape=shape) == 0, np.nan, 1)}


def _expected(name: str) -> tuple[str, tuple[float, float, float, float]]:
    """Unit of a band, and over a landscape its smallest number, smallest and largest median, and largest number."""
    if name.endswith("_db"):
        return "dB", (-95, -60, 0, 60)
    if name in BANDS:
        return "1", (-0.5, 0.002, 1.5, 5)
    return "1", (*((-5e3, -10) if name.startswith("c12") else (0, 0)), 10, 5e3)
