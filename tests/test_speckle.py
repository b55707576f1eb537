"""Speckle filters: what they keep, what they smooth, missing pixels, and equality in blocks and in one piece."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cropnb import polarimetry, speckle


def image(array, **dims):
    return xr.DataArray(np.asarray(array), dims=(*dims, "y", "x")[-np.ndim(array) :])


def exponential(shape, seed=0, dims=("y", "x")):
    return xr.DataArray(np.random.default_rng(seed).exponential(size=shape), dims=dims)


def covariance(shape, vh=0.2, seed=0):
    rng = np.random.default_rng(seed)
    scale = np.sqrt([1.0, vh])[:, np.newaxis, np.newaxis] / np.sqrt(2)
    vv, vh = scale * (rng.standard_normal((2, *shape)) + 1j * rng.standard_normal((2, *shape)))
    return polarimetry.covariance(xr.DataArray(vv, dims=("y", "x")), xr.DataArray(vh, dims=("y", "x")))


def slow_refined_lee(image, looks=None, darker=False):
    """The facts page's description of one pixel, 7x7, written out for an interior pixel's window."""
    side = [("left", "right"), ("upper right", "lower left"), ("up", "down"), ("upper left", "lower right")]
    y, x = np.mgrid[-3:4, -3:4]
    mask = {
        "left": x <= 0,
        "right": x >= 0,
        "up": y <= 0,
        "down": y >= 0,
        "upper right": y <= x,
        "lower left": y >= x,
        "upper left": x + y <= 0,
        "lower right": x + y >= 0,
    }
    boxes = np.array([[image[i : i + 3, j : j + 3] for j in (0, 2, 4)] for i in (0, 2, 4)])
    m = boxes.mean((2, 3))
    normalised = boxes.var((2, 3), ddof=1) / m**2
    s2 = np.sort(normalised.ravel())[:5].mean() if looks is None else 1 / looks
    pairs = [
        ((m[0, 0], m[1, 0], m[2, 0]), (m[0, 2], m[1, 2], m[2, 2])),
        ((m[0, 1], m[0, 2], m[1, 2]), (m[1, 0], m[2, 0], m[2, 1])),
        ((m[0, 0], m[0, 1], m[0, 2]), (m[2, 0], m[2, 1], m[2, 2])),
        ((m[0, 0], m[0, 1], m[1, 0]), (m[1, 2], m[2, 1], m[2, 2])),
    ]
    middles = [(m[1, 0], m[1, 2]), (m[0, 2], m[2, 0]), (m[0, 1], m[2, 1]), (m[0, 0], m[2, 2])]
    gradients = [abs(sum(a) - sum(b)) for a, b in pairs] if darker else [abs(a - b) for a, b in middles]  # as SNAP
    k = int(np.argmax(gradients))
    if darker:
        first = sum(pairs[k][0]) < sum(pairs[k][1])
    else:
        first = abs(middles[k][0] - m[1, 1]) < abs(middles[k][1] - m[1, 1])
    half = mask[side[k][0 if first else 1]]
    assert half.sum() == 28
    mean, variance = image[half].mean(), image[half].var(ddof=1)
    weight = max(0, (variance - mean**2 * s2) / (1 + s2)) / variance
    return half, weight, mean + weight * (image[3, 3] - mean)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.sampled_from([None, 1, 4]))
def test_refined_lee_is_the_description(seed, looks):
    window = exponential((7, 7), seed)
    window[:, 4:] *= 1 + seed % 5
    expected = slow_refined_lee(window.values, looks)[2]
    assert speckle.refined_lee(window, looks=looks)[3, 3].item() == pytest.approx(expected, rel=1e-12)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.sampled_from([1, 4]))
def test_polarimetric_filter_weighs_all_elements_alike(seed, looks):
    c2 = covariance((7, 7), seed=seed)
    half, weight, _ = slow_refined_lee((c2.c11 + c2.c22).values, looks, darker=True)
    filtered = speckle.refined_lee_c2(c2, looks)
    for name in polarimetry.C2:
        mean = c2[name].values[half].mean()
        expected = mean + weight * (c2[name].values[3, 3] - mean)
        assert filtered[name][3, 3].item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


@settings(deadline=None, max_examples=25)
@given(hnp.arrays(np.float64, (9, 11), elements=st.floats(1e-3, 1e3)), st.floats(0.01, 100))
def test_filters_keep_range_and_scale(values, scale):
    plane = image(values)
    filtered = speckle.refined_lee(plane)
    rounding = 1e-12 * values.max()
    assert float(filtered.min()) >= values.min() - rounding
    assert float(filtered.max()) <= values.max() + rounding
    # A rounding may turn a tie of gradients, so compare where a power of two makes rounding equal.
    power = 2.0 ** np.round(np.log2(scale))
    np.testing.assert_array_equal(speckle.refined_lee(plane * power), filtered * power)


def test_constant_area_and_step_edge_stay():
    np.testing.assert_allclose(speckle.refined_lee(image(np.full((9, 9), 3.0))), 3.0)
    step = image(np.where(np.arange(20) < 10, 1.0, 8.0) * np.ones((20, 1)))
    np.testing.assert_allclose(speckle.refined_lee(step, looks=4)[3:-3, 3:-3], step[3:-3, 3:-3])


def test_covariance_stays_a_covariance():
    filtered = speckle.refined_lee_c2(covariance((40, 40)), looks=1)
    determinant = filtered.c11 * filtered.c22 - filtered.c12_real**2 - filtered.c12_imag**2
    assert float(determinant.min()) > 0
    assert set(filtered) == set(polarimetry.C2)
    assert filtered.c11.attrs["units"] == "1"


def test_speckle_is_smoothed():
    raw = exponential((8, 100, 100), dims=("time", "y", "x"))
    spatial, temporal = speckle.refined_lee(raw, looks=1), speckle.multi_temporal(raw, looks=1)
    looks = [float(speckle.equivalent_number_of_looks(a).mean()) for a in (raw, spatial, temporal)]
    # Single-look intensity has one look; 28 pixels of which the weight keeps some, well above five; the temporal mean
    # of eight dates is below eight, because the ratios have the speckle of one look each.
    assert looks[0] == pytest.approx(1, abs=0.05)
    assert looks[1] > 5
    assert 3 < looks[2] < 8


def test_multi_temporal_is_its_equation():
    series = exponential((4, 12, 12), dims=("time", "y", "x"))
    spatial = speckle.refined_lee(series)
    expected = spatial * (series / spatial).mean("time")
    np.testing.assert_allclose(speckle.multi_temporal(series), expected, rtol=1e-12)
    single = series.isel(time=[0])
    np.testing.assert_allclose(speckle.multi_temporal(single), single, rtol=1e-12)


def test_polarimetric_filter_darkens_homogeneous_speckle():
    # 400 x 400 pixels of about ten looks: standard error 0.1 % of the mean, neighbours' correlation included below 1 %.
    c2 = covariance((400, 400))
    filtered = speckle.refined_lee_c2(c2, looks=1)
    inner = {"y": slice(3, -3), "x": slice(3, -3)}
    change = {name: float(filtered[name].isel(inner).mean() / c2[name].isel(inner).mean()) for name in ("c11", "c22")}
    assert change["c11"] - 1 == pytest.approx(-0.13, abs=0.01)
    assert change["c22"] - 1 == pytest.approx(-0.03, abs=0.01)
    assert 10 * np.log10(change["c22"] / change["c11"]) == pytest.approx(0.49, abs=0.05)


def filters():
    return [
        lambda p: speckle.refined_lee(p),
        lambda p: speckle.refined_lee(p, window=5, looks=4),
        lambda p: speckle.multi_temporal(p, looks=4),
        lambda p: speckle.refined_lee_c2(
            xr.Dataset({"c11": p, "c22": 0.2 * p, "c12_real": 0.1 * p, "c12_imag": 0 * p}), 4
        ),
    ]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("run", filters())
def test_blocks_equal_the_whole_exactly(run, dtype):
    series = exponential((3, 31, 45), dims=("time", "y", "x")).astype(dtype)
    series[0, 12, 20], series[1, :, 40] = np.nan, 0.0
    whole = run(series)
    for chunks in ({"y": 8, "x": 11}, {"y": (2, 28, 1), "x": (1, 1, 43)}, {"time": 1, "y": 10}):
        lazy = run(series.chunk(chunks))
        assert lazy.chunks
        xr.testing.assert_identical(lazy.compute(), whole)


@pytest.mark.parametrize("run", filters())
def test_missing_pixels_stay_missing_and_do_not_spread(run):
    series = exponential((2, 20, 20), dims=("time", "y", "x"))
    series[0, 5:7, 5:7] = np.nan
    filtered = run(series)
    planes = filtered.values() if isinstance(filtered, xr.Dataset) else [filtered]
    for plane in planes:
        np.testing.assert_array_equal(np.isnan(plane), np.isnan(series))


def test_windows_use_valid_pixels_only():
    plane = exponential((20, 20))
    cut = speckle.refined_lee(plane[:, 5:].copy())
    masked = speckle.refined_lee(plane.where(plane.x >= 5))
    np.testing.assert_array_equal(masked[:, 5:], cut)


def test_bad_input_is_answered_in_one_sentence():
    plane = exponential((8, 8))
    with pytest.raises(ValueError, match=r"\['x'\] is missing from \('y', 'column'\)"):
        speckle.refined_lee(plane.rename(x="column"))
    with pytest.raises(ValueError, match="A window of 6 pixels has no centre: choose an odd size such as 7"):
        speckle.refined_lee(plane, window=6)
    with pytest.raises(ValueError, match=r"no window of 3 pixels: choose one of \[5, 7, 9, 11\]"):
        speckle.refined_lee(plane, window=3)
    with pytest.raises(ValueError, match="number of looks must be positive, not 0"):
        speckle.refined_lee(plane, looks=0)
    with pytest.raises(ValueError, match="needs real intensity, not complex128"):
        speckle.refined_lee(plane * 1j)
    with pytest.raises(ValueError, match="holds no valid pixel: leave this acquisition or area out"):
        speckle.refined_lee(plane * np.nan)
    with pytest.raises(ValueError, match=r"needs a time dimension: it was given \('y', 'x'\)"):
        speckle.multi_temporal(plane)
    with pytest.raises(ValueError, match=r"The covariance lacks \['c22', 'c12_real', 'c12_imag'\]"):
        speckle.refined_lee_c2(xr.Dataset({"c11": plane}), 1)


def test_single_band_equals_the_operator_of_snap():
    """Which estimates the speckle from the image: `looks` is None."""
    with np.load(Path(__file__).parent / "data" / "refined_lee_band.npz") as golden:
        power = xr.DataArray(abs(golden["vv"]) ** 2, dims=("y", "x"))
        expected = golden["refined_lee_snap"]
    inside = np.isfinite(expected)
    assert inside.sum() == 42 * 42
    np.testing.assert_allclose(speckle.refined_lee(power, window=7).values[inside], expected[inside], rtol=1e-12)
