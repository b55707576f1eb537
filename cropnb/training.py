"""Training as in section 4.4 of Liu et al. (2023): Adam, cross-entropy, the best validation accuracy kept."""

import logging
import math
import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
import pandas as pd

from cropnb import project

log = logging.getLogger(__name__)

Samples: TypeAlias = keras.utils.PyDataset | tuple[np.ndarray, np.ndarray]


@keras.saving.register_keras_serializable(package="cropnb")
class CoupledAdam(keras.optimizers.Adam):
    """Adam with an L2 penalty: ``coupled_decay`` times the weight is added to its gradient.

    This is what `weight_decay` of PyTorch's Adam does, the reading that regularises. Keras's own
    `weight_decay` is decoupled: it shrinks weights by learning rate times decay, 1e-7 a step here.
    """

    def __init__(self, learning_rate: float = 1e-3, coupled_decay: float = 1e-4, **kwargs: Any) -> None:
        super().__init__(learning_rate, **kwargs)
        self.coupled_decay = coupled_decay

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One step of one variable, as in `keras.optimizers.Optimizer`."""
        gradient = keras.ops.cast(gradient, variable.dtype) + self.coupled_decay * variable
        super().update_step(gradient, variable, learning_rate)

    def get_config(self) -> dict[str, Any]:
        """The arguments, for a saved optimiser."""
        return super().get_config() | {"coupled_decay": self.coupled_decay}


def prepare(seed: int, mixed_precision: bool = True) -> None:
    """Seed every random generator and set the device up; call it before a network is built.

    With several GPUs, the JAX backend shares every batch among them.

    Parameters
    ----------
    seed
        Of first weights and dropout.
    mixed_precision
        Whether a GPU computes in float16; weights stay float32.
    """
    keras.utils.set_random_seed(seed)
    gpus = list_gpus()
    keras.mixed_precision.set_global_policy("mixed_float16" if gpus and mixed_precision else "float32")
    if len(gpus) > 1 and keras.backend.backend() == "jax":
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=gpus))
    elif len(gpus) > 1:
        log.warning("One of %d GPUs is used; set KERAS_BACKEND=jax to share batches among them.", len(gpus))


def list_gpus() -> list[str]:
    """Names of the GPUs that the Keras backend sees."""
    try:
        return keras.distribution.list_devices("gpu")
    except RuntimeError:  # JAX knows of no such platform
        return []


def train(
    model: keras.Model,
    train: Samples,
    validation: Samples,
    *,
    epochs: int,
    patience: int,
    seed: int,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
    class_weight: Sequence[float] | np.ndarray | None = None,
    batch_size: int = 128,
    progress: bool | None = None,
    monitor: str = "val_accuracy",
) -> pd.DataFrame:
    """Fit `model` in place and leave it with the weights of its best validation.

    Parameters
    ----------
    model
        From `cropnb.models`, built after `prepare(seed)`, which decides its first weights.
    train, validation
        Batches, or a pair of arrays (patches, one-hot labels), which are cut into batches of `batch_size`.
    epochs, patience
        At most so many passes, and at most so many in a row without a better validation.
    seed
        Of the order of samples and of dropout.
    learning_rate, weight_decay
        Of Adam; the decay is coupled L2, see `CoupledAdam`.
    class_weight
        (classes,) weight of each class in the loss.
    batch_size
        Samples in a batch, where arrays are given.
    progress
        Show a bar on stderr; by default where somebody watches.
    monitor
        What of the validation counts, ``val_accuracy`` or ``val_loss``.

    Returns
    -------
    pandas.DataFrame
        A row an epoch: loss, accuracy, val_loss, val_accuracy.

    Raises
    ------
    FloatingPointError
        When the loss is not finite.
    MemoryError
        When memory runs out.
    """
    keras.utils.set_random_seed(seed)
    model.compile(
        optimizer=CoupledAdam(learning_rate, weight_decay),
        loss="categorical_crossentropy",
        metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
    )
    model.optimizer.build(model.trainable_variables)  # else TensorFlow traces the first step twice
    mode = "min" if monitor.endswith("loss") else "max"
    best = keras.callbacks.EarlyStopping(monitor, mode=mode, patience=patience, restore_best_weights=True)
    callbacks = [_StopAtNaN(), best]
    if project.watched() if progress is None else progress:
        callbacks.append(_progress_bar(model.name))
    weights = None if class_weight is None else dict(enumerate(map(float, class_weight)))
    data: dict[str, Any] = {"x": train, "shuffle": False}  # the dataset has an order of its own
    if not isinstance(train, keras.utils.PyDataset):
        data = {"x": train[0], "y": train[1], "batch_size": batch_size}
    options = {"epochs": epochs, "callbacks": callbacks, "class_weight": weights, "verbose": 0}
    try:
        history = model.fit(**data, validation_data=validation, **options)
    except Exception as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in f"{type(error)} {error}":
            raise MemoryError(
                f"Training {model.name} ran out of memory; give a smaller batch, width or patch size."
            ) from error
        raise
    return pd.DataFrame(history.history, index=pd.RangeIndex(1, len(history.epoch) + 1, name="epoch"))


class _StopAtNaN(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.epoch = epoch + 1

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        for name, value in (logs or {}).items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"The {name} of {self.model.name} is {value} in epoch {self.epoch}; look for missing "
                    "values or unscaled features in the samples, or lower the learning rate."
                )

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.on_train_batch_end(0, logs)


def _progress_bar(name: str) -> keras.callbacks.Callback:
    from tqdm import tqdm
    from tqdm.keras import TqdmCallback  # looks for notebook widgets when imported

    # A notebook cannot move its cursor up: there one bar over the epochs, in a terminal one over batches below it.
    return TqdmCallback(verbose=int(sys.stderr.isatty()), tqdm_class=tqdm, desc=name, file=sys.stderr)
