"""Making a region's folder, which `cropnb.cube` reads: simulated, from Sentinel products, or from Flanders' patches."""

import logging
from collections.abc import Sequence
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import rasterio.warp
from odc.geo.geobox import GeoBox

from cropnb import data, files, flanders, parcels, regions, twin

log = logging.getLogger(__name__)


def prepare(
    region: regions.Region, folder: str | Path, *, size: float = 8000, block_size: float = 1000, seed: int = 2017
) -> Path:
    """Make the region folder: acquisitions, parcels.parquet, cropland.tif and region.json.

    size (m), block_size (m, of the later split) and seed are those of a simulated region; others have their own.
    Raises ValueError for a region without rasters, and what the makers of each kind raise.
    """
    match region:
        case regions.Simulated():
            options = region.model_dump(exclude={"source", "block_size", "features", "sites"})
            return twin.write(folder, **options, size=size, block_size=block_size, seed=seed)
        case regions.Patches():
            make = _from_patches
        case regions.Measured():
            make = _from_products
        case regions.Points():
            raise ValueError(f"{region.name} has points and no rasters: no region folder can be made of it.")
    record = {"name": region.name, "simulated": False, "pixel_size": 10.0}
    record |= {"block_size": region.block_size, "sites": region.sites}
    with files.whole(folder) as part:
        part.mkdir()
        regions.write_record(part, record | make(region, part))
    return Path(folder)


def _from_patches(region: regions.Patches, folder: Path) -> dict:
    """Write a place of Flanders and its declared parcels; what region.json records."""
    patches, class_of = data.fetch("flanders_patches"), {}
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


def _from_products(region: regions.Measured, folder: Path) -> dict:
    """Bring a region's SAFE products, labels and cropland onto its grid; what region.json records."""
    from cropnb.sentinel import optical, slc  # of the extra `sentinel`, which other regions can do without

    grid, source = region.grid(), region.folder()
    found = sorted(source.glob("*.SAFE"))
    radar = [path for path in found if region.sentinel1 and path.name.startswith("S1")]
    scenes = [path for path in found if region.sentinel2 and path.name.startswith("S2")]
    if not found:
        raise FileNotFoundError(f"{source} holds no product (*.SAFE): python -m cropnb.sentinel fetch brings them.")
    dem = Path(region.dem or source / "dem.tif")
    if radar and not dem.is_file():
        raise FileNotFoundError(f"The elevation raster {dem} of {region.name} is missing: the key dem names another.")
    for product in radar:
        slc.write(product, dem, grid, folder, undulation=region.undulation)
    for product in scenes:
        optical.write(product, grid, folder)
    fields, _ = parcels.read(
        region.labels.file,
        crs=region.crs,
        crop_column=region.labels.crop_column,
        id_column=region.labels.id_column,
        mapping=region.labels.mapping,
        classes=region.labels.classes,
    )
    fields = parcels.within(fields, grid)
    fields.to_parquet(folder / "parcels.parquet", index=False)
    write_cropland(region.cropland, fields, grid, folder / "cropland.tif")
    max_cloud = region.sentinel2.max_cloud if region.sentinel2 else 1.0
    return describe(fields, region.labels.classes, grid) | {"max_cloud": max_cloud}


def describe(fields: gpd.GeoDataFrame, classes: Sequence[str], grid: GeoBox) -> dict:
    """What region.json records of labels and grid: CRS, bounds, and the share of each crop in the parcels' area."""
    area = fields.area.groupby(fields["crop"]).sum().reindex(list(classes)).fillna(0)
    shares = (area / area.sum()).round(4).to_dict()
    return {"crs": str(grid.crs), "bounds": list(grid.boundingbox.bbox), "crop_shares": shares}


def write_cropland(mask: str | Path, fields: gpd.GeoDataFrame, grid: GeoBox, path: Path) -> None:
    """Write the cropland mask (uint8, 1 cropland, 255 unknown) on the grid; the parcels' where `mask` is empty."""
    values = np.zeros(grid.shape, "uint8")
    if mask:
        with rasterio.open(mask) as file:
            band = rasterio.band(file, 1)
            rasterio.warp.reproject(band, values, dst_transform=grid.affine, dst_crs=str(grid.crs), dst_nodata=0)
        values = (values > 0).astype("uint8")
    else:
        values = (parcels.rasterise(fields, grid, sorted(set(fields["crop"])))["parcel"].values > 0).astype("uint8")
    options = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": 255, "crs": str(grid.crs)}
    options |= {"height": grid.shape[0], "width": grid.shape[1], "transform": grid.affine, "tiled": True}
    with rasterio.open(path, "w", **options) as file:
        file.write(values, 1)
