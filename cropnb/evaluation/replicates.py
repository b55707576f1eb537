"""What replicates say: a county, a training sample and first weights that are new each time, and nothing less.

A table of replicates has a row a replicate, cell and measure (``replicate, model, features, augmentation, measure,
value``). A contrast is calculated in each replicate and its interval is a t-interval over the replicates: it holds
the luck of the layout, of the training and test samples and of the first weights, which redraws of one test set do
not. Contrasts of one family get simultaneous intervals by the distribution of their largest \\|t\\|.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
import xarray as xr
from scipy.ndimage import maximum_filter, minimum_filter
from scipy.optimize import brentq
from scipy.stats import nct
from scipy.stats import t as student

LEVEL = 0.95
SUPPORTS, EXCLUDES = "supports", "excludes the paper's difference"
EQUIVALENT, OPEN = "equivalent within the margin", "cannot be told"
CELL = ["model", "features", "augmentation"]
SETS = {"train": 0.5, "validation": 0.15, "test": 0.35}  # of the blocks


def units(
    reference: xr.Dataset, complete: np.ndarray, pixels: Mapping[str, int], seed: int, patch: int = 11
) -> pd.DataFrame:
    """Pixels of parcels, the units of a replicate: ``row, col, parcel_id, block, crop, set`` and ``pick``.

    Blocks of `reference` (`cropnb.split.reference`) are dealt to `SETS`; each parcel gives up to ``pixels[set]``
    pixels, numbered by ``pick``, whose patch is `complete (y, x)` and meets no parcel of another set: the
    first pick of all parcels is one pixel a parcel, the second other pixels of the same parcels.
    """
    rng = np.random.default_rng(seed)
    block, parcel = reference["block"].values, reference["parcel"].values
    names = rng.permutation(np.unique(block[parcel > 0]))
    ends = np.round(np.cumsum([0, *SETS.values()]) * len(names)).astype(int)
    number = np.zeros(block.shape, np.uint8)
    for i, (start, end) in enumerate(pairwise(ends), 1):
        number[np.isin(block, names[start:end]) & (parcel > 0)] = i
    lowest = minimum_filter(np.where(number, number, 255), patch)
    free = (number > 0) & minimum_filter(complete, patch) & (lowest == maximum_filter(number, patch))
    half = patch // 2
    free[:half] = free[-half:] = free[:, :half] = free[:, -half:] = False
    row, col = np.nonzero(free)
    table = pd.DataFrame({"row": row, "col": col, "parcel_id": parcel[free], "block": block[free]})
    table["crop"] = np.array(reference.attrs["classes"])[reference["crop"].values[free]]
    table["set"] = np.array(["", *SETS])[number[free]]
    table = table.iloc[rng.permutation(len(table))]
    table["pick"] = table.groupby("parcel_id").cumcount()
    return table[table["pick"] < table["set"].map(pixels)].reset_index(drop=True)


def contrasts(table: pd.DataFrame, weights: Mapping[str, Mapping[tuple, float]], measure: str) -> pd.DataFrame:
    """Contrasts of `measure` in each replicate: a row a replicate, a column a contrast.

    `weights` maps a contrast's name to cells (model, features, augmentation) -> weight. A replicate that lacks a cell
    of any contrast is left out, so that all columns are paired. Raises ValueError where a cell has no row at all.
    """
    chosen = table[table["measure"] == measure]
    wide = chosen.pivot_table("value", "replicate", CELL)
    wanted = {cell for cells in weights.values() for cell in cells}
    if absent := sorted(wanted - set(wide.columns)):
        raise ValueError(f"No replicate has {measure} of {'/'.join(absent[0])}; train it or drop the contrast.")
    wide = wide.dropna(subset=list(wanted))
    return pd.DataFrame({name: sum(w * wide[cell] for cell, w in cells.items()) for name, cells in weights.items()})


def pairs(models: Sequence[str], features: str, augmentation: str = "none") -> dict[str, dict[tuple, float]]:
    """Every pair of `models` as a contrast "one - other", for `contrasts`."""
    cell = {model: (model, features, augmentation) for model in models}
    return {f"{a} - {b}": {cell[a]: 1.0, cell[b]: -1.0} for a, b in combinations(models, 2)}


def intervals(values: pd.DataFrame, seed: int, redraws: int = 20_000) -> pd.DataFrame:
    """Estimate, 95 % t-interval and simultaneous interval of contrasts (replicate, contrast): a row a contrast.

    Columns: estimate, low, high, joint_low, joint_high, sd, replicates. The simultaneous interval takes the 95 %
    point of the largest \\|t\\| of the family, simulated from Gaussians with the contrasts' correlation and the same
    number of replicates. Raises ValueError for fewer than two replicates.
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"{n} replicate carries no spread; give at least 2.")
    mean, error = values.mean(), values.std() / np.sqrt(n)
    one = student.ppf((1 + LEVEL) / 2, n - 1)
    joint = max(one, largest_t(values.corr().fillna(0).to_numpy(), n, seed, redraws)) if values.shape[1] > 1 else one
    ends = {"low": mean - one * error, "high": mean + one * error}
    ends |= {"joint_low": mean - joint * error, "joint_high": mean + joint * error}
    return pd.DataFrame({"estimate": mean, **ends, "sd": values.std(), "replicates": n})


def largest_t(correlation: np.ndarray, n: int, seed: int, redraws: int = 20_000) -> float:
    """95 % point of the largest \\|t\\| over contrasts of `correlation`, each from `n` replicates."""
    rng = np.random.default_rng(seed)
    value, vector = np.linalg.eigh(correlation)
    root = vector * np.sqrt(value.clip(0))
    normal = rng.standard_normal((redraws, n, len(root))) @ root.T
    t = normal.mean(axis=1) / (normal.std(axis=1, ddof=1) / np.sqrt(n) + 1e-12)
    return float(np.quantile(np.abs(t).max(axis=1), LEVEL))


def power(difference: float, sd: float, n: int) -> float:
    """Probability that the t-interval of `n` replicates misses zero on the right side, for a true `difference`."""
    return float(nct.sf(student.ppf((1 + LEVEL) / 2, n - 1), n - 1, abs(difference) / sd * np.sqrt(n)))


def visible(sd: float, n: int, wanted: float = 0.8) -> float:
    """Smallest true difference that `n` replicates with spread `sd` see with probability `wanted`."""
    return float(sd * brentq(lambda effect: power(effect, 1.0, n) - wanted, 1e-6, 1e3))


def verdict(low: float, high: float, paper: float, margin: float) -> str:
    """One of four verdicts on a difference with interval `low`, `high`, where the paper reports `paper`.

    `EQUIVALENT`: the interval lies within +- `margin`, stated before the results. Else `SUPPORTS`: it lies on the
    paper's side of zero and holds a difference at least as large as the paper's. Else `EXCLUDES`: it lies wholly
    short of the paper's difference. Else `OPEN`.
    """
    if paper < 0:
        low, high, paper = -high, -low, -paper
    if -margin <= low and high <= margin:
        return EQUIVALENT
    if low > 0 and high >= paper:
        return SUPPORTS
    return EXCLUDES if high < paper else OPEN
