"""Writes a small Sentinel-1 SAFE: real annotation, cut to some bursts and samples, pixels made from a known field.

The forward geometry is independent of the module under test: Hermite orbits, own range-Doppler solve, pyproj.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import rasterio
from pyproj import CRS, Transformer
from rasterio.control import GroundControlPoint
from scipy.interpolate import CubicHermiteSpline, RectBivariateSpline

LIGHT = 299_792_458.0
OTHER = {"vv": "vh", "vh": "vv"}
LINES_PER_BURST = {"IW1": 1501, "IW2": 1513}
TIMING = ("azimuthTimeInterval", "imageInformation/slantRangeTime", "rangeSamplingRate")
LONLAT = ("longitude", "latitude")
EPOCH = np.datetime64("2021-04-01T05:26:00", "ns")


def write(
    target: Path,
    source: Path,
    parts: Mapping[str, tuple[range, slice]],
    field: Callable,
    height: Callable,
    crs: str,
    rng: np.random.Generator,
    speckle: bool = False,
) -> Path:
    """A product in folder `target` with the sub-swaths of `parts`: name ("iw1") to (bursts, samples).

    field(x, y) gives c11, c22 and complex c12 at map coordinates in `crs`, height(x, y) metres above the ellipsoid.
    Without speckle |c12|^2 must be c11 c22; each pixel gets a random phase, the same in VV and VH. A polarisation
    whose annotation the source lacks is written with that of the other.
    """
    for folder in ("measurement", "annotation/calibration"):
        (target / folder).mkdir(parents=True)
    shutil.copyfile(source / "manifest.safe", target / "manifest.safe")
    for swath, (bursts, samples) in parts.items():
        for polarisation in OTHER:
            _annotate(target, source, swath, polarisation, bursts, samples)
        name = _name(target, swath, "vv")
        root = ElementTree.parse(target / "annotation" / f"{name}.xml").getroot()
        x, y = positions(root, height, crs)
        c11, c22, c12 = field(x, y)
        first, second = (np.exp(2j * np.pi * rng.random(x.shape)) * a for a in (1, 0))
        if speckle:
            first, second = ((rng.normal(size=(*x.shape, 2)) @ [1, 1j]) / np.sqrt(2) for _ in range(2))
        rho = c12 / np.sqrt(c11 * c22)
        other = np.conj(rho) * first + np.sqrt(np.maximum(1 - abs(rho) ** 2, 0)) * second
        for polarisation, sigma in {"vv": np.sqrt(c11) * first, "vh": np.sqrt(c22) * other}.items():
            name = _name(target, swath, polarisation)
            path = target / "annotation/calibration" / f"calibration-{name}.xml"
            gain = sigma_gain(path, *(np.arange(n) for n in x.shape))
            valid = valid_samples(root)
            _measure(target / "measurement" / f"{name}.tiff", np.where(valid, sigma * gain, 0))
    return target


def positions(annotation: ElementTree.Element, height: Callable, crs: str) -> tuple[np.ndarray, np.ndarray]:
    """Map coordinates (line, sample) of every pixel of an annotation, on terrain height(x, y)."""
    interval, near, rate = (float(annotation.find(f".//{tag}").text) for tag in TIMING)
    lines, samples = (int(annotation.find(f".//{tag}").text) for tag in ("linesPerBurst", "samplesPerBurst"))
    step_line, step_sample = (np.unique(np.r_[0:n:step, n - 1]) for n, step in ((lines, 12), (samples, 24)))
    delay = near + step_sample / rate
    whole = [], []
    for start in _times(annotation, ".//burst/azimuthTime"):
        node = range_doppler(annotation, start + step_line * interval, delay, height, crs)
        for out, values in zip(whole, node, strict=True):
            out.append(RectBivariateSpline(step_line, step_sample, values)(np.arange(lines), np.arange(samples)))
    return np.concatenate(whole[0]), np.concatenate(whole[1])


def range_doppler(annotation, seconds: np.ndarray, delay: np.ndarray, height: Callable, crs: str):
    """Map coordinates (time, delay) seen at zero Doppler at azimuth times (s, see `_times`) and slant range times."""
    orbits = annotation.findall(".//orbitList/orbit")
    time = _times(annotation, ".//orbitList/orbit/time")
    state = {
        kind: np.array([[float(o.find(f"{kind}/{axis}").text) for axis in "xyz"] for o in orbits])
        for kind in ("position", "velocity")
    }
    path = CubicHermiteSpline(time, state["position"], state["velocity"])
    satellite, velocity = path(seconds)[:, None], path(seconds, 1)[:, None]
    velocity = velocity / np.linalg.norm(velocity, axis=-1, keepdims=True)
    to_earth = Transformer.from_crs(CRS(crs).to_3d(), "EPSG:4978", always_xy=True)

    def misses(x, y):
        ground = np.stack(to_earth.transform(x, y, height(x, y)), axis=-1)
        sight = ground - satellite
        return np.stack([(sight * velocity).sum(-1), np.linalg.norm(sight, axis=-1) - delay * LIGHT / 2], axis=-1)

    middle = [float(annotation.find(f".//geolocationGridPoint/{tag}").text) for tag in LONLAT]
    x, y = (
        np.full((len(seconds), len(delay)), v)
        for v in Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(*middle)
    )
    for _ in range(8):
        miss = misses(x, y)
        jacobian = np.stack([misses(x + 1, y) - miss, misses(x, y + 1) - miss], axis=-1)
        step = np.linalg.solve(jacobian, miss[..., None])[..., 0]
        x, y = x - step[..., 0], y - step[..., 1]
    assert abs(misses(x, y)).max() < 1e-3
    return x, y


def sigma_gain(path: Path, lines: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """The sigma0 table of a calibration file at lines and samples of its image, linear between its vectors."""
    vectors = ElementTree.parse(path).getroot().findall(".//calibrationVector")
    at = [int(vector.findtext("line")) for vector in vectors]
    pixel, gain = (
        [np.array(vector.findtext(tag).split(), float) for vector in vectors] for tag in ("pixel", "sigmaNought")
    )
    across = np.array([np.interp(samples, *vector) for vector in zip(pixel, gain, strict=True)])
    position = np.interp(lines, at, np.arange(len(at)))
    before = np.minimum(position.astype(int), len(at) - 2)
    weight = (position - before)[:, None]
    return (1 - weight) * across[before] + weight * across[before + 1]


def valid_samples(annotation: ElementTree.Element) -> np.ndarray:
    """Whether the annotation calls a pixel valid (line, sample)."""
    first, last = (
        np.concatenate([np.array(tag.text.split(), int) for tag in annotation.findall(f".//burst/{name}")])[:, None]
        for name in ("firstValidSample", "lastValidSample")
    )
    sample = np.arange(int(annotation.find(".//samplesPerBurst").text))
    return (first >= 0) & (sample >= first) & (sample <= last)


def _times(annotation: ElementTree.Element, tag: str) -> np.ndarray:
    """Seconds since EPOCH."""
    return (np.array([e.text for e in annotation.findall(tag)], "datetime64[ns]") - EPOCH) / np.timedelta64(10**9, "ns")


def _name(target: Path, swath: str, polarisation: str) -> str:
    """Stem of the files of a sub-swath and polarisation, from the manifest."""
    hrefs = ElementTree.parse(target / "manifest.safe").getroot().findall(".//fileLocation")
    stems = [Path(e.get("href")).stem for e in hrefs if "measurement" in e.get("href")]
    return next(stem for stem in stems if f"-{swath}-slc-{polarisation}-" in stem)


def _annotate(target, source, swath, polarisation, bursts, samples) -> None:
    """Annotation and calibration files of the real product, cut."""
    name = _name(target, swath, polarisation)
    for kind in ("{}", "calibration/calibration-{}", "calibration/noise-{}"):
        like = kind.format(f"s1?-{swath}-slc-{{}}-*.xml")
        found = [
            *(source / "annotation").glob(like.format(polarisation)),
            *(source / "annotation").glob(like.format(OTHER[polarisation])),
        ]
        tree = ElementTree.parse(found[0])
        _cut(tree.getroot(), bursts, samples)
        tree.write(target / "annotation" / f"{kind.format(name)}.xml", encoding="UTF-8", xml_declaration=True)


def _cut(root: ElementTree.Element, bursts: range, samples: slice) -> None:
    size = samples.stop - samples.start

    def shift(tag, by):
        for element in root.iter(tag):
            element.text = " ".join(map(str, np.array(element.text.split(), int) - by))

    lines = LINES_PER_BURST[root.findtext("adsHeader/swath")]
    if root.tag != "product":
        shift("pixel", samples.start)
        shift("line", bursts.start * lines)
        return
    # Large, and read by nobody here.
    for tag in ("antennaPattern", "dopplerCentroid", "qualityInformation"):
        root.remove(root.find(tag))
    for tag in ("attitudeList", "replicaInformationList", "azimuthFmRateList"):
        general = root.find("generalAnnotation")
        general.remove(general.find(tag))
    points = root.find("geolocationGrid/geolocationGridPointList")
    points[:] = [points[len(points) // 2]]
    timing = root.find("swathTiming")
    listed = timing.find("burstList")
    for index, burst in enumerate(list(listed)):
        if index not in bursts:
            listed.remove(burst)
    listed.set("count", str(len(bursts)))
    for tag in ("firstValidSample", "lastValidSample"):
        for element in root.iter(tag):
            values = np.array(element.text.split(), int)
            element.text = " ".join(map(str, np.where(values < 0, -1, np.clip(values - samples.start, 0, size - 1))))
    image = root.find("imageAnnotation/imageInformation")
    near, rate = float(image.findtext("slantRangeTime")), float(root.find(".//rangeSamplingRate").text)
    image.find("slantRangeTime").text = repr(near + samples.start / rate)
    image.find("numberOfSamples").text = timing.find("samplesPerBurst").text = str(size)
    image.find("numberOfLines").text = str(len(bursts) * lines)
    image.find("productFirstLineUtcTime").text = listed[0].findtext("azimuthTime")


def _measure(path: Path, numbers: np.ndarray) -> None:
    parts = np.stack([numbers.real, numbers.imag], axis=-1)
    rounded = np.rint(parts).astype("float32").view("complex64")[..., 0]
    lines, samples = rounded.shape
    corners = [GroundControlPoint(row, col, col / 1e4, row / 1e4) for row in (0, lines) for col in (0, samples)]
    profile = {
        "driver": "GTiff",
        "width": samples,
        "height": lines,
        "count": 1,
        "dtype": "complex_int16",
        "compress": "deflate",
        "zlevel": 1,
        "gcps": corners,
        "crs": "EPSG:4326",
    }
    with rasterio.open(path, "w", **profile) as file:
        file.write(rounded, 1)
