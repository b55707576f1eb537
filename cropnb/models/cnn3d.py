"""3D-CNN: convolutions over time and space, Ji et al. (2018)."""

import keras

from .parts import Conv3D, dense_head, fixed_size, patch_input, scaled


def build(input_shape, num_classes, width=1.0, *, pool="max", pool_padding="same", dense_units=(), dropout=0.0):
    """Three 3x3x3 convolutions, each followed by pooling over space alone, so the whole season is kept.

    Parameters
    ----------
    input_shape : (time, y, x, feature).
    num_classes : number of crops.
    width : fraction of the published 32, 32 and 64 filters.
    pool, pool_padding : "max" or "average", "same" (11-6-3-2 pixels) or "valid" (11-5-2-1); readings.
    dense_units, dropout : hidden dense layers before the softmax; the reading is none.
    """
    fixed_size(input_shape, "3D-CNN")
    pooling = {"max": keras.layers.MaxPooling3D, "average": keras.layers.AveragePooling3D}
    if pool not in pooling:
        raise ValueError(f"The pooling is {pool!r}; choose 'max' or 'average'.")
    x = inputs = patch_input(input_shape, "3D-CNN")
    for i, filters in enumerate((32, 32, 64), 1):
        x = Conv3D(scaled(filters, width), 3, padding="same", activation="relu", name=f"conv3d_{i}")(x)
        x = pooling[pool]((1, 2, 2), padding=pool_padding, name=f"pool_{i}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    return keras.Model(inputs, dense_head(x, num_classes, dense_units, dropout), name="cnn3d")
