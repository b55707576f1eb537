"""Where the project lies, what runs it, whether anybody is watching, and how its commands end.

Chapters name files from the project's root, wherever a notebook server starts their kernel.
"""

import locale
import logging
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NoReturn

MARK = "data_manifest.yaml"
HERE = Path(__file__).resolve().parent.parent
PACKAGES = ("cropnb", "keras", "tensorflow", "jax", "numpy", "scipy", "scikit-learn", "xarray", "dask")


def enter() -> None:
    """Make the project's root the working directory: the nearest folder above this one with a data manifest.

    Raises
    ------
    FileNotFoundError
        Where there is none.
    RuntimeError
        Where that folder has a `cropnb` of its own, and another one is running: it was copied with its environment.
    """
    here = Path.cwd()
    root = next((folder for folder in (here, *here.parents) if (folder / MARK).is_file()), None)
    if root is None:
        raise FileNotFoundError(f"No {MARK} in {here} or above it; open the notebook inside a checkout of the project.")
    if (root / "cropnb/__init__.py").is_file() and not (root / "cropnb").samefile(HERE / "cropnb"):
        raise RuntimeError(
            f"This notebook lies in {root}, but its kernel runs the helper module of {HERE}; start `make lab` in "
            f"{root}, or `pip install -e .` there."
        )
    os.chdir(root)


def watched() -> bool:
    """Whether somebody would see a progress bar: in a terminal or a live notebook, not on a page of the book."""
    if os.environ.get("CROPNB_STATIC"):
        return False
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return sys.stderr.isatty() or hasattr(shell, "kernel")


def ordered() -> bool:
    """Whether the book's workflow ordered what runs here: then it may take the place of what the pages stand on."""
    return bool(os.environ.get("CROPNB_ORDERED"))


def command(main: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its status; what the machine refuses is said in one sentence."""
    if not sys.flags.utf8_mode and locale.getencoding().upper() != "UTF-8":
        os.environ["PYTHONUTF8"] = "1"  # the project's files are in UTF-8, whatever the machine's locale
        os.execv(sys.executable, sys.orig_argv)
    logging.raiseExceptions = False  # what nobody reads any more need not be told
    try:
        status = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit("Interrupted. The same command goes on from here.")
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python would try once more to write at its end
        if isinstance(error, BrokenPipeError):  # the reader, such as `head`, has seen enough
            sys.exit(0)
        place = f" at {error.filename}" if error.filename else ""
        sys.exit(f"The machine refuses{place}: {error.strerror or error}. Mend that, and the same command goes on.")
    sys.exit(status)


def environment() -> dict:
    """Of this very process: the device that it computes on, the commit of its code, and its packages' versions."""
    found = {name: version for name in PACKAGES if (version := _version(name))}
    return {"device": device(), "commit": commit(), "versions": {"python": platform.python_version()} | found}


def device() -> str:
    """The GPUs on which Keras's backend computes here, else the processor and the number of cores it lends."""
    if gpus := _gpus():
        return "; ".join(gpus)
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8")) if info.exists() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{named[1].strip() if named else platform.machine()}, {cores} core{'s' * (cores != 1)}, no GPU"


def commit() -> str:
    """`git describe` of this checkout, marked when something in it is not committed; "unknown" outside git."""
    command = ["git", "-c", f"safe.directory={HERE}", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    # Of no repository around the checkout, and of none that a hook has named.
    surroundings = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}
    surroundings["GIT_CEILING_DIRECTORIES"] = str(HERE.parent)
    try:
        done = subprocess.run(command, cwd=HERE, env=surroundings, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip() or "unknown"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _gpus() -> list[str]:
    backend = sys.modules["keras"].backend.backend() if "keras" in sys.modules else ""
    if backend == "tensorflow":
        config = sys.modules["tensorflow"].config
        details = map(config.experimental.get_device_details, config.get_visible_devices("GPU"))
        return [known.get("device_name", "GPU") for known in details]
    if backend == "jax":
        return [gpu.device_kind for gpu in sys.modules["jax"].devices() if gpu.platform == "gpu"]
    cuda = sys.modules["torch"].cuda if backend == "torch" else None
    return [cuda.get_device_name(index) for index in range(cuda.device_count())] if cuda else []
