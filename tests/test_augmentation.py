"""What each treatment of imbalance promises."""

import keras
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cropnb import augmentation, batches

CLASSES = ("maize", "soybean", "wheat", "other")
few = settings(deadline=None, max_examples=25)
label_lists = st.lists(st.integers(0, 3), min_size=2, max_size=80).filter(lambda v: len(set(v)) > 1)


def dataset(set_name="train", size=3):
    rng = np.random.default_rng(0)
    array = rng.random((20, 20, 4, 3), dtype="float32")
    rows, cols = (part.ravel() for part in np.mgrid[2:18, 2:18])
    crops = rng.choice(CLASSES, rows.size, p=[0.3, 0.6, 0.03, 0.07])
    table = pd.DataFrame({"row": rows, "col": cols, "crop": crops, "set": set_name})
    return batches.PatchDataset(array, table, CLASSES, size=size, batch_size=32)


def epoch(data):
    batches = [data[i] for i in range(len(data))]
    return tuple(np.concatenate(part) for part in zip(*batches, strict=True))


@few
@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=6))
def test_class_weights_have_sample_mean_one_and_every_class_counts_alike(counts):
    counts = np.array(counts)
    mass = augmentation.class_weights(counts) * counts
    assert np.isclose(mass.sum(), counts.sum())
    assert np.allclose(mass, mass[0])


@few
@given(label_lists, st.integers(0, 9))
def test_oversampling_balances_and_loses_nothing(labels, seed):
    labels = np.array(labels)
    positions, redrawn = augmentation.oversample(labels, np.random.default_rng(seed))
    counts = np.bincount(labels[positions])
    assert set(counts) - {0} == {np.bincount(labels).max()}
    np.testing.assert_array_equal(np.sort(positions[~redrawn]), np.arange(labels.size))
    majority = np.flatnonzero(np.bincount(labels) == np.bincount(labels).max())
    assert not np.isin(labels[positions[redrawn]], majority).any()


@few
@given(label_lists, st.integers(0, 9))
def test_mixtures_are_of_different_classes(labels, seed):
    labels = np.array(labels)
    first, second, share = augmentation.mix_pairs(labels, np.random.default_rng(seed))
    assert first.size == second.size == share.size == labels.size
    assert (labels[first] != labels[second]).all()
    assert ((share >= 0) & (share <= 1)).all()


def test_mixtures_hold_as_much_of_every_class():
    labels = np.repeat(np.arange(4), [600, 1300, 40, 60])
    mass, rng = np.zeros(4), np.random.default_rng(8)
    for _ in range(20):
        first, second, share = augmentation.mix_pairs(labels, rng)
        mass += np.bincount(labels[first], share, 4) + np.bincount(labels[second], 1 - share, 4)
    # A class is in half of the pairs with a share of variance 1/12: one standard deviation of its mean share
    # is below 0.35 / sqrt(n).
    np.testing.assert_allclose(mass / mass.sum(), 0.25, atol=5 * 0.35 / np.sqrt(20 * labels.size))


@few
@given(st.sampled_from([1, 3, 5, 11]), st.floats(-180, 180), st.booleans())
def test_rotation_keeps_centre_pixel_range_and_dates(size, angle, flip):
    patch = np.random.default_rng(1).random((1, 4, size, size, 3), dtype="float32")
    turned = augmentation.rotate_flip(patch, np.array([angle]), np.array([flip]))
    half = size // 2
    np.testing.assert_array_equal(turned[:, :, half, half], patch[:, :, half, half])
    assert turned.min() >= patch.min() - 1e-6
    assert turned.max() <= patch.max() + 1e-6
    for date in range(4):  # one draw for all dates: each alone turns the same way
        alone = augmentation.rotate_flip(patch[:, date : date + 1], np.array([angle]), np.array([flip]))
        np.testing.assert_allclose(alone[:, 0], turned[:, date], atol=1e-6)


def test_quarter_turns_and_flips_are_exact():
    patch = np.random.default_rng(2).random((4, 2, 5, 5, 3), dtype="float32")
    angles = np.array([90.0, 180.0, -90.0, 0.0])
    turned = augmentation.rotate_flip(patch, angles, np.array([False, False, False, True]))
    for i, quarter in enumerate((1, 2, -1)):
        np.testing.assert_allclose(turned[i], np.rot90(patch[i], quarter, axes=(1, 2)), atol=1e-6)
    np.testing.assert_allclose(turned[3], patch[3, :, :, ::-1], atol=1e-6)


@pytest.mark.parametrize("method", ["oversampling", "mix-up"])
def test_augmented_epochs(method):
    plain = dataset()
    data, weights = batches.augment(method, plain, seed=3)
    again, _ = batches.augment(method, plain, seed=3)
    assert weights is None
    x, y = epoch(data)
    np.testing.assert_array_equal(x, epoch(again)[0])
    np.testing.assert_allclose(y.sum(axis=1), 1, atol=1e-6)
    assert x.dtype == y.dtype == np.float32
    assert np.isfinite(x).all()
    if method == "oversampling":
        np.testing.assert_array_equal(y.sum(axis=0), np.bincount(plain.labels).max())
    else:
        assert len(y) == len(plain.labels)
        assert ((y > 0).sum(axis=1) == 2).mean() > 0.99
    data.on_epoch_end()
    assert not np.array_equal(epoch(data)[0][:32], x[:32])


def test_oversampling_repeats_the_centre_pixels_of_the_training_set():
    plain = dataset(size=5)
    data, _ = batches.augment("oversampling", plain, seed=5)
    own = {v.tobytes() for v in epoch(plain)[0][:, :, 2, 2]}
    assert {v.tobytes() for v in epoch(data)[0][:, :, 2, 2]} == own


def test_treatments_without_new_samples():
    plain = dataset()
    assert batches.augment("none", plain, seed=0) == (plain, None)
    data, weights = batches.augment("balanced-loss", plain, seed=0)
    assert data is plain
    np.testing.assert_array_equal(weights, augmentation.class_weights(np.bincount(plain.labels)))


@pytest.mark.parametrize("method", ["oversampling", "balanced-loss", "mix-up"])
def test_only_the_training_set_is_augmented(method):
    with pytest.raises(ValueError, match="Only training samples"):
        batches.augment(method, dataset("test"), seed=0)


def test_bad_input_says_why():
    with pytest.raises(ValueError, match="choose one of none, oversampling"):
        batches.augment("smote", dataset(), seed=0)
    with pytest.raises(ValueError, match="every class needs a sample"):
        augmentation.class_weights([3, 0])
    with pytest.raises(ValueError, match="two classes"):
        augmentation.mix_pairs([1, 1], np.random.default_rng(0))


def test_augmented_data_trains():
    data, _ = batches.augment("mix-up", dataset(), seed=1)
    model = keras.Sequential([keras.Input((4, 3, 3, 3)), keras.layers.Flatten(), keras.layers.Dense(4)])
    model.compile("sgd", "mse")
    model.fit(data, epochs=2, verbose=0, shuffle=False)
    assert data._pass[0] >= 2  # drawn anew between epochs


def test_repeats_are_turned_by_any_angle_and_half_of_them_mirrored(monkeypatch):
    seen = []

    def turned(patches, angles, flips):
        seen.append((angles, flips))
        return patches

    monkeypatch.setattr(augmentation, "rotate_flip", turned)
    data, _ = batches.augment("oversampling", dataset(), seed=5)
    for _ in range(20):
        epoch(data)
        data.on_epoch_end()
    angles, flips = (np.concatenate(values) for values in zip(*seen, strict=True))
    assert len(angles) > 200
    quarters = np.histogram(angles, [-180, -90, 0, 90, 180])[0] / len(angles)
    np.testing.assert_allclose(quarters, 0.25, atol=0.12)
    assert flips.mean() == pytest.approx(0.5, abs=0.12)
