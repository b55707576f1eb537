"""Draws follow the mixture, the file is small and complete, and refitting the real points gives it again."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from cropnb import data, points, profiles

BANDS = list(points.BANDS)


def made_up_points(seed=0, each=100, months=(6,)):
    """Two crops that differ in one band, in the layout of `points.read`."""
    rng = np.random.default_rng(seed)
    centre = np.array([-9.0, -16.0, 0.1, 0.3, 0.2])
    values = centre * np.exp(0.2 * rng.standard_normal((2 * each, len(months), 5)))
    values[each:, :, 3] *= 1.5
    return xr.Dataset(
        {"values": (("point", "month", "band"), values)},
        coords={
            "month": list(months),
            "band": BANDS,
            "crop": ("point", np.repeat(["maize", "wheat"], each)),
        },
    )


@pytest.fixture(scope="module")
def fitted():
    return profiles.fit(made_up_points(), 0, crops=("maize", "wheat"))


def test_a_fit_recovers_what_made_the_points(fitted):
    assert fitted["weight"].sum("component").values == pytest.approx([1, 1], abs=1e-6)
    assert (fitted["weight"] > 0).sum("component").values.tolist() == [1, 1]  # one Gaussian made them
    nir = fitted["mean"].isel(component=0).values[:, (fitted["band"] == "narrow_nir").values]
    np.testing.assert_allclose(np.exp(nir[1] - nir[0]), 1.5, rtol=0.15)


def test_the_resource_is_whole_and_draws():
    shipped = profiles.load()
    assert tuple(shipped["crop"].values) == points.CROPS
    assert profiles.RESOURCE.stat().st_size < 300_000
    assert shipped["weight"].sum("component").values == pytest.approx(np.ones(4), abs=1e-6)
    drawn = profiles.draw(shipped, "wheat", 500, np.random.default_rng(0))
    assert drawn.dims == ("sample", "month", "band")
    assert drawn.shape == (500, 7, 5)
    assert list(drawn["month"].values) == list(points.MONTHS)
    assert list(drawn["band"].values) == BANDS


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from(points.CROPS))
def test_draws_are_physical_and_repeat_with_the_seed(seed, crop):
    shipped = profiles.load()
    drawn = profiles.draw(shipped, crop, 50, np.random.default_rng(seed))
    reflectance = drawn.sel(band=["red", "narrow_nir", "swir1"])
    assert ((reflectance > 0) & (reflectance <= 1)).all()
    assert drawn.sel(band=["vv_db", "vh_db"]).max() < 10
    xr.testing.assert_identical(drawn, profiles.draw(shipped, crop, 50, np.random.default_rng(seed)))


def test_draws_have_the_moments_of_the_mixture(fitted):
    one = fitted.sel(crop="maize").isel(component=0)
    drawn = profiles.draw(fitted, "maize", 20_000, np.random.default_rng(1))
    back = drawn.where(drawn["band"].str.endswith("_db"), np.log(drawn.where(drawn > 0))).values
    flat = back.reshape(len(drawn), -1)
    np.testing.assert_allclose(flat.mean(axis=0), one["mean"], atol=0.05)
    np.testing.assert_allclose(np.cov(flat.T), one["covariance"], atol=0.3)


def test_files_round_trip(fitted, tmp_path):
    profiles.write(fitted, tmp_path / "profiles.nc")
    xr.testing.assert_identical(fitted, profiles.load(tmp_path / "profiles.nc"))


def test_bad_input(fitted, tmp_path):
    with pytest.raises(ValueError, match="no profile for crop 'rice'; there are maize, wheat"):
        profiles.draw(fitted, "rice", 1, np.random.default_rng(0))
    with pytest.raises(FileNotFoundError, match=r"none\.nc is missing; fit the profiles"):
        profiles.load(tmp_path / "none.nc")
    with pytest.raises(ValueError, match="0 points of 'rice' are too few"):
        profiles.fit(made_up_points(), 0, crops=("rice",))


def test_fidelity_notices_profiles_that_mix_crops_up(fitted):
    sample = made_up_points()
    right = profiles.fidelity(sample, fitted, 0, draws=2, trees=20)
    assert (right["difference"].abs() < 0.1).all()
    same = fitted.copy(deep=True)
    same["mean"][:] = same["mean"].sel(crop="maize")
    wrong = profiles.fidelity(sample, same, 0, draws=2, trees=20)
    assert wrong.loc["optical", "difference"] < -0.2
    assert isinstance(wrong, pd.DataFrame)


def test_refitting_a_crop_of_the_real_points_gives_the_shipped_file():
    if not data.is_available(points.DATASET):
        pytest.skip("canada_2017_points is not in the cache; `make data` fetches it")
    shipped = profiles.load()
    again = profiles.fit(points.read(), int(shipped.attrs["seed"]), crops=("other",))
    xr.testing.assert_allclose(again, shipped.sel(crop=["other"]), rtol=1e-4)
