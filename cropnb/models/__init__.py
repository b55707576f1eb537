"""The five networks of Liu et al. (2023), one file per paper.

Every builder has one signature, ``build(input_shape, num_classes, width=1.0, **readings)``: an input of
(time, y, x, feature) patches, softmax probabilities out. ``width`` scales the filters of all
convolutions, where the arithmetic is; dense layers keep their units, of which dropout would leave too few.
What a paper leaves open is a named argument (a reading) whose default the chapter of the network defends.
"""

import pandas as pd

from . import cnn3d, cnn3d2d, conv3dstar, convstar, tcnn

_NETWORKS = (  # a line each, in the order of the book: name in paths, name on pages, builder
    ("tcnn", "TCNN", tcnn.build),
    ("cnn3d", "3D-CNN", cnn3d.build),
    ("cnn3d2d", "3D-2D CNN", cnn3d2d.build),
    ("convstar", "ConvSTAR", convstar.build),
    ("conv3dstar", "3D-ConvSTAR", conv3dstar.build),
)
DISPLAY_NAMES = {name: shown for name, shown, _ in _NETWORKS}
BUILDERS = {name: build for name, _, build in _NETWORKS}


def layers(network):
    """DataFrame with a row a layer, in order: layer, kind, output (sizes without the batch), parameters."""
    rows = []
    for layer in network.layers:
        kind = type(layer).__name__
        if hasattr(layer, "forward_layer"):
            kind = f"{kind} {type(layer.forward_layer).__name__}"
        rows.append((layer.name, kind, tuple(layer.output.shape[1:]), layer.count_params()))
    return pd.DataFrame(rows, columns=["layer", "kind", "output", "parameters"])


def get(name):
    """The ``build`` function of the network called `name`, one of the keys of `DISPLAY_NAMES`."""
    try:
        return BUILDERS[name]
    except KeyError:
        raise ValueError(f"No network is called {name!r}; choose one of {', '.join(BUILDERS)}.") from None
