"""Prediction sets hold what they promise, class by class; the area of applicability ends where training does."""

import logging

import numpy as np
import pytest
from scipy.special import softmax

from cropnb.evaluation import trust


def forecasts(n, seed, rare=0.1):
    """Probabilities of three classes that a classifier confuses, the last one rare and under-predicted."""
    rng = np.random.default_rng(seed)
    codes = rng.choice(3, n, p=(0.6 - rare / 2, 0.4 - rare / 2, rare))
    logits = rng.normal(0, 1.2, (n, 3)) + 2.0 * np.eye(3)[codes] - [0, 0, 1.5]
    return softmax(logits, axis=1), codes


def test_a_threshold_is_the_quantile_of_the_calibration_samples():
    p, codes = forecasts(400, 0)
    of = forecasts(300, 1)[0]
    marginal = trust.prediction_sets(p, codes, of, 0.9, by_class=False)
    score = np.sort(1 - p[range(400), codes])[int(np.ceil(401 * 0.9)) - 1]
    np.testing.assert_array_equal(marginal, 1 - of <= score)
    sets = trust.prediction_sets(p, codes, of, 0.8)
    for code in range(3):
        own = np.sort(1 - p[codes == code, code])
        np.testing.assert_array_equal(sets[:, code], 1 - of[:, code] <= own[int(np.ceil((len(own) + 1) * 0.8)) - 1])


def test_marginal_sets_fail_the_rare_class_and_those_by_class_do_not():
    held = {True: np.zeros(3), False: np.zeros(3)}
    for seed in range(20):
        (p, codes), (of, true) = forecasts(800, seed), forecasts(4000, 100 + seed)
        for by_class, counted in held.items():
            sets = trust.prediction_sets(p, codes, of, 0.9, by_class=by_class)
            counted += [sets[true == code, code].mean() / 20 for code in range(3)]
    assert held[False][2] < 0.75
    np.testing.assert_allclose(held[True], 0.9, atol=0.02)


def test_a_class_with_too_few_samples_is_in_every_set(caplog):
    p, codes = forecasts(300, 0)
    keep = (codes != 2) | (np.cumsum(codes == 2) <= 10)
    with caplog.at_level(logging.WARNING):
        sets = trust.prediction_sets(p[keep], codes[keep], p, 0.9)
    assert sets[:, 2].all()
    assert "Class 2 is in every set: 10 calibration samples are too few." in caplog.text
    with pytest.raises(ValueError, match="Give a true class for each of the 3"):
        trust.prediction_sets(p[:3], codes[:2], p)


def test_dissimilarity_by_hand():
    training = np.array([[0.0, 0], [2, 0], [0, 10], [2, 10]])
    area = trust.Applicability(training, np.array([1.0, 0.0]), np.array([0, 0, 1, 1]))
    # the second feature has no weight; scaled by its deviation 1, the first is 0 or 2: four of six pairs are 2 apart
    assert area.unit == pytest.approx(8 / 6)
    np.testing.assert_allclose(area.dissimilarity(np.array([[1.0, 99], [5, 0], [2, 5]])) * area.unit, [1, 3, 0])
    assert area.threshold == 0  # each has its like in the other group


def test_the_threshold_is_the_whisker_of_distances_to_other_groups():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(10), 30)
    training = rng.normal(size=(10, 3))[groups] + 0.2 * rng.normal(size=(300, 3))
    training[0] = 50  # an outlier does not stretch the area
    area = trust.Applicability(training, np.ones(3), groups)
    scaled = (training - training.mean(axis=0)) / training.std(axis=0)
    apart = np.linalg.norm(scaled[:, None] - scaled, axis=-1)
    unit = apart[~np.eye(300, dtype=bool)].mean()
    own = np.array([apart[i, groups != groups[i]].min() for i in range(300)]) / unit
    low, high = np.quantile(own, (0.25, 0.75))
    assert area.threshold == pytest.approx(own[own <= high + 1.5 * (high - low)].max())
    assert area.threshold < own.max()
    assert (area.dissimilarity(training) == 0).all()
    assert area.dissimilarity(np.full((1, 3), -40.0))[0] > area.threshold


def test_a_feature_that_never_varies_counts_nothing_and_one_group_is_refused():
    training = np.column_stack([np.arange(6.0), np.ones(6)])
    area = trust.Applicability(training, np.ones(2), np.arange(6) % 2)
    assert np.isfinite(area.dissimilarity(np.array([[2.0, 7.0]]))).all()
    with pytest.raises(ValueError, match="are of one group"):
        trust.Applicability(training, np.ones(2), np.zeros(6))
