"""The acquisitions of a region folder: their files, what each gives, and their checks before anything is computed.

A region folder holds radar acquisitions (single-look complex VV and VH, or their covariance, or features made
elsewhere), optical bands with their scene classification, and region.json. A sensor, or an optical band, may be
absent.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio

from cropnb import rasters, schema

MAX_CLOUD = 0.08  # mean cloud cover of a used optical acquisition (paper section 3.1)
# Of Sen2Cor: shadow, medium and high probability of cloud, thin cirrus, and snow, which is what it takes a thick
# bright cloud for in summer.
CLOUD_CLASSES = (3, 8, 9, 10, 11)
MASKED_CLASSES = (0, 1, *CLOUD_CLASSES)  # and nodata, saturated
FEATURES = rasters.FEATURES


def find(region_folder: str | Path, max_cloud: float | None = None) -> pd.DataFrame:
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
    record = schema.read_record(folder)
    rows = _radar(folder / "sar") + _optical(folder / "optical")
    table = pd.DataFrame(rows, columns=["time", "sensor", "track", "files"]).sort_values("time", ignore_index=True)
    if table.empty:
        raise ValueError(f"{folder} has neither radar nor optical acquisitions: fetch some first.")
    _check_dates(table, record, folder)
    for files in table.files:
        for kind, path in files.items():
            if fault := rasters.fault(path, kind, schema.grid(record)):
                raise ValueError(f"{path} {fault}.")
    classes = (rasters.read_classes(files["scl"]) if "scl" in files else np.empty(0) for files in table.files)
    table["cloud_cover"] = [cloud_cover(each) for each in classes]
    max_cloud = record.get("max_cloud", MAX_CLOUD) if max_cloud is None else max_cloud
    table["used"] = ~(table.cloud_cover >= max_cloud)
    return table


def features(files: Mapping[str, Path]) -> list[str]:
    """The features that an acquisition's files give."""
    if "features" in files:
        with rasterio.open(files["features"]) as file:
            return [name for name in FEATURES["sar"] if name in file.descriptions]
    return [name for name in FEATURES["optical"] if name in files] or list(FEATURES["sar"])


def cloud_cover(classes: np.ndarray) -> float:
    """Fraction of the valid pixels of a scene classification that is in cloud or shadow; NaN where there are none."""
    valid = np.count_nonzero(classes)
    return np.isin(classes, CLOUD_CLASSES).sum() / valid if valid else np.nan


def _radar(folder: Path) -> list[tuple]:
    """Files S1_YYYYMMDDTHHMM_{VV,VH}.tif, _C2.tif or _FEATURES.tif as (time, sensor, track, files)."""
    found: dict[tuple, dict[str, Path]] = {}
    for path in sorted(folder.glob("[!.]*.tif"), reverse=True):  # VV before VH
        name = re.fullmatch(r"S1_(\d{8}T\d{4})_(VV|VH|C2|FEATURES)", path.stem)
        if not name:
            raise ValueError(
                f"{path} is not named S1_YYYYMMDDTHHMM and _VV, _VH, _C2 or _FEATURES: rename or remove it."
            )
        found.setdefault((name[1], rasters.track(path)), {})[name[2].lower()] = path
    for (time, _), files in found.items():
        for missing in ({"vv", "vh"} - set(files)) if {"vv", "vh"} & set(files) else ():
            path = folder / f"S1_{time}_{missing.upper()}.tif"
            raise FileNotFoundError(f"{path} is missing: add it or remove the acquisition's other polarisation.")
    if len(kinds := {(*sorted(files), *features(files)): files for files in found.values()}) > 1:
        one, other = (next(iter(files.values())) for files in list(kinds.values())[:2])
        raise ValueError(f"{one} and {other} are products of two kinds: bring all radar of a region the same way.")
    return [(pd.Timestamp(time), "sar", track, files) for (time, track), files in found.items()]


def _optical(folder: Path) -> list[tuple]:
    """Folders S2_YYYYMMDD of bands as (time, sensor, track, files)."""
    held: dict[Path, dict[str, Path]] = {}
    for scene in sorted(path for path in folder.glob("*/") if not path.name.startswith(".")):
        if not re.fullmatch(r"S2_\d{8}(_\w+)?", scene.name):
            raise ValueError(f"{scene} is not named S2_YYYYMMDD: rename or remove it.")
        places = {band: scene / f"{stem}.tif" for band, stem in rasters.BANDS.items()}
        held[scene] = {band: path for band, path in places.items() if path.is_file()}
    bands = {"scl"}.union(*held.values())
    for scene, files in held.items():
        for band in sorted(bands - files.keys()):
            path = scene / f"{rasters.BANDS[band]}.tif"
            raise FileNotFoundError(f"{path} is missing: fetch the band or remove {scene.name}.")
    if held and bands == {"scl"}:
        raise FileNotFoundError(f"{folder} holds no band but the classification of scenes: fetch the bands.")
    return [(pd.Timestamp(scene.name[3:11]), "optical", "", files) for scene, files in held.items()]


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
