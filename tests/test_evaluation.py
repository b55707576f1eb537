"""Measures agree with scikit-learn, intervals with a bootstrap done the long way, and absent classes are NaN."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from cropnb import evaluation

CLASSES = ("maize", "soybean", "wheat", "other")


def predictions(size=600, seed=0, groups=30, accuracy=0.7):
    """True and predicted crops of `size` samples in `groups` groups of uneven size."""
    rng = np.random.default_rng(seed)
    true = rng.choice(CLASSES, size, p=(0.3, 0.5, 0.15, 0.05))
    predicted = np.where(rng.random(size) < accuracy, true, rng.choice(CLASSES, size))
    return true, predicted, rng.integers(0, groups, size) ** 2


labels = st.lists(st.tuples(st.sampled_from(CLASSES), st.sampled_from(CLASSES)), min_size=1, max_size=60)


@settings(deadline=None, max_examples=50)
@given(labels)
def test_measures_are_scikit_learns(pairs):
    true, predicted = zip(*pairs, strict=True)
    matrix = evaluation.confusion_matrix(true, predicted, CLASSES)
    np.testing.assert_array_equal(matrix, metrics.confusion_matrix(true, predicted, labels=CLASSES))
    assert evaluation.overall_accuracy(matrix) == pytest.approx(metrics.accuracy_score(true, predicted))
    producers, users, f1, _ = (
        metrics.precision_recall_fscore_support(true, predicted, labels=CLASSES, zero_division=np.nan)[1::-1]
        + metrics.precision_recall_fscore_support(true, predicted, labels=CLASSES, zero_division=np.nan)[2:]
    )
    np.testing.assert_allclose(evaluation.producers_accuracy(matrix), producers)
    np.testing.assert_allclose(evaluation.users_accuracy(matrix), users)
    np.testing.assert_allclose(evaluation.f1(matrix), f1)
    if len({*true, *predicted}) > 1:
        assert evaluation.kappa(matrix) == pytest.approx(metrics.cohen_kappa_score(true, predicted))


@settings(deadline=None, max_examples=25)
@given(labels, st.permutations(range(4)))
def test_class_order_only_reorders(pairs, order):
    true, predicted = zip(*pairs, strict=True)
    shuffled = [CLASSES[i] for i in order]
    pd.testing.assert_series_equal(
        evaluation.scores(true, predicted, CLASSES),
        evaluation.scores(true, predicted, shuffled),
        check_like=True,
    )


def test_published_example_of_kappa():
    # 20 + 15 of 50 agree; the margins alone agree on 0.5 (eq 12): (0.7 - 0.5) / 0.5
    matrix = pd.DataFrame([[20, 5], [10, 15]])
    assert evaluation.overall_accuracy(matrix) == pytest.approx(0.7)
    assert evaluation.kappa(matrix) == pytest.approx(0.4)


def test_absent_classes_are_nan_and_leave_the_mean_alone():
    scores = evaluation.scores(["maize", "maize", "wheat"], ["maize", "wheat", "wheat"], CLASSES)
    assert scores[["f1_soybean", "f1_other"]].isna().all()
    assert scores["mean_f1"] == pytest.approx(scores[["f1_maize", "f1_wheat"]].mean())
    missed = evaluation.scores(["maize", "wheat"], ["maize", "maize"], CLASSES)
    assert missed["f1_wheat"] == 0  # present and never found is 0, not NaN
    alone = evaluation.scores(["maize"], ["maize"], CLASSES)
    assert alone["overall_accuracy"] == 1
    assert np.isnan(alone["kappa"])


def test_bootstrap_is_that_of_the_samples_of_redrawn_groups():
    true, predicted, groups = predictions()
    names, count = np.unique(groups), len(np.unique(groups))
    times = np.random.default_rng(7).multinomial(count, np.full(count, 1 / count), size=200)
    slow = []
    for row in times:
        chosen = np.concatenate(
            [np.flatnonzero(groups == g) for g, k in zip(names, row, strict=True) for _ in range(k)]
        )
        slow.append(evaluation.scores(true[chosen], predicted[chosen], CLASSES))
    table = evaluation.bootstrap(true, predicted, groups, CLASSES, n=200, seed=7)
    estimate = evaluation.scores(true, predicted, CLASSES)
    spread = estimate + evaluation.widening(count) * (pd.DataFrame(slow) - estimate)
    expected = spread.quantile([0.025, 0.975]).clip(-1, 1)
    expected = expected.clip(lower=pd.Series(0.0, estimate.index).where(estimate.index != "kappa", -1), axis=1)
    np.testing.assert_allclose(table[["low", "high"]].T, expected)
    np.testing.assert_allclose(table["estimate"], evaluation.scores(true, predicted, CLASSES))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000))
def test_intervals_hold_the_estimate_and_repeat_with_the_seed(seed):
    true, predicted, groups = predictions(seed=seed)
    table = evaluation.bootstrap(true, predicted, groups, CLASSES, n=300, seed=seed)
    assert (table["low"] <= table["estimate"]).all()
    assert (table["estimate"] <= table["high"]).all()
    pd.testing.assert_frame_equal(table, evaluation.bootstrap(true, predicted, groups, CLASSES, n=300, seed=seed))


def test_samples_that_repeat_within_a_group_do_not_narrow_the_interval():
    true, predicted, groups = predictions(size=300, groups=20)
    once = evaluation.bootstrap(true, predicted, groups, CLASSES)
    tenfold = evaluation.bootstrap(*(np.tile(a, 10) for a in (true, predicted, groups)), CLASSES)
    pd.testing.assert_frame_equal(once, tenfold)
    naive = evaluation.bootstrap(np.tile(true, 10), np.tile(predicted, 10), np.arange(10 * len(true)), CLASSES)
    width = (once["high"] - once["low"])["overall_accuracy"]
    assert (naive["high"] - naive["low"])["overall_accuracy"] < width / 2


def test_paired_difference():
    true, a, groups = predictions(accuracy=0.8)
    b = np.where(np.random.default_rng(1).random(len(a)) < 0.1, "other", a)
    forward = evaluation.paired_bootstrap(true, a, b, groups, CLASSES, seed=3)
    backward = evaluation.paired_bootstrap(true, b, a, groups, CLASSES, seed=3)
    np.testing.assert_allclose(forward["low"], -backward["high"])
    assert forward.loc["overall_accuracy", "low"] > 0
    same = evaluation.paired_bootstrap(true, a, a, groups, CLASSES)
    assert (same == 0).all(axis=None)
    # the same groups for both: narrower than two intervals apart
    width = evaluation.bootstrap(true, a, groups, CLASSES).eval("high - low")["overall_accuracy"]
    assert forward.eval("high - low")["overall_accuracy"] < width


def test_a_class_missing_everywhere_has_no_interval():
    table = evaluation.bootstrap(["maize", "wheat"] * 5, ["maize"] * 10, np.arange(10), CLASSES, n=50)
    assert table.loc[["f1_soybean", "f1_other"]].isna().all(axis=None)
    assert table.loc["f1_wheat", "estimate"] == 0


def test_intervals_of_few_groups_are_those_of_a_t_test():
    assert evaluation.widening(13) == pytest.approx(2.1788 / 1.95996 * np.sqrt(13 / 12), rel=1e-4)
    assert evaluation.widening(10_000) == pytest.approx(1, abs=1e-3)
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):  # eight groups whose accuracies differ, 0.7 on average
        level = np.repeat(rng.normal(0.7, 0.1, 8), 40)
        right = rng.random(320) < level
        found = evaluation.bootstrap(["a"] * 320, np.where(right, "a", "b"), np.repeat(range(8), 40), ["a", "b"], 200)
        low, high = found.loc["overall_accuracy", ["low", "high"]]
        held += low <= 0.7 <= high
    assert 0.92 < held / 200 < 0.98  # 0.88 without the factor


def test_intervals_stay_within_the_range_of_their_measure():
    true, groups = ["maize", "wheat"] * 4, [0] * 4 + [1] * 4
    found = evaluation.bootstrap(true, ["maize"] * 7 + ["wheat"], groups, CLASSES, 50)
    assert found.loc["overall_accuracy"].tolist() == [5 / 8, 0, 1]  # two groups say next to nothing
    assert found.loc["kappa", "low"] == -1
    difference = evaluation.paired_bootstrap(true, true, ["maize"] * 7 + ["wheat"], groups, CLASSES, 50)
    assert difference.loc["overall_accuracy", "low"] < 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["maize"], ["maize", "wheat"], [1]), "1 true, 2 predicted and 1 groups do not match"),
        (([], [], []), "no sample to evaluate"),
        ((["maize", "rice"], ["maize", "maize"], [1, 2]), "Class 'rice' is not one of maize"),
        ((["maize", "maize"], ["maize", "maize"], [1, 1]), "1 group is too few"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluation.bootstrap(*arguments, CLASSES)
