"""One replicate of the experiment: a county, a training sample and first weights, all new; a row a cell and measure.

Usage: python workflow/replicate.py REPLICATE FOLDER [--size M] [--network tcnn ...] [--features NAME ...]

FOLDER gets ``<replicate>.parquet``: the counts and accuracies of this replicate on its own test parcels. What it
was made from is deleted again: the same number gives it back. `--collect` joins the files there to one table.
"""

import argparse
import logging
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

from cropnb import cube, evaluation, files, regions, samples, scenarios, split, twin
from cropnb.evaluation import replicates

log = logging.getLogger("replicate")
PIXELS = {"train": 4, "validation": 1, "test": 3}  # of a parcel; an epoch of training sees one of the four
WINDOWS = {"centre": 1, "5x5": 5}


def main() -> None:
    """Run a replicate, or collect those that ran."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("replicate", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=float, default=14_000)
    parser.add_argument("--network", nargs="*", default=[])
    parser.add_argument("--features", nargs="+", default=["optical+m-chi", "optical+backscatter"])
    parser.add_argument("--width", type=float, default=0.125)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--patience", type=int, default=10)
    parser.add_argument("--spread", type=float, default=1.0)
    parser.add_argument("--collect", action="store_true")
    options = parser.parse_args()
    if options.collect:
        parts = sorted(options.folder.glob("[0-9]*.parquet"))
        with files.whole(options.folder / "replicates.parquet") as part:
            pd.concat(map(pd.read_parquet, parts), ignore_index=True).to_parquet(part, index=False)
        return
    with tempfile.TemporaryDirectory() as scratch:
        rows = run(Path(scratch), options)
    with files.whole(options.folder / f"{options.replicate}.parquet") as part:
        pd.DataFrame(rows).to_parquet(part, index=False)


def run(scratch: Path, options: argparse.Namespace) -> list[dict]:
    """Rows of a replicate: every baseline and network on every feature set."""
    seed, rows = 1000 + options.replicate, []
    region = twin.write(
        scratch / "region", size=options.size, seed=seed, block_size=1000, spread=options.spread, covariance=True
    )
    built = cube.build(region, scratch / "cube.zarr")
    classes = list(regions.read_record(region)["crop_shares"])
    reference = split.reference(region, 1000)
    table = replicates.units(reference, cube.complete(built).values, PIXELS, seed)
    for features in options.features:
        steps = scenarios.scenario(built, features)
        first = table[(table["set"] == "train") & (table["pick"] == 0)]
        scaler = scenarios.fit_scaler(steps, first["row"], first["col"], "standard")
        array = samples.materialise(scenarios.scale(steps, scaler))
        for model, predicted, seconds in [*baselines(array, table, reference, seed), *networks(array, table, options)]:
            test = table[table["set"] == "test"]
            names = np.asarray(classes)[predicted] if predicted.dtype.kind in "iu" else predicted
            scores = evaluation.scores(test["crop"], names, classes)
            counts = {"parcels": test["parcel_id"].nunique(), "training_parcels": len(first), "seconds": seconds}
            rows += [
                {"replicate": options.replicate, "model": model, "features": features, "augmentation": "none"}
                | {"measure": measure, "value": float(value)}
                for measure, value in (scores.to_dict() | counts).items()
            ]
            log.info("%s %s %.3f", features, model, scores["overall_accuracy"])
    return rows


def baselines(array: np.ndarray, table: pd.DataFrame, reference, seed: int):
    """(name, predicted crops of the test pixels, seconds) of each rule on the centre pixel, the mean of a window
    and, for the discriminant, the mean of the parcel, which only an oracle of its borders has."""
    train = table[(table["set"] == "train") & (table["pick"] == 0)]
    test = table[table["set"] == "test"]
    rules = {
        "discriminant": LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
        "forest": RandomForestClassifier(200, random_state=seed),
        "boosting": HistGradientBoostingClassifier(random_state=seed),
    }
    seen = {name: [_window(array, part, size) for part in (train, test)] for name, size in WINDOWS.items()}
    seen["parcel"] = [_parcel(array, part, reference["parcel"].values) for part in (train, test)]
    for where, (x, new) in seen.items():
        for name, rule in rules.items() if where != "parcel" else [("discriminant", rules["discriminant"])]:
            start = time.process_time()
            yield f"{name}, {where}", rule.fit(x, train["crop"]).predict(new), time.process_time() - start


def networks(array: np.ndarray, table: pd.DataFrame, options: argparse.Namespace):
    """(name, predicted crops of the test pixels, seconds) of each network; one pixel a parcel in an epoch."""
    if not options.network:
        return
    from cropnb import batches, models, training

    class OnePixel(batches.PatchDataset):
        """In every epoch one pixel of each parcel, by chance."""

        def _columns(self, rng):
            order = rng.permutation(len(self.labels))
            return (order[~self.samples["parcel_id"].iloc[order].duplicated().to_numpy()],)

    classes, seed = list(twin.CROP_SHARES), 1000 + options.replicate
    sets = dict(iter(table.groupby("set")))
    for name in options.network:
        start = time.process_time()
        training.prepare(seed)
        network = models.get(name)((array.shape[2], 11, 11, 3), len(classes), options.width)
        train = OnePixel(array, sets["train"], classes, batch_size=32, seed=seed, shuffle=True)
        validation, test = (batches.PatchDataset(array, sets[name], classes) for name in ("validation", "test"))
        training.train(network, train, validation, epochs=options.epochs, patience=options.patience, seed=seed)
        yield name, network.predict(test, verbose=0).argmax(axis=1), time.process_time() - start


def _window(array: np.ndarray, table: pd.DataFrame, size: int) -> np.ndarray:
    """Mean of a window around each pixel (n, time x 3)."""
    patches = samples.gather(array, table["row"].to_numpy(), table["col"].to_numpy(), size)
    return patches.mean(axis=(2, 3)).reshape(len(table), -1)


def _parcel(array: np.ndarray, table: pd.DataFrame, parcel: np.ndarray) -> np.ndarray:
    """Mean of the parcel of each pixel (n, time x 3)."""
    flat, ids = array.reshape(-1, array.shape[2] * 3), parcel.ravel()
    chosen = np.flatnonzero(np.isin(ids, table["parcel_id"]) & np.isfinite(flat).all(axis=1))
    means = pd.DataFrame(flat[chosen]).groupby(ids[chosen]).mean()
    return means.loc[table["parcel_id"]].to_numpy()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
