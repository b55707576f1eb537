"""A trained patch network, evaluated at every pixel of a tile at once.

A network of 11 x 11 patches that is asked for every pixel computes each location up to 121 times. Here the same
layers slide over the whole tile: flattening and the dense layer after it become one convolution, and pooling with
stride two begins at each of four pixels, its results side by side in the batch until they are woven together.
Unpadded layers give the patch's numbers. Padded layers see neighbouring pixels where a patch sees zeros beyond its
border: the one difference.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, TypeAlias

import keras
from keras import layers, ops

from cropnb.models.convstar import ConvSTAR

# Pixels over which the states of a ConvSTAR layer are taken to spread. In principle it is one on each date, but
# every step passes on a fraction alone.
STATE_REACH = 4
POINTWISE = (layers.Dense, layers.Dropout, layers.BatchNormalization, layers.ReLU)
Step: TypeAlias = Callable[[Any], Any]


class DenseNetwork(keras.Model):
    """Class probabilities of the pixels of a tile, by the layers of a patch network of `cropnb.models`.

    Input (batch, time, y, x, feature), output (batch, y - 2 halo, x - 2 halo, class).

    Attributes
    ----------
    patch
        Side of a patch, pixels.
    halo
        Pixels around the centre of a patch on which its result depends.
    margin
        Those of them that only padded layers see; cut off after the last of these.

    Raises
    ------
    ValueError
        For a layer that cannot be evaluated so.
    """

    def __init__(self, network: keras.Model) -> None:
        super().__init__(name=f"dense_{network.name}")
        self._steps: list[Step] = []
        self._spacing = 1  # pixels between neighbours in a patch's layer
        self._flattened: tuple[int, ...] = ()
        self._is_series = False
        before = after = self._last_padded = 0  # pixels that are seen before and after the first one of a patch
        tensor = network.inputs[0]
        for layer in network.operations[1:]:
            if layer.input is not tensor:
                raise ValueError(f"{network.name} is no chain of layers; map this run patch by patch.")
            tensor, spacing = layer.output, self._spacing
            if (found := self._step(layer, tuple(layer.input.shape[1:]))) is None:
                raise ValueError(
                    f"The layer {layer.name!r} ({type(layer).__name__}) of {network.name} cannot be evaluated on "
                    "whole tiles; map this run patch by patch."
                )
            step, *seen = found
            self._steps.append(step)
            before, after = before + spacing * seen[0], after + spacing * seen[1]
            self._last_padded = len(self._steps) if seen[0] > 0 else self._last_padded
        self.patch = network.input_shape[2]
        half = self.patch // 2
        self.halo = max(half, half + before, after - half)
        self.margin = max(0, before) if self._spacing == 1 else 0

    def call(self, tile: Any) -> Any:
        """Probabilities of all pixels of a tile that lie `halo` pixels inside it."""
        rows, columns = (n - 2 * self.halo for n in ops.shape(tile)[2:4])
        x = tile
        for position, step in enumerate(self._steps, 1):
            x = step(x)
            if position == self._last_padded:
                y_end, x_end = (n - self.margin for n in ops.shape(x)[-3:-1])
                x = x[..., self.margin : y_end, self.margin : x_end, :]
        if self._is_series:
            x = ops.reshape(x, (-1, rows, columns, x.shape[-1]))
        for _ in range(self._spacing.bit_length() - 1):
            x = _weave(x)
        first = self.halo - self.patch // 2 - self.margin
        return x[:, first : first + rows, first : first + columns]

    def _step(self, layer: Any, shape: tuple[int, ...]) -> tuple[Step, int, int] | None:
        """What takes the place of a layer whose input is a patch's `shape`, and how far it sees before and after."""
        kind, recurrent = type(layer), getattr(layer, "forward_layer", layer)
        if self._flattened:
            shape, self._flattened = self._flattened, ()
            return (_convolution(layer, shape), 0, shape[-2] - 1) if kind is layers.Dense else None
        if self._is_series or kind in POINTWISE:
            return layer, 0, 0
        if kind is layers.Flatten:
            self._flattened = shape
            return (_time_to_channels if len(shape) == 4 else lambda x: x), 0, 0
        if kind.__name__ == "GetItem":  # one date of a series of states
            return lambda x: layer(x, *layer._inbound_nodes[0].arguments.args[1:]), 0, 0
        if isinstance(recurrent, ConvSTAR) and self._spacing == 1:
            reach = recurrent.kernel_size // 2 * (1 + STATE_REACH)
            return layer, reach, reach
        if isinstance(layer, layers.Conv2D | layers.Conv3D) and {*layer.strides, *layer.dilation_rate} == {1}:
            reach = layer.kernel_size[-1] - 1
            return (layer, reach // 2, reach // 2) if layer.padding == "same" else (layer, 0, reach)
        if kind is layers.MaxPooling3D and layer.pool_size == layer.strides == (1, 2, 2):
            self._spacing *= 2
            return functools.partial(_pool, layer), 0, 1
        if kind is layers.GlobalAveragePooling2D:
            return lambda x: ops.average_pool(x, shape[0], 1, "valid", "channels_last"), 0, shape[0] - 1
        if kind in (layers.Cropping2D, layers.Cropping3D):
            cut = layer.cropping[-1][0]
            if self._spacing == 1 and layer.cropping[-2][0] == cut and layer.cropping[:-2] in ((), ((0, 0),)):
                return layer, -cut, cut
        if kind is layers.Reshape and shape[1:3] == (1, 1):  # (time, 1, 1, feature) to a pixel's series
            self._is_series = True
            return lambda x: ops.reshape(ops.moveaxis(x, 1, 3), (-1, shape[0], shape[-1])), 0, 0
        if kind is layers.Permute and layer.dims == (2, 3, 1, 4):
            return layer, 0, 0
        if kind is layers.Reshape and layer.target_shape == (*shape[:2], shape[2] * shape[3]):
            return lambda x: ops.reshape(x, (*ops.shape(x)[:3], shape[2] * shape[3])), 0, 0
        return None


def _time_to_channels(x: Any) -> Any:
    """(batch, time, y, x, channel) to (batch, y, x, time * channel)."""
    batch, time, rows, columns, channels = ops.shape(x)
    return ops.reshape(ops.moveaxis(x, 1, 3), (batch, rows, columns, time * channels))


def _convolution(layer: keras.layers.Dense, shape: tuple[int, ...]) -> keras.layers.Conv2D:
    """A dense layer over the flattened (y, x, channel) or (time, y, x, channel), as a convolution."""
    *time, rows, columns, channels = shape
    kernel = ops.reshape(layer.kernel, (*(time or [1]), rows, columns, channels, layer.units))
    kernel = ops.reshape(ops.moveaxis(kernel, 0, 2), (rows, columns, -1, layer.units))
    result = layers.Conv2D(layer.units, (rows, columns), activation=layer.activation, dtype=layer.dtype_policy)
    result.build((None, *kernel.shape[:3]))
    result.set_weights([kernel, layer.bias])
    return result


def _pool(layer: Any, x: Any) -> Any:
    """Pool (batch, time, y, x, channel) from each of the four pixels where windows can begin, four times the batch."""
    rows, columns = ((n + (layer.padding == "same")) // 2 for n in ops.shape(x)[2:4])
    x = ops.pad(x, ((0, 0), (0, 0), (0, 2), (0, 2), (0, 0)), constant_values=float("-inf"))
    begins = itertools.product((0, 1), repeat=2)
    return ops.concatenate([layer(x[:, :, i : i + 2 * rows, j : j + 2 * columns]) for i, j in begins])


def _weave(x: Any) -> Any:
    """Undo the last `_pool` in (batch, y, x, class): every second row and column is of another quarter of the batch."""
    _, rows, columns, classes = ops.shape(x)
    x = ops.moveaxis(ops.reshape(x, (2, 2, -1, rows, columns, classes)), (0, 1), (2, 4))
    return ops.reshape(x, (-1, 2 * rows, 2 * columns, classes))
