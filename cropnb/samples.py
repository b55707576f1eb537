"""Image patches around labelled pixels, gathered from the scaled cube when a batch is asked for.

A patch is the neighbourhood of one labelled pixel through the season (Liu et al. 2023, section 4.4). Cut out
beforehand, patches of 11 x 11 repeat a pixel up to 121 times. Here the cube lies in memory once, or in a file
that the operating system pages in, and each batch is copied out of it.
"""

import shutil
from pathlib import Path

import dask.array
import numpy as np
import pandas as pd
import xarray as xr
from numba import njit
from numpy.typing import ArrayLike
from scipy.ndimage import minimum_filter

from cropnb import files
from cropnb.split import SETS


def materialise(scenario: xr.DataArray, path: str | Path | None = None) -> np.ndarray:
    """Bring a scaled scenario into one float32 array (y, x, time, feature).

    All values of a pixel lie side by side, so a patch is read in few long runs.

    Parameters
    ----------
    scenario
        (time, y, x, feature) with three features, in any order of dims.
    path
        A ``.npy`` file to write the array to and to map it from, read-only: for regions larger than memory.

    Raises
    ------
    ValueError
        For other dimensions.
    OSError
        When the file does not fit on its disk.
    """
    if set(scenario.dims) != {"time", "y", "x", "feature"} or scenario.sizes["feature"] != 3:
        raise ValueError(f"A scenario has time, y, x and three features, this one {dict(scenario.sizes)}.")
    source = scenario.transpose("y", "x", "time", "feature").astype("float32").chunk()
    if path is None:
        array = np.empty(source.shape, "float32")
        dask.array.store(source.data, array, lock=False)
        return array
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(path.parent).free < source.nbytes:  # a mapped file on a full disk kills the process
        raise OSError(f"{path} needs {source.nbytes / 1e9:.1f} GB, more than is free on its disk.")
    with files.whole(path) as part:
        array = np.lib.format.open_memmap(part, mode="w+", dtype="float32", shape=source.shape)
        dask.array.store(source.data, array, lock=False)
        array.flush()
    return np.load(path, mmap_mode="r")


def gather(array: np.ndarray, rows: ArrayLike, cols: ArrayLike, size: int) -> np.ndarray:
    """Patches (n, time, size, size, 3) float32 around pixels of a cube.

    Works without Python's global lock, so threads may gather side by side.

    Parameters
    ----------
    array
        (y, x, time, 3) float32, from `materialise`.
    rows, cols
        (n,) positions of the centre pixels.
    size
        Side of a patch in pixels, odd.

    Raises
    ------
    ValueError
        For an even size or one larger than the region.
    IndexError
        For patches that leave the region.
    """
    height, width, steps, _ = array.shape
    if size % 2 == 0 or not 0 < size <= min(height, width):
        raise ValueError(
            f"Patches of {size} x {size} pixels do not fit {height} x {width}; choose an odd size that fits."
        )
    rows, cols = np.asarray(rows, np.int64), np.asarray(cols, np.int64)
    if not inside(array, rows, cols, size).all():
        raise IndexError(f"Patches of {size} x {size} pixels leave the region of {height} x {width}.")
    patches = np.empty((rows.size, steps, size, size, 3), np.float32)
    _copy(np.asarray(array), rows, cols, size, patches)
    return patches


def usable(array: np.ndarray, table: pd.DataFrame, size: int) -> tuple[pd.DataFrame, dict[str, int]]:
    """The rows of a split table whose patch can be used, and how many cannot, by reason.

    Section 4.4: "Patches without any ground truth information and missing values of pixels were eliminated."
    """
    labelled = table["crop"].notna().to_numpy()
    rows, cols = table["row"].to_numpy(np.int64), table["col"].to_numpy(np.int64)
    near = inside(array, rows, cols, size)
    complete = minimum_filter(np.isfinite(array.sum(axis=(2, 3))), size)  # one missing value spoils a sum
    whole = labelled & near
    whole[whole] = complete[rows[whole], cols[whole]]
    dropped = {
        "without ground truth": int((~labelled).sum()),
        "leaving the region": int((labelled & ~near).sum()),
        "with missing values": int((labelled & near & ~whole).sum()),
    }
    return table[whole].reset_index(drop=True), dropped


def thin(split: pd.DataFrame, **counts: int) -> pd.DataFrame:
    """About as many rows of each set of a split as asked for, stratified by crop.

    Always the same rows of the same split, so that runs with other seeds are judged on the same samples.

    Parameters
    ----------
    split
        Table of ``split.parquet``.
    counts
        ``train=``, ``validation=`` and ``test=``; 0, or none, keeps all.

    Raises
    ------
    ValueError
        For a negative count or another set.
    """
    if wrong := {name: n for name, n in counts.items() if name not in SETS or n < 0}:
        raise ValueError(f"Samples to keep are {wrong}; give counts from 0 (all) for {', '.join(SETS)}.")
    rng, kept = np.random.default_rng(0), []
    for name in SETS:
        rows = split[split["set"] == name]
        share = min(1, (counts.get(name) or len(rows)) / max(len(rows), 1))
        for _, members in rows.groupby("crop"):  # at least one of each crop, however rare
            number = min(len(members), max(1, round(share * len(members))))
            kept.append(rng.choice(members.index, number, replace=False))
    return split.loc[np.sort(np.concatenate(kept))]


def inside(array: np.ndarray, rows: np.ndarray, cols: np.ndarray, size: int) -> np.ndarray:
    """(n,) whether patches of that size around the pixels lie inside a cube (y, x, time, 3)."""
    half = size // 2
    return (np.minimum(rows, cols) >= half) & (rows < array.shape[0] - half) & (cols < array.shape[1] - half)


@njit(nogil=True, cache=True)
def _copy(array: np.ndarray, rows: np.ndarray, cols: np.ndarray, size: int, patches: np.ndarray) -> None:
    flat, out = array.reshape(-1), patches.reshape(-1)
    width, steps = array.shape[1], array.shape[2]
    run = np.uintp(size * steps * 3)
    patch = np.empty(size * run, np.float32)
    three, k = np.uintp(3), np.uintp(0)  # unsigned, which spares a test for negative indices
    for sample in range(rows.size):
        # The rows of a patch as they lie in memory first; they are turned to (time, y, x) in the cache.
        for i in range(size):
            start = np.uintp(((rows[sample] - size // 2 + i) * width + cols[sample] - size // 2) * steps * 3)
            for j in range(run):
                patch[np.uintp(i) * run + j] = flat[start + j]
        for step in range(np.uintp(steps)):
            p = step * three
            for _ in range(size * size):
                for feature in range(three):
                    out[k + feature] = patch[p + feature]
                k += three
                p += np.uintp(steps) * three
