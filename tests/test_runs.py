"""Runs on disk are whole or absent, and read back as they were."""

import json
import os

import keras
import numpy as np
import pandas as pd
import pytest

from cropnb import models, runs

# Keras reads TensorFlow variables in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(1)
    return models.get("convstar")((3, 5, 5, 3), 4, 0.05)


@pytest.fixture
def content(network):
    predictions = pd.DataFrame(
        {"y": [0.5], "x": [1.5], "parcel_id": [7], "true": ["maize"], "maize": [0.6], "other": [0.4]}
    )
    history = pd.DataFrame({"loss": [1.0, 0.5], "val_accuracy": [0.5, 0.75]}, index=pd.RangeIndex(1, 3, name="epoch"))
    return {
        "network": network,
        "history": history,
        "metrics": {"overall_accuracy": 0.75, "kappa": 0.5},
        "predictions": predictions,
        "scaler": {"minimum": [0.0], "maximum": [1.0]},
        "seconds": 1.234,
    }


def write(folder, content, seed=1, model="convstar", **more):
    cell = {"model": model, "features": "optical+m-chi", "augmentation": "none", "seed": seed, "width": 0.05}
    return runs.write(folder, **cell, **content, **more)


def test_round_trip(tmp_path, content, network):
    path = write(tmp_path, content, size=5)
    assert path == tmp_path / "convstar/optical+m-chi/none/seed-1"
    assert sorted(p.name for p in path.iterdir()) == sorted(runs.FILES)
    run = runs.read(path)
    pd.testing.assert_frame_equal(run.history, content["history"])
    pd.testing.assert_frame_equal(run.predictions, content["predictions"])
    assert (run.metrics, run.scaler) == (content["metrics"], content["scaler"])
    record = run.record
    assert (record["seed"], record["width"], record["size"], record["epochs"]) == (1, 0.05, 5, 2)
    assert record["parameters"] == network.count_params()
    assert record["seconds"] == 1.23
    assert record["commit"]
    assert "cores" in record["device"] or "core," in record["device"]
    assert record["versions"]["keras"] == keras.__version__


def test_saved_network_predicts_the_same_and_leaves_the_optimiser_out(tmp_path, content, network):
    x = np.random.default_rng(1).random((2, 3, 5, 5, 3), dtype="float32")
    network.compile("adam", "categorical_crossentropy")
    network.train_on_batch(x, np.eye(4)[:2])
    loaded = runs.load_model(write(tmp_path, content))
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), network.predict(x, verbose=0))
    assert not loaded.compiled


def test_table(tmp_path, content):
    for seed in (10, 2):
        write(tmp_path, content, seed)
    write(tmp_path, content, model="cnn3d")
    frame = runs.table(tmp_path)
    assert list(frame["seed"]) == [1, 2, 10]
    assert list(frame["model"]) == ["cnn3d", "convstar", "convstar"]
    assert (frame["overall_accuracy"] == 0.75).all()
    assert {"features", "augmentation", "width", "seconds", "epochs", "parameters", "device", "commit"} <= set(frame)
    assert runs.table(tmp_path / "nothing").empty


def test_the_runs_of_a_cell_come_by_network_in_the_order_of_the_book(tmp_path, content):
    for model in ("convstar", "tcnn"):
        write(tmp_path, content, model=model)
    write(tmp_path, content, seed=2)
    (tmp_path / "cnn3d/optical+m-chi/none/seed-1").mkdir(parents=True)  # without its files
    found = runs.by_network(tmp_path, features="optical+m-chi", augmentation="none", seed=1)
    assert list(found) == ["tcnn", "convstar"]
    assert found["convstar"].record["model"] == "convstar"


def test_killed_run_leaves_nothing_that_looks_finished(tmp_path, content, monkeypatch):
    first = write(tmp_path, content)
    before = (first / "run.json").read_text()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, content, seed=2)
    monkeypatch.undo()
    assert [p.name for p in first.parent.iterdir()] == ["seed-1"]
    assert (first / "run.json").read_text() == before
    half = first.parent / ".seed-3-abc"  # what a kill -9 leaves
    half.mkdir()
    (half / "run.json").write_text("{}")
    assert list(runs.table(tmp_path)["seed"]) == [1]


def test_failure_keeps_the_earlier_run_of_the_cell(tmp_path, content):
    path = write(tmp_path, content)
    with pytest.raises(TypeError):
        write(tmp_path, content | {"metrics": {"broken": object()}})
    assert runs.read(path).metrics == content["metrics"]


def test_a_run_is_replaced(tmp_path, content):
    write(tmp_path, content)
    path = write(tmp_path, content | {"metrics": {"overall_accuracy": 0.9}})
    assert json.loads((path / "metrics.json").read_text()) == {"overall_accuracy": 0.9}
    assert [p.name for p in path.parent.iterdir()] == ["seed-1"]


def test_a_run_of_other_parameters_is_replaced_by_the_workflow_alone(tmp_path, content, monkeypatch):
    book = write(tmp_path, content, epochs_allowed=40)
    other = write(tmp_path, content | {"metrics": {"overall_accuracy": 0.9}}, epochs_allowed=1)
    assert other != book
    assert other.name.startswith("seed-1-")
    assert write(tmp_path, content, epochs_allowed=1) == other
    assert runs.read(book).record["epochs_allowed"] == 40
    assert list(runs.table(tmp_path)["epochs_allowed"]) == [40, 1]
    monkeypatch.setenv("CROPNB_ORDERED", "1")
    assert write(tmp_path, content, epochs_allowed=30) == book
    assert runs.read(book).record["epochs_allowed"] == 30


def test_damage_is_named(tmp_path, content):
    path = write(tmp_path, content)
    model = path / "model.keras"
    model.write_bytes(model.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.keras cannot be read and is probably damaged"):
        runs.load_model(path)
    (path / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match=r"metrics\.json cannot be read"):
        runs.read(path)
    with pytest.raises(ValueError, match=r"metrics\.json cannot be read"):
        runs.table(tmp_path)
    (path / "scaler.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"is no whole run, it lacks scaler\.json"):
        runs.read(path)
    with pytest.raises(FileNotFoundError, match="train this cell first"):
        runs.load_model(tmp_path)


def test_code_in_a_model_file_is_refused(tmp_path):
    inputs = keras.Input((2,))
    keras.Model(inputs, keras.layers.Lambda(lambda v: v + 1)(inputs)).save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="cannot be read"):
        runs.load_model(tmp_path)
