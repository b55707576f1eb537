"""Saliency: exact where the gradient is known, found where a signal was planted, gone with the weights."""

import keras
import numpy as np
import pytest
import xarray as xr
from scipy.special import softmax
from scipy.stats import spearmanr

from cropnb import models
from cropnb.evaluation import saliency

SHAPE = (6, 5, 5, 3)  # time, y, x, feature
DATE, ROW, COL, FEATURE = 4, 1, 3, 2  # of the planted signal
CROPS = ("maize", "soybean", "wheat")


@pytest.fixture
def double():
    """Networks in float64, to compare with numbers known exactly."""
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")


def linear(activation, seed=0):
    """A network whose scores are linear in the patch, or their softmax; and its weights by cell."""
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Flatten(), keras.layers.Dense(3, activation=activation)]
    model = keras.Sequential([keras.Input(SHAPE, dtype="float64"), *layers])
    return model, model.get_weights()[0].T.reshape(3, *SHAPE)


def small(seed):
    """A convolutional network with weights drawn by `seed`."""
    keras.utils.set_random_seed(seed)
    layers = [
        keras.layers.Conv3D(8, 3, padding="same", activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(3, activation="softmax"),
    ]
    return keras.Sequential([keras.Input(SHAPE), *layers], name="small")


def patches(n, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, *SHAPE)).astype(dtype), rng.integers(0, 3, n)


@pytest.fixture(scope="module")
def planted():
    """Patches of noise whose class is a matter of one value (low, middling, high), and a network fit to them."""
    x, _ = patches(1100, seed=1)
    codes = np.digitize(x[:, DATE, ROW, COL, FEATURE], [-0.5, 0.5])
    network = small(1)
    network.compile(keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = network.fit(x[:1000], codes[:1000], epochs=15, batch_size=100, verbose=0)
    assert history.history["accuracy"][-1] > 0.8
    return x[1000:], codes[1000:], network


def peaks(picture):
    """The largest value of each crop: (date, row, column, feature)."""
    flat = picture.values.reshape(len(picture), -1)
    return [tuple(int(i) for i in np.unravel_index(at, SHAPE)) for at in flat.argmax(axis=1)]


@pytest.mark.usefixtures("double")
def test_gradients_of_a_linear_network_are_its_weights():
    model, weights = linear(None)
    x, codes = patches(70, "float64")  # more than one batch
    np.testing.assert_allclose(saliency.gradients(model, x, codes), weights[codes], rtol=1e-12)
    attributions, error = saliency.integrated(model, x, codes, baseline=0.3, steps=1)
    np.testing.assert_allclose(attributions, weights[codes] * (x - 0.3), rtol=1e-12)
    np.testing.assert_allclose(error, 0, atol=1e-12)


@pytest.mark.usefixtures("double")
def test_gradients_are_of_the_probability():
    model, weights = linear("softmax")
    x, codes = patches(10, "float64")
    p = softmax(np.tensordot(x, weights, axes=((1, 2, 3, 4), (1, 2, 3, 4))), axis=1)
    expected = p[range(10), codes][:, None] * (weights[codes].reshape(10, -1) - p @ weights.reshape(3, -1))
    np.testing.assert_allclose(saliency.gradients(model, x, codes).reshape(10, -1), expected, rtol=1e-10)


@pytest.mark.usefixtures("double")
def test_gradients_agree_with_finite_differences():
    keras.utils.set_random_seed(3)
    layers = [keras.layers.Conv3D(4, 3, activation="tanh"), keras.layers.Flatten(), keras.layers.Dense(3, "softmax")]
    model = keras.Sequential([keras.Input(SHAPE, dtype="float64"), *layers])
    x, codes = patches(1, "float64")
    gradient = saliency.gradients(model, x, codes)[0]
    cells = np.random.default_rng(0).choice(gradient.size, 60, replace=False)
    moves = 1e-5 * np.eye(gradient.size)[cells].reshape(-1, *SHAPE)
    ahead, behind = (
        keras.ops.convert_to_numpy(model(keras.ops.convert_to_tensor(x + sign * moves)))[:, codes[0]]
        for sign in (1, -1)
    )
    np.testing.assert_allclose(gradient.ravel()[cells], (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["tcnn", "cnn3d", "conv3dstar"])
def test_gradients_pass_through_the_networks(name):
    keras.utils.set_random_seed(0)
    model = models.get(name)((2, 5, 5, 3), 4, width=0.05)
    x = np.random.default_rng(0).random((2, 2, 5, 5, 3), "float32")
    gradient = saliency.gradients(model, x, [0, 3])
    assert gradient.shape == x.shape
    assert gradient.dtype == x.dtype
    assert np.isfinite(gradient).all()
    assert (abs(gradient).max(axis=(0, 2, 3, 4)) > 0).all()  # every date has a way to the score
    assert (abs(gradient[:, :, :2]).max() > 0) == (name != "tcnn")  # which reads the centre pixel alone


def test_a_planted_signal_is_found_and_lost_with_the_weights(planted):
    x, codes, network = planted
    cell = (DATE, ROW, COL, FEATURE)
    assert peaks(saliency.average(saliency.gradients(network, x, codes), codes, CROPS)) == [cell] * 3
    assert cell not in peaks(saliency.average(saliency.gradients(small(2), x, codes), codes, CROPS))
    attributions, _ = saliency.integrated(network, x, codes, 0.0, steps=8)
    maize, _, wheat = peaks(saliency.average(attributions, codes, CROPS))
    assert maize == wheat == cell  # soybean has the baseline's value there, which explains nothing


@pytest.mark.usefixtures("double")
def test_randomised_weights_destroy_the_ranks():
    rng = np.random.default_rng(5)
    model, _ = linear("softmax")
    wanted = rng.gamma(1.0, size=np.prod(SHAPE))
    model.set_weights([np.outer(wanted, [1, -1, 0]) / 50, np.zeros(3)])
    x, codes = patches(100, "float64")
    found = (abs(saliency.gradients(m, x, codes)[codes < 2]).mean(axis=0) for m in (model, linear("softmax", 6)[0]))
    kept, lost = (spearmanr(picture.ravel(), wanted).statistic for picture in found)
    assert kept > 0.999
    assert abs(lost) < 5 / np.sqrt(wanted.size)  # five standard errors of a rank correlation of nothing


def test_integrated_gradients_are_complete(planted):
    x, codes, network = planted
    baseline = x.mean(axis=0)
    few, many = (saliency.integrated(network, x, codes, baseline, steps)[1] for steps in (2, 128))
    assert abs(many).max() < 0.01
    assert abs(many).mean() < 0.03 * abs(few).mean()
    attributions, error = saliency.integrated(network, x[:5], codes[:5], baseline, 4)
    p = network.predict(np.concatenate([x[:5], baseline[None]]), verbose=0)
    rise = p[range(5), codes[:5]] - p[5, codes[:5]]
    np.testing.assert_allclose(attributions.sum(axis=(1, 2, 3, 4)) - rise, error, atol=1e-5)


def test_average_is_the_mean_magnitude_of_each_crop():
    values, codes = np.random.default_rng(0).normal(size=(7, *SHAPE)), np.array([0, 0, 1, 0, 1, 1, 0])
    dates = np.array(["2017-05-01", "2017-06-01", "2017-07-01", "2017-08-01", "2017-08-20", "2017-09-01"], "M8[ns]")
    picture = saliency.average(values, codes, CROPS, time=dates)
    assert picture.dims == ("crop", "time", "y", "x", "feature")
    np.testing.assert_allclose(picture.sel(crop="soybean"), abs(values[[2, 4, 5]]).mean(axis=0))
    assert picture.sel(crop="wheat").isnull().all()
    assert picture["y"].values.tolist() == [-2, -1, 0, 1, 2]
    xr.testing.assert_equal(picture.sel(time="2017-08-01", x=0), picture[:, 3, :, 2])


@pytest.mark.parametrize(
    ("shape", "codes", "message"),
    [
        ((2, 6, 5, 5), [0, 1], r"Patches \(2, 6, 5, 5\) do not fit small, which reads \(6, 5, 5, 3\)"),
        ((2, 5, 5, 5, 3), [0, 1], "do not fit small"),
        ((0, *SHAPE), [], "give at least one"),
        ((2, *SHAPE), [0], "Give 2 codes, whole numbers from 0 to 2"),
        ((2, *SHAPE), [0, 3], "whole numbers from 0 to 2"),
        ((2, *SHAPE), [0, -1], "whole numbers from 0 to 2"),
        ((2, *SHAPE), [0.0, 1.0], "whole numbers from 0 to 2"),
    ],
)
def test_bad_input_is_refused(shape, codes, message):
    x = np.zeros(shape, "float32")
    with pytest.raises(ValueError, match=message):
        saliency.gradients(small(0), x, codes)
    with pytest.raises(ValueError, match=message):
        saliency.integrated(small(0), x, codes, 0.0)


def test_a_baseline_of_another_shape_is_refused():
    x, codes = patches(2)
    with pytest.raises(ValueError, match="broadcast"):
        saliency.integrated(small(0), x, codes, np.zeros((6, 4, 5, 3)))
