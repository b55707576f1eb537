"""No parcel, block or patch footprint is shared between sets, and the audit would notice if one were."""

import re

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from shapely.affinity import rotate
from shapely.geometry import box
from sklearn.model_selection import StratifiedGroupKFold

from cropnb import parcels
from cropnb.parcels import rasterise
from cropnb.split import SETS, _assignments, audit, blocks, random_split, reference, require_split, split

CLASSES = ("maize", "soybean", "wheat", "other")
CRS, LEFT, TOP = "EPSG:32652", 600_000, 5_302_000
SHARED = ["parcels in more", "blocks in more", "pixels of other", "pixels under", "rows or columns"]


def region(seed=0, size=2000, cell=95, shares=(0.3, 0.5, 0.08, 0.12), empty=0.1):
    """Turned parcels of about `cell` m on a square of `size` m, crops at random, and their raster."""
    rng = np.random.default_rng(seed)
    shapes = [
        rotate(box(x, y, x + cell * rng.uniform(0.7, 1.4), y + cell * 0.9), 12, origin=(LEFT, TOP))
        for y in np.arange(TOP - size - 500, TOP + 500, cell)
        for x in np.arange(LEFT - 500, LEFT + size + 500, cell * 1.45)
    ]
    extent = box(LEFT, TOP - size, LEFT + size, TOP)
    shapes = [shape for shape in shapes if shape.intersects(extent) and rng.random() > empty]
    crops = rng.choice(CLASSES, len(shapes), p=shares)
    columns = {"parcel_id": np.arange(1, len(shapes) + 1), "crop": crops.astype(object)}
    parcels = gpd.GeoDataFrame(columns, geometry=shapes, crs=CRS)
    return parcels, rasterise(parcels, GeoBox.from_bbox(extent.bounds, CRS, resolution=10), CLASSES)


@pytest.fixture(scope="module")
def made():
    parcels, labels = region()
    return parcels, labels, split(labels, parcels, block_size=400, seed=1)


def failed(report):
    return report.loc[~report["passed"], "check"].tolist()


def found(report, check):
    return report.loc[report["check"].str.startswith(check), "found"].item()


def footprint(samples, patch):
    """The pixels under the patches, one by one."""
    half = range(-(patch // 2), patch // 2 + 1)
    return {(r + i, c + j) for r, c in zip(samples["row"], samples["col"], strict=True) for i in half for j in half}


def test_a_parcel_lies_in_the_block_of_its_representative_point():
    # Within a block, over a border, over two rows, and half beyond the right edge, where the part inside counts.
    shapes = [box(0, -90, 90, 0), box(950, -90, 1090, 0), box(990, -1990, 1400, -1010), box(1900, -90, 2900, 0)]
    parcels = gpd.GeoDataFrame({"parcel_id": [4, 3, 2, 1], "crop": "maize"}, geometry=shapes, crs=CRS)
    labels = rasterise(parcels, GeoBox.from_bbox((0, -2000, 2000, 0), CRS, resolution=10), CLASSES)
    assert blocks(labels, parcels, 1000).to_dict() == {4: 0, 3: 1, 2: 10_001, 1: 1}


def test_columns_types_and_places(made):
    parcels, _labels, result = made
    assert result.dtypes.astype(str).drop(["crop", "set"]).to_dict() == {
        "y": "float64", "x": "float64", "row": "int32", "col": "int32", "parcel_id": "int64",
        "block": "int64",
    }  # fmt: skip
    assert set(result["set"]) == set(SETS)
    points = gpd.GeoSeries(gpd.points_from_xy(result["x"], result["y"]), crs=CRS)
    own = parcels.set_index("parcel_id").geometry.reindex(result["parcel_id"])
    assert own.reset_index(drop=True).covers(points).all()
    crops = parcels.set_index("parcel_id")["crop"].reindex(result["parcel_id"])
    assert (crops.to_numpy() == result["crop"].to_numpy()).all()


def test_the_split_survives_the_disc(made, tmp_path):
    result = made[2]
    result.to_parquet(tmp_path / "split.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "split.parquet"), result, check_dtype=False)


def test_pixel_by_pixel_no_footprint_is_shared(made):
    _, labels, result = made
    under = {name: footprint(rows, 11) for name, rows in result.groupby("set")}
    assert not under["train"] & under["test"]
    assert not under["train"] & under["validation"]
    assert not under["validation"] & under["test"]
    for name in SETS:  # and none reaches a parcel that another set learns or is judged from
        other = set(result.loc[result["set"] != name, "parcel_id"])
        assert not other & {labels["parcel"].values[place] for place in under[name]}


def test_ratio_shares_and_fraction(made):
    _, labels, result = made
    population = pd.Series(labels["crop"].values[labels["crop"].values < 255]).value_counts().sort_index()
    counts = pd.crosstab(result["set"], result["crop"]).reindex(index=SETS, columns=CLASSES)
    expected = 0.1 * np.outer([0.6, 0.2, 0.2], population)
    assert abs(counts.to_numpy() - expected).max() <= 0.5


def test_what_was_left_out_adds_up(made):
    _, labels, result = made
    left_out = result.attrs["footprint_leaves_the_grid"] + result.attrs["footprint_reaches_another_set"]
    assert result.attrs["labelled"] == int((labels["crop"] < 255).sum()) == left_out + result.attrs["available"]
    assert result.attrs["short"] == 0


def test_patches_with_missing_values_are_not_drawn(made):
    parcels, labels, result = made
    complete = np.ones(labels["crop"].shape, bool)
    row, col = result.loc[0, ["row", "col"]].astype(int)
    complete[row + 5, col - 5] = False  # a corner of the first sample's patch
    again = split(labels, parcels, block_size=400, complete=complete, seed=1)
    near = (abs(again["row"] - row - 5) <= 5) & (abs(again["col"] - col + 5) <= 5)
    assert not near.any()
    lost = result.attrs["available"] - again.attrs["available"]
    assert lost == again.attrs["footprint_has_missing_values"] > 0
    with pytest.raises(ValueError, match="give one grid"):
        split(labels, parcels, block_size=400, complete=complete[1:], seed=1)


def test_the_same_seed_gives_the_same_split_whatever_the_order_of_the_parcels(made):
    parcels, labels, result = made
    pd.testing.assert_frame_equal(split(labels, parcels, block_size=400, seed=1), result)
    shuffled = parcels.sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(split(labels, shuffled, block_size=400, seed=1), result)
    assert not split(labels, parcels, block_size=400, seed=2)["set"].equals(result["set"])


@settings(deadline=None, max_examples=10)
@given(
    seed=st.integers(0, 10_000),
    block_size=st.sampled_from([300, 400, 500]),
    patch=st.sampled_from([1, 5, 11]),
    fraction=st.floats(0.02, 0.12),
)
def test_our_splits_pass_the_audit_and_random_ones_fail(seed, block_size, patch, fraction):
    parcels, labels = region(seed)
    options = {"block_size": block_size, "patch": patch, "fraction": fraction}
    result = split(labels, parcels, **options, seed=seed)
    assert failed(audit(result, labels, parcels, **options)) == []
    random = audit(random_split(labels, parcels, result, block_size=block_size, seed=seed), labels, parcels, **options)
    assert found(random, "parcels in more") > 0
    assert found(random, "blocks in more") > 0
    if patch > 1:
        assert all(any(check.startswith(s) for check in failed(random)) for s in SHARED)


def test_the_audit_finds_each_kind_of_leak(made):
    parcels, labels, result = made
    check = {"labels": labels, "parcels": parcels, "block_size": 400}
    assert failed(audit(result, **check)) == []
    # Whole parcels dealt out at random: no parcel is shared, blocks and footprints are.
    deal = pd.Series(np.random.default_rng(0).choice(SETS, 100_000, p=[0.6, 0.2, 0.2]))
    report = audit(result.assign(set=deal.reindex(result["parcel_id"]).to_numpy()), **check)
    assert found(report, "parcels in more") == 0
    assert found(report, "blocks in more") > 0
    assert found(report, "pixels under patches of both train and test") > 0
    # Whole blocks without a buffer, as published: no parcel or block is shared, footprints are.
    bare = split(labels, parcels, block_size=400, patch=1, fraction=0.5, seed=1)
    report = audit(bare, **check, fraction=0.5)
    assert found(report, "parcels in more") == found(report, "blocks in more") == 0
    assert found(report, "pixels under patches of both train and test") > 0
    under = {name: footprint(rows, 11) for name, rows in bare.groupby("set")}
    grid = {(r, c) for r in range(200) for c in range(200)}
    shared = len(under["train"] & under["test"] & grid)
    assert found(report, "pixels under patches of both train and test") == shared


def test_the_audit_finds_wrong_rows_and_wrong_shares(made):
    parcels, labels, result = made
    check = {"labels": labels, "parcels": parcels, "block_size": 400}
    wrong = result.copy()
    wrong.loc[0, "crop"] = "rice"
    wrong.loc[1, "x"] += 10
    wrong.loc[2, "parcel_id"] += 1
    assert found(audit(wrong, **check), "pixels whose place") == 3
    twice = pd.concat([result, result.iloc[:4]], ignore_index=True)
    assert found(audit(twice, **check), "pixels drawn twice") == 4
    wheat = result.index[(result["set"] == "test") & (result["crop"] == "wheat")]
    half = result.drop(wheat[::2]).reset_index(drop=True)
    assert 0.4 < found(audit(half, **check), "drawn of the asked") < 0.6
    no_wheat = result[(result["set"] != "test") | (result["crop"] != "wheat")].reset_index(drop=True)
    report = audit(no_wheat, **check)
    assert found(report, "drawn of the asked") < 0.1
    assert "difference of a class share from that in all labels" in failed(report)


@pytest.mark.parametrize(("edge", "shift"), [("row", 0), ("col", 0), ("row", 1), ("col", 1)])
def test_the_audit_finds_patches_that_leave_any_edge_of_a_grid_that_is_no_square(made, edge, shift):
    parcels, labels, result = made
    narrow = labels.isel(y=slice(0, 150))
    inside = result[result["row"] < 145]
    check = {"labels": narrow, "parcels": parcels, "block_size": 400}
    assert found(audit(inside, **check), "patches that leave the grid") == 0
    last = narrow["crop"].sizes[{"row": "y", "col": "x"}[edge]] - 1
    for distance, leaves in ((4, 1), (5, 0)):
        moved = inside.reset_index(drop=True)
        moved.loc[0, edge] = abs(shift * last - distance)
        assert found(audit(moved, **check), "patches that leave the grid") == leaves


def test_pixels_near_an_edge_are_left_out_and_counted(made):
    _, labels, result = made
    row, col = np.nonzero(labels["crop"].to_numpy() < 255)
    near = (np.minimum(row, col) < 5) | (np.maximum(row, col) > 194)
    assert result.attrs["footprint_leaves_the_grid"] == near.sum()
    assert result[["row", "col"]].to_numpy().min() >= 5
    assert result[["row", "col"]].to_numpy().max() <= 194


def test_a_random_split_has_as_many_of_each_class_and_set(made):
    parcels, labels, result = made
    random = random_split(labels, parcels, result, block_size=400, seed=1)
    pd.testing.assert_frame_equal(*(pd.crosstab(each["set"], each["crop"]) for each in (random, result)))


def test_a_larger_patch_needs_a_split_of_its_own(made):
    parcels, labels, result = made
    assert any("pixels under" in name for name in failed(audit(result, labels, parcels, block_size=400, patch=21)))


def test_assignments_are_no_worse_than_stratified_group_k_fold():
    rng = np.random.default_rng(5)
    counts = rng.poisson(rng.gamma(1, [[300, 600, 30, 60]], (36, 4))).astype(float)
    shares = np.array([0.6, 0.2, 0.2])
    group, code = (a.ravel() for a in np.indices(counts.shape))
    repeat = counts.ravel().astype(int)
    group, code = group.repeat(repeat), code.repeat(repeat)
    folds = [np.unique(group[test]) for _, test in StratifiedGroupKFold(5).split(code, code, group)]
    theirs = np.zeros(36, int)
    theirs[folds[3]], theirs[folds[4]] = 1, 2

    def misfit(owner):
        return ((np.eye(3)[owner].T @ counts / (shares[:, None] * counts.sum(axis=0)) - 1) ** 2).sum()

    assert misfit(_assignments(counts, shares, rng)[0]) <= misfit(theirs)


def test_no_block_lies_outside_the_raster(made):
    parcels, _, result = made
    outside = ~parcels.representative_point().within(box(LEFT, TOP - 2000, LEFT + 2000, TOP))
    assert outside.any()
    assert result["block"].isin([row * 10_000 + column for row in range(5) for column in range(5)]).all()


def test_constraints_that_cannot_be_met_are_named():
    parcels, labels = region()
    with pytest.raises(ValueError, match=r"fewer than three blocks of 5000 m.*smaller blocks"):
        split(labels, parcels, block_size=5000, seed=0)
    north = parcels.geometry.representative_point().y > TOP - 400
    lone = parcels.assign(crop=parcels["crop"].where((parcels["crop"] != "wheat") | north, "maize"))
    grid = labels.odc.geobox
    with pytest.raises(ValueError, match=r"fewer than three blocks of 1000 m .* {'wheat': 2}.*merging classes"):
        split(rasterise(lone, grid, CLASSES), lone, block_size=1000, seed=0)
    with pytest.raises(ValueError, match=r"blocks of 200 m and 31 x 31 patches no pixel is left of .*smaller"):
        split(labels, parcels, block_size=200, patch=31, seed=0)
    with pytest.raises(ValueError, match=r"class shares differ by 0.0\d\d, more than 1e-06.*another seed"):
        split(labels, parcels, block_size=400, tolerance=1e-6, seed=0)


def test_a_shortage_is_said_and_audited(made, caplog):
    parcels, labels, _ = made
    result = split(labels, parcels, block_size=400, fraction=0.9, tolerance=0.2, seed=0)
    assert result.attrs["short"] > 0
    assert "pixels could not be drawn" in caplog.text
    report = audit(result, labels, parcels, block_size=400, fraction=0.9, tolerance=0.2)
    assert "drawn of the asked, class and set with the least" in failed(report)
    assert not [name for name in failed(report) if any(name.startswith(s) for s in SHARED)]


@pytest.mark.parametrize(
    "wrong",
    [{"patch": 10}, {"fraction": 0}, {"fraction": 1.5}, {"shares": (0.5, 0.2, 0.2)}, {"shares": (1, 0, 0)}],
)
def test_impossible_parameters_are_refused(made, wrong):
    parcels, labels, _ = made
    with pytest.raises(ValueError, match=r"must be odd"):
        split(labels, parcels, block_size=400, seed=0, **wrong)


def test_labels_of_other_parcels_are_refused(made):
    parcels, labels, _ = made
    with pytest.raises(ValueError, match=r"rasterise these parcels"):
        split(labels, parcels.iloc[5:], block_size=400, seed=0)


def test_reference_labels_know_their_block(tmp_path, made, monkeypatch):
    fields, labels = made[:2]
    monkeypatch.setattr(parcels, "labelled", lambda folder: (fields, labels))
    raster = reference(tmp_path, 400)
    expected = blocks(labels, fields, 400)
    inside = labels["parcel"].values != parcels.NO_PARCEL
    np.testing.assert_array_equal(raster["block"].values[inside], expected[labels["parcel"].values[inside]])
    assert (raster["block"].values[~inside] == -1).all()


@pytest.mark.parametrize("patch", [3, 7])
def test_parcels_may_be_blocks_of_their_own(patch):
    parcels, labels = region()
    result = split(labels, parcels, block_size=0, patch=patch, seed=0)
    assert (result["block"] == result["parcel_id"]).all()
    report = audit(result, labels, parcels, block_size=0, patch=patch)
    assert report["passed"].all()
    sets = labels["parcel"].to_series().map(result.drop_duplicates("parcel_id").set_index("parcel_id")["set"])
    sets = sets.to_numpy(object).reshape(labels["parcel"].shape)
    half = patch // 2
    for row in result.iloc[:: max(1, len(result) // 50)].itertuples():
        seen = sets[row.row - half : row.row + half + 1, row.col - half : row.col + half + 1].ravel()
        assert {name for name in seen if isinstance(name, str)} == {row.set}


def test_the_audit_allows_no_leak_and_says_what_it_allows(made):
    parcels, labels, result = made
    report = audit(result, labels=labels, parcels=parcels, block_size=400, patch=11, fraction=0.1, tolerance=0.01)
    report = report.set_index("check")
    leaks = report.index.str.contains("pixels|patches that leave|in more than one set")
    leaks &= ~report.index.str.contains("share of labelled")
    assert leaks.sum() == 11
    assert (report.loc[leaks, "rule"] == "at most").all()
    assert (report.loc[leaks, "bound"] == 0).all()
    apart = report[report.index.str.startswith("rows or columns")]
    assert apart[["rule", "bound"]].to_numpy().tolist() == 3 * [["at least", 11]]
    asked = report.drop(index=[*report.index[leaks], *apart.index])
    assert asked["rule"].tolist() == ["at most", "at most", "at least", "at least"]
    np.testing.assert_allclose(asked["bound"], [0.01, 0.01, 0.099, 0.9])


def test_the_audit_measures_what_it_says(made):
    parcels, labels, result = made
    report = audit(result, labels=labels, parcels=parcels, block_size=400)
    labelled = (labels["crop"].values != 255).sum()
    assert found(report, "share of labelled") == pytest.approx(len(result) / labelled)
    sizes = result["set"].value_counts(normalize=True)[list(SETS)]
    assert found(report, "difference of a set's share") == pytest.approx(abs(sizes - [0.6, 0.2, 0.2]).max())
    asked = [
        (((result["set"] == name) & (result["crop"] == crop)).sum() + 0.5)
        / (0.1 * share * (labels["crop"].values == code).sum())
        for name, share in zip(SETS, (0.6, 0.2, 0.2), strict=True)
        for code, crop in enumerate(labels.attrs["classes"])
    ]
    assert found(report, "drawn of the asked") == pytest.approx(min(*asked, 1))
    train, test = (result.loc[result["set"] == name, ["row", "col"]].to_numpy() for name in ("train", "test"))
    nearest = min(abs(train - point).max(axis=1).min() for point in test)
    assert found(report, "rows or columns between train and test") == nearest


@pytest.mark.parametrize(("axis", "size"), [("row", 200), ("col", 200)])
def test_patches_that_leave_the_grid_are_counted_on_every_side(made, axis, size):
    parcels, labels, result = made
    half = 11 // 2
    for place, leaves in ((0, 1), (half - 1, 1), (half, 0), (size - 1 - half, 0), (size - half, 1), (size - 1, 1)):
        moved = result.copy()
        moved.loc[0, axis] = place
        report = audit(moved, labels=labels, parcels=parcels, block_size=400)
        assert found(report, "patches that leave the grid") == leaves


def test_a_parcel_in_two_sets_is_counted_once(made):
    parcels, labels, result = made
    two = result["parcel_id"].value_counts()
    two = two[two >= 3].index[:2]
    moved = result.copy()
    for parcel in two:
        rows = moved.index[moved["parcel_id"] == parcel]
        moved.loc[rows[:3], "set"] = SETS
    report = audit(moved, labels=labels, parcels=parcels, block_size=400)
    assert found(report, "parcels in more than one set") == 2
    assert "parcels in more than one set" in failed(report)


@settings(max_examples=8, deadline=None)
@given(st.integers(2, 4), st.integers(60, 200), st.sampled_from([11, 21]), st.integers(0, 2**32 - 1))
def test_the_block_size_that_is_named_does(clusters, pitch, patch, seed):
    """However plots lie in a few places, what the refusal names is no second refusal."""
    rng = np.random.default_rng(seed)
    starts = rng.uniform(0, 1400, (clusters, 2))
    corners = [start + pitch * np.array(at) for start in starts for at in np.ndindex(4, 3)]
    plots = [box(LEFT + x, TOP - y - 50, LEFT + x + 50, TOP - y) for x, y in corners]
    crops = np.resize(["maize", "wheat", "other"], len(plots))
    parcels = gpd.GeoDataFrame({"parcel_id": range(1, len(plots) + 1), "crop": crops}, geometry=plots, crs=CRS)
    grid = GeoBox.from_bbox((LEFT, TOP - 2400, LEFT + 2400, TOP), CRS, resolution=10)
    labels = rasterise(parcels, grid, ["maize", "wheat", "other"])
    with pytest.raises(ValueError, match=r"Set block_size to|No block size would do") as told:
        require_split(labels, parcels, 10_000, patch, 0)
    if named := re.search(r"Set block_size to (\d+)", str(told.value)):
        require_split(labels, parcels, int(named[1]), patch, 0)
