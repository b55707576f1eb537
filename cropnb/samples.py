"""Image patches around labelled pixels, gathered from the scaled cube when a batch is asked for.

A patch is the neighbourhood of one labelled pixel through the season (Liu et al. 2023, section 4.4). Cut out
beforehand, patches of 11 x 11 repeat a pixel up to 121 times. Here the cube lies in memory once, or in a file
that the operating system pages in, and each batch is copied out of it.
"""

import logging
import os
import shutil
from pathlib import Path

import dask.array
import keras
import numpy as np
import pandas as pd
from numba import njit

log = logging.getLogger(__name__)

SETS = ("train", "validation", "test")


def materialise(scenario, path=None):
    """Bring a scaled scenario (time, y, x, feature) into one float32 array (y, x, time, feature).

    All values of a pixel lie side by side, so a patch is read in few long runs. With `path`, the array is
    written to that ``.npy`` file (whole or not at all) and mapped read-only: for regions larger than memory.
    Raises ValueError for other dimensions, OSError when the file does not fit on its disk.
    """
    if set(scenario.dims) != {"time", "y", "x", "feature"} or scenario.sizes["feature"] != 3:
        raise ValueError(f"a scenario has time, y, x and three features, this one {dict(scenario.sizes)}")
    source = scenario.transpose("y", "x", "time", "feature").astype("float32").chunk()
    if path is None:
        array = np.empty(source.shape, "float32")
        dask.array.store(source.data, array, lock=False)
        return array
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(path.parent).free < source.nbytes:  # a mapped file on a full disk kills the process
        raise OSError(f"{path} needs {source.nbytes / 1e9:.1f} GB, more than is free on its disk")
    part = path.with_name(path.name + ".part")
    array = np.lib.format.open_memmap(part, mode="w+", dtype="float32", shape=source.shape)
    dask.array.store(source.data, array, lock=False)
    array.flush()
    os.replace(part, path)
    return np.load(path, mmap_mode="r")


def gather(array, rows, cols, size):
    """Patches (n, time, size, size, 3) float32 around the pixels (rows, cols) of a cube (y, x, time, 3).

    Works without Python's global lock, so threads may gather side by side.
    Raises ValueError for an even size or one larger than the region, IndexError for patches that leave it.
    """
    height, width, steps, _ = array.shape
    if size % 2 == 0 or not 0 < size <= min(height, width):
        raise ValueError(
            f"patches of {size} x {size} in a region of {height} x {width} pixels: choose an odd size that fits"
        )
    rows, cols = np.asarray(rows, np.int64), np.asarray(cols, np.int64)
    if not _inside(array, rows, cols, size).all():
        raise IndexError(f"patches of {size} x {size} pixels leave the region of {height} x {width}")
    patches = np.empty((rows.size, steps, size, size, 3), np.float32)
    _copy(np.asarray(array), rows, cols, size, patches)
    return patches


def usable(array, table, size):
    """The rows of a split table whose patch can be used, and a dict of how many cannot, by reason.

    Section 4.4: "Patches without any ground truth information and missing values of pixels were eliminated."
    """
    labelled = table["crop"].notna().to_numpy()
    rows, cols = table["row"].to_numpy(np.int64), table["col"].to_numpy(np.int64)
    inside = _inside(array, rows, cols, size)
    whole = labelled & inside
    whole[whole] = _complete(np.asarray(array), rows[whole], cols[whole], size)
    dropped = {
        "without ground truth": int((~labelled).sum()),
        "leaving the region": int((labelled & ~inside).sum()),
        "with missing values": int((labelled & inside & ~whole).sum()),
    }
    return table[whole].reset_index(drop=True), dropped


def thin(split, **counts):
    """About `counts` (train=, validation=, test=) rows of each set of a split, stratified by crop; 0 keeps all.

    Always the same rows of the same split, so that runs with other seeds are judged on the same samples.
    Raises ValueError for a negative count or another set.
    """
    if wrong := {name: n for name, n in counts.items() if name not in SETS or n < 0}:
        raise ValueError(f"samples to keep are {wrong}; give counts from 0 (all) for {', '.join(SETS)}")
    rng, kept = np.random.default_rng(0), []
    for name in SETS:
        rows = split[split["set"] == name]
        share = min(1, (counts.get(name) or len(rows)) / max(len(rows), 1))
        for _, members in rows.groupby("crop"):  # at least one of each crop, however rare
            number = min(len(members), max(1, round(share * len(members))))
            kept.append(rng.choice(members.index, number, replace=False))
    return split.loc[np.sort(np.concatenate(kept))]


class PatchDataset(keras.utils.PyDataset):
    """Batches of patches (batch, time, size, size, 3) float32 and one-hot labels (batch, classes) float32.

    A batch depends on seed, epoch and position alone, not on the number of workers that fetch ahead. Call
    `Model.fit(..., shuffle=False)`: Keras would otherwise shuffle the batches again, by global random numbers.

    Parameters
    ----------
    array : (y, x, time, 3) float32, from `materialise`.
    table : rows of a split (columns row, col, crop, set).
    classes : crops in the order of the one-hot labels.
    shuffle : draw a new order every epoch; training set only.
    workers, max_queue_size : threads that gather ahead of the network, and the batches that may wait.

    Attributes
    ----------
    samples : rows of `table` that are left, in the order of an unshuffled pass.
    labels : (n,) class number of each.
    dropped : how many rows were left out, by reason.

    Raises ValueError for a patch size that does not fit, an unknown crop, shuffling other than training
    samples, and when no sample is left.
    """

    def __init__(
        self,
        array,
        table,
        classes,
        *,
        size=11,
        batch_size=128,
        seed=0,
        shuffle=False,
        workers=1,
        max_queue_size=10,
    ):
        super().__init__(workers=workers, max_queue_size=max_queue_size)
        sets = ", ".join(sorted(set(table["set"])))
        if shuffle and sets != "train":
            raise ValueError(f"only training samples are shuffled, these are of the set {sets}")
        unknown = set(table["crop"].dropna()) - set(classes)
        if unknown:
            raise ValueError(f"the split has crops {sorted(unknown)} beyond the classes {list(classes)}")
        gather(array, [], [], size)  # raises where the size does not fit
        self.samples, self.dropped = usable(array, table, size)
        counts = f"{len(self.samples)} of {len(table)} {sets} samples kept, dropped " + ", ".join(
            f"{count} {reason}" for reason, count in self.dropped.items()
        )
        log.info(counts)
        if self.samples.empty:
            raise ValueError(counts + _empty_step(array, table))
        self.array, self.classes, self.size = array, tuple(classes), size
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.rows, self.cols = self.samples["row"].to_numpy(), self.samples["col"].to_numpy()
        self.labels = pd.Categorical(self.samples["crop"], self.classes).codes.astype(np.int64)
        self._begin(0)

    def _begin(self, epoch):
        order = np.arange(len(self.labels))
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        self._pass = epoch, order  # in one step: a thread that still fetches ahead reads both

    def on_epoch_end(self):
        """Draw the order of the next epoch."""
        self._begin(self._pass[0] + 1)

    def __len__(self):
        """Batches in an epoch."""
        return -(-len(self._pass[1]) // self.batch_size)

    def __getitem__(self, index):
        """The batch at a position of the current epoch."""
        _, order = self._pass
        chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
        patches = gather(self.array, self.rows[chosen], self.cols[chosen], self.size)
        return patches, np.eye(len(self.classes), dtype=np.float32)[self.labels[chosen]]


def load(scenario, split, classes, *, seed, path=None, **options):
    """Training, validation and test `PatchDataset` of a scaled scenario (time, y, x, feature).

    `split` is the table of ``split.parquet``, `path` as in `materialise`, `options` as in `PatchDataset`.
    Training samples are shuffled. Raises ValueError when a set is missing or the split has another grid.
    """
    absent = set(SETS) - set(split["set"])
    if absent:
        raise ValueError(f"the split has no {', '.join(sorted(absent))} samples; remake it")
    for axis, index in (("y", "row"), ("x", "col")):
        centres, position = scenario[axis].to_numpy(), split[index].to_numpy()
        low, high = position.min(), position.max()
        if low < 0 or high >= centres.size:
            raise ValueError(f"the split has {index} {low} to {high}, the cube {centres.size}; remake the split")
        off = np.abs(centres[position] - split[axis]).max()
        if off > abs(centres[1] - centres[0]) / 2:
            raise ValueError(f"the split is {off:g} m off the cube along {axis}; remake the split")
    if (patch := split.attrs.get("patch")) and options.get("size", 11) > patch:
        raise ValueError(f"the split keeps patches of {patch} pixels apart, not of {options['size']}; remake it")
    array = materialise(scenario, path)
    parts = (split[split["set"] == name] for name in SETS)
    return tuple(
        PatchDataset(array, part, classes, seed=seed, shuffle=name == "train", **options)
        for name, part in zip(SETS, parts, strict=True)
    )


def _inside(array, rows, cols, size):
    half = size // 2
    return (np.minimum(rows, cols) >= half) & (rows < array.shape[0] - half) & (cols < array.shape[1] - half)


def _empty_step(array, table):
    # A scaler that holds NaN or an empty acquisition spoils every patch: name the place.
    near = table[_inside(array, table["row"], table["col"], 1)]
    empty = np.argwhere(~np.isfinite(array[near["row"], near["col"]]).any(axis=0))
    if not len(empty):
        return ""
    step, feature = empty[0] + 1
    return f": feature {feature} of time step {step} is missing everywhere, see its scaler"


@njit(nogil=True, cache=True)
def _copy(array, rows, cols, size, patches):
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


@njit(nogil=True, cache=True)
def _complete(array, rows, cols, size):
    complete = np.ones(rows.size, np.bool_)
    half = size // 2
    for sample in range(rows.size):
        for i in range(rows[sample] - half, rows[sample] + half + 1):
            if not np.isfinite(array[i, cols[sample] - half : cols[sample] + half + 1]).all():
                complete[sample] = False
                break
    return complete
