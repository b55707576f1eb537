"""Runs on disk: ``<runs>/<model>/<features>/<augmentation>/seed-<n>``, whole or not there at all."""

import json
import os
import platform
import shutil
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import keras
import pandas as pd

from . import models, training  # noqa: F401  models registers the layers that a saved network holds

FILES = ("run.json", "history.csv", "metrics.json", "predictions.parquet", "model.keras", "scaler.json")
PACKAGES = ("cropnb", "keras", keras.backend.backend(), "numpy")


class Run(NamedTuple):
    """One training: where it lies, its record, its history a row an epoch, its metrics and predictions."""

    path: Path
    record: dict
    history: pd.DataFrame
    metrics: dict
    predictions: pd.DataFrame
    scaler: dict


def directory(runs, model, features, augmentation, seed):
    """Path of the run's directory under `runs`."""
    return Path(runs) / model / features / augmentation / f"seed-{seed}"


def write(runs, *, model, features, augmentation, seed, width, network, history, metrics, predictions, scaler,
          seconds, **parameters):  # fmt: skip
    """Write one run and return its directory; an earlier run of the same cell is replaced.

    Everything goes to a hidden sibling first, which takes the final name when it is whole: a killed run
    leaves nothing that looks finished.

    Parameters
    ----------
    runs : the directory of all runs.
    model, features, augmentation, seed, width : the cell, and the fraction of the published width.
    network : the trained `keras.Model`, saved without its optimiser.
    history : DataFrame of `cropnb.training.train`.
    metrics : {name: number}.
    predictions : DataFrame with y, x, parcel_id, true and one probability column a class.
    scaler : what scales features to inputs, as JSON.
    seconds : the training took.
    parameters : whatever else tells this run from others, as JSON.
    """
    path = directory(runs, model, features, augmentation, seed)
    record = {
        "model": model,
        "features": features,
        "augmentation": augmentation,
        "seed": seed,
        "width": width,
        **parameters,
        "parameters": network.count_params(),
        "epochs": len(history),
        "seconds": round(seconds, 2),
        **environment(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        part.chmod(0o755)  # mkdtemp's is for its owner alone
        _write_json(part / "run.json", record)
        _write_json(part / "metrics.json", metrics)
        _write_json(part / "scaler.json", scaler)
        history.to_csv(part / "history.csv")
        predictions.to_parquet(part / "predictions.parquet", index=False)
        clone = type(network).from_config(network.get_config())  # not compiled: no optimiser's state
        clone.set_weights(network.get_weights())
        clone.save(part / "model.keras")
        if path.exists():  # out of the way in one step: a kill in between must not lose both
            os.replace(path, part.with_name(f"{part.name}-old"))
        os.replace(part, path)
    finally:
        for leftover in path.parent.glob(f".{path.name}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
    return path


def predict(network, *datasets):
    """Predictions of a network for `cropnb.samples.PatchDataset`s, as `write` stores them.

    DataFrame with a row a sample: row, col, y, x, parcel_id, block, set, true, and its probability of each class.
    """
    frames = []
    for data in datasets:
        rows = data.samples.rename(columns={"crop": "true"})
        probabilities = network.predict(data, verbose=0)
        frames.append(rows.join(pd.DataFrame(probabilities, columns=list(data.classes))))
    return pd.concat(frames, ignore_index=True)


def read(path):
    """The `Run` in a directory. Raises FileNotFoundError when a file is missing, ValueError when one is broken."""
    path = Path(path)
    if missing := [name for name in FILES if not (path / name).is_file()]:
        raise FileNotFoundError(f"{path} is no whole run, it lacks {', '.join(missing)}; train this cell again.")
    readers = {
        "run.json": _read_json,
        "history.csv": lambda file: pd.read_csv(file, index_col="epoch"),
        "metrics.json": _read_json,
        "predictions.parquet": pd.read_parquet,
        "scaler.json": _read_json,
    }
    return Run(path, *(_read(path / name, reader) for name, reader in readers.items()))


def table(runs):
    """DataFrame with a row a whole run under `runs`: its record, and its metrics under their names.

    Half-written and hidden directories are passed over; without a run the frame is empty.
    """
    rows = []
    for file in sorted(Path(runs).glob("*/*/*/seed-*/run.json")):
        if all((file.parent / name).is_file() for name in FILES):
            record = _read(file, _read_json) | _read(file.parent / "metrics.json", _read_json)
            rows.append(record | {"path": str(file.parent)})
    frame = pd.DataFrame(rows)
    return frame.sort_values(["model", "features", "augmentation", "seed"], ignore_index=True) if rows else frame


def load_model(path):
    """The trained network of a run directory, loaded without running any code from the file."""
    return _read(Path(path) / "model.keras", lambda file: keras.models.load_model(file, safe_mode=True))


def environment():
    """Device, commit, versions and time of this process, for a run's record."""
    return {
        "device": device(),
        "commit": commit(),
        "finished": pd.Timestamp.now("UTC").isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def device():
    """The accelerators that Keras sees, else the processor, in words."""
    count = len(training.list_gpus())
    if count:
        names = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()
        return f"{count} x {names[0] if names else 'GPU'}"
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"


def commit():
    """`git describe` of the working copy that this module lies in, "unknown" outside git."""
    here = str(Path(__file__).parent)
    return _output("git", "-C", here, "describe", "--always", "--dirty", "--tags") or "unknown"


def _output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _read(file, reader):
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; train this cell first.")
    try:
        return reader(file)
    except Exception as error:
        raise ValueError(
            f"{file} cannot be read and is probably damaged ({error}); delete its run and train it again."
        ) from error


def _read_json(file):
    return json.loads(file.read_text(encoding="utf-8"))


def _write_json(file, content):
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
