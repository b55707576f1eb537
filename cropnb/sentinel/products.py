"""Which products of a region are used, and why the others are not: one set of rules for a search and for a folder."""

import glob
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
import rasterio.warp
import shapely
from odc.geo.geobox import GeoBox
from rasterio.features import shapes

from cropnb import acquisitions, data, files, rasters, schema
from cropnb.sentinel import catalogue, optical, slc
from cropnb.sentinel.choice import choose, row

RADAR = re.compile(r"S1_(\d{8}T\d{4})_(C2|FEATURES)\.tif")
DONE = "done.json"  # what an attempt has brought
COLUMNS = ["product", "sensor", "time", "track", "cloud_cover", "covered", "why"]


def bring(region: schema.Measured, grid: GeoBox, folder: Path) -> list[dict]:
    """Bring what a region's folder of products holds, and its rules choose, onto its grid; a row a product, with why.

    What an earlier attempt left in `folder` is kept, unless the grid or a file of the products has changed.

    Raises
    ------
    FileNotFoundError
        For a folder without a product, and radar without an elevation raster.
    ValueError
        Where a sensor has nothing to use, and what `optical.write` and `slc.write` raise.
    """
    source, area, rules = region.folder(), shapely.box(*grid.boundingbox.bbox), region.rules()
    dem = region.place(region.dem) if region.dem else source / "dem.tif"
    inside = {path for file in data.fetch(region.dataset).values() for path in file.parents} if region.dataset else ()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as room:
        held = [(path, origin) for path, origin in _held(source, Path(room), region.season) if _sensor(path) in rules]
        held = [each for each in held if not inside or each[0] in inside]
        if not held:
            raise FileNotFoundError(
                f"{source} holds no product (*.SAFE, or S1_YYYYMMDDTHHMM_FEATURES.tif or _C2.tif of another tool): "
                "python -m cropnb.sentinel fetch brings them."
            )
        if not dem.is_file() and any(_sensor(path) == "sar" and path.suffix == ".SAFE" for path, _ in held):
            raise FileNotFoundError(
                f"The elevation raster {dem} of {region.name} is missing: the key dem names another."
            )
        done = _earlier(folder, [origin for _, origin in held] + [dem] * dem.is_file(), region, grid)
        rows = [_row(path, grid) for path, _ in held]
        for sensor in dict.fromkeys(each["sensor"] for each in rows):
            mine = [each for each in rows if each["sensor"] == sensor]
            what = f"{source} has no {sensor} acquisition to use"
            for one in choose(mine, area, what, season=region.season, **rules[sensor].model_dump()):
                paths = [each["path"] for each in one]
                if (name := " ".join(path.name for path in paths)) in done["products"]:
                    continue
                if sensor == "optical":
                    optical.write(paths, grid, folder)
                elif paths[0].suffix == ".tif":
                    _place(paths, grid, folder)
                else:
                    slc.write(paths, dem, grid, folder, undulation=region.undulation)
                done["products"].append(name)
                files.write_json(folder / DONE, done)
    table = pd.DataFrame(rows, columns=COLUMNS).sort_values(["sensor", "time", "product"])
    return table.assign(time=table.time.astype(str)).replace({np.nan: None}).to_dict("records")


def _earlier(folder: Path, origins: Sequence[Path], region: schema.Measured, grid: GeoBox) -> dict:
    """What an earlier attempt has done, of the same files; else nothing, and an empty folder."""
    inputs = [file for path in origins for file in [path, *sorted(path.rglob("*"))] if file.is_file()]
    states = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in inputs]
    rules = region.model_dump_json(include={"season", "sentinel1", "sentinel2", "undulation"})
    state = json.dumps([str(grid.crs), grid.boundingbox.bbox, rules, states])
    done = json.loads((folder / DONE).read_text()) if (folder / DONE).exists() else {}
    if done.get("state") != state:
        shutil.rmtree(folder)
        folder.mkdir()
        done = {"state": state, "products": []}
    return done


def _sensor(path: Path) -> str:
    return "optical" if path.name.startswith("S2") else "sar"


def _held(source: Path, room: Path, season: Sequence) -> Iterator[tuple[Path, Path]]:
    """Products anywhere below a folder, and the files they come from.

    They are SAFE folders, zips of them (unpacked into `room`), and radar that other tools made.
    """
    within = glob.glob(f"{glob.escape(str(source))}/**/*", recursive=True)  # follows links, passes over hidden files
    paths = [path for path in map(Path, sorted(within)) if not re.search(r"/__MACOSX|\.SAFE/", str(path))]
    found = {path.name: path for path in reversed(paths) if re.search(r"\.SAFE$|^(?i:s[12].*\.tiff?)$", path.name)}
    for path in (path for path in paths if path.suffix.lower() == ".zip"):
        try:
            with zipfile.ZipFile(path) as archive:
                name = archive.namelist()[0].split("/")[0]
        except (zipfile.BadZipFile, IndexError):
            name = path.stem
        if name.endswith(".SAFE") or name.startswith("S"):
            day = re.search(r"_(\d{8})T", name)
            if name not in found and (not day or f"{season[0]:%Y%m%d}" <= day[1] <= f"{season[1]:%Y%m%d}"):
                found[name] = path
    for path in found.values():
        if path.suffix.lower() != ".zip":
            yield path, path
            continue
        try:
            yield catalogue.unpack(path, room), path
        except ValueError:
            yield path, path  # damaged, and told when it is read


def _row(path: Path, grid: GeoBox) -> dict:
    """What the rules ask of a product on disk; one that cannot be read says so in `why`."""
    sensor = _sensor(path)
    try:
        if path.suffix.lower() == ".zip":
            catalogue.unpack(path, path.parent)  # says what is wrong
        if path.suffix.lower() in (".tif", ".tiff"):
            if not (name := RADAR.fullmatch(path.name)):
                raise ValueError("radar of other tools is named S1_YYYYMMDDTHHMM_FEATURES.tif or _C2.tif, in UTC")
            time, kind = name.groups()
            if fault := rasters.fault(path, kind.lower()):
                raise ValueError(f"it {fault}")
            held = np.isfinite(next(iter(rasters.onto(path, grid.zoom_to(max(grid.shape) // 4 or 1)).values())))
            time = pd.Timestamp(time)
            about = {"time": time, "track": rasters.track(path), "footprint": _outline(held, grid)}
        elif sensor == "optical":
            about, classes = optical.describe(path, grid)
            about |= {"footprint": _outline(classes > 0, grid), "cloud_cover": acquisitions.cloud_cover(classes)}
        else:
            about = slc.describe(path)
            corners = shapely.Polygon(about.pop("corners"))
            about["footprint"] = shapely.geometry.shape(rasterio.warp.transform_geom(4326, str(grid.crs), corners))
    except (ValueError, OSError, rasterio.errors.RasterioError) as error:
        about = {"why": f"that cannot be read: {error}"}
    return row(path.stem, sensor, **about) | {"path": path}


def _outline(held: np.ndarray, grid: GeoBox) -> shapely.Geometry:
    """Where a mask (y, x) over a grid is true."""
    transform = grid.zoom_to(held.shape).affine
    pieces = shapes(held.astype("uint8"), mask=held, transform=transform)
    return shapely.union_all([shapely.geometry.shape(outline) for outline, _ in pieces])


def _place(paths: Sequence[Path], grid: GeoBox, folder: Path) -> None:
    """Put the rasters of one pass onto the region's grid, as one acquisition."""
    bands = rasters.onto(paths[0], grid)
    for path in paths[1:]:
        more = rasters.onto(path, grid)
        bands = {name: np.where(np.isnan(plane), more[name], plane) for name, plane in bands.items()}
    _, time, kind = paths[0].stem.split("_")
    if {"vv_db", "vh_db"} <= set(bands):
        bands.setdefault("cross_ratio_db", bands["vh_db"] - bands["vv_db"])
    path = rasters.radar_path(folder, pd.Timestamp(time), kind)
    rasters.write(path, bands, grid, "float32", np.nan, orbit_track=rasters.track(paths[0]))
