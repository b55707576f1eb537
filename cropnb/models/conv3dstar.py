"""3D-ConvSTAR: the network proposed by Liu et al. (2023), section 4.2.3."""

import keras

from .convstar import ConvSTAR
from .parts import Conv3D, dense_head, fixed_size, patch_input, scaled


def build(
    input_shape,
    num_classes,
    width=1.0,
    *,
    merge="concat",
    final_state="each_direction",
    conv2d_padding="valid",
    dense_units=(256, 128),
    dropout=0.4,
    recurrent_relu=True,
    output_tanh=True,
    gate_bias=-1.0,
):
    """Three 3-D convolutions, three bidirectional ConvSTAR layers, one 2-D convolution, dense layers.

    Parameters
    ----------
    input_shape : (time, y, x, feature).
    num_classes : number of crops.
    width : fraction of the published filters (32, 32, 64; 64; 64).
    merge : "concat" or "sum" of the two directions, a reading.
    final_state : "each_direction", the forward state after the last date and the backward state after the
        first, or "last_date", both directions' states at the last date, where the backward one has seen a
        single date; a reading.
    conv2d_padding : "valid", since the layer "reduces the size of the feature maps", or "same"; a reading.
    dense_units : the "three fully connected layers" are these and the softmax, a reading.
    dropout : rate after each dense layer.
    recurrent_relu : ReLU on each merged recurrent output, outside the recurrence; a reading.
    output_tanh, gate_bias : of the `ConvSTAR` layers.
    """
    fixed_size(input_shape, "3D-ConvSTAR")
    if final_state not in ("each_direction", "last_date"):
        raise ValueError(f"The final state is {final_state!r}; choose 'each_direction' or 'last_date'.")
    x = inputs = patch_input(input_shape, "3D-ConvSTAR")
    for i, filters in enumerate((32, 32, 64), 1):
        x = Conv3D(scaled(filters, width), 3, padding="same", activation="relu", name=f"conv3d_{i}")(x)
    for i in (1, 2, 3):
        layer = ConvSTAR(
            scaled(64, width),
            return_sequences=i < 3 or final_state == "last_date",
            output_tanh=output_tanh,
            gate_bias=gate_bias,
        )
        x = keras.layers.Bidirectional(layer, merge_mode=merge, name=f"convstar_{i}")(x)
        if recurrent_relu:
            x = keras.layers.ReLU(name=f"relu_{i}")(x)
    if final_state == "last_date":
        x = x[:, -1]
    x = keras.layers.Conv2D(scaled(64, width), 3, padding=conv2d_padding, activation="relu", name="conv2d")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    return keras.Model(inputs, dense_head(x, num_classes, dense_units, dropout), name="conv3dstar")
