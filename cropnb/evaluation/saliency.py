"""What a network looks at: saliency by vanilla backpropagation (section 4.6) and integrated gradients.

The score that is differentiated is the class probability, for the paper's prediction score is "the model soft
output derived by the softmax function". A patch the network is sure of thus has hardly any gradient.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

BATCH = 64  # patches whose gradients are held in memory at once


def gradients(model: keras.Model, patches: np.ndarray, codes: ArrayLike) -> np.ndarray:
    """Gradient of the probability of a class with respect to each patch: (n, time, y, x, feature).

    patches (n, time, y, x, feature) as the network reads them (scaled), codes (n,) the class of each patch whose
    probability is differentiated: the true ones for the paper's maps (its magnitude: Simonyan et al. 2014).
    Raises ValueError for patches the network does not read, codes that are no class, and no patch.
    """
    codes, gradient = _checked(model, patches, codes), _gradient(model)
    parts = (slice(start, start + BATCH) for start in range(0, len(patches), BATCH))
    return np.concatenate([gradient(patches[part], codes[part])[0] for part in parts])


def integrated(
    model: keras.Model, patches: np.ndarray, codes: ArrayLike, baseline: ArrayLike, steps: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """Integrated gradients of the class probabilities, and how complete they are: Sundararajan et al. (2017), eq (1).

    The gradients at ``steps`` points of the straight line from the baseline to the patch (Gauss-Legendre nodes)
    are averaged and multiplied by the difference. The baseline is a patch without signal or broadcasts to one:
    the mean training patch asks what sets a patch apart from a usual one.
    Returns attributions as `gradients` does, in units of probability, and the completeness error (n,): their sum
    less the difference in probability between patch and baseline, which more steps bring to 0.
    Other arguments and errors are those of `gradients`, with a ValueError for a baseline that does not broadcast.
    """
    codes, gradient = _checked(model, patches, codes), _gradient(model)
    start = np.broadcast_to(np.asarray(baseline, patches.dtype), patches.shape)
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    attributions, error = [], []
    for first in range(0, len(patches), BATCH):
        part = slice(first, first + BATCH)
        origin, way, code = start[part], patches[part] - start[part], codes[part]
        line = zip(weights.tolist(), (origin + way * (0.5 + node / 2) for node in nodes.tolist()), strict=True)
        attributions.append(way * sum(weight / 2 * gradient(x, code)[0] for weight, x in line))
        rise = gradient(patches[part], code)[1] - gradient(origin, code)[1]
        error.append(attributions[-1].sum(axis=(1, 2, 3, 4), dtype=float) - rise)
    return np.concatenate(attributions), np.concatenate(error)


def average(values: np.ndarray, codes: ArrayLike, classes: Sequence[str], **coords: Any) -> xr.DataArray:
    """Mean magnitude of gradients or attributions by crop, dims (crop, time, y, x, feature), as in Figure 10.

    codes (n,) says which class each patch counts for; a class without a patch is NaN. y and x count pixels from
    the centre, southwards and eastwards; ``coords`` label other dims, such as ``time=scenario["time"]``.
    """
    values, codes = np.asarray(values), np.asarray(codes)
    means = np.full((len(classes), *values.shape[1:]), np.nan)
    for code in np.unique(codes):
        means[code] = np.abs(values[codes == code]).mean(axis=0, dtype=float)
    coords |= {dim: np.arange(size) - size // 2 for dim, size in zip("yx", values.shape[2:4], strict=True)}
    dims, coords["crop"] = ("crop", "time", "y", "x", "feature"), list(classes)
    return xr.DataArray(means, coords, dims, attrs={"long_name": "mean magnitude"})


def _gradient(model: keras.Model) -> Callable:
    """A function of patches and codes that returns the gradients and the values (n,) of those probabilities."""

    def scores(x: Any, hot: Any) -> Any:
        return keras.ops.sum(model(x, training=False) * hot, axis=-1)

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        @tf.function(reduce_retracing=True)
        def slopes(x: Any, hot: Any) -> tuple:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                values = scores(x, hot)
            return tape.gradient(values, x), values

    elif keras.backend.backend() == "jax":
        import jax

        @jax.jit
        def slopes(x: Any, hot: Any) -> tuple:
            values, back = jax.vjp(lambda x: scores(x, hot), x)
            return back(keras.ops.ones_like(values))[0], values

    else:
        raise ValueError(f"No gradients on the Keras backend {keras.backend.backend()}; choose tensorflow or jax.")

    def run(x: np.ndarray, codes: np.ndarray) -> tuple:
        hot = np.eye(model.output_shape[-1], dtype=x.dtype)[codes]
        found = slopes(keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(hot))
        return tuple(keras.ops.convert_to_numpy(array) for array in found)

    return run


def _checked(model: keras.Model, patches: np.ndarray, codes: ArrayLike) -> np.ndarray:
    """The codes as an array, where the patches are the network's and the codes the patches'."""
    codes, reads, classes = np.asarray(codes), model.input_shape[1:], model.output_shape[-1]
    if patches.shape[1:] != reads or not len(patches):
        raise ValueError(f"Patches {patches.shape} do not fit {model.name}, which reads {reads}; give at least one.")
    if codes.shape != patches.shape[:1] or codes.dtype.kind not in "iu" or codes.min() < 0 or codes.max() >= classes:
        raise ValueError(f"Give {len(patches)} codes, whole numbers from 0 to {classes - 1}, one a patch.")
    return codes
