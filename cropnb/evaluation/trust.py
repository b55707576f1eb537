"""Where not to trust a map: sets of crops that hold the true one as often as promised, and distance to the training.

Prediction sets are split conformal prediction as `mapie` computes it; the area of applicability is that of Meyer
and Pebesma (2021), doi:10.1111/2041-210X.13650.
"""

import logging
import warnings

import numpy as np
from mapie.classification import SplitConformalClassifier
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors

log = logging.getLogger(__name__)


class _Given(ClassifierMixin, BaseEstimator):
    """A classifier for mapie whose samples are already probabilities."""

    def __init__(self, classes: int = 2):
        self.classes = classes
        self.classes_ = np.arange(classes)

    def fit(self, _x: ArrayLike, _y: ArrayLike) -> "_Given":
        return self

    def predict(self, x: ArrayLike) -> np.ndarray:
        return np.argmax(x, axis=1)

    def predict_proba(self, x: ArrayLike) -> np.ndarray:
        return np.asarray(x)


def prediction_sets(
    probabilities: np.ndarray, true_codes: np.ndarray, of: np.ndarray, level: float = 0.9, *, by_class: bool = True
) -> np.ndarray:
    """Which classes cannot be ruled out for each sample (n, classes), true ones being kept at `level`.

    A class stays in the set while one less its probability is no more than that of the calibration samples up to
    the quantile `level`: of all of them together, or, `by_class`, of those whose true class it is, so that the
    promise holds for each class and not for all in the mean (Vovk et al. 2003). The promise needs samples that
    could have been swapped: calibration pixels of other fields and blocks keep it as far as fields are alike.

    Parameters
    ----------
    probabilities, true_codes : of the calibration samples, (m, classes) and (m,), unseen in the training.
    of : probabilities of the samples to judge, (n, classes).
    level : share of true classes that shall be in their sets, above 0 and below 1.

    Raises ValueError for codes that do not fit. A class with too few calibration samples for the level is in every
    set, and a warning is logged.
    """
    if len(probabilities) != len(true_codes) or not len(true_codes):
        raise ValueError(f"Give a true class for each of the {len(probabilities)} calibration samples, at least one.")
    classes = np.arange(probabilities.shape[1])
    groups = {code: true_codes == code for code in classes} if by_class else {None: np.ones(len(true_codes), bool)}
    sets = np.ones((len(of), len(classes)), bool)
    for code, group in groups.items():
        if group.sum() <= 1 / min(level, 1 - level):
            log.warning("Class %s is in every set: %d calibration samples are too few.", code, group.sum())
            continue
        with warnings.catch_warnings():  # that one class alone calibrates its own threshold
            warnings.simplefilter("ignore", UserWarning)
            conformal = SplitConformalClassifier(_Given(len(classes)), confidence_level=level, prefit=True)
            conformal.conformalize(probabilities[group], true_codes[group])
            found = conformal.predict_set(of)[1][..., 0]
        column = slice(None) if code is None else code
        sets[:, column] = found[:, column]
    return sets


class Applicability:
    """How far samples lie from the training samples, and how far is too far: Meyer and Pebesma (2021).

    Parameters
    ----------
    training : features of the training samples (n, feature).
    importance : weight of each feature, as of a forest.
    groups : block or fold of each training sample (n,), at least two different ones.

    Attributes
    ----------
    threshold : dissimilarity beyond which a sample is outside the area of applicability: the upper whisker of the
        box plot of the training samples' own, each against those of the other groups.
    """

    def __init__(self, training: np.ndarray, importance: np.ndarray, groups: np.ndarray):
        self.centre, spread = training.mean(axis=0), training.std(axis=0)
        self.scale = np.divide(importance, spread, out=np.zeros(len(spread)), where=spread > 0)
        scaled = self._scaled(training)
        self.nearest = NearestNeighbors(n_neighbors=1).fit(scaled)
        apart = pairwise_distances(scaled)
        self.unit = apart.sum() / (len(apart) * (len(apart) - 1))
        others = np.where(groups[:, None] == groups, np.inf, apart).min(axis=1) / self.unit
        if not np.isfinite(others).all():
            raise ValueError("The training samples are of one group; give the block of each, at least two.")
        low, high = np.quantile(others, (0.25, 0.75))
        self.threshold = float(others[others <= high + 1.5 * (high - low)].max())

    def dissimilarity(self, values: np.ndarray) -> np.ndarray:
        """Distance to the nearest training sample (n,), in mean distances between training samples."""
        return self.nearest.kneighbors(self._scaled(values))[0][:, 0] / self.unit

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        return (values - self.centre) * self.scale
