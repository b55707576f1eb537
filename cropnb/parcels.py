"""Ground truth: parcels of one crop each, validated and drawn on the cube's grid (section 3.2)."""

import difflib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from pyproj import CRS
from pyproj.transformer import AreaOfInterest, TransformerGroup
from rasterio.features import rasterize

from cropnb import schema, vectors

log = logging.getLogger(__name__)

NO_PARCEL, NO_CROP = 0, 255  # where nothing is known, or two crops claim the pixel
SLIVER = 1.0  # square metres: neighbours digitised along one edge overlap by less
FEWEST = 3  # parcels of a class: no parcel may serve two of the three sets
MOST = 254  # classes: their numbers, and that of none, fit a byte
SHIFT = 5.0  # metres, half a pixel: of a datum's shift that may stay undone
LISTED = 40  # names that a sentence lists


@dataclass(frozen=True)
class Report:
    """What `read` found and changed; `overlaps` names each pair of parcels with two crops for one place."""

    read: int
    crs: str
    reprojected: int
    left_out: int
    repaired: int
    dropped_parcels: int
    dropped_pieces: int
    duplicates: int
    outside: int
    same_crop_overlaps: int
    overlaps: pd.DataFrame
    per_class: dict[str, int]

    @property
    def counts(self) -> pd.Series:
        """Everything that is counted, in words."""
        found = vars(self) | {"overlaps": len(self.overlaps), f"reprojected from {self.crs}": self.reprojected}
        words = {name.replace("_", " "): n for name, n in found.items() if name not in ("crs", "reprojected")}
        return pd.Series(words | words.pop("per class"), name="count").rename_axis("parcels")

    def __getattr__(self, name: str) -> int:
        """A count by its first words, such as `dropped_parcels` and `reprojected`."""
        found = self.__dict__.get("counts", pd.Series()).filter(regex=f"^{name.replace('_', ' ')}")
        if found.empty:
            raise AttributeError(f"A report counts no {name}.")
        return int(found.iloc[0])


def read(
    path: str | Path,
    *,
    crs: Any,
    classes: Sequence[str],
    layer: str = "",
    own_crs: str = "",
    crop_column: str = "crop",
    id_column: str | None = None,
    mapping: Mapping[str, str] | None = None,
    leave_out: Iterable[str | None] = (),
    grid: GeoBox | None = None,
) -> tuple[gpd.GeoDataFrame, Report]:
    """Read labels from any vector file, check them, and bring them to the grid's CRS.

    Crops are compared as text: 111, 111.0 and "111" are one, and so are an accented letter and its two parts.

    Parameters
    ----------
    path
        A file geopandas reads (GeoPackage, shapefile, GeoJSON, GeoParquet, ...).
    crs
        The CRS of the cube, projected, in metres.
    layer
        Which layer of the file, where it has several with polygons.
    own_crs
        The CRS of the file, where the file lacks it or knows it less well.
    id_column
        Positive whole numbers, each once; without it parcels are numbered from 1.
    mapping
        The file's crops to `classes`; one that is already a class needs no entry.
    leave_out
        The file's crops whose parcels are no labels; None is a parcel without a crop.
    grid
        Parcels that do not touch it are dropped.

    Returns a GeoDataFrame (parcel_id int64, crop str, geometry in `crs`) and a Report. Overlapping parcels
    stay: `rasterise` gives their contested pixels to nobody.

    Raises FileNotFoundError, or ValueError naming the file, what is wrong and the remedy.
    """
    path, crs, classes = Path(path), CRS(crs), [vectors.text(name) for name in classes]
    if not crs.is_projected or crs.axis_info[0].unit_name != "metre":
        raise ValueError(f"Parcels need a projected CRS in metres, not {crs.name}: give the cube's.")
    if len(set(classes)) < len(classes) or len(classes) > MOST:
        raise ValueError(f"The {len(classes)} classes for {path} are to differ, and to be at most {MOST}.")
    frame = vectors.read(path, layer, own_crs)
    ids = _ids(frame, path, id_column)
    crops = _crops(frame, path, crop_column, mapping or {}, classes, {vectors.text(name) for name in leave_out})
    kept = crops != ""
    vectors.require_polygons(frame.geometry[kept], path)
    _check_shift(frame, crs, path)
    geometry, repaired, pieces = _repair(frame.geometry[kept])
    projected = geometry.to_crs(crs)
    found = (~projected.is_empty & np.isfinite(projected.bounds).all(axis=1)).to_numpy()
    columns = {"parcel_id": ids[kept], "crop": crops[kept]}
    parcels = gpd.GeoDataFrame(columns, geometry=projected.to_numpy(), crs=crs)[found]
    inside = parcels.intersects(grid.extent.geom) if grid else pd.Series(True, parcels.index)
    if not inside.any():
        raise ValueError(f"{path} has no parcel on the raster{_elsewhere(parcels, geometry, grid)}.")
    parcels = parcels[inside]
    key = pd.DataFrame({"crop": parcels["crop"], "shape": shapely.to_wkb(shapely.normalize(parcels.geometry))})
    twice = key.duplicated().to_numpy()
    parcels = parcels[~twice].reset_index(drop=True)
    _check_numbers(parcels, path, classes, int((~inside).sum()))
    overlaps, same = _overlaps(parcels)
    _check_background(parcels, overlaps, path)
    report = Report(
        read=len(frame),
        crs=":".join(frame.crs.to_authority() or (frame.crs.name,)),
        reprojected=len(frame) if frame.crs != crs else 0,
        left_out=int((~kept).sum()),
        repaired=repaired,
        dropped_parcels=int((~found).sum()),
        dropped_pieces=pieces,
        duplicates=int(twice.sum()),
        outside=int((~inside).sum()),
        same_crop_overlaps=same,
        overlaps=overlaps,
        per_class={crop: int((parcels["crop"] == crop).sum()) for crop in classes},
    )
    changed = report.counts.drop(["read", *classes]).loc[lambda counts: counts > 0]
    if len(changed):
        words = "; ".join(f"{name} {n}" for name, n in changed.items())
        log.warning("%s, %d parcels: %s", path, len(frame), words)
    for pair in overlaps.head(LISTED).itertuples(index=False):
        log.warning("%s: parcels %d (%s) and %d (%s) overlap by %.0f m2, which nobody gets", path, *pair)
    return parcels, report


def labelled(folder: str | Path) -> tuple[gpd.GeoDataFrame, xr.Dataset]:
    """The parcels of a region folder, and their labels on its grid, as of `rasterise`."""
    record = schema.read_record(folder)
    parcels = gpd.read_parquet(Path(folder) / "parcels.parquet")
    grid = GeoBox.from_bbox(record["bounds"], record["crs"], resolution=record["pixel_size"])
    return parcels, rasterise(parcels, grid, list(record["crop_shares"]))


def rasterise(parcels: gpd.GeoDataFrame, grid: GeoBox, classes: Sequence[str]) -> xr.Dataset:
    """Draw parcels on the grid: a pixel belongs to the parcel that holds its centre.

    Returns parcel (y, x) int32, 0 where there is none, and crop (y, x) uint8, the position in `classes`, 255
    where there is none. A pixel claimed for two crops gets neither.
    """
    if unknown := sorted(set(parcels["crop"]) - set(classes)):
        raise ValueError(f"Crops {unknown} are not among the classes {list(classes)}: read them with a mapping.")
    ids = parcels["parcel_id"].to_numpy()
    if len(np.unique(ids)) < len(ids) or ids.min() < 1 or ids.max() > np.iinfo(np.int32).max:
        raise ValueError("parcel_id must be distinct whole numbers from 1 to 2147483647: renumber the parcels.")
    options = {"out_shape": grid.shape, "transform": grid.affine}
    parcel = rasterize(zip(parcels.geometry, ids.tolist(), strict=True), fill=NO_PARCEL, dtype="int32", **options)
    claims = sum(rasterize(own.geometry, dtype="uint8", **options) for _, own in parcels.groupby("crop"))
    parcel[claims > 1] = NO_PARCEL
    code_of = pd.Series(pd.Index(classes).get_indexer(parcels["crop"]).astype("uint8"), index=ids)
    crop = code_of.reindex(parcel.ravel(), fill_value=NO_CROP).to_numpy().reshape(parcel.shape)
    flags = {"flag_values": list(range(len(classes))), "flag_meanings": " ".join(classes)}
    labels = {
        "parcel": (("y", "x"), parcel, {"long_name": "parcel", "units": "1", "no_parcel": NO_PARCEL}),
        "crop": (("y", "x"), crop, {"long_name": "crop", "units": "1", "no_crop": NO_CROP, **flags}),
    }
    return xr.Dataset(labels, coords=xr_coords(grid), attrs={"classes": list(classes)})


def statistics(parcels: gpd.GeoDataFrame, labels: xr.Dataset) -> pd.DataFrame:
    """Return what Figure 2 draws, a row a class: parcels, pixels, share of pixels, mean and median size (ha)."""
    classes = labels.attrs["classes"]
    pixels = np.bincount(labels["crop"].values.ravel(), minlength=NO_CROP + 1)[: len(classes)]
    hectares = (parcels.area / 1e4).groupby(parcels["crop"]).agg(["size", "mean", "median"]).reindex(classes)
    columns = {"parcels": hectares["size"].fillna(0).astype(int), "pixels": pixels, "share": pixels / pixels.sum()}
    return pd.DataFrame(columns | {"mean_ha": hectares["mean"], "median_ha": hectares["median"]}).rename_axis("crop")


def _column(frame: gpd.GeoDataFrame, path: Path, column: str, option: str) -> pd.Series:
    if column not in frame:
        columns = [str(name) for name in frame.columns if name != frame.geometry.name]
        if not columns:
            raise ValueError(f"{path} has shapes and no table: a shapefile needs its .dbf beside it.")
        close = difflib.get_close_matches(column, columns, n=1, cutoff=0.4)
        remedy = f"{option}={close[0]!r}" if close else f"{option} to one of them"
        raise ValueError(f"{path} has no column {column!r} but {columns}: set {remedy}.")
    return frame[column]


def _crops(
    frame: gpd.GeoDataFrame, path: Path, column: str, mapping: Mapping, classes: list[str], leave_out: set[str]
) -> np.ndarray:
    """Class of each parcel, "" where it is left out; raise with every unknown name, its count and the key to add."""
    given = _column(frame, path, column, "crop_column").astype(object)
    if len(several := given[given.map(lambda value: isinstance(value, list | tuple | dict | np.ndarray))]):
        raise ValueError(
            f"{path} has several values in {column!r}, as {several.iloc[0]!r}: write a column with one crop a parcel."
        )
    mapping = {vectors.text(name): vectors.text(target) for name, target in mapping.items()}
    if wrong := {name: target for name, target in mapping.items() if target not in classes}:
        raise ValueError(f"The mapping for {path} leads to no class: {wrong}, where the classes are {classes}.")
    if both := leave_out & (set(mapping) | set(classes)):
        raise ValueError(f"{path}: {sorted(both)} are crops of a class and left out as well: choose one.")
    names = given.map(vectors.text)
    crops = names.map(lambda name: "" if name in leave_out else mapping.get(name, name))
    if len(unknown := names[~crops.isin(classes) & ~names.isin(leave_out)].value_counts()):
        shown = unknown.head(LISTED)
        found = ", ".join(f"{name!r} ({n})" for name, n in shown.items()) + ", ..." * (len(unknown) > LISTED)
        keys = ", ".join(f"{name!r}: {classes[-1]!r}" for name in shown.index)
        raise ValueError(
            f"{path} has {len(unknown)} crop names that are no class (parcels of each in brackets): {found}; "
            f"add them to the mapping, each to one of {classes}, such as {{{keys}}}, or to leave_out."
        )
    return crops.to_numpy(object)


def _ids(frame: gpd.GeoDataFrame, path: Path, column: str | None) -> np.ndarray:
    if column is None:
        return np.arange(1, len(frame) + 1, dtype=np.int64)
    given = _column(frame, path, column, "id_column")
    ids = pd.to_numeric(given, errors="coerce")
    wrong = ~(ids > 0) | (ids > np.iinfo(np.int32).max) | (ids % 1 != 0) | ids.duplicated(keep=False)
    if len(bad := given[wrong]):
        raise ValueError(
            f"{path}: {len(bad)} values of {column!r} are not a positive whole number of their own, up to 2147483647; "
            f"the first is {bad.tolist()[0]!r}: leave id_column out to number the parcels from 1."
        )
    return ids.to_numpy(np.int64)


def _check_shift(frame: gpd.GeoDataFrame, crs: CRS, path: Path) -> None:
    """Raise where PROJ cannot shift the file's datum to the grid's, and that may matter."""
    place = AreaOfInterest(*frame.to_crs(4326).total_bounds)
    best = TransformerGroup(frame.crs, crs, always_xy=True, area_of_interest=place).transformers[:1]
    if not best or "Ballpark" not in best[0].description:
        return
    source, target = CRS(frame.crs.geodetic_crs), CRS(crs.geodetic_crs)
    x, y = (place.west_lon_degree + place.east_lon_degree) / 2, (place.south_lat_degree + place.north_lat_degree) / 2
    globe, other = source.get_geod(), target.get_geod()
    known = [t for t in TransformerGroup(source, target, always_xy=True).transformers if t.accuracy >= 0]
    if globe is None or other is None:
        return
    metres = [globe.inv(x, y, *t.transform(x, y))[2] for t in known]
    if max(metres, default=0.0 if abs(globe.a - other.a) < 1 else np.inf) > SHIFT:
        size = f"those known elsewhere move by {min(metres):.0f} to {max(metres):.0f} m" if metres else "often 100 m"
        raise ValueError(
            f"{path} is in {frame.crs.name}, whose shift to {target.name} is not known here ({size}): set the key crs "
            "to the file's CRS with the shift of its survey (+proj=... +towgs84=dx,dy,dz), or write it in another CRS."
        )


def _elsewhere(parcels: gpd.GeoDataFrame, geometry: gpd.GeoSeries, grid: GeoBox | None) -> str:
    """Where the parcels lie instead, and whether their axes are swapped."""
    if grid is None:
        return f": none of them can be brought to {parcels.crs.to_string()}, check the file's CRS"
    turned = gpd.GeoSeries(shapely.transform(geometry.to_numpy(), lambda xy: xy[:, ::-1]), crs=geometry.crs)
    theirs, ours = np.round(parcels.total_bounds).tolist(), np.round(grid.boundingbox.bbox).tolist()
    where = f": parcels span {theirs} in {parcels.crs.to_string()}, the raster {ours} in {grid.crs}; "
    if turned.to_crs(parcels.crs).intersects(grid.extent.geom).any():
        return f"{where}with x and y swapped they would meet: write the file anew, x or longitude first"
    return f"{where}check the file's CRS and the region"


def _check_numbers(parcels: gpd.GeoDataFrame, path: Path, classes: list[str], outside: int) -> None:
    counts = parcels["crop"].value_counts().reindex(classes, fill_value=0)
    if few := {crop: int(n) for crop, n in counts.items() if n < FEWEST}:
        where = f" inside the region ({outside} parcels lie outside)" if outside else ""
        raise ValueError(
            f"{path} has too few parcels of {few}{where}, three sets need {FEWEST} each: "
            "map the crop to another class, or leave it out."
        )


def _check_background(parcels: gpd.GeoDataFrame, overlaps: pd.DataFrame, path: Path) -> None:
    """Raise where polygons of another crop lie under most of a class."""
    pairs = [overlaps[["first", "m2"]], overlaps[["second", "m2"]].set_axis(["first", "m2"], axis=1)]
    lost = pd.concat(pairs).groupby("first")["m2"].sum().reindex(parcels["parcel_id"], fill_value=0).to_numpy()
    area = parcels.area.to_numpy()
    table = pd.DataFrame({"crop": parcels["crop"], "lost": np.minimum(lost, area), "area": area})
    sums = table.groupby("crop")[["lost", "area"]].sum()
    if (sums["lost"] > sums["area"] / 2).any():
        worst = pd.concat([overlaps["first"], overlaps["second"]]).value_counts()
        names = ", ".join(sums.index[sums["lost"] > sums["area"] / 2])
        raise ValueError(
            f"{path}: most of the area of {names} is claimed for another crop too. Parcel {worst.index[0]} overlaps "
            f"{worst.iloc[0]} parcels of other crops: is it a background? Leave it out, or cut it at the parcels."
        )


def _repair(geometry: gpd.GeoSeries) -> tuple[gpd.GeoSeries, int, int]:
    """Make all valid polygons or multipolygons; count also what was repaired and pieces dropped."""
    shapes = shapely.force_2d(geometry.to_numpy())
    shapes[shapely.is_missing(shapes)] = shapely.Polygon()
    invalid = ~shapely.is_valid(shapes)
    shapes[invalid] = shapely.make_valid(shapes[invalid], method="structure", keep_collapsed=False)
    dropped = 0
    for i in np.flatnonzero(~np.isin(shapely.get_type_id(shapes), (3, 6))):  # not a polygon, not several
        parts = shapely.get_parts(shapely.get_parts(shapes[i]))
        polygons = parts[shapely.get_type_id(parts) == 3]
        dropped += len(parts) - len(polygons)
        shapes[i] = shapely.union_all(polygons) if len(polygons) else shapely.Polygon()
    return gpd.GeoSeries(shapes, index=geometry.index, crs=geometry.crs), int(invalid.sum()), dropped


def _overlaps(parcels: gpd.GeoDataFrame) -> tuple[pd.DataFrame, int]:
    """Return the pairs of parcels with different crops that overlap by more than a sliver, and how many of one crop."""
    first, second = parcels.sindex.query(parcels.geometry, predicate="intersects")
    first, second = first[first < second], second[first < second]
    crop, ids, shapes = (parcels[name].to_numpy() for name in ("crop", "parcel_id", "geometry"))
    area = shapely.area(shapely.intersection(shapes[first], shapes[second]))
    pairs = {"first": ids[first], "crop": crop[first], "second": ids[second], "other_crop": crop[second]}
    table = pd.DataFrame(pairs | {"m2": area})[area > SLIVER]
    differ = table["crop"] != table["other_crop"]
    return table[differ].reset_index(drop=True), int((~differ).sum())
