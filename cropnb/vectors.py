"""Reading vector files of any format: one layer, with a coordinate reference system that can be right."""

import re
import unicodedata
from pathlib import Path
from typing import Any

import fsspec
import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import rasterio.features
import rasterio.warp
import shapely
from odc.geo.geobox import GeoBox
from pyproj.exceptions import CRSError

from cropnb import data


def read(path: str | Path, layer: str = "", crs: str = "") -> gpd.GeoDataFrame:
    """The table of a vector file (of a layer, where it has several) with a known CRS, its own or `crs`.

    Raises FileNotFoundError, or ValueError naming the file, what is wrong and the remedy.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give the path of a vector file.")
    try:
        if path.suffix.lower() in (".parquet", ".geoparquet", ".pq"):
            frame = gpd.read_parquet(path)
        else:
            layers = pyogrio.list_layers(path)
            named = [name for name, kind in layers if kind and name != "layer_styles"]
            if (layer not in named) if layer else len(named) > 1:
                said = f"has no layer {layer!r}" if layer else "has several layers"
                raise ValueError(
                    f"{path} {said}: set layer to one of {', '.join(named)}, or write that one to a file of its own."
                )
            frame = gpd.read_file(path, layer=layer or (named or [layers[0][0]])[0])
    except (ValueError, RuntimeError, OSError) as error:
        if str(error).startswith(f"{path} has "):
            raise
        raise ValueError(f"{path} is no vector file geopandas reads, convert it to GeoPackage: {error}.") from error
    if not isinstance(frame, gpd.GeoDataFrame):
        raise ValueError(f"{path} is a table without geometry: give a vector file with polygons.")
    if frame.empty:
        raise ValueError(f"{path} holds no features: check the export that wrote it.")
    try:
        frame = frame.set_crs(crs, allow_override=True) if crs else frame
    except CRSError:
        raise ValueError(f"The CRS {crs!r} for {path} is not known: give a code such as EPSG:4326.") from None
    usable = frame.crs is not None and "undefined" not in frame.crs.name.lower()
    if not usable or not (frame.crs.is_geographic or frame.crs.is_projected):
        raise ValueError(f"{path} has no CRS: write it into the file, or name it with the key crs; it is not guessed.")
    west, south, east, north = frame.total_bounds
    if frame.crs.is_geographic and (max(-west, east) > 361 or max(-south, north) > 91):
        turned = max(-south, north) <= 361 and max(-west, east) <= 90
        why = "latitude comes first in it" if turned else "they are not degrees"
        bounds = np.round(frame.total_bounds, 2).tolist()
        raise ValueError(
            f"{path} says {frame.crs.to_string()}, in degrees, and its coordinates span {bounds}: {why}. "
            "Write it with the right CRS, x or longitude first."
        )
    return frame.reset_index(drop=frame.index.name in (None, *frame.columns))


def outlines(address: str | Path, grid: GeoBox) -> np.ndarray:
    """Fields of a GeoParquet file in degrees on a grid: (y, x) int32, a number a field, 0 where there is none.

    Of a file behind https only what the grid's bounding box needs is read. Where the file has fields of several years
    (column ``determination:datetime`` of Fields of The World), those of the last are taken.

    Raises ValueError naming the file and the remedy, DataUnavailable where `$CROPNB_OFFLINE` forbids the network.
    """
    if "://" in str(address) and data.is_offline():
        raise data.DataUnavailable(f"CROPNB_OFFLINE forbids the network, and {address} needs it; give a local file.")
    degrees = rasterio.warp.transform_bounds(str(grid.crs), "EPSG:4326", *grid.boundingbox.bbox)
    try:
        with fsspec.open(str(address)) as file:
            frame = gpd.read_parquet(file, bbox=degrees)
    except Exception as error:  # of the reader, the file system or the network
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{address} gives no outlines by bounding box ({why}); give GeoParquet with one.") from None
    if frame.empty:
        raise ValueError(f"{address} has no outline in the region; give the file of its country.")
    if frame.crs is None or not frame.crs.is_geographic:
        raise ValueError(f"{address} is not in degrees; write it in EPSG:4326.")
    if other := set(frame.geom_type) - {"Polygon", "MultiPolygon"}:
        raise ValueError(f"{address} holds {other.pop()}, which outlines nothing; leave out all but polygons.")
    if "determination:datetime" in frame:
        year = pd.to_datetime(frame["determination:datetime"]).dt.year
        frame = frame[year == year.max()]
    shapes = zip(frame.geometry.to_crs(grid.crs), range(1, len(frame) + 1), strict=True)
    return rasterio.features.rasterize(shapes, grid.shape, transform=grid.affine, dtype="int32")


def text(value: Any) -> str:
    """A crop or code as text that compares: "" for none, whole numbers without a point, accents composed (NFC)."""
    if value is None or (pd.api.types.is_scalar(value) and pd.isna(value)):
        return ""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    return re.sub(r"^(\d+)\.0+$", r"\1", unicodedata.normalize("NFC", str(value)).strip())


def require_polygons(geometry: gpd.GeoSeries, path: Path) -> None:
    """Raise ValueError where nothing has a surface, naming what the file holds instead."""
    shapes = geometry[~(geometry.isna() | geometry.is_empty)]
    if not (shapely.get_dimensions(shapes.to_numpy()) == 2).any():
        kinds = shapes.geom_type.value_counts()
        found = ", ".join(f"{n} of type {kind}" for kind, n in kinds.items()) or "none with a geometry"
        raise ValueError(f"{path} holds {found} and no polygon: draw an outline around each parcel.")
