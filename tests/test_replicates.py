"""Intervals over replicates cover what they promise, alone and together; four verdicts, each where it belongs."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from cropnb.evaluation import comparison, replicates

MODELS = ("one", "two", "three", "four")
PAIRS = tuple(combinations(range(4), 2))


def accuracies(rng, n=5, effects=(0.0, 0.0, 0.0, 0.0), county=0.05, method=0.015):
    """Every network meets the same county, each has its luck of sample and weights."""
    values = 0.7 + np.array(effects) + county * rng.normal(size=(n, 1)) + method * rng.normal(size=(n, 4))
    return xr.DataArray(values, {"replicate": range(n), "model": list(MODELS)}, ("replicate", "model"))


def found(rng, redraws=10, chosen=PAIRS, **options):
    values = accuracies(rng, **options)
    differences = [values.isel(model=a, drop=True) - values.isel(model=b, drop=True) for a, b in chosen]
    names = pd.Index([f"{MODELS[a]} - {MODELS[b]}" for a, b in chosen], name="pair")
    return replicates.intervals(xr.concat(differences, names), redraws=redraws)


def records(values, converged=1.0):
    """What replicates write, from accuracies."""
    cell = {"features": "optical+m-chi", "augmentation": "none", "failed": ""}
    return [
        {
            "replicate": int(number),
            "cells": [
                cell | {"model": name, "scores": {"overall_accuracy": float(value), "converged": converged}}
                for name, value in zip(MODELS, row.values, strict=True)
            ],
        }
        for number, row in zip(values["replicate"], values, strict=True)
    ]


def lead(table):
    t = table.sel(features="optical+m-chi", augmentation="none", measure="overall_accuracy")
    return t.sel(model="one") - t.sel(model="two")


PAPER = comparison.paper_table("table1").isel(model=[0, 1]).assign_coords(model=["two", "one"])  # +4.1 points


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
    effects = np.array((0, 0.01, 0.02, 0.04))
    truth = np.subtract.outer(effects, effects)[np.triu_indices(4, 1)]
    for _ in range(400):
        one = found(rng, chosen=[(0, 1)], effects=effects).iloc[0]
        alone.append(one["low"] <= truth[0] <= one["high"])
        rows = found(rng, redraws=1000, effects=effects)
        together.append(((rows["low"] <= truth) & (truth <= rows["high"])).all())
    assert np.mean(alone) == pytest.approx(0.95, abs=0.033)
    assert np.mean(together) == pytest.approx(0.95, abs=0.033)


def test_power_is_what_simulation_finds():
    rng = np.random.default_rng(2)
    seen, said = [], []
    for _ in range(400):
        values = accuracies(rng, effects=(0.03, 0, 0, 0))
        part = comparison.judge("one leads", {"": lead}, replicates.table(replicates.frame(records(values))), PAPER)
        seen.append(part["parts"][0]["low"] > 0)
        said.append(part["parts"][0]["error"])
    error = np.sqrt(np.mean(np.square(said)))
    power = comparison.power(2.776 * error, error, 4, 0.03)
    assert np.mean(seen) == pytest.approx(power["power"], abs=0.075)


def test_a_lacking_cell_leaves_its_replicate_out_of_all_contrasts():
    values = accuracies(np.random.default_rng(0))
    values[0, 0] = np.nan
    differences = xr.concat([values[:, a] - values[:, b] for a, b in PAIRS], pd.RangeIndex(6, name="pair"),
                            coords="minimal", compat="override")  # fmt: skip
    assert (replicates.intervals(differences)["replicates"] == 4).all()
    few = replicates.intervals(differences[:, :2])  # one is left
    assert few["estimate"].notna().all()
    assert few[["low", "high"]].isna().all(axis=None)


def test_failed_cells_and_replicates_are_kept_with_their_reason():
    written = records(accuracies(np.random.default_rng(0), n=2))
    written[0]["cells"][1] = {k: v for k, v in written[0]["cells"][1].items() if k != "scores"} | {"failed": "NaN loss"}
    written.append({"replicate": 2, "cells": [{"model": "", "features": "", "augmentation": "", "failed": "no disk"}]})
    rows = replicates.frame(written)
    assert rows[rows["failed"] != ""][["replicate", "failed"]].to_numpy().tolist() == [[0, "NaN loss"], [2, "no disk"]]
    table = replicates.table(rows)
    assert table.sizes["replicate"] == 2
    assert np.isnan(lead(table).sel(replicate=0))
    assert replicates.frame([]).dtypes.to_dict() == rows.dtypes.to_dict()


def test_what_had_not_converged_has_no_verdict():
    values = accuracies(np.random.default_rng(0), effects=(0.5, 0, 0, 0))
    for converged, said in ((1.0, comparison.SUPPORTS), (0.0, comparison.OPEN)):
        table = replicates.table(replicates.frame(records(values, converged)))
        claim = comparison.judge("one leads", {"lead": lead}, table, PAPER)
        assert claim["verdict"] == said
        assert claim["unit"] == "replicates"
        assert claim["parts"][0]["unfinished"] == (0 if converged else 5)
        assert claim["parts"][0]["replicates"] == 5


@pytest.mark.parametrize(("true", "wrong"), [(0, comparison.SUPPORTS), (0.08, comparison.EXCLUDES)])
def test_a_wrong_verdict_is_rare(true, wrong):
    """At most 2.5 % of experiments by the t-interval; 300 of them scatter by 0.9 points."""
    rng = np.random.default_rng(3)
    rows = [found(rng, chosen=[(0, 1)], effects=(true, 0, 0, 0)).iloc[0] for _ in range(300)]
    said = [comparison.verdict(row["low"], row["high"], paper=0.08, margin=0.01) for row in rows]
    assert said.count(wrong) / 300 < 0.025 + 3 * 0.009
