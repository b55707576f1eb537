"""The Bei'an twin: a simulated region on disk, laid out as the paper says, lit by signals of real fields.

Simulated: parcels, land cover, weather, speckle. Real: each crop's seasonal statistics (`cropnb.profiles`)
and the sizes, shares and numbers of dates that the paper reports (Liu et al. 2023, sections 2 and 3). The files
are a real region's: single-look complex VV and VH, Level-2A-like optical scenes, parcels, a cropland mask.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import xarray as xr
from odc.geo.geobox import GeoBox
from rasterio.features import rasterize
from rasterio.warp import transform
from scipy.ndimage import gaussian_filter
from shapely.geometry import Polygon, box

from cropnb import files, polarimetry, rasters, schema
from cropnb import profiles as crop_profiles

log = logging.getLogger(__name__)

# Shares of the sown area (paper, section 2); what the three named crops leave is "other".
CROP_SHARES = {"maize": 0.295, "soybean": 0.618, "wheat": 0.029, "other": 0.058}
# Two 12-day tracks, interleaved: 12 + 11 = the paper's 23 acquisitions. The paper does not print the days.
TRACKS = {"A": ("2017-05-05T21:42", 12), "B": ("2017-05-10T21:50", 11)}
REPEAT_DAYS = 12
# Cloud cover of each optical scene. Four are too cloudy on purpose, so that the paper's rule (below 8 %) has
# something to choose from: it leaves three.
CLOUD_COVER = {
    "2017-05-18": 0.35,
    "2017-06-10": 0.02,
    "2017-06-30": 0.70,
    "2017-07-20": 0.03,
    "2017-08-12": 0.50,
    "2017-09-06": 0.01,
    "2017-09-21": 0.20,
}
MEAN_PARCEL_HA = 1.39  # paper, Figure 2
# |rho| of VV and VH over real fields (`polsar_fields`, C2_VVVH): the median of 15 x 15 windows is 0.078.
# Uncorrelated channels would show 0.053 with so many looks, and sqrt(0.078^2 - 0.053^2) = 0.057.
CORRELATION = 0.057
CALIBRATION = 5000.0  # sigma0 amplitude = digital number / this
PIXEL, FINE = 10.0, 4  # metres; sub-pixels of 2.5 m along each side, which make the mixed pixels
BANDS = ("vv_db", "vh_db", "red", "narrow_nir", "swir1")
# Not fields, constant in time: VV dB, VH dB, red, narrow NIR, SWIR1. Typical values, not from data.
LAND_COVER = {
    "track": (-12.0, -19.0, 0.11, 0.24, 0.27),
    "forest": (-10.0, -15.5, 0.03, 0.36, 0.17),
    "village": (-6.5, -13.5, 0.14, 0.22, 0.24),
    "water": (-19.0, -26.0, 0.04, 0.03, 0.02),
}
LAND_SHARES = {"water": 0.04, "forest": 0.20, "village": 0.05}
SOWING_SHIFT_DAYS = 4.0  # standard deviation between parcels
# Metres over which an effect that all crops of a place share turns round: of a county, of a neighbourhood.
WAVELENGTHS = {"county": 40_000, "county_crop": 40_000, "local": 4_000}
SMOOTH = (1.2, 1.2, 2, 2, 2)  # of the bands within a field, pixels; pixels side by side correlate as real ones
NOISE_OPTICAL = 0.003


def write(
    folder: str | Path,
    *,
    name: str = "beian_twin",
    centre: Sequence[float] = (126.80, 48.15),
    size: float = 6000,
    crs: str = "EPSG:32652",
    seed: int = 2017,
    block_size: float = 1000,
    tracks: Mapping[str, Sequence] = TRACKS,
    cloud_cover: Mapping[str, float] = CLOUD_COVER,
    crop_shares: Mapping[str, float] = CROP_SHARES,
    sowing_delay: float = 0.0,
    profiles: xr.Dataset | None = None,
    spread: float = 1.0,
    covariance: bool = False,
) -> Path:
    """Write a simulated region; the same arguments give the same bytes.

    It is written beside `folder` and renamed when whole; an earlier twin there is replaced.

    Parameters
    ----------
    centre, size
        Longitude and latitude (degrees) of a square's centre and its side (m), widened to the 20 m grid.
    block_size
        Interval (m) of the grid that later splits the parcels; only recorded here.
    tracks
        Relative orbit -> (first acquisition, number of acquisitions), each `REPEAT_DAYS` apart.
    cloud_cover
        Optical date -> fraction of the scene under cloud; shadows come on top.
    crop_shares
        Crop -> share of the parcels' area, summing to 1.
    sowing_delay
        Days that every parcel's season comes later than the profiles'.
    spread
        Times the standard deviation between pixels of a field that real fields have.
    covariance
        Write the radar's covariance matrix at 10 m, of the same four looks, in place of its single-look images.

    Raises ValueError when `folder` holds anything but a twin, the shares do not sum to one, or a side is under 600 m.
    """
    folder = Path(folder)
    _may_replace(folder)
    if abs(sum(crop_shares.values()) - 1) > 1e-6:
        raise ValueError(f"crop_shares sum to {sum(crop_shares.values()):.3f}; change them to sum to 1.")
    if size < 600:
        raise ValueError(f"A twin of {size:g} x {size:g} m is too small; give 600 m or more.")
    bounds = square(centre, size, crs)
    profiles = crop_profiles.load() if profiles is None else profiles
    # A stream of random numbers for each purpose here and for each date below: a date more changes no other.
    streams = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(4))
    layout_rng, crop_rng, signal_rng, texture_rng = streams

    objects = layout(bounds, layout_rng)
    surveyed = (objects.cover == "field").to_numpy() & objects.within(box(*bounds)).to_numpy()
    objects["crop"] = _crops(objects, surveyed, crop_shares, crop_rng)
    ids = _rasterise(objects.geometry, bounds)
    months, signal, shift, rho = _seasons(objects, profiles, signal_rng)
    texture = spread * _within_fields([n // FINE for n in ids.shape], len(months), texture_rng)
    grid = GeoBox.from_bbox(bounds, crs, resolution=PIXEL)
    scene = Scene(ids, texture, months, signal, shift + sowing_delay, rho, grid, seed)

    parcels = objects.loc[surveyed, ["crop", "geometry"]].set_crs(crs)
    parcels.insert(0, "parcel_id", np.arange(1, len(parcels) + 1, dtype="int64"))
    fields = _coarsen(np.r_[False, objects.cover == "field"][ids], FINE) >= 0.5
    radar_times = acquisition_times(tracks)
    record = {
        "name": name,
        "simulated": True,
        "seed": seed,
        "crs": crs,
        "bounds": list(bounds),
        "pixel_size": PIXEL,
        "block_size": block_size,
        "sar_times": {f"{time:%Y-%m-%dT%H:%M}": track for time, track in radar_times},
        "optical_dates": {str(date): cover for date, cover in cloud_cover.items()},
        "crop_shares": dict(crop_shares),
        "sowing_delay": sowing_delay,
        "spread": spread,
        "vv_vh_correlation": CORRELATION,
    }
    with files.whole(folder) as part:
        part.mkdir()
        parcels.to_parquet(part / "parcels.parquet", index=False)
        rasters.write(part / "cropland.tif", {"cropland": fields.astype("uint8")}, scene.grid, "uint8", 255)
        for time, track in radar_times:
            _write_radar(part, time, track, scene, covariance)
        for date, cover in cloud_cover.items():
            _write_optical(part, date, cover, scene)
        schema.write_record(part, record)
    log.info("twin of %d parcels and %d acquisitions in %s", len(parcels), len(radar_times), folder)
    return folder


class Scene(NamedTuple):
    """What every acquisition sees. Object 0 is the tracks; objects are numbered by `ids`."""

    ids: np.ndarray  # (y, x) on the 2.5 m grid
    texture: np.ndarray  # (month, band, y, x) at 10 m: dB, log reflectance
    months: np.ndarray
    signal: np.ndarray  # (object, month, band)
    shift: np.ndarray  # (object), sowing, days
    rho: np.ndarray  # (object), complex correlation of VV and VH
    grid: GeoBox  # of 10 m
    seed: int


def square(centre: Sequence[float], size: float, crs: str) -> tuple[float, float, float, float]:
    """Bounds (left, bottom, right, top; m) of a square around a longitude and latitude, on a 20 m grid."""
    longitude, latitude = centre
    (x,), (y,) = transform("EPSG:4326", crs, [longitude], [latitude])
    x, y, half = round(x / 20) * 20, round(y / 20) * 20, float(np.ceil(size / 40) * 20)
    return x - half, y - half, x + half, y + half


def acquisition_times(tracks: Mapping[str, Sequence] = TRACKS) -> list[tuple[pd.Timestamp, str]]:
    """Every radar acquisition as (time, track), in time order."""
    passes = [
        (pd.Timestamp(first) + n * pd.Timedelta(days=REPEAT_DAYS), track)
        for track, (first, count) in tracks.items()
        for n in range(count)
    ]
    return sorted(passes)


def layout(bounds: Sequence[float], rng: np.random.Generator) -> gpd.GeoDataFrame:
    """Land cover of a region as polygons: `cover` in field, forest, village, water; tracks lie between them.

    A turned frame is cut into blocks, and blocks of cropland into parcels, each cut in proportion to the areas
    on its two sides, so that parcels get the areas drawn for them: log-normal with the mean of Figure 2, clipped
    at 0.1 and 20 ha. Parcels that the region's edge cuts are not surveyed, which costs the mean a few per cent.
    """
    left, bottom, right, top = bounds
    middle, span = np.array([left + right, bottom + top]) / 2, max(right - left, top - bottom)
    turn = np.deg2rad(rng.uniform(8, 25))
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.7 * span
    frame = middle + corners @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    block_ha = np.clip(span**2 / 1e4 / 16, 4, 40)
    quads = _cut(frame, rng.lognormal(0, 0.5, int(1.96 * span**2 / 1e4 / block_ha)), 1.3, rng)
    # Four metres off each side of a block leave an eight metre track between neighbours.
    blocks = gpd.GeoSeries([Polygon(q) for q in quads]).buffer(-4, join_style="mitre")
    blocks = blocks[blocks.intersects(box(*bounds)) & (blocks.area > 5000)].reset_index(drop=True)
    cover = _cover(blocks, rng)
    rows = [(kind, block) for kind, block in zip(cover, blocks, strict=True) if kind != "field"]
    for block in blocks[cover == "field"]:
        quad = np.array(block.exterior.coords)[:4]
        rows += [("field", Polygon(q)) for q in _cut(quad, _parcel_areas(block.area / 1e4, rng), 2.5, rng)]
    return gpd.GeoDataFrame(rows, columns=["cover", "geometry"])


def _parcel_areas(total: float, rng: np.random.Generator, sigma: float = 1.0) -> np.ndarray:
    """Parcel areas (ha) that fill `total`: log-normal draws, scaled a little so that the last one fits."""
    areas = np.clip(rng.lognormal(np.log(MEAN_PARCEL_HA) - sigma**2 / 2, sigma, int(total * 4) + 9), 0.1, 20)
    # As many draws as bring the sum nearest to the total: on average they are stretched as often as squeezed.
    count = 1 + np.argmin(abs(np.cumsum(areas) - total))
    return areas[:count] * total / areas[:count].sum()


def _cut(quad: np.ndarray, areas: np.ndarray, elongation: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Cut a quadrilateral (4, 2) into some of the relative `areas`, their sides near `elongation` : 1."""
    if len(areas) == 1:
        return [quad]
    half = len(areas) // 2
    share = areas[:half].sum() / areas.sum()
    sides = np.linalg.norm(np.roll(quad, -1, axis=0) - quad, axis=1)
    a, b = sides[0] + sides[2], sides[1] + sides[3]

    def misfit(long: float, short: float) -> float:
        return sum(abs(abs(np.log(s * long / short)) - np.log(elongation)) for s in (share, 1 - share))

    if misfit(b, a) < misfit(a, b):
        quad = np.roll(quad, -1, axis=0)
    # A cut slightly off parallel leaves the area as it is and makes quadrilaterals of rectangles.
    slant = rng.uniform(-0.05, 0.05) * min(share, 1 - share)
    low = quad[0] + (share + slant) * (quad[1] - quad[0])
    high = quad[3] + (share - slant) * (quad[2] - quad[3])
    first, second = np.array([quad[0], low, high, quad[3]]), np.array([low, quad[1], quad[2], high])
    return _cut(first, areas[:half], elongation, rng) + _cut(second, areas[half:], elongation, rng)


def _waves(rng: np.random.Generator, wavelength: float, count: int = 12) -> Callable:
    """A smooth random function of points with unit variance: water gathers, crops cluster."""
    angle, phase = rng.uniform(0, 2 * np.pi, (2, count, 1))
    length = wavelength * rng.uniform(0.7, 1.6, (count, 1))

    def field(points: gpd.GeoSeries) -> np.ndarray:
        along = np.cos(angle) * points.x.to_numpy() + np.sin(angle) * points.y.to_numpy()
        waves = np.cos(2 * np.pi * along / length + phase)
        return waves.sum(axis=0) * np.sqrt(2 / count)

    return field


def _cover(blocks: gpd.GeoSeries, rng: np.random.Generator) -> np.ndarray:
    """Land cover of each block: water lies together, forest too, villages anywhere; the rest are fields."""
    cover = np.full(len(blocks), "field", dtype=object)
    centres = blocks.centroid
    for kind, share in LAND_SHARES.items():
        score = rng.normal(size=len(blocks)) + (kind != "village") * 2 * _waves(rng, 3000)(centres)
        room = share * blocks.area.sum()
        for i in np.argsort(-score):
            if cover[i] == "field" and blocks.area[i] <= room:
                cover[i] = kind
                room -= blocks.area[i]
    return cover


def _crops(
    objects: gpd.GeoDataFrame, surveyed: np.ndarray, shares: Mapping[str, float], rng: np.random.Generator
) -> np.ndarray:
    """Crop of each object, '' off the fields; the surveyed parcels meet `shares` by area, loosely clustered.

    The rarest crop is placed first, and no parcel may hold more than a tenth of its crop (in a small region,
    be larger than the median), or one field could be most of the wheat. The commonest takes what is left.
    """
    crop = np.full(len(objects), "", dtype=object)
    areas, centres = objects.area.to_numpy(), objects.centroid
    rare_first = sorted(shares, key=lambda name: shares[name])
    for name in rare_first[:-1]:
        room = shares[name] * areas[surveyed].sum()
        largest = max(room / 10, np.median(areas[surveyed]))
        score = rng.normal(size=len(objects)) + 0.5 * _waves(rng, 2500)(centres)
        for i in np.argsort(-score):
            if surveyed[i] and not crop[i] and areas[i] <= min(room, largest):
                crop[i] = name
                room -= areas[i]
    crop[surveyed & (crop == "")] = rare_first[-1]
    # Fields cut by the region's edge are seen by the satellites but not surveyed.
    outside = (objects.cover == "field").to_numpy() & ~surveyed
    crop[outside] = rng.choice(list(shares), outside.sum(), p=list(shares.values()))
    return crop


def _seasons(objects: gpd.GeoDataFrame, profiles: xr.Dataset, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """`months`, `signal`, `shift` and `rho` of `Scene`: a season for each object, from the county's effects down."""
    covers = np.array(["track", *objects.cover])
    months, size = pd.unique(profiles["month"].values).astype(float), profiles.sizes["feature"]
    signal = np.zeros((len(covers), len(months), len(BANDS)), "float32")
    fields = (objects.crop != "").to_numpy()
    crops, centres = objects.crop[fields].to_numpy(dtype=str), objects.centroid[fields]
    normals = {level: rng.normal(size=(len(crops), size)) for level in ("parcel", "field")}
    for level, wavelength in WAVELENGTHS.items():
        normals[level] = np.stack([_waves(rng, wavelength)(centres) for _ in range(size)], axis=-1)
    normals["region_crop"] = np.zeros_like(normals["parcel"])
    for name in profiles["crop"].values:
        mine = crops == name
        normals["region_crop"][mine] = rng.normal(size=size)
        own = [_waves(rng, WAVELENGTHS["county_crop"])(centres[mine]) for _ in range(size)]
        normals["county_crop"][mine] = np.stack(own, axis=-1)
    seasons = crop_profiles.signals(profiles, crops, normals).sel(band=list(BANDS))
    signal[1:][fields] = seasons.values
    for cover, typical in LAND_COVER.items():
        where = np.flatnonzero(covers == cover)
        spread = rng.normal(size=(len(where), 1, len(BANDS)))
        decibel = [band.endswith("_db") for band in BANDS]
        signal[where] = np.array(typical) + spread * np.where(decibel, 0.7, 0.1 * np.array(typical))
    shift = rng.normal(0, SOWING_SHIFT_DAYS, len(covers))
    rho = CORRELATION * np.exp(2j * np.pi * rng.random(len(covers)))
    return months, signal, shift, rho.astype("complex64")


def _on_date(scene: Scene, time: pd.Timestamp) -> np.ndarray:
    """Signal of each object on a date (object, band), linear between the middles of months."""
    now = time.month + (time.day - 15 - scene.shift) / 30.4
    position = np.clip(now - scene.months[0], 0, len(scene.months) - 1.001)
    before, every = position.astype(int), np.arange(len(position))
    weight = (position - before)[:, None].astype("float32")
    return (1 - weight) * scene.signal[every, before] + weight * scene.signal[every, before + 1]


def _texture_on(scene: Scene, time: pd.Timestamp, bands: slice) -> np.ndarray:
    """Deviation of each pixel from its field on a date (band, y, x)."""
    weights = crop_profiles.between_months([time], scene.months)[0]
    near = np.flatnonzero(weights)
    return np.tensordot(weights[near].astype("float32"), scene.texture[near, bands], axes=1)


def _within_fields(shape: Sequence[int], months: int, rng: np.random.Generator) -> np.ndarray:
    """`texture` of `Scene`: what is constant over the season, and what changes from month to month."""
    texture = np.empty((months, len(BANDS), *shape), "float32")
    for i, (band, smooth) in enumerate(zip(BANDS, SMOOTH, strict=True)):
        constant, changing = crop_profiles.WITHIN_FIELD[band]
        fixed = constant * _texture(shape, rng, 1, smooth)[0]
        for month in range(months):
            texture[month, i] = fixed + changing * _texture(shape, rng, 1, smooth)[0]
    return texture


def _write_radar(folder: Path, time: pd.Timestamp, track: str, scene: Scene, covariance: bool = False) -> None:
    """One acquisition: circular Gaussian VV and VH with each pixel's covariance, 10 m in y and 2.5 m in x.

    With `covariance` the mean of their four looks at 10 m in its place.
    """
    rng = np.random.default_rng([scene.seed, 1, int(f"{time:%Y%m%d}")])
    sigma0 = 10 ** (_on_date(scene, time)[:, :2] / 10)
    gain = np.repeat(10 ** (_texture_on(scene, time, slice(0, 2)) / 10), FINE, axis=2)
    vv, vh = (gain[i] * _coarsen(sigma0[:, i][scene.ids], FINE, 1) for i in range(2))
    first, second = (_circular_gaussian(vv.shape, rng) for _ in range(2))
    rho = scene.rho[scene.ids[FINE // 2 :: FINE]]
    # <VV conj(VH)> = rho sqrt(<|VV|^2> <|VH|^2>).
    other = np.conj(rho) * first + np.sqrt(1 - abs(rho) ** 2) * second
    images = {"VV": np.sqrt(vv) * first, "VH": np.sqrt(vh) * other}
    if covariance:
        one, two = images.values()
        cross = one * two.conj()
        looks = zip(polarimetry.C2, (abs(one) ** 2, abs(two) ** 2, cross.real, cross.imag), strict=True)
        planes = {name: _coarsen(plane, 1, FINE).astype("float32") for name, plane in looks}
        path = rasters.radar_path(folder, time, "C2")
        rasters.write(path, planes, scene.grid, "float32", np.nan, orbit_track=track)
        return
    for name, values in images.items():
        number = (CALIBRATION * values).view("float32").clip(-32767, 32767).view("complex64")
        tags = {"calibration": CALIBRATION, "orbit_track": track, "polarisation": name}
        path = rasters.radar_path(folder, time, name)
        rasters.write(path, {name: number}, scene.grid, "complex_int16", 0, **tags)


def _write_optical(folder: Path, date: str, cover: float, scene: Scene) -> None:
    """One optical scene: three bands under clouds and their shadows, and a perfect scene classification."""
    time = pd.Timestamp(date)
    texture = np.exp(_texture_on(scene, time, slice(2, None)))
    rng = np.random.default_rng([scene.seed, 2, int(f"{time:%Y%m%d}")])
    cloud, shadow = _clouds(texture.shape[1:], cover, rng)
    bands = []
    for column, factor in zip(_on_date(scene, time)[:, 2:].T, texture, strict=True):
        ground = _coarsen(column[scene.ids], FINE) * factor * (1 - 0.5 * shadow)
        seen = 0.55 * cloud + (1 - cloud) * ground
        bands.append(seen + rng.normal(0, NOISE_OPTICAL, cloud.shape))
    red, nir, swir, covered, shaded = (_coarsen(plane, 2) for plane in (*bands, cloud, shadow))
    conditions = [covered > 0.6, covered > 0, shaded > 0, nir < 0.08, nir > 2.3 * red]
    classes = np.select(conditions, [9, 8, 3, 6, 4], 5).astype("uint8")  # 5 bare, 4 vegetation, 6 water
    planes = {"red": bands[0], "narrow_nir": nir, "swir1": swir, "scl": classes}
    rasters.write_optical(folder, time, planes, scene.grid)


def _clouds(shape: Sequence[int], cover: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Opacity of the clouds (0-1) and their shadows (0 or 1), each (y, x) at 10 m; `cover` is exact."""
    field = _texture(shape, rng, 1, smooth=min(shape) / 15)[0]
    threshold = np.quantile(field, 1 - cover)
    cloud = np.where(field > threshold, np.clip(0.4 + (field - threshold) / 0.15, 0.4, 1), 0)
    # The morning sun stands in the south-east: shadows fall 200 m to the north and 150 m to the west.
    shadow = np.roll(cloud, (-20, -15), axis=(0, 1)) > 0
    return cloud, (shadow & (cloud == 0)).astype(float)


def _texture(shape: Sequence[int], rng: np.random.Generator, count: int, smooth: float = 4.0) -> np.ndarray:
    """Smooth Gaussian random fields (count, y, x) of unit variance; `smooth` in pixels."""
    fields = np.stack([gaussian_filter(rng.normal(size=shape), smooth) for _ in range(count)])
    return ((fields - fields.mean((1, 2), keepdims=True)) / fields.std((1, 2), keepdims=True)).astype("float32")


def _circular_gaussian(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Complex numbers of unit power: one look of fully developed speckle."""
    parts = rng.standard_normal((*shape, 2), dtype="float32") * np.float32(np.sqrt(0.5))
    return parts.view("complex64")[..., 0]


def _rasterise(shapes: gpd.GeoSeries, bounds: Sequence[float]) -> np.ndarray:
    """Object numbers (y, x) on the 2.5 m grid, from 1 on; 0 where no object lies."""
    left, bottom, right, top = bounds
    step = PIXEL / FINE
    shape = round((top - bottom) / step), round((right - left) / step)
    numbered = zip(shapes, range(1, len(shapes) + 1), strict=True)
    return rasterize(numbered, shape, transform=rasterio.Affine(step, 0, left, 0, -step, top), dtype="int32")


def _coarsen(values: np.ndarray, rows: int, columns: int | None = None) -> np.ndarray:
    """Means of windows of rows x columns."""
    columns = columns or rows
    height, width = values.shape
    return values.reshape(height // rows, rows, width // columns, columns).mean(axis=(1, 3))


def _may_replace(folder: Path) -> None:
    """Refuse to write over anything but an earlier twin."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / schema.RECORD).exists() or not schema.read_record(folder).get("simulated"):
        raise ValueError(f"{folder} holds files that no twin wrote; give an empty folder or remove them.")
