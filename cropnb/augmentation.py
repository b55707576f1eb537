"""The treatments of class imbalance of Liu et al. (2023), section 4.5: their arithmetic.

`cropnb.batches.augment` applies them to training samples, and to nothing else.
"""

import numpy as np
from numpy.typing import ArrayLike

METHODS = ("none", "oversampling", "balanced-loss", "mix-up")


def class_weights(counts: ArrayLike) -> np.ndarray:
    """Weight of each class in the loss (classes,): its inverse frequency, scaled to a mean of 1 over all samples.

    Parameters
    ----------
    counts
        (classes,) samples of each class.

    Raises
    ------
    ValueError
        For a class without a sample.
    """
    counts = np.asarray(counts, dtype=float)
    if (counts < 1).any():
        raise ValueError(f"Class counts are {counts.astype(int).tolist()}; every class needs a sample.")
    weights = 1 / counts
    return weights * counts.sum() / (weights * counts).sum()


def oversample(labels: ArrayLike, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Every sample once and minority samples repeated up to the majority's count, in random order.

    Parameters
    ----------
    labels
        Class number of each sample.
    rng
        Decides what is repeated, and the order.

    Returns
    -------
    tuple
        (n,) positions in `labels`, and (n,) whether the sample is a repeat and is to be turned.
    """
    labels = np.asarray(labels)
    classes, counts = np.unique(labels, return_counts=True)
    lacking = zip(classes, counts.max() - counts, strict=True)
    repeats = [rng.choice(np.flatnonzero(labels == c), n) for c, n in lacking]
    positions = np.concatenate([np.arange(labels.size), *repeats])
    order = rng.permutation(positions.size)
    return positions[order], order >= labels.size


def mix_pairs(labels: ArrayLike, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As many pairs of samples of different classes as there are labels, and the share of the first.

    Two classes are chosen uniformly, then a sample of each, so that mixtures hold as much of every class.

    Parameters
    ----------
    labels
        (n,) class number of each sample.
    rng
        Decides pairs and shares, any share as likely as another.

    Returns
    -------
    tuple
        (n,) positions of the first, (n,) of the second, and (n,) float32 shares.

    Raises
    ------
    ValueError
        Where all samples are of one class.
    """
    labels = np.asarray(labels)
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    if len(members) < 2:
        raise ValueError("Mix-up needs samples of two classes, the training set has one.")
    first = rng.integers(len(members), size=labels.size)
    second = (first + rng.integers(1, len(members), size=labels.size)) % len(members)
    member = np.vectorize(lambda c: rng.choice(members[c]), otypes=[np.int64])
    return member(first), member(second), rng.beta(1, 1, labels.size).astype(np.float32)


def rotate_flip(patches: np.ndarray, angles: np.ndarray, flips: np.ndarray) -> np.ndarray:
    """Turn square patches about their centre pixel, alike for all dates.

    Bilinear; what comes from beyond a patch takes its nearest pixel. With an odd size the centre pixel keeps its
    values.

    Parameters
    ----------
    patches
        (n, time, size, size, feature).
    angles
        (n,) in degrees.
    flips
        (n,) whether x is mirrored first.
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
