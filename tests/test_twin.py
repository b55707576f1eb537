import hashlib
import json
from types import SimpleNamespace

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import xarray as xr
from odc.geo.geobox import GeoBox
from shapely.geometry import box

from cropnb import acquisitions, cube, profiles, twin

MONTHS = np.arange(4, 11)
TRACKS = {"A": ("2017-05-05T21:42", 2), "B": ("2017-05-10T21:50", 1)}
CLOUD = {"2017-06-10": 0.02, "2017-06-30": 0.7}


def made_up():
    """Seasons that rise by 1 dB a month, VH 7 dB under VV; every crop and parcel alike."""
    vv = -14.0 + MONTHS - 4
    planes = [vv, vv - 7, *(np.full(7, np.log(value)) for value in (0.08, 0.3, 0.2))]
    crops, levels = list(twin.CROP_SHARES), [*profiles.LEVELS]
    mean = np.broadcast_to(np.stack(planes, -1).ravel(), (len(crops), 35))
    return xr.Dataset(
        {
            "mean": (("crop", "feature"), mean),
            "covariance": (("crop", "feature", "feature_"), np.zeros((len(crops), 35, 35)) + 1e-12 * np.eye(35)),
            "share": (("level", "band_of", "band_to"), np.ones((len(levels), 5, 5))),
        },
        {
            "crop": crops,
            "level": levels,
            "month": ("feature", np.repeat(MONTHS, 5)),
            "band": ("feature", np.tile(twin.BANDS, 7)),
        },
    )


@pytest.fixture
def made_up_profiles(monkeypatch):
    monkeypatch.setattr(profiles, "load", made_up)


@pytest.fixture
def region(tmp_path, made_up_profiles):
    return write(tmp_path / "region")


def write(folder, **changes):
    return twin.write(folder, **({"size": 800, "tracks": TRACKS, "cloud_cover": CLOUD} | changes))


def hashes(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_the_same_bytes(region, tmp_path):
    assert hashes(write(tmp_path / "again")) == hashes(region)
    other = hashes(write(tmp_path / "other", seed=1))
    assert all(other[name] != value for name, value in hashes(region).items())


def test_a_date_more_changes_no_other_date(region, tmp_path):
    longer = hashes(write(tmp_path / "longer", tracks={"A": ("2017-05-05T21:42", 2), "B": ("2017-05-10T21:50", 2)}))
    same = {name: value for name, value in hashes(region).items() if name != "region.json"}
    assert same == {name: longer[name] for name in same}
    assert len(longer) == len(same) + 3


def test_files_of_a_region(region):
    names = set(hashes(region))
    assert {f"sar/S1_20170505T2142_{p}.tif" for p in ("VV", "VH")} <= names
    assert {f"optical/S2_20170610/{b}.tif" for b in ("B04_10m", "B8A_20m", "B11_20m", "SCL_20m")} <= names
    assert {"parcels.parquet", "cropland.tif", "region.json"} <= names
    assert len(names) == 3 * 2 + 2 * 4 + 3
    record = json.loads((region / "region.json").read_text())
    assert record["simulated"] is True
    assert record["crs"] == "EPSG:32652"
    with rasterio.open(region / "sar" / "S1_20170505T2142_VV.tif") as file:
        assert file.dtypes == ("complex_int16",)
        assert file.res == (2.5, 10)
        assert list(file.bounds) == record["bounds"]
        assert file.tags()["calibration"] == str(twin.CALIBRATION)
    for name, step in (("B04_10m", 10), ("B8A_20m", 20), ("SCL_20m", 20)):
        with rasterio.open(region / "optical" / "S2_20170610" / f"{name}.tif") as file:
            assert file.res == (step, step)
            assert file.nodata == 0
            assert file.read(1).min() > 0


def test_default_dates_and_place_are_the_papers():
    times = [time for time, _ in twin.acquisition_times()]
    assert len(times) == 23
    assert times == sorted(set(times))
    assert {time.month for time in times} == {5, 6, 7, 8, 9}
    left, bottom, right, top = twin.square((126.80, 48.15), 6000, "EPSG:32652")
    assert (right - left, top - bottom) == (6000, 6000)
    west, south, east, north = rasterio.warp.transform_bounds("EPSG:32652", "EPSG:4326", left, bottom, right, top)
    assert 126 + 16 / 60 < west < east < 127 + 53 / 60
    assert 47 + 35 / 60 < south < north < 48 + 33 / 60


def test_parcels_have_the_papers_sizes_and_shares(tmp_path, made_up_profiles):
    """Figure 2 and section 2. Mean size within 15 % (1,700 log-normal draws scatter by 3 %, the edge costs 5 %);
    shares by area within half a percentage point."""
    parcels = gpd.read_parquet(write(tmp_path / "region", size=6000, tracks={}, cloud_cover={}) / "parcels.parquet")
    areas = parcels.area / 1e4
    assert areas.mean() == pytest.approx(twin.MEAN_PARCEL_HA, rel=0.15)
    assert 0.002 < (areas > 9).mean() < 0.02
    shares = areas.groupby(parcels.crop).sum() / areas.sum()
    assert shares.to_dict() == pytest.approx(twin.CROP_SHARES, abs=0.005)
    assert parcels.is_valid.all()
    assert parcels.parcel_id.is_unique
    # Neighbours share sides and nothing else.
    assert parcels.union_all().area == pytest.approx(parcels.area.sum(), rel=1e-6)


def test_bounds_widen_to_the_20_m_grid(tmp_path, made_up_profiles):
    left, bottom, right, top = json.loads((write(tmp_path / "region", size=690) / "region.json").read_text())["bounds"]
    assert right - left == top - bottom == 720
    assert left % 20 == bottom % 20 == 0


def test_parcels_lie_inside_the_region_and_its_cropland(region):
    record = json.loads((region / "region.json").read_text())
    parcels = gpd.read_parquet(region / "parcels.parquet")
    assert parcels.within(box(*record["bounds"])).all()
    with rasterio.open(region / "cropland.tif") as file:
        cropland = file.read(1)
        inside = parcels.buffer(-8)
        inside = inside[~inside.is_empty]
        inner = rasterio.features.geometry_mask(inside, cropland.shape, file.transform, invert=True)
    assert set(np.unique(cropland)) == {0, 1}
    assert cropland[inner].all()


def test_planted_backscatter_and_correlation_are_in_the_slc(tmp_path):
    """One field, 1 km wide. 40,000 independent looks: the mean of VV has a relative standard error of 0.5 %."""
    signal = np.broadcast_to(np.float32([-10, -17, 0.1, 0.3, 0.2]), (1, 7, 5))
    scene = twin.Scene(
        ids=np.zeros((400, 400), "int32"),
        texture=np.zeros((7, 5, 100, 100), "float32"),
        months=MONTHS.astype(float),
        signal=signal,
        shift=np.zeros(1),
        rho=np.array([0.3j], "complex64"),
        grid=GeoBox.from_bbox((0, 0, 1000, 1000), "EPSG:32652", resolution=10),
        seed=3,
    )
    twin._write_radar(tmp_path, twin.acquisition_times()[0][0], "A", scene)
    vv, vh = (rasterio.open(next(tmp_path.glob(f"sar/*{p}.tif"))).read(1) / twin.CALIBRATION for p in ("VV", "VH"))
    assert np.mean(abs(vv) ** 2) == pytest.approx(10**-1.0, rel=0.02)
    assert np.mean(abs(vh) ** 2) == pytest.approx(10**-1.7, rel=0.02)
    # Fully developed single-look speckle: the standard deviation of intensity is its mean.
    assert np.std(abs(vv) ** 2) == pytest.approx(np.mean(abs(vv) ** 2), rel=0.05)
    # The correlation of VV and VH, standard error 0.005.
    rho = np.mean(vv * vh.conj()) / np.sqrt(np.mean(abs(vv) ** 2) * np.mean(abs(vh) ** 2))
    assert rho == pytest.approx(0.3j, abs=0.02)


def test_the_covariance_is_that_of_the_single_look_images(region, tmp_path):
    """The same four looks: equal but for the rounding of the images to whole numbers."""
    looks = write(tmp_path / "looks", covariance=True)
    one, other = (acquisitions.find(folder).query("sensor == 'sar'").files.iloc[0] for folder in (region, looks))
    assert list(other) == ["c2"]
    window = slice(0, 80), slice(0, 80)
    images = cube.c2_from_slc(one, *window)
    with rasterio.open(other["c2"]) as file:
        for name, plane in zip(file.descriptions, file.read(), strict=True):
            np.testing.assert_allclose(plane, images[name], atol=2e-3 * float(images["c11"].mean()))


def test_pixels_of_a_field_differ_as_asked(made_up_profiles):
    texture = twin._within_fields((200, 200), 7, np.random.default_rng(0))
    for i, band in enumerate(twin.BANDS):
        constant, changing = profiles.WITHIN_FIELD[band]
        assert texture[:, i].std() == pytest.approx(np.hypot(constant, changing), rel=0.03)
        assert texture[:, i].mean(axis=0).std() == pytest.approx(np.hypot(constant, changing / np.sqrt(7)), rel=0.05)


def test_neighbours_share_what_lies_around_them():
    """Fields within 500 m look more alike than fields over 2 km apart, whatever grows on them."""
    rng = np.random.default_rng(0)
    objects = twin.layout((0, 0, 6000, 6000), rng)
    objects["crop"] = np.where(objects.cover == "field", "soybean", "")
    months, signal, _, _ = twin._seasons(objects, profiles.load(), rng)
    fields = np.flatnonzero(objects.cover == "field")
    red = np.log(signal[1 + fields, 3, 2])
    x, y = objects.centroid.x[fields].to_numpy(), objects.centroid.y[fields].to_numpy()
    apart = np.hypot(np.subtract.outer(x, x), np.subtract.outer(y, y))
    squared = np.subtract.outer(red, red) ** 2
    assert months.tolist() == MONTHS.tolist()
    assert squared[(apart > 0) & (apart < 500)].mean() < 0.85 * squared[apart > 2000].mean()


def test_seasons_follow_the_months_and_the_sowing_date():
    """A signal of 1 dB a month: 1 June is 16 days past mid-May; sowing a month later moves back a month."""
    signal = np.broadcast_to(MONTHS[None, :, None].astype("float32"), (2, 7, 5))
    scene = SimpleNamespace(months=MONTHS.astype(float), signal=signal, shift=np.array([0, 30.4]))
    now = twin._on_date(scene, twin.pd.Timestamp("2017-06-01"))[:, 0]
    assert now == pytest.approx([6 - 14 / 30.4, 5 - 14 / 30.4], abs=1e-5)


def test_edge_pixels_mix_and_clouds_cover_what_was_asked(region):
    cloud, shadow = twin._clouds((200, 200), 0.3, np.random.default_rng(0))
    assert (cloud > 0).mean() == pytest.approx(0.3, abs=0.001)
    assert not (shadow[cloud > 0]).any()
    halves = np.array([[1.0, 1, 0, 0]] * 4)
    assert twin._coarsen(halves, 4) == pytest.approx(0.5)
    with rasterio.open(region / "optical" / "S2_20170630" / "SCL_20m.tif") as file:
        assert np.isin(file.read(1), (8, 9)).mean() > 0.65


def test_an_earlier_twin_is_replaced_and_nothing_else(region, tmp_path):
    write(region, tracks={"A": ("2017-05-05T21:42", 1)})
    assert len(list((region / "sar").glob("*.tif"))) == 2
    assert not list(tmp_path.glob(".*partial"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "labels.gpkg").touch()
    with pytest.raises(ValueError, match=r"mine holds files that no twin wrote; give an empty folder"):
        write(tmp_path / "mine")
    assert (tmp_path / "mine" / "labels.gpkg").exists()


def test_a_failed_write_leaves_nothing_that_looks_whole(tmp_path, made_up_profiles, monkeypatch):
    monkeypatch.setattr(twin, "_write_optical", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "region")
    assert not (tmp_path / "region").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_shares": {"maize": 0.4, "soybean": 0.4}}, r"crop_shares sum to 0.800; change them to sum to 1"),
        ({"size": 200}, r"200 x 200 m is too small; give 600 m or more"),
    ],
)
def test_bad_parameters(tmp_path, made_up_profiles, change, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "region", **change)


def test_missing_profiles_say_so(tmp_path, monkeypatch):
    missing = tmp_path / "crop_profiles.nc"
    load = profiles.load
    monkeypatch.setattr(profiles, "load", lambda: load(missing))
    with pytest.raises(FileNotFoundError, match=r"crop_profiles\.nc is missing"):
        write(tmp_path / "region")


def test_shadows_fall_to_the_north_west_of_their_clouds():
    """The overpass is in the morning, north of the tropics: 200 m to the north (up) and 150 m to the west (left)."""
    cloud, shadow = twin._clouds((200, 200), 0.2, np.random.default_rng(3))
    rows, columns = np.nonzero(shadow)
    inside = (rows < 180) & (columns < 185)
    assert inside.sum() > 100
    assert (cloud[rows[inside] + 20, columns[inside] + 15] > 0).all()
    assert not (shadow.astype(bool) & (cloud > 0)).any()
