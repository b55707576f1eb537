"""ConvSTAR: the convolutional stackable recurrent cell of Turkoglu et al. (2021), and a network of three."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

from cropnb.models.parts import fixed_size, one_of, patch_input, probabilities, scaled


@keras.saving.register_keras_serializable(package="cropnb")
class ConvSTAR(keras.layers.Layer):
    """One ConvSTAR layer, equations (2)-(4) of Liu et al. (2023).

        f_t = sigmoid(W_xf * x_t + W_hf * H_{t-1} + B_f)
        Z_t = tanh(W_xz * x_t + B_z)
        H_t = tanh(f_t Z_t + (1 - f_t) H_{t-1})

    Input (batch, time, y, x, channel); output (batch, y, x, filters), or every state with time second.
    It follows the contract of Keras's recurrent layers, so `keras.layers.Bidirectional` can wrap it.

    Parameters
    ----------
    filters, kernel_size
        Number and side length of the kernels, which are padded with zeros.
    return_sequences, return_state, go_backwards
        As in `keras.layers.RNN`.
    output_tanh
        The tanh around H_t of equation (4); the authors' released code has none.
    gate_bias
        B_f at the start. -1 keeps the memory at first: the released code's +1 stands on 1 - f_t.
    """

    stateful = False

    def __init__(
        self,
        filters: int,
        kernel_size: int = 3,
        *,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        output_tanh: bool = True,
        gate_bias: float = -1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.return_sequences = return_sequences
        self.return_state = return_state
        self.go_backwards = go_backwards
        self.output_tanh = output_tanh
        self.gate_bias = gate_bias
        self.input_spec = keras.layers.InputSpec(ndim=5)

    def build(self, input_shape: Sequence[Any]) -> None:
        """Weights named as in the equations; the gate's kernels are orthogonal over input and state."""
        side, channels, filters = (self.kernel_size, self.kernel_size), input_shape[-1], self.filters
        joint = keras.initializers.Orthogonal()  # one seed, so both parts come from the same matrix

        def part(columns: slice) -> Any:
            return lambda shape, dtype: joint((*side, channels + filters, filters), dtype)[:, :, columns]

        def kernel(name: str, inputs: Any, initializer: Any) -> Any:
            return self.add_weight(name=name, shape=(*side, inputs, filters), initializer=initializer)

        self.kernel_xf = kernel("kernel_xf", channels, part(slice(None, channels)))
        self.kernel_hf = kernel("kernel_hf", filters, part(slice(channels, None)))
        self.bias_f = self.add_weight(
            name="bias_f", shape=(filters,), initializer=keras.initializers.Constant(self.gate_bias)
        )
        self.kernel_xz = kernel("kernel_xz", channels, keras.initializers.Orthogonal())
        self.bias_z = self.add_weight(name="bias_z", shape=(filters,), initializer="zeros")

    def call(self, sequences: Any, initial_state: Any = None) -> Any:
        """The state after the last date, or the states of all, from zeros or a state given."""
        gates, candidates = self._from_input(sequences)
        state = ops.zeros_like(candidates[0])
        if initial_state is not None:
            is_list = isinstance(initial_state, list | tuple)
            state = initial_state[0] if is_list else initial_state
        states = []
        for t in zip(ops.unstack(gates), ops.unstack(candidates), strict=True):
            state = self.step(state, *t)
            states.append(state)
        output = ops.stack(states, axis=1) if self.return_sequences else state
        return (output, state) if self.return_state else output

    def step(self, state: Any, gate: Any, candidate: Any) -> Any:
        """H_t from H_{t-1}, W_xf * x_t + B_f and Z_t."""
        f = ops.sigmoid(gate + self._convolve(state, self.kernel_hf))
        state = f * candidate + (1 - f) * state
        return ops.tanh(state) if self.output_tanh else state

    def _from_input(self, sequences: Any) -> tuple[Any, Any]:
        """W_xf * x_t + B_f and Z_t of all dates by one convolution, each (time, batch, y, x, filter)."""
        x = ops.moveaxis(sequences, 1, 0)
        if self.go_backwards:
            x = ops.flip(x, axis=0)
        shape = ops.shape(x)
        x = ops.reshape(x, (-1, *shape[2:]))
        x = self._convolve(x, ops.concatenate([self.kernel_xf, self.kernel_xz], axis=-1))
        x = x + ops.concatenate([self.bias_f, self.bias_z])
        x = ops.reshape(x, (*shape[:-1], 2 * self.filters))
        gate, candidate = ops.split(x, 2, axis=-1)
        return gate, ops.tanh(candidate)

    def _convolve(self, x: Any, kernel: Any) -> Any:
        return ops.conv(x, kernel, padding="same", data_format="channels_last")

    def compute_output_shape(self, sequences_shape: Sequence[int | None], initial_state_shape: Any = None) -> tuple:
        """Sizes of what `call` returns."""
        batch, time, y, x, _ = sequences_shape
        state = (batch, y, x, self.filters)
        output = (batch, time, y, x, self.filters) if self.return_sequences else state
        return (output, state) if self.return_state else output

    def get_config(self) -> dict[str, Any]:
        """The arguments, for a saved network."""
        names = (
            "filters", "kernel_size", "return_sequences", "return_state", "go_backwards",
            "output_tanh", "gate_bias",
        )  # fmt: skip
        return super().get_config() | {name: getattr(self, name) for name in names}


def build(
    input_shape: Sequence[int | None],
    num_classes: int,
    width: float = 1.0,
    *,
    head: str = "centre",
    output_tanh: bool = True,
    gate_bias: float = -1.0,
) -> keras.Model:
    """Three ConvSTAR layers of 64 kernels 3x3; the state after the last date is classified.

    Parameters
    ----------
    input_shape
        (time, y, x, feature); time may be None, and y and x too with the "average" head.
    num_classes
        Number of crops.
    width
        Fraction of the published 64 filters.
    head
        How the state's map becomes one label of the patch, a reading. "centre": the released 3x3 convolution, read
        at the centre pixel; "average": global average and a dense layer; "flatten": a dense layer over all pixels.
    output_tanh, gate_bias
        Of the `ConvSTAR` layers.
    """
    one_of(HEADS, head, "head")
    if head != "average":
        fixed_size(input_shape[1:], f"ConvSTAR with the {head!r} head")
    cell: dict[str, Any] = {"output_tanh": output_tanh, "gate_bias": gate_bias}
    x = inputs = patch_input(input_shape, "ConvSTAR", is_fixed=False)
    for i in (1, 2, 3):
        cell |= {"return_sequences": i < 3, "name": f"convstar_{i}"}
        x = ConvSTAR(scaled(64, width), **cell)(x)
    return keras.Model(inputs, HEADS[head](x, num_classes), name="convstar")


def centre(state: Any, num_classes: int) -> Any:
    """Only the 3x3 pixels around the centre reach the label, so only they are convolved.

    Raises
    ------
    ValueError
        For a patch without a 3x3 centre.
    """
    _, y, x, _ = state.shape
    if y % 2 == 0 or x % 2 == 0 or min(y, x) < 3:
        raise ValueError(f"A patch of {y} x {x} pixels has no 3x3 centre; give odd sizes from 3 on.")
    crop = ((y // 2 - 1, y // 2 - 1), (x // 2 - 1, x // 2 - 1))
    x = layers.Cropping2D(crop, name="centre")(state)
    softmax = {"activation": "softmax", "dtype": "float32", "name": "crop"}
    x = layers.Conv2D(num_classes, 3, **softmax)(x)
    return layers.Flatten(name="flatten")(x)


def average(state: Any, num_classes: int) -> Any:
    """Global average and a dense layer."""
    return probabilities(layers.GlobalAveragePooling2D(name="average")(state), num_classes)


def flatten(state: Any, num_classes: int) -> Any:
    """A dense layer over all pixels."""
    return probabilities(layers.Flatten(name="flatten")(state), num_classes)


HEADS = {"centre": centre, "average": average, "flatten": flatten}
