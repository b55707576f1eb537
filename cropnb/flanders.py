"""Two real places in Flanders as a feature cube: a season of Sentinel-1 and Sentinel-2 over declared parcels.

Each place of the dataset `flanders_patches` is 640 m wide. The radar is detected, in decibel at 20 m, so it has
backscatter and no phase: of the scenarios, those with m-chi cannot be made from it.
"""

import shutil
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import rioxarray  # noqa: F401  (the .rio accessor)
import xarray as xr
from affine import Affine
from rasterio.features import shapes
from shapely.geometry import shape

from cropnb import cube

RADAR, OPTICAL = 23, 3  # acquisitions of a season, as in the paper
MONTHS = (5, 9)  # first and last of the season
CLEAR = (4, 5)  # vegetation and bare soil


def locations(files) -> list[str]:
    """The places among the files that `cropnb.data.fetch("flanders_patches")` returns."""
    return sorted({name.split("/")[0] for name in files})


def write_cube(files, location: str, cube_path: str | Path) -> Path:
    """Write the season of a place in the layout of `cropnb.cube.build`, for `cropnb.cube.scenario` to read.

    Of the two ascending tracks the one seen more often is kept, since the angle of view changes backscatter;
    23 of its dates are spread over the season. Of the optical dates the clearest of each third is kept.
    20 m values fill their four 10 m pixels.

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
            raise ValueError(f"{location} has {n} {sensor} dates in its season, {wanted} are needed")
    radar = _fine(radar.isel(time=np.linspace(0, radar.sizes["time"] - 1, RADAR).round().astype(int)))
    sar = xr.Dataset({"vv_db": radar["VV"], "vh_db": radar["VH"], "cross_ratio_db": radar["VH"] - radar["VV"]})

    bands = _season(_open(files, location, "S2_L2A_10m"))
    ground = classes.isin(CLEAR).mean(("y", "x")).to_numpy()
    chosen = [part[ground[part].argmax()] for part in np.array_split(np.arange(len(ground)), OPTICAL)]
    coarse = _fine(_season(_open(files, location, "S2_L2A_20m", drop_variables="SCL")).isel(time=chosen))
    masked = _fine(classes.isel(time=chosen)).isin(cube.MASKED_CLASSES)
    optical = xr.Dataset(
        {"red": bands["B04"].isel(time=chosen), "narrow_nir": coarse["B8A"], "swir1": coarse["B11"]}
    ).where(~masked)
    cloud = {"long_name": "fraction under cloud or shadow", "units": "1"}
    optical = optical.assign_coords(cloud_cover=("time", masked.mean(("y", "x")).to_numpy(), cloud))

    cube_path = Path(cube_path)
    shutil.rmtree(cube_path, ignore_errors=True)
    for name, group in {"sar": sar, "optical": optical}.items():
        group = group.drop_vars("spatial_ref", errors="ignore").astype("float32").chunk()
        for feature in group.data_vars:
            group[feature].attrs = dict(cube.FEATURES[name][feature])
            group[feature].encoding = {}
        group.attrs = {"Conventions": "CF-1.11", "region": f"Flanders {location}", "simulated": 0}
        group = group.rio.write_crs(bands.attrs["epsg"]).rio.write_coordinate_system()
        group.to_zarr(cube_path, group=name, mode="w", consolidated=False)
    return cube_path


def declarations(files, location: str, names) -> gpd.GeoDataFrame:
    """The declared crops of a place: a row a connected piece of one crop (parcel_id, crop, geometry).

    `names` maps the codes of the declarations to crops. The source is a raster: neighbours with the same crop are
    one piece. Land without a declared crop is left out.
    Raises ValueError for a code without a name.
    """
    codes = _open(files, location, "OUTPUT", mask_and_scale=False)["CT"]
    unknown = set(np.unique(codes).astype(int).tolist()) - {0} - set(names)
    if unknown:
        raise ValueError(f"the declarations of {location} hold codes {sorted(unknown)} without a name; add them")
    transform = Affine(10, 0, float(codes["x"][0]) - 5, 0, -10, float(codes["y"][0]) + 5)
    found = shapes(codes.to_numpy(), mask=codes.to_numpy() > 0, transform=transform)
    pieces = pd.DataFrame([(names[int(code)], shape(outline)) for outline, code in found], columns=["crop", "geometry"])
    pieces.insert(0, "parcel_id", np.arange(1, len(pieces) + 1))
    return gpd.GeoDataFrame(pieces, crs=int(codes.attrs["epsg"]))


def _open(files, location, product, **options):
    for name, path in files.items():
        if name.startswith(f"{location}/{product}"):
            opened = xr.open_dataset(path, engine="h5netcdf", **options)
            return opened.rename({"timestamp": "time"}) if "timestamp" in opened.dims else opened
    raise FileNotFoundError(f"no {product} file of {location} among {len(files)} files; fetch flanders_patches")


def _season(data):
    # The files run from August to the November after: the harvest is in the year they end.
    time = data["time"].dt
    months = (time.month >= MONTHS[0]) & (time.month <= MONTHS[1])
    return data.isel(time=(months & (time.year == time.year.max())).to_numpy())


def _fine(data):
    y, x = (np.repeat(data[axis].to_numpy(), 2) for axis in ("y", "x"))
    fine = data.isel(y=np.arange(y.size) // 2, x=np.arange(x.size) // 2)
    half = np.tile([-5.0, 5.0], y.size // 2)  # centres of the 10 m pixels: y falls, x rises
    return fine.assign_coords(y=y - half, x=x + half)
