"""From acquisitions on disk to the feature cube.

The cube is written block by block: a block reads its own window, with the margin its filters need, so memory
follows the block and the number of dates, never the area, and values are those of the whole image.
"""

import logging
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import dask.array as da
import numpy as np
import rasterio
import rioxarray  # noqa: F401  (the .rio accessor)
import xarray as xr
from dask.diagnostics import ProgressBar
from rasterio.windows import Window

from cropnb import acquisitions, polarimetry, project, regions, speckle

log = logging.getLogger(__name__)

FILTER_WINDOW = 7  # refined Lee


def build(
    region_folder: str | Path,
    cube_path: str | Path,
    *,
    looks: float = 4,
    window: int = 5,
    polarimetric_filter: bool = True,
    convention: str = "snap",
    max_cloud: float | None = None,
    chunk: int = 256,
) -> Path:
    """Build the feature cube of a region into a Zarr store, groups `sar` and `optical`, or the one it has.

    Written beside its place and renamed when whole. dask computes the blocks, on the active cluster if any.

    Parameters
    ----------
    looks
        Equivalent number of looks of a 10 m pixel before filtering, which the speckle filters assume.
    window
        Side of the averaging window of m-chi, pixels.
    polarimetric_filter
        Whether the polarimetric refined Lee filter runs before that window.
    convention
        Sign of S4, see `cropnb.polarimetry.stokes`.
    chunk
        Side of a block, pixels, even.
    """
    if chunk % 2:
        raise ValueError(f"A block of {chunk} pixels splits a 20 m pixel: choose an even one, say {chunk + 1}.")
    cube_path, record = Path(cube_path), regions.read_record(region_folder)
    if cube_path.exists() and not (cube_path / "zarr.json").is_file():
        raise ValueError(f"{cube_path} holds something that is no cube: give another path or remove it.")
    max_cloud = record.get("max_cloud", acquisitions.MAX_CLOUD) if max_cloud is None else max_cloud
    table = acquisitions.find(region_folder, max_cloud)
    y, x = _axes(record)
    options = {"looks": looks, "window": window, "polarimetric_filter": polarimetric_filter}
    options["convention"] = convention
    margin = window // 2 + polarimetric_filter * (FILTER_WINDOW // 2)
    margin = max(margin, FILTER_WINDOW // 2)  # of the backscatter branch
    readers = {
        "sar": partial(_sar_block, (len(y), len(x)), margin, options),
        "optical": _optical_block,
    }
    filters = {"speckle_filter": "multi-temporal refined Lee", "speckle_window": FILTER_WINDOW}
    processing = {
        "sar": options | filters | {"polarimetric_filter": int(polarimetric_filter)},
        "optical": {
            "max_cloud": max_cloud,
            "masked_classes": list(acquisitions.MASKED_CLASSES),
            "resampling": "nearest",
        },
    }
    temporary = cube_path.with_name(f".{cube_path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    for sensor in table.sensor.unique():
        used = table[table.used & (table.sensor == sensor)]
        if used.empty:
            raise ValueError(f"{region_folder} has no usable {sensor} date: raise max_cloud or add acquisitions.")
        names = {name: acquisitions.FEATURES[sensor][name] for name in acquisitions.features(used.files.iloc[0])}
        shape = len(names), len(used), len(y), len(x)
        planes = _blocks(partial(readers[sensor], list(used.files)), shape, chunk)
        group = xr.Dataset(
            {name: (("time", "y", "x"), planes[i], dict(names[name])) for i, name in enumerate(names)},
            {"time": ("time", used.time.to_numpy(), {"standard_name": "time"}), "y": y, "x": x},
            {"Conventions": "CF-1.11", "region": record["name"], "simulated": int(record["simulated"])},
        )
        group = group.assign_attrs(processing[sensor]).rio.write_crs(record["crs"]).rio.write_coordinate_system()
        if sensor == "optical":
            attrs = {"long_name": "fraction under cloud or shadow", "units": "1"}
            group = group.assign_coords(cloud_cover=("time", used.cloud_cover.to_numpy(float), attrs))
        with ProgressBar(out=sys.stderr) if project.watched() else nullcontext():
            group.to_zarr(temporary, group=sensor, mode="w", consolidated=False)
    shutil.rmtree(cube_path, ignore_errors=True)
    temporary.rename(cube_path)
    log.info("cube of %d x %d pixels and %d acquisitions in %s", len(y), len(x), table.used.sum(), cube_path)
    return cube_path


def open_cube(cube_path: str | Path, sensor: str | None = None) -> xr.Dataset:
    """One group of a cube, "sar" or "optical", lazily (time, y, x); None opens the first that it has.

    Raises FileNotFoundError for a missing cube and ValueError for a sensor it has no acquisitions of.
    """
    sensor = sensor or sensors(cube_path)[0]
    if sensor not in sensors(cube_path):
        raise ValueError(f"{cube_path} has no {sensor} acquisitions, only {sensors(cube_path)}.")
    return xr.open_zarr(cube_path, group=sensor, consolidated=False, decode_coords="all")


def sensors(cube_path: str | Path) -> list[str]:
    """The sensors whose acquisitions a cube holds. Raises FileNotFoundError for a missing cube."""
    if not Path(cube_path).exists():
        raise FileNotFoundError(f"{cube_path} is missing: build the cube first.")
    return [sensor for sensor in acquisitions.FEATURES if Path(cube_path, sensor).is_dir()]


def sar_features(
    c2: xr.Dataset, looks: float = 4, window: int = 5, polarimetric_filter: bool = True, convention: str = "snap"
) -> xr.Dataset:
    """The eight radar features of a covariance series (time, y, x) on the 10 m grid; lazy on dask.

    The polarimetric branch filters and averages the whole matrix before m-chi; the backscatter branch filters
    each polarisation over all dates, which makes detected data and so cannot precede m-chi.
    """
    matrix = speckle.refined_lee_c2(c2, looks=looks, window=FILTER_WINDOW) if polarimetric_filter else c2
    matrix = polarimetry.window_mean(matrix, size=window)
    vv, vh = (
        polarimetry.decibel(speckle.multi_temporal(c2[name], window=FILTER_WINDOW, looks=looks))
        for name in ("c11", "c22")
    )
    features = polarimetry.m_chi(matrix, convention=convention)[["ps", "pd", "pv"]]
    features = features.assign(vv_db=vv, vh_db=vh, cross_ratio_db=polarimetry.cross_ratio(vv, vh))
    features = features.assign(vv_amplitude=np.sqrt(matrix.c11), vh_amplitude=np.sqrt(matrix.c22))
    return features[list(acquisitions.FEATURES["sar"])].astype("float32")


def c2_from_slc(files: Mapping[str, Path], rows: slice, columns: slice) -> xr.Dataset:
    """Calibrated, multilooked covariance (y, x) of one single-look complex acquisition.

    `rows` and `columns` count 10 m pixels of four range samples. NaN where both polarisations are 0.
    """
    looks = round(acquisitions.SPACING["vv"][1] / acquisitions.SPACING["vv"][0])
    window = Window.from_slices((rows.start, rows.stop), (columns.start * looks, columns.stop * looks))
    amplitude = {}
    for name in ("vv", "vh"):
        with rasterio.open(files[name]) as file:
            amplitude[name] = file.read(1, window=window) / np.float32(file.tags()["calibration"])
    outside = (amplitude["vv"] == 0) & (amplitude["vh"] == 0)
    vv, vh = (xr.DataArray(np.where(outside, np.nan, a), dims=("y", "x"), name=n) for n, a in amplitude.items())
    return polarimetry.multilook(polarimetry.covariance(vv, vh), y=1, x=looks)


def optical_reflectance(files: Mapping[str, Path], rows: slice, columns: slice) -> xr.Dataset:
    """Reflectance (y, x) of one optical acquisition on the 10 m grid, NaN under cloud, shadow and nodata.

    20 m bands come to 10 m by nearest neighbour: each 20 m pixel fills its four, so that no measured value
    changes and no cloud leaks into its neighbours.
    """
    numbers = {}
    for name, path in files.items():
        step = round(acquisitions.SPACING[name][0] / acquisitions.SPACING["red"][0])
        window = Window.from_slices(*((s.start // step, -(-s.stop // step)) for s in (rows, columns)))
        with rasterio.open(path) as file:
            numbers[name] = file.read(1, window=window).repeat(step, axis=0).repeat(step, axis=1)
    masked = np.isin(numbers.pop("scl"), acquisitions.MASKED_CLASSES)
    planes = {n: np.where(masked | (v == 0), np.nan, v * np.float32(1e-4)) for n, v in numbers.items()}
    return xr.Dataset({name: (("y", "x"), plane) for name, plane in planes.items()})


def _blocks(read: Callable, shape: tuple[int, ...], chunk: int) -> da.Array:
    """A lazy (feature, time, y, x) array whose blocks are ``read(rows, columns)``."""

    def block(block_info=None):
        _, _, rows, columns = block_info[None]["array-location"]
        return read(slice(*rows), slice(*columns))

    sides = [tuple(min(chunk, n - start) for start in range(0, n, chunk)) for n in shape[2:]]
    meta = np.empty((0,) * 4, "float32")
    return da.map_blocks(block, chunks=((shape[0],), (shape[1],), *sides), dtype="float32", meta=meta)


def _read_bands(path: Path, rows: slice, columns: slice) -> xr.Dataset:
    """Bands (y, x) of a raster by their descriptions."""
    with rasterio.open(path) as file:
        planes = file.read(window=Window.from_slices((rows.start, rows.stop), (columns.start, columns.stop)))
        return xr.Dataset({name: (("y", "x"), p) for name, p in zip(file.descriptions, planes, strict=True)})


def _sar_block(grid, margin: int, options, files, rows: slice, columns: slice) -> np.ndarray:
    """Features (feature, time, y, x) of one block, computed with `margin` pixels around it."""
    if "features" in files[0]:
        series = xr.concat([_read_bands(each["features"], rows, columns) for each in files], "time")
        planes = series[acquisitions.features(files[0])].to_dataarray("feature")
        return planes.transpose("feature", "time", "y", "x").values.astype("float32")
    wide, inner = [], {}
    for dim, part, end in zip(("y", "x"), (rows, columns), grid, strict=True):
        wide.append(slice(max(0, part.start - margin), min(end, part.stop + margin)))
        inner[dim] = slice(part.start - wide[-1].start, part.stop - wide[-1].start)
    c2 = [_read_bands(each["c2"], *wide) if "c2" in each else c2_from_slc(each, *wide) for each in files]
    c2 = xr.concat(c2, "time")
    if not np.isfinite(c2.c11).any():  # off the swath: nothing to filter
        shape = len(acquisitions.FEATURES["sar"]), len(files), rows.stop - rows.start, columns.stop - columns.start
        return np.full(shape, np.nan, "float32")
    features = sar_features(c2, **options).isel(inner)
    return features.to_dataarray("feature").transpose("feature", "time", "y", "x").values


def _optical_block(files, rows: slice, columns: slice) -> np.ndarray:
    scenes = xr.concat([optical_reflectance(each, rows, columns) for each in files], "time")
    planes = scenes[acquisitions.features(files[0])].to_dataarray("feature")
    return planes.transpose("feature", "time", "y", "x").values


def _axes(record: Mapping) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the 10 m pixels, northing downwards and easting."""
    left, bottom, right, top = record["bounds"]
    step = record["pixel_size"]
    y, x = np.arange(round((top - bottom) / step)), np.arange(round((right - left) / step))
    return top - step * (y + 0.5), left + step * (x + 0.5)
