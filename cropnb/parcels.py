"""Ground truth: parcels of one crop each, validated and drawn on the cube's grid (section 3.2)."""

import difflib
import logging
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from pyproj import CRS
from rasterio.features import rasterize

log = logging.getLogger(__name__)

NO_PARCEL, NO_CROP = 0, 255  # where nothing is known, or two crops claim the pixel
SLIVER = 1.0  # square metres: neighbours digitised along one edge overlap by less
FEWEST = 3  # parcels of a class: no parcel may serve two of the three sets


@dataclass(frozen=True)
class Report:
    """What `read` found and changed; `overlaps` names each pair of parcels with two crops for one place."""

    read: int
    crs: str
    reprojected: int
    repaired: int
    dropped_parcels: int
    dropped_pieces: int
    overlaps: pd.DataFrame
    per_class: dict

    def table(self) -> pd.DataFrame:
        """Return the counts, one a row."""
        counts = {
            "read": self.read,
            f"reprojected from {self.crs}": self.reprojected,
            "repaired": self.repaired,
        }
        counts |= {
            "dropped, no polygon": self.dropped_parcels,
            "pieces dropped by repairs": self.dropped_pieces,
        }
        counts |= {"overlapping pairs with different crops": len(self.overlaps)} | self.per_class
        return pd.Series(counts, name="count").rename_axis("parcels").to_frame()


def read(path, *, crs, crop_column="crop", id_column=None, mapping=None, classes):
    """Read labels from any vector file, check them, and bring them to the grid's CRS.

    path: a file geopandas reads (GeoPackage, shapefile, GeoJSON, GeoParquet, ...).
    crs: the CRS of the cube, projected, in metres.
    id_column: positive whole numbers, each once; without it parcels are numbered from 1.
    mapping: the file's crop names to `classes`; a name that is already a class needs no entry.

    Returns a GeoDataFrame (parcel_id int64, crop str, geometry in `crs`) and a Report. Overlapping parcels
    stay: `rasterise` gives their contested pixels to nobody.
    Raises FileNotFoundError, or ValueError naming the file, what is wrong and the remedy.
    """
    path, crs, classes = Path(path), CRS(crs), list(classes)
    if not crs.is_projected or crs.axis_info[0].unit_name != "metre":
        raise ValueError(f"parcels need a projected CRS in metres, not {crs.name}: give the cube's")
    frame = _open(path)
    columns = {
        "parcel_id": _ids(frame, path, id_column),
        "crop": _crops(frame, path, crop_column, mapping, classes),
    }
    geometry, repaired, pieces = _repair(frame.geometry)
    geometry = geometry.to_crs(crs)
    found = ~geometry.is_empty & np.isfinite(geometry.bounds).all(axis=1)
    parcels = gpd.GeoDataFrame(columns, geometry=geometry)[found].reset_index(drop=True)
    per_class = {crop: int((parcels["crop"] == crop).sum()) for crop in classes}
    if few := {crop: n for crop, n in per_class.items() if n < FEWEST}:
        raise ValueError(
            f"{path} has too few parcels of {few}, three sets need {FEWEST} each: "
            "map the crop to another class, or leave it out of the classes"
        )
    overlaps, moved = _overlaps(parcels), len(frame) if frame.crs != crs else 0
    theirs, dropped = frame.crs.to_string(), int((~found).sum())
    if moved:
        log.warning("%s: reprojected from %s to %s", path, theirs, crs.to_string())
    if repaired or dropped:
        log.warning("%s: %d polygons repaired, %d parcels dropped", path, repaired, dropped)
    for pair in overlaps.itertuples(index=False):
        log.warning("%s: parcels %d (%s) and %d (%s) overlap by %.0f m2, which nobody gets", path, *pair)
    return parcels, Report(len(frame), theirs, moved, repaired, dropped, pieces, overlaps, per_class)


def within(parcels: gpd.GeoDataFrame, grid: GeoBox) -> gpd.GeoDataFrame:
    """Return the parcels that touch the raster; the others are dropped and counted in the log.

    Raises ValueError, with both bounds and both CRS, when none does.
    """
    ours, theirs = np.round(parcels.total_bounds).tolist(), np.round(grid.boundingbox.bbox).tolist()
    where = f"parcels span {ours} in {parcels.crs.to_string()}, the raster {theirs} in {grid.crs}"
    if parcels.crs != CRS(str(grid.crs)):
        raise ValueError(f"{where}: read the parcels with crs={str(grid.crs)!r}")
    inside = parcels[parcels.intersects(grid.extent.geom)]
    if inside.empty:
        raise ValueError(f"no parcel lies on the raster, {where}: check the label file's CRS and the region")
    if outside := len(parcels) - len(inside):
        log.warning("%d of %d parcels lie outside the raster and are dropped", outside, len(parcels))
    return inside.reset_index(drop=True)


def rasterise(parcels: gpd.GeoDataFrame, grid: GeoBox, classes) -> xr.Dataset:
    """Draw parcels on the grid: a pixel belongs to the parcel that holds its centre.

    Returns parcel (y, x) int32, 0 where there is none, and crop (y, x) uint8, the position in `classes`, 255
    where there is none. A pixel claimed for two crops gets neither.
    """
    if unknown := sorted(set(parcels["crop"]) - set(classes)):
        raise ValueError(f"crops {unknown} are not among the classes {list(classes)}: read them with a mapping")
    ids = parcels["parcel_id"].to_numpy()
    if len(np.unique(ids)) < len(ids) or ids.min() < 1 or ids.max() > np.iinfo(np.int32).max:
        raise ValueError("parcel_id must be distinct whole numbers from 1 to 2147483647: renumber the parcels")
    options = {"out_shape": grid.shape, "transform": grid.affine}
    parcel = rasterize(zip(parcels.geometry, ids.tolist(), strict=True), fill=NO_PARCEL, dtype="int32", **options)
    crop, claims = np.full(grid.shape, NO_CROP, np.uint8), np.zeros(grid.shape, np.uint8)
    for code, name in enumerate(classes):
        own = parcels.geometry[parcels["crop"] == name]
        if len(own):
            mask = rasterize(own, dtype="uint8", **options).astype(bool)
            crop[mask] = code
            claims += mask
    crop[claims > 1], parcel[claims > 1] = NO_CROP, NO_PARCEL
    flags = {"flag_values": list(range(len(classes))), "flag_meanings": " ".join(classes)}
    labels = {
        "parcel": (("y", "x"), parcel, {"long_name": "parcel", "units": "1", "no_parcel": NO_PARCEL}),
        "crop": (("y", "x"), crop, {"long_name": "crop", "units": "1", "no_crop": NO_CROP, **flags}),
    }
    return xr.Dataset(labels, coords=xr_coords(grid), attrs={"classes": list(classes)})


def statistics(parcels: gpd.GeoDataFrame, labels: xr.Dataset) -> pd.DataFrame:
    """Return what Figure 2 draws, a row a class: parcels, pixels, share of pixels, mean and median size."""
    classes = labels.attrs["classes"]
    pixels = np.bincount(labels["crop"].values.ravel(), minlength=NO_CROP + 1)[: len(classes)]
    hectares = (parcels.area / 1e4).groupby(parcels["crop"]).agg(["size", "mean", "median"]).reindex(classes)
    columns = {
        "parcels": hectares["size"].fillna(0).astype(int),
        "pixels": pixels,
        "share": pixels / pixels.sum(),
    }
    return pd.DataFrame(columns | {"mean_ha": hectares["mean"], "median_ha": hectares["median"]}).rename_axis("crop")


def _open(path: Path) -> gpd.GeoDataFrame:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give the path of a vector file with the parcels")
    try:
        frame = gpd.read_parquet(path) if path.suffix == ".parquet" else gpd.read_file(path)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is no vector file geopandas reads, convert it to GeoPackage: {error}") from error
    if not isinstance(frame, gpd.GeoDataFrame):
        raise ValueError(f"{path} is a table without geometry: give a vector file with the parcels' polygons")
    if frame.empty:
        raise ValueError(f"{path} holds no parcels: check the export that wrote it")
    if frame.crs is None:
        raise ValueError(f"{path} has no CRS: write it into the file (GeoDataFrame.set_crs), never guess it")
    return frame.reset_index(drop=True)


def _column(frame, path, column, option) -> pd.Series:
    if column not in frame:
        columns = [str(name) for name in frame.columns if name != frame.geometry.name]
        close = difflib.get_close_matches(column, columns, n=1, cutoff=0.4)
        remedy = f"{option}={close[0]!r}" if close else f"{option} to one of them"
        raise ValueError(f"{path} has no column {column!r} but {columns}: set {remedy}")
    return frame[column]


def _crops(frame, path, column, mapping, classes) -> np.ndarray:
    """Return the class of each parcel; raise with every unknown name, its count and the key to add."""
    mapping, names = mapping or {}, _column(frame, path, column, "crop_column").astype(object)
    if wrong := {name: target for name, target in mapping.items() if target not in classes}:
        raise ValueError(f"the mapping for {path} leads to no class: {wrong}, where the classes are {classes}")
    names = names.where(names.notna(), "")
    crops = names.map(lambda name: mapping.get(name, name))
    if len(unknown := names[~crops.isin(classes)].value_counts()):
        found = ", ".join(f"{name!r} ({n})" for name, n in unknown.items())
        keys = ", ".join(f"{name!r}: {classes[-1]!r}" for name in unknown.index)
        raise ValueError(
            f"{path} has {len(unknown)} crop names that are no class (parcels of each in brackets): {found}; "
            f"add  them to the mapping, each to one of {classes}, such as {{{keys}}}"
        )
    return crops.to_numpy(object)


def _ids(frame, path, column) -> np.ndarray:
    if column is None:
        return np.arange(1, len(frame) + 1, dtype=np.int64)
    given = _column(frame, path, column, "id_column")
    ids = pd.to_numeric(given, errors="coerce")
    if len(bad := given[~(ids > 0) | (ids % 1 != 0) | ids.duplicated(keep=False)]):
        raise ValueError(
            f"{path}: {len(bad)} values of {column!r} are not a positive whole number of their own, "
            f"the first is {bad.tolist()[0]!r}: leave id_column out to number the parcels from 1"
        )
    return ids.to_numpy(np.int64)


def _repair(geometry: gpd.GeoSeries) -> tuple[gpd.GeoSeries, int, int]:
    """Make all valid polygons or multipolygons; count also what was repaired and pieces dropped."""
    shapes = geometry.to_numpy().copy()
    shapes[shapely.is_missing(shapes)] = shapely.Polygon()
    invalid = ~shapely.is_valid(shapes)
    shapes[invalid] = shapely.make_valid(shapes[invalid])
    dropped = 0
    for i in np.flatnonzero(~np.isin(shapely.get_type_id(shapes), (3, 6))):  # not a polygon, not several
        parts = shapely.get_parts(shapely.get_parts(shapes[i]))
        polygons = parts[shapely.get_type_id(parts) == 3]
        dropped += len(parts) - len(polygons)
        shapes[i] = shapely.union_all(polygons) if len(polygons) else shapely.Polygon()
    return gpd.GeoSeries(shapes, index=geometry.index, crs=geometry.crs), int(invalid.sum()), dropped


def _overlaps(parcels: gpd.GeoDataFrame) -> pd.DataFrame:
    """Return the pairs of parcels with different crops that overlap by more than a sliver."""
    first, second = parcels.sindex.query(parcels.geometry, predicate="intersects")
    crop, ids, shapes = (parcels[name].to_numpy() for name in ("crop", "parcel_id", "geometry"))
    differ = (first < second) & (crop[first] != crop[second])
    first, second = first[differ], second[differ]
    area = shapely.area(shapely.intersection(shapes[first], shapes[second]))
    pairs = {"first": ids[first], "crop": crop[first], "second": ids[second], "other_crop": crop[second]}
    return pd.DataFrame(pairs | {"m2": area})[area > SLIVER].reset_index(drop=True)
