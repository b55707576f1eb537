"""What replicates say: a county, a training sample and first weights that are new each time, and nothing less.

Their table is a DataArray (replicate, model, features, augmentation, measure). A contrast is calculated in each
replicate and its interval is a t-interval over the replicates: it holds the luck of the layout, of the training and
test samples and of the first weights, which redraws of one test set do not. Contrasts of one family get simultaneous
intervals by the distribution of their largest \\|t\\|.
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise

import numpy as np
import pandas as pd
import xarray as xr
from scipy.ndimage import maximum_filter, minimum_filter
from scipy.stats import t as student

from cropnb.evaluation import LEVEL

DIMS = ["replicate", "model", "features", "augmentation", "measure"]
SETS = {"train": 0.4, "validation": 0.2, "test": 0.4}  # of the blocks


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


def frame(records: Iterable[Mapping]) -> pd.DataFrame:
    """A row a replicate, cell and measure, of what the replicates have written; one without a measure says why."""
    rows = [
        {"replicate": record["replicate"]}
        | {key: cell[key] for key in ("model", "features", "augmentation", "failed")}
        | {"measure": measure, "value": value}
        for record in records
        for cell in record["cells"]
        for measure, value in cell.get("scores", {"": np.nan}).items()
    ]
    columns = dict.fromkeys(DIMS, "str") | {"replicate": "int", "failed": "str", "value": "float"}
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)


def table(rows: pd.DataFrame) -> xr.DataArray:
    """The table of `frame`; what is missing is NaN."""
    return xr.DataArray.from_series(rows[rows["failed"] == ""].set_index(DIMS)["value"])


def intervals(values: xr.DataArray, seed: int = 0, redraws: int = 20_000) -> pd.DataFrame:
    """Contrasts (replicate, contrast) with intervals of which all hold at once: a row a contrast.

    Columns estimate, low, high, error (standard error of the estimate) and replicates. The interval takes the 95 %
    point of the largest \\|t\\| of all contrasts, simulated from Gaussians with their correlation and the same
    number of replicates; of a single contrast it is the t-interval. A replicate that lacks a contrast is left out of
    all; without two replicates the interval is NaN.
    """
    (name,) = set(values.dims) - {"replicate"}
    rows = values.transpose("replicate", name).values
    rows = rows[np.isfinite(rows).all(axis=1)]
    n, contrasts = rows.shape
    estimate = rows.mean(axis=0) if n else np.full(contrasts, np.nan)
    error = half = np.full(contrasts, np.nan)
    if n > 1:
        error = rows.std(axis=0, ddof=1) / np.sqrt(n)
        one = student.ppf((1 + LEVEL) / 2, n - 1)
        half = error * (max(one, largest_t(rows, seed, redraws)) if contrasts > 1 else one)
    columns = {"estimate": estimate, "low": estimate - half, "high": estimate + half, "error": error, "replicates": n}
    return pd.DataFrame(columns, values.indexes[name])


def largest_t(rows: np.ndarray, seed: int, redraws: int) -> float:
    """95 % point of the largest \\|t\\| over Gaussian contrasts that covary as `rows (replicate, contrast)` do."""
    mixtures = np.random.default_rng(seed).standard_normal((redraws, len(rows), len(rows)))
    normal = mixtures @ (rows - rows.mean(axis=0))
    spread = normal.std(axis=1, ddof=1) / np.sqrt(len(rows))
    t = np.divide(normal.mean(axis=1), spread, out=np.zeros_like(spread), where=spread > 1e-9)
    return float(np.quantile(np.abs(t).max(axis=1), LEVEL))
