"""The paper's tables beside ours: shared redraws of test blocks, contrasts with intervals, and verdicts.

A *table* here is a DataArray (model, features, augmentation, measure): the paper's as published, ours with ``seed``
and ``draw`` too, where draw 0 is the test set itself and the others are redraws of its blocks. The redraws are the
same for every run, so any arithmetic between runs is a paired comparison. A run that is not there is NaN, and so is
whatever is computed from it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from cropnb import evaluation

PAPER = files("cropnb") / "resources" / "liu2023"
TABLES = {
    "table1": "table1_overall.csv",
    "table2": "table2_f1_by_features.csv",
    "table3": "table3_f1_by_augmentation.csv",
}
CELL = ("model", "features", "augmentation")
HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told"


def paper_table(name: str) -> xr.DataArray:
    """Table 1, 2 or 3 of Liu et al. (2023), ``table1`` to ``table3``, as fractions.

    Measures are named as in `cropnb.evaluation.scores`. Raises ValueError for another name.
    """
    if name not in TABLES:
        raise ValueError(f"The paper has no table {name!r}; choose one of {', '.join(TABLES)}.")
    frame = pd.read_csv(PAPER / TABLES[name])
    for key, only in (("augmentation", "none"), ("features", "optical+m-chi")):  # what a table does not vary
        frame[key] = frame[key].str.replace(" ", "-") if key in frame else only
    order = {key: frame[key].unique() for key in CELL}
    frame = frame.set_index(list(CELL)).rename(columns=lambda c: c.removesuffix("_percent")) / 100
    order["measure"] = columns = frame.columns.str.replace("f1_mean", "mean_f1")
    series = frame.set_axis(columns.rename("measure"), axis=1).stack()
    return series.to_xarray().reindex(order).assign_attrs(units="1", source="Liu et al. (2023)")


def draws(predictions: Mapping[tuple, pd.DataFrame], classes: Sequence[str], n: int, seed: int) -> xr.DataArray:
    """Table with dims `CELL`, seed, draw, measure of runs on the same test samples and `n` redraws of their blocks.

    `predictions` maps (model, features, augmentation, seed) to what `cropnb.runs` stores, rows in any order.
    Raises ValueError without any run, and where two runs were judged on different samples.
    """
    if not predictions:
        raise ValueError("There is no run to compare; train at least one network.")
    stack, first = [], None
    for key, frame in predictions.items():
        test = frame[frame["set"] == "test"].sort_values(["row", "col"])
        samples = test[["row", "col", "block", "true"]].astype({"true": str}).to_numpy(object)
        first = samples if first is None else first
        if not np.array_equal(samples, first):
            one, other = ("/".join(map(str, name)) for name in (key, next(iter(predictions))))
            raise ValueError(f"{one} and {other} were judged on different samples; use one split and the same counts.")
        predicted = np.asarray(classes)[test[list(classes)].to_numpy().argmax(axis=1)]
        estimate, redrawn = evaluation.bootstrap_draws(test["true"], predicted, test["block"], classes, n, seed)
        stack.append(np.vstack([estimate, redrawn]))
    runs = xr.Coordinates.from_pandas_multiindex(pd.MultiIndex.from_tuples(predictions, names=[*CELL, "seed"]), "run")
    array = xr.DataArray(np.stack(stack), {"draw": range(n + 1), "measure": estimate.index}, ("run", "draw", "measure"))
    table = array.assign_coords(runs).unstack("run")  # noqa: PD010  not pandas
    return table.transpose(*CELL, "seed", "draw", "measure").assign_attrs(units="1")


def interval(values: xr.DataArray) -> xr.DataArray:
    """Estimate and 95 % percentile interval over ``draw``, which becomes ``bound``: estimate, low, high.

    Draws without a value, as of a rare class that is in none of the redrawn blocks, are left out.
    """
    estimate, redrawn = values.sel(draw=0, drop=True), values.sel(draw=slice(1, None))
    known = ~np.isnan(estimate) & ~np.isnan(redrawn).all("draw")
    tails = [(1 - evaluation.LEVEL) / 2, (1 + evaluation.LEVEL) / 2]
    ends = redrawn.where(known, 0).quantile(tails, "draw").where(known).rename(quantile="bound").drop_vars("bound")
    bounds = xr.concat([estimate.expand_dims("bound"), ends], "bound").transpose(..., "bound")
    return bounds.assign_coords(bound=["estimate", "low", "high"])


def contrast(table: xr.DataArray, difference: Callable[[xr.DataArray], xr.DataArray]) -> dict:
    """`difference` of a table of `draws`, with its 95 % interval: ``estimate``, ``low``, ``high``, ``by_seed``.

    Cells enter with the mean over their seeds; in ``by_seed``, a number a seed, with that seed where they have it.
    """
    cells = table.mean("seed")
    once, mean = table.sel(draw=0), cells.sel(draw=0)
    by_seed = [float(difference(once.sel(seed=seed).fillna(mean))) for seed in table["seed"]]
    return interval(difference(cells)).to_series().to_dict() | {"by_seed": by_seed}


def verdict(low: float, high: float, by_seed: Iterable[float] = ()) -> str:
    """`HOLDS` for an interval above zero, `FAILS` for one below, if every seed has that sign; else `OPEN`."""
    by_seed = list(by_seed)
    if low > 0 and all(value > 0 for value in by_seed):
        return HOLDS
    return FAILS if high < 0 and all(value < 0 for value in by_seed) else OPEN


def joint(verdicts: Iterable[str]) -> str:
    """Verdict on a claim that needs all its parts: one that fails refutes it, one that is open leaves it open."""
    verdicts = set(verdicts)
    return FAILS if FAILS in verdicts else HOLDS if verdicts == {HOLDS} else OPEN


def judge(claim: str, parts: Mapping[str, Callable], table: xr.DataArray, paper: xr.DataArray) -> dict:
    """A claim that says all its `parts` (name -> difference) are above zero, for `table` and beside the paper's."""
    judged = []
    for name, difference in parts.items():
        found = contrast(table, difference)
        said = verdict(found["low"], found["high"], found["by_seed"])
        judged.append({"part": name, "paper": float(difference(paper)), **found, "verdict": said})
    return {"claim": claim, "verdict": joint(part["verdict"] for part in judged), "parts": judged}


def marks(values: xr.DataArray) -> dict[str, str]:
    """``best`` and ``second best`` of values (model, draw), each only if its lead on the next is above zero.

    A lead is the low end of the interval of the paired difference; without a best there is no second best.
    """
    known = values.dropna("model", how="all")
    order, found = known["model"].values[np.argsort(-known.sel(draw=0).values, kind="stable")], {}
    for name, following in list(pairwise(order))[:2]:
        lead = interval(known.sel(model=name, drop=True) - known.sel(model=following, drop=True))
        if not lead.sel(bound="low") > 0:
            break
        found[str(name)] = "second best" if found else "best"
    return found


def missing(sweep: Iterable[Mapping], found: Iterable[str]) -> pd.DataFrame:
    """Cells of a sweep that failed, or whose run is not among the paths `found`: run (`run_name`), `CELL`, reason."""
    there, rows = set(map(run_name, found)), []
    for cell in sweep:
        name = run_name(cell["run"])
        if cell["failed"] or name not in there:
            rows.append((name, *name.split("/")[1:4], cell["failed"] or "its run is not on disk"))
    return pd.DataFrame(rows, columns=["run", *CELL, "reason"])


def run_name(path: str | Path) -> str:
    """What tells a run from the others of a build: the last five parts of its path."""
    return "/".join(Path(path).parts[-5:])


def side_by_side(paper: xr.DataArray, table: xr.DataArray, absent: pd.DataFrame) -> pd.DataFrame:
    """A row a cell and measure of `table`: paper, estimate, low, high, seeds, and the state of a cell without a run.

    `absent` is that of `missing`, with models named as in `table`.
    """
    bounds = interval(table.mean("seed"))
    frame = bounds.to_dataset("bound").to_dataframe()[["estimate", "low", "high"]]
    frame.insert(0, "paper", paper.to_series().reindex(frame.index))
    seeds = (~np.isnan(table.sel(draw=0, drop=True))).any("measure").sum("seed")
    frame["seeds"] = seeds.expand_dims(measure=table["measure"]).transpose(*frame.index.names).to_series()
    failed = set(absent[list(CELL)].itertuples(index=False, name=None))
    there = frame["seeds"] > 0
    frame["state"] = ["missing" if row[:3] in failed else "not in this build" for row in frame.index]
    return frame.assign(state=frame["state"].where(~there, ""))
