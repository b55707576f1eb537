"""A region: where and when, which sensors and which labels; one YAML file each, `params/regions/*.yaml`.

`read` checks such a file. `cropnb.regions` makes the region's folder, whose region.json is read and written here.
"""

import glob
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import geopandas as gpd
import numpy as np
import rasterio
import yaml
from odc.geo.geobox import GeoBox
from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, model_validator
from pyproj import CRS, Proj
from pyproj.exceptions import CRSError
from shapely.geometry import box

from cropnb import data, files, models, vectors

RECORD = "region.json"
SMALLEST = 50.0  # metres: in a smaller block no patch has room
STRETCH = 0.05  # of lengths, beyond which a projection is no grid of 10 m pixels; of areas it is half of that


def _projected(given: str) -> str:
    """The horizontal part of a CRS, however it is named, as a code where it has one."""
    try:
        crs = CRS(f"EPSG:{given}" if given.isdigit() else given)
    except CRSError:
        raise ValueError("not known; give a code such as EPSG:32652") from None
    crs = crs.sub_crs_list[0] if crs.is_compound else crs
    if not crs.is_projected or {axis.unit_name for axis in crs.axis_info} != {"metre"}:
        raise ValueError(f"{crs.name} is not in metres; give a UTM zone such as EPSG:32652")
    if {axis.direction for axis in crs.axis_info} != {"east", "north"}:
        raise ValueError(f"the axes of {crs.name} do not run east and north; give a UTM zone such as EPSG:32652")
    return crs.to_string()


def _different(names: list[str]) -> list[str]:
    if "" in names:
        raise ValueError("a class needs a name")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)} stands there twice; keep one")
    return names


def _wide(size: float) -> float:
    if size and not size >= SMALLEST:
        raise ValueError(
            f"blocks are squares of {SMALLEST:g} m or more, or 0, which makes each parcel a block of its own"
        )
    return size


Place = Annotated[str, AfterValidator(lambda name: name and str(Path(name).expanduser()))]  # "~" is the home
Code = Annotated[str, BeforeValidator(lambda given: given if isinstance(given, list | dict) else vectors.text(given))]
Grid = Annotated[str, AfterValidator(_projected)]


class Labels(data.Entry):
    """A vector file of parcels, and how its crops lead to the classes; see `cropnb.parcels.read`."""

    file: Place
    layer: str = ""
    crs: str = ""  # of the file, where it has none or knows it less well
    crop_column: str = "crop"
    id_column: str | None = None
    classes: Annotated[list[Code], Field(min_length=2, max_length=254), AfterValidator(_different)]
    mapping: dict[Code, Code] = Field({})
    leave_out: list[Code] = Field([])  # crops whose parcels are no labels, null for those without a crop


class Radar(data.Entry):
    """Which Sentinel-1 acquisitions: relative orbits (all where empty), and how many dates (all where 0)."""

    orbits: list[PositiveInt] = Field([])
    dates: Annotated[int, Field(ge=0)] = 0


class Optical(data.Entry):
    """Which Sentinel-2 acquisitions: cloud cover below a fraction, and how many dates (all where 0)."""

    max_cloud: Annotated[float, Field(gt=0, le=1)] = 0.08
    dates: Annotated[int, Field(ge=0)] = 0


class _Region(data.Entry):
    name: Annotated[str, Field(pattern="^[a-z0-9_]+$")]
    block_size: Annotated[float, AfterValidator(_wide)] = 10_000  # metres; 0 makes each parcel a block of its own
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
    crs: Grid
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
    crs: Grid
    bounds: tuple[float, float, float, float] | None = None
    outline: Place = ""  # a vector file in the place of bounds
    season: tuple[date, date]
    sentinel1: Radar | None = None
    sentinel2: Optical | None = None
    dataset: str = ""  # of the data manifest: files below are then named from its folder
    products: Place = ""  # folder of the SAFE products
    dem: Place = ""  # elevation raster; the one that was fetched with the products where empty
    undulation: float = 0.0  # metres of the geoid above the ellipsoid, added to the elevation raster's heights
    labels: Labels
    cropland: Place = ""  # raster of cropland; the labelled parcels where empty
    cropland_codes: list[int] = Field([])  # its values that are cropland; a mask or a fraction, above 0, where empty

    @model_validator(mode="after")
    def _check(self) -> "Measured":
        if bool(self.bounds) == bool(self.outline):
            raise ValueError("give either bounds (west, south, east, north) or outline, a vector file")
        if self.season[0] >= self.season[1]:
            raise ValueError(f"season ends on {self.season[1]}, before it begins on {self.season[0]}; swap them")
        if self.sentinel1 is None and self.sentinel2 is None:
            raise ValueError("name at least one sensor, sentinel1 or sentinel2")
        if self.bounds:
            _check_bounds(self.bounds, CRS(self.crs))
        needs = set(self.features.split("+"))
        if ("optical" in needs and not self.sentinel2) or (needs - {"optical"} and not self.sentinel1):
            raise ValueError(f"features {self.features!r} needs a sensor that is not named; choose others")
        return self

    def lacks(self) -> dict[str, str]:
        why = "needs a second region like the first, which only a simulated one has"
        found = {"few_labels": f"This chapter {why}; its results are in the book of the simulated region."}
        dates = self.most_dates()
        for network in models.DISPLAY_NAMES:
            if dates < (fewest := models.FEWEST_DATES.get(network, 1)):
                found[network] = f"This network takes {fewest} dates or more, and {self.name} has {dates:.0f} at most."
        return found

    def most_dates(self) -> float:
        """Dates that the features can have, by the region's file and the names of its products; inf where unknown."""
        name_of = re.compile(r"(S[12]).*?_(\d{8})T.*\.(SAFE|zip|tif)$")
        named = [name_of.match(path.name) for path in self.folder().rglob("S[12]*")]
        first, last = (f"{day:%Y%m%d}" for day in self.season)
        days = {(name[1], name[2]) for name in named if name and first <= name[2] <= last}
        total = 0.0
        for part in self.features.split("+"):
            sensor, rule = ("S2", self.sentinel2) if part == "optical" else ("S1", self.sentinel1)
            count = sum(day[0] == sensor for day in days)
            total += min((rule and rule.dates) or np.inf, count or np.inf)
        return total

    def without(self) -> list[str]:
        radar = [] if self.sentinel1 else ["backscatter", "m-chi"]
        for made in self.folder().rglob("S1_*_FEATURES.tif") if self.sentinel1 else ():  # by another tool
            with suppress(rasterio.errors.RasterioIOError), rasterio.open(made) as file:
                given = {"backscatter": {"vv_db", "vh_db"}, "m-chi": {"ps", "pd", "pv"}}
                radar = [name for name, bands in given.items() if not bands <= set(file.descriptions)]
                break
        return ["twin", *radar, *([] if self.sentinel2 else ["optical"])]

    def rules(self) -> dict[str, Radar | Optical]:
        """Which acquisitions, by sensor."""
        named = {"sar": self.sentinel1, "optical": self.sentinel2}
        return {sensor: rule for sensor, rule in named.items() if rule}

    def place(self, name: str) -> Path:
        """Where a file that the region names lies."""
        return data.cache_dir() / self.dataset / name if self.dataset else Path(name)

    def folder(self) -> Path:
        """Where the products lie."""
        return self.place(self.products) if self.products or self.dataset else Path(f"_build/data/{self.name}")

    def sources(self) -> list[Path]:
        named = [self.labels.file, self.outline, self.dem, self.cropland]
        found = [path for name in filter(None, named) for path in _with_companions(self.place(name))]
        return [*found, *sorted(path for path in self.folder().rglob("*") if path.is_file())]

    def grid(self) -> GeoBox:
        """The region's 10 m grid: its bounds in its CRS, widened to whole 20 m pixels.

        Raises FileNotFoundError and ValueError for an outline that is none, or lies elsewhere.
        """
        if self.outline:
            frame = vectors.read(self.place(self.outline))
            vectors.require_polygons(frame.geometry, self.place(self.outline))
            try:
                _check_bounds(frame.to_crs(4326).total_bounds.tolist(), CRS(self.crs))
            except ValueError as error:
                raise ValueError(f"The outline {self.place(self.outline)}: {error}.") from None
            bounds = frame.to_crs(self.crs).total_bounds
        else:
            bounds = gpd.GeoSeries([box(*(self.bounds or ()))], crs=4326).segmentize(0.01).to_crs(self.crs).total_bounds
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


Region = Simulated | Measured | Patches | Points
_KINDS: dict[str, type[Region]] = {"twin": Simulated, "sentinel": Measured, "flanders": Patches, "points": Points}


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
        content = yaml.load(path.read_text("utf-8"), _Text)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} is not YAML in UTF-8: {' '.join(str(error).split())}.") from None
    source = str(content.get("source") or "") if isinstance(content, dict) else ""
    if source not in _KINDS:
        said = f"is {source!r}" if source else "is missing"
        raise ValueError(f"{path}: key 'source' {said}; it is one of {', '.join(_KINDS)}.")
    return data.checked(_KINDS[source], content, path)


def read_record(folder: str | Path) -> dict:
    """What is recorded of the region in `folder`, its region.json; FileNotFoundError where it is not whole."""
    path = Path(folder) / RECORD
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: write the region first, an unfinished one has no such file.")
    return json.loads(path.read_text("utf-8"))


def grid(record: Mapping) -> GeoBox:
    """The grid of 10 m pixels that a region's record describes."""
    return GeoBox.from_bbox(tuple(record["bounds"]), record["crs"], resolution=record["pixel_size"])


def write_record(folder: str | Path, record: dict) -> None:
    """Write what is recorded of the region in `folder`: the last of its files."""
    files.write_json(Path(folder) / RECORD, record)


class _Text(yaml.SafeLoader):
    """YAML whose scalars are the text that stands there, so that NO, 011 and 12:30 are codes; no key twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in known if tag.endswith((":null", ":merge"))]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if (name := vectors.text(key.value)) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {name!r} stands there twice", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def _with_companions(path: Path) -> Iterable[Path]:
    """A file with those of its name beside it (a shapefile's table, projection and encoding), or a folder's files."""
    found = path.rglob("*") if path.is_dir() else path.parent.glob(f"{glob.escape(path.stem)}.*")
    return sorted(other for other in found if other.is_file())


def _check_bounds(bounds: Any, crs: CRS) -> None:
    west, south, east, north = bounds
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90) or east - west > 180:
        raise ValueError(
            f"bounds {list(bounds)} are no west, south, east, north in degrees; longitude comes first, "
            "smaller before larger, and a region lies on one side of the antimeridian"
        )
    x, y, area = (west + east) / 2, (south + north) / 2, crs.area_of_use
    if area and not (
        (x - area.west + 1) % 360 < ((area.east - area.west) % 360 or 360) + 2 and area.south - 1 < y < area.north + 1
    ):
        raise ValueError(
            f"bounds {list(bounds)} lie outside {crs.to_string()}, made for {list(area.bounds)}; are longitude and "
            "latitude swapped, or is it another zone"
        )
    at = Proj(crs).get_factors(*np.meshgrid([west, x, east], [south, y, north]))
    stretched = [2 * (at.areal_scale - 1), at.tissot_semimajor - 1, at.tissot_semiminor - 1]
    if not np.abs(stretched).max() < STRETCH:  # NaN included
        zone = f"EPSG:{32601 + 100 * (y < 0) + int((x + 180) // 6)}"
        raise ValueError(
            f"in crs {crs.to_string()} ({crs.name}) a hectare at {y:.1f} degrees north counts as "
            f"{np.asarray(at.areal_scale)[1, 1]:.2f} ha; "
            f"give a projection that keeps lengths and areas there, such as {zone}"
        )
