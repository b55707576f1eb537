"""Intervals over replicates cover what they promise, alone and together; four verdicts, each where it belongs."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from cropnb.evaluation import replicates

MODELS = ("one", "two", "three", "four")
PAIRS = tuple(combinations(range(4), 2))


def accuracies(rng, n=5, effects=(0.0, 0.0, 0.0, 0.0), county=5.0, method=1.5):
    """In points (replicate, model): every network meets the same county, each has its luck of sample and weights."""
    values = 70 + np.array(effects) + county * rng.normal(size=(n, 1)) + method * rng.normal(size=(n, 4))
    return pd.DataFrame(values, pd.RangeIndex(n, name="replicate"), pd.Index(MODELS, name="model"))


def found(rng, redraws=10, chosen=PAIRS, **options):
    values = accuracies(rng, **options).to_numpy()
    differences = {f"{MODELS[a]} - {MODELS[b]}": values[:, a] - values[:, b] for a, b in chosen}
    return replicates.intervals(pd.DataFrame(differences), seed=0, redraws=redraws)


def test_units_are_pixels_of_parcels_and_no_patch_sees_another_set():
    """20 x 20 parcels of 8 x 8 pixels, in blocks of 2 x 2 parcels."""
    parcel = 1 + np.add.outer(20 * (np.arange(160) // 8), np.arange(160) // 8)
    block = np.add.outer(100 * (np.arange(160) // 16), np.arange(160) // 16)
    layers = {"parcel": parcel, "block": block, "crop": (parcel % 2).astype(np.uint8)}
    reference = xr.Dataset({name: (("y", "x"), values) for name, values in layers.items()}, attrs={"classes": MODELS})
    complete = np.ones((160, 160), bool)
    complete[:, 80] = False
    wanted = {"train": 4, "validation": 1, "test": 3}
    rows = replicates.units(reference, complete, wanted, seed=3, patch=5)
    assert set(rows["set"]) == set(wanted)
    assert (rows.groupby("parcel_id").size() <= rows.groupby("parcel_id")["set"].first().map(wanted)).all()
    assert not rows.duplicated(["row", "col"]).any()
    assert len(rows.drop_duplicates(["block", "set"])) == rows["block"].nunique()
    assert rows[rows["pick"] == 0]["parcel_id"].is_unique
    assert not rows["col"].between(78, 82).any()  # a patch there is not complete
    of_block = rows.groupby("block")["set"].first()
    for row in rows.itertuples():
        seen = np.unique(block[row.row - 2 : row.row + 3, row.col - 2 : row.col + 3])
        assert set(of_block.reindex(seen).dropna()) == {row.set}
    pd.testing.assert_frame_equal(rows, replicates.units(reference, complete, wanted, seed=3, patch=5))


def test_coverage_of_one_and_of_all():
    """400 experiments: 95 % covered within three standard errors (3.3 points), alone and all six together."""
    rng, alone, together = np.random.default_rng(1), [], []
    truth = np.subtract.outer((0, 1, 2, 4), (0, 1, 2, 4))[np.triu_indices(4, 1)]
    for _ in range(400):
        rows = found(rng, redraws=1000, effects=(0, 1, 2, 4))
        alone.append((rows["low"] <= truth) & (truth <= rows["high"]))
        together.append(((rows["joint_low"] <= truth) & (truth <= rows["joint_high"])).all())
    assert np.mean(alone) == pytest.approx(0.95, abs=0.033)
    assert np.mean(together) == pytest.approx(0.95, abs=0.033)
    assert np.mean(np.all(alone, axis=1)) < 0.9  # why the simultaneous interval is needed


def test_power_is_what_simulation_finds():
    rng, n, sd = np.random.default_rng(2), 5, 1.5 * np.sqrt(2)
    seen = np.mean([found(rng, chosen=[(0, 1)], effects=(3, 0, 0, 0)).loc["one - two", "low"] > 0 for _ in range(400)])
    assert seen == pytest.approx(replicates.power(3, sd, n), abs=0.075)
    least = replicates.visible(sd, n)
    assert replicates.power(least, sd, n) == pytest.approx(0.8, abs=1e-6)
    assert replicates.visible(sd, 8) < least


def test_a_lacking_cell_leaves_its_replicate_out_of_all_contrasts():
    whole = accuracies(np.random.default_rng(0)).stack().rename("value").reset_index()
    whole = whole.assign(features="optical", augmentation="none", measure="overall_accuracy")
    values = replicates.contrasts(whole.iloc[1:], replicates.pairs(MODELS, "optical"), "overall_accuracy")
    assert values.index.tolist() == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="No replicate has overall_accuracy of five/optical/none"):
        replicates.contrasts(whole, replicates.pairs(("one", "five"), "optical"), "overall_accuracy")
    with pytest.raises(ValueError, match="1 replicate carries no spread"):
        replicates.intervals(values.iloc[:1], seed=0)


@pytest.mark.parametrize(
    ("low", "high", "paper", "said"),
    [
        (5, 9, 8, replicates.SUPPORTS),
        (-9, -5, -8, replicates.SUPPORTS),
        (-2, 1.3, 8, replicates.EXCLUDES),
        (2, 4, 8, replicates.EXCLUDES),
        (-0.5, 0.9, 8, replicates.EQUIVALENT),
        (-0.5, 0.9, 0.5, replicates.EQUIVALENT),
        (-1, 9, 8, replicates.OPEN),
        (3, 5, -4, replicates.EXCLUDES),
    ],
)
def test_verdicts(low, high, paper, said):
    assert replicates.verdict(low, high, paper, margin=1) == said


@given(st.floats(-20, 20), st.floats(0, 20), st.floats(-20, 20).filter(bool))
def test_verdicts_do_not_depend_on_the_order_of_the_two(middle, half, paper):
    said = replicates.verdict(middle - half, middle + half, paper, 1)
    assert replicates.verdict(-middle - half, -middle + half, -paper, 1) == said


@pytest.mark.parametrize(("true", "wrong"), [(0, replicates.SUPPORTS), (8, replicates.EXCLUDES)])
def test_a_wrong_verdict_is_rare(true, wrong):
    """At most 2.5 % of experiments by the t-interval; 300 of them scatter by 0.9 points."""
    rng = np.random.default_rng(3)
    rows = [found(rng, chosen=[(0, 1)], effects=(true, 0, 0, 0)).loc["one - two"] for _ in range(300)]
    said = [replicates.verdict(row["low"], row["high"], 8, 1) for row in rows]
    assert said.count(wrong) / 300 < 0.025 + 3 * 0.009
