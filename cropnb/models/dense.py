"""A trained patch network, evaluated at every location of a tile at once.

A network of 11 x 11 patches that is asked for every pixel computes each location up to 121 times. Here the same
weights slide over the whole tile: flattening and the dense layer after it become one convolution, and pooling
with stride two becomes pooling at every pixel, after which kernels reach over pixels twice as far apart (dilated
convolution). Unpadded layers give the patch's numbers. Padded layers see neighbouring pixels where a patch sees
zeros beyond its border: the one difference.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras import ops

from cropnb.models.convstar import ConvSTAR

# Pixels over which the states of a ConvSTAR layer are taken to spread. In principle it is one on each date, but
# every step passes on a fraction alone.
STATE_REACH = 4


@keras.saving.register_keras_serializable(package="cropnb")
class DenseNetwork(keras.Model):
    """Class probabilities of all patches of a tile, by the layers of a patch network of `cropnb.models`.

    Input (batch, time, y, x, feature), output (batch, y - patch + 1, x - patch + 1, class), each at the first
    pixel of its patch. `halo` counts the pixels around a patch's centre on which its result depends.
    Raises ValueError for a layer that cannot be evaluated so.
    """

    def __init__(self, network: keras.Model, **kwargs: Any) -> None:
        super().__init__(**{"name": f"dense_{network.name}", **kwargs})
        self.network = network
        self.patch = network.input_shape[2]
        self.halo = self.patch // 2
        # Steps of a patch network's layer in pixels, whether a tile became single series, and the pixels before
        # and after a patch's first one that its result has drawn from so far.
        self._spacing, self._is_series, self._before, self._after = 1, False, 0, 0
        step: Callable | None
        self._steps: list[Callable] = []
        flattened = None
        for layer, arguments in _chain(network):
            if flattened is not None and isinstance(layer, keras.layers.Dense):
                step = self._dense(layer, flattened.input.shape[1:])
                flattened = None
            elif isinstance(layer, keras.layers.Flatten) and flattened is None and not self._is_series:
                shape = layer.input.shape[1:]
                flattened = None if shape[:-1] == (1, 1) else layer
                continue
            else:
                step = self._step(layer, arguments) if flattened is None else None
            if step is None:
                raise ValueError(
                    f"The layer {layer.name!r} ({type(layer).__name__}) of {network.name} cannot be evaluated on "
                    "whole tiles; map this run patch by patch."
                )
            self._steps.append(step)
        self.halo = max(self.halo, self._before + self.halo, self._after - self.halo)

    def call(self, tile: Any) -> Any:
        """Probabilities of all patches of a tile."""
        rows, columns = (n - self.patch + 1 for n in ops.shape(tile)[2:4])
        x = functools.reduce(lambda x, step: step(x), self._steps, tile)
        if self._is_series:
            x = ops.reshape(x, (-1, rows, columns, x.shape[-1]))
        return x[:, :rows, :columns]

    def get_config(self) -> dict[str, Any]:
        """The patch network, for a saved one."""
        return {"name": self.name, "network": keras.saving.serialize_keras_object(self.network)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "DenseNetwork":
        """The network of `get_config`."""
        return cls(keras.saving.deserialize_keras_object(config.pop("network")), **config)

    def _step(self, layer: Any, arguments: Any) -> Callable | None:
        """A function of a whole tile in the place of `layer`, None where there is none."""
        kind, spacing = layer.__class__, self._spacing
        shape: Sequence[int] = () if kind.__name__ == "GetItem" else layer.input.shape[1:]
        recurrent = getattr(layer, "forward_layer", layer)
        if self._is_series or kind in _POINTWISE:
            return layer
        if kind.__name__ == "GetItem":  # one date of a series of states
            return lambda x: layer(x, *arguments)
        if isinstance(recurrent, ConvSTAR) and spacing == 1:
            self._draw(*(2 * [recurrent.kernel_size // 2 * (1 + STATE_REACH)]))
            return layer
        if isinstance(layer, _CONVOLUTIONS) and {*layer.strides, *layer.dilation_rate} == {1}:
            reach = spacing * (layer.kernel_size[-1] - 1)
            self._draw(*((reach // 2, reach // 2) if layer.padding == "same" else (0, reach)))
            return layer if spacing == 1 else functools.partial(_dilated, layer, spacing)
        if kind is keras.layers.MaxPooling3D:
            return self._pool(layer, shape)
        if kind is keras.layers.GlobalAveragePooling2D:
            self._draw(0, shape[0] - 1)
            return lambda x: ops.average_pool(x, shape[0], 1, "valid", "channels_last")
        if kind in (keras.layers.Cropping2D, keras.layers.Cropping3D):
            (top, bottom), (left, right) = layer.cropping[-2:]
            if top == left and spacing == 1 and layer.cropping[:-2] in ((), ((0, 0),)):
                self._draw(-top, top)
                return lambda x: x[..., top : x.shape[-3] - bottom, left : x.shape[-2] - right, :]
        if kind is keras.layers.Reshape and shape[1:3] == (1, 1):  # (time, 1, 1, feature) to a pixel's series
            self._is_series = True
            return lambda x: ops.reshape(ops.moveaxis(x, 1, 3), (-1, shape[0], shape[-1]))
        if kind is keras.layers.Permute and layer.dims == (2, 3, 1, 4):
            return layer
        if kind is keras.layers.Reshape and layer.target_shape == (*shape[:2], shape[2] * shape[3]):
            return lambda x: ops.reshape(x, (*ops.shape(x)[:3], shape[2] * shape[3]))
        return None

    def _draw(self, before: int, after: int) -> None:
        self._before, self._after = self._before + before, self._after + after

    def _pool(self, layer: Any, shape: Sequence[int]) -> Callable | None:
        """Maximum over windows that begin at every pixel, where the patch's begin at every other."""
        spacing, side = self._spacing, layer.pool_size[-1]
        is_padded = layer.padding == "same"
        # With more than one pixel missing, the first window would begin outside the patch.
        is_odd = is_padded and -shape[1] % side > 1
        if layer.pool_size != (1, side, side) or layer.strides != layer.pool_size or is_odd:
            return None
        end = spacing * (side - 1)
        self._draw(0, end)
        self._spacing *= side

        def pool(x: Any) -> Any:
            if is_padded:
                x = ops.pad(x, ((0, 0), (0, 0), (0, end), (0, end), (0, 0)), constant_values=float("-inf"))
            rows, columns = (n - end for n in ops.shape(x)[2:4])
            starts = itertools.product(range(0, end + 1, spacing), repeat=2)
            return functools.reduce(ops.maximum, (x[:, :, i : i + rows, j : j + columns] for i, j in starts))

        return pool

    def _dense(self, layer: Any, shape: Sequence[int]) -> Callable:
        """A dense layer over the flattened (y, x, channel) or (time, y, x, channel), as a convolution."""
        *time, rows, columns, channels = shape
        times, spacing = (time or [1])[0], self._spacing
        self._draw(0, spacing * (rows - 1))

        def convolve(x: Any) -> Any:
            kernel = ops.reshape(ops.cast(layer.kernel, layer.compute_dtype), (times, rows, columns, channels, -1))
            kernel = ops.reshape(ops.moveaxis(kernel, 0, 2), (rows, columns, times * channels, -1))
            if time:
                x = ops.moveaxis(x, 1, 3)
                x = ops.reshape(x, (*ops.shape(x)[:3], times * channels))
            return _convolve(layer, x, kernel, "valid", spacing)

        return convolve


def _chain(network: keras.Model) -> Iterator[tuple[Any, Any]]:
    """(layer, further arguments) from the input to the output, where each has one input and one output."""
    tensor = network.inputs[0]
    for layer in network.operations[1:]:
        node = next((node for node in layer._inbound_nodes if [*map(id, node.input_tensors)] == [id(tensor)]), None)
        if node is None:
            raise ValueError(f"{network.name} is no chain of layers; map this run patch by patch.")
        tensor = node.outputs[0]
        yield layer, node.arguments.args[1:]


def _dilated(layer: Any, spacing: int, x: Any) -> Any:
    """A convolution over (y, x) or (time, y, x) whose kernel reaches over every `spacing`-th pixel.

    As in `parts.Conv3D`, neighbouring dates lie side by side: a CPU has no dilated 3-D convolution.
    """
    if len(x.shape) == 4:
        return _convolve(layer, x, ops.cast(layer.kernel, layer.compute_dtype), layer.padding, spacing)
    length, side, _, channels, filters = layer.kernel.shape
    if layer.padding == "same":
        x = ops.pad(x, ((0, 0), ((length - 1) // 2, length // 2), (0, 0), (0, 0), (0, 0)))
    dates = x.shape[1] - length + 1
    x = ops.concatenate([x[:, i : i + dates] for i in range(length)], axis=-1)
    x = ops.reshape(x, (-1, *ops.shape(x)[2:]))
    kernel = ops.moveaxis(ops.cast(layer.kernel, layer.compute_dtype), 0, 2)
    x = _convolve(layer, x, ops.reshape(kernel, (side, side, length * channels, filters)), layer.padding, spacing)
    return ops.reshape(x, (-1, dates, *ops.shape(x)[1:]))


def _convolve(layer: Any, x: Any, kernel: Any, padding: str, spacing: int) -> Any:
    x = ops.cast(x, layer.compute_dtype)
    x = ops.conv(x, kernel, padding=padding, data_format="channels_last", dilation_rate=spacing)
    return layer.activation(x + ops.cast(layer.bias, layer.compute_dtype))


_CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.Conv3D)
_POINTWISE = (
    keras.layers.Dense, keras.layers.Dropout, keras.layers.BatchNormalization, keras.layers.ReLU
)  # fmt: skip
