"""A region: where and when, which sensors and which labels; one YAML file each, `params/regions/*.yaml`.

`read` checks a file, `prepare` makes the region folder that `cropnb.cube` reads: simulated, from Sentinel products,
or from the patches of Flanders.
"""

from __future__ import annotations

import difflib
import json
import logging
import shutil
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator
from pyproj import CRS
from pyproj.exceptions import CRSError

from cropnb import files

if TYPE_CHECKING:  # the workflow reads region files often; what only `prepare` needs takes seconds to import
    import geopandas as gpd
    from odc.geo.geobox import GeoBox

log = logging.getLogger(__name__)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Labels(_Entry):
    """A vector file of parcels, its column with the crop, and how the crop names lead to the classes."""

    file: str
    crop_column: str = "crop"
    id_column: str | None = None
    classes: Annotated[list[str], Field(min_length=2)]
    mapping: dict[str, str] = {}


class Radar(_Entry):
    """Which Sentinel-1 acquisitions: relative orbits (all where empty), and how many dates (all where 0)."""

    orbits: list[PositiveInt] = []
    dates: Annotated[int, Field(ge=0)] = 0


class Optical(_Entry):
    """Which Sentinel-2 acquisitions: cloud cover below a fraction, and how many dates (all where 0)."""

    max_cloud: Annotated[float, Field(gt=0, le=1)] = 0.08
    dates: Annotated[int, Field(ge=0)] = 0


class _Region(_Entry):
    name: Annotated[str, Field(pattern="^[a-z0-9_]+$")]
    block_size: PositiveFloat = 10_000  # metres
    sites: Annotated[int, Field(ge=1, le=10)] = 3  # blocks that are looked at one by one
    # What the networks' pages and all that follow them are about.
    features: Literal["backscatter", "m-chi", "optical+backscatter", "optical+m-chi", "optical"] = "optical+m-chi"

    def lacks(self) -> dict[str, str]:
        """Artefacts of the book that cannot be made of this region, and why."""
        return {}

    def without(self) -> list[str]:
        """What this region has not, of twin, optical, backscatter and m-chi."""
        return ["twin"]

    def sources(self) -> list[Path]:
        """Files that decide what the region becomes, and may change."""
        return []


class Simulated(_Region):
    """A twin: keyword arguments of `cropnb.twin.write`."""

    source: Literal["twin"]
    crs: str
    centre: tuple[float, float]
    crop_shares: dict[str, float]
    tracks: dict[str, tuple[str, PositiveInt]]
    cloud_cover: dict[str, float]
    sowing_delay: float = 0  # days

    def without(self) -> list[str]:
        return [] if self.cloud_cover else ["optical"]


class Measured(_Region):
    """Sentinel-1 and Sentinel-2 products over `bounds` (west, south, east, north; degrees) in a season."""

    source: Literal["sentinel"]
    crs: str
    bounds: tuple[float, float, float, float] | None = None
    outline: str = ""  # a vector file in the place of bounds
    season: tuple[date, date]
    sentinel1: Radar | None = None
    sentinel2: Optical | None = None
    products: str = ""  # folder of the SAFE products
    dem: str = ""  # elevation raster; the one that was fetched with the products where empty
    undulation: float = 0.0  # metres of the geoid above the ellipsoid, added to the elevation raster's heights
    labels: Labels
    cropland: str = ""  # raster, above 0 where there is cropland; the labelled parcels where empty

    @model_validator(mode="after")
    def _check(self):
        if bool(self.bounds) == bool(self.outline):
            raise ValueError("give either bounds (west, south, east, north) or outline, a vector file")
        if self.season[0] >= self.season[1]:
            raise ValueError(f"season ends on {self.season[1]}, before it begins on {self.season[0]}; swap them")
        if self.sentinel1 is None and self.sentinel2 is None:
            raise ValueError("name at least one sensor, sentinel1 or sentinel2")
        crs = _projected(self.crs)
        if self.bounds:
            _check_bounds(self.bounds, crs)
        needs = set(self.features.split("+"))
        if ("optical" in needs and not self.sentinel2) or (needs - {"optical"} and not self.sentinel1):
            raise ValueError(f"features {self.features!r} needs a sensor that is not named; choose others")
        return self

    def lacks(self) -> dict[str, str]:
        why = "needs a second region like the first, which only a simulated one has"
        return {"few_labels": f"This chapter {why}; its results are in the book of the simulated region."}

    def without(self) -> list[str]:
        radar = [] if self.sentinel1 else ["backscatter", "m-chi"]
        return ["twin", *radar, *([] if self.sentinel2 else ["optical"])]

    def sources(self) -> list[Path]:
        named = [self.labels.file, self.outline, self.dem, self.cropland]
        return [*map(Path, filter(None, named)), *sorted(self.folder().glob("*.SAFE"))]

    def folder(self) -> Path:
        """Where the products lie."""
        return Path(self.products or f"_build/data/{self.name}")

    def grid(self) -> GeoBox:
        """The region's 10 m grid: its bounds in its CRS, widened to whole 20 m pixels."""
        import geopandas as gpd
        import numpy as np
        from odc.geo.geobox import GeoBox
        from shapely.geometry import box

        if self.outline:
            frame = gpd.read_file(self.outline)
            if frame.crs is None:
                raise ValueError(f"{self.outline} has no CRS: write it into the file")
            bounds = frame.to_crs(self.crs).total_bounds
        else:
            bounds = gpd.GeoSeries([box(*self.bounds)], crs=4326).segmentize(0.01).to_crs(self.crs).total_bounds
        low, high = np.floor(bounds[:2] / 20) * 20, np.ceil(bounds[2:] / 20) * 20
        return GeoBox.from_bbox((*low, *high), self.crs, resolution=10)


class Patches(_Region):
    """One of the two places of `flanders_patches`."""

    source: Literal["flanders"]
    location: str
    labels: dict[str, list[str]]  # class -> declared crops

    def without(self) -> list[str]:
        return ["twin", "m-chi"]

    def lacks(self) -> dict[str, str]:
        why = "is 640 m wide with a handful of parcels, too few for three sets that share nothing"
        return {"split.parquet": f"The region {self.name} {why}, so nothing is trained on it."}


class Points(_Region):
    """Labelled points without rasters."""

    source: Literal["points"]
    dataset: str

    def lacks(self) -> dict[str, str]:
        why = "has labelled points and no rasters, so there is no cube, no patch and no map"
        return {"region": f"The region {self.name} {why}."}


_KINDS = {"twin": Simulated, "sentinel": Measured, "flanders": Patches, "points": Points}
Region = Simulated | Measured | Patches | Points


def read(path: str | Path) -> Region:
    """Read and check a region's file.

    Raises FileNotFoundError where there is none, ValueError with a sentence naming the file, the key and what would
    be right. Relative file names in it count from the working directory.
    """
    path = Path(path)
    if not path.is_file():
        known = sorted(other.name for other in path.parent.glob("*.yaml"))
        raise FileNotFoundError(f"There is no region file {path}; beside it lie {', '.join(known) or 'none'}.")
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} is not YAML in UTF-8: {' '.join(str(error).split())}.") from None
    source = content.get("source") if isinstance(content, dict) else None
    if source not in _KINDS:
        said = f"is {source!r}" if source else "is missing"
        raise ValueError(f"{path}: key 'source' {said}; it is one of {', '.join(_KINDS)}.")
    try:
        return _KINDS[source].model_validate(content)
    except ValidationError as error:
        raise ValueError(_sentence(path, error, _KINDS[source])) from None


def read_record(folder: str | Path) -> dict:
    """The record of a region folder, its region.json: how it was made, its grid and classes.

    Raises FileNotFoundError where there is none.
    """
    path = Path(folder) / "region.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: write the region first, an unfinished one has no such file.")
    return json.loads(path.read_text("utf-8"))


def write_record(folder: str | Path, record: Mapping) -> None:
    """Write the record of a region folder, its region.json."""
    files.write_json(Path(folder) / "region.json", record)


def prepare(
    region: Region, folder: str | Path, *, size: float = 8000, block_size: float = 1000, seed: int = 2017
) -> Path:
    """Make the region folder: acquisitions, parcels.parquet, cropland.tif and region.json.

    size (m), block_size (m, of the later split) and seed are those of a simulated region; others have their own.
    Raises ValueError for a region without rasters, and what the makers of each kind raise.
    """
    from . import twin

    folder = Path(folder)
    match region:
        case Simulated():
            options = region.model_dump(exclude={"source", "block_size", "features", "sites"})
            return twin.write(folder, **options, size=size, block_size=block_size, seed=seed)
        case Patches():
            partial = _fresh(folder)
            record = _from_patches(region, partial)
        case Measured():
            partial = _fresh(folder)
            record = _from_products(region, partial)
        case Points():
            raise ValueError(f"{region.name} has points and no rasters: no region folder can be made of it.")
    record = {
        "name": region.name,
        "simulated": False,
        "pixel_size": 10.0,
        "block_size": region.block_size,
        "sites": region.sites,
    } | record
    write_record(partial, record)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def _fresh(folder: Path) -> Path:
    """A folder beside, to be renamed when whole."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def _from_patches(region: Patches, folder: Path) -> dict:
    """Write a place of Flanders and its declared parcels; what region.json records."""
    import pandas as pd

    from . import data, flanders

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


def _from_products(region: Measured, folder: Path) -> dict:
    """Bring a region's SAFE products, labels and cropland onto its grid; what region.json records."""
    from . import parcels
    from .sentinel import optical, slc  # the extra `sentinel`

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


def describe(fields: gpd.GeoDataFrame, classes, grid: GeoBox) -> dict:
    """What region.json records of labels and grid: CRS, bounds, and the share of each crop in the parcels' area."""
    area = fields.area.groupby(fields["crop"]).sum().reindex(list(classes)).fillna(0)
    shares = (area / area.sum()).round(4).to_dict()
    return {"crs": str(grid.crs), "bounds": list(grid.boundingbox.bbox), "crop_shares": shares}


def write_cropland(mask: str | Path, fields: gpd.GeoDataFrame, grid: GeoBox, path: Path) -> None:
    """Write the cropland mask (uint8, 1 cropland, 255 unknown) on the grid; the parcels' where `mask` is empty."""
    import numpy as np
    import rasterio
    import rasterio.warp

    from . import parcels

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


def _projected(text: str) -> CRS:
    try:
        crs = CRS(text)
    except CRSError:
        raise ValueError(f"crs {text!r} is not known; give a code such as EPSG:32652") from None
    if not crs.is_projected or crs.axis_info[0].unit_name != "metre":
        raise ValueError(f"crs {text!r} ({crs.name}) is not in metres; give a UTM zone such as EPSG:32652")
    return crs


def _check_bounds(bounds, crs: CRS) -> None:
    west, south, east, north = bounds
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise ValueError(
            f"bounds {list(bounds)} are no west, south, east, north in degrees; longitude comes first, "
            "smaller before larger"
        )
    x, y, area = (west + east) / 2, (south + north) / 2, crs.area_of_use
    if area and not (area.west - 1 < x < area.east + 1 and area.south - 1 < y < area.north + 1):
        raise ValueError(
            f"bounds {list(bounds)} lie outside {crs.to_string()}, made for {list(area.bounds)}; are longitude and "
            "latitude swapped, or is it another zone"
        )


def _sentence(path: Path, error: ValidationError, kind: type[BaseModel]) -> str:
    first, *others = error.errors()
    key = ".".join(str(part) for part in first["loc"])
    problem = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        also = [".".join(str(part) for part in e["loc"]) for e in others if e["type"] == "missing"]
        problem = "missing, add it" + (f", and {', '.join(also)} too" if also else "")
        others = others[len(also) :]
    elif first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), kind.model_fields, n=1)
        problem = f"not known; {f'did you mean {near[0]!r}?' if near else 'known are ' + ', '.join(kind.model_fields)}"
    elif first["loc"] and not isinstance(first["input"], dict):
        problem = f"is {first['input']!r}: {problem}"
    return f"{path}{f', key {key!r}' if key else ''}: {problem}{f' (and {len(others)} more)' if others else ''}."
