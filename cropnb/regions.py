"""Making a region's folder, which `cropnb.cube` reads: simulated, from Sentinel products, or from Flanders' patches."""

import logging
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling

from cropnb import data, files, flanders, parcels, rasters, split, twin
from cropnb.schema import Labels, Measured, Patches, Points, Region, Simulated, read, read_record, write_record

# A region is read and made in one place.
__all__ = [
    "Labels",
    "Measured",
    "check",
    "describe",
    "prepare",
    "read",
    "read_record",
    "write_cropland",
    "write_record",
]

log = logging.getLogger(__name__)


def prepare(
    region: Region, folder: str | Path, *, size: float = 8000, block_size: float = 1000, seed: int = 2017
) -> Path:
    """Make the region folder: acquisitions, parcels.parquet, cropland.tif and region.json.

    size (m), block_size (m, of the later split) and seed are those of a simulated region; others have their own.
    Raises ValueError for a region without rasters, and what the makers of each kind raise.
    """
    match region:
        case Simulated():
            options = region.model_dump(exclude={"source", "block_size", "features", "sites"})
            return twin.write(folder, **options, size=size, block_size=block_size, seed=seed)
        case Patches():
            make: Callable[..., dict] = _from_patches
        case Measured():
            kept = Path(folder).with_name(f".{Path(folder).name}.acquisitions")
            make = partial(_from_products, kept=kept)
        case Points():
            raise ValueError(f"{region.name} has points and no rasters: no region folder can be made of it.")
    record = {"name": region.name, "simulated": False, "pixel_size": 10.0}
    record |= {"block_size": region.block_size, "sites": region.sites}
    with files.whole(folder) as part:
        part.mkdir()
        write_record(part, record | make(region, part))
    return Path(folder)


def _from_patches(region: Patches, folder: Path) -> dict:
    """Write a place of Flanders and its declared parcels; what region.json records."""
    patches = data.fetch("flanders_patches")
    class_of: dict[str, str] = {}
    for name, crops in region.labels.items():
        class_of |= dict.fromkeys(crops, name)
    grid = flanders.write_acquisitions(patches, region.location, folder)
    legend = pd.read_csv(data.fetch("canada_2017_points")["wc2eurocrops_map.csv"])
    names = dict(zip(legend["croptype"], legend["name"], strict=True))
    fields = flanders.declarations(patches, region.location, names)
    fields["crop"] = fields["crop"].map(class_of)
    fields = fields.dropna(subset="crop")
    fields.to_parquet(folder / "parcels.parquet", index=False)
    write_cropland("", fields, grid, folder / "cropland.tif")
    return describe(fields, list(region.labels), grid) | {"max_cloud": 1.01}  # the clearest, however cloudy


def check(region: Region, patch: int = 21, seed: int = 2017) -> None:
    """Look at what can be known in seconds, before hours of products: place, labels, their classes, blocks and split.

    patch (side in pixels of the largest) and seed are those of the later split.

    Raises DataUnavailable, FileNotFoundError or ValueError, in a sentence with the remedy.
    """
    if isinstance(region, Measured):
        if lacking := set(region.features.split("+")) & set(region.without()):
            raise ValueError(
                f"The radar rasters in {region.folder()} give no {' and '.join(sorted(lacking))}, which the key "
                f"features ({region.features}) asks for: choose others."
            )
        grid, fields, _ = _labels(region)
        labels = parcels.rasterise(fields, grid, region.labels.classes)
        split.require_split(labels, fields, region.block_size, patch, seed)


def _labels(region: Measured) -> tuple[GeoBox, gpd.GeoDataFrame, parcels.Report]:
    """The grid, the parcels that touch it, and what was found in their file."""
    if region.dataset:
        data.fetch(region.dataset)
    grid, labels = region.grid(), region.labels
    options = labels.model_dump(exclude={"file", "crs"})
    path = region.place(labels.file)
    return grid, *parcels.read(path, crs=region.crs, own_crs=labels.crs, grid=grid, **options)


def _from_products(region: Measured, folder: Path, kept: Path) -> dict:
    """Bring a region's labels, cropland and products onto its grid; what region.json records.

    Acquisitions are made in `kept`, where they outlive a failure: the next attempt goes on from there, unless the
    grid or a file of the products has changed.
    """
    from cropnb.sentinel import products  # of the extra `sentinel`, which other regions can do without

    grid, fields, report = _labels(region)
    fields.to_parquet(folder / "parcels.parquet", index=False)
    mask = region.place(region.cropland) if region.cropland else None
    write_cropland(mask, fields, grid, folder / "cropland.tif", codes=region.cropland_codes)
    brought = products.bring(region, grid, kept)
    for sensor in kept.glob("*/"):
        sensor.rename(folder / sensor.name)
    shutil.rmtree(kept)
    record = describe(fields, region.labels.classes, grid)
    record |= {"max_cloud": region.sentinel2.max_cloud if region.sentinel2 else 1.0}
    return record | {"labels": {"file": region.labels.file} | report.counts.to_dict(), "products": brought}


def describe(fields: gpd.GeoDataFrame, classes: Sequence[str], grid: GeoBox) -> dict:
    """What region.json records of labels and grid: CRS, bounds, and the share of each crop in the parcels' area."""
    area = fields.area.groupby(fields["crop"]).sum().reindex(list(classes)).fillna(0)
    shares = (area / area.sum()).round(4).to_dict()
    return {"crs": str(grid.crs), "bounds": list(grid.boundingbox.bbox), "crop_shares": shares}


def write_cropland(
    mask: str | Path | None, fields: gpd.GeoDataFrame, grid: GeoBox, path: Path, codes: Sequence[int] = ()
) -> None:
    """Write the cropland mask (uint8, 1 cropland, 255 unknown) on the grid; the parcels' where `mask` is empty.

    Cropland is where the mask has one of `codes`; without them it is to be a mask or a fraction, above 0 there.
    Raises ValueError for other numbers, and where nothing of the grid is known or is cropland.
    """
    if mask:
        cropland = _read_mask(Path(mask), grid, codes)
    else:
        cropland = (parcels.rasterise(fields, grid, sorted(set(fields["crop"])))["parcel"].values > 0).astype("uint8")
    rasters.write(path, {"cropland": cropland}, grid, "uint8", 255)


def _read_mask(mask: Path, grid: GeoBox, codes: Sequence[int]) -> np.ndarray:
    """Cropland (1), other land (0) and unknown (255) of a raster, nearest neighbour on the grid (y, x), uint8."""
    if not mask.is_file():
        raise FileNotFoundError(f"The cropland mask {mask} does not exist: the key cropland names another, or none.")
    with rasterio.open(mask) as file:
        if file.crs is None:
            raise ValueError(f"The cropland mask {mask} has no CRS: write it into the file.")
        whole = file.dtypes[0] == "uint8" and file.nodata is None
    values = next(iter(rasters.onto(mask, grid, Resampling.nearest).values()))
    values[(values == 255) & (whole and 255 not in codes)] = np.nan  # a byte's usual word for no data
    unknown = np.isnan(values)
    found = np.unique(values[~unknown])
    if not found.size:
        raise ValueError(f"The cropland mask {mask} knows nothing of the region: is it of another place?")
    if not codes and not (set(found) <= {0, 100} or (found[0] >= 0 and found[-1] <= 1)):
        raise ValueError(
            f"The cropland mask {mask} has values such as {found[:12].tolist()}, neither a mask nor fractions: "
            "name the values that are cropland with the key cropland_codes, or divide per cent by 100."
        )
    cropland = np.isin(values, codes) if codes else values > 0
    if not cropland.any():
        raise ValueError(f"The cropland mask {mask} has no cropland in the region, only {found[:12].tolist()}.")
    if unknown.any() or cropland.all():
        shares = 100 * cropland.mean(), 100 * unknown.mean()
        log.warning("cropland mask %s: %.1f per cent of the region is cropland, %.1f unknown", mask, *shares)
    return np.where(unknown, 255, cropland).astype("uint8")
