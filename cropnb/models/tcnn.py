"""TCNN: the temporal convolutional network of Pelletier, Webb and Petitjean (2019)."""

import keras

from .parts import fixed_size, probabilities, scaled


def build(input_shape, num_classes, width=1.0, *, kernel_size=5, dropout=0.5, l2=1e-6):
    """TCNN of one pixel's time series.

    Parameters
    ----------
    input_shape : (time, feature), or (time, y, x, feature) with odd y and x, whose centre pixel is
        used, a reading: Liu et al. do not say what a network without space sees.
    num_classes : number of crops.
    width : fraction of the published 64 filters.
    kernel_size, dropout, l2 : the authors' filter length in dates, dropout rate and penalty on kernels.
    """
    fixed_size(input_shape, "TCNN")
    penalty = keras.regularizers.L2(l2)
    inputs = keras.Input(tuple(input_shape), name="patch" if len(input_shape) == 4 else "pixel")
    x = centre_pixel(inputs) if len(input_shape) == 4 else inputs
    for i in (1, 2, 3):
        x = keras.layers.Conv1D(
            scaled(64, width),
            kernel_size,
            padding="same",
            kernel_initializer="he_normal",
            kernel_regularizer=penalty,
            name=f"conv1d_{i}",
        )(x)
        x = _normalised(x, dropout, i)
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Dense(256, kernel_initializer="he_normal", kernel_regularizer=penalty, name="dense")(x)
    x = _normalised(x, dropout, 4)
    return keras.Model(inputs, probabilities(x, num_classes, kernel_regularizer=penalty), name="tcnn")


def centre_pixel(patches):
    """(batch, time, y, x, feature) to (batch, time, feature) at the middle of y and x."""
    _, time, y, x, feature = patches.shape
    if y % 2 == 0 or x % 2 == 0:
        raise ValueError(f"A patch of {y} x {x} pixels has no centre pixel; give odd sizes.")
    crop = ((0, 0), (y // 2, y // 2), (x // 2, x // 2))
    centre = keras.layers.Cropping3D(crop, name="centre")(patches)
    return keras.layers.Reshape((time, feature), name="series")(centre)


def _normalised(x, dropout, i):
    x = keras.layers.BatchNormalization(name=f"norm_{i}")(x)
    x = keras.layers.ReLU(name=f"relu_{i}")(x)
    return keras.layers.Dropout(dropout, name=f"dropout_{i}")(x)
