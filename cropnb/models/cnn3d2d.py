"""3D-2D CNN: the HybridSN of Roy et al. (2019), with time in the place of the spectrum."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from cropnb.models.parts import Conv3D, dense_head, patch_input, scaled


def build(
    input_shape: Sequence[int | None],
    num_classes: int,
    width: float = 1.0,
    *,
    kernel_times: Sequence[int] = (7, 5, 3),
    dropout: float = 0.4,
) -> keras.Model:
    """Three 3-D convolutions, then one 2-D convolution over all dates and filters at once.

    Parameters
    ----------
    input_shape
        (time, y, x, feature), at least 13 dates and 9 pixels with the published kernels.
    num_classes
        Number of crops.
    width
        Fraction of the published 8, 16, 32 and 64 filters.
    kernel_times
        Kernel lengths in dates; HybridSN's lengths in spectral bands, a reading.
    dropout
        Rate after each dense layer.
    """
    x = inputs = patch_input(input_shape, "3D-2D CNN")
    check_sizes(inputs.shape[1:], kernel_times)
    relu = {"activation": "relu"}
    for i, filters in enumerate((8, 16, 32), 1):
        filters, kernel = scaled(filters, width), (kernel_times[i - 1], 3, 3)
        x = Conv3D(filters, kernel, **relu, name=f"conv3d_{i}")(x)
    x = time_to_channels(x)
    x = layers.Conv2D(scaled(64, width), 3, **relu, name="conv2d")(x)
    x = layers.Flatten(name="flatten")(x)
    x = dense_head(x, num_classes, (256, 128), dropout)
    return keras.Model(inputs, x, name="cnn3d2d")


def time_to_channels(x: Any) -> Any:
    """(batch, time, y, x, filter) to (batch, y, x, time * filter), channel = time * filters + filter.

    Time has to move beside the filters before the reshape, else pixels and dates are scrambled.
    """
    _, time, rows, columns, filters = x.shape
    x = layers.Permute((2, 3, 1, 4), name="time_last")(x)
    shape = (rows, columns, time * filters)
    return layers.Reshape(shape, name="time_as_channels")(x)


def check_sizes(input_shape: Sequence[int], kernel_times: Sequence[int]) -> None:
    """Refuse, with a ValueError, patches that unpadded kernels shrink to nothing."""
    least = sum(kernel_times) - len(kernel_times) + 1
    if input_shape[0] < least or min(input_shape[1:3]) < 9:
        raise ValueError(
            f"Patches {tuple(input_shape)} are too small for the unpadded kernels of the 3D-2D CNN; "
            f"give at least {least} dates and 9 x 9 pixels."
        )
