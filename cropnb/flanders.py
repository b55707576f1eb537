"""Two real places in Flanders as a region: a season of Sentinel-1 and Sentinel-2 over declared parcels.

Each place of the dataset `flanders_patches` is 640 m wide. The radar is detected, in decibel at 20 m, so it has
backscatter and no phase: of the scenarios, those with m-chi cannot be made from it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.features import shapes
from shapely.geometry import shape

from cropnb import rasters

RADAR, OPTICAL = 23, 3  # acquisitions of a season, as in the paper
MONTHS = (5, 9)  # first and last of the season
Files = Mapping[str, Path]  # what `cropnb.data.fetch("flanders_patches")` returns
CLEAR = (4, 5)  # vegetation and bare soil


def write_acquisitions(files: Files, location: str, folder: str | Path) -> GeoBox:
    """Write the season of a place as acquisitions that `cropnb.cube` reads, and return its 10 m grid.

    Of the two ascending tracks the one seen more often is kept, since the angle of view changes backscatter;
    23 of its dates are spread over the season. Of the optical dates the clearest of each third is kept.
    20 m backscatter fills its four 10 m pixels.

    Raises FileNotFoundError for a missing product, ValueError when a season has too few dates.
    """
    radar = _season(_open(files, location, "S1_GRD"))
    # A track comes back every six days; Sentinel-1A and -1B pass within a minute of each other.
    days = (radar["time"] - radar["time"][0]) / np.timedelta64(1, "D")
    track = days.round().astype(int).to_numpy() % 6
    radar = radar.isel(time=track == np.bincount(track).argmax())
    # Undecoded: the file calls class 0 missing, and xarray has no missing whole number to put there.
    classes = _season(_open(files, location, "S2_L2A_20m", mask_and_scale=False))["SCL"]
    for data, sensor, wanted in ((radar, "Sentinel-1", RADAR), (classes, "Sentinel-2", OPTICAL)):
        if (n := data.sizes["time"]) < wanted:
            raise ValueError(f"{location} has {n} {sensor} dates in its season, and {wanted} are needed.")
    radar = radar.isel(time=np.linspace(0, radar.sizes["time"] - 1, RADAR).round().astype(int))
    bands = _season(_open(files, location, "S2_L2A_10m"))
    coarse = _season(_open(files, location, "S2_L2A_20m", drop_variables="SCL"))
    ground = classes.isin(CLEAR).mean(("y", "x")).to_numpy()
    chosen = [part[ground[part].argmax()] for part in np.array_split(np.arange(len(ground)), OPTICAL)]

    left, top, crs = float(bands.x[0]) - 5, float(bands.y[0]) + 5, f"EPSG:{int(bands.attrs['epsg'])}"
    grid = GeoBox((bands.sizes["y"], bands.sizes["x"]), Affine(10, 0, left, 0, -10, top), crs)
    for time in pd.to_datetime(radar.time.values):
        date = radar.sel(time=time)
        planes = {"vv_db": date["VV"], "vh_db": date["VH"], "cross_ratio_db": date["VH"] - date["VV"]}
        fine = {n: plane.values.repeat(2, axis=0).repeat(2, axis=1).astype("float32") for n, plane in planes.items()}
        rasters.write(rasters.radar_path(folder, time, "FEATURES"), fine, grid, "float32", np.nan)
    for time in pd.to_datetime(classes.time.values[chosen]):
        reflectance = {"red": bands["B04"], "narrow_nir": coarse["B8A"], "swir1": coarse["B11"]}
        seen = {name: band.sel(time=time) for name, band in reflectance.items()}
        planes = {name: plane.where(plane > 0) for name, plane in seen.items()} | {"scl": classes.sel(time=time)}
        rasters.write_optical(folder, time, planes, grid)
    return grid


def declarations(files: Files, location: str, names: Mapping[int, str]) -> gpd.GeoDataFrame:
    """The declared crops of a place: a row a connected piece of one crop (parcel_id, crop, geometry).

    `names` maps the codes of the declarations to crops. The source is a raster: neighbours with the same crop are
    one piece. Land without a declared crop is left out.
    Raises ValueError for a code without a name.
    """
    codes = _open(files, location, "OUTPUT", mask_and_scale=False)["CT"]
    unknown = set(np.unique(codes).astype(int).tolist()) - {0} - set(names)
    if unknown:
        raise ValueError(
            f"The declarations of {location} hold codes {sorted(unknown)} without a name: add them to `names`."
        )
    transform = Affine(10, 0, float(codes["x"][0]) - 5, 0, -10, float(codes["y"][0]) + 5)
    found = shapes(codes.to_numpy(), mask=codes.to_numpy() > 0, transform=transform)
    pieces = pd.DataFrame([(names[int(code)], shape(outline)) for outline, code in found], columns=["crop", "geometry"])
    pieces.insert(0, "parcel_id", np.arange(1, len(pieces) + 1))
    return gpd.GeoDataFrame(pieces, crs=int(codes.attrs["epsg"]))


def _open(files: Files, location: str, product: str, **options: Any) -> xr.Dataset:
    for name, path in files.items():
        if name.startswith(f"{location}/{product}"):
            opened = xr.open_dataset(path, engine="h5netcdf", **options)
            return opened.rename({"timestamp": "time"}) if "timestamp" in opened.dims else opened
    raise FileNotFoundError(f"No {product} file of {location} is among {len(files)} files: fetch flanders_patches.")


def _season(data: xr.Dataset) -> xr.Dataset:
    # The files run from August to the November after: the harvest is in the year they end.
    time = data["time"].dt
    months = (time.month >= MONTHS[0]) & (time.month <= MONTHS[1])
    return data.isel(time=(months & (time.year == time.year.max())).to_numpy())
