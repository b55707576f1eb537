"""A region: where and when, which sensors and which labels; one YAML file each, `params/regions/*.yaml`.

`read` checks such a file. `cropnb.preparation` makes the region's folder, whose region.json is read and written here.
"""

import difflib
import json
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

import geopandas as gpd
import numpy as np
import yaml
from odc.geo.geobox import GeoBox
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator
from pyproj import CRS
from pyproj.exceptions import CRSError
from shapely.geometry import box

from cropnb import files

RECORD = "region.json"


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
    """What is recorded of the region in `folder`, its region.json; FileNotFoundError where it is not whole."""
    path = Path(folder) / RECORD
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: write the region first, an unfinished one has no such file.")
    return json.loads(path.read_text("utf-8"))


def write_record(folder: str | Path, record: dict) -> None:
    """Write what is recorded of the region in `folder`: the last of its files."""
    files.write_json(Path(folder) / RECORD, record)


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
