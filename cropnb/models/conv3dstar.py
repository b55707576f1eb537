"""3D-ConvSTAR: the network proposed by Liu et al. (2023), section 4.2.3."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from cropnb.models.convstar import ConvSTAR
from cropnb.models.parts import Conv3D, dense_head, one_of, patch_input, scaled


def build(
    input_shape: Sequence[int | None],
    num_classes: int,
    width: float = 1.0,
    *,
    merge: str = "concat",
    final_state: str = "each_direction",
    conv2d_padding: str = "valid",
    dense_units: Sequence[int] = (256, 128),
    dropout: float = 0.4,
    recurrent_relu: bool = True,
    output_tanh: bool = True,
    gate_bias: float = -1.0,
) -> keras.Model:
    """Three 3-D convolutions, three bidirectional ConvSTAR layers, one 2-D convolution, dense layers.

    Parameters
    ----------
    input_shape
        (time, y, x, feature).
    num_classes
        Number of crops.
    width
        Fraction of the published filters (32, 32, 64; 64; 64).
    merge
        "concat" or "sum" of the two directions, a reading.
    final_state
        "each_direction", the forward state after the last date and the backward state after the first, or
        "last_date", both directions' states at the last date, where the backward one has seen a single date; a
        reading.
    conv2d_padding
        "valid", since the layer "reduces the size of the feature maps", or "same"; a reading.
    dense_units
        The "three fully connected layers" are these and the softmax, a reading.
    dropout
        Rate after each dense layer.
    recurrent_relu
        ReLU on each merged recurrent output, outside the recurrence; a reading.
    output_tanh, gate_bias
        Of the `ConvSTAR` layers.
    """
    one_of(("each_direction", "last_date"), final_state, "final state")
    at_last_date = final_state == "last_date"
    cell: dict[str, Any] = {"output_tanh": output_tanh, "gate_bias": gate_bias}
    same, relu = {"padding": "same"}, {"activation": "relu"}
    x = inputs = patch_input(input_shape, "3D-ConvSTAR")
    for i, filters in enumerate((32, 32, 64), 1):
        filters = scaled(filters, width)
        x = Conv3D(filters, 3, **same, **relu, name=f"conv3d_{i}")(x)
    filters = scaled(64, width)
    for i in (1, 2, 3):
        star = ConvSTAR(filters, return_sequences=i < 3 or at_last_date, **cell)
        x = layers.Bidirectional(star, merge, name=f"convstar_{i}")(x)
        if recurrent_relu:
            x = layers.ReLU(name=f"relu_{i}")(x)
    if at_last_date:
        x = x[:, -1]
    options = relu | {"padding": conv2d_padding}
    x = layers.Conv2D(filters, 3, **options, name="conv2d")(x)
    x = layers.Flatten(name="flatten")(x)
    x = dense_head(x, num_classes, dense_units, dropout)
    return keras.Model(inputs, x, name="conv3dstar")
