"""3D-CNN: convolutions over time and space, Ji et al. (2018)."""

from collections.abc import Sequence

import keras
from keras import layers

from cropnb.models.parts import Conv3D, dense_head, one_of, patch_input, scaled


def build(
    input_shape: Sequence[int | None],
    num_classes: int,
    width: float = 1.0,
    *,
    pool: str = "max",
    pool_padding: str = "same",
    dense_units: Sequence[int] = (),
    dropout: float = 0.0,
) -> keras.Model:
    """Three 3x3x3 convolutions, each followed by pooling over space alone, so the whole season is kept.

    Parameters
    ----------
    input_shape
        (time, y, x, feature).
    num_classes
        Number of crops.
    width
        Fraction of the published 32, 32 and 64 filters.
    pool, pool_padding
        "max" or "average", "same" (11-6-3-2 pixels) or "valid" (11-5-2-1); readings.
    dense_units, dropout
        Hidden dense layers before the softmax; the reading is none.
    """
    kinds = {"max": layers.MaxPooling3D, "average": layers.AveragePooling3D}
    one_of(kinds, pool, "pooling")
    same = {"padding": "same", "activation": "relu"}
    x = inputs = patch_input(input_shape, "3D-CNN")
    for i, filters in enumerate((32, 32, 64), 1):
        x = Conv3D(scaled(filters, width), 3, **same, name=f"conv3d_{i}")(x)
        x = kinds[pool]((1, 2, 2), padding=pool_padding, name=f"pool_{i}")(x)
    x = layers.Flatten(name="flatten")(x)
    x = dense_head(x, num_classes, dense_units, dropout)
    return keras.Model(inputs, x, name="cnn3d")
