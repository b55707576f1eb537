"""Training: the weight decay that is meant, the best epoch kept, clear ends."""

import keras
import numpy as np
import pytest

from cropnb import training


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(1)
    x = rng.random((240, 6, 3), dtype="float32")
    return x, np.eye(4, dtype="float32")[(x[:, 2, 1] * 4).astype(int)]


def network(seed=0):
    training.prepare(seed)
    layers = [keras.layers.Flatten(), keras.layers.Dropout(0.2), keras.layers.Dense(4, activation="softmax")]
    return keras.Sequential([keras.Input((6, 3)), *layers], name="tiny")


def fit(data, model=None, **options):
    x, y = data
    options = {"epochs": 3, "patience": 3, "seed": 0, "batch_size": 40} | options
    model = model or network()
    return model, training.train(model, (x[:160], y[:160]), (x[160:], y[160:]), **options)


def test_coupled_decay_is_adam_on_the_penalised_loss():
    decay, rng = 0.1, np.random.default_rng(2)
    start, gradients = rng.normal(size=3).astype("float32"), rng.normal(size=(4, 3)).astype("float32")
    ours, plain = keras.Variable(start), keras.Variable(start)
    coupled, adam = training.CoupledAdam(0.01, decay), keras.optimizers.Adam(0.01)
    for gradient in gradients:
        coupled.apply([keras.ops.convert_to_tensor(gradient)], [ours])
        adam.apply([keras.ops.convert_to_tensor(gradient) + decay * plain], [plain])
    np.testing.assert_allclose(ours.numpy(), plain.numpy(), atol=1e-7)
    assert not np.allclose(ours.numpy(), start)


def test_coupled_decay_shrinks_unused_weights_and_keras_decay_hardly_does():
    shrunk = {}
    for name, optimizer in (
        ("coupled", training.CoupledAdam(1e-3, 1e-4)),
        ("decoupled", keras.optimizers.Adam(1e-3, weight_decay=1e-4)),
    ):
        weight = keras.Variable(np.float32([0.5]))
        for _ in range(20):
            optimizer.apply([keras.ops.zeros(1)], [weight])
        shrunk[name] = 0.5 - float(weight.numpy()[0])
    assert shrunk["coupled"] > 1e-2
    assert shrunk["decoupled"] < 1e-5


def test_optimiser_survives_its_config():
    optimizer = training.CoupledAdam(2e-3, 3e-4)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(again, training.CoupledAdam)
    assert again.get_config() == optimizer.get_config()


def test_best_validation_accuracy_is_kept(data):
    model, history = fit(data, epochs=6, patience=6, learning_rate=0.05)
    assert list(history.columns) == ["accuracy", "loss", "val_accuracy", "val_loss"]
    assert history.index.name == "epoch"
    assert history.index[0] == 1
    predicted = model.predict(data[0][160:], verbose=0).argmax(axis=1)
    accuracy = (predicted == data[1][160:].argmax(axis=1)).mean()
    assert accuracy == pytest.approx(history["val_accuracy"].max())


def test_early_stopping(data):
    _, history = fit(data, epochs=30, patience=2, learning_rate=0.0)
    assert len(history) == 3  # the first is never beaten without learning


def test_same_seed_same_training(data):
    first, again = fit(data)[1], fit(data)[1]
    assert first.equals(again)
    assert not first.equals(fit(data, network(1), seed=1)[1])


def test_class_weight_reaches_the_loss(data):
    plain = fit(data, epochs=1, learning_rate=0.0)[1]
    weighted = fit(data, epochs=1, learning_rate=0.0, class_weight=[3] * 4)[1]
    assert weighted["loss"].iloc[0] == pytest.approx(3 * plain["loss"].iloc[0], rel=1e-4)


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y, self.asked = x, y, []

    def __len__(self):
        return 6

    def __getitem__(self, i):
        self.asked.append(i)
        return self.x[i * 40 : (i + 1) * 40], self.y[i * 40 : (i + 1) * 40]


def test_datasets_train_in_their_own_order(data):
    own, validation = Batches(*data), Batches(*data)
    history = training.train(network(), own, validation, epochs=2, patience=2, seed=0, class_weight=[1, 2, 1, 1])
    assert len(history) == 2
    assert own.asked[-12:] == [*range(6), *range(6)]


def test_nan_is_named(data):
    spoiled = data[0].copy()
    spoiled[100] = np.nan
    with pytest.raises(FloatingPointError, match=r"loss of tiny is nan in epoch 1; .* learning rate"):
        fit((spoiled, data[1]))
    spoiled = data[0].copy()
    spoiled[200] = np.nan
    with pytest.raises(FloatingPointError, match="val_loss of tiny is nan in epoch 1"):
        fit((spoiled, data[1]))


def test_lack_of_memory_is_named(data, monkeypatch):
    model = network()

    def fails(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(model, "fit", fails)
    with pytest.raises(MemoryError, match="Training tiny ran out of memory; give a smaller batch"):
        fit(data, model)


def test_progress_bar_only_when_asked_for(data, capsys):
    fit(data, epochs=1)
    assert capsys.readouterr() == ("", "")
    fit(data, epochs=1, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "tiny" in err
    assert "val_accuracy" in err
