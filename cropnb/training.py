"""Training as in section 4.4 of Liu et al. (2023): Adam, cross-entropy, the best validation accuracy kept."""

import logging
import math
import sys

import keras
import pandas as pd

from . import project

log = logging.getLogger(__name__)


@keras.saving.register_keras_serializable(package="cropnb")
class CoupledAdam(keras.optimizers.Adam):
    """Adam with an L2 penalty: ``coupled_decay`` times the weight is added to its gradient.

    This is what `weight_decay` of PyTorch's Adam does, the reading that regularises. Keras's own
    `weight_decay` is decoupled: it shrinks weights by learning rate times decay, 1e-7 a step here.
    """

    def __init__(self, learning_rate=1e-3, coupled_decay=1e-4, **kwargs):
        super().__init__(learning_rate, **kwargs)
        self.coupled_decay = coupled_decay

    def update_step(self, gradient, variable, learning_rate):
        gradient = keras.ops.cast(gradient, variable.dtype) + self.coupled_decay * variable
        super().update_step(gradient, variable, learning_rate)

    def get_config(self):
        return super().get_config() | {"coupled_decay": self.coupled_decay}


def prepare(seed, mixed_precision=True):
    """Seed every random generator and set the device up; call it before a network is built.

    With a GPU, `mixed_precision` computes in float16 (weights stay float32). With several, the JAX backend
    shares every batch among them.
    """
    keras.utils.set_random_seed(seed)
    gpus = list_gpus()
    keras.mixed_precision.set_global_policy("mixed_float16" if gpus and mixed_precision else "float32")
    if len(gpus) > 1 and keras.backend.backend() == "jax":
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=gpus))
    elif len(gpus) > 1:
        log.warning("One of %d GPUs is used; set KERAS_BACKEND=jax to share batches among them.", len(gpus))


def list_gpus():
    """Names of the GPUs that the Keras backend sees; Keras itself cannot list them for PyTorch."""
    if keras.backend.backend() == "torch":
        import torch

        return [f"gpu:{i}" for i in range(torch.cuda.device_count())]
    try:
        return keras.distribution.list_devices("gpu")
    except RuntimeError:  # JAX knows of no such platform
        return []


def train(
    model,
    train,
    validation,
    *,
    epochs,
    patience,
    seed,
    learning_rate=1e-3,
    weight_decay=1e-4,
    class_weight=None,
    batch_size=128,
    progress=None,
):
    """Fit `model` in place and leave it with the weights of its best validation accuracy.

    Parameters
    ----------
    model : network from `cropnb.models`, built after `prepare(seed)`, which draws its first weights.
    train, validation : `keras.utils.PyDataset`, or a pair of arrays (patches, one-hot labels), which are
        cut into batches of `batch_size`.
    epochs, patience : at most so many passes, and at most so many in a row without a better validation.
    seed : of the order of samples and of dropout.
    weight_decay : coupled L2, see `CoupledAdam`.
    class_weight : weight of each class in the loss, in class order.
    progress : show a bar on stderr; by default where somebody watches.

    Returns
    -------
    DataFrame with a row an epoch: loss, accuracy, val_loss, val_accuracy.

    Raises
    ------
    FloatingPointError when the loss is not finite, MemoryError when memory runs out.
    """
    keras.utils.set_random_seed(seed)
    model.compile(
        optimizer=CoupledAdam(learning_rate, weight_decay),
        loss="categorical_crossentropy",
        metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
    )
    model.optimizer.build(model.trainable_variables)  # else TensorFlow traces the first step twice
    best = keras.callbacks.EarlyStopping("val_accuracy", mode="max", patience=patience, restore_best_weights=True)
    callbacks = [_StopAtNaN(), best]
    if project.watched() if progress is None else progress:
        callbacks.append(_progress_bar(model.name))
    if class_weight is not None:
        class_weight = dict(enumerate(map(float, class_weight)))
    if isinstance(train, keras.utils.PyDataset):
        data = {"x": train, "shuffle": False}  # the dataset draws its own order
    else:
        data = {"x": train[0], "y": train[1], "batch_size": batch_size}
    options = {"epochs": epochs, "callbacks": callbacks, "class_weight": class_weight, "verbose": 0}
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
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch + 1

    def on_train_batch_end(self, batch, logs=None):
        self._check("loss", logs)

    def on_epoch_end(self, epoch, logs=None):
        self._check("val_loss", logs)

    def _check(self, name, logs):
        if not math.isfinite((logs or {}).get(name, 0.0)):
            raise FloatingPointError(
                f"The {name} of {self.model.name} is {logs[name]} in epoch {self.epoch}; look for missing "
                "values or unscaled features in the samples, or lower the learning rate."
            )


def _progress_bar(name):
    from tqdm import tqdm
    from tqdm.keras import TqdmCallback  # looks for notebook widgets when imported

    # A notebook cannot move its cursor up: there one bar over the epochs, in a terminal one over batches below it.
    return TqdmCallback(verbose=int(sys.stderr.isatty()), tqdm_class=tqdm, desc=name, file=sys.stderr)
