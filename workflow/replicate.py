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
RULES: dict[str, Callable] = {
    "discriminant": lambda seed: LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
    "forest": lambda seed: RandomForestClassifier(200, random_state=seed),
    "boosting": lambda seed: HistGradientBoostingClassifier(random_state=seed),
}
BASELINES = [*map(", ".join, product(RULES, WINDOWS)), "discriminant, parcel"]


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
    seed, region, built = 1000 + number, scratch / "region", scratch / "cube.zarr"
    if not built.exists():
        twin.write(region, size=plan["size"], seed=seed, covariance=True)
        cube.build(region, built)
    reference = split.reference(region, min(1000, plan["size"] / 4))
    table = replicates.units(reference, cube.complete(built).values, PIXELS, seed)
    classes, parcels = list(regions.read_record(region)["crop_shares"]), table.groupby("set")["parcel_id"].nunique()
    test, first = table[table["set"] == "test"], table[(table["set"] == "train") & (table["pick"] == 0)]
    for features, wanted in cells(plan).items():
        left = [(model, treatment) for model, treatment in wanted if (model, features, treatment) not in done]
        if not left:
            continue
        steps = scenarios.scenario(built, features)
        scaler = scenarios.fit_scaler(steps, first["row"], first["col"], "standard")
        array = samples.materialise(scenarios.scale(steps, scaler))
        for model, treatment in left:
            cell, start = {"model": model, "features": features, "augmentation": treatment}, time.process_time()
            try:
                if model in BASELINES:
                    rule, view = model.split(", ")
                    x, new = (seen(view, array, part, reference["parcel"].values) for part in (first, test))
                    predicted, course = RULES[rule](seed).fit(x, first["crop"]).predict(new), {}
                else:
                    predicted, course = train(model, treatment, array, table, classes, plan, seed)
            except (ArithmeticError, MemoryError, ValueError) as error:
                yield cell | {"failed": f"{type(error).__name__}: {error}"}
                continue
            scores = evaluation.scores(test["crop"], predicted, classes).to_dict() | course
            scores |= parcels.add_suffix("_parcels").to_dict() | {"seconds": time.process_time() - start}
            yield cell | {"failed": "", "scores": {name: float(value) for name, value in scores.items()}}


def cells(plan: dict) -> dict[str, list[tuple[str, str]]]:
    """Models and treatments for each set of features: every baseline, and what the plan lists of networks."""
    found: dict[str, list[tuple[str, str]]] = {}
    for entry in plan["cells"]:
        given = (entry["features"], entry.get("augmentation", "none"))
        lists = [value if isinstance(value, list) else [value] for value in given]
        for features, treatment in product(*lists):
            networks = [models.DISPLAY_NAMES[name] for name in entry.get("networks", models.DISPLAY_NAMES)]
            found.setdefault(features, [(name, "none") for name in BASELINES])
            found[features] += [(name, treatment) for name in networks]
    return found


def seen(view: str, array: np.ndarray, table: pd.DataFrame, parcel: np.ndarray) -> np.ndarray:
    """What a baseline sees of each pixel (n, time x 3): itself or the mean of a window, or that of its parcel, which
    only an oracle of the borders in `parcel (y, x)` has."""
    if view in WINDOWS:
        patches = samples.gather(array, table["row"], table["col"], WINDOWS[view])
        return patches.mean(axis=(2, 3)).reshape(len(table), -1)
    chosen = np.isin(parcel, table["parcel_id"])
    means = pd.DataFrame(array[chosen].reshape(chosen.sum(), -1)).groupby(parcel[chosen]).mean()
    return means.loc[table["parcel_id"]].to_numpy()


def train(
    title: str, treatment: str, array: np.ndarray, table: pd.DataFrame, classes: list[str], plan: dict, seed: int
) -> tuple[np.ndarray, dict]:
    """Predicted crops of the test pixels, the epochs a network took, and whether it ended before the common cap."""
    training.prepare(seed)
    name = next(key for key, shown in models.DISPLAY_NAMES.items() if shown == title)
    network, sets = models.get(name)((array.shape[2], 11, 11, 3), len(classes), plan["width"]), table.groupby("set")
    parcels = Parcels(array, sets.get_group("train"), classes, batch_size=plan["batch_size"], seed=seed)
    data, weights = batches.augment(treatment, parcels, seed=seed)
    validation, test = (batches.PatchDataset(array, sets.get_group(part), classes) for part in ("validation", "test"))
    options = {"epochs": plan["epochs"], "patience": plan["patience"], "seed": seed, "class_weight": weights}
    history = training.train(network, data, validation, **options, monitor="val_loss")
    predicted = np.asarray(classes)[network.predict(test, verbose=0).argmax(axis=1)]
    return predicted, {"epochs": len(history), "converged": len(history) < plan["epochs"]}


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
