"""Calibration: agreement with scikit-learn, a known temperature found again, and what no order may change."""

import logging

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.datasets import make_classification
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from cropnb.evaluation import calibration


def predictions(n=4000, spread=2.0, T=1.0, seed=0):
    """Probabilities of a calibrated forecaster, sharpened by the factor T of its logits, and true codes."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (n, 4))
    drawn = softmax(logits, axis=1).cumsum(axis=1) > rng.random((n, 1))
    return softmax(logits * T, axis=1), drawn.argmax(axis=1)


@pytest.fixture(scope="module")
def eager():
    """Probabilities of a classifier of too few samples on two other sets, and those that scikit-learn scales."""
    x, y = make_classification(2100, 12, n_informative=6, n_classes=3, random_state=0)
    model = LogisticRegression(C=100).fit(x[:100], y[:100])
    wrapped = CalibratedClassifierCV(FrozenEstimator(model), method="temperature").fit(x[100:1100], y[100:1100])
    halves = [(model.predict_proba(x[part]), y[part]) for part in (slice(100, 1100), slice(1100, None))]
    return *halves, wrapped.predict_proba(x[1100:])


def test_temperature_scaling_is_scikit_learns_and_helps(eager):
    validation, test, theirs = eager
    T = calibration.temperature(*validation)
    assert T > 1
    scaled = calibration.temperature_scaled(test[0], T)
    np.testing.assert_allclose(scaled, theirs, rtol=0, atol=1e-5)
    before, after = (calibration.expected_calibration_error(p, test[1]) for p in (test[0], scaled))
    assert after < before


def test_reliability_is_scikit_learns_curve(eager):
    probabilities, codes = eager[1]
    table = calibration.reliability(probabilities, codes)
    accuracy, confidence = calibration_curve(
        probabilities.argmax(axis=1) == codes, probabilities.max(axis=1), n_bins=10
    )
    np.testing.assert_allclose(table["accuracy"], accuracy)
    np.testing.assert_allclose(table["confidence"], confidence)
    assert table["count"].sum() == len(codes)


def test_calibration_error_by_hand():
    probabilities = [[0.9, 0.1], [0.9, 0.1], [0.8, 0.2], [0.4, 0.6]]
    # steps (0.5, 0.75] and (0.75, 1]: 0.6 against 1 right, and 2.6 / 3 against 2 of 3 right
    expected = (1 * 0.4 + 3 * (2.6 / 3 - 2 / 3)) / 4
    assert calibration.expected_calibration_error(probabilities, [0, 1, 0, 1], bins=4) == pytest.approx(expected)
    table = calibration.reliability(probabilities, [0, 1, 0, 1], bins=4)
    assert table["count"].tolist() == [1, 3]
    assert table.index.mid.tolist() == [0.625, 0.875]


def test_a_calibrated_sample_has_no_error():
    # in every group as large a share is right as the confidence says
    probabilities = np.repeat([[0.5, 0.25, 0.25], [0.2, 0.8, 0.0], [0.0, 0.0, 1.0]], 20, axis=0)
    codes = np.repeat([0, 1, 1, 0, 2], [10, 10, 16, 4, 20])
    assert calibration.expected_calibration_error(probabilities, codes) == pytest.approx(0)


@pytest.mark.parametrize("T", [0.5, 1.0, 2.5])
def test_a_known_temperature_is_found_again(T):
    probabilities, codes = predictions(T=T)
    found = calibration.temperature(probabilities, codes)
    assert found == pytest.approx(T, rel=0.07)
    calibrated, _ = predictions()
    np.testing.assert_allclose(calibration.temperature_scaled(probabilities, T), calibrated, atol=1e-12)
    likelihoods = [
        np.log(calibration.temperature_scaled(probabilities, t)[range(len(codes)), codes]).mean()
        for t in (0.9 * found, found, 1.1 * found)
    ]
    assert max(likelihoods) == likelihoods[1]


def test_scaling_mends_the_error_of_over_confidence():
    validation, test = predictions(T=3, seed=1), predictions(T=3, seed=2)
    scaled = calibration.temperature_scaled(test[0], calibration.temperature(*validation))
    assert calibration.expected_calibration_error(*test) > 0.1
    assert calibration.expected_calibration_error(scaled, test[1]) < 0.03


probability_rows = arrays(float, (12, 4), elements=st.floats(0.0, 1.0)).map(
    lambda p: (p + 1e-3) / (p + 1e-3).sum(axis=1, keepdims=True)
)
codes = arrays(int, 12, elements=st.integers(0, 3))


@settings(deadline=None, max_examples=50)
@given(probability_rows, st.floats(0.02, 50))
def test_scaling_keeps_predictions_and_sums(probabilities, T):
    scaled = calibration.temperature_scaled(probabilities, T)
    np.testing.assert_allclose(scaled.sum(axis=1), 1)
    predicted = probabilities.argmax(axis=1)
    np.testing.assert_array_equal(scaled[range(12), predicted], scaled.max(axis=1))
    confidence = np.sign(scaled.max(axis=1) - probabilities.max(axis=1)) * np.sign(1 - T)
    near = np.isclose(scaled.max(axis=1), probabilities.max(axis=1))
    assert ((confidence >= 0) | near).all()  # above 1 it lowers every confidence, below it raises them
    if T > 0.5:  # below, the least likely classes are lost in rounding
        np.testing.assert_allclose(calibration.temperature_scaled(scaled, 1 / T), probabilities, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(probability_rows, codes, st.permutations(range(12)), st.permutations(range(4)))
def test_order_of_samples_and_classes_does_not_matter(probabilities, true, samples, classes):
    turned = probabilities[samples][:, classes]
    recoded = np.argsort(classes)[true[samples]]
    # where two classes are equally likely, which one is predicted is a matter of their order
    top = np.sort(probabilities, axis=1)
    if (top[:, -1] == top[:, -2]).any():
        turned, recoded = probabilities[samples], true[samples]
    for measure in (calibration.reliability, calibration.coverage):
        pd.testing.assert_frame_equal(measure(probabilities, true), measure(turned, recoded))
    error = calibration.expected_calibration_error(probabilities, true)
    assert calibration.expected_calibration_error(turned, recoded) == pytest.approx(error)


def test_order_does_not_matter_to_the_temperature():
    probabilities, true = predictions(500, T=2)
    samples, classes = np.random.default_rng(0).permutation(500), [2, 0, 3, 1]
    turned = calibration.temperature(probabilities[samples][:, classes], np.argsort(classes)[true[samples]])
    assert turned == pytest.approx(calibration.temperature(probabilities, true), rel=1e-4)


@settings(deadline=None, max_examples=25)
@given(probability_rows, codes)
def test_full_coverage_is_overall_accuracy(probabilities, true):
    table = calibration.coverage(probabilities, true)
    assert table["coverage"].iloc[-1] == 1
    assert table["accuracy"].iloc[-1] == pytest.approx((probabilities.argmax(axis=1) == true).mean())
    assert table["coverage"].is_monotonic_increasing
    assert table["confidence"].is_monotonic_decreasing
    assert 0 <= calibration.expected_calibration_error(probabilities, true) <= 1


def test_coverage_by_hand():
    probabilities = [[0.9, 0.1], [0.3, 0.7], [0.9, 0.1], [0.45, 0.55]]
    table = calibration.coverage(probabilities, [0, 1, 1, 0])
    assert table["confidence"].tolist() == [0.9, 0.7, 0.55]
    assert table["coverage"].tolist() == [0.5, 0.75, 1]
    assert table["accuracy"].tolist() == pytest.approx([1 / 2, 2 / 3, 2 / 4])


def test_a_probability_of_zero_is_no_certainty():
    probabilities = np.float32([[1, 0], [1, 0], [1, 0]])
    assert np.isfinite(calibration.temperature(probabilities, [0, 0, 1]))
    assert np.isfinite(calibration.temperature_scaled(probabilities, 3.0)).all()
    np.testing.assert_array_equal(calibration.temperature_scaled(probabilities, 1.0).argmax(axis=1), 0)


def test_a_temperature_without_a_minimum_is_logged(caplog):
    probabilities, _ = predictions(50)
    with caplog.at_level(logging.WARNING):
        assert calibration.temperature(probabilities, probabilities.argmax(axis=1)) == pytest.approx(0.05, rel=1e-3)
    assert "edge of its range" in caplog.text


@pytest.mark.parametrize("measure", [calibration.reliability, calibration.temperature, calibration.coverage])
@pytest.mark.parametrize(
    ("probabilities", "true", "message"),
    [
        ([[0.5, 0.4]], [0], "adding up to 1"),
        ([[1.5, -0.5]], [0], "none negative"),
        ([[np.nan, 1.0]], [0], "adding up to 1"),
        ([0.5, 0.5], [0, 1], "a row a sample"),
        ([[0.5, 0.5]], [2], "whole numbers from 0 to 1"),
        ([[0.5, 0.5]], [-1], "whole numbers from 0 to 1"),
        ([[0.5, 0.5]], [0, 1], "Give 1 true classes"),
        ([[0.5, 0.5]], ["maize"], "whole numbers"),
        (np.empty((0, 2)), np.empty(0, int), "at least one"),
    ],
)
def test_bad_input_is_refused(measure, probabilities, true, message):
    with pytest.raises(ValueError, match=message):
        measure(probabilities, true)


def test_a_temperature_is_positive():
    with pytest.raises(ValueError, match="The temperature is 0; give a positive number"):
        calibration.temperature_scaled([[0.5, 0.5]], 0)
