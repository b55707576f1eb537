"""Areas: the paper's worked example, truth inside the intervals as often as promised, samples drawn as said."""

import numpy as np
import pandas as pd
import pytest
import rasterio
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from cropnb.evaluation import areas

# Olofsson et al. (2014), Table 8: 640 samples, pixels of 30 m
CLASSES = ["deforestation", "forest gain", "stable forest", "stable non-forest"]
COUNTS = [[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]]
PIXELS = [200_000, 150_000, 3_200_000, 6_450_000]
HECTARES = 0.09
# Digital Earth Australia's dea_tools on the same: areas and errors of `estimate_olofsson_area` (release after 0.4.10),
# points of each class by `xr_random_sampling(sampling="stratified_random")` for 200, 150, 3,200 and 6,450 pixels
DEA_AREA, DEA_ERROR = [21157.762, 11686.154, 285769.930, 581386.154], [3141.650, 1916.238, 7913.182, 8306.968]
DEA_POINTS = [13, 10, 205, 413]
# ppi-python 0.2.3 on `population`: estimate, and half the width of its 95 % interval with 1.96 errors on each side
PPI, CLASSICAL, TUNED = (0.377568, 0.0449431), (0.37, 0.0546345), (0.377534, 0.0449376)


def matrix(counts=COUNTS, classes=CLASSES):
    return pd.DataFrame(counts, classes, classes)


def half_width(table, name):
    return (table[f"{name}_high"] - table[f"{name}_low"]) / 2


def test_worked_example_of_the_paper():
    table = areas.estimate(matrix(), PIXELS, HECTARES)
    np.testing.assert_array_equal(table["area"].round(), [21_158, 11_686, 285_770, 581_386])
    np.testing.assert_array_equal(half_width(table, "area").round(), [6_158, 3_756, 15_510, 16_282])
    np.testing.assert_array_equal(table["users_accuracy"].round(2), [0.88, 0.73, 0.93, 0.96])
    np.testing.assert_array_equal(half_width(table, "users_accuracy").round(2), [0.07, 0.10, 0.04, 0.02])
    np.testing.assert_array_equal(table["producers_accuracy"].round(2), [0.75, 0.85, 0.93, 0.96])
    # The paper prints 0.23 for forest gain and 0.01 for stable non-forest where its eq (7) gives 0.25 and 0.02;
    # the next test writes that variance out another way.
    np.testing.assert_array_equal(half_width(table, "producers_accuracy").round(2).iloc[[0, 2]], [0.21, 0.03])
    low, overall, high = (table.attrs[f"overall_accuracy{end}"] for end in ("_low", "", "_high"))
    assert (round(overall - low, 2), round(overall, 2), round(high - overall, 2)) == (0.02, 0.95, 0.02)
    np.testing.assert_array_equal(table["mapped_area"], [18_000, 13_500, 288_000, 580_500])


def test_areas_and_errors_are_those_of_dea_tools():
    table = areas.estimate(matrix(), PIXELS, HECTARES)
    np.testing.assert_allclose(table["area"], DEA_AREA, atol=1e-3)
    np.testing.assert_allclose(half_width(table, "area"), np.multiply(1.96, DEA_ERROR), atol=2e-3)


def ratio_of_totals(y, x, stratum, pixels):
    """A ratio of totals and its error by linearisation, from single samples (Cochran 1977, section 6.11)."""
    y, x = pd.Series(y, dtype=float).groupby(stratum), pd.Series(x, dtype=float).groupby(stratum)
    ratio, bottom = (pixels * y.mean()).sum() / (pixels * x.mean()).sum(), (pixels * x.mean()).sum()
    residual = (y.obj - ratio * x.obj).groupby(stratum)
    return ratio, np.sqrt((pixels**2 * residual.var() / residual.size()).sum()) / bottom


@settings(deadline=None, max_examples=25)
@given(st.lists(st.lists(st.integers(1, 40), min_size=3, max_size=3), min_size=3, max_size=3), st.integers(0, 99))
def test_every_error_is_that_of_a_ratio_of_totals(counts, seed):
    pixels = np.random.default_rng(seed).integers(200, 100_000, 3)
    table = areas.estimate(matrix(counts, list("abc")), pixels, 1)
    mapped, reference = np.repeat(np.indices((3, 3)).reshape(2, -1), np.ravel(counts), axis=1)
    everything = np.ones(len(mapped), bool)
    for j, name in enumerate("abc"):
        right = (mapped == j) & (reference == j)
        for measure, top, bottom, scale in (
            ("area", reference == j, everything, pixels.sum()),
            ("users_accuracy", right, mapped == j, 1),
            ("producers_accuracy", right, reference == j, 1),
        ):
            value, error = ratio_of_totals(top, bottom, mapped, pixels)
            assert table.loc[name, measure] == pytest.approx(value * scale)
            assert half_width(table, measure)[name] == pytest.approx(1.96 * error * scale)
    overall, error = ratio_of_totals(mapped == reference, everything, mapped, pixels)
    assert table.attrs["overall_accuracy"] == pytest.approx(overall)
    assert table.attrs["overall_accuracy_high"] == pytest.approx(overall + 1.96 * error)


def test_true_areas_lie_in_the_intervals_as_often_as_promised():
    # a map that finds too much of the first class, and every pixel's truth known
    population = np.array([[6_000, 2_500, 1_500], [1_000, 40_000, 4_000], [500, 3_000, 41_500]])
    truth, pixels, rng = population.sum(axis=0), population.sum(axis=1), np.random.default_rng(0)
    assert abs(pixels - truth).max() > 2_000  # what counting pixels is off by
    right = np.diag(population)
    known = np.column_stack([truth, right / pixels, right / truth])  # area, user's, producer's accuracy
    estimates, held = [], []
    for _ in range(400):
        counts = [rng.multivariate_hypergeometric(row, 150) for row in population]
        table = areas.estimate(matrix(counts, list("abc")), pixels, 1)
        estimates.append(table["area"])
        low, high = table.filter(like="_low"), table.filter(like="_high")
        held.append((low.to_numpy() <= known) & (known <= high.to_numpy()))
    error = np.std(estimates, axis=0) / np.sqrt(len(estimates))
    assert (abs(np.mean(estimates, axis=0) - truth) < 4 * error).all()
    coverage = np.mean(held, axis=0)
    assert ((coverage > 0.90) & (coverage < 0.99)).all()


def test_areas_add_up_and_scale_and_follow_the_order_of_classes():
    table = areas.estimate(matrix(), PIXELS, HECTARES)
    assert table["area"].sum() == pytest.approx(sum(PIXELS) * HECTARES)
    pd.testing.assert_frame_equal(
        areas.estimate(matrix(), PIXELS, 10 * HECTARES).filter(like="area"), table.filter(like="area") * 10
    )
    turned = matrix().iloc[::-1, ::-1]
    by_name = areas.estimate(turned, dict(zip(CLASSES, PIXELS, strict=True)), HECTARES)
    pd.testing.assert_frame_equal(by_name.loc[CLASSES], table)
    pd.testing.assert_frame_equal(areas.estimate(turned, pd.Series(PIXELS, CLASSES), HECTARES), by_name)


def test_a_map_without_errors_has_its_own_areas():
    table = areas.estimate(matrix(np.diag([9, 8, 7, 6])), PIXELS, 1)
    for end in ("", "_low", "_high"):
        np.testing.assert_allclose(table[f"area{end}"], PIXELS)
        np.testing.assert_array_equal(table[f"users_accuracy{end}"], 1)
        np.testing.assert_allclose(table[f"producers_accuracy{end}"], 1)


def test_a_class_the_map_never_gives_still_has_an_area():
    table = areas.estimate(matrix([[40, 10], [0, 0]], ["a", "b"]), [1_000, 0], 1)
    assert table["area"].tolist() == pytest.approx([800, 200])
    assert np.isnan(table.loc["b", "users_accuracy"])
    assert table.loc["b", "producers_accuracy"] == 0
    absent = areas.estimate(matrix([[40, 0], [10, 0]], ["a", "b"]), [900, 100], 1)
    assert absent.loc["b", "area"] == 0
    assert np.isnan(absent.loc["b", "producers_accuracy"])


def test_a_found_sample_is_warned_about():
    with pytest.warns(UserWarning, match="no probability sample of the map.*areas.sample"):
        warned = areas.estimate(matrix(), PIXELS, HECTARES, probability_sample=False)
    pd.testing.assert_frame_equal(warned, areas.estimate(matrix(), PIXELS, HECTARES))


@pytest.mark.parametrize(
    ("counts", "pixels", "message"),
    [
        ([[5, 1], [0, 0]], [50, 50], "b has 0 samples of 50 mapped pixels; sample 2 or more"),
        ([[5, 1], [0, 1]], [50, 50], "b has 1 samples of 50 mapped pixels"),
        ([[5, 1], [3, 4]], [50, 6], "b has 7 samples of 6 mapped pixels"),
        ([[5, 1], [3, 4]], [50, 60, 70], "Give a count of mapped pixels for each of a, b"),
        ([[5, 1], [3, 4]], {"a": 50}, "Give a count of mapped pixels for each of a, b"),
        ([[5, 1], [-3, 4]], [50, 60], "none negative"),
        ([[0, 0], [0, 0]], [0, 0], "Give a count of mapped pixels"),
    ],
)
def test_bad_counts_are_refused(counts, pixels, message):
    with pytest.raises(ValueError, match=message):
        areas.estimate(matrix(counts, ["a", "b"]), pixels, 1)


def test_a_confusion_matrix_has_to_be_transposed():
    true_by_row = matrix().rename_axis(index="true", columns="predicted")
    with pytest.raises(ValueError, match="transpose"):
        areas.estimate(true_by_row, PIXELS, 1)
    areas.estimate(true_by_row.T, PIXELS, 1)
    with pytest.raises(ValueError, match="the same as columns"):
        areas.estimate(matrix().iloc[:, ::-1], PIXELS, 1)


def crop_map(shape=(60, 50), seed=0):
    codes = np.random.default_rng(seed).choice(4, shape, p=(0.3, 0.6, 0.08, 0.02)).astype("uint8")
    inside = np.zeros(shape, bool)
    inside[10:50, 5:45] = True
    return xr.DataArray(codes, dims=("y", "x")), xr.DataArray(inside, dims=("y", "x"))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.integers(100, 1600), st.integers(1, 25))
def test_sample_is_of_the_mask_without_repeats_and_as_large_as_asked(seed, n, minimum):
    codes, inside = crop_map()
    table = areas.sample(codes, inside, n, seed, minimum)
    assert len(table) == n
    assert not table.duplicated(["row", "col"]).any()
    assert inside.values[table["row"], table["col"]].all()
    np.testing.assert_array_equal(codes.values[table["row"], table["col"]], table["stratum"])
    pixels = pd.Series(table.attrs["mapped_pixels"])
    np.testing.assert_array_equal(pixels, np.bincount(codes.values[inside.values]))
    drawn, least = table["stratum"].value_counts().reindex(pixels.index), np.minimum(minimum, pixels)
    assert (drawn >= least).all()
    rest = (n - least.sum()) / (pixels - least).sum()
    assert (abs(drawn - least - rest * (pixels - least)) < 1).all()


def test_sample_repeats_itself_with_its_seed_alone():
    codes, inside = crop_map()
    pd.testing.assert_frame_equal(areas.sample(codes, inside, 200, 1, 20), areas.sample(codes, inside, 200, 1, 20))
    assert not areas.sample(codes, inside, 200, 1, 20).equals(areas.sample(codes, inside, 200, 2, 20))


def test_every_pixel_of_a_class_is_as_likely():
    codes = np.repeat([0, 1], 20).reshape(4, 10)
    times = np.zeros(codes.shape)
    for seed in range(1000):
        table = areas.sample(codes, codes < 2, 12, seed, minimum=2)
        times[table["row"], table["col"]] += 1
    # 6 of 20 each time: a standard deviation of 14.5 about 300
    assert abs(times - 300).max() < 5 * 14.5


def test_samples_lead_to_areas():
    codes, inside = crop_map(seed=3)
    truth = codes.where(np.random.default_rng(4).random(codes.shape) > 0.2, 1)
    table = areas.sample(codes, inside, 600, seed=5, minimum=20)
    reference = truth.values[table["row"], table["col"]].astype(int)
    counts = pd.crosstab(table["stratum"], reference).reindex(columns=range(4), fill_value=0)
    estimates = areas.estimate(counts, table.attrs["mapped_pixels"], 0.01)
    assert estimates["area"].sum() == pytest.approx(1600 * 0.01)
    assert table.attrs["mapped_pixels"][1] * 0.01 < estimates.loc[1, "area_low"]  # a fifth of the rest is class 1


def test_samples_that_cannot_be_drawn_are_refused():
    codes, inside = crop_map()
    with pytest.raises(ValueError, match=r"1601 pixels cannot be sampled.*to 1600 \(all\)"):
        areas.sample(codes, inside, 1601, 0)
    with pytest.raises(ValueError, match=r"ask for from \d+ \(50 of each of 4 classes\)"):
        areas.sample(codes, inside, 10, 0)
    with pytest.raises(ValueError, match="under the mask"):
        areas.sample(codes, inside & False, 10, 0)
    with pytest.raises(ValueError, match="give one grid"):
        areas.sample(codes, inside[:-1], 100, 0)


# Planning


def test_allocation_follows_size_spread_and_minimum():
    pixels = pd.Series({"maize": 6_000, "soybean": 3_000, "wheat": 900, "other": 100})
    assert areas.allocate(pixels, 100).tolist() == [60, 30, 9, 1]
    assert areas.allocate(pixels, 200, spread=1 / pixels).tolist() == [50, 50, 50, 50]
    assert areas.allocate(pixels, 300, minimum=50).tolist() == [50 + 61, 50 + 30, 50 + 9, 50]
    assert areas.allocate(pixels, 100, spread=pd.Series([0.1, 0.2, 0.2, 0.0])).tolist() == [44, 43, 13, 0]


def test_allocation_by_size_is_that_of_dea_tools_whose_rounding_adds_a_point():
    size = areas.allocate([200, 150, 3_200, 6_450], 640)
    assert np.abs(size - DEA_POINTS).tolist().count(0) == 3
    assert size.sum() == sum(DEA_POINTS) - 1 == 640


def test_a_full_stratum_passes_on_what_it_cannot_take():
    size = areas.allocate({"rare": 10, "common": 1_000}, 100, spread=np.array([1e9, 1.0]))
    assert size.to_dict() == {"rare": 10, "common": 90}
    assert areas.allocate({"rare": 10, "common": 20}, 30).tolist() == [10, 20]
    assert areas.allocate({"rare": 10, "common": 1_000}, 100, spread=0.0).sum() == 100


def test_neymans_allocation_gives_the_narrowest_interval():
    """Of all ways to share out the pixels, for the area of a class whose share in each stratum is known."""
    pixels, share = pd.Series([8_000.0, 2_000.0]), np.array([0.02, 0.5])

    def error(first, n=200):
        size = np.array([first, n - first])
        return (pixels**2 * share * (1 - share) / size).sum()

    best = min(range(10, 190), key=error)
    neyman = areas.allocate(pixels, 200, spread=pd.Series(np.sqrt(share * (1 - share))))
    assert abs(neyman[0] - best) <= 1


def test_a_sample_of_given_sizes():
    codes, inside = crop_map()
    table = areas.sample(codes, inside, {0: 5, 1: 7, 3: 2}, seed=0)
    assert table["stratum"].value_counts().to_dict() == {0: 5, 1: 7, 3: 2}
    with pytest.raises(ValueError, match="A class has fewer pixels under the mask"):
        areas.sample(codes, inside, {3: 1_000}, seed=0)


# Any strata, two maps, and predictions that help


def test_strata_that_are_not_the_maps_classes():
    """The example of Stehman (2014): ten pixels from each of four strata, and the results printed there."""
    strata = np.repeat(list("ABCD"), 10)
    mapped = np.array(list("AAAAAAABBBABBBBBBBBBBBCCCCCCBBDDDDDDDDDD"))
    true = np.array(list("AAAAACBABCABBBBBAABBCCCCCDDBBADDDDDDDCCB"))
    pixels = {"A": 40_000, "B": 30_000, "C": 20_000, "D": 10_000}
    both = (mapped == "B") & (true == "B")
    for top, bottom, estimate, error in (
        (true == "A", 1, 0.35, 0.082),
        (true == "C", 1, 0.20, 0.064),
        (mapped == true, 1, 0.63, 0.085),
        (both, mapped == "B", 0.574, 0.125),
    ):
        found = areas.ratio(top, bottom, strata, pixels)
        assert found["estimate"] == pytest.approx(estimate, abs=5e-4)
        assert (found["high"] - found["low"]) / 2 == pytest.approx(1.96 * error, abs=1e-3)
    found = areas.ratio(both, true == "B", strata, pixels)
    assert found["estimate"] == pytest.approx(0.794, abs=5e-4)
    _, error = ratio_of_totals(both, true == "B", strata, pd.Series(pixels))
    assert found["high"] - found["estimate"] == pytest.approx(1.96 * error)


def test_strata_of_the_maps_classes_give_the_usual_estimates():
    mapped, reference = np.repeat(np.indices((4, 4)).reshape(2, -1), np.ravel(COUNTS), axis=1)
    table, pixels = areas.estimate(matrix(), PIXELS, HECTARES), dict(enumerate(PIXELS))
    for code, name in enumerate(CLASSES):
        both = (mapped == code) & (reference == code)
        for measure, bottom in (("users_accuracy", mapped == code), ("producers_accuracy", reference == code)):
            found = areas.ratio(both, bottom, mapped, pixels)
            np.testing.assert_allclose(found, table.loc[name, [measure, f"{measure}_low", f"{measure}_high"]])
    found = areas.ratio(mapped == reference, 1, mapped, pixels)
    np.testing.assert_allclose(found["estimate"], table.attrs["overall_accuracy"])
    np.testing.assert_allclose(found["high"], table.attrs["overall_accuracy_high"])


def population(n=20_000, seed=0):
    """Probabilities, truth and map of a class, a share of it under-predicted."""
    rng = np.random.default_rng(seed)
    p = rng.beta(0.6, 1.2, n)
    return p, rng.random(n) < 0.9 * p + 0.05, p > 0.5


def test_assisted_is_prediction_powered_inference():
    """The numbers of ppi-python 0.2.3 for one stratum: `ppi_mean_ci`, whose variances divide by n and which adds
    the spread of a mean over all pixels, as if these were a sample too."""
    p, truth, _ = population()
    chosen = np.random.default_rng(1).choice(len(p), 300, replace=False)
    arguments = truth[chosen], p[chosen], {0: p.mean()}, np.zeros(300), {0: len(p)}
    for slope, golden in ((1.0, PPI), (0.0, CLASSICAL), (None, TUNED)):
        found = areas.assisted(*arguments, slope=slope)
        width = (found["high"] - found["estimate"]) ** 2 * 299 / 300
        width += 1.96**2 * (found["slope"] * p.std()) ** 2 / len(p)
        np.testing.assert_allclose([found["estimate"], np.sqrt(width)], golden, rtol=2e-3 if slope is None else 1e-4)


def test_assisted_is_unbiased_and_narrower_and_holds_as_often_as_promised():
    p, truth, mapped = population()
    pixels = {False: (~mapped).sum(), True: mapped.sum()}
    known = {code: p[mapped == code].mean() for code in pixels}
    found = {name: [] for name in ("stratified", "regression", "difference")}
    for seed in range(300):
        table = areas.sample(mapped[None].astype("uint8"), np.ones((1, len(p)), bool), 200, seed, 20)
        at = table["col"].to_numpy()
        for name, slope in (("stratified", 0.0), ("regression", None), ("difference", 1.0)):
            found[name].append(areas.assisted(truth[at], p[at], known, mapped[at], pixels, slope))
    for rows in map(pd.DataFrame, found.values()):
        assert rows["estimate"].mean() == pytest.approx(truth.mean(), abs=0.006)
        assert 0.91 < rows.eval(f"low <= {truth.mean()} <= high").mean() < 0.99
    width = {name: np.mean([row["high"] - row["low"] for row in rows]) for name, rows in found.items()}
    assert width["regression"] < width["stratified"]
    assert width["regression"] < 1.005 * width["difference"]
    stratified = areas.ratio(truth[at], 1, mapped[at], pixels)
    pd.testing.assert_series_equal(stratified, found["stratified"][-1].drop("slope"))


def test_a_prediction_that_never_varies_helps_nothing():
    found = areas.assisted([1, 0, 1, 1], [0.5] * 4, {0: 0.5}, [0] * 4, {0: 100})
    assert found["slope"] == 0
    assert found["estimate"] == 0.75


def test_strata_without_enough_samples_are_refused():
    for stratum, pixels in (([0, 0, 1], {0: 9, 1: 9}), ([0, 0, 0], {0: 9, 1: 9}), ([0, 0, 1], {0: 9})):
        with pytest.raises(ValueError, match="Every stratum needs a count of its pixels and two samples"):
            areas.ratio([1, 0, 1], 1, stratum, pixels)


# Points for the field


def test_points_go_out_without_the_maps_class_and_come_back_labelled(tmp_path):
    import geopandas as gpd
    from odc.geo.geobox import GeoBox

    grid = GeoBox((60, 50), rasterio.Affine(10, 0, 333380, 0, -10, 5338320), "EPSG:32652")
    codes, inside = crop_map()
    table = areas.sample(codes, inside, 100, 1, 10)
    path = areas.write_points(table, grid, tmp_path / "field" / "points.gpkg")
    points = gpd.read_file(path)
    assert set(points.columns) == {"id", "row", "col", "reference", "geometry"}
    assert points.crs == grid.crs
    first = table.iloc[0]
    assert points.geometry[0].coords[0] == (333385 + 10 * first["col"], 5338315 - 10 * first["row"])
    with pytest.raises(ValueError, match="point 0 has the reference '', 100 in all; give maize, soybean"):
        areas.read_points(path, table, ["maize", "soybean"])
    points["reference"] = np.resize(["maize", "soybean"], 100)
    points.sample(frac=1, random_state=0).to_file(path)  # a tool may turn their order round
    labelled = areas.read_points(path, table, ["maize", "soybean"])
    assert labelled.tolist() == points["reference"].tolist()
    with pytest.raises(ValueError, match="is the file of another sample"):
        areas.read_points(path, areas.sample(codes, inside, 100, 2, 10), ["maize", "soybean"])
    points.iloc[:-1].to_file(path)
    with pytest.raises(ValueError, match=r"has 99 points where 100 were sampled"):
        areas.read_points(path, table, ["maize", "soybean"])
