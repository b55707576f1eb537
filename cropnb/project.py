"""Where the project lies, and whether anybody is watching.

Chapters name files from the project's root, wherever a notebook server starts their kernel.
"""

import os
import sys
from pathlib import Path

MARK = "data_manifest.yaml"


def enter() -> None:
    """Make the project's root the working directory: the nearest folder above this one with a data manifest.

    Raises FileNotFoundError where there is none.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / MARK).is_file():
            os.chdir(folder)
            return
    raise FileNotFoundError(f"No {MARK} in {here} or above it; open the notebook inside a checkout of the project.")


def watched() -> bool:
    """Whether somebody would see a progress bar: in a terminal or a live notebook, not on a page of the book."""
    if os.environ.get("CROPNB_STATIC"):
        return False
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return sys.stderr.isatty() or hasattr(shell, "kernel")
