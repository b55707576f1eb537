"""The parts of the spread add up, simulated points share what they should, and refitting gives the shipped file."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from cropnb import data, points, profiles, twin

BANDS = list(points.BANDS)
CROPS = ("maize", "soybean")


def made_up_points(seed=0, regions=30, local=0.1, own=0.2):
    """Two crops that differ in one band; pairs of both in four cells of each region, which share `local`."""
    rng = np.random.default_rng(seed)
    number = np.arange(regions * 16)
    near = number // 4
    shared = local * rng.standard_normal((near.max() + 1, 1, 5))[near]
    values = np.array([-9.0, -16.0, 0.1, 0.3, 0.2]) * np.ones((len(number), 1, 1))
    values[number % 2 == 1, :, 3] *= 1.5
    noise = shared + own * rng.standard_normal(values.shape)
    values = np.where(np.arange(5) < 2, values + noise, values * np.exp(noise))
    names = {"group": near // 4, "cell": near // 2, "neighbourhood": near, "point": number}
    return xr.Dataset(
        {"values": (("point", "month", "band"), values)},
        {"month": [6], "band": BANDS, "crop": ("point", np.array(CROPS)[number % 2])}
        | {name: ("point", key.astype(str)) for name, key in names.items()},
    )


@pytest.fixture(scope="module")
def fitted():
    return profiles.fit(made_up_points(), crops=CROPS)


def test_a_fit_recovers_who_shares_what(fitted):
    """Planted: a fifth of the variance is the neighbourhood's, the rest the pixel's. Clipping at zero adds a little."""
    share = xr.DataArray([np.diag(m) for m in fitted["share"]], {"level": fitted["level"]}, ("level", "band"))
    np.testing.assert_allclose(share.sum("level"), 1, atol=0.2)
    assert float(share.sel(level="local").mean()) == pytest.approx(0.2, abs=0.08)
    assert float(share.sel(level="pixel").mean()) == pytest.approx(0.8, abs=0.12)
    nir = fitted["mean"].values[:, (fitted["band"] == "narrow_nir").values]
    np.testing.assert_allclose(np.exp(nir[1] - nir[0]), 1.5, rtol=0.15)


def test_simulated_points_share_what_their_cells_share(fitted):
    real = made_up_points()
    again = profiles.fit(profiles.simulate_like(real, fitted, np.random.default_rng(1)), crops=CROPS)
    np.testing.assert_allclose(again["mean"], fitted["mean"], atol=0.06)
    one, other = (np.diagonal(f["share"].values, axis1=1, axis2=2).mean(axis=1) for f in (fitted, again))
    np.testing.assert_allclose(other, one, atol=0.12)


def test_phi_moves_variance_between_the_two_levels_of_the_region():
    real = made_up_points()
    none, half = (profiles.fit(real, phi, CROPS)["share"] for phi in (0, 0.5))
    assert np.abs(none.sel(level="region_crop")).max() == 0
    np.testing.assert_allclose(half.sel(level="region"), half.sel(level="region_crop"), atol=1e-6)


def test_the_resource_is_whole_and_simulates():
    shipped = profiles.load()
    assert tuple(shipped["crop"].values) == points.CROPS
    assert profiles.RESOURCE.stat().st_size < 300_000
    share = np.diagonal(shipped["share"].sum("level").values)
    np.testing.assert_allclose(share, 1, atol=0.12)  # what is clipped to be a covariance adds a little


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from(points.CROPS))
def test_signals_are_physical(seed, crop):
    shipped = profiles.load()
    normals = {"parcel": np.random.default_rng(seed).standard_normal((50, 35))}
    season = profiles.signals(shipped, np.full(50, crop), normals)
    assert season.sizes == {"sample": 50, "month": 7, "band": 5}
    reflectance = season.sel(band=["red", "narrow_nir", "swir1"])
    assert ((reflectance > 0) & (reflectance <= 1)).all()
    assert season.sel(band=["vv_db", "vh_db"]).max() < 10


def test_a_field_keeps_of_the_pixel_level_what_does_not_vary_within_fields():
    shipped = profiles.load()
    for crop in points.CROPS:
        pixel, field = (np.square(profiles.root(shipped, crop, level)).sum(axis=1) for level in ("pixel", "field"))
        within = [np.sum(np.square(profiles.WITHIN_FIELD[band])) for band in shipped["band"].values.astype(str)]
        np.testing.assert_allclose(field, (pixel - within).clip(0), atol=1e-6)


def test_files_round_trip(fitted, tmp_path):
    profiles.write(fitted, tmp_path / "profiles.nc")
    xr.testing.assert_identical(fitted, profiles.load(tmp_path / "profiles.nc"))


def test_bad_input(fitted, tmp_path):
    with pytest.raises(ValueError, match="There is no profile of crop 'rice', only of maize, soybean"):
        profiles.root(fitted, "rice", "parcel")
    with pytest.raises(FileNotFoundError, match=r"none\.nc is missing; fit the profiles"):
        profiles.load(tmp_path / "none.nc")
    with pytest.raises(ValueError, match="0 points of 'rice' are too few"):
        profiles.fit(made_up_points(), crops=("rice",))


@pytest.mark.parametrize("trees", [None, 10])
def test_fidelity_notices_profiles_that_mix_crops_up(fitted, trees):
    sample = made_up_points()
    right = profiles.fidelity(sample, fitted, "country", ["all"], 0, draws=3, trees=trees)
    assert ((right["low"] < 0.05) & (right["high"] > -0.05)).all()
    same = fitted.copy(deep=True)
    same["mean"][:] = same["mean"].sel(crop="maize")
    wrong = profiles.fidelity(sample, same, "country", ["all"], 0, draws=3, trees=trees)
    assert wrong.loc["optical", "high"] < -0.2


def test_regions_have_enough_points_of_each_crop(monkeypatch):
    monkeypatch.setattr(profiles, "REGION_POINTS", 16)
    sample = made_up_points(regions=3).isel(point=slice(0, 40))
    assert profiles.regions_of(sample, "country") == ["all"]
    assert (
        len(profiles.regions_of(sample.assign_coords(crop=("point", np.resize(points.CROPS, 40))), "four crops")) == 2
    )
    assert profiles.regions_of(sample, "maize, soybean") == []


def test_no_rule_passes_the_ceiling_and_dates_between_the_same_months_add_nothing():
    shipped, shares = profiles.load(), twin.CROP_SHARES
    radar = [time for time, _ in twin.acquisition_times()]
    table = profiles.ceiling(shipped, shares, radar, ["2017-06-10", "2017-07-20"], 1, 3, 600)
    estimate = table.set_index(["scenario", "kind"])["estimate"].to_xarray().to_pandas()
    assert (estimate["likelihood"] >= estimate["discriminant"] - 0.02).all()
    assert estimate.loc["both", "likelihood"] >= estimate["likelihood"].max() - 0.02
    assert ((table["low"] <= table["estimate"]) & (table["estimate"] <= table["high"])).all()
    weights = profiles.between_months(["2017-06-15", "2017-06-30"], np.arange(4, 11))
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    np.testing.assert_allclose(weights[0], np.eye(7)[2])


def test_what_differs_within_fields_is_told_from_noise():
    """Planted: 0.3 constant, 0.4 alike within weeks, noise of 1 on each date; 3,000 pixels a field."""
    rng = np.random.default_rng(0)
    parcels = np.repeat([[1, 2, 0]], 60, axis=0).repeat(50, axis=1)
    days = pd.to_datetime(["2017-05-01", "2017-05-13", "2017-08-01", "2017-08-13"])
    constant, changing = rng.standard_normal((1, 60, 150)), rng.standard_normal((2, 60, 150)).repeat(2, axis=0)
    values = 0.3 * constant + 0.4 * changing + rng.standard_normal((4, 60, 150)) + 5 * parcels
    found = profiles.within_fields(xr.DataArray(values, {"time": days}, ("time", "y", "x")), parcels)
    assert found["date"] == pytest.approx(np.sqrt(1.25), rel=0.05)
    assert found["near"] == pytest.approx(0.5, rel=0.05)
    assert found["far"] == pytest.approx(0.3, rel=0.1)
    assert abs(found["neighbour"]) < 0.05


def test_refitting_the_real_points_gives_the_shipped_file():
    if not data.is_available(points.DATASET):
        pytest.skip("canada_2017_points is not in the cache; `make data` fetches it")
    xr.testing.assert_allclose(profiles.fit(points.read()), profiles.load(), rtol=1e-4, atol=1e-5)
