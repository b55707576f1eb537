"""The five networks of Liu et al. (2023), one file per paper.

Every builder has one signature, ``build(input_shape, num_classes, width=1.0, **readings)``: an input of
(time, y, x, feature) patches, softmax probabilities out. ``width`` scales the filters of all
convolutions, where the arithmetic is; dense layers keep their units, of which dropout would leave too few.
What a paper leaves open is a named argument (a reading) whose default the chapter of the network defends.

Keras is imported when a network is asked for: names alone cost nothing.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    import keras

DISPLAY_NAMES = {  # in the order of the book: name in paths, name on pages
    "tcnn": "TCNN",
    "cnn3d": "3D-CNN",
    "cnn3d2d": "3D-2D CNN",
    "convstar": "ConvSTAR",
    "conv3dstar": "3D-ConvSTAR",
}
FEWEST_DATES = {"cnn3d2d": 13}  # its kernels are not padded and shorten the season; the others take a single date


def get(name: str) -> Callable[..., "keras.Model"]:
    """The ``build`` function of a network.

    Parameters
    ----------
    name
        One of the keys of `DISPLAY_NAMES`.

    Raises
    ------
    ValueError
        For a name that no network has.
    """
    from cropnb.models import cnn3d, cnn3d2d, conv3dstar, convstar, tcnn

    if name not in DISPLAY_NAMES:
        raise ValueError(f"No network is called {name!r}; choose one of {', '.join(DISPLAY_NAMES)}.")
    files = {"tcnn": tcnn, "cnn3d": cnn3d, "cnn3d2d": cnn3d2d, "convstar": convstar, "conv3dstar": conv3dstar}
    return files[name].build


def layers(network: "keras.Model") -> pd.DataFrame:
    """A row a layer, in order: layer, kind, output (sizes without the batch), parameters."""
    rows = []
    for layer in network.layers:
        kind = type(layer).__name__
        if hasattr(layer, "forward_layer"):
            kind = f"{kind} {type(layer.forward_layer).__name__}"
        rows.append((layer.name, kind, tuple(layer.output.shape[1:]), layer.count_params()))
    return pd.DataFrame(rows, columns=["layer", "kind", "output", "parameters"])
