"""Patches as Keras asks for them: batches whose order, or mixture, is another one every epoch.

A batch depends on seed, epoch and position alone, not on the number of workers that fetch ahead. Call
`Model.fit(..., shuffle=False)`: Keras would otherwise shuffle the batches again, by global random numbers.
"""

import copy
import logging
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import pandas as pd
import xarray as xr

from cropnb import augmentation
from cropnb.samples import gather, inside, materialise, usable
from cropnb.split import SETS

log = logging.getLogger(__name__)


class PatchDataset(keras.utils.PyDataset):
    """Batches of patches (batch, time, size, size, 3) float32 and labels (batch, classes) float32, which sum to 1.

    Parameters
    ----------
    array
        (y, x, time, 3) float32, from `cropnb.samples.materialise`.
    table
        Rows of a split: columns row, col, crop, set.
    classes
        Crops in the order of the one-hot labels.
    size
        Side of a patch in pixels.
    batch_size, seed
        Samples in a batch, and what decides their order.
    shuffle
        Take another order every epoch; training set only.
    workers
        Threads that gather ahead of the network.

    Attributes
    ----------
    samples
        Rows of `table` that are left, in the order of an unshuffled pass.
    labels
        (n,) class number of each.
    dropped
        How many rows were left out, by reason.

    Raises
    ------
    ValueError
        For a patch size that does not fit, an unknown crop, shuffling other than training samples, and when no
        sample is left.
    """

    def __init__(
        self,
        array: np.ndarray,
        table: pd.DataFrame,
        classes: Sequence[str],
        *,
        size: int = 11,
        batch_size: int = 128,
        seed: int = 0,
        shuffle: bool = False,
        workers: int = 1,
    ) -> None:
        super().__init__(workers=workers)
        sets = ", ".join(sorted(set(table["set"])))
        if shuffle and sets != "train":
            raise ValueError(f"Only training samples are shuffled, these are of the set {sets}.")
        if unknown := set(table["crop"].dropna()) - set(classes):
            raise ValueError(f"The split has crops {sorted(unknown)} beyond the classes {list(classes)}; remake it.")
        gather(array, [], [], size)  # raises where the size does not fit
        self.samples, self.dropped = usable(array, table, size)
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
        kept = f"{len(self.samples)} of {len(table)} {sets} samples kept, dropped {reasons}"
        log.info(kept)
        if self.samples.empty:
            raise ValueError(f"{kept}{_empty_step(array, table)}.")
        self.array, self.classes, self.size = array, tuple(classes), size
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.method = "none"  # `augment` gives a copy with another one
        self.rows, self.cols = self.samples["row"].to_numpy(), self.samples["col"].to_numpy()
        self.labels = pd.Categorical(self.samples["crop"], self.classes).codes.astype(np.int64)
        self._begin(0)

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Patches and one-hot labels of samples, by their positions in `samples`."""
        patches = gather(self.array, self.rows[positions], self.cols[positions], self.size)
        return patches, np.eye(len(self.classes), dtype=np.float32)[self.labels[positions]]

    def on_epoch_end(self) -> None:
        """Make the columns of the next epoch."""
        self._begin(self._pass[0] + 1)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self._pass[1][0]) // self.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The batch at a position of the current epoch."""
        epoch, columns = self._pass
        chosen = slice(index * self.batch_size, (index + 1) * self.batch_size)
        positions, *others = (column[chosen] for column in columns)
        patches, labels = self.at(positions)
        if self.method == "oversampling":
            rng = np.random.default_rng([self.seed, epoch, 1 + index])  # 0 would be the epoch's own stream
            (turn,) = others
            angles, flips = rng.uniform(-180, 180, turn.size), rng.random(turn.size) < 0.5
            patches[turn] = augmentation.rotate_flip(patches[turn], angles[turn], flips[turn])
        elif self.method == "mix-up":
            other_patches, other_labels = self.at(others[0])
            share = others[1][:, None]
            labels = share * labels + (1 - share) * other_labels
            share = share[..., None, None, None]
            patches = share * patches + (1 - share) * other_patches
        return patches, labels

    def _begin(self, epoch: int) -> None:
        # In one step: a thread that still fetches ahead reads both.
        self._pass = epoch, self._columns(np.random.default_rng([self.seed, epoch]))

    def _columns(self, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """What an epoch is cut from: positions in `samples` first."""
        if self.method == "oversampling":
            return augmentation.oversample(self.labels, rng)
        if self.method == "mix-up":
            return augmentation.mix_pairs(self.labels, rng)
        order = np.arange(len(self.labels))
        return (rng.permutation(order) if self.shuffle else order,)


def augment(method: str, dataset: PatchDataset, *, seed: int) -> tuple[PatchDataset, np.ndarray | None]:
    """The training data and the class weights of one treatment of imbalance, as `training.train` takes them.

    Parameters
    ----------
    method
        One of `cropnb.augmentation.METHODS`.
    dataset
        The training set.
    seed
        Of repeats, rotations and mixtures, which change every epoch.

    Returns
    -------
    tuple
        Batches, and the weight of each class in the loss (None: all equal).

    Raises
    ------
    ValueError
        For another method, and for samples that are not the training set.
    """
    if method not in augmentation.METHODS:
        raise ValueError(f"The treatment is {method!r}; choose one of {', '.join(augmentation.METHODS)}.")
    if method == "none":
        return dataset, None
    if (sets := set(dataset.samples["set"])) != {"train"}:
        raise ValueError(f"Only training samples are augmented, these are of {sorted(sets)}.")
    if method == "balanced-loss":
        counts = np.bincount(dataset.labels, minlength=len(dataset.classes))
        return dataset, augmentation.class_weights(counts)
    treated = copy.copy(dataset)
    treated.method, treated.seed = method, seed
    treated._begin(0)
    return treated, None


def load(
    scenario: xr.DataArray,
    split: pd.DataFrame,
    classes: Sequence[str],
    *,
    seed: int,
    **options: Any,
) -> tuple[PatchDataset, PatchDataset, PatchDataset]:
    """Training, validation and test samples of a scenario; those for training are shuffled.

    Parameters
    ----------
    scenario
        (time, y, x, feature), scaled.
    split
        Table of ``split.parquet``.
    classes, seed, options
        As in `PatchDataset`.

    Raises
    ------
    ValueError
        When a set is missing, or the split is of another grid or for smaller patches.
    """
    if absent := set(SETS) - set(split["set"]):
        raise ValueError(f"The split has no {', '.join(sorted(absent))} samples; remake it.")
    for axis, index in (("y", "row"), ("x", "col")):
        centres, position = scenario[axis].to_numpy(), split[index].to_numpy()
        low, high = position.min(), position.max()
        if low < 0 or high >= centres.size:
            raise ValueError(f"The split has {index} {low} to {high}, the cube {centres.size}; remake the split.")
        off = np.abs(centres[position] - split[axis]).max()
        if off > abs(centres[1] - centres[0]) / 2:
            raise ValueError(f"The split is {off:g} m off the cube along {axis}; remake the split.")
    if (patch := split.attrs.get("patch")) and options.get("size", 11) > patch:
        raise ValueError(f"The split keeps patches of {patch} pixels apart, not of {options['size']}; remake it.")
    array = materialise(scenario)
    sets = {name: split[split["set"] == name] for name in SETS}
    train, validation, test = (
        PatchDataset(array, rows, classes, seed=seed, shuffle=name == "train", **options) for name, rows in sets.items()
    )
    return train, validation, test


def _empty_step(array: np.ndarray, table: pd.DataFrame) -> str:
    # A scaler that holds NaN or an empty acquisition spoils every patch: name the place.
    near = table[inside(array, table["row"].to_numpy(), table["col"].to_numpy(), 1)]
    empty = np.argwhere(~np.isfinite(array[near["row"], near["col"]]).any(axis=0))
    if not len(empty):
        return ""
    step, feature = empty[0] + 1
    return f": feature {feature} of time step {step} is missing everywhere, see its scaler"
