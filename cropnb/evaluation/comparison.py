"""The paper's tables beside ours: shared redraws of test blocks, contrasts with intervals, and verdicts.

A *table* here is a DataArray (model, features, augmentation, measure): the paper's as published, ours with ``seed``
and ``draw`` too, where draw 0 is the test set itself and the others are redraws of its blocks. The redraws are the
same for every run, so any arithmetic between runs is a paired comparison. A run that is not there is NaN, and so is
whatever is computed from it.
"""

import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.optimize import brentq
from scipy.stats import nct
from scipy.stats import t as student

from cropnb import evaluation, models, runs
from cropnb.evaluation import replicates

PAPER = files("cropnb") / "resources" / "liu2023"
TABLES = {
    "table1": "table1_overall.csv",
    "table2": "table2_f1_by_features.csv",
    "table3": "table3_f1_by_augmentation.csv",
}
CELL = ("model", "features", "augmentation")
SUPPORTS, EXCLUDES = "supports", "excludes the paper's difference"
EQUIVALENT, OPEN = "equivalent within the margin", "cannot be told"
IMPOSSIBLE, GONE = "not possible here", "its run is not on disk"
_UNFED = ("cannot give the scenario", "are too small for the unpadded kernels")  # a training's own words


def paper_table(name: str) -> xr.DataArray:
    """Table 1, 2 or 3 of Liu et al. (2023), ``table1`` to ``table3``, as fractions.

    Measures are named as in `cropnb.evaluation.scores`. Raises ValueError for another name.
    """
    if name not in TABLES:
        raise ValueError(f"The paper has no table {name!r}; choose one of {', '.join(TABLES)}.")
    frame = pd.read_csv(str(PAPER / TABLES[name]))
    for key, only in (("augmentation", "none"), ("features", "optical+m-chi")):  # what a table does not vary
        frame[key] = frame[key].str.replace(" ", "-") if key in frame else only
    order: dict[str, Any] = {key: frame[key].unique() for key in CELL}
    frame = frame.set_index(list(CELL)).rename(columns=lambda c: c.removesuffix("_percent")) / 100
    order["measure"] = columns = frame.columns.str.replace("f1_mean", "mean_f1")
    series: Any = frame.set_axis(columns.rename("measure"), axis=1).stack()
    return xr.DataArray.from_series(series).reindex(order).assign_attrs(units="1", source="Liu et al. (2023)")


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
        estimate, redrawn = evaluation.bootstrap_replicates(test["true"], predicted, test["block"], classes, n, seed)
        stack.append(np.vstack([estimate, redrawn]))
    runs = xr.Coordinates.from_pandas_multiindex(pd.MultiIndex.from_tuples(predictions, names=[*CELL, "seed"]), "run")
    array = xr.DataArray(np.stack(stack), {"draw": range(n + 1), "measure": estimate.index}, ("run", "draw", "measure"))
    table = array.assign_coords(runs).unstack("run")
    return table.transpose(*CELL, "seed", "draw", "measure").assign_attrs(units="1", blocks=test["block"].nunique())


def interval(values: xr.DataArray) -> xr.DataArray:
    """Estimate and 95 % percentile interval over ``draw``, which becomes ``bound``: estimate, low, high.

    Draws without a value, as of a rare class that is in none of the redrawn blocks, are left out.
    """
    estimate, redrawn = values.sel(draw=0, drop=True), values.sel(draw=slice(1, None))
    known = estimate.notnull() & redrawn.notnull().any("draw")  # noqa: PD004  not pandas
    tails = [(1 - evaluation.LEVEL) / 2, (1 + evaluation.LEVEL) / 2]
    ends = redrawn.where(known, 0).quantile(tails, "draw").where(known).rename(quantile="bound").drop_vars("bound")
    bounds = xr.concat([estimate.expand_dims("bound"), ends], "bound").transpose(..., "bound").clip(-1, 1)
    return bounds.assign_coords(bound=["estimate", "low", "high"])


def simultaneous(values: xr.DataArray, dim: str) -> xr.DataArray:
    """Intervals as of `interval`, of which all along `dim` hold at once with a confidence of 95 % (max-|t|)."""
    estimate, redrawn = values.sel(draw=0, drop=True), values.sel(draw=slice(1, None))
    spread = redrawn.std("draw", ddof=1)
    largest = (abs(redrawn - estimate) / spread.where(spread > 0)).max(dim).fillna(0)
    half = largest.quantile(evaluation.LEVEL, "draw").drop_vars("quantile") * spread
    bounds = xr.concat([estimate, estimate - half, estimate + half], "bound").transpose(..., "bound").clip(-1, 1)
    return bounds.assign_coords(bound=["estimate", "low", "high"])


def contrast(table: xr.DataArray, difference: Callable[[xr.DataArray], xr.DataArray]) -> dict:
    """`difference` of a table of `draws`, with its 95 % interval: ``estimate``, ``low``, ``high``, ``by_seed``.

    Cells enter with the mean over their seeds; ``by_seed`` has a number for each seed with which all of them ran.
    """
    once = [float(difference(table.sel(draw=0, seed=seed))) for seed in table["seed"]]
    found = interval(difference(table.mean("seed"))).to_series().to_dict()
    return found | {"by_seed": [value for value in once if not np.isnan(value)]}


def verdict(low: float, high: float, by_seed: Iterable[float] = (), paper: float = np.nan, margin: float = 0) -> str:
    """What an interval of a difference says, of a claim that it is above zero.

    `EQUIVALENT` within ± `margin`; `SUPPORTS` above zero; `EXCLUDES` below the `paper`'s number, or below zero where
    that is not positive. The two last only if every seed says so too; else `OPEN`.
    """
    by_seed, target = list(by_seed), paper if paper > 0 else 0
    if -margin < low and high < margin:
        return EQUIVALENT
    if low > 0 and all(value > 0 for value in by_seed):
        return SUPPORTS
    return EXCLUDES if high < target and all(value < target for value in by_seed) else OPEN


def joint(verdicts: Iterable[str]) -> str:
    """Verdict on a claim that needs all its parts: one excluded decides, then one open, then one equivalent."""
    verdicts = set(verdicts)
    return next((said for said in (EXCLUDES, OPEN, EQUIVALENT) if said in verdicts), SUPPORTS)


def power(half: float, error: float, df: int, paper: float) -> dict[str, float]:
    """What an interval can see, whatever it shows: by its half width, the `error` of its middle and their freedom.

    ``visible`` is the true difference that is told from zero with a probability of 0.8, and ``power`` the probability
    for the `paper`'s number; NaN without spread.
    """
    if not error > 0:
        return {"visible": np.nan, "power": np.nan}
    least = brentq(lambda effect: nct.sf(half / error, df, effect) - 0.8, 0, 10 * half / error + 10)
    return {"visible": error * least, "power": float(nct.sf(half / error, df, abs(paper) / error))}


def judge(
    claim: str, parts: Mapping[str, Callable], table: xr.DataArray, paper: xr.DataArray, margin: float = 0
) -> dict:
    """A claim that says all its `parts` (name -> difference) are above zero, for `table` and beside the paper's.

    `table` is of `draws` or of `replicates.table`. The intervals of several parts hold together. A part that needs a
    training which had not converged in a replicate is `OPEN`, whatever its interval.
    """

    def stack(cells: xr.DataArray) -> xr.DataArray:
        values = [difference(cells) for difference in parts.values()]
        return xr.concat(values, pd.Index(parts, name="part"), coords="minimal", compat="override")

    if "replicate" in table.dims:
        ended = table.where(~(table.sel(measure="converged", drop=True) == 0))
        bounds = replicates.intervals(stack(table))
        unfinished = stack(table).count("replicate") - stack(ended).count("replicate")
        more = {name: {"unfinished": int(unfinished.sel(part=name).sum())} for name in parts}
        df = bounds["replicates"] - 1
    else:
        values, blocks = stack(table.mean("seed")), table.attrs["blocks"]
        bounds = pd.DataFrame((simultaneous(values, "part") if len(parts) > 1 else interval(values)).to_pandas())
        error = (bounds["high"] - bounds["low"]) / 2 / student.ppf((1 + evaluation.LEVEL) / 2, blocks - 1)
        by_seed = {name: contrast(table, difference)["by_seed"] for name, difference in parts.items()}
        more = {name: {"by_seed": seeds, "replicates": len(seeds)} for name, seeds in by_seed.items()}
        bounds, df = bounds.assign(error=error), pd.Series(blocks - 1, bounds.index)
    judged: list[dict[str, Any]] = []
    for name, difference in parts.items():
        part: dict[str, Any] = {str(key): value for key, value in bounds.loc[name].items()}
        part |= {"paper": float(difference(paper)), "margin": margin} | more[name]
        low, high = part["low"], part["high"]
        said = verdict(low, high, part.get("by_seed", ()), part["paper"], margin)
        part["verdict"] = OPEN if part.get("unfinished") else said
        judged.append({"part": name} | part | power((high - low) / 2, part["error"], df[name], part["paper"]))
    unit = "replicates" if "replicate" in table.dims else "blocks"
    return {"claim": claim, "verdict": joint(part["verdict"] for part in judged), "unit": unit, "parts": judged}


def marks(values: xr.DataArray) -> dict[str, str]:
    """``best`` and ``second best`` of values (model, draw), each only if its lead on the next is above zero.

    A lead is the low end of the interval of the paired difference; without a best there is no second best.
    """
    known = values.dropna("model", how="all")
    order = known["model"].values[np.argsort(-known.sel(draw=0).values, kind="stable")]
    found: dict[str, str] = {}
    for name, following in list(pairwise(order))[:2]:
        lead = interval(known.sel(model=name, drop=True) - known.sel(model=following, drop=True))
        if not lead.sel(bound="low") > 0:
            break
        found[str(name)] = "second best" if found else "best"
    return found


def trainings(build: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The trainings of a build that can be compared, and the cells of its sweep without one.

    Parameters
    ----------
    build
        Folder with ``sweep.json``, ``runs`` and, where sizes were tried, ``patch-size/<pixels>``.

    Returns
    -------
    there
        A row a run that a page, the sweep or `make run` asked for, as of `cropnb.runs.table`, with its ``network``
        (name on pages) and ``folder`` (last part). Its attribute ``strangers`` counts the runs that nobody asked for.
    absent
        Cells that failed or whose run is gone: ``run`` (`run_name`), ``folder``, `CELL`, ``reason`` and ``state``.

    Raises
    ------
    ValueError
        Without any run.
    """
    folders = [Path(build, "runs"), *sorted(Path(build, "patch-size").glob("*"))]
    tables = [runs.table(folder) for folder in folders]
    whole = [table.assign(folder=folder.name) for folder, table in zip(folders, tables, strict=True) if len(table)]
    if not whole:
        raise ValueError(f"There is no run to compare in {build}; train at least one network.")
    found = pd.concat(whole, ignore_index=True)
    sweep = json.loads(Path(build, "sweep.json").read_text(encoding="utf-8"))
    absent, names = missing(sweep, found["path"]), found["path"].map(run_name)
    old = all("cell" in cell for cell in sweep)  # an older build lists no pages, and takes all of its runs
    asked = names.isin([run_name(cell["run"]) for cell in sweep]) | old
    there = found[asked & ~names.isin(absent["run"])].assign(network=found["model"].map(models.DISPLAY_NAMES))
    there.attrs["strangers"] = int((~asked).sum())
    return there, absent


def missing(sweep: Iterable[Mapping], found: Iterable[str]) -> pd.DataFrame:
    """Cells of a sweep that failed, or whose run is not among the paths `found`; columns as in `trainings`.

    A cell that no data of the region could feed is "not possible here", another one "missing".
    """
    there, rows = set(map(run_name, found)), []
    for cell in sweep:
        name, reason = run_name(cell["run"]), cell["failed"]
        if reason or name not in there:
            folder, model, *rest, _ = name.split("/")
            state = IMPOSSIBLE if any(words in reason for words in _UNFED) else "missing"
            rows.append((name, folder, models.DISPLAY_NAMES.get(model, model), *rest, reason or GONE, state))
    return pd.DataFrame(rows, columns=["run", "folder", *CELL, "reason", "state"])


def minority(crops: pd.Series, classes: Sequence[str]) -> list[str]:
    """Classes with less than half of an equal share of training samples (their `crops`), or else the rarest one."""
    share = crops.value_counts(normalize=True).reindex(list(classes), fill_value=0)
    return list(share.index[share < 0.5 / len(classes)]) or [share.idxmin()]


def run_name(path: str | Path) -> str:
    """What tells a run from the others of a build: the last five parts of its path."""
    return "/".join(Path(path).parts[-5:])


def side_by_side(
    paper: xr.DataArray, table: xr.DataArray, absent: pd.DataFrame, lacking: Container[str] = ()
) -> pd.DataFrame:
    """A row a cell and measure of `table`: paper, estimate, low, high, seeds, and the state of a cell without a run.

    Parameters
    ----------
    paper, table
        From `paper_table` and `draws`, fractions.
    absent
        From `trainings`.
    lacking
        Features that the region cannot give.
    """
    bounds = interval(table.mean("seed"))
    frame = evaluation.within_range(bounds.to_dataset("bound").to_dataframe()[["estimate", "low", "high"]])
    frame.insert(0, "paper", paper.to_series().reindex(frame.index))
    seeds = table.sel(draw=0, drop=True).notnull().any("measure").sum("seed")  # noqa: PD004
    frame["seeds"] = seeds.expand_dims(measure=table["measure"]).transpose(*frame.index.names).to_series()
    states = absent.set_index(list(CELL))["state"].to_dict()
    without = [IMPOSSIBLE if row[1] in lacking else states.get(row[:3], "not in this build") for row in frame.index]
    return frame.assign(state=np.where(frame["seeds"] > 0, "", without))
