"""The five networks of Liu et al. (2023), one file per paper.

Every builder has one signature, ``build(input_shape, num_classes, width=1.0, **readings)``: an input of
(time, y, x, feature) patches, softmax probabilities out. ``width`` scales all hidden filters and units.
What a paper leaves open is a named argument (a reading) whose default the chapter of the network defends.
"""

from . import cnn3d, cnn3d2d, conv3dstar, convstar, tcnn

BUILDERS = {
    "tcnn": tcnn.build,
    "cnn3d": cnn3d.build,
    "cnn3d2d": cnn3d2d.build,
    "convstar": convstar.build,
    "conv3dstar": conv3dstar.build,
}
DISPLAY_NAMES = {
    "tcnn": "TCNN",
    "cnn3d": "3D-CNN",
    "cnn3d2d": "3D-2D CNN",
    "convstar": "ConvSTAR",
    "conv3dstar": "3D-ConvSTAR",
}


def get(name):
    """The ``build`` function of the network called `name`, one of the keys of `DISPLAY_NAMES`."""
    try:
        return BUILDERS[name]
    except KeyError:
        raise ValueError(f"No network is called {name!r}; choose one of {', '.join(BUILDERS)}.") from None
