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
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pandas as pd
import rasterio
import xarray as xr
import xarray_sentinel
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from rasterio.windows import Window
from sarsen import apps, orbit, scene
from scipy.ndimage import map_coordinates

from cropnb import polarimetry
from cropnb.sentinel.files import check_xml, new_geotiff, other_products, read_xml

LOOKS = 4  # in range; 9.3 m of slant range, 13 to 19 m on the ground
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
    noises: dict[str, tuple[xr.DataArray, xr.DataArray]]  # polarisation: range (line, pixel) and azimuth (line) table
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


def covariance(
    safe: str | Path, dem: str | Path, grid: GeoBox, *, noise: bool = False, undulation: float = 0.0
) -> xr.Dataset:
    """The covariance of one acquisition on a map grid: `c11`, `c22`, `c12_real`, `c12_imag` (y, x), linear sigma0.

    Lazy, float32, NaN where there is no data; sub-swaths are merged, the nearer one first. Compute the four together.

    Parameters
    ----------
    safe
        Folder of a dual-polarisation (VV, VH) IW SLC product, of one or more sub-swaths.
    dem
        Elevation raster that covers the grid, in any CRS and any format of GDAL's (a .vrt joins tiles), heights in
        metres; cells without a height give NaN.
    grid
        Pixels of the result, in a projected CRS.
    noise
        Subtract the annotated thermal noise from `c11` and `c22`, which stay at least 0. Off by default, as in
        SNAP's polarimetric chain; VH of smooth fields comes close to the noise.
    undulation
        Height of the geoid above the WGS 84 ellipsoid in metres, added to the DEM's heights. Radar geometry needs
        ellipsoidal heights, and most DEMs (Copernicus, SRTM) give heights above the geoid. Left at 0 for such a DEM,
        the image is shifted in range by about undulation / tan(incidence): 43 m in Flanders make 40 to 75 m.

    Raises
    ------
    FileNotFoundError
        For a missing product, one of its files, or DEM.
    ValueError
        For another mode or product, a missing polarisation, a file cut short, XML that declares entities, noise
        tables of the format before March 2018, a DEM that does not cover the grid, a product that misses it.
    """
    _check_cover(dem, grid)
    record, swaths = open_product(safe, noise)
    swaths = _touching(swaths, dem, grid, undulation)
    if not swaths:
        wanted = [round(v, 3) for v in transform_bounds(str(grid.crs), "EPSG:4326", *grid.boundingbox)]
        raise ValueError(
            f"{Path(safe).name}, seen around {record['footprint']} (latitude,longitude), misses the grid {wanted} "
            f"(west, south, east, north): choose an acquisition over it."
        )
    sides = [tuple(min(TILE, n - start) for start in range(0, n, TILE)) for n in grid.shape]
    read = partial(_tile, swaths, dem, grid, undulation)

    def block(block_info=None):
        _, rows, columns = block_info[None]["array-location"]
        return read(slice(*rows), slice(*columns))

    planes = da.map_blocks(block, chunks=((4,), *sides), dtype="float32", meta=np.empty((0, 0, 0), "float32"))
    attrs = {
        "time": record["start_time"],
        "orbit_track": str(record["relative_orbit_number"]),
        "product": Path(safe).name,
        "noise_subtracted": int(noise),
        "undulation": undulation,
        "sub_swaths": " ".join(swath.name for swath in swaths),
    }
    named = {name: (("y", "x"), plane, {"units": "1"}) for name, plane in zip(polarimetry.C2, planes, strict=True)}
    return xr.Dataset(named, coords=xr_coords(grid), attrs=attrs)


def write(safe: str | Path, dem: str | Path, grid: GeoBox, folder: str | Path, **options) -> Path:
    """Write `covariance`, whose options these are, to ``folder/sar/S1_<time>_C2.tif``; returns its path.

    A row of tiles at a time, to a temporary name renamed when whole. A further slice of the same day and track fills
    what is empty in the file of the first; a product written before replaces its file. Raises what `covariance`
    does, and ValueError for an acquisition without one valid pixel on the grid, or slices of different options.
    """
    c2 = covariance(safe, dem, grid, **options)
    tags, folder, seen = dict(c2.attrs), Path(folder) / "sar", False
    time = pd.Timestamp(tags.pop("time"))
    path = folder / f"S1_{time:%Y%m%dT%H%M}_C2.tif"
    for held in sorted(folder.glob(f"S1_{time:%Y%m%d}T*_C2.tif")):
        with rasterio.open(held) as file:
            path = held if file.tags().get("orbit_track") == tags["orbit_track"] else path
    same = {key: tags[key] for key in ("noise_subtracted", "undulation")}
    earlier = other_products(path, grid, tags["product"], **same)
    tags["product"] = f"{earlier} {tags['product']}".strip()
    before = rasterio.open(path) if earlier else nullcontext()
    with before as first, new_geotiff(path, grid, 4, "float32", np.nan, **tags) as file:
        file.descriptions = polarimetry.C2
        for row in range(0, grid.height, TILE):
            values = c2.isel(y=slice(row, row + TILE)).compute().to_dataarray().values
            seen = seen or np.isfinite(values).any()
            window = Window(0, row, *values.shape[:0:-1])
            if first:
                held = first.read(window=window)
                values = np.where(np.isnan(held), values, held)
            file.write(values, window=window)
        if not seen:
            raise ValueError(f"{safe} has no valid pixel on the grid: choose an acquisition over it.")
    log.info("covariance of %s in %s", Path(safe).name, path)
    return path


def open_product(safe: str | Path, noise: bool = False) -> tuple[dict, list[Swath]]:
    """Attributes and sub-swaths of an IW SLC SAFE, pixels lazily; `noise` reads the noise tables too.

    Raises what `covariance` does of the product.
    """
    safe = Path(safe)
    attrs = _attributes(safe)
    swaths = []
    for name in ("iw1", "iw2", "iw3"):
        held = [any((safe / "measurement").glob(f"s1?-{name}-slc-{pol}-*")) for pol in _POLARISATIONS]
        if any(held) and not all(held):
            raise ValueError(f"{safe} lacks {'VV' if held[1] else 'VH'} of {name.upper()}: {_DUAL}.")
        if all(held):
            swaths.append(_open_swath(safe, name, noise))
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

    Returns (element, line, sample // 4), float32; NaN where any of the 4 samples is invalid in VV or VH. Noise is
    subtracted, where the swath has its tables, and may leave negative power.
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


def _attributes(safe: Path) -> dict:
    """Attributes of the product, after its XML and its kind have been checked."""
    manifest = safe / "manifest.safe"
    if not manifest.is_file():
        raise FileNotFoundError(f"{safe} has no manifest.safe: give the folder of an unpacked Sentinel-1 product.")
    for path in sorted(safe.rglob("*.xml")):
        check_xml(path)
    corners = read_xml(manifest).findtext(".//{http://www.opengis.net/gml}coordinates", "an unknown place")
    attrs = xarray_sentinel.open_sentinel1_dataset(str(safe)).attrs
    if (kind := f"{attrs['mode']} {attrs['product_type']}") != "IW SLC":
        raise ValueError(f"{safe} is a product of kind {kind}: choose one of kind IW SLC.")
    return attrs | {"footprint": corners}


def _file(folder: Path, pattern: str) -> Path:
    if not (found := sorted(folder.glob(pattern))):
        raise FileNotFoundError(f"{folder} has no {pattern}: fetch the product again.")
    return found[0]


def _open_swath(safe: Path, name: str, noise: bool) -> Swath:
    read = partial(xarray_sentinel.open_sentinel1_dataset, str(safe), check_files_exist=True)
    whole = {"parse_geospatial_attrs": False, "rasterio_chunks": {"y": "auto", "x": -1}}
    numbers, gains, noises, limits, times = {}, {}, {}, [], []
    for polarisation in _POLARISATIONS:
        group, pattern = f"{name}/{polarisation}".upper(), f"s1?-{name}-slc-{polarisation}-*"
        path, annotation = _file(safe / "measurement", pattern), _file(safe / "annotation", pattern)
        _file(safe / "annotation/calibration", f"calibration-{pattern}")
        try:
            with dask.config.set({"array.chunk-size": "16MiB", "scheduler": "synchronous"}):
                number = numbers[polarisation] = read(group=group, **whole).measurement
                number.isel(line=[0, -1]).compute()  # the last line is lost first
        except rasterio.errors.RasterioError as error:
            raise ValueError(f"{path} cannot be read whole ({error}): fetch the product again.") from error
        gains[polarisation] = read(group=f"{group}/calibration").sigmaNought
        if noise:
            noises[polarisation] = _noise_tables(read, group, path)
        bursts = read_xml(annotation).findall("swathTiming/burstList/burst")
        lines = [[burst.findtext(f"{side}ValidSample").split() for burst in bursts] for side in ("first", "last")]
        first, last = np.array(lines, int).reshape(2, -1)
        limits.append((np.where(first < 0, number.sizes["pixel"], first), last))
        times.append(np.array([burst.findtext("azimuthTime") for burst in bursts], "datetime64[ns]"))
    vv, vh = numbers.values()
    if vv.shape != vh.shape or not np.array_equal(*times):
        raise ValueError(f"{safe}: VV and VH of {name.upper()} differ in lines or samples: fetch the product again.")
    (first, other_first), (last, other_last) = zip(*limits, strict=True)
    valid = np.maximum(first, other_first), np.minimum(last, other_last)
    interval, near, rate = (vv.attrs[key] for key in _TIMING)
    bursts = stitch(times[0], vv.attrs["lines_per_burst"], interval, valid[0] <= valid[1])
    path = orbit.OrbitPolyfitInterpolator.from_position(read(group=f"{name.upper()}/VV/orbit").position)
    return Swath(name.upper(), numbers, gains, noises, valid, bursts, times[0][0], interval, near, rate, path)


def _noise_tables(read, group: str, path: Path) -> tuple[xr.DataArray, xr.DataArray]:
    try:
        return read(group=f"{group}/noise_range").noiseRangeLut, read(group=f"{group}/noise_azimuth").noiseAzimuthLut
    except (ValueError, IndexError, AttributeError, KeyError) as error:
        raise ValueError(
            f"{path} has no noise tables in range and azimuth, as products processed before March 2018 "
            f"have none: use noise=False."
        ) from error


def _single_look(swath: Swath, lines: slice, samples: slice) -> xr.Dataset:
    """The covariance (y, x) of lines of the file and samples, before any average; NaN where invalid."""
    window = {"line": lines, "pixel": samples}
    # dask's threads are already at work on tiles.
    sigma = {
        name: xarray_sentinel.calibrate_amplitude(
            number.isel(window).compute(scheduler="synchronous"), swath.gains[name]
        )
        for name, number in swath.numbers.items()
    }
    c2 = polarimetry.covariance(*(sigma[name].rename(line="y", pixel="x") for name in _POLARISATIONS))
    for element, name in zip(("c11", "c22"), _POLARISATIONS, strict=True):
        if name in swath.noises:
            c2[element] -= _noise(swath, name, c2.y, c2.x)
    first, last = (xr.DataArray(limit[lines], dims="y") for limit in swath.valid)
    return c2.where((c2.x >= first) & (c2.x <= last))


def _noise(swath: Swath, polarisation: str, line: xr.DataArray, pixel: xr.DataArray) -> xr.DataArray:
    """Thermal noise as sigma0 (y, x) of lines of the file and samples."""
    across, along = swath.noises[polarisation]
    # The tables end before the image does: their last vector holds to its end.
    held = {"line": line.clip(*across.line.values[[0, -1]]), "pixel": pixel.clip(*across.pixel.values[[0, -1]])}
    power = across.interp(held) * along.interp(line=line.clip(*along.line.values[[0, -1]]))
    gain = swath.gains[polarisation].interp(line=line, pixel=pixel)
    return (power / gain**2).drop_vars(["line", "pixel"], errors="ignore").astype("float32")


def _check_cover(dem: str | Path, grid: GeoBox) -> None:
    if not Path(dem).is_file():
        raise FileNotFoundError(f"{dem} is missing: give an elevation raster that covers the grid.")
    with rasterio.open(dem) as file:
        if file.crs is None:
            raise ValueError(f"{dem} has no CRS: give an elevation raster with one.")
        wanted, held = transform_bounds(str(grid.crs), file.crs, *grid.boundingbox), file.bounds
    if not (held.left <= wanted[0] and held.bottom <= wanted[1] and held.right >= wanted[2] and held.top >= wanted[3]):
        raise ValueError(
            f"{dem} covers {tuple(held)} but the grid needs {wanted} (west, south, east, north): "
            f"give a larger elevation raster."
        )


def _ground(dem: str | Path, grid: GeoBox, undulation: float, void: float = np.nan) -> xr.DataArray:
    """Earth-fixed coordinates (axis, y, x) in metres of the grid's pixels, `void` the height where the DEM has none."""
    place = {"crs": str(grid.crs), "transform": grid.affine, "width": grid.width, "height": grid.height}
    options = {"resampling": Resampling.bilinear, "nodata": np.nan, "dtype": "float32"}
    with rasterio.open(dem) as file, WarpedVRT(file, **place, **options) as warped:
        heights = warped.read(1) + undulation
    heights = np.where(np.isnan(heights), void, heights)
    coords = {dim: coord.values for dim, coord in grid.coords.items()}
    return scene.convert_to_dem_ecef(xr.DataArray(heights, coords, ("y", "x")), source_crs=str(grid.crs))


def _touching(swaths: list[Swath], dem: str | Path, grid: GeoBox, undulation: float) -> list[Swath]:
    """The sub-swaths whose lines and samples the grid may touch, from a coarse raster a little larger than it."""
    time, delay = look_up(swaths[0].orbit, _ground(dem, grid.zoom_to((16, 16)).pad(1), undulation, void=0))
    found = []
    for swath in swaths:
        line, sample = (position[np.isfinite(delay)] for position in swath.position(time, delay))
        starts = swath.bursts[0].start, swath.valid[0].min()
        if line.size and all(
            place.min() < end and place.max() > start
            for place, start, end in zip((line, sample), starts, swath.shape, strict=True)
        ):
            found.append(swath)
    return found


def _tile(swaths: list[Swath], dem, grid: GeoBox, undulation: float, rows: slice, columns: slice) -> np.ndarray:
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
        if swath.noises:
            planes[:2] = planes[:2].clip(min=0)
    return planes
