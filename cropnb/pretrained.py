"""Frozen features of a pixel's season: a table made elsewhere, and a small encoder of one's own."""

from pathlib import Path

import keras
import numpy as np
import pandas as pd
from keras import layers

from cropnb import training


def read(path: str | Path, *labelled: pd.Index) -> pd.DataFrame:
    """Embeddings of labelled pixels from a Parquet table: a row a pixel in the labels' order, a column a dimension.

    Parameters
    ----------
    path
        Table with a row a pixel: the columns that name it, and one column of floats a dimension, whose name ends in a
        number (``A00``).  Nothing else, so that no coordinate is taken for a feature.
    labelled
        Pixels with a label, named by columns of the table; the first set whose columns the table has is read.

    Raises
    ------
    ValueError
        In one sentence, for a file or a column that breaks the above, a pixel twice or absent, a value not finite.
    """
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as Parquet ({str(error).splitlines()[0]}); give a table.") from None
    table = table.reset_index(drop=table.index.names == [None])
    wanted = next((pixels for pixels in labelled if {*pixels.names} <= {*table}), None)
    if wanted is None:
        choice = " or ".join(" and ".join(map(str, pixels.names)) for pixels in labelled)
        raise ValueError(f"{path} does not name its pixels; add the column {choice}.")
    table = table.set_index(list(wanted.names))
    kinds = {str(column): kind for column, kind in table.dtypes.items()}
    if odd := [column for column in kinds if not column[-1:].isdigit()]:
        raise ValueError(f"{path}: column {odd[0]} has no number at its end, as a dimension has; leave it out.")
    if odd := [column for column, kind in kinds.items() if kind.kind != "f"]:
        raise ValueError(f"{path}: column {odd[0]} is of type {kinds[odd[0]]}; store floats, any scale applied.")
    if not kinds:
        raise ValueError(f"{path} has no vectors; add a column a dimension, such as A00.")
    if table.index.has_duplicates:
        raise ValueError(f"{path}: pixel {table.index[table.index.duplicated()][0]} stands there twice; keep one row.")
    if len(absent := wanted.difference(table.index)):
        raise ValueError(f"{path} lacks {len(absent)} of {len(wanted)} labelled pixels, {absent[0]} first; add them.")
    vectors = table.loc[wanted].astype("float32")
    if (wrong := ~np.isfinite(vectors.to_numpy()).all(axis=1)).any():
        raise ValueError(f"{path}: pixel {wanted[wrong][0]} has a value that is not finite; embed it again.")
    return vectors


def pretrain(series: np.ndarray, passes: int, seed: int, size: int = 64) -> tuple[keras.Model, float]:
    """An encoder trained to reconstruct hidden dates, and the share of their variance that it explains.

    Every pass hides half of each pixel's dates anew; a tenth of the pixels, never trained on, gives the share.

    Parameters
    ----------
    series
        (pixel, time, feature) of unlabelled pixels, standardised.
    passes
        Over the pixels; with 0 the encoder is a random one.
    size
        Numbers in an embedding.
    """
    training.prepare(seed, mixed_precision=False)
    encoder, whole = _networks(series.shape[1:], size)
    whole.compile(keras.optimizers.Adam(1e-3), loss="mse", weighted_metrics=[])
    rng = np.random.default_rng(seed)
    kept = np.arange(len(series)) % 10 == 0
    for _ in range(passes):
        x, weight = _hide(series[~kept], rng)
        whole.fit(x, series[~kept], sample_weight=weight, batch_size=128, verbose=0)
    x, weight = _hide(series[kept], rng)
    guess, true = (values[weight > 0] for values in (whole.predict(x, verbose=0), series[kept]))
    return encoder, float(1 - ((guess - true) ** 2).sum() / (true**2).sum())


def embed(encoder: keras.Model, series: np.ndarray) -> np.ndarray:
    """(pixel, size) embeddings of whole series (pixel, time, feature), standardised as for `pretrain`."""
    seen = np.pad(series, ((0, 0), (0, 0), (0, 1)), constant_values=1)  # every date
    return encoder.predict(seen, batch_size=1024, verbose=0)


def _networks(shape: tuple[int, ...], size: int) -> tuple[keras.Model, keras.Model]:
    """The encoder of (time, feature + 1), whose last feature says which dates are seen, and it with its decoder."""
    inputs = keras.Input((shape[0], shape[1] + 1))
    x = layers.Dense(64)(inputs)
    for _ in range(2):
        x = layers.LayerNormalization()(x + layers.Conv1D(64, 3, padding="same", activation="gelu")(x))
    code = layers.Dense(size)(layers.Flatten()(x))
    x = layers.Dense(shape[0] * shape[1])(layers.Dense(128, activation="gelu")(code))
    return keras.Model(inputs, code), keras.Model(inputs, layers.Reshape(shape)(x))


def _hide(series: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Series without half their dates, with a feature that says which are seen, and the dates' weight in the loss."""
    order = rng.random(series.shape[:2]).argsort(axis=1).argsort(axis=1)
    hidden = (order < series.shape[1] // 2).astype("float32")
    seen = 1 - hidden[..., None]
    return np.concatenate([series * seen, seen], -1), hidden
