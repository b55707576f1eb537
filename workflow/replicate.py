"""One replicate of the experiment: a county, a training sample and first weights, all new; a row a cell and measure.

Usage: python workflow/replicate.py NUMBER FILE PLAN, the plan as JSON: what a profile says under ``replicates``.

FILE gets the accuracies on the replicate's own test parcels. What they were made from is deleted again, since the same
number gives it back; a replicate that was interrupted goes on with the cell where it stopped, and a cell that failed
says why and stops no other.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from chapters import recorded
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

from cropnb import batches, cube, evaluation, files, models, regions, samples, scenarios, split, training, twin
from cropnb.evaluation import replicates

PIXELS = {"train": 4, "validation": 1, "test": 3}  # of a parcel; a batch of training shows one of the four
WINDOWS = {"centre": 1, "5x5": 5}


def main(number: int, file: Path, plan: dict) -> None:
    """Run a replicate, or what is left of it."""
    part, scratch, begin = file.with_suffix(".part"), file.with_suffix(""), time.perf_counter()
    known = recorded(part)
    if known.get("plan") != plan:
        known = {"plan": plan, "cells": []}
        shutil.rmtree(scratch, ignore_errors=True)
    cells = [cell for cell in known["cells"] if not cell["failed"]]
    try:
        done = {(cell["model"], cell["features"], cell["augmentation"]) for cell in cells}
        for cell in run(number, plan, done, scratch):
            cells.append(cell)
            files.write_json(part, known | {"cells": cells})
    except Exception as error:  # a replicate that is missing is shown, and stops no other
        cells.append({"model": "", "features": "", "augmentation": "", "failed": f"{type(error).__name__}: {error}"})
    failed = "; ".join(cell["failed"] for cell in cells if cell["failed"])
    files.write_json(file, known | {"replicate": number, "failed": failed, "cells": cells})
    if not failed:
        part.unlink()
        shutil.rmtree(scratch)
    said = f"failed    replicate {number}: {failed}" if failed else f"finished  replicate {number}"
    print(f"  {said} in {time.perf_counter() - begin:.0f} s", flush=True)


class Parcels(batches.PatchDataset):
    """Training samples that are parcels: each time one of a parcel's pixels, by chance."""

    def __init__(self, array: np.ndarray, table: pd.DataFrame, classes: list[str], **options) -> None:
        super().__init__(array, table[table["pick"] == 0], classes, shuffle=True, **options)
        of_parcel = {number: part[["row", "col"]].to_numpy() for number, part in table.groupby("parcel_id")}
        self.pixels = [of_parcel[number] for number in self.samples["parcel_id"]]

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Patches of parcels and their one-hot labels."""
        rng = np.random.default_rng([self.seed, *positions])
        pixels = np.array([rng.choice(self.pixels[position]) for position in positions])
        patches = samples.gather(self.array, *pixels.T, self.size)
        return patches, np.eye(len(self.classes), dtype=np.float32)[self.labels[positions]]


def run(number: int, plan: dict, done: set[tuple], scratch: Path) -> Iterator[dict]:
    """A cell and its scores, for every baseline and network that is not `done` yet."""
    seed = 1000 + number
    region, built = scratch / "region", scratch / "cube.zarr"
    if not built.exists():
        twin.write(region, size=plan["size"], seed=seed, covariance=True)
        cube.build(region, built)
    reference = split.reference(region, min(1000, plan["size"] / 4))
    table = replicates.units(reference, cube.complete(built).values, PIXELS, seed)
    sets, classes = dict(iter(table.groupby("set"))), list(regions.read_record(region)["crop_shares"])
    parcels = {f"{name}_parcels": len(rows["parcel_id"].unique()) for name, rows in sets.items()}
    first = sets["train"][sets["train"]["pick"] == 0]
    for features, jobs in cells(plan, classes, reference["parcel"].values, seed).items():
        jobs = {name: job for name, job in jobs.items() if (name[0], features, name[1]) not in done}
        if not jobs:
            continue
        steps = scenarios.scenario(built, features)
        scaler = scenarios.fit_scaler(steps, first["row"], first["col"], "standard")
        array = samples.materialise(scenarios.scale(steps, scaler))
        for (model, augmentation), job in jobs.items():
            cell = {"model": model, "features": features, "augmentation": augmentation, "failed": ""}
            start = time.process_time()
            try:
                predicted, further = job(array, sets)
            except (ArithmeticError, MemoryError, ValueError) as error:
                yield cell | {"failed": f"{type(error).__name__}: {error}"}
                continue
            scores = evaluation.scores(sets["test"]["crop"], predicted, classes).to_dict()
            scores |= parcels | further | {"seconds": time.process_time() - start}
            yield cell | {"scores": {name: float(value) for name, value in scores.items()}}


def cells(plan: dict, classes: list[str], parcel: np.ndarray, seed: int) -> dict[str, dict[tuple, Callable]]:
    """What is to be done for each set of features: (model, augmentation) -> a function of array and sets.

    Baselines see the centre pixel or the mean of a window; the discriminant also the mean of the parcel, which only an
    oracle of its borders has. Every network has the same batches, the same stopping rule and the same cap.
    """
    rules = {
        "discriminant": LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
        "forest": RandomForestClassifier(200, random_state=seed),
        "boosting": HistGradientBoostingClassifier(random_state=seed),
    }
    views: dict[str, Callable] = {name: window(size) for name, size in WINDOWS.items()}
    seen = [*product(rules, views), ("discriminant", "parcel")]
    views["parcel"] = of_parcels(parcel)
    found: dict[str, dict[tuple, Callable]] = {}
    for entry in plan["cells"]:
        for features in as_list(entry["features"]):
            jobs = {(f"{rule}, {view}", "none"): fit(rules[rule], views[view]) for rule, view in seen}
            found.setdefault(features, jobs)
            for treatment in as_list(entry.get("augmentation", "none")):
                for name in entry.get("networks", models.DISPLAY_NAMES):
                    job = train(name, treatment, classes, plan, seed)
                    found[features][models.DISPLAY_NAMES[name], treatment] = job
    return found


def as_list(value) -> list:
    """A value or a list of them as a list."""
    return value if isinstance(value, list) else [value]


def fit(rule, view: Callable) -> Callable:
    """A baseline: predictions of the test pixels, by one pixel of each training parcel."""

    def job(array, sets):
        first = sets["train"][sets["train"]["pick"] == 0]
        return rule.fit(view(array, first), first["crop"]).predict(view(array, sets["test"])), {}

    return job


def train(name: str, treatment: str, classes: list[str], plan: dict, seed: int) -> Callable:
    """A network: predictions of the test pixels, the epochs it took, and whether it ended before the cap."""

    def job(array, sets):
        training.prepare(seed)
        network = models.get(name)((array.shape[2], 11, 11, 3), len(classes), plan["width"])
        parcels = Parcels(array, sets["train"], classes, batch_size=plan["batch_size"], seed=seed)
        data, weights = batches.augment(treatment, parcels, seed=seed)
        validation, test = (batches.PatchDataset(array, sets[part], classes) for part in ("validation", "test"))
        options = {"epochs": plan["epochs"], "patience": plan["patience"], "seed": seed, "class_weight": weights}
        history = training.train(network, data, validation, **options, monitor="val_loss")
        predicted = np.asarray(classes)[network.predict(test, verbose=0).argmax(axis=1)]
        return predicted, {"epochs": len(history), "converged": len(history) < plan["epochs"]}

    return job


def window(size: int) -> Callable:
    """Means of a window around each pixel (n, time x 3)."""

    def view(array, table):
        patches = samples.gather(array, table["row"], table["col"], size)
        return patches.mean(axis=(2, 3)).reshape(len(table), -1)

    return view


def of_parcels(parcel: np.ndarray) -> Callable:
    """Means of the parcel of each pixel (n, time x 3); `parcel (y, x)` has its number."""

    def view(array, table):
        chosen = np.isin(parcel, table["parcel_id"])
        means = pd.DataFrame(array[chosen].reshape(chosen.sum(), -1)).groupby(parcel[chosen]).mean()
        return means.loc[table["parcel_id"]].to_numpy()

    return view


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
