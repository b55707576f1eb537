"""From acquisitions on disk to the feature cube, and from the cube to a network's three channels.

A region folder holds radar acquisitions (single-look complex VV and VH, or their covariance, or SNAP's features),
optical bands with their scene classification, and region.json. A sensor, or an optical band, may be absent.
The cube is written block by block: a block reads its own window, with the margin its filters need, so memory
follows the block and the number of dates, never the area, and values are those of the whole image.
"""

import json
import logging
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import dask.array as da
import numpy as np
import pandas as pd
import rasterio
import rioxarray  # noqa: F401  (the .rio accessor)
import xarray as xr
from dask.diagnostics import ProgressBar
from rasterio.windows import Window
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from cropnb import polarimetry, project, speckle

log = logging.getLogger(__name__)

MAX_CLOUD = 0.08  # mean cloud cover of a used optical acquisition (paper section 3.1)
# Of Sen2Cor: shadow, medium and high probability of cloud, thin cirrus, and snow, which is what it takes a thick
# bright cloud for in summer.
CLOUD_CLASSES = (3, 8, 9, 10, 11)
MASKED_CLASSES = (0, 1, *CLOUD_CLASSES)  # and nodata, saturated
BANDS = {"red": "B04_10m", "narrow_nir": "B8A_20m", "swir1": "B11_20m", "scl": "SCL_20m"}
# x and y of each raster, metres
SPACING = {"vv": (2.5, 10), "vh": (2.5, 10)} | dict.fromkeys(("c2", "features", "red"), (10, 10))
SPACING |= dict.fromkeys(("narrow_nir", "swir1", "scl"), (20, 20))
FILTER_WINDOW = 7  # refined Lee
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
_BACKSCATTER = ("sar", ("vv_db", "vh_db", "cross_ratio_db"))
_M_CHI = ("sar", ("ps", "pd", "pv"))
_OPTICAL = ("optical", ("red", "narrow_nir", "swir1"))
_AMPLITUDE = ("sar", ("vv_amplitude", "vh_amplitude", "amplitude_ratio"))
# The paper's four scenarios, then the two controls. Each sensor's acquisitions show their own three channels.
SCENARIOS: dict[str, tuple] = {
    "backscatter": (_BACKSCATTER,),
    "m-chi": (_M_CHI,),
    "optical+backscatter": (_OPTICAL, _BACKSCATTER),
    "optical+m-chi": (_OPTICAL, _M_CHI),
    "optical": (_OPTICAL,),
    "amplitude": (_AMPLITUDE,),
}


def acquisitions(region_folder: str | Path, max_cloud: float | None = None) -> pd.DataFrame:
    """Every acquisition of a region in date order, checked before anything is computed.

    Returns columns `time`, `sensor` ("sar", "optical"), `track`, `cloud_cover` (fraction of the valid pixels in
    cloud or shadow; NaN for SAR), `used` (optical below `max_cloud`, all SAR) and `files` (a dict of paths).
    max_cloud: None takes the region's, and where it has none the paper's (`MAX_CLOUD`).

    Raises
    ------
    FileNotFoundError
        For a missing region.json, polarisation or listed date, and for a band that only some dates have.
    ValueError
        For another polarisation, radar of several kinds, repeated dates, different grids, no nodata value, an
        acquisition without data, a region without any.
    """
    folder = Path(region_folder)
    record = read_region(folder)
    rows = _radar_acquisitions(folder / "sar") + _optical_acquisitions(folder / "optical")
    columns = ["time", "sensor", "track", "cloud_cover", "files"]
    table = pd.DataFrame(rows, columns=columns).sort_values("time", ignore_index=True)
    if table.empty:
        raise ValueError(f"{folder} has neither radar nor optical acquisitions: fetch some first.")
    _check_dates(table, record, folder)
    for files in table.files:
        for band, path in files.items():
            _check_raster(path, SPACING[band], record)
    table["cloud_cover"] = [_cloud_cover(f["scl"]) if "scl" in f else np.nan for f in table.files]
    max_cloud = record.get("max_cloud", MAX_CLOUD) if max_cloud is None else max_cloud
    table["used"] = ~(table.cloud_cover >= max_cloud)
    return table


def read_region(region_folder: str | Path) -> dict:
    """The parameters that made a region, its region.json."""
    path = Path(region_folder) / "region.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: write the region first, an unfinished one has no such file.")
    return json.loads(path.read_text())


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
    table = acquisitions(region_folder, max_cloud)
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
        "optical": {"max_cloud": max_cloud, "masked_classes": list(MASKED_CLASSES), "resampling": "nearest"},
    }
    temporary = cube_path.with_name(f".{cube_path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    for sensor in table.sensor.unique():
        used = table[table.used & (table.sensor == sensor)]
        if used.empty:
            raise ValueError(f"{region_folder} has no usable {sensor} date: raise max_cloud or add acquisitions.")
        names = {name: FEATURES[sensor][name] for name in _features(used.files.iloc[0])}
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
    return [sensor for sensor in FEATURES if Path(cube_path, sensor).is_dir()]


def left_out(cube_path: str | Path) -> dict[str, str]:
    """Scenarios that a cube cannot give, and why: what it lacks."""
    held = {sensor: set(open_cube(cube_path, sensor).data_vars) for sensor in sensors(cube_path)}
    reasons = {}
    for name, parts in SCENARIOS.items():
        for sensor, channels in parts:
            if missing := sorted(set(channels) - {"amplitude_ratio"} - held.get(sensor, set())):
                lack = f"{sensor} acquisitions" if sensor not in held else " and ".join(missing)
                reasons[name] = f"the region has no {lack}"
    return reasons


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
    looks = round(SPACING["vv"][1] / SPACING["vv"][0])
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
        step = round(SPACING[name][0] / SPACING["red"][0])
        window = Window.from_slices(*((s.start // step, -(-s.stop // step)) for s in (rows, columns)))
        with rasterio.open(path) as file:
            numbers[name] = file.read(1, window=window).repeat(step, axis=0).repeat(step, axis=1)
    masked = np.isin(numbers.pop("scl"), MASKED_CLASSES)
    planes = {n: np.where(masked | (v == 0), np.nan, v * np.float32(1e-4)) for n, v in numbers.items()}
    return xr.Dataset({name: (("y", "x"), plane) for name, plane in planes.items()})


def scenario(cube_path: str | Path, name: str) -> xr.DataArray:
    """A scenario of `SCENARIOS` as a lazy array (time, y, x, feature) in date order, unscaled.

    Coordinate `sensor` (time) says whose channels a step shows; attrs name the three channels of each sensor.
    """
    if name not in SCENARIOS:
        raise ValueError(f"Unknown scenario {name!r}: choose one of {list(SCENARIOS)}.")
    if reason := left_out(cube_path).get(name):
        others = [other for other in SCENARIOS if other not in left_out(cube_path)]
        raise ValueError(f"{cube_path} cannot give the scenario {name!r}, {reason}: choose one of {others}.")
    parts = []
    for sensor, channels in SCENARIOS[name]:
        group = open_cube(cube_path, sensor).drop_vars("cloud_cover", errors="ignore")
        if "amplitude_ratio" in channels:
            vv = group.vv_amplitude
            group = group.assign(amplitude_ratio=group.vh_amplitude / vv.where(vv > 0))
        part = group[list(channels)].to_dataarray("feature").assign_coords(feature=["1", "2", "3"])
        parts.append(part.assign_coords(sensor=("time", [sensor] * part.sizes["time"])))
    steps = xr.concat(parts, "time", join="exact", coords="minimal", compat="override").sortby("time")
    steps = steps.transpose("time", "y", "x", "feature").chunk(time=-1, feature=-1)
    steps.attrs = {"scenario": name, **{sensor: list(channels) for sensor, channels in SCENARIOS[name]}}
    return steps.rename("features")


def complete(cube_path: str | Path) -> xr.DataArray:
    """Whether a pixel (y, x) has a value on every date of every sensor, so that any scenario can use it."""
    whole = True
    for sensor in sensors(cube_path):
        group = open_cube(cube_path, sensor)
        for name in group.data_vars:
            whole = whole & np.isfinite(group[name]).all("time")
    return whole.compute()


def fit_scaler(steps: xr.DataArray, rows: Sequence[int], columns: Sequence[int], method: str = "min-max") -> dict:
    """Linear scale of each sensor's channels over all dates, from the training pixels alone.

    Parameters
    ----------
    steps
        Unscaled scenario (time, y, x, feature).
    rows, columns
        Pixels of the training samples, and of no other set.
    method
        "min-max" (paper, section 3.1): the smallest value becomes 0, the largest 1. "standard": the mean becomes
        0, the mean and a standard deviation 1.

    Returns
    -------
    dict
        sensor -> {"channels", "zero", "one"} (values that become 0 and 1), for `scale`.
    """
    if method not in ("min-max", "standard"):
        raise ValueError(f"Unknown scaling {method!r}: choose 'min-max' or 'standard'.")
    rows, columns = (xr.DataArray(np.asarray(index), dims="sample") for index in (rows, columns))
    picked = steps.isel(y=rows, x=columns).transpose("time", "sample", "feature").compute()
    scaler = {}
    for sensor in dict.fromkeys(picked.sensor.values.tolist()):
        values = picked.values[picked.sensor.values == sensor].reshape(-1, picked.sizes["feature"])
        if not np.isfinite(values).any(axis=0).all():
            raise ValueError(f"No training pixel has a valid {sensor} value: check the cube and the split.")
        if method == "min-max":
            fitted = MinMaxScaler().fit(values)
            zero, one = fitted.data_min_, fitted.data_max_
        else:
            fitted = StandardScaler().fit(values)
            zero, one = fitted.mean_, fitted.mean_ + fitted.scale_
        scaler[sensor] = {"channels": list(steps.attrs[sensor]), "zero": zero.tolist(), "one": one.tolist()}
    return scaler


def scale(steps: xr.DataArray, scaler: Mapping) -> xr.DataArray:
    """Scale a scenario by `fit_scaler`'s values; lazy."""
    sensors = steps.sensor.values.tolist()
    for sensor in dict.fromkeys(sensors):
        fitted, shown = scaler.get(sensor, {}).get("channels"), list(steps.attrs[sensor])
        if fitted == shown and not {"zero", "one"} <= scaler[sensor].keys():
            raise ValueError(f"The scaler of {sensor} lacks its values for zero and one: fit it again.")
        if fitted != shown:
            raise ValueError(f"The scaler was fitted to {fitted} but {sensor} shows {shown}: fit it again.")
    low, high = (
        xr.DataArray(np.array([scaler[s][limit] for s in sensors], dtype="float32"), dims=("time", "feature"))
        for limit in ("zero", "one")
    )
    span = (high - low).where(high > low, 1)
    return ((steps - low) / span).transpose(*steps.dims).assign_attrs(steps.attrs, scaled=1)


def _blocks(read: Callable, shape: tuple[int, ...], chunk: int) -> da.Array:
    """A lazy (feature, time, y, x) array whose blocks are ``read(rows, columns)``."""

    def block(block_info=None):
        _, _, rows, columns = block_info[None]["array-location"]
        return read(slice(*rows), slice(*columns))

    sides = [tuple(min(chunk, n - start) for start in range(0, n, chunk)) for n in shape[2:]]
    meta = np.empty((0,) * 4, "float32")
    return da.map_blocks(block, chunks=((shape[0],), (shape[1],), *sides), dtype="float32", meta=meta)


def _features(files: Mapping[str, Path]) -> list[str]:
    """The features that an acquisition's files give."""
    if "features" in files:
        with rasterio.open(files["features"]) as file:
            return [name for name in FEATURES["sar"] if name in file.descriptions]
    return [name for name in FEATURES["optical"] if name in files] or list(FEATURES["sar"])


def _read_bands(path: Path, rows: slice, columns: slice) -> xr.Dataset:
    """Bands (y, x) of a raster by their descriptions."""
    with rasterio.open(path) as file:
        planes = file.read(window=Window.from_slices((rows.start, rows.stop), (columns.start, columns.stop)))
        return xr.Dataset({name: (("y", "x"), p) for name, p in zip(file.descriptions, planes, strict=True)})


def _sar_block(grid, margin: int, options, files, rows: slice, columns: slice) -> np.ndarray:
    """Features (feature, time, y, x) of one block, computed with `margin` pixels around it."""
    if "features" in files[0]:
        series = xr.concat([_read_bands(each["features"], rows, columns) for each in files], "time")
        planes = series[_features(files[0])].to_dataarray("feature")
        return planes.transpose("feature", "time", "y", "x").values.astype("float32")
    wide, inner = [], {}
    for dim, part, end in zip(("y", "x"), (rows, columns), grid, strict=True):
        wide.append(slice(max(0, part.start - margin), min(end, part.stop + margin)))
        inner[dim] = slice(part.start - wide[-1].start, part.stop - wide[-1].start)
    c2 = [_read_bands(each["c2"], *wide) if "c2" in each else c2_from_slc(each, *wide) for each in files]
    c2 = xr.concat(c2, "time")
    if not np.isfinite(c2.c11).any():  # off the swath: nothing to filter
        shape = len(FEATURES["sar"]), len(files), rows.stop - rows.start, columns.stop - columns.start
        return np.full(shape, np.nan, "float32")
    features = sar_features(c2, **options).isel(inner)
    return features.to_dataarray("feature").transpose("feature", "time", "y", "x").values


def _optical_block(files, rows: slice, columns: slice) -> np.ndarray:
    scenes = xr.concat([optical_reflectance(each, rows, columns) for each in files], "time")
    planes = scenes[_features(files[0])].to_dataarray("feature")
    return planes.transpose("feature", "time", "y", "x").values


def _axes(record: Mapping) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the 10 m pixels, northing downwards and easting."""
    left, bottom, right, top = record["bounds"]
    step = record["pixel_size"]
    y, x = np.arange(round((top - bottom) / step)), np.arange(round((right - left) / step))
    return top - step * (y + 0.5), left + step * (x + 0.5)


def _radar_acquisitions(folder: Path) -> list[tuple]:
    """Files S1_YYYYMMDDTHHMM_{VV,VH}.tif, _C2.tif or _FEATURES.tif as (time, sensor, track, cloud cover, files)."""
    found: dict[tuple, dict[str, Path]] = {}
    for path in sorted(folder.glob("*.tif"), reverse=True):  # VV before VH
        name = re.fullmatch(r"S1_(\d{8}T\d{4})_([A-Z0-9]+)", path.stem)
        if not name:
            raise ValueError(f"{path} is not named S1_YYYYMMDDTHHMM_VV.tif or _VH.tif: rename or remove it.")
        with rasterio.open(path) as file:
            tags, dtype, bands = file.tags(), file.dtypes[0], file.descriptions
        if name[2] in ("C2", "FEATURES"):
            known = polarimetry.C2 if name[2] == "C2" else list(FEATURES["sar"])
            if not set(bands) & set(known) or (name[2] == "C2" and set(bands) != set(known)):
                raise ValueError(f"{path} has bands {list(bands)}: describe them as {list(known)}.")
        else:
            _check_slc(path, tags, dtype, name[2])
        found.setdefault((name[1], tags.get("orbit_track", "")), {})[name[2].lower()] = path
    for (time, _), files in found.items():
        for missing in ({"vv", "vh"} - set(files)) if {"vv", "vh"} & set(files) else ():
            path = folder / f"S1_{time}_{missing.upper()}.tif"
            raise FileNotFoundError(f"{path} is missing: add it or remove the acquisition's other polarisation.")
    if len(kinds := {(*sorted(files), *_features(files)): files for files in found.values()}) > 1:
        one, other = (next(iter(files.values())) for files in list(kinds.values())[:2])
        raise ValueError(f"{one} and {other} are products of two kinds: bring all radar of a region the same way.")
    return [(pd.Timestamp(time), "sar", track, np.nan, files) for (time, track), files in found.items()]


def _check_slc(path: Path, tags: Mapping, dtype: str, polarisation: str) -> None:
    stated = tags.get("polarisation", polarisation)
    if stated not in ("VV", "VH") or stated != polarisation:
        raise ValueError(f"{path} holds polarisation {stated}: give the product's VV and VH, each in its file.")
    if not dtype.startswith("complex"):
        raise ValueError(f"{path} is {dtype}, detected data: give the single-look complex (SLC) product.")
    if "calibration" not in tags:
        raise ValueError(f"{path} has no tag `calibration`: store K of sigma0 amplitude = number / K there.")


def _optical_acquisitions(folder: Path) -> list[tuple]:
    """Folders S2_YYYYMMDD of bands as (time, sensor, track, cloud cover, files)."""
    scenes = sorted(folder.glob("*/"))
    held = {scene: {band for band, stem in BANDS.items() if (scene / f"{stem}.tif").is_file()} for scene in scenes}
    rows = []
    for scene in scenes:
        name = re.fullmatch(r"S2_(\d{8})(_\w+)?", scene.name)
        if not name:
            raise ValueError(f"{scene} is not named S2_YYYYMMDD: rename or remove it.")
        for band in sorted(set().union(*held.values(), {"scl"}) - held[scene]):
            raise FileNotFoundError(f"{scene / BANDS[band]}.tif is missing: fetch the band or remove {scene.name}.")
        if held[scene] == {"scl"}:
            raise FileNotFoundError(f"{scene} holds no band but its classification: fetch {BANDS['red']}.tif.")
        files = {band: scene / f"{stem}.tif" for band, stem in BANDS.items() if band in held[scene]}
        rows.append((pd.Timestamp(name[1]), "optical", "", np.nan, files))
    return rows


def _cloud_cover(path: Path) -> float:
    counts = np.zeros(256, dtype=int)
    with rasterio.open(path) as file:
        for _, window in file.block_windows(1):
            counts += np.bincount(file.read(1, window=window).ravel(), minlength=256)
    return float(counts[list(CLOUD_CLASSES)].sum() / counts[1:].sum())


def _check_dates(table: pd.DataFrame, record: Mapping, folder: Path) -> None:
    """No day twice on one track, and every acquisition that region.json lists."""
    days = pd.DataFrame({"day": table.time.dt.date, "sensor": table.sensor, "track": table.track})
    for files in table.files[days.duplicated()]:
        path = next(iter(files.values()))
        raise ValueError(f"{path} repeats a date of its track: mosaic a day's acquisitions or remove one.")
    for sensor, listed in (("sar", "sar_times"), ("optical", "optical_dates")):
        found = set(table.time[table.sensor == sensor])
        for time in sorted(set(pd.to_datetime(list(record.get(listed, ())))) - found):
            raise FileNotFoundError(
                f"{folder / sensor} lacks the acquisition of {time:%Y-%m-%d} that region.json lists: "
                "fetch it or take it off the list."
            )


def _check_raster(path: Path, spacing: tuple[float, float], record: Mapping) -> None:
    """The region's CRS, bounds and pixel spacing, so that pixels of 2.5, 10 and 20 m nest; data in it."""
    with rasterio.open(path) as file:
        found, wanted = (*file.bounds, *file.res), (*record["bounds"], *spacing)
        if file.crs != record["crs"] or not np.allclose(found, wanted, rtol=0, atol=0.01):
            raise ValueError(
                f"{path} has bounds and spacing {found} m in {file.crs}, its region {wanted} in {record['crs']}: "
                "resample it to the region's grid."
            )
        if file.nodata is None:
            raise ValueError(f"{path} states no nodata value: set it, for example gdal_edit.py -a_nodata 0.")
        # A coarse look is enough unless it finds nothing.
        look = file.read_masks(1, out_shape=(min(64, file.height), min(64, file.width)))
        windows = (window for _, window in file.block_windows(1))
        if not look.any() and not any(file.read_masks(1, window=w).any() for w in windows):
            raise ValueError(f"{path} has no valid pixel: remove this acquisition, it misses the region.")
