"""The paper's tables as published; draws, contrasts and verdicts by hand on tiny cases; what is missing stays so."""

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from cropnb import evaluation, models, runs
from cropnb.evaluation import comparison

CLASSES = ["maize", "soybean"]
HEADLINE = ("optical+m-chi", "none", 1)


def predictions(right, blocks=(0, 0, 1, 1, 2, 2)):
    """Six test samples of three blocks, and a validation sample that nobody may count; `right` (6,) says which."""
    true = np.array(["maize", "soybean"] * 3)
    maize = np.where(true == "maize", 0.9, 0.1)
    maize = np.where(right, maize, 1 - maize)
    test = pd.DataFrame({"row": range(6), "col": 0, "block": blocks, "true": true, "set": "test"})
    test = test.assign(maize=maize, soybean=1 - maize)
    return pd.concat([test, test.iloc[:1].assign(set="validation", row=99, maize=0.0)], ignore_index=True)


def table(*rights, n=50):
    names = [(f"network {i}", *HEADLINE) for i in range(len(rights))]
    return comparison.draws(dict(zip(names, map(predictions, rights), strict=True)), CLASSES, n, 0)


GOOD, FAIR = [1, 1, 1, 1, 1, 0], [1, 0, 1, 0, 1, 0]


def accuracy(cells):
    return cells.sel(features="optical+m-chi", augmentation="none", measure="overall_accuracy")


def lead(cells):
    return accuracy(cells).sel(model="network 0") - accuracy(cells).sel(model="network 1")


def test_tables_are_the_papers():
    first = comparison.paper_table("table1")
    assert first.sel(model="3D-ConvSTAR", features="optical+m-chi", measure="kappa").item() == pytest.approx(0.857)
    second = comparison.paper_table("table2")
    assert second.sel(model="ConvSTAR", features="m-chi", measure="f1_wheat").item() == pytest.approx(0.222)
    third = comparison.paper_table("table3")
    assert third.sel(model="TCNN", augmentation="oversampling", measure="mean_f1").item() == pytest.approx(0.835)
    assert set(third["augmentation"].values) == {"none", "oversampling", "balanced-loss", "mix-up"}
    for part in (second, third):  # the published means are those of the published classes, rounded
        of_classes = part.sel(measure=[m for m in part["measure"].values if m.startswith("f1_")]).mean("measure")
        np.testing.assert_allclose(part.sel(measure="mean_f1"), of_classes, atol=6e-4)
    same = third.sel(augmentation="none") - second.sel(features="optical+m-chi", measure=third["measure"])
    assert abs(same).max() < 1e-9  # Table 3 repeats the rows of Table 2
    with pytest.raises(ValueError, match="no table 'table4'; choose one of table1, table2, table3"):
        comparison.paper_table("table4")


def test_draws_are_those_of_the_bootstrap():
    drawn = accuracy(table(GOOD, FAIR, n=200))
    assert drawn.sel(draw=0).values.ravel() == pytest.approx([5 / 6, 3 / 6])
    test = predictions(GOOD).query("set == 'test'")
    predicted = test[CLASSES].idxmax(axis=1)
    expected = evaluation.bootstrap(test["true"], predicted, test["block"], CLASSES, 200, 0)
    bounds = comparison.interval(drawn.sel(model="network 0", seed=1))
    np.testing.assert_allclose(bounds.clip(0), expected.loc["overall_accuracy", ["estimate", "low", "high"]])
    paired = evaluation.paired_bootstrap(
        test["true"], predicted, predictions(FAIR).query("set == 'test'")[CLASSES].idxmax(axis=1), test["block"],
        CLASSES, 200, 0,
    )  # fmt: skip
    found = comparison.contrast(table(GOOD, FAIR, n=200), lead)
    np.testing.assert_allclose([found[k] for k in ("estimate", "low", "high")], paired.loc["overall_accuracy"])
    # by hand: block 0 and 1 lead by 1 of 2 samples, block 2 by none; drawing block 2 alone leads by 0
    assert found["estimate"] == pytest.approx(2 / 6)
    wider = evaluation.widening(3)
    assert found["low"] == pytest.approx(2 / 6 - wider * 2 / 6)
    assert found["high"] == pytest.approx(2 / 6 + wider * 1 / 6)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.booleans(), min_size=6, max_size=6), st.permutations(range(7)), st.integers(0, 99))
def test_a_run_differs_from_itself_by_nothing_in_any_order(right, order, seed):
    frame = predictions(right)
    runs = {("a", *HEADLINE): frame, ("b", *HEADLINE): frame.iloc[list(order)]}
    drawn = comparison.draws(runs, CLASSES, 20, seed)
    difference = accuracy(drawn).sel(model="a") - accuracy(drawn).sel(model="b")
    assert (difference == 0).all()
    turned = comparison.draws(dict(reversed(runs.items())), CLASSES, 20, seed)
    xr.testing.assert_identical(drawn, turned.reindex_like(drawn))


def test_runs_on_other_samples_are_refused():
    other = predictions(GOOD, blocks=(0, 0, 1, 1, 2, 3))
    with pytest.raises(ValueError, match=r"first/optical\+m-chi/none/1 were judged on different samples"):
        comparison.draws({("first", *HEADLINE): other, ("network 0", *HEADLINE): predictions(GOOD)}, CLASSES, 5, 0)
    with pytest.raises(ValueError, match="no run to compare"):
        comparison.draws({}, CLASSES, 5, 0)


def test_an_absent_run_makes_its_differences_unknown():
    found = comparison.contrast(table(GOOD).reindex(model=["network 0", "network 1"]), lead)
    assert np.isnan([found["estimate"], found["low"], found["high"], *found["by_seed"]]).all()
    assert comparison.verdict(found["low"], found["high"], found["by_seed"]) == comparison.OPEN


def test_draws_without_the_class_are_left_out():
    values = xr.DataArray([[0.5, np.nan, 0.4, 0.4], [0.5, np.nan, np.nan, np.nan]], dims=("model", "draw"))
    bounds = comparison.interval(values.assign_coords(draw=range(4)))
    np.testing.assert_allclose(bounds, [[0.5, 0.4, 0.4], [0.5, np.nan, np.nan]])


def test_seeds_enter_with_their_mean_and_one_by_one():
    runs = {
        ("network 0", "optical+m-chi", "none", 1): predictions(GOOD),
        ("network 0", "optical+m-chi", "none", 2): predictions(FAIR),
        ("network 1", "optical+m-chi", "none", 1): predictions(FAIR),
    }
    found = comparison.contrast(comparison.draws(runs, CLASSES, 50, 0), lead)
    assert found["estimate"] == pytest.approx((5 + 3) / 2 / 6 - 3 / 6)
    assert found["by_seed"] == pytest.approx([2 / 6])  # of a seed that one of the two lacks, nothing is said


@pytest.mark.parametrize(
    ("low", "high", "by_seed", "expected"),
    [
        (0.1, 0.2, (), comparison.SUPPORTS),
        (0.1, 0.2, (0.1, 0.3), comparison.SUPPORTS),
        (0.1, 0.2, (0.1, -0.1), comparison.OPEN),
        (0.1, 0.2, (0.1, 0.0), comparison.OPEN),
        (0.0, 0.2, (0.1,), comparison.OPEN),
        (-0.1, 0.2, (0.1,), comparison.OPEN),
        (-0.2, -0.1, (-0.1,), comparison.EXCLUDES),
        (-0.2, -0.1, (-0.1, 0.1), comparison.OPEN),
        (-0.2, 0.0, (-0.1,), comparison.OPEN),
        (np.nan, np.nan, (np.nan,), comparison.OPEN),
        (0.1, 0.2, (np.nan,), comparison.OPEN),
    ],
)
def test_verdict(low, high, by_seed, expected):
    assert comparison.verdict(low, high, by_seed) == expected
    turned = {comparison.SUPPORTS: comparison.EXCLUDES, comparison.EXCLUDES: comparison.SUPPORTS}
    assert comparison.verdict(-high, -low, [-v for v in by_seed]) == turned.get(expected, expected)


@pytest.mark.parametrize(
    ("low", "high", "by_seed", "expected"),
    [
        (-0.023, 0.013, (), comparison.EXCLUDES),  # holds zero, and not the paper's 0.08
        (-0.023, 0.013, (0.09,), comparison.OPEN),
        (-0.023, 0.08, (), comparison.OPEN),
        (0.03, 0.05, (), comparison.SUPPORTS),  # below the paper's number, but above zero as the claim is
        (-0.019, 0.019, (), comparison.EQUIVALENT),
        (0.001, 0.019, (0.001,), comparison.EQUIVALENT),
        (-0.02, 0.019, (), comparison.EXCLUDES),
        (-0.019, 0.02, (), comparison.EXCLUDES),
        (np.nan, np.nan, (), comparison.OPEN),
    ],
)
def test_verdict_against_the_papers_number_and_a_margin(low, high, by_seed, expected):
    assert comparison.verdict(low, high, by_seed, paper=0.08, margin=0.02) == expected


@given(low=st.floats(-1, 1), width=st.floats(0, 1), paper=st.floats(-1, 1), margin=st.floats(0, 0.5))
def test_a_verdict_says_what_its_interval_says(low, width, paper, margin):
    said, high = comparison.verdict(low, low + width, (), paper, margin), low + width
    if said == comparison.SUPPORTS:
        assert low > 0
    if said == comparison.EXCLUDES:
        assert not low <= max(paper, 0) <= high
    if said == comparison.EQUIVALENT:
        assert max(abs(low), abs(high)) < margin


def test_power_is_that_of_a_t_test():
    rng, blocks = np.random.default_rng(0), 9
    means = rng.normal(0.05, 0.02 / 3, 100_000)
    halves = 2.306 * 0.02 / 3 * np.sqrt(rng.chisquare(blocks - 1, 100_000) / (blocks - 1))
    found = comparison.power(2.306 * 0.02 / 3, 0.02 / 3, blocks - 1, 0.05)
    assert found["power"] == pytest.approx((means > halves).mean(), abs=0.005)
    assert comparison.power(0.03, 0.01, 8, -0.05) == pytest.approx(comparison.power(0.03, 0.01, 8, 0.05))
    assert comparison.power(0.03, 0.01, 8, found["visible"])["power"] < 0.8  # a wider interval sees less
    again = comparison.power(2.306 * 0.02 / 3, 0.02 / 3, blocks - 1, found["visible"])
    assert again["power"] == pytest.approx(0.8)
    assert np.isnan(list(comparison.power(0.0, 0.0, 8, 0.05).values())).all()  # no spread, no power


def test_a_claim_needs_all_its_parts():
    holds, fails, told = comparison.SUPPORTS, comparison.EXCLUDES, comparison.OPEN
    assert comparison.joint([holds, holds]) == holds
    assert comparison.joint([holds, told]) == told
    assert comparison.joint([holds, told, fails]) == fails
    assert comparison.joint([holds, comparison.EQUIVALENT]) == comparison.EQUIVALENT
    assert comparison.joint([told, comparison.EQUIVALENT]) == told
    paper = comparison.paper_table("table1").isel(model=[0, 1]).assign_coords(model=["network 0", "network 1"])
    everywhere = table([1] * 6, [1, 0] * 3)
    claim = comparison.judge("first is best", {"lead": lead, "reversed": lambda t: -lead(t)}, everywhere, paper)
    assert [part["verdict"] for part in claim["parts"]] == [holds, fails]
    assert claim["verdict"] == fails
    assert claim["parts"][0]["paper"] == pytest.approx(0.864 - 0.905)
    assert json.loads(json.dumps(claim))["parts"][1]["estimate"] == pytest.approx(-0.5)


def test_marks_need_a_certain_lead():
    def values(*runs):
        return accuracy(table(*runs)).mean("seed")

    assert comparison.marks(values([1] * 6, FAIR, [0] * 6)) == {"network 0": "best", "network 1": "second best"}
    assert comparison.marks(values(FAIR, [1] * 6, FAIR)) == {"network 1": "best"}
    assert comparison.marks(values(GOOD, GOOD, [0] * 6)) == {}  # two leaders: no best, and no second best
    assert comparison.marks(values(GOOD)) == {}
    padded = values([1] * 6, FAIR).reindex(model=["network 9", "network 0", "network 1"])
    assert comparison.marks(padded) == {"network 0": "best"}


def test_failed_and_lost_cells_are_shown_with_their_reason():
    sweep = [
        {"run": "_build/demo/runs/tcnn/m-chi/none/seed-1", "failed": ""},
        {"run": "_build/demo/runs/tcnn/optical+m-chi/none/seed-1", "failed": "the loss is NaN"},
        {"run": "_build/demo/patch-size/9/tcnn/m-chi/none/seed-1", "failed": ""},
    ]
    found = ["/elsewhere/_build/demo/runs/tcnn/m-chi/none/seed-1", "runs/tcnn/optical+m-chi/none/seed-1"]
    absent = comparison.missing(sweep, found).set_index("run")
    assert absent["reason"].to_dict() == {
        "runs/tcnn/optical+m-chi/none/seed-1": "the loss is NaN",  # also where an earlier run is still there
        "9/tcnn/m-chi/none/seed-1": comparison.GONE,
    }
    assert absent["folder"].tolist() == ["runs", "9"]
    assert set(absent["model"]) == {"TCNN"}
    assert set(absent["state"]) == {"missing"}
    assert comparison.missing([], found).empty


def test_what_the_region_cannot_feed_is_no_failure():
    with pytest.raises(ValueError, match="too small") as short:
        models.get("cnn3d2d")((3, 11, 11, 3), 4)
    reason = f"07_3d_2d_cnn.md, cell 5: ValueError: {short.value}"
    sweep = [{"run": "runs/cnn3d2d/optical/none/seed-1", "failed": reason}]
    assert comparison.missing(sweep, [])["state"].tolist() == [comparison.IMPOSSIBLE]
    ours = table(GOOD).assign_coords(model=["TCNN"]).reindex(features=["optical+m-chi", "m-chi"])
    rows = comparison.side_by_side(comparison.paper_table("table1"), ours, comparison.missing([], []), ["m-chi"])
    assert rows.xs("overall_accuracy", level="measure")["state"].tolist() == ["", comparison.IMPOSSIBLE]


def test_side_by_side_has_every_cell_and_its_state():
    ours = table(GOOD).assign_coords(model=["TCNN"]).reindex(model=["TCNN", "3D-CNN", "forest"])
    ours = ours.sel(measure=["overall_accuracy", "kappa"])
    absent = comparison.missing([{"run": "runs/cnn3d/optical+m-chi/none/seed-1", "failed": "out of memory"}], [])
    rows = comparison.side_by_side(comparison.paper_table("table1"), ours, absent)
    assert len(rows) == 6
    assert rows["low"].xs("overall_accuracy", level="measure").min() >= 0  # however few blocks widen it
    rows = rows.xs("overall_accuracy", level="measure").droplevel(["features", "augmentation"])
    assert rows["state"].to_dict() == {"TCNN": "", "3D-CNN": "missing", "forest": "not in this build"}
    assert rows["seeds"].tolist() == [1, 0, 0]
    assert rows["estimate"].tolist() == pytest.approx([5 / 6, np.nan, np.nan], nan_ok=True)
    assert rows["paper"].tolist() == pytest.approx([0.864, 0.905, np.nan], nan_ok=True)


def test_trainings_are_those_of_the_sweep_and_of_the_pages(tmp_path):
    for folder, network in (("runs", "tcnn"), ("runs", "conv3dstar"), ("patch-size/9", "tcnn")):
        run = tmp_path / folder / network / "optical+m-chi/none/seed-1"
        run.mkdir(parents=True)
        for name in runs.FILES:
            (run / name).write_text("{}")
        cell = {"model": network, "features": "optical+m-chi", "augmentation": "none", "seed": 1}
        (run / "run.json").write_text(json.dumps(cell))
    failed = str(tmp_path / "runs/conv3dstar/optical+m-chi/none/seed-1")
    asked = [str(tmp_path / f"{name}/optical+m-chi/none/seed-1") for name in ("runs/tcnn", "patch-size/9/tcnn")]
    sweep = [
        {"run": failed, "failed": "killed", "cell": "conv3dstar_1"},
        *({"run": run, "failed": ""} for run in asked),
    ]
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    there, absent = comparison.trainings(tmp_path)
    assert there[["network", "folder"]].to_numpy().tolist() == [["TCNN", "runs"], ["TCNN", "9"]]
    assert absent[["model", "reason"]].to_numpy().tolist() == [["3D-ConvSTAR", "killed"]]
    assert there.attrs["strangers"] == 0
    (tmp_path / "sweep.json").write_text(json.dumps(sweep[:2]))  # as when a rerun is taken back
    there, _ = comparison.trainings(tmp_path)
    assert list(there["folder"]) == ["runs"]
    assert there.attrs["strangers"] == 1
    with pytest.raises(ValueError, match="no run to compare in"):
        comparison.trainings(tmp_path / "elsewhere")


def test_minority_classes():
    crops = pd.Series(["maize"] * 50 + ["soybean"] * 38 + ["wheat"] * 12)
    assert comparison.minority(crops, ["maize", "soybean", "wheat", "other"]) == ["wheat", "other"]  # below 12.5 %
    assert comparison.minority(pd.Series(list("aaaabbbccd") * 9 + list("c") * 9), list("abcd")) == ["d"]
    assert comparison.minority(crops[:88], ["maize", "soybean"]) == ["soybean"]
    assert comparison.minority(pd.Series(["maize"] * 7 + ["soybean"]), CLASSES) == ["soybean"]


def test_a_lead_that_is_not_certain_is_no_mark():
    # Ahead in one block of three, level in the others: redraws without that block show no lead.
    better, other, worse = [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]
    assert comparison.marks(accuracy(table(better, other)).isel(seed=0)) == {}
    assert comparison.marks(accuracy(table(better, other, worse)).isel(seed=0)) == {}
    assert comparison.marks(accuracy(table(better, worse)).isel(seed=0)) == {"network 0": "best"}
    half = [1, 0, 1, 0, 1, 0]
    marks = comparison.marks(accuracy(table(worse, better, half)).isel(seed=0))
    assert marks == {"network 1": "best", "network 2": "second best"}


def test_simultaneous_intervals_hold_all_at_once():
    rng = np.random.default_rng(0)
    names, draws = list("abcdef"), 4000
    noise = rng.normal(0, 0.01 * np.arange(1, 7), (draws, 6))
    values = xr.DataArray(np.vstack([np.zeros(6), noise]), {"draw": range(draws + 1), "pair": names})
    one, all_at_once = comparison.interval(values), comparison.simultaneous(values, "pair")
    inside = (values[1:] >= all_at_once.sel(bound="low")) & (values[1:] <= all_at_once.sel(bound="high"))
    assert inside.all("pair").mean() == pytest.approx(0.95, abs=0.002)
    assert inside.mean("draw").min() > 0.98  # each of six needs more than its own 95 %
    widths = [bounds.sel(bound="high") - bounds.sel(bound="low") for bounds in (one, all_at_once)]
    np.testing.assert_allclose(widths[1] / widths[0], 2.63 / 1.96, rtol=0.06)  # of six independent t
    alone = comparison.simultaneous(values[:, :1], "pair")
    np.testing.assert_allclose(alone, one[:1], atol=0.001)
    np.testing.assert_allclose(comparison.simultaneous(0 * values + 0.2, "pair"), 0.2)  # no spread, no width
    some = comparison.simultaneous(values.where(values["pair"] != "b"), "pair")
    assert np.isnan(some).all("bound").values.tolist() == [False, True, False, False, False, False]


def test_a_claims_intervals_hold_together():
    cells = table(GOOD, FAIR, [1, 0, 0, 1, 0, 0], n=200)
    second = lambda t: accuracy(t).sel(model="network 0") - accuracy(t).sel(model="network 2")  # noqa: E731
    paper = comparison.paper_table("table1").isel(model=[0, 1, 2])
    paper = paper.assign_coords(model=["network 0", "network 1", "network 2"])
    both = comparison.judge("first is best", {"one": lead, "two": second}, cells, paper)["parts"]
    alone = comparison.judge("first is better", {"one": lead}, cells, paper)["parts"]
    values = xr.concat([lead(cells.mean("seed")), second(cells.mean("seed"))], pd.Index(["one", "two"], name="part"),
                       coords="minimal", compat="override")  # fmt: skip
    expected = comparison.simultaneous(values, "part").to_pandas()
    assert (
        pd.DataFrame(both).set_index("part")[["estimate", "low", "high"]].equals(expected[["estimate", "low", "high"]])
    )
    assert [alone[0][key] for key in ("low", "high")] == comparison.interval(lead(cells.mean("seed"))).values[
        1:
    ].tolist()
    assert both[0]["estimate"] == alone[0]["estimate"]
