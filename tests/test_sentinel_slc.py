"""SAFE to covariance: calibration, seams and geometry against true annotation, and the round trip of a known field."""

import os
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
import safe as maker
import xarray as xr
import xarray_sentinel
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from cropnb import polarimetry
from cropnb.sentinel import slc

CRS = "EPSG:32632"
NAME = "S1B_IW_SLC__1SDV_20210401T052622_20210401T052650_026269_032297_EFA4.SAFE"
CENTRE = 707130, 5152260  # on the seam of bursts 3 and 4 of IW1
BURSTS, SAMPLES = range(3, 5), slice(10001, 10601)


def height(x, y):
    """Hills of 60 m, metres above the ellipsoid."""
    return 300 + 60 * np.sin(2 * np.pi * x / 3000) * np.cos(2 * np.pi * y / 3500)


def field(x, y):
    """Covariance of one scatterer a pixel: |c12|^2 = c11 c22."""
    c11 = 0.1 * (1 + 0.3 * np.sin(2 * np.pi * x / 1300) + 0.3 * np.sin(2 * np.pi * y / 1100))
    c22 = 0.02 * (1 + 0.3 * np.cos(2 * np.pi * x / 1000) + 0.3 * np.cos(2 * np.pi * y / 1200))
    return c11, c22, np.sqrt(c11 * c22) * np.exp(2j * np.pi * x / 2500)


def distributed(x, y):
    """The same powers, partly correlated."""
    c11, c22, c12 = field(x, y)
    return c11, c22, 0.4 * c12


def square(centre, half, resolution=10):
    x, y = centre
    return GeoBox.from_bbox((x - half, y - half, x + half, y + half), CRS, resolution=resolution)


def write_dem(path, centre, half, offset=0.0):
    """The hills every 30 m, off the grid's raster."""
    left, top, n = centre[0] - half - 3, centre[1] + half + 7, 2 * half // 30 + 1
    x, y = np.meshgrid(left + 30 * (np.arange(n) + 0.5), top - 30 * (np.arange(n) + 0.5))
    profile = {"driver": "GTiff", "width": n, "height": n, "count": 1, "dtype": "float32", "crs": CRS}
    with rasterio.open(path, "w", transform=rasterio.Affine(30, 0, left, 0, -30, top), **profile) as file:
        file.write((height(x, y) + offset).astype("float32"), 1)
    return path


def error(c2, expected):
    """Relative error of c11, c22 and (complex) c12, each (y, x)."""
    found = c2.c11.values, c2.c22.values, c2.c12_real.values + 1j * c2.c12_imag.values
    truth = expected(*np.meshgrid(c2.x, c2.y))
    return [(a - b) / b for a, b in zip(found, truth, strict=True)], truth


@pytest.fixture(scope="module")
def data_folder():
    if "CROPNB_DATA" not in os.environ:
        pytest.skip("needs true annotation: set CROPNB_DATA to the folder of real data")
    return Path(os.environ["CROPNB_DATA"])


@pytest.fixture(scope="module")
def source(data_folder):
    return data_folder / "s1_slc_safe_metadata" / NAME


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return tmp_path_factory.mktemp("slc")


@pytest.fixture(scope="module")
def dem(workspace):
    return write_dem(workspace / "dem.tif", CENTRE, 2400)


@pytest.fixture(scope="module")
def product(source, workspace):
    """Two bursts, 600 samples, without speckle."""
    rng = np.random.default_rng(1)
    return maker.write(workspace / NAME, source, {"iw1": (BURSTS, SAMPLES)}, field, height, CRS, rng)


@pytest.fixture(scope="module")
def real(source, workspace):
    """The true product's IW1, of which alone it has both polarisations; all pixels are VV = 2 and VH = 1."""
    target = workspace / "real" / NAME
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*iw2*"), copy_function=shutil.copyfile)
    return slc.open_product(target)


@pytest.fixture
def broken(product, tmp_path):
    """A copy of the product to break."""
    return Path(shutil.copytree(product, tmp_path / NAME))


def only(folder, pattern):
    return next(folder.rglob(pattern))


def test_calibration_is_the_interpolated_table(real, source):
    _, (swath,) = real
    burst = swath.bursts[4]
    lines, samples = slice(burst.start + 100, burst.start + 103), slice(12000, 12040)
    planes = slc.multilooked(swath, lines, samples)
    gains = []
    in_file = burst.first - burst.offset + np.arange(lines.start, lines.stop)
    for name in ("vv", "vh"):
        table = only(source, f"calibration-*iw1-slc-{name}-*.xml")
        gains.append(maker.sigma_gain(table, in_file, np.arange(samples.start, samples.stop)))
    vv, vh = gains

    def looks(power):
        return power.reshape(3, 10, 4).mean(axis=2)

    np.testing.assert_allclose(planes[2], looks(2 / (vv * vh)), rtol=2e-6)
    np.testing.assert_array_equal(planes[3], 0)
    np.testing.assert_allclose(planes[0], looks(4 / vv**2), rtol=1e-5)
    np.testing.assert_allclose(planes[1], looks(1 / vh**2), rtol=1e-5)


def test_no_line_is_missing_at_any_seam(real):
    _, (swath,) = real
    assert len(swath.bursts) == 9
    per_burst = 1501
    for burst, following in zip(swath.bursts[:-1], swath.bursts[1:], strict=True):
        assert burst.stop == following.start
        around = slice(burst.stop - 3, burst.stop + 3)
        assert np.isfinite(slc.multilooked(swath, around, slice(8000, 8008))).all()
        # The seam lies in the middle of the lines that both have.
        first, last = swath.valid[0] <= swath.valid[1], None
        inside = np.flatnonzero(first[burst.first : burst.first + per_burst])
        last = burst.offset + inside[-1]
        begin = following.offset + np.flatnonzero(first[following.first : following.first + per_burst])[0]
        assert abs((burst.stop - begin) - (last + 1 - burst.stop)) <= 1
    # Times of the lines follow each other across seams, to the microsecond the annotation gives.
    times = swath.numbers["vv"].azimuth_time.values
    stitched = np.concatenate([times[b.first - b.offset + np.arange(b.start, b.stop)] for b in swath.bursts])
    steps = np.diff(stitched) / np.timedelta64(1, "ns") * 1e-9
    assert abs(steps - swath.interval).max() < 1e-6


def test_invalid_samples_and_missing_bursts_have_no_data(real):
    _, (swath,) = real
    first = swath.bursts[0]
    planes = slc.multilooked(swath, slice(first.start - 2, first.start + 2), slice(520, 540))
    assert np.isnan(planes[:, :2]).all()
    # The first valid sample is 529: looks of samples 520-523, 524-527 and 528-531 are not whole.
    assert np.isnan(planes[:, 2:, :3]).all()
    assert np.isfinite(planes[:, 2:, 3:]).all()
    times = np.array(["2021-04-01T00:00:00", "2021-04-01T00:00:04"], "datetime64[ns]")
    a, b = slc.stitch(times, 1500, 0.002, np.ones(3000, bool))
    assert (a.start, a.stop, b.start, b.stop) == (0, 1500, 2000, 3500)


@pytest.mark.parametrize(
    "annotation",
    [f"s1_slc_safe_metadata/{NAME}/annotation/s1b-iw{i}-*.xml" for i in (1, 2)]
    + ["s1_slc_vv_azores/s1a-iw3-slc-vv-*.xml"],
)
def test_look_up_agrees_with_the_annotated_geolocation(data_folder, annotation):
    path = next(data_folder.glob(annotation))
    points = xarray_sentinel.sentinel1.open_gcp_dataset(path)
    states = xarray_sentinel.sentinel1.open_orbit_dataset(path)
    to_earth = Transformer.from_crs("EPSG:4979", "EPSG:4978", always_xy=True)
    ground = to_earth.transform(points.longitude.values, points.latitude.values, points.height.values)
    ground = xr.DataArray(np.array(ground), {"axis": range(3)}, ("axis", "y", "x"))
    time, delay = slc.look_up(slc.orbit.OrbitPolyfitInterpolator.from_position(states.position), ground)
    late = (time - points.azimuth_time.values[:, None]) / np.timedelta64(1, "ns") * 1e-9
    assert abs(late).max() < 0.25 * 0.00205  # of a line
    assert abs(delay - points.slant_range_time.values).max() * maker.LIGHT / 2 < 0.01  # metres
    # The antenna looks right: what lies left of the track at the same distance is not seen.
    assert np.isfinite(delay).all()
    satellite = states.position.mean("azimuth_time").values
    velocity = states.velocity.mean("azimuth_time").values
    across = np.cross(velocity, satellite)
    across /= np.linalg.norm(across)
    plane = xr.DataArray(across, dims="axis")
    left = ground - 2 * plane * ((ground - xr.DataArray(satellite, dims="axis")) * plane).sum("axis")
    _, delay = slc.look_up(slc.orbit.OrbitPolyfitInterpolator.from_position(states.position), left)
    assert np.isnan(delay).all()


def test_round_trip_recovers_the_field(product, dem):
    c2 = slc.covariance(product, dem, square(CENTRE, 600)).compute()
    assert all(np.isfinite(c2[name]).all() for name in polarimetry.C2)
    assert {plane.dtype for plane in c2.data_vars.values()} == {np.dtype("float32")}
    assert c2.attrs["orbit_track"] == "168"
    assert c2.rio.crs == CRS
    # Digital numbers are integers, and the field is linear over a look: about half a per cent.
    errors, (c11, c22, _) = error(c2, field)
    for relative in errors:
        assert np.sqrt((abs(relative) ** 2).mean()) < 0.01
        assert abs(relative).max() < 0.05
        assert abs(relative.mean()) < 0.002
    # Nor is it displaced: the gradient explains a shift of the image.
    for truth, relative in ((c11, errors[0]), (c22, errors[1])):
        gradient = np.gradient(truth, -10, 10)
        shift, *_ = np.linalg.lstsq(np.transpose([g.ravel() for g in gradient]), (relative * truth).ravel())
        assert abs(shift).max() < 0.2


def test_height_of_the_geoid_moves_the_image_as_stated(product, dem, workspace):
    grid = square(CENTRE, 200)
    whole = slc.covariance(product, dem, grid).compute()
    geoid = write_dem(workspace / "geoid.tif", CENTRE, 2400, offset=-43)
    corrected = slc.covariance(product, geoid, grid, undulation=43).compute()
    xr.testing.assert_allclose(corrected, whole, rtol=1e-4)
    wrong = slc.covariance(product, geoid, grid).compute()
    # Of a descending orbit the far range is west, so that a point taken 43 m too low is looked for further east or
    # west by 43 m / tan(incidence): compare with the field there.
    x, y = np.meshgrid(wrong.x, wrong.y)
    shifts = np.arange(-80.0, 81)
    misfit = [np.square(wrong.c11.values - field(x + shift, y)[0]).mean() for shift in shifts]
    assert abs(shifts[np.argmin(misfit)]) == pytest.approx(43 / np.tan(np.radians(33.9)), abs=8)


def test_speckle_is_averaged_without_bias(source, dem, workspace):
    rng = np.random.default_rng(2)
    parts = {"iw1": (BURSTS, SAMPLES)}
    path = maker.write(workspace / "speckle" / NAME, source, parts, distributed, height, CRS, rng, speckle=True)
    c2 = slc.covariance(path, dem, square(CENTRE, 600)).compute()
    (c11, c22, c12), _ = error(c2, distributed)
    # A single-look pixel is 13.9 m by 2.33 m / sin(incidence); interpolation weighs pixels unequally, at most
    # twice the variance of equal weights.
    looks = 1200**2 / (13.9 * 2.33 / np.sin(np.radians(33.5)))
    assert abs(c11.mean()) < 4 * np.sqrt(2 / looks)
    assert abs(c22.mean()) < 4 * np.sqrt(2 / looks)
    coherence = 0.4
    assert abs(c12.mean()) < 4 * np.sqrt(2 / looks) / coherence
    # Four looks, a little smoothed by the interpolation.
    assert 4 < 1 / c11.var() < 12
    assert 4 < 1 / c22.var() < 12


def test_sub_swaths_are_merged_without_a_gap(source, workspace):
    # Of IW2 the samples are cut so that the two share only a hundred, some 400 m.
    parts = {"iw1": (range(3, 4), slice(20700, 21000)), "iw2": (range(4, 5), slice(935, 1250))}
    path = maker.write(workspace / "merged" / NAME, source, parts, field, height, CRS, np.random.default_rng(3))
    annotations = {
        name: ElementTree.parse(only(path, f"annotation/s1b-{name}-slc-vv-*.xml")).getroot() for name in parts
    }
    x, y = maker.positions(annotations["iw1"], height, CRS)
    valid = np.flatnonzero(maker.valid_samples(annotations["iw1"])[700])[-1]
    border = round(float(x[1000, valid]), -1), round(float(y[1000, valid]), -1)
    heights = write_dem(workspace / "merged.tif", border, 2400)
    c2 = slc.covariance(path, heights, square(border, 500)).compute()
    assert c2.attrs["sub_swaths"] == "IW1 IW2"
    errors, _ = error(c2, field)
    for relative in errors:
        assert np.isfinite(relative).all()
        assert abs(relative).max() < 0.05
    # Each alone leaves part of the grid without data.
    _, swaths = slc.open_product(path)
    for swath in swaths:
        tile = slc._tile([swath], heights, square(border, 500), 0.0, slice(0, 100), slice(0, 100))
        assert 0.05 < np.isnan(tile[0]).mean() < 0.95


def test_blocks_give_what_one_piece_gives(product, dem, monkeypatch):
    grid = square(CENTRE, 200)
    whole = slc.covariance(product, dem, grid).compute()
    monkeypatch.setattr(slc, "TILE", 24)
    xr.testing.assert_allclose(slc.covariance(product, dem, grid).compute(), whole, rtol=1e-5)


def test_write(product, dem, tmp_path, monkeypatch):
    monkeypatch.setattr(slc, "TILE", 32)
    grid = GeoBox.from_bbox((CENTRE[0] - 200, CENTRE[1] - 100, CENTRE[0] + 200, CENTRE[1] + 150), CRS, resolution=10)
    path = slc.write(product, dem, grid, tmp_path)
    assert path == tmp_path / "sar" / "S1_20210401T0526_C2.tif"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    c2 = slc.covariance(product, dem, grid).compute()
    with rasterio.open(path) as file:
        assert file.descriptions == polarimetry.C2
        assert (file.crs.to_string(), file.transform, file.shape) == (CRS, grid.affine, grid.shape)
        assert file.dtypes == ("float32",) * 4
        assert np.isnan(file.nodata)
        assert file.tags()["orbit_track"] == "168"
        np.testing.assert_array_equal(file.read(), c2.to_dataarray())


def test_slices_of_a_pass_make_one_file(product, dem, tmp_path, monkeypatch):
    grid = square(CENTRE, 200)
    whole = slc.covariance(product, dem, grid).compute()
    north = whole.where(whole.y > CENTRE[1]).assign_attrs(product="north", time="2021-04-01T05:26:22")
    south = (0 * whole + 5).assign_attrs(whole.attrs | {"product": "south", "time": "2021-04-01T05:26:47"})
    parts = {"north": north.chunk(), "south": south.chunk()}
    monkeypatch.setattr(slc, "covariance", lambda safe, *_, **__: parts[safe.name])
    path = slc.write([Path("north"), Path("south")], dem, grid, tmp_path)
    assert path.name == "S1_20210401T0526_C2.tif"
    with rasterio.open(path) as file:
        assert file.tags()["product"] == "north south"
        expected = np.concatenate([whole.to_dataarray()[:, :20], np.full((4, 20, 40), 5)], axis=1)
        np.testing.assert_array_equal(file.read(), expected.astype("float32"))


def test_heights_that_no_land_has_are_no_heights(tmp_path):
    """A void without a tag stays a void, and its neighbours take nothing of it; a raster that is south up is read."""
    grid = square(CENTRE, 300)
    expected = slc._ground(write_dem(tmp_path / "dem.tif", CENTRE, 600), grid, 0.0).values
    with rasterio.open(tmp_path / "dem.tif") as file:
        values, profile = file.read(1), file.profile
    profile |= {"transform": profile["transform"] * rasterio.Affine(1, 0, 0, 0, -1, len(values))}
    values[10:20, 10:20] = -32768
    with rasterio.open(tmp_path / "void.tif", "w", **profile) as file:
        file.write(values[::-1], 1)
    found = slc._ground(tmp_path / "void.tif", grid, 0.0).values
    held = np.isfinite(found)
    assert 0.5 < held.mean() < 0.95
    np.testing.assert_allclose(found[held], expected[held], atol=5)
    with rasterio.open(tmp_path / "void.tif", "r+") as file:
        file.units = ["ft"]
    with pytest.raises(ValueError, match=r"void.tif gives heights in ft: bring them to metres"):
        slc._check_cover(tmp_path / "void.tif", grid)


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_true_pixels_have_the_speckle_of_their_looks(data_folder):
    (path,) = (data_folder / "s1_slc_vv_azores").glob("*.tiff")
    with rasterio.open(path) as file:
        number = xr.DataArray(file.read(1), dims=("y", "x"))
    single = polarimetry.covariance(number, number).c11
    looked = polarimetry.multilook(polarimetry.covariance(number, number)).c11
    np.testing.assert_allclose(looked.mean(), single[:, :1400].mean(), rtol=1e-5)

    def looks(power, size):
        """Equivalent number of looks, mean^2 / variance, of the quarter of boxes where it is highest: even ground."""
        boxes = power.coarsen(y=size, x=size, boundary="trim")
        return float((boxes.mean() ** 2 / boxes.var()).quantile(0.75))

    # Fully developed speckle has one look a pixel. Samples in range are correlated, so that four make fewer than
    # four looks: how many, follows from the correlation.
    assert 0.8 < looks(single, 24) < 1.2
    power = float((abs(number) ** 2).mean())
    lags = [abs((number.values[:, k:] * number.values[:, :-k].conj()).mean() / power) for k in (1, 2, 3)]
    expected = 4 / (1 + 2 * sum((1 - k / 4) * lag**2 for k, lag in zip((1, 2, 3), lags, strict=True)))
    assert looks(looked, 24) / looks(single, 24) == pytest.approx(expected, rel=0.1)
    # The island is brighter than the sea.
    boxes = looked.coarsen(y=10, x=10, boundary="trim").mean()
    assert boxes.quantile(0.9) > 3 * boxes.quantile(0.1)


@pytest.mark.parametrize("tag", ["<!DOCTYPE product SYSTEM 'x.dtd'>", '<!DOCTYPE p [<!ENTITY a "b">]>'])
@pytest.mark.parametrize("file", ["*iw1-slc-vv*.xml", "noise-*vh*.xml", "manifest.safe"])
def test_xml_that_declares_a_document_type_is_refused(broken, dem, file, tag):
    path = only(broken, file)
    _, _, rest = path.read_text().partition("?>")
    path.write_text(f"<?xml version='1.0'?>{tag}{rest}")
    with pytest.raises(ValueError, match=rf"{path.name} declares the document type"):
        slc.covariance(broken, dem, square(CENTRE, 200))


def test_products_that_cannot_be_used(broken, dem, tmp_path):
    grid = square(CENTRE, 200)

    def refused(message, kind=ValueError):
        with pytest.raises(kind, match=message):
            slc.covariance(broken, dem, grid)

    manifest = broken / "manifest.safe"
    text = manifest.read_text()
    manifest.write_text(text.replace("<s1sarl1:mode>IW<", "<s1sarl1:mode>EW<"))
    refused("is a product of kind EW SLC: choose one of kind IW SLC")
    manifest.write_text(text.replace("<s1sarl1:productType>SLC<", "<s1sarl1:productType>GRD<"))
    refused("is a product of kind IW GRD")
    manifest.write_text(text[:500])
    refused("manifest.safe is not whole XML .* fetch the product again")
    manifest.unlink()
    refused("has no manifest.safe: give the folder of an unpacked", FileNotFoundError)
    manifest.write_text(text)
    vh = only(broken, "measurement/*vh*.tiff")
    contents = vh.read_bytes()
    vh.write_bytes(contents[: len(contents) // 2])
    refused(f"{vh.name} cannot be read whole .* fetch the product again")
    vh.unlink()
    refused("lacks VH of IW1: m-chi needs VV and VH, so choose a dual-polarisation product")
    only(broken, "measurement/*vv*.tiff").unlink()
    refused("has no VV and VH measurement of any IW sub-swath")


def test_a_file_cut_short_without_compression_is_refused(broken, dem):
    path = only(broken, "measurement/*vv*.tiff")
    with rasterio.open(path) as file:
        profile, values = file.profile | {"compress": None}, file.read()
        del profile["crs"], profile["transform"]
        profile |= {"gcps": file.gcps[0], "crs": file.gcps[1]}
    with rasterio.open(path, "w", **profile) as file:
        file.write(values)
    contents = path.read_bytes()
    path.write_bytes(contents[: len(contents) * 9 // 10])
    with pytest.raises(ValueError, match=f"{path.name} cannot be read whole .* fetch the product again"):
        slc.covariance(broken, dem, square(CENTRE, 200))


def test_places_that_do_not_fit(product, dem, tmp_path):
    grid = square(CENTRE, 200)
    with pytest.raises(ValueError, match=r"dem.tif covers .* but the grid needs .* give a larger elevation raster"):
        slc.covariance(product, dem, square(CENTRE, 3000))
    with pytest.raises(FileNotFoundError, match=r"none.tif is missing: give an elevation raster that covers the grid"):
        slc.covariance(product, tmp_path / "none.tif", grid)
    elsewhere = write_dem(tmp_path / "elsewhere.tif", (CENTRE[0] + 20000, CENTRE[1]), 600)
    with pytest.raises(ValueError, match=r"has no valid pixel on the grid: choose an acquisition over it"):
        slc.write(product, elsewhere, square((CENTRE[0] + 20000, CENTRE[1]), 200), tmp_path)
    assert not list(tmp_path.glob("sar/*"))
    away = CENTRE[0] + 400_000, CENTRE[1]
    with pytest.raises(ValueError, match=r"misses the grid .* choose an acquisition over it"):
        slc.covariance(product, write_dem(tmp_path / "away.tif", away, 600), square(away, 200))
