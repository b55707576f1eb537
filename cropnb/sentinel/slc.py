"""Sentinel-1 IW single-look complex SAFE products to the covariance of VV and VH on a map grid, without SNAP.

Both polarisations are calibrated as complex values, the covariance is formed pixel by pixel in each burst, where
the phase ramp of TOPS imaging cancels in VV conj(VH), and only then averaged (4 range looks), stitched in the
middle of the bursts' overlap, so that no line is missing at a seam, and resampled onto the map through the
zero-Doppler look-up of sarsen. The map is worked through in tiles, each of which reads its own lines and samples.

What the geometry leaves out: orbits are the annotation's; atmospheric delay, solid-earth tides and the residual
bistatic shift, some metres together, are not corrected; there is no terrain flattening. IW resolves about 20 m in
azimuth, so that 10 m pixels oversample.

What could not be verified: no real product with VV and VH pixels was at hand. Calibration, seams and geolocation
are tested against true annotation, speckle against true VV pixels, and the whole chain against a product with
true annotation whose pixels were made from a known field.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import dask
import numpy as np
import pandas as pd
import rasterio
import shapely
import xarray as xr
import xarray_sentinel
from odc.geo.geobox import GeoBox
from odc.geo.xr import wrap_xr, xr_coords
from rasterio.warp import transform_bounds
from rasterio.windows import Window
from sarsen import apps, orbit, scene
from scipy.ndimage import map_coordinates

from cropnb import polarimetry, rasters
from cropnb.sentinel.files import check_xml, read_xml

LOOKS = 4  # in range; 9.3 m of slant range, 13 to 19 m on the ground
HEIGHTS = -500, 9000  # metres that land can have
TILE = 1024  # side of a tile of the map, pixels
_POLARISATIONS = ("vv", "vh")
_TIMING = ("azimuth_time_interval", "image_slant_range_time", "range_sampling_rate")
_DUAL = "m-chi needs VV and VH, so choose a dual-polarisation product (1SDV in its name) and fetch all of it"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Burst:
    """A burst in its file, from line `first`, and in the swath's own lines, from `offset`; used in [start, stop)."""

    first: int
    offset: int
    start: int
    stop: int


@dataclass(frozen=True)
class Swath:
    """One sub-swath. Its lines are counted through all bursts, one `interval` apart, from the first line at `time`."""

    name: str
    numbers: dict[str, xr.DataArray]  # polarisation: digital numbers (line, pixel), complex, lazy, as in the file
    gains: dict[str, xr.DataArray]  # polarisation: sigma0 look-up table (line, pixel), sigma0 = |number / gain|^2
    valid: tuple[np.ndarray, np.ndarray]  # first and last valid sample of each line of the file
    bursts: list[Burst]
    time: np.datetime64
    interval: float  # seconds
    near: float  # two-way slant range time of the first sample, seconds
    rate: float  # samples a second
    orbit: orbit.OrbitPolyfitInterpolator

    def position(self, time: np.ndarray, delay: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fractional line and sample of azimuth times (datetime64) and slant range times (seconds)."""
        seconds = (time - self.time) / np.timedelta64(10**9, "ns")
        return seconds / self.interval, (delay - self.near) * self.rate

    @property
    def shape(self) -> tuple[int, int]:
        """Lines, counted through all bursts, and samples."""
        return self.bursts[-1].stop, self.valid[1].max() + 1


def covariance(safe: str | Path, dem: str | Path, grid: GeoBox, *, undulation: float = 0.0) -> xr.Dataset:
    """The covariance of one acquisition on a map grid: `c11`, `c22`, `c12_real`, `c12_imag` (y, x), linear sigma0.

    Lazy, float32, NaN where there is no data; sub-swaths are merged, the nearer one first. Compute the four together.
    Thermal noise is left in, as in SNAP's polarimetric chain.

    Parameters
    ----------
    safe
        Folder of a dual-polarisation (VV, VH) IW SLC product, of one or more sub-swaths.
    dem
        Elevation raster that covers the grid, in any CRS and any format of GDAL's (a .vrt joins tiles), heights in
        metres; cells without a height give NaN.
    grid
        Pixels of the result, in a projected CRS.
    undulation
        Height of the geoid above the WGS 84 ellipsoid in metres, added to the DEM's heights. Radar geometry needs
        ellipsoidal heights, and most DEMs (Copernicus, SRTM) give heights above the geoid. Left at 0 for such a DEM,
        the image is shifted in range by about undulation / tan(incidence): 43 m in Flanders make 40 to 75 m.

    Raises
    ------
    FileNotFoundError
        For a missing product, one of its files, or DEM.
    ValueError
        For another mode or product, a missing polarisation, a file cut short, XML that declares entities, a DEM that
        does not cover the grid, a product that misses it.
    """
    _check_cover(dem, grid)
    record, swaths = open_product(safe)
    seen, wanted = describe(Path(safe))["corners"], transform_bounds(str(grid.crs), "EPSG:4326", *grid.boundingbox)
    if not shapely.Polygon(seen).intersects(shapely.box(*wanted)):
        raise ValueError(
            f"{Path(safe).name}, seen around {seen} (longitude, latitude), misses the grid {wanted} "
            "(west, south, east, north): choose an acquisition over it."
        )
    planes = rasters.blocks(partial(_tile, swaths, dem, grid, undulation), (4, *grid.shape), TILE)
    attrs = {
        "time": record["start_time"],
        "orbit_track": str(record["relative_orbit_number"]),
        "product": Path(safe).name,
        "undulation": undulation,
        "sub_swaths": " ".join(swath.name for swath in swaths),
    }
    named = {name: (("y", "x"), plane, {"units": "1"}) for name, plane in zip(polarimetry.C2, planes, strict=True)}
    return xr.Dataset(named, coords=xr_coords(grid), attrs=attrs)


def write(
    safes: str | Path | Sequence[Path], dem: str | Path, grid: GeoBox, folder: str | Path, *, undulation: float = 0.0
) -> Path:
    """Write the `covariance` of one pass to ``folder/sar/S1_<time>_C2.tif``; its path.

    `safes` are its products: a further slice fills what is empty. A row of tiles at a time, whole or not at all.
    Raises what `covariance` does, and ValueError for an acquisition without one valid pixel on the grid.
    """
    safes, seen = [Path(safes)] if isinstance(safes, str | Path) else list(safes), False
    slices = [covariance(safe, dem, grid, undulation=undulation) for safe in safes]
    tags = slices[0].attrs | {"product": " ".join(c2.attrs["product"] for c2 in slices)}
    path = rasters.radar_path(folder, pd.Timestamp(tags.pop("time")), "C2")
    with rasters.new(path, grid, list(polarimetry.C2), "float32", np.nan, **tags) as file:
        for row in range(0, grid.height, TILE):
            parts = (c2.isel(y=slice(row, row + TILE)).compute().to_dataarray().values for c2 in slices)
            values = reduce(lambda held, more: np.where(np.isnan(held), more, held), parts)
            seen = seen or bool(np.isfinite(values).any())
            file.write(values, window=Window(0, row, *values.shape[:0:-1]))
        if not seen:
            raise ValueError(f"{safes[0]} has no valid pixel on the grid: choose an acquisition over it.")
    log.info("covariance of %s in %s", safes[0].name, path)
    return path


def describe(safe: Path) -> dict:
    """Time, track, version and corners (longitude, latitude) of a product, by its manifest."""
    root, name = _manifest(safe), safe.name.split("_")
    corners = [tuple(map(float, pair.split(",")))[::-1] for pair in root.findtext(".//{*}coordinates", "").split()]
    about = {
        "time": pd.Timestamp(root.findtext(".//{*}startTime", "")),
        "track": root.findtext(".//{*}relativeOrbitNumber", ""),
        "version": max((step.get("stop", "") for step in root.iterfind(".//{*}processing")), default=""),
        "corners": corners,
    }
    if name[1:3] != ["IW", "SLC"]:
        about["why"] = "of another kind than IW SLC"
    elif not any(part.endswith("DV") for part in name):
        about["why"] = "without both VV and VH"
    return about


def open_product(safe: str | Path) -> tuple[dict, list[Swath]]:
    """Attributes and sub-swaths of an IW SLC SAFE, pixels lazily. Raises what `covariance` does of the product."""
    safe = Path(safe)
    _manifest(safe)
    for path in sorted(safe.rglob("*.xml")):
        check_xml(path)
    attrs = xarray_sentinel.open_sentinel1_dataset(str(safe)).attrs
    if (kind := f"{attrs['mode']} {attrs['product_type']}") != "IW SLC":
        raise ValueError(f"{safe} is a product of kind {kind}: choose one of kind IW SLC.")
    swaths = []
    for name in ("iw1", "iw2", "iw3"):
        held = [any((safe / "measurement").glob(f"s1?-{name}-slc-{pol}-*")) for pol in _POLARISATIONS]
        if any(held) and not all(held):
            raise ValueError(f"{safe} lacks {'VV' if held[1] else 'VH'} of {name.upper()}: {_DUAL}.")
        if all(held):
            swaths.append(_open_swath(safe, name))
    if not swaths:
        raise ValueError(f"{safe} has no VV and VH measurement of any IW sub-swath: {_DUAL}.")
    return attrs, swaths


def stitch(times: np.ndarray, lines: int, interval: float, valid: np.ndarray) -> list[Burst]:
    """Where each burst lies and where it is used: up to the middle of its overlap with the next.

    times: azimuth time of each burst's first line (datetime64); lines: of a burst; interval: of lines, seconds;
    valid: whether a line of the file is (line,). Bursts of a swath share one raster of lines, up to the microsecond
    to which their times are rounded.
    """
    offsets = np.rint((times - times[0]) / np.timedelta64(10**9, "ns") / interval).astype(int)
    bursts = []
    for index, part in enumerate(valid.reshape(len(times), lines)):
        inside = np.flatnonzero(part)
        if inside.size:
            bursts.append([index * lines, offsets[index], *(offsets[index] + inside[[0, -1]] + [0, 1])])
    for burst, following in pairwise(bursts):
        # Where bursts do not overlap (one was left out of the product) the gap stays without data.
        middle = (burst[3] + following[2]) // 2
        burst[3], following[2] = min(burst[3], middle), max(following[2], middle)
    return [Burst(*(int(number) for number in burst)) for burst in bursts]


def multilooked(swath: Swath, lines: slice, samples: slice) -> np.ndarray:
    """The covariance of some lines (counted through all bursts) and samples, averaged over 4 samples.

    Returns (element, line, sample // 4), float32; NaN where any of the 4 samples is invalid in VV or VH.
    """
    planes = np.full((4, lines.stop - lines.start, (samples.stop - samples.start) // LOOKS), np.nan, "float32")
    for burst in swath.bursts:
        start, stop = max(lines.start, burst.start), min(lines.stop, burst.stop)
        if start < stop:
            shift = burst.first - burst.offset
            part = polarimetry.multilook(_single_look(swath, slice(start + shift, stop + shift), samples), 1, LOOKS)
            planes[:, start - lines.start : stop - lines.start] = part.to_dataarray().values
    return planes


def look_up(interpolator: orbit.OrbitPolyfitInterpolator, ground: xr.DataArray) -> tuple[np.ndarray, np.ndarray]:
    """Azimuth time (datetime64) and two-way slant range time (seconds) at which the radar sees points.

    ground: earth-fixed coordinates (axis, y, x), metres. Points left of the track, where the antenna never looks,
    have slant range time NaN.
    """
    found = apps.simulate_acquisition(ground, interpolator, zero_doppler_distance=0.01)
    sight, velocity = (
        found[name].transpose("axis", "y", "x").values for name in ("dem_distance", "satellite_velocity")
    )
    satellite = ground.transpose("axis", "y", "x").values - sight
    right = (np.cross(velocity, satellite, axis=0) * sight).sum(axis=0) > 0
    return found.azimuth_time.values, np.where(right, found.slant_range_time.values, np.nan)


def _manifest(safe: Path) -> ElementTree.Element:
    path = safe / "manifest.safe"
    if not path.is_file():
        raise FileNotFoundError(f"{safe} has no manifest.safe: give the folder of an unpacked Sentinel-1 product.")
    return read_xml(path)


def _file(folder: Path, pattern: str) -> Path:
    if not (found := sorted(folder.glob(pattern))):
        raise FileNotFoundError(f"{folder} has no {pattern}: fetch the product again.")
    return found[0]


def _open_swath(safe: Path, name: str) -> Swath:
    read = partial(xarray_sentinel.open_sentinel1_dataset, str(safe), check_files_exist=True)
    numbers, gains, limits, times = {}, {}, [], []
    for polarisation in _POLARISATIONS:
        group, pattern = f"{name}/{polarisation}".upper(), f"s1?-{name}-slc-{polarisation}-*"
        path, annotation = _file(safe / "measurement", pattern), _file(safe / "annotation", pattern)
        _file(safe / "annotation/calibration", f"calibration-{pattern}")
        try:
            with dask.config.set({"array.chunk-size": "16MiB", "scheduler": "synchronous"}):
                chunks: Any = {"y": "auto", "x": -1}  # which xarray-sentinel has as numbers alone
                whole = read(group=group, parse_geospatial_attrs=False, rasterio_chunks=chunks)
                number = numbers[polarisation] = whole.measurement
                number.isel(line=[0, -1]).compute()  # the last line is lost first
        except rasterio.errors.RasterioError as error:
            raise ValueError(f"{path} cannot be read whole ({error}): fetch the product again.") from error
        gains[polarisation] = read(group=f"{group}/calibration").sigmaNought
        listed = read_xml(annotation).findall("swathTiming/burstList/burst")
        lines = [[burst.findtext(f"{side}ValidSample", "").split() for burst in listed] for side in ("first", "last")]
        first, last = np.array(lines, int).reshape(2, -1)
        limits.append((np.where(first < 0, number.sizes["pixel"], first), last))
        times.append(np.array([burst.findtext("azimuthTime") for burst in listed], "datetime64[ns]"))
    vv, vh = numbers.values()
    if vv.shape != vh.shape or not np.array_equal(times[0], times[1]):
        raise ValueError(f"{safe}: VV and VH of {name.upper()} differ in lines or samples: fetch the product again.")
    (first, other_first), (last, other_last) = zip(*limits, strict=True)
    valid = np.maximum(first, other_first), np.minimum(last, other_last)
    interval, near, rate = (vv.attrs[key] for key in _TIMING)
    bursts = stitch(times[0], vv.attrs["lines_per_burst"], interval, valid[0] <= valid[1])
    track = orbit.OrbitPolyfitInterpolator.from_position(read(group=f"{name.upper()}/VV/orbit").position)
    return Swath(name.upper(), numbers, gains, valid, bursts, times[0][0], interval, near, rate, track)


def _single_look(swath: Swath, lines: slice, samples: slice) -> xr.Dataset:
    """The covariance (y, x) of lines of the file and samples, before any average; NaN where invalid."""
    sigma = []
    for name, number in swath.numbers.items():
        part = number.isel(line=lines, pixel=samples).compute(scheduler="synchronous")  # dask is at work on tiles
        sigma.append(xarray_sentinel.calibrate_amplitude(part, swath.gains[name]).rename(line="y", pixel="x"))
    c2 = polarimetry.covariance(*sigma)
    first, last = (xr.DataArray(limit[lines], dims="y") for limit in swath.valid)
    return c2.where((c2.x >= first) & (c2.x <= last))


def _check_cover(dem: str | Path, grid: GeoBox) -> None:
    if not Path(dem).is_file():
        raise FileNotFoundError(f"{dem} is missing: give an elevation raster that covers the grid.")
    with rasterio.open(dem) as file:
        wanted, held = transform_bounds(str(grid.crs), file.crs, *grid.boundingbox), GeoBox.from_rio(file).boundingbox
        unit = (file.units[0] or "m").lower()
    if not shapely.box(*held.bbox).covers(shapely.box(*wanted)):
        raise ValueError(
            f"{dem} covers {held.bbox} but the grid needs {wanted} (west, south, east, north): "
            f"give a larger elevation raster."
        )
    if unit not in ("m", "metre", "metres", "meter", "meters"):
        raise ValueError(f"{dem} gives heights in {unit}: bring them to metres.")


def _ground(dem: str | Path, grid: GeoBox, undulation: float) -> xr.DataArray:
    """Earth-fixed coordinates (axis, y, x) in metres of the grid's pixels, NaN where the DEM has no height."""
    heights = next(iter(rasters.onto(dem, grid, limits=HEIGHTS).values()))  # outside them lie voids without a tag
    raster = wrap_xr(heights, grid) + undulation
    ground = scene.convert_to_dem_ecef(raster.fillna(0), source_crs=str(grid.crs))  # of no height it warns
    return ground.where(np.isfinite(raster))


def _tile(
    swaths: list[Swath], dem: str | Path, grid: GeoBox, undulation: float, rows: slice, columns: slice
) -> np.ndarray:
    """The covariance (element, y, x) of a tile of the grid."""
    tile = grid[rows, columns]
    time, delay = look_up(swaths[0].orbit, _ground(dem, tile, undulation))
    planes = np.full((4, *tile.shape), np.nan, "float32")
    for swath in swaths:
        line, sample = swath.position(time, delay)
        end, width = swath.shape
        todo = np.isnan(planes[0]) & (line > -1) & (line < end) & (sample > -1) & (sample < width)
        if not todo.any():
            continue
        line, look = line[todo], (sample[todo] - (LOOKS - 1) / 2) / LOOKS
        lines = slice(max(int(line.min()), 0), min(int(line.max()) + 2, end))
        looks = slice(int(np.clip(look.min(), 0, width // LOOKS - 1)), min(int(look.max()) + 2, width // LOOKS))
        averaged = multilooked(swath, lines, slice(LOOKS * looks.start, LOOKS * looks.stop))
        place = [line - lines.start, look - looks.start]
        for plane, values in zip(planes, averaged, strict=True):
            plane[todo] = map_coordinates(values, place, order=1, cval=np.nan)
    return planes
