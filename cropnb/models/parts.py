"""What the builders share: input checks, width, dense layers, a faster 3-D convolution."""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras import ops


def scaled(count: int, width: float) -> int:
    """`count` filters at a fraction `width` of the published network, at least one.

    Raises
    ------
    ValueError
        For a width that is not positive.
    """
    if width <= 0:
        raise ValueError(f"The width is {width}; give a positive fraction of the published width.")
    return max(1, round(count * width))


def one_of(known: Iterable[str], value: str, what: str) -> None:
    """Refuse, with a ValueError, a reading that is not known."""
    if value not in known:
        raise ValueError(f"The {what} is {value!r}; choose one of {', '.join(known)}.")


def patch_input(input_shape: Sequence[int | None], network: str, is_fixed: bool = True) -> Any:
    """Keras input of (time, y, x, feature) patches; sizes may be None where the network is not `is_fixed`.

    Raises
    ------
    ValueError
        For another number of sizes, or open ones.
    """
    if len(input_shape) != 4:
        raise ValueError(f"{network} reads patches (time, y, x, feature), not {tuple(input_shape)}; give four sizes.")
    if is_fixed:
        fixed_size(input_shape, network)
    return keras.Input(tuple(input_shape), name="patch")


def fixed_size(input_shape: Sequence[int | None], network: str) -> None:
    """Refuse, with a ValueError, an open time, y or x where the head counts its inputs."""
    if None in input_shape:
        raise ValueError(
            f"{network} flattens its features and needs every size, not {tuple(input_shape)}; "
            "give the number of dates and the patch size."
        )


def dense_head(x: Any, num_classes: int, units: Sequence[int], dropout: float) -> Any:
    """Dense layers with ReLU and dropout, then the class probabilities."""
    for i, n in enumerate(units, 1):
        x = keras.layers.Dense(n, activation="relu", name=f"dense_{i}")(x)
        x = keras.layers.Dropout(dropout, name=f"dropout_{i}")(x)
    return probabilities(x, num_classes)


def probabilities(x: Any, num_classes: int, **options: Any) -> Any:
    """Softmax layer, in float32 also under mixed precision."""
    return keras.layers.Dense(num_classes, activation="softmax", dtype="float32", name="crop", **options)(x)


@keras.saving.register_keras_serializable(package="cropnb")
class Conv3D(keras.layers.Conv3D):
    """Keras's Conv3D over (time, y, x), computed as a 2-D convolution of neighbouring dates side by side.

    Same weights and numbers, faster on a CPU, where the 3-D convolution is slow.
    Strides and dilation are one, channels last.
    """

    def call(self, inputs: Any) -> Any:
        """(batch, time, y, x, channel) to (batch, time, y, x, filter)."""
        length, side, _, channels, filters = self.kernel.shape
        before = (length - 1) // 2 if self.padding == "same" else 0
        after = length - 1 - before if self.padding == "same" else 0
        x = ops.pad(inputs, ((0, 0), (before, after), (0, 0), (0, 0), (0, 0)))
        dates = inputs.shape[1] - (0 if self.padding == "same" else length - 1)
        batch, _, *rest = ops.shape(x)
        # `ops.slice` and not [:, i : i + dates], whose gradient is slow in TensorFlow
        x = ops.concatenate([ops.slice(x, (0, i, 0, 0, 0), (batch, dates, *rest)) for i in range(length)], axis=-1)
        x = ops.reshape(x, (-1, *ops.shape(x)[2:]))
        kernel = ops.moveaxis(self.kernel, 0, 2)
        kernel = ops.reshape(kernel, (side, side, length * channels, filters))
        x = ops.conv(x, kernel, padding=self.padding, data_format="channels_last") + self.bias
        x = ops.reshape(x, (-1, dates, *ops.shape(x)[1:]))
        return self.activation(x)
