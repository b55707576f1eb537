"""Runs on disk: ``<runs>/<model>/<features>/<augmentation>/seed-<n>``, whole or not there at all."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from cropnb import files, models, project

if TYPE_CHECKING:  # Keras takes seconds, and who reads runs needs none of it
    import keras

    from cropnb.batches import PatchDataset

FILES = ("run.json", "history.csv", "metrics.json", "predictions.parquet", "model.keras", "scaler.json")


class Run(NamedTuple):
    """One training: where it lies, its record, its history a row an epoch, its metrics and predictions."""

    path: Path
    record: dict[str, Any]
    history: pd.DataFrame
    metrics: dict[str, float]
    predictions: pd.DataFrame
    scaler: dict[str, Any]


def directory(runs: str | Path, model: str, features: str, augmentation: str, seed: int) -> Path:
    """Path of the run's directory under `runs`."""
    return Path(runs) / model / features / augmentation / f"seed-{seed}"


def write(
    runs: str | Path,
    *,
    model: str,
    features: str,
    augmentation: str,
    seed: int,
    width: float,
    network: "keras.Model",
    history: pd.DataFrame,
    metrics: Mapping[str, float],
    predictions: pd.DataFrame,
    scaler: Mapping[str, Any],
    seconds: float,
    **parameters: Any,
) -> Path:
    """Write one run, whole or not at all, and return its directory; an earlier run of the same cell is replaced.

    What the book's workflow did not order replaces only a run of the very same parameters; beside any other one it
    gets a name of its own.

    Parameters
    ----------
    runs
        The directory of all runs.
    model, features, augmentation, seed, width
        The cell, and the fraction of the published width.
    network
        The trained network, saved without its optimiser.
    history
        Of `cropnb.training.train`.
    metrics
        Number of each measure.
    predictions
        Columns y, x, parcel_id, true, and the probability of each class.
    scaler
        What scales features to inputs, as JSON.
    seconds
        The training took.
    parameters
        Whatever else tells this run from others, as JSON.
    """
    cell = {"model": model, "features": features, "augmentation": augmentation, "seed": seed, "width": width}
    found = {"parameters": network.count_params(), "epochs": len(history), "seconds": round(seconds, 2)}
    found["finished"] = pd.Timestamp.now("UTC").isoformat(timespec="seconds")
    path = directory(runs, model, features, augmentation, seed)
    identity = json.dumps(cell | parameters, sort_keys=True)
    if (path / "run.json").exists() and not project.ordered():
        known = _read(path / "run.json", _read_json)
        if json.dumps({name: known.get(name) for name in cell | parameters}, sort_keys=True) != identity:
            path = path.with_name(f"{path.name}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}")
    with files.whole(path) as part:
        part.mkdir()
        files.write_json(part / "run.json", cell | parameters | found | project.environment())
        files.write_json(part / "metrics.json", metrics)
        files.write_json(part / "scaler.json", scaler)
        history.to_csv(part / "history.csv")
        files.write_table(part / "predictions.parquet", predictions)
        clone = type(network).from_config(network.get_config())  # not compiled: no optimiser's state
        clone.set_weights(network.get_weights())
        clone.save(part / "model.keras")
    return path


def predict(network: "keras.Model", *datasets: "PatchDataset") -> pd.DataFrame:
    """Predictions of a network, as `write` stores them.

    A row a sample: row, col, y, x, parcel_id, block, set, true, and its probability of each class.
    """
    frames = []
    for data in datasets:
        rows = data.samples.rename(columns={"crop": "true"})
        probabilities = network.predict(data, verbose=0)
        frames.append(rows.join(pd.DataFrame(probabilities, columns=list(data.classes))))
    return pd.concat(frames, ignore_index=True)


def read(path: str | Path) -> Run:
    """The run in a directory.

    Raises
    ------
    FileNotFoundError
        When a file is missing.
    ValueError
        When one is broken.
    """
    path = Path(path)
    if missing := _missing(path):
        raise FileNotFoundError(f"{path} is no whole run, it lacks {', '.join(missing)}; train this cell again.")
    return Run(
        path,
        _read(path / "run.json", _read_json),
        _read(path / "history.csv", lambda file: pd.read_csv(file, index_col="epoch")),
        _read(path / "metrics.json", _read_json),
        _read(path / "predictions.parquet", files.read_table),
        _read(path / "scaler.json", _read_json),
    )


def table(runs: str | Path) -> pd.DataFrame:
    """A row a whole run under `runs`: its record, its metrics under their names, its path.

    Half-written and hidden directories are passed over; without a run the frame is empty.
    """
    rows = []
    for file in sorted(Path(runs).glob("*/*/*/seed-*/run.json")):
        if not _missing(file.parent):
            record = _read(file, _read_json) | _read(file.parent / "metrics.json", _read_json)
            rows.append(record | {"path": str(file.parent)})
    frame = pd.DataFrame(rows)
    return frame.sort_values(["model", "features", "augmentation", "seed"], ignore_index=True) if rows else frame


def by_network(runs: str | Path, **cell: Any) -> dict[str, Run]:
    """The run of each network that there is in one cell, in the order of the book.

    Parameters
    ----------
    runs
        The directory of all runs.
    cell
        ``features=``, ``augmentation=`` and ``seed=``.
    """
    paths = {name: directory(runs, name, **cell) for name in models.DISPLAY_NAMES}
    return {name: read(path) for name, path in paths.items() if not _missing(path)}


def load_model(path: str | Path) -> "keras.Model":
    """The trained network of a run directory, loaded without running any code from the file.

    Raises
    ------
    FileNotFoundError
        When there is none.
    ValueError
        When its file is broken, or holds code.
    """
    import keras

    from cropnb.models import convstar  # noqa: F401  registers the layers that a saved network holds

    return _read(Path(path) / "model.keras", lambda file: keras.models.load_model(file, safe_mode=True))


def _missing(path: Path) -> list[str]:
    return [name for name in FILES if not (path / name).is_file()]


def _read(file: Path, reader: Callable[[Path], Any]) -> Any:
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; train this cell first.")
    try:
        return reader(file)
    except Exception as error:
        raise ValueError(
            f"{file} cannot be read and is probably damaged ({error}); delete its run and train it again."
        ) from error


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
