"""The networks: published parameter counts, the ConvSTAR layer against its goldens, saving and loading."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from cropnb import models
from cropnb.models import cnn3d2d
from cropnb.models.convstar import ConvSTAR
from cropnb.models.parts import Conv3D

# Keras reads TensorFlow variables in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PATCH = (26, 11, 11, 3)
NAMES = list(models.DISPLAY_NAMES)


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parent / "data/convstar_one_layer.npz") as file:
        return dict(file)


def build(name, **readings):
    return models.get(name)(PATCH, 4, 0.05, **readings)


@pytest.mark.parametrize(
    ("name", "readings", "parameters"),
    [
        ("tcnn", {}, 471_172),
        ("cnn3d", {}, 112_292),
        ("cnn3d", {"pool_padding": "valid"}, 92_324),
        ("cnn3d2d", {}, 460_388),
        ("convstar", {}, 264_196),
        ("convstar", {"head": "average"}, 262_148),
        ("convstar", {"head": "flatten"}, 292_868),
        ("conv3dstar", {}, 2_479_460),
        ("conv3dstar", {"conv2d_padding": "same"}, 3_134_820),
        ("conv3dstar", {"merge": "sum"}, 2_147_684),
        ("conv3dstar", {"final_state": "last_date"}, 2_479_460),
    ],
)
def test_published_parameter_counts(name, readings, parameters):
    model = models.get(name)(PATCH, 4, **readings)
    assert model.count_params() == parameters
    assert model.output_shape == (None, 4)


def test_trainable_parameters_of_tcnn():
    model = models.get("tcnn")(PATCH, 4)
    assert sum(np.prod(v.shape) for v in model.trainable_variables) == 470_276
    assert models.get("tcnn")((26, 3), 4).count_params() == 471_172


def test_hybridsn_as_published():
    assert models.get("cnn3d2d")((30, 25, 25, 1), 16).count_params() == 5_122_176


def test_rows_of_3d_convstar():
    model = models.get("conv3dstar")(PATCH, 4)
    counts = [layer.count_params() for layer in model.layers if layer.count_params()]
    assert counts == [2624, 27_680, 55_360, 221_440, 368_896, 368_896, 73_792, 1_327_360, 32_896, 516]


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("output_tanh", [True, False])
def test_convstar_agrees_with_both_published_forms(golden, precision, output_tanh):
    dtype, tolerance = {"f64": ("float64", 1e-12), "f32": ("float32", 2e-6)}[precision]
    if dtype == "float64" and keras.backend.backend() == "jax":
        pytest.skip("on JAX, Keras computes tanh in float32 whatever the dtype")
    layer = ConvSTAR(4, return_sequences=True, output_tanh=output_tanh, dtype=dtype)
    x = golden["x_bthwc"].astype(dtype)
    layer.build(x.shape)
    weights = {name: golden[f"uni/L0/eq/{name}"] for name in ("Bf", "Bz")}
    weights |= {name: golden[f"uni/L0/eq/{name}_hwio"] for name in ("Wxf", "Whf", "Wxz")}
    layer.set_weights([weights[name] for name in ("Wxf", "Whf", "Bf", "Wxz", "Bz")])
    form = "eq" if output_tanh else "ref"
    states = keras.ops.convert_to_numpy(layer(x))
    assert states.dtype == dtype
    np.testing.assert_allclose(states, golden[f"out/uni/{form}/L0/h_all_bthwc/{precision}"], rtol=0, atol=tolerance)


def test_released_weights_load_as_the_equations(golden):
    """The released gate stands on the old state: eq (2) has its weights negated, input before state."""
    gate = -golden["uni/L0/ref/gate_w_oihw"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(gate[:, :, :3], golden["uni/L0/eq/Wxf_hwio"])
    np.testing.assert_array_equal(gate[:, :, 3:], golden["uni/L0/eq/Whf_hwio"])
    np.testing.assert_array_equal(-golden["uni/L0/ref/gate_b"], golden["uni/L0/eq/Bf"])


def test_convstar_starts_orthogonal_and_keeps_its_memory():
    layer = ConvSTAR(5)
    layer.build((None, 4, 7, 7, 3))
    gate = np.concatenate([layer.kernel_xf.numpy(), layer.kernel_hf.numpy()], axis=2)
    gate = gate.reshape(-1, 5)
    np.testing.assert_allclose(gate.T @ gate, np.eye(5), atol=1e-5)
    np.testing.assert_array_equal(layer.bias_f.numpy(), -np.ones(5))


def test_convstar_layer_runs_on_any_size_and_from_a_state():
    layer = ConvSTAR(4, return_sequences=True, return_state=True)
    patches = keras.Input((None, None, None, 2))
    assert layer(patches)[0].shape == (None, None, None, None, 4)
    x = np.random.default_rng(1).random((2, 6, 9, 8, 2), dtype="float32")
    states, last = layer(x)
    np.testing.assert_allclose(states[:, -1], last)
    halfway = layer(x[:, :3])[1]
    np.testing.assert_allclose(layer(x[:, 3:], initial_state=[halfway])[1], last, atol=1e-6)
    assert layer.compute_output_shape((2, 6, 9, 8, 2)) == ((2, 6, 9, 8, 4), (2, 9, 8, 4))


def test_bidirectional_final_state_is_one_of_each_end():
    layer = keras.layers.Bidirectional(ConvSTAR(4))
    x = np.random.default_rng(2).random((2, 6, 5, 5, 3), dtype="float32")
    final = keras.ops.convert_to_numpy(layer(x))
    forward, backward = layer.forward_layer, layer.backward_layer
    assert backward.go_backwards
    assert not forward.go_backwards
    np.testing.assert_allclose(final[..., :4], forward(x), atol=1e-6)  # after the last date
    reversed_layer = ConvSTAR(4)
    reversed_layer.build(x.shape)
    reversed_layer.set_weights(backward.get_weights())
    np.testing.assert_allclose(final[..., 4:], reversed_layer(x[:, ::-1]), atol=1e-6)  # after the first date

    sequences = keras.layers.Bidirectional(ConvSTAR(4, return_sequences=True))
    sequences.build(x.shape)
    sequences.set_weights(layer.get_weights())
    states = keras.ops.convert_to_numpy(sequences(x))
    np.testing.assert_allclose(states[:, -1, ..., :4], final[..., :4], atol=1e-6)
    np.testing.assert_allclose(states[:, 0, ..., 4:], final[..., 4:], atol=1e-6)


def test_time_moves_beside_the_filters_unscrambled():
    b, t, h, w, f = 2, 4, 3, 5, 6
    x = np.arange(b * t * h * w * f, dtype="float32").reshape(b, t, h, w, f)
    inputs = keras.Input((t, h, w, f))
    merged = keras.ops.convert_to_numpy(keras.Model(inputs, cnn3d2d.time_to_channels(inputs))(x))
    assert merged.shape == (b, h, w, t * f)
    for date in range(t):
        np.testing.assert_array_equal(merged[..., date * f : (date + 1) * f], x[:, date])


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("length", [3, 5])
def test_conv3d_by_neighbouring_dates_equals_keras(padding, length):
    x = np.random.default_rng(3).random((2, 8, 7, 6, 3), dtype="float32")
    ours = Conv3D(4, (length, 3, 3), padding=padding, activation="relu")
    keras_layer = keras.layers.Conv3D(4, (length, 3, 3), padding=padding, activation="relu")
    expected = keras_layer(x)
    ours.build(x.shape)
    ours.set_weights(keras_layer.get_weights())
    np.testing.assert_allclose(ours(x), expected, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_takes_its_fewest_dates_and_no_fewer(name):
    dates = models.FEWEST_DATES.get(name, 1)
    assert models.get(name)((dates, 11, 11, 3), 4, 0.05).output_shape == (None, 4)
    if dates > 1:
        with pytest.raises(ValueError, match=f"at least {dates} dates"):
            models.get(name)((dates - 1, 11, 11, 3), 4, 0.05)


def test_names_and_runs_cost_no_keras():
    code = "import sys; from cropnb import mapping, models, runs, samples; sys.exit('keras' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=True)


@pytest.mark.parametrize("name", NAMES)
def test_saved_network_predicts_the_same(name, tmp_path):
    keras.utils.set_random_seed(4)
    model = build(name)
    x = np.random.default_rng(4).random((3, *PATCH), dtype="float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    probabilities = model.predict(x, verbose=0)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), probabilities)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_network(name):
    first, second, other = [], [], []
    for weights, seed in ((first, 5), (second, 5), (other, 6)):
        keras.utils.set_random_seed(seed)
        weights.extend(build(name).get_weights())
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_tcnn_sees_the_centre_pixel_alone():
    model = build("tcnn")
    x = np.random.default_rng(7).random((2, *PATCH), dtype="float32")
    changed = x.copy()
    changed[:, :, :5] += 1
    np.testing.assert_array_equal(model.predict(changed, verbose=0), model.predict(x, verbose=0))
    changed[:, :, 5, 5] += 1
    assert not np.array_equal(model.predict(changed, verbose=0), model.predict(x, verbose=0))


def test_average_head_takes_any_size():
    model = models.get("convstar")((None, None, None, 3), 4, 0.05, head="average")
    assert model.predict(np.zeros((1, 5, 9, 7, 3), "float32"), verbose=0).shape == (1, 4)


@pytest.mark.parametrize(
    ("name", "shape", "readings", "message"),
    [
        ("resnet", PATCH, {}, "No network is called 'resnet'"),
        ("cnn3d", (26, 3), {}, "reads patches"),
        ("cnn3d", PATCH, {"pool": "min"}, "choose one of max, average"),
        ("cnn3d2d", (12, 11, 11, 3), {}, "at least 13 dates"),
        ("tcnn", (26, 10, 11, 3), {}, "odd sizes"),
        ("convstar", PATCH, {"head": "best"}, "choose one of centre"),
        ("convstar", (26, None, None, 3), {}, "needs every size"),
        ("convstar", (26, 10, 10, 3), {}, "odd sizes"),
        ("conv3dstar", PATCH, {"final_state": "first"}, "each_direction"),
        ("conv3dstar", PATCH, {"width": 0}, "positive fraction"),
    ],
)
def test_what_cannot_be_built_says_why(name, shape, readings, message):
    with pytest.raises(ValueError, match=message):
        models.get(name)(shape, 4, **readings)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="is the JAX run itself")
def test_all_of_this_on_jax():
    if importlib.util.find_spec("jax") is None:
        pytest.skip("JAX is an extra and not installed")
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__],
        env=os.environ | {"KERAS_BACKEND": "jax"},
        cwd=Path(__file__).parent.parent,
        check=True,
    )
