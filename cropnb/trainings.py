"""One training as the pages of the networks and the sweep make it: loaded, trained, judged, written, shown."""

import ast
import inspect
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from cropnb import (
    batches,
    evaluation,
    files,
    models,
    plotting,
    project,
    runs,
    samples,
    scenarios,
    schema,
    training,
)


@dataclass(frozen=True)
class Parameters:
    """What a training takes; the pages' parameters of the same names say what each is."""

    profile: str
    seed: int
    build: str
    folder: str
    features: str
    augmentation: str
    width: float
    scaling: str
    patch: int
    train_samples: int
    validation_samples: int
    test_samples: int
    batch_size: int
    epochs: int
    patience: int


class Training:
    """A network with fresh weights, and step by step its samples, history, predictions, scores and run.

    Parameters
    ----------
    name
        One of `cropnb.models.DISPLAY_NAMES`.
    page
        The names of a page, ``globals()``, with a value for each of `Parameters`.

    Attributes
    ----------
    network
        The Keras model.
    steps
        The scenario (time, y, x, feature), not scaled.
    classes
        Crops in the order of the region's record.
    """

    def __init__(self, name: str, page: Mapping[str, Any]) -> None:
        self.parameters = p = Parameters(**{field.name: page[field.name] for field in fields(Parameters)})
        self.name, self.classes = name, list(schema.read_record(Path(p.build, "region"))["crop_shares"])
        self.steps = scenarios.scenario(Path(p.build, "cube.zarr"), p.features)
        training.prepare(p.seed)
        self.shape = (self.steps.sizes["time"], p.patch, p.patch, 3)
        self.network = models.get(name)(self.shape, len(self.classes), p.width)

    @cached_property
    def layers(self) -> pd.DataFrame:
        """The layers as of `models.layers`, with the parameters of the published width beside them."""
        full = models.get(self.name)(self.shape, len(self.classes))
        return models.layers(self.network).assign(published=models.layers(full)["parameters"])

    def load(self) -> pd.DataFrame:
        """Read and scale the samples, by the training pixels alone; their number by set and crop."""
        p = self.parameters
        counts = {name: getattr(p, f"{name}_samples") for name in samples.SETS}
        rows = samples.thin(files.read_table(Path(p.build, "split.parquet")), **counts)
        seen = rows[rows["set"] == "train"]
        self.scaler = scenarios.fit_scaler(self.steps, seen["row"].tolist(), seen["col"].tolist(), p.scaling)
        options: dict[str, Any] = {"seed": p.seed, "size": p.patch, "batch_size": p.batch_size}
        scaled = scenarios.scale(self.steps, self.scaler)
        self.train, self.validation, self.test = batches.load(scaled, rows, self.classes, **options)
        return pd.crosstab(rows["set"], rows["crop"]).reindex(index=samples.SETS, columns=self.classes)

    def fit(self) -> pd.DataFrame:
        """Treat the imbalance and train; the history, a row an epoch."""
        p = self.parameters
        data, weights = batches.augment(p.augmentation, self.train, seed=p.seed)
        options: dict[str, Any] = {"epochs": p.epochs, "patience": p.patience, "seed": p.seed, "class_weight": weights}
        begin = time.perf_counter()
        self.history = training.train(self.network, data, self.validation, **options)
        self.seconds = time.perf_counter() - begin
        return self.history

    def judge(self) -> pd.DataFrame:
        """The measures on the test blocks with 95 % intervals over blocks: estimate, low, high."""
        self.predictions = runs.predict(self.network, self.validation, self.test)
        judged = self.predictions[self.predictions["set"] == "test"].copy()
        judged["predicted"] = judged[self.classes].idxmax(axis=1)
        judged["right"] = judged["predicted"] == judged["true"]
        judged["score"] = judged[self.classes].max(axis=1)
        self.judged, labels = judged, (judged["true"], judged["predicted"])
        self.matrix = evaluation.confusion_matrix(*labels, self.classes)
        self.scores = evaluation.bootstrap(*labels, judged["block"], self.classes, seed=self.parameters.seed)
        return self.scores

    def write(self) -> Path:
        """Write the run, and return its folder: in the book's ``runs`` only what its workflow ordered."""
        p = self.parameters
        told = ("features", "augmentation", "seed", "width", "profile", "patch", "scaling", "batch_size", "patience")
        made = ("network", "history", "predictions", "scaler", "seconds", "classes")
        content: dict[str, Any] = {name: getattr(p, name) for name in told}
        content |= {name: getattr(self, name) for name in made}
        content |= {f"{name}_samples": len(getattr(self, name).samples) for name in samples.SETS}
        content["epochs_allowed"] = p.epochs
        metrics = {str(name): value for name, value in self.scores["estimate"].items()}
        folder = "reruns/runs" if p.folder == "runs" and not project.ordered() else p.folder
        path = runs.write(Path(p.build, folder), model=self.name, metrics=metrics, **content)
        if not project.ordered():
            display(Markdown(f"This run is in `{path}`, apart from those of the book."))
        return path

    def words(self) -> dict[str, Any]:
        """What a page says of the training, for `pages.say`."""
        judged, accuracy = self.judged, self.history["val_accuracy"]
        right, last = judged["right"], max(len(accuracy) // 3, 1)
        by_block, in_parcel = (judged.groupby(key)["right"] for key in ("block", "parcel_id"))
        counts = self.matrix.to_numpy() * (1 - np.eye(len(self.classes), dtype=int))
        true, taken = divmod(int(counts.argmax()), len(self.classes))
        return asdict(self.parameters) | {
            "network": models.DISPLAY_NAMES[self.name],
            "model": self.name,
            **{name: self.layers[name].sum() for name in ("parameters", "published")},
            **{name: len(getattr(self, name).samples) for name in samples.SETS},
            "seconds": self.seconds,
            "trained": len(accuracy),
            "ended": "stopped by itself" if len(accuracy) < self.parameters.epochs else "used up its epochs",
            "kept": 1 + int(accuracy.argmax()),
            "val_accuracy": accuracy.max(),
            "late_gain": 100 * (accuracy.iloc[-last:].max() - accuracy.iloc[:-last].max()),
            "oa": self.scores.loc["overall_accuracy"],
            "mean_f1": self.scores.loc["mean_f1"],
            "blocks": by_block.ngroups,
            "parcels": in_parcel.ngroups,
            "mistaken": self.classes[true],
            "taken_for": self.classes[taken],
            "confused": counts[true, taken],
            "confused_of": self.matrix.to_numpy()[true].sum(),
            "worst": 100 * by_block.mean().min(),
            "best": 100 * by_block.mean().max(),
            "whole": 100 * (in_parcel.transform("mean")[~right] < 0.5).mean(),
            "score_right": judged["score"][right].mean(),
            "score_wrong": judged["score"][~right].mean(),
        }

    def draw_layers(self) -> Figure:
        """The network as a column of bars, one a layer."""
        figure, ax = plt.subplots(figsize=(7.2, 0.32 * len(self.layers) + 0.8))
        plotting.network(self.layers, ax)
        return figure

    def draw_history(self) -> Figure:
        """Loss and accuracy by epoch."""
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
        plotting.history(self.history, axes)
        return figure

    def draw_errors(self) -> Figure:
        """The confusion matrix, and a map of the errors with the accuracy of each test block."""
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2), width_ratios=(1, 1.3))
        plotting.confusion(self.matrix, left)
        plotting.errors(self.judged, self.classes, right)
        return figure


def code(*functions: Callable) -> Markdown:
    """The source of functions as a page shows it: without docstrings, which repeat the page's words."""
    shown = []
    for function in functions:
        text = textwrap.dedent(inspect.getsource(function))
        tree, lines = ast.parse(text).body[0], text.splitlines()
        if isinstance(tree, ast.FunctionDef) and ast.get_docstring(tree):
            del lines[tree.body[0].lineno - 1 : tree.body[0].end_lineno]
        shown.append("\n".join(lines))
    return Markdown("```python\n" + "\n\n\n".join(shown) + "\n```")
