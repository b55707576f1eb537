"""Find and fetch the products of a region: `python -m cropnb.sentinel plan my.yaml`, then `... fetch my.yaml`.

`plan` writes the lock file `my.lock.yaml` beside the region's file and fetches nothing; `fetch` brings what it lists
into the region's folder, unpacks it, and goes on where it was interrupted.
"""

import argparse
import logging
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio.merge
from odc.geo.geobox import GeoBox
from rasterio.warp import transform_bounds

from cropnb import files, project, schema
from cropnb.data import DataUnavailable
from cropnb.sentinel import catalogue

VOID = -32768.0  # height of the joined elevation tiles where there is none

log = logging.getLogger(__name__)


def plan(path: Path, renew: bool = False) -> Path:
    """Search the region's products and write its lock file."""
    region = _measured(path)
    grid, found = region.grid(), []
    bounds = transform_bounds(str(grid.crs), "EPSG:4326", *grid.boundingbox)
    for sensor, rule in region.rules().items():
        options = rule.model_dump() | {"dates": {sensor: rule.dates}}
        found.append(catalogue.search(bounds, *region.season, sensors=[sensor], **options))
    if region.sentinel1 and not region.dem:
        found.append(catalogue.elevation(bounds))
    table = pd.concat(found)
    lock = catalogue.write_lock(table, path.with_suffix(".lock.yaml"), renew=renew)
    log.info("%s", table[["time", "sensor", "track", "cloud_cover", "bytes", "product"]].to_string(index=False))
    return lock


def fetch(path: Path) -> Path:
    """Download and unpack what the lock file lists, and join the elevation tiles."""
    region, lock = _measured(path), path.with_suffix(".lock.yaml")
    folder = region.folder()
    fetched = catalogue.download(lock, folder)
    for file in fetched:
        if file.suffix == ".zip" and not (folder / f"{file.stem}.SAFE").exists():
            catalogue.unpack(file, folder)
    tiles = [file for file in fetched if file.suffix == ".tif"]
    _join(tiles, region.grid(), folder / "dem.tif")
    log.info("%d products in %s", len(fetched) - len(tiles), folder)
    return folder


def _join(tiles: list[Path], grid: GeoBox, path: Path) -> None:
    """Join elevation tiles, once: no height where the region has no tile, which is open sea or not released."""
    names = " ".join(sorted(tile.name for tile in tiles))
    if not tiles or (path.exists() and rasterio.open(path).tags().get("tiles") == names):
        return
    held = np.array([rasterio.open(tile).bounds for tile in tiles])
    outer, inward = np.r_[held[:, :2].min(axis=0), held[:, 2:].max(axis=0)], np.array([1, 1, -1, -1])
    wanted = np.array(transform_bounds(str(grid.crs), "EPSG:4326", *grid.boundingbox))
    outer -= inward * np.ceil(((outer - wanted) * inward).clip(0))  # whole degrees: pixels stay in place
    with files.whole(path) as part:
        rasterio.merge.merge(tiles, bounds=tuple(outer), nodata=VOID, dst_path=part)
        with rasterio.open(part, "r+") as file:
            file.update_tags(tiles=names)


def _measured(path: Path) -> schema.Measured:
    region = schema.read(path)
    if not isinstance(region, schema.Measured):
        raise ValueError(f"{path} is of the source {region.source!r}: only 'sentinel' has products to fetch.")
    return region


def main() -> int:
    """Run `plan` or `fetch`; 1 with one sentence where it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m cropnb.sentinel", description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=("plan", "fetch"))
    parser.add_argument("region", type=Path, help="file of the region")
    parser.add_argument("--renew", action="store_true", help="let plan replace a lock file that lists other products")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        if arguments.step == "plan":
            plan(arguments.region, arguments.renew)
        else:
            fetch(arguments.region)
    except (DataUnavailable, ValueError, FileNotFoundError) as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    project.command(main)
