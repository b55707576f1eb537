"""Areas and accuracies of a map from a probability sample of reference pixels, after Olofsson et al. (2014).

Counting the pixels of a map counts its errors too. The estimators here take the areas from the reference labels
of a stratified random sample and use the map only to form the strata; they are unbiased however wrong the map is.
"""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr

Z = 1.96  # standard errors on each side of a 95 % interval


def estimate(
    matrix: pd.DataFrame, mapped_pixels: Mapping | Sequence[int], pixel_area: float, *, probability_sample: bool = True
) -> pd.DataFrame:
    """Stratified estimates with 95 % intervals; equation numbers are those of Olofsson et al. (2014).

    What it needs: pixels drawn at random from each mapped class, without replacement, as `sample` does, and a
    reference label of each. The estimates hold for the pixels that could have been drawn and for no others:
    for the held-out blocks, when only they could. Pixels drawn in clusters need other estimators.

    Parameters
    ----------
    matrix : counts of sampled pixels with a row a mapped class (the stratum) and a column a reference class, the
        same classes in the same order: the transpose of `evaluation.confusion_matrix`.
    mapped_pixels : pixels that the map gives to each class, by class or in the order of the rows.
    pixel_area : area of a pixel, in the unit the areas shall have.
    probability_sample : say False where the sample was found rather than drawn; it warns.

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
        warnings.warn(f"{message} be biased by how they were found; draw them with areas.sample.", stacklevel=2)
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
    columns = {name + end: e + z * error for name, (e, error) in columns.items() for end, z in ends.items()}
    overall = {name: float(columns.pop(name)) for name in [*columns][-3:]}
    table = pd.DataFrame(columns, index=matrix.columns)
    table.insert(3, "mapped_area", pixels * pixel_area)
    table.attrs = overall
    return table


def sample(map_raster: xr.DataArray, mask: xr.DataArray, n: int, seed: int, minimum: int = 50) -> pd.DataFrame:
    """Draw `n` pixels of a map (y, x) where `mask` is true, at random within each class and without replacement.

    Each class gets `minimum` pixels, or all it has (the paper advises 50 to 100 for rare classes), and the rest
    go in proportion to the pixels left. `mask` has to leave out pixels that the map has no class for.
    Returns row, col and stratum (the map's value), in the order of the raster; ``attrs["mapped_pixels"]`` counts
    the pixels of each stratum. Raises ValueError where `n` does not fit or mask and map differ in shape.
    """
    values, inside = np.asarray(map_raster), np.asarray(mask, dtype=bool)
    if values.shape != inside.shape:
        raise ValueError(f"the mask has {inside.shape} pixels and the map {values.shape}; give one grid")
    place = np.flatnonzero(inside)
    strata, stratum, pixels = np.unique(values.ravel()[place], return_inverse=True, return_counts=True)
    least = np.minimum(minimum, pixels)
    if not 0 < least.sum() <= n <= pixels.sum():
        bounds = f"from {least.sum()} ({minimum} of each of {len(strata)} classes) to {pixels.sum()} (all)"
        raise ValueError(f"{n} pixels cannot be drawn under the mask; ask for {bounds}")
    wanted = least + (n - least.sum()) * (pixels - least) / max((pixels - least).sum(), 1)
    size, rng = np.floor(wanted + 1e-9).astype(int), np.random.default_rng(seed)
    size[np.argsort(size - wanted, kind="stable")[: n - size.sum()]] += 1  # the largest remainders
    drawn = [rng.choice(place[stratum == i], k, replace=False) for i, k in enumerate(size)]
    row, col = np.unravel_index(np.sort(np.concatenate(drawn)), values.shape)
    table = pd.DataFrame({"row": row, "col": col, "stratum": values[row, col]})
    table.attrs["mapped_pixels"] = dict(zip(strata.tolist(), pixels.tolist(), strict=True))
    return table


def _checked(matrix, mapped_pixels) -> tuple[np.ndarray, np.ndarray]:
    """Sample counts (mapped, reference) and mapped pixels as float arrays."""
    classes = list(matrix.index)
    if classes != list(matrix.columns) or matrix.index.name == "true":
        raise ValueError("the error matrix needs the mapped classes as rows and the same as columns; transpose it")
    if isinstance(mapped_pixels, Mapping | pd.Series):
        mapped_pixels = pd.Series(mapped_pixels).reindex(classes)
    counts, pixels = matrix.to_numpy(float), np.asarray(mapped_pixels, float)
    if len(pixels) != len(classes) or not (counts >= 0).all() or not (pixels >= 0).all() or not pixels.any():
        raise ValueError(f"give a count of mapped pixels for each of {', '.join(map(str, classes))}, none negative")
    for name, size, mapped in zip(classes, counts.sum(axis=1), pixels, strict=True):
        if size > mapped or (mapped and size < 2):
            samples = f"{name} has {size:g} samples of {mapped:g} mapped pixels"
            raise ValueError(f"{samples}; draw 2 or more, at most all, or merge the class")
    return counts, pixels
