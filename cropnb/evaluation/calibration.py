"""How far prediction scores can be taken as probabilities: reliability, temperature scaling, coverage.

The confidence of a prediction is the largest of its class probabilities, the prediction score of Figure 9.
scikit-learn's `calibration_curve` drops the counts that the calibration error weighs by, and its temperature
scaling wants an estimator to wrap and raw samples to feed it; here the probabilities are already written.
"""

import logging

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

log = logging.getLogger(__name__)

TINY = np.finfo("float32").tiny  # what a softmax in float32 rounds to 0 is no certainty
COOLEST, HOTTEST = 0.05, 20.0  # temperatures looked among


def expected_calibration_error(probabilities: ArrayLike, true_codes: ArrayLike, bins: int = 15) -> float:
    """Mean distance of accuracy and confidence over bins of confidence, weighted by count: Guo et al. (2017), eq (3).

    Arguments as in `reliability`. Chance alone makes it larger where samples are few: compare it on equal numbers.
    """
    table = reliability(probabilities, true_codes, bins)
    return float((table["count"] * (table["accuracy"] - table["confidence"]).abs()).sum() / table["count"].sum())


def reliability(probabilities: ArrayLike, true_codes: ArrayLike, bins: int = 10) -> pd.DataFrame:
    """Mean confidence, accuracy and count of the predictions in each of ``bins`` equal steps of confidence.

    probabilities (n, classes) of each sample, true_codes (n,) the position of its true class. The index holds the
    steps, open on the left (``index.mid`` for bars); steps without a prediction are left out.
    Raises ValueError for rows that do not add up to 1, codes that are no class, and no sample.
    """
    confidence, right, _ = _scored(probabilities, true_codes)
    step = pd.cut(pd.Series(confidence), np.linspace(0, 1, bins + 1).tolist())
    groups = pd.DataFrame({"confidence": confidence, "accuracy": right}).groupby(step, observed=True)
    table = groups.mean().assign(count=groups.size())
    return table.set_index(pd.IntervalIndex(table.index.tolist(), name="step"))


def temperature(probabilities: ArrayLike, true_codes: ArrayLike) -> float:
    """Temperature T of the least negative log likelihood of `temperature_scaled` ones: Guo et al. (2017), section 4.2.

    Fit it to validation samples, whose labels the network was not trained on, and use it on the test's.
    T above 1 means that the network is over-confident. It is looked for between 0.05 and 20 and a warning is
    logged where it ends at either, as when every prediction is right.
    Raises ValueError as `reliability` does.
    """
    _, _, logits = _scored(probabilities, true_codes)
    rows, codes = np.arange(len(logits)), np.asarray(true_codes)

    def loss(log_t: float) -> float:
        return -log_softmax(logits / np.exp(log_t), axis=1)[rows, codes].mean()

    bounds = np.log([COOLEST, HOTTEST])
    best = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x
    if min(abs(best - bounds)) < 1e-4:
        log.warning("The temperature ends at %.3g, the edge of its range; validate on more samples.", np.exp(best))
    return float(np.exp(best))


def temperature_scaled(probabilities: ArrayLike, T: float) -> np.ndarray:
    """Probabilities (n, classes) with their logarithms divided by the temperature ``T``; predictions do not change.

    A softmax forgets a constant of its logits, which does not matter here: log p / T is as good as logit / T.
    """
    if not T > 0:
        raise ValueError(f"The temperature is {T}; give a positive number, 1 to change nothing.")
    return softmax(_logarithm(probabilities) / T, axis=1)


def coverage(probabilities: ArrayLike, true_codes: ArrayLike) -> pd.DataFrame:
    """Accuracy when the least confident predictions are left out: a row a confidence that is still accepted.

    Columns confidence (the least accepted), coverage (share of samples accepted) and accuracy (of those), from
    the most confident to all. Raises ValueError as `reliability` does.
    """
    confidence, right, _ = _scored(probabilities, true_codes)
    groups = pd.Series(right).groupby(-confidence)  # equally confident ones are accepted together
    count = groups.size().cumsum()
    table = pd.DataFrame({"coverage": count / len(right), "accuracy": groups.sum().cumsum() / count})
    return table.assign(confidence=-table.index).reset_index(drop=True)[["confidence", "coverage", "accuracy"]]


def _scored(probabilities: ArrayLike, true_codes: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidence and correctness (n,) of each prediction, and the log probabilities (n, classes)."""
    logits, codes = _logarithm(probabilities), np.asarray(true_codes)
    n, classes = logits.shape
    if codes.shape != (n,) or codes.dtype.kind not in "iu" or not n or codes.min() < 0 or codes.max() >= classes:
        raise ValueError(f"Give {n} true classes, at least one, as whole numbers from 0 to {classes - 1}.")
    p = np.asarray(probabilities)
    return p.max(axis=1).clip(max=1).astype(float), p.argmax(axis=1) == codes, logits  # float32 may exceed 1


def _logarithm(probabilities: ArrayLike) -> np.ndarray:
    """Log probabilities (n, classes) of a checked array."""
    p = np.asarray(probabilities, float)
    if p.ndim != 2 or not (p >= 0).all() or not (abs(p.sum(axis=1) - 1) < 1e-2).all():
        raise ValueError("Probabilities need a row a sample and a column a class, none negative, rows adding up to 1.")
    return np.log(np.maximum(p, TINY))
