"""Helpers of the cropnb book.

What a user has set for other work reaches no result: this is the one place that every way to start passes through.
"""

import os
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).resolve().parent
# Of Snakemake and fonts, Matplotlib, IPython, Jupyter, and numba's compiled functions.
_PLACES = ("XDG_CACHE_HOME", "MPLCONFIGDIR", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "NUMBA_CACHE_DIR")


def _homeless() -> None:
    """Where no home can be written, caches and settings lie in a folder of this user's own."""
    home = os.path.expanduser("~")  # Path.home() refuses a user without an entry
    if os.access(home, os.W_OK) and Path(home).is_dir():
        return
    folder = Path(tempfile.gettempdir(), f"cropnb-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():  # somebody else's
        folder = Path(tempfile.mkdtemp(prefix="cropnb-"))
    for name in _PLACES:
        os.environ.setdefault(name, str(folder))


def _notebook() -> None:
    """Let figures come into a notebook though the kernel inherited a batch system's MPLBACKEND=agg."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None and hasattr(shell, "kernel") and os.environ.get("MPLBACKEND", "").lower() == "agg":
        os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
        if "matplotlib" in sys.modules:
            shell.run_line_magic("matplotlib", "inline")


# Read by TensorFlow when it is imported: by itself it leaves its faster kernels off on many processors.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ["TF_USE_LEGACY_KERAS"] = "0"
# Read by Keras when it is imported: its own keras.json may order axes in another way. KERAS_BACKEND still counts.
os.environ["KERAS_HOME"] = str(_HERE / "resources/keras")
if hasattr(sys.modules.get("keras"), "config"):
    sys.modules["keras"].config.set_image_data_format("channels_last")
    sys.modules["keras"].config.set_floatx("float32")
    sys.modules["keras"].config.set_epsilon(1e-07)
_homeless()
_notebook()
