"""From acquisitions on disk to the feature cube.

The cube is written block by block: a block reads its own window, with the margin its filters need, so memory
follows the block and the number of dates, never the area, and values are those of the whole image.
"""

import logging
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import rioxarray  # noqa: F401  (the .rio accessor)
import xarray as xr
import zarr
from dask.diagnostics import ProgressBar
from rasterio.windows import Window
from zarr.codecs import ZstdCodec

from cropnb import files, polarimetry, project, rasters, schema, speckle
from cropnb.acquisitions import FEATURES, MASKED_CLASSES, MAX_CLOUD
from cropnb.acquisitions import features as features_of
from cropnb.acquisitions import find as acquisitions
from cropnb.schema import read_record as read_region

log = logging.getLogger(__name__)

FILTER_WINDOW = 7  # refined Lee
_ANEW = "remove the cube and run the build again, which makes it anew"


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
    cube_path, record = Path(cube_path), read_region(region_folder)
    if cube_path.exists() and not (cube_path / "zarr.json").is_file():
        raise ValueError(f"{cube_path} holds something that is no cube: give another path or remove it.")
    max_cloud = record.get("max_cloud", MAX_CLOUD) if max_cloud is None else max_cloud
    table, grid = acquisitions(region_folder, max_cloud), schema.grid(record)
    options: dict[str, Any] = {"looks": looks, "window": window, "polarimetric_filter": int(polarimetric_filter)}
    options["convention"] = convention
    # What the polarimetric branch looks around, and what the backscatter branch does.
    margin = max(window // 2 + polarimetric_filter * (FILTER_WINDOW // 2), FILTER_WINDOW // 2)
    readers: dict[str, Callable] = {"sar": partial(_sar_block, grid.shape, margin, options), "optical": _optical_block}
    filters = {"speckle_filter": "multi-temporal refined Lee", "speckle_window": FILTER_WINDOW}
    masks = {"max_cloud": max_cloud, "masked_classes": list(MASKED_CLASSES), "resampling": "nearest"}
    attrs = {"Conventions": "CF-1.11", "region": record["name"], "simulated": int(record["simulated"])}
    with files.whole(cube_path) as part:
        for sensor in table.sensor.unique():
            used = table[table.used & (table.sensor == sensor)]
            if used.empty:
                raise ValueError(f"{region_folder} has no usable {sensor} date: raise max_cloud or add acquisitions.")
            names = features_of(used.files.iloc[0])
            shape = len(names), len(used), *grid.shape
            planes = rasters.blocks(partial(readers[sensor], list(used.files)), shape, chunk)
            named = {name: (("time", "y", "x"), plane) for name, plane in zip(names, planes, strict=True)}
            group = xr.Dataset(named, {axis: coordinate.values for axis, coordinate in grid.coords.items()})
            group = group.assign_coords(time=("time", used.time.to_numpy(), {"standard_name": "time"}))
            group.attrs = attrs | (options | filters if sensor == "sar" else masks)
            group = group.rio.write_crs(record["crs"]).rio.write_coordinate_system()
            if sensor == "optical":
                about = {"long_name": "fraction under cloud or shadow", "units": "1"}
                group = group.assign_coords(cloud_cover=("time", used.cloud_cover.to_numpy(float), about))
            for name in names:
                group[name].attrs |= FEATURES[sensor][name]
                # An encoding that is given to to_zarr would forget the grid mapping.
                group[name].encoding["compressors"] = (ZstdCodec(checksum=True),)
            with ProgressBar(out=sys.stderr) if project.watched() else nullcontext():
                group.to_zarr(part, group=sensor, consolidated=False, write_empty_chunks=True)
            _check_seen(open_cube(part, sensor)[names[0]], region_folder, sensor)
    log.info("cube of %d x %d pixels and %d acquisitions in %s", *grid.shape, table.used.sum(), cube_path)
    return cube_path


def _check_seen(series: xr.DataArray, region_folder: str | Path, sensor: str) -> None:
    """Every date has a value somewhere: one without would leave no pixel whole, and so no sample and no map."""
    empty = series.time[(series.count(("y", "x")) == 0).compute()]
    if empty.size:
        days = ", ".join(f"{time:%Y-%m-%d}" for time in empty.to_index())
        raise ValueError(f"{region_folder} has no valid {sensor} pixel on {days}: remove it or lower max_cloud.")


def open_cube(cube_path: str | Path, sensor: str | None = None) -> xr.Dataset:
    """One group of a cube, "sar" or "optical", lazily (time, y, x); None opens the first that it has.

    Raises FileNotFoundError for a missing cube and ValueError for a sensor it has no acquisitions of.
    """
    sensor = sensor or sensors(cube_path)[0]
    if sensor not in sensors(cube_path):
        raise ValueError(f"{cube_path} has no {sensor} acquisitions, only {sensors(cube_path)}.")
    for name, array in zarr.open_group(cube_path, path=sensor, mode="r").arrays():
        if array.ndim == 3 and (missing := array.nchunks - array.nchunks_initialized):
            raise ValueError(f"{cube_path}/{sensor}/{name} lacks {missing} of its chunks: {_ANEW}.")
    return xr.open_zarr(cube_path, group=sensor, consolidated=False, decode_coords="all")


def check(cube_path: str | Path) -> None:
    """Read a whole cube and compare its checksums. Raises ValueError naming the file that is damaged or missing."""
    for sensor in sensors(cube_path):
        open_cube(cube_path, sensor)
        for name, array in zarr.open_group(cube_path, path=sensor, mode="r").arrays():
            for index in np.ndindex(array.cdata_shape):
                try:
                    array.blocks[index]
                except (RuntimeError, ValueError) as error:
                    path = Path(cube_path, sensor, name, "c", *map(str, index))
                    raise ValueError(f"{path} is damaged ({error}): {_ANEW}.") from None


def sensors(cube_path: str | Path) -> list[str]:
    """The sensors whose acquisitions a cube holds. Raises FileNotFoundError for a missing cube."""
    if not Path(cube_path).exists():
        raise FileNotFoundError(f"{cube_path} is missing: build the cube first.")
    return [sensor for sensor in FEATURES if Path(cube_path, sensor).is_dir()]


def complete(cube_path: str | Path) -> xr.DataArray:
    """Whether a pixel (y, x) has a value on every date of every sensor, so that any scenario can use it."""
    groups = [open_cube(cube_path, sensor) for sensor in sensors(cube_path)]
    planes = [(abs(plane) < np.inf).all("time") for group in groups for plane in group.values()]
    return reduce(operator.and_, planes).compute()


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
    return features[list(FEATURES["sar"])].astype("float32")


def c2_from_slc(files: Mapping[str, Path], rows: slice, columns: slice) -> xr.Dataset:
    """Calibrated, multilooked covariance (y, x) of one single-look complex acquisition.

    `rows` and `columns` count 10 m pixels of four range samples. NaN where both polarisations are 0.
    """
    looks = round(rasters.SPACING["vv"][1] / rasters.SPACING["vv"][0])
    window = Window.from_slices((rows.start, rows.stop), (columns.start * looks, columns.stop * looks))
    amplitude = {name: rasters.read_complex(files[name], window) for name in ("vv", "vh")}
    outside = (amplitude["vv"] == 0) & (amplitude["vh"] == 0)
    vv, vh = (xr.DataArray(np.where(outside, np.nan, a), dims=("y", "x"), name=n) for n, a in amplitude.items())
    return polarimetry.multilook(polarimetry.covariance(vv, vh), y=1, x=looks)


def optical_reflectance(files: Mapping[str, Path], rows: slice, columns: slice) -> xr.Dataset:
    """Reflectance (y, x) of one optical acquisition on the 10 m grid, NaN under cloud, shadow and nodata.

    20 m bands come to 10 m by nearest neighbour: each 20 m pixel fills its four, so that no measured value
    changes and no cloud leaks into its neighbours.
    """
    planes = {}
    for name, path in files.items():
        step = round(rasters.SPACING[name][0] / rasters.PIXEL)
        window = Window.from_slices(*((s.start // step, -(-s.stop // step)) for s in (rows, columns)))
        plane = rasters.read_classes(path, window) if name == "scl" else rasters.read_reflectance(path, window)
        planes[name] = plane.repeat(step, axis=0).repeat(step, axis=1)
    masked = np.isin(planes.pop("scl"), MASKED_CLASSES)
    return xr.Dataset({name: (("y", "x"), np.where(masked, np.nan, plane)) for name, plane in planes.items()})


def _read_bands(path: Path, rows: slice, columns: slice) -> xr.Dataset:
    """Bands (y, x) of a raster by their descriptions."""
    planes = rasters.read(path, Window.from_slices(rows, columns))
    return xr.Dataset({name: (("y", "x"), plane) for name, plane in planes.items()})


def _sar_block(
    shape: Sequence[int],
    margin: int,
    options: Mapping,
    files: Sequence[Mapping[str, Path]],
    rows: slice,
    columns: slice,
) -> np.ndarray:
    """Features (feature, time, y, x) of one block, computed with `margin` pixels around it."""
    names = features_of(files[0])
    if "features" in files[0]:
        return _series([_read_bands(each["features"], rows, columns) for each in files], names)
    wide = [
        slice(max(0, part.start - margin), min(end, part.stop + margin))
        for part, end in zip((rows, columns), shape, strict=True)
    ]
    dates = [_read_bands(each["c2"], *wide) if "c2" in each else c2_from_slc(each, *wide) for each in files]
    c2 = xr.concat(dates, "time")
    if not np.isfinite(c2.c11).any():  # off the swath: nothing to filter
        return np.full((len(names), len(files), rows.stop - rows.start, columns.stop - columns.start), np.nan, "f4")
    y, x = (
        slice(part.start - around.start, part.stop - around.start)
        for part, around in zip((rows, columns), wide, strict=True)
    )
    return _series([sar_features(c2, **options).isel(y=y, x=x)], names)


def _optical_block(files: Sequence[Mapping[str, Path]], rows: slice, columns: slice) -> np.ndarray:
    return _series([optical_reflectance(each, rows, columns) for each in files], features_of(files[0]))


def _series(dates: Sequence[xr.Dataset], names: list[str]) -> np.ndarray:
    """Features (feature, time, y, x) of one date each, or of all together."""
    return xr.concat(dates, "time")[names].to_dataarray("feature").transpose("feature", "time", "y", "x").values
