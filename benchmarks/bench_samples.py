"""Gathering patches from the cube, against indexing patches that were cut out beforehand.

Speed: samples a second of both, batch by batch in turn, medians. Memory: what each adds to the process's own memory,
and separately the pages of the mapped cube, which the operating system takes back when it needs them.
"""

import gc
import tempfile
import time
from pathlib import Path

import dask.array
import keras
import numpy as np
import pandas as pd
import xarray as xr

from cropnb import batches, samples

HEIGHT, WIDTH, STEPS, SIZE, SAMPLES, BATCH = 600, 600, 26, 11, 20_000, 128
CLASSES = ("maize", "soybean", "wheat", "other")


class CutOut(keras.utils.PyDataset):
    """The straightforward way: all patches in one array, indexed."""

    def __init__(self, patches, labels, order, **options):
        super().__init__(**options)
        self.patches, self.labels, self.order = patches, labels, order

    def __len__(self):
        return len(self.order) // BATCH

    def __getitem__(self, index):
        chosen = self.order[index * BATCH : (index + 1) * BATCH]
        return self.patches[chosen], self.labels[chosen]


class Ready(keras.utils.PyDataset):
    """One batch again and again: what a network would do if samples cost nothing."""

    def __init__(self, batch, batches):
        super().__init__()
        self.batch, self.batches = batch, batches

    def __len__(self):
        return self.batches

    def __getitem__(self, index):
        return self.batch


def memory():
    """Own (anonymous) and mapped memory of this process, in MB (Linux)."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return np.array([int(status[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")])


def table(rng):
    half = SIZE // 2
    pixels = np.column_stack([rng.integers(half, n - half, SAMPLES) for n in (HEIGHT, WIDTH)])
    crops = rng.choice(CLASSES, SAMPLES, p=[0.3, 0.6, 0.04, 0.06])
    return pd.DataFrame({"row": pixels[:, 0], "col": pixels[:, 1], "crop": crops, "set": "train"})


def seconds(function, *arguments):
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def delivered(*datasets):
    """Samples a second that reach the cheapest network Keras can train, datasets in turn, medians of seven."""
    network = keras.Sequential([keras.layers.GlobalAveragePooling3D(), keras.layers.Dense(4, activation="softmax")])
    network.compile("sgd", "categorical_crossentropy")
    network.fit(datasets[-1], verbose=0)
    rounds = [[seconds(lambda d=d: network.fit(d, shuffle=False, verbose=0)) for d in datasets] for _ in range(7)]
    return len(datasets[0]) * BATCH / np.median(rounds, axis=0)


def main():
    rng = np.random.default_rng(0)
    values = dask.array.random.default_rng(0).random(
        (STEPS, HEIGHT, WIDTH, 3), dtype="float32", chunks=(STEPS, 100, 100, 3)
    )
    scenario = xr.DataArray(values, dims=("time", "y", "x", "feature"))
    split = table(rng)
    with tempfile.TemporaryDirectory() as folder:
        array = samples.materialise(scenario, Path(folder) / "cube.npy")
        options = {"size": SIZE, "batch_size": BATCH, "seed": 0, "shuffle": True}
        batches.PatchDataset(array, split, CLASSES, **options)[0]  # compiles
        start = memory()
        dataset = batches.PatchDataset(array, split, CLASSES, **options)
        batch = dataset[0]
        # Memory that was freed before and is used again does not show: at least the batch is there.
        own = max((memory() - start)[0], batch[0].nbytes / 2**20)
        start = memory()
        patches = samples.gather(array, dataset.rows, dataset.cols, SIZE)
        cut_out = CutOut(patches, np.eye(4, dtype="float32")[dataset.labels], rng.permutation(SAMPLES))
        theirs = (memory() - start)[0]
        gathered, indexed = [], []
        for _ in range(3):
            for index in range(len(cut_out)):
                gathered.append(seconds(dataset.__getitem__, index))
                indexed.append(seconds(cut_out.__getitem__, index))
            dataset.on_epoch_end()
        ours, other = BATCH / np.median(gathered), BATCH / np.median(indexed)
        short = batches.PatchDataset(array, split[: 20 * BATCH], CLASSES, **options)
        cut_out.order = cut_out.order[: 20 * BATCH]
        fed = delivered(short, cut_out, Ready(batch, 20))
    print(f"{HEIGHT} x {WIDTH} pixels, {STEPS} steps, {SAMPLES} samples of {SIZE} x {SIZE}, batch {BATCH}")
    print(f"one thread, bare: gathered {ours:,.0f} samples/s, cut out {other:,.0f}, ratio {ours / other:.2f}")
    print("as a network gets them: gathered {:,.0f} samples/s, cut out {:,.0f}, always ready {:,.0f}".format(*fed))
    print(f"ratio to cut out {fed[0] / fed[1]:.2f}, to always ready {fed[0] / fed[2]:.2f}")
    print(f"own memory with a mapped cube: {own:.1f} MB, cut out {theirs:.0f} MB, 1/{theirs / own:.0f}")
    cube = array.nbytes / 2**20
    print(f"the cube itself: {cube:.0f} MB, mapped or in memory, 1/{theirs / cube:.1f} of the cut-out patches")


if __name__ == "__main__":
    main()
