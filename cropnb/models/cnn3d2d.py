"""3D-2D CNN: the HybridSN of Roy et al. (2019), with time in the place of the spectrum."""

import keras

from .parts import Conv3D, dense_head, fixed_size, patch_input, scaled


def build(input_shape, num_classes, width=1.0, *, kernel_times=(7, 5, 3), dropout=0.4):
    """Three 3-D convolutions, then one 2-D convolution over all dates and filters at once.

    Parameters
    ----------
    input_shape : (time, y, x, feature), at least 13 dates and 9 pixels with the published kernels.
    num_classes : number of crops.
    width : fraction of the published 8, 16, 32 and 64 filters.
    kernel_times : kernel lengths in dates; HybridSN's lengths in spectral bands, a reading.
    dropout : rate after each dense layer.
    """
    fixed_size(input_shape, "3D-2D CNN")
    times, *pixels, _ = input_shape
    if times - sum(kernel_times) + len(kernel_times) < 1 or min(pixels) < 9:
        raise ValueError(
            f"Patches {tuple(input_shape)} are too small for the unpadded kernels of the 3D-2D CNN; "
            f"give at least {sum(kernel_times) - len(kernel_times) + 1} dates and 9 x 9 pixels."
        )
    x = inputs = patch_input(input_shape, "3D-2D CNN")
    for i, (filters, length) in enumerate(zip((8, 16, 32), kernel_times, strict=True), 1):
        x = Conv3D(scaled(filters, width), (length, 3, 3), activation="relu", name=f"conv3d_{i}")(x)
    x = time_to_channels(x)
    x = keras.layers.Conv2D(scaled(64, width), 3, activation="relu", name="conv2d")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    return keras.Model(inputs, dense_head(x, num_classes, (256, 128), dropout), name="cnn3d2d")


def time_to_channels(x):
    """(batch, time, y, x, filter) to (batch, y, x, time * filter), channel = time * filters + filter.

    Time has to move beside the filters before the reshape, else pixels and dates are scrambled.
    """
    _, time, rows, columns, filters = x.shape
    x = keras.layers.Permute((2, 3, 1, 4), name="time_last")(x)
    return keras.layers.Reshape((rows, columns, time * filters), name="time_as_channels")(x)
