"""TCNN: the temporal convolutional network of Pelletier, Webb and Petitjean (2019)."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from cropnb.models.parts import fixed_size, probabilities, scaled


def build(
    input_shape: Sequence[int | None],
    num_classes: int,
    width: float = 1.0,
    *,
    kernel_size: int = 5,
    dropout: float = 0.5,
    l2: float = 1e-6,
) -> keras.Model:
    """TCNN of one pixel's time series.

    Parameters
    ----------
    input_shape
        (time, feature), or (time, y, x, feature) with odd y and x, whose centre pixel is used, a reading: Liu et
        al. do not say what a network without space sees.
    num_classes
        Number of crops.
    width
        Fraction of the published 64 filters.
    kernel_size, dropout, l2
        The authors' filter length in dates, dropout rate and penalty on kernels.
    """
    fixed_size(input_shape, "TCNN")
    is_patch = len(input_shape) == 4
    name = "patch" if is_patch else "pixel"
    inputs = keras.Input(tuple(input_shape), name=name)
    x = centre_pixel(inputs) if is_patch else inputs
    penalty = {"kernel_regularizer": keras.regularizers.L2(l2)}
    options = penalty | {"kernel_initializer": "he_normal"}
    same, filters = options | {"padding": "same"}, scaled(64, width)
    for i in (1, 2, 3):
        conv = layers.Conv1D(filters, kernel_size, **same, name=f"conv1d_{i}")
        x = normalised(conv(x), dropout, i)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(256, **options, name="dense")(x)
    x = normalised(x, dropout, 4)
    x = probabilities(x, num_classes, **penalty)
    return keras.Model(inputs, x, name="tcnn")


def normalised(x: Any, dropout: float, i: int) -> Any:
    """Batch normalisation, ReLU and dropout after layer `i`."""
    x = layers.BatchNormalization(name=f"norm_{i}")(x)
    x = layers.ReLU(name=f"relu_{i}")(x)
    return layers.Dropout(dropout, name=f"dropout_{i}")(x)


def centre_pixel(patches: Any) -> Any:
    """(batch, time, y, x, feature) to (batch, time, feature) at the middle of y and x.

    Raises
    ------
    ValueError
        For even sizes.
    """
    _, time, y, x, feature = patches.shape
    if y % 2 == 0 or x % 2 == 0:
        raise ValueError(f"A patch of {y} x {x} pixels has no centre pixel; give odd sizes.")
    crop = ((0, 0), (y // 2, y // 2), (x // 2, x // 2))
    centre = layers.Cropping3D(crop, name="centre")(patches)
    return layers.Reshape((time, feature), name="series")(centre)
