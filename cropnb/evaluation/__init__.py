"""Accuracy from a confusion matrix, with intervals that respect which samples belong together.

Pixels of one parcel, and points of one region, are no independent evidence.  The intervals here come from a
bootstrap over whole groups, which resamples the groups' confusion matrices rather than their samples; they are
widened for few groups, as a t-test is.

A measure whose denominator is zero is NaN: F1 of a class that is neither present nor predicted, producer's
accuracy of an absent class, user's accuracy of a class never predicted, kappa when a single class fills both
margins.  Mean F1 leaves such classes out, and an interval ignores the replicates in which its measure is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import norm, t

LEVEL = 0.95  # of every interval
Labels = Sequence[Any] | np.ndarray | pd.Series


def confusion_matrix(true: Labels, predicted: Labels, classes: Sequence[str]) -> pd.DataFrame:
    """Counts with a row a true class and a column a predicted class, in the order of `classes`.

    Parameters
    ----------
    true, predicted
        (n,) class of each sample.

    Raises
    ------
    ValueError
        Where the two differ in length, are empty, or hold an unknown class.
    """
    counts = _by_group(true, predicted, np.zeros(len(true), dtype=int), classes)[0]
    labels = list(classes)
    return pd.DataFrame(counts, pd.Index(labels, name="true"), pd.Index(labels, name="predicted"))


def overall_accuracy(matrix: ArrayLike) -> np.ndarray | float:
    """Share of correct samples, eq (10).  ``matrix`` may have leading dims: (..., true, predicted)."""
    matrix = np.asarray(matrix, dtype="float64")
    return _ratio(_diagonal(matrix).sum(-1), matrix.sum((-2, -1)))


def kappa(matrix: ArrayLike) -> np.ndarray | float:
    """Cohen's kappa, eqs (11) and (12): agreement beyond that of the margins.  Leading dims are kept."""
    matrix = np.asarray(matrix, dtype="float64")
    total = matrix.sum((-2, -1))
    expected = _ratio((matrix.sum(-1) * matrix.sum(-2)).sum(-1), total**2)
    return _ratio(overall_accuracy(matrix) - expected, 1 - expected)


def producers_accuracy(matrix: ArrayLike) -> np.ndarray | pd.Series:
    """Per class, the share of its true samples that were found (recall)."""
    return _named(matrix, lambda m: _ratio(_diagonal(m), m.sum(-1)))


def users_accuracy(matrix: ArrayLike) -> np.ndarray | pd.Series:
    """Per class, the share of its predictions that are right (precision)."""
    return _named(matrix, lambda m: _ratio(_diagonal(m), m.sum(-2)))


def f1(matrix: ArrayLike) -> np.ndarray | pd.Series:
    """Per class, the harmonic mean of producer's and user's accuracy, eq (13)."""
    return _named(matrix, lambda m: _ratio(2 * _diagonal(m), m.sum(-1) + m.sum(-2)))


def scores(true: Labels, predicted: Labels, classes: Sequence[str]) -> pd.Series:
    """``overall_accuracy``, ``kappa``, ``mean_f1`` and ``f1_<class>`` of one set of predictions."""
    matrix = confusion_matrix(true, predicted, classes)
    return pd.Series(_measures(matrix.to_numpy()), _measure_names(classes), name="score")


def bootstrap(
    true: Labels, predicted: Labels, groups: Labels, classes: Sequence[str], n: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """The measures of `scores` with 95 % intervals: columns estimate, low, high.

    Parameters
    ----------
    true, predicted, groups
        (n,) class of each sample, and the group it belongs to: its block, parcel or region.
    n
        Replicates; each takes as many groups as there are, with replacement, each with all its samples.

    Raises
    ------
    ValueError
        As `confusion_matrix` does, and for fewer than two groups, which carry no spread.
    """
    return within_range(_interval(*bootstrap_replicates(true, predicted, groups, classes, n, seed)))


def within_range(intervals: pd.DataFrame) -> pd.DataFrame:
    """Intervals (index: the measure) cut to what their measure can be: 0 to 1, for kappa -1 to 1."""
    kappa = intervals.index.get_level_values(-1) == "kappa"
    return intervals.clip(pd.Series(np.where(kappa, -1.0, 0.0), intervals.index), 1, axis=0)


def bootstrap_replicates(
    true: Labels, predicted: Labels, groups: Labels, classes: Sequence[str], n: int = 1000, seed: int = 0
) -> tuple[pd.Series, pd.DataFrame]:
    """The measures of `scores`, and the same of each replicate of `bootstrap`: a row a replicate.

    The same seed and number of groups give the same groups again, whatever was predicted: replicates of
    several sets of predictions of the same samples can be subtracted row by row.  They are spread about the
    estimate by `widening`, some perhaps beyond the range of their measure.
    """
    matrices = _by_group(true, predicted, groups, classes)
    names = _measure_names(classes)
    estimate = pd.Series(_measures(matrices.sum(0)), names, name="score")
    replicates = pd.DataFrame(_measures(_resample(matrices, n, seed)), columns=names)
    return estimate, estimate + widening(len(matrices)) * (replicates - estimate)


def widening(groups: int) -> float:
    """By how much the intervals of a plain bootstrap over few groups are too narrow, t(G-1) / z sqrt(G / (G-1)).

    Spreading replicates by it about their estimate makes an interval as wide as that of a t-test over the groups.
    """
    side = (1 + LEVEL) / 2
    return float(t.ppf(side, groups - 1) / norm.ppf(side) * np.sqrt(groups / (groups - 1)))


def paired_bootstrap(
    true: Labels,
    predicted_a: Labels,
    predicted_b: Labels,
    groups: Labels,
    classes: Sequence[str],
    n: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Difference of the measures, a - b, with 95 % intervals: columns estimate, low, high.

    Both sets of predictions are scored on the same resampled groups, so what makes a group hard for both
    cancels.  An interval that holds 0 leaves open which of the two is better.
    """
    a, replicates_a = bootstrap_replicates(true, predicted_a, groups, classes, n, seed)
    b, replicates_b = bootstrap_replicates(true, predicted_b, groups, classes, n, seed)
    return _interval(a - b, replicates_a - replicates_b)


def _by_group(true: Labels, predicted: Labels, groups: Labels, classes: Sequence[str]) -> np.ndarray:
    """Confusion matrices (group, true, predicted), the groups in sorted order."""
    if not len(true) == len(predicted) == len(groups):
        raise ValueError(f"{len(true)} true, {len(predicted)} predicted and {len(groups)} groups do not match.")
    if len(true) == 0:
        raise ValueError("There is no sample to evaluate; give at least one.")
    size = len(classes)
    row, column = _codes(true, classes), _codes(predicted, classes)
    group, names = pd.factorize(np.asarray(groups), sort=True)
    flat = (group * size + row) * size + column
    return np.bincount(flat, minlength=len(names) * size**2).reshape(len(names), size, size)


def _codes(labels: Labels, classes: Sequence[str]) -> np.ndarray:
    """Position of each label in ``classes``."""
    codes = pd.Index(classes).get_indexer(pd.Index(labels))
    if (codes < 0).any():
        unknown = np.asarray(labels)[codes < 0][0]
        raise ValueError(f"Class {str(unknown)!r} is not one of {', '.join(map(str, classes))}; add it or drop it.")
    return codes


def _resample(matrices: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Confusion matrices of ``n`` samples of whole groups: (n, true, predicted)."""
    count = len(matrices)
    if count < 2:
        raise ValueError(f"{count} group is too few for a bootstrap over groups; give at least 2.")
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=n)
    return np.tensordot(times, matrices, axes=1)


def _measures(matrix: np.ndarray) -> np.ndarray:
    """(..., true, predicted) counts to (..., measure), ordered as ``_measure_names``."""
    per_class = f1(matrix)
    known = ~np.isnan(per_class)
    mean = _ratio(np.where(known, per_class, 0).sum(-1), known.sum(-1))
    summary = np.stack([overall_accuracy(matrix), kappa(matrix), mean], axis=-1)
    return np.concatenate([summary, per_class], axis=-1)


def _measure_names(classes: Sequence[str]) -> list[str]:
    return ["overall_accuracy", "kappa", "mean_f1", *(f"f1_{name}" for name in classes)]


def _interval(estimate: pd.Series, replicates: pd.DataFrame) -> pd.DataFrame:
    """Percentiles over the replicates where the measure exists; NaN where it never does."""
    low, high = (replicates.quantile((1 + side * LEVEL) / 2) for side in (-1, 1))
    return pd.DataFrame({"estimate": estimate, "low": low, "high": high})


def _diagonal(matrix: np.ndarray) -> np.ndarray:
    return np.diagonal(matrix, axis1=-2, axis2=-1)


def _ratio(top: ArrayLike, bottom: ArrayLike) -> np.ndarray | float:
    """top / bottom, NaN where bottom is 0."""
    top, bottom = np.asarray(top, dtype="float64"), np.asarray(bottom, dtype="float64")
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)[()]


def _named(matrix: ArrayLike, measure: Callable) -> np.ndarray | pd.Series:
    """``measure`` of the matrix, as a Series by class where the matrix is a frame."""
    result = measure(np.asarray(matrix, dtype="float64"))
    return pd.Series(result, matrix.index) if isinstance(matrix, pd.DataFrame) else result
