"""The treatments of class imbalance of Liu et al. (2023), section 4.5, applied to training samples alone."""

import keras
import numpy as np

from .samples import gather

METHODS = ("none", "oversampling", "balanced-loss", "mix-up")


def apply(method, dataset, *, seed, alpha=1.0, beta=None):
    """The training data and the class weights of one treatment.

    Parameters
    ----------
    method : one of `METHODS`.
    dataset : `cropnb.samples.PatchDataset` of the training set.
    seed : of the redraws, rotations and mixtures, which change every epoch.
    alpha : of the Beta(alpha, alpha) that shares of a mixture are drawn from.
    beta : of the effective number of samples, see `class_weights`.

    Returns
    -------
    `keras.utils.PyDataset` and the weight of each class in the loss (None: all equal), as `training.train`
    takes them. Raises ValueError for another method, and for samples that are not the training set.
    """
    if method not in METHODS:
        raise ValueError(f"The treatment is {method!r}; choose one of {', '.join(METHODS)}.")
    if method == "none":
        return dataset, None
    if (sets := set(dataset.samples["set"])) != {"train"}:
        raise ValueError(f"Only training samples are augmented, these are of {sorted(sets)}.")
    if method == "balanced-loss":
        counts = np.bincount(dataset.labels, minlength=len(dataset.classes))
        return dataset, class_weights(counts, beta)
    return AugmentedDataset(dataset, method, seed=seed, alpha=alpha), None


def class_weights(counts, beta=None):
    """Weight of each class in the loss, scaled so that the mean over all samples is 1.

    Inverse frequency 1/n; with `beta`, the inverse effective number of samples (1 - beta) / (1 - beta^n) of
    Cui et al. (2019), which for large n is nearly flat. `counts` (classes,) are samples of each class.
    """
    counts = np.asarray(counts, dtype=float)
    if (counts < 1).any():
        raise ValueError(f"Class counts are {counts.astype(int).tolist()}; every class needs a sample.")
    if beta is not None and not 0 <= beta < 1:
        raise ValueError(f"beta is {beta}; give a number from 0 to below 1.")
    weights = 1 / counts if beta is None else (1 - beta) / (1 - beta**counts)
    return weights * counts.sum() / (weights * counts).sum()


def oversample(labels, rng):
    """Every sample once and minority samples redrawn up to the majority's count, in random order.

    Returns (n,) positions in `labels`, and (n,) whether the sample was redrawn and is to be turned.
    """
    labels = np.asarray(labels)
    classes, counts = np.unique(labels, return_counts=True)
    redraws = [rng.choice(np.flatnonzero(labels == c), counts.max() - n) for c, n in zip(classes, counts, strict=True)]
    positions = np.concatenate([np.arange(labels.size), *redraws])
    order = rng.permutation(positions.size)
    return positions[order], order >= labels.size


def mix_pairs(labels, rng, alpha=1.0):
    """As many pairs of samples of different classes as there are labels, and the share of the first.

    The two classes are drawn uniformly, then a sample of each, so that mixtures hold as much of every class.
    Returns (n,) positions of the first, (n,) of the second and (n,) float32 shares.
    """
    labels = np.asarray(labels)
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    if len(members) < 2:
        raise ValueError("Mix-up needs samples of two classes, the training set has one.")
    first = rng.integers(len(members), size=labels.size)
    second = (first + rng.integers(1, len(members), size=labels.size)) % len(members)
    draw = np.vectorize(lambda c: rng.choice(members[c]), otypes=[np.int64])
    return draw(first), draw(second), rng.beta(alpha, alpha, labels.size).astype(np.float32)


def rotate_flip(patches, angles, flips):
    """Turn square patches (n, time, size, size, feature) about their centre pixel, alike for all dates.

    `angles` (n,) in degrees; `flips` (n,) mirror x first. Bilinear; what comes from beyond a patch takes its
    nearest pixel. With an odd size the centre pixel keeps its values.
    """
    n, time, size, _, features = patches.shape
    if size == 1:
        return patches
    half = (size - 1) / 2
    y, x = (grid.ravel() - half for grid in np.mgrid[:size, :size])
    cos, sin = np.cos(np.deg2rad(angles))[:, None], np.sin(np.deg2rad(angles))[:, None]
    source_x = np.where(flips, -1, 1)[:, None] * (cos * x - sin * y)
    source = [np.clip(s + half, 0, size - 1) for s in (cos * y + sin * x, source_x)]
    corner = [np.minimum(s.astype(int), size - 2) for s in source]
    part = [s - c for s, c in zip(source, corner, strict=True)]
    # Interpolation is linear in the pixels: one small matrix a patch turns all dates and features at once.
    matrix = np.zeros((n, size * size, size * size), np.float32)
    for j in (0, 1):
        for i in (0, 1):
            neighbour = (corner[0] + j) * size + corner[1] + i
            weight = (part[0] if j else 1 - part[0]) * (part[1] if i else 1 - part[1])
            np.put_along_axis(matrix, neighbour[..., None], weight[..., None], axis=2)
    pixels = patches.transpose(0, 2, 3, 1, 4).reshape(n, size * size, time * features)
    turned = (matrix @ pixels).reshape(n, size, size, time, features)
    return np.ascontiguousarray(turned.transpose(0, 3, 1, 2, 4))


class AugmentedDataset(keras.utils.PyDataset):
    """Batches of a training `PatchDataset` after "oversampling" or "mix-up", drawn anew every epoch.

    Patches (batch, time, size, size, 3) float32 and labels (batch, classes) float32, which sum to 1. As in
    `PatchDataset`, a batch depends on seed, epoch and position alone.
    """

    def __init__(self, dataset, method, *, seed, alpha=1.0):
        super().__init__(workers=dataset.workers, max_queue_size=dataset.max_queue_size)
        self.dataset, self.method, self.seed, self.alpha = dataset, method, seed, alpha
        self.batch_size = dataset.batch_size
        self._begin(0)

    def _begin(self, epoch):
        rng = np.random.default_rng([self.seed, epoch])
        if self.method == "oversampling":
            columns = oversample(self.dataset.labels, rng)
        else:
            columns = mix_pairs(self.dataset.labels, rng, self.alpha)
        self._pass = epoch, columns  # in one step: a thread that still fetches ahead reads both

    def on_epoch_end(self):
        """Draw the samples of the next epoch."""
        self._begin(self._pass[0] + 1)

    def __len__(self):
        """Batches in an epoch."""
        return -(-len(self._pass[1][0]) // self.batch_size)

    def __getitem__(self, index):
        """The batch at a position of the current epoch."""
        epoch, columns = self._pass
        chosen = slice(index * self.batch_size, (index + 1) * self.batch_size)
        columns = [column[chosen] for column in columns]
        patches, labels = self._samples(columns[0])
        if self.method == "oversampling":
            turn = columns[1]
            rng = np.random.default_rng([self.seed, epoch, 1 + index])  # 0 would be the epoch's own stream
            angles, flips = rng.uniform(-180, 180, turn.size), rng.random(turn.size) < 0.5
            patches[turn] = rotate_flip(patches[turn], angles[turn], flips[turn])
            return patches, labels
        others, other_labels = self._samples(columns[1])
        share = columns[2][:, None]
        labels = share * labels + (1 - share) * other_labels
        share = share[..., None, None, None]
        return share * patches + (1 - share) * others, labels

    def _samples(self, positions):
        data = self.dataset
        patches = gather(data.array, data.rows[positions], data.cols[positions], data.size)
        return patches, np.eye(len(data.classes), dtype=np.float32)[data.labels[positions]]
