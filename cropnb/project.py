"""Where the project lies: chapters name files from its root, wherever a notebook server starts their kernel."""

import os
from pathlib import Path

MARK = "data_manifest.yaml"


def enter() -> Path:
    """Make the project's root the working directory: the nearest folder above this one with a data manifest.

    Raises FileNotFoundError where there is none.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / MARK).is_file():
            os.chdir(folder)
            return folder
    raise FileNotFoundError(f"No {MARK} in {here} or above it; open the notebook inside a checkout of the project.")
