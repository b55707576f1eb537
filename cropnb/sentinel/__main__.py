"""Find and fetch the products of a region: `python -m cropnb.sentinel plan my.yaml`, then `... fetch my.yaml`.

`plan` writes the lock file `my.lock.yaml` beside the region's file and fetches nothing; `fetch` brings what it lists
into the region's folder, unpacks it, and goes on where it was interrupted.
"""

import argparse
import logging
import sys
from pathlib import Path

import pandas as pd
import rasterio.merge
from rasterio.warp import transform_bounds

from .. import regions
from ..data import DataUnavailable
from . import catalogue

log = logging.getLogger(__name__)


def plan(path: Path, renew: bool = False) -> Path:
    """Search the region's products and write its lock file."""
    region = _measured(path)
    rules = {"sar": region.sentinel1, "optical": region.sentinel2}
    sensors = [sensor for sensor, rule in rules.items() if rule]
    grid = region.grid()
    bounds = transform_bounds(str(grid.crs), "EPSG:4326", *grid.boundingbox)
    table = catalogue.search(
        bounds,
        *region.season,
        sensors=sensors,
        max_cloud=region.sentinel2.max_cloud if region.sentinel2 else 1,
        orbits=region.sentinel1.orbits if region.sentinel1 else (),
        dates={sensor: rules[sensor].dates for sensor in sensors},
    )
    if region.sentinel1 and not region.dem:
        table = pd.concat([table, catalogue.elevation(bounds)])
    lock = catalogue.write_lock(table, path.with_suffix(".lock.yaml"), renew=renew)
    log.info("%s", table[["time", "sensor", "track", "cloud_cover", "bytes", "product"]].to_string(index=False))
    return lock


def fetch(path: Path) -> Path:
    """Download and unpack what the lock file lists, and join the elevation tiles."""
    region, lock = _measured(path), path.with_suffix(".lock.yaml")
    folder = region.folder()
    files = catalogue.download(lock, folder)
    for file in files:
        if file.suffix == ".zip" and not (folder / f"{file.stem}.SAFE").exists():
            catalogue.unpack(file, folder)
    tiles = [file for file in files if file.suffix == ".tif"]
    if tiles and not (folder / "dem.tif").exists():
        rasterio.merge.merge(tiles, dst_path=folder / "dem.part.tif")
        (folder / "dem.part.tif").rename(folder / "dem.tif")
    log.info("%d products in %s", len(files) - len(tiles), folder)
    return folder


def _measured(path: Path) -> regions.Measured:
    region = regions.read(path)
    if not isinstance(region, regions.Measured):
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
    sys.exit(main())
