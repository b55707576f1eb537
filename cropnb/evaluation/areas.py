"""Areas and accuracies of a map from a probability sample of reference pixels, after Olofsson et al. (2014).

Counting the pixels of a map counts its errors too. The estimators here take the areas from the reference labels
of a stratified random sample and use the map only to form the strata; they are unbiased however wrong the map is.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio.transform
import xarray as xr
from numpy.typing import ArrayLike
from odc.geo.geobox import GeoBox

from cropnb import files

Z = 1.96  # standard errors on each side of a 95 % interval
Counts = Mapping[Any, float] | pd.Series  # of each stratum


def estimate(
    matrix: pd.DataFrame, mapped_pixels: Counts | Sequence[int], pixel_area: float, *, probability_sample: bool = True
) -> pd.DataFrame:
    """Stratified estimates with 95 % intervals; equation numbers are those of Olofsson et al. (2014).

    What it needs: pixels sampled at random from each mapped class, without replacement, as `sample` does, and a
    reference label of each. The estimates hold for the pixels that could have been sampled and for no others:
    for the held-out blocks, when only they could. Pixels sampled in clusters need other estimators.

    Parameters
    ----------
    matrix : counts of sampled pixels with a row a mapped class (the stratum) and a column a reference class, the
        same classes in the same order: the transpose of `evaluation.confusion_matrix`.
    mapped_pixels : pixels that the map gives to each class, by class or in the order of the rows.
    pixel_area : area of a pixel, in the unit the areas shall have.
    probability_sample : say False where the sample was found rather than sampled at random; it warns.

    Returns
    -------
    DataFrame with a row a class: area, users_accuracy and producers_accuracy, each with the ends of its interval
    (area_low, area_high, ...), and mapped_area. ``attrs`` has overall_accuracy, overall_accuracy_low and _high.
    Intervals are symmetric and may leave the possible range; a stratum whose sample holds no error adds no width
    to them. An accuracy that does not exist is NaN. Raises ValueError for a stratum with fewer than two samples.
    """
    counts, pixels = _checked(matrix, mapped_pixels)
    if not probability_sample:
        message = "The reference pixels are no probability sample of the map, so areas, accuracies and intervals may"
        warnings.warn(f"{message} be biased by how they were found; sample them with areas.sample.", stacklevel=2)
    size = counts.sum(axis=1, keepdims=True)
    weight, whole = pixels[:, None] / pixels.sum(), pixels.sum() * pixel_area
    with np.errstate(invalid="ignore"):  # 0 / 0 is an accuracy that does not exist
        share = counts / size  # n_ij / n_i
        spread = share * (1 - share) / (size - 1)  # its variance
        cell, part = np.nan_to_num(weight * share), np.nan_to_num(weight**2 * spread)  # eq (4), terms of eq (10)
        proportion, right = cell.sum(axis=0), np.diag(part)  # eq (9)
        producers = np.diag(cell) / proportion  # eq (3)
        missed = (1 - producers) ** 2 * right + producers**2 * (part.sum(axis=0) - right)  # eq (7), over N squared
        columns = {
            "area": (proportion * whole, np.sqrt(part.sum(axis=0)) * whole),  # eqs (11), (12)
            "users_accuracy": (np.diag(share), np.sqrt(np.diag(spread))),  # eqs (2), (6)
            "producers_accuracy": (producers, np.sqrt(missed) / proportion),
            "overall_accuracy": (np.trace(cell), np.sqrt(right.sum())),  # eqs (1), (5)
        }
    ends = {"": 0, "_low": -Z, "_high": Z}
    values = {name + end: e + z * error for name, (e, error) in columns.items() for end, z in ends.items()}
    overall = {name: float(values.pop(name)) for name in [*values][-3:]}
    table = pd.DataFrame(values, index=matrix.columns)
    table.insert(3, "mapped_area", pixels * pixel_area)
    table.attrs.update(overall)
    return table


def ratio(top: ArrayLike, bottom: ArrayLike, stratum: ArrayLike, pixels: Counts) -> pd.Series:
    """Ratio of two totals of a map from a stratified sample, whatever the strata: Stehman (2014), eqs (27) and (28).

    Each sampled pixel has a value above and one below the fraction line and a `stratum`, of which the map has
    ``pixels[stratum]``. For an overall accuracy `top` says whether the map is right and `bottom` is 1; for a user's
    (producer's) accuracy `bottom` says whether the map (the reference) has the class and `top` whether both have; for
    a share of the area `top` says whether the reference has the class; for the lead of one map over another `top`
    is whether the one is right less whether the other is.
    Returns estimate, low and high (95 %). Raises ValueError for a stratum with fewer than two samples or no count.
    """
    values = pd.DataFrame({"top": np.asarray(top, float)}).assign(bottom=np.asarray(bottom, float))
    by, size = _by_stratum(values, stratum, pixels)
    total = (by.mean().mul(size, axis=0)).sum()
    estimate = total["top"] / total["bottom"]
    residual = values["top"] - estimate * values["bottom"]
    error = np.sqrt((size**2 * residual.groupby(np.asarray(stratum)).var() / by.size()).sum()) / total["bottom"]
    return _interval(estimate, error)


def assisted(
    value: ArrayLike,
    prediction: ArrayLike,
    known: Counts,
    stratum: ArrayLike,
    pixels: Counts,
    slope: float | None = None,
) -> pd.Series:
    """Mean of the map's pixels from a stratified sample, helped by a prediction that every pixel has.

    The mean of ``slope * prediction`` over all pixels, put right by what the sample says of ``value - slope *
    prediction``. With a slope of 1 it is the difference estimator, which is prediction-powered inference where
    all pixels are predicted (Angelopoulos et al. 2023); without one, the slope is the sample's own, the regression
    estimator (Särndal et al. 1992, chapter 6) and the tuned form of prediction-powered inference; with 0 it is the
    stratified mean alone.

    Parameters
    ----------
    value, prediction : of each sampled pixel, such as whether its reference is maize, and the map's probability.
    known : mean prediction of all pixels of each stratum.
    stratum, pixels : as in `ratio`.

    Returns
    -------
    Series of estimate, low, high (95 %) and slope. Raises ValueError as `ratio` does.
    """
    values = pd.DataFrame({"y": np.asarray(value, float), "p": np.asarray(prediction, float)})
    by, size = _by_stratum(values, stratum, pixels)
    weight, n = size / size.sum(), by.size()
    if slope is None:
        joint = by.cov().mul((weight**2 / n).reindex(by.cov().index, level=0), axis=0).groupby(level=1).sum()
        slope = float(joint.loc["y", "p"] / joint.loc["p", "p"]) if joint.loc["p", "p"] > 0 else 0.0
    left = (values["y"] - slope * values["p"]).groupby(np.asarray(stratum))
    estimate = (weight * (slope * pd.Series(known).reindex(size.index) + left.mean())).sum()
    error = np.sqrt((weight**2 * left.var() / n).sum())
    return pd.concat([_interval(estimate, error), pd.Series({"slope": slope})])


def allocate(pixels: Counts, n: int, minimum: int = 0, spread: pd.Series | float = 1.0) -> pd.Series:
    """How many of `n` reference pixels each stratum gets: at least `minimum`, or all it has, the rest by size.

    With a `spread`, the standard deviation expected within each stratum, the rest goes by size times spread: Neyman's
    allocation, the best for one total. A spread of one over `pixels` gives every stratum as many.
    Raises ValueError where `n` is less than the minimum needs or more than there are.
    """
    counts = pd.Series(pixels)
    most = counts.to_numpy(float)
    least = np.minimum(minimum, most)
    if not max(least.sum(), 1) <= n <= most.sum():
        bounds = f"from {least.sum():.0f} ({minimum} of each of {len(counts)} classes) to {counts.sum():.0f} (all)"
        raise ValueError(f"{n} pixels cannot be sampled under the mask; ask for {bounds}.")
    wanted, weight = least, np.asarray(spread, float)
    while (rest := n - wanted.sum()) > 1e-6:  # once, and again where a stratum is full
        share = (most - wanted) * weight
        share = share if share.any() else most - wanted
        wanted = np.minimum(wanted + rest * share / share.sum(), most)
    size = np.floor(wanted + 1e-9).astype(int)
    size[np.argsort(size - wanted, kind="stable")[: n - size.sum()]] += 1  # the largest remainders
    return pd.Series(size, counts.index)


def sample(
    map_raster: xr.DataArray | np.ndarray,
    mask: xr.DataArray | np.ndarray,
    n: int | Counts,
    seed: int,
    minimum: int = 50,
) -> pd.DataFrame:
    """Sample `n` pixels of a map (y, x) where `mask` is true, at random within each class and without replacement.

    By default each class gets `minimum` pixels, or all it has (the paper advises 50 to 100 for rare classes), and
    the rest go in proportion to the pixels left; `n` may also be the number of each class, as `allocate` gives it.
    `mask` has to leave out pixels that the map has no class for.
    Returns row, col and stratum (the map's value), in the order of the raster; ``attrs["mapped_pixels"]`` counts
    the pixels of each stratum. Raises ValueError where `n` does not fit or mask and map differ in shape.
    """
    values, inside = np.asarray(map_raster), np.asarray(mask, dtype=bool)
    if values.shape != inside.shape:
        raise ValueError(f"The mask has {inside.shape} pixels and the map {values.shape}; give one grid.")
    place = np.flatnonzero(inside)
    strata, stratum, pixels = np.unique(values.ravel()[place], return_inverse=True, return_counts=True)
    counts = pd.Series(pixels, strata)
    size = allocate(counts, n, minimum) if isinstance(n, int) else pd.Series(n).reindex(strata, fill_value=0)
    if not size.between(0, counts).all():
        raise ValueError(f"A class has fewer pixels under the mask than are asked of it; it has {counts.to_dict()}.")
    rng = np.random.default_rng(seed)
    chosen = [rng.choice(place[stratum == i], int(k), replace=False) for i, k in enumerate(size)]
    row, col = np.unravel_index(np.sort(np.concatenate(chosen)), values.shape)
    table = pd.DataFrame({"row": row, "col": col, "stratum": values[row, col]})
    table.attrs["mapped_pixels"] = dict(zip(strata.tolist(), pixels.tolist(), strict=True))
    return table


def write_points(samples: pd.DataFrame, grid: GeoBox, path: str | Path) -> Path:
    """Write a sample of `sample` on a `grid` as a GeoPackage for the field or a labelling tool, and return its path.

    A point a pixel, at its centre, with its number ``id``, its row and col, and an empty ``reference`` to be filled
    in with the name of the crop. The map's class is not in it: who labels must not see it.
    """
    x, y = rasterio.transform.xy(grid.transform, samples["row"], samples["col"])
    table = pd.DataFrame({"id": range(len(samples)), "row": samples["row"], "col": samples["col"], "reference": ""})
    with files.whole(path) as part:
        gpd.GeoDataFrame(table, geometry=gpd.points_from_xy(x, y), crs=grid.crs).to_file(part, driver="GPKG")
    return Path(path)


def read_points(path: str | Path, samples: pd.DataFrame, classes: Sequence[str]) -> pd.Series:
    """The reference class of each pixel of a sample, from the points of `write_points` once they are labelled.

    Raises ValueError for a point that is missing, doubled, foreign, without a label, or of a class not in `classes`:
    an estimate from the points that were easy to reach is none of the map.
    """
    labelled = gpd.read_file(path).set_index("id")
    if sorted(labelled.index) != list(range(len(samples))):
        raise ValueError(f"{path} has {len(labelled)} points where {len(samples)} were sampled; label each one once.")
    labelled = labelled.sort_index()
    if not (labelled[["row", "col"]].to_numpy() == samples[["row", "col"]].to_numpy()).all():
        raise ValueError(f"{path} is the file of another sample; give that of this map and seed.")
    if not (known := labelled["reference"].isin(list(classes))).all():
        point, text = labelled["reference"][~known].fillna("").items().__next__()
        names = ", ".join(map(str, classes))
        raise ValueError(f"{path}: point {point} has the reference {text!r}, {(~known).sum()} in all; give {names}.")
    return labelled["reference"].set_axis(samples.index)


def _by_stratum(values: pd.DataFrame, stratum: ArrayLike, pixels: Counts) -> tuple[Any, pd.Series]:
    """The values grouped by stratum, and the pixels of each, of strata that have enough samples."""
    by = values.groupby(np.asarray(stratum))
    size = pd.Series(pixels, dtype=float)
    size = size[size > 0]
    if set(by.groups) != set(size.index) or (by.size() < 2).any():
        raise ValueError("Every stratum needs a count of its pixels and two samples or more; sample more, or merge it.")
    return by, size.sort_index()


def _interval(estimate: float, error: float) -> pd.Series:
    return pd.Series({"estimate": estimate, "low": estimate - Z * error, "high": estimate + Z * error})


def _checked(matrix: pd.DataFrame, mapped_pixels: Counts | Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Sample counts (mapped, reference) and mapped pixels as float arrays."""
    classes = list(matrix.index)
    if classes != list(matrix.columns) or matrix.index.name == "true":
        raise ValueError("The error matrix needs the mapped classes as rows and the same as columns; transpose it.")
    if isinstance(mapped_pixels, Mapping | pd.Series):
        mapped_pixels = pd.Series(mapped_pixels).reindex(classes).tolist()
    counts, pixels = matrix.to_numpy(float), np.asarray(mapped_pixels, float)
    if len(pixels) != len(classes) or not (counts >= 0).all() or not (pixels >= 0).all() or not pixels.any():
        raise ValueError(f"Give a count of mapped pixels for each of {', '.join(map(str, classes))}, none negative.")
    for name, size, mapped in zip(classes, counts.sum(axis=1), pixels, strict=True):
        if size > mapped or (mapped and size < 2):
            samples = f"{name} has {size:g} samples of {mapped:g} mapped pixels"
            raise ValueError(f"{samples}; sample 2 or more, at most all, or merge the class.")
    return counts, pixels
