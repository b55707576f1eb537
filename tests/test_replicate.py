"""A replicate on disk: its cells with their scores, what is left of an interrupted one, and what failed."""

import json

import numpy as np
import pytest

pytest.importorskip("keras")

import build
import chapters
import replicate

from cropnb import cube
from cropnb.evaluation import replicates

PLAN = {"size": 1800, "width": 0.03, "batch_size": 32, "epochs": 1, "patience": 1}
PLAN |= {"cells": [{"features": ["backscatter"], "networks": []}], "code": "1"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A replicate of the baselines alone."""
    file = tmp_path_factory.mktemp("replicates") / "3.json"
    replicate.main(3, file, PLAN)
    return file


def test_a_replicate_leaves_its_scores_and_nothing_else(made):
    assert [path.name for path in made.parent.iterdir()] == ["3.json"]
    record = json.loads(made.read_text())
    assert record["failed"] == ""
    rows = replicates.frame([record])
    assert set(rows["replicate"]) == {3}
    assert rows["model"].unique().tolist() == replicate.BASELINES
    accuracy = replicates.table(rows).sel(measure="overall_accuracy")
    assert ((accuracy > 0.3) & (accuracy <= 1)).all()
    parcels = replicates.table(rows).sel(measure=[f"{name}_parcels" for name in replicates.SETS])
    assert (parcels > 0).all()


def test_it_goes_on_where_it_stopped_unless_the_plan_has_changed(made, tmp_path, monkeypatch):
    record = json.loads(made.read_text())
    file, calls = tmp_path / "3.json", []
    one, failed = record["cells"][0], record["cells"][1] | {"failed": "a full disk"}
    (tmp_path / "3.part").write_text(json.dumps({"plan": PLAN, "cells": [one, failed]}))

    def run(number, plan, done, scratch):
        calls.append(done)
        scratch.mkdir()
        yield from record["cells"][len(done) :]

    monkeypatch.setattr(replicate, "run", run)
    replicate.main(3, file, PLAN)
    assert json.loads(file.read_text()) == record
    (tmp_path / "3.part").write_text(json.dumps({"plan": PLAN | {"code": "2"}, "cells": [one]}))
    replicate.main(3, file, PLAN)
    assert calls == [{(one["model"], "backscatter", "none")}, set()]


def test_a_failure_is_kept_with_its_reason(tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise OSError("The disk is full.")

    monkeypatch.setattr(cube, "build", fails)
    replicate.main(0, tmp_path / "0.json", PLAN)
    record = json.loads((tmp_path / "0.json").read_text())
    assert record["failed"] == "OSError: The disk is full."
    assert "failed    replicate 0: OSError: The disk is full." in capsys.readouterr().out
    assert replicates.frame([record])["failed"].tolist() == ["OSError: The disk is full."]


def test_training_shows_every_pixel_of_a_parcel_and_one_at_a_time():
    array = np.zeros((40, 40, 13, 3), "float32")
    array[..., 0, 0] = np.arange(1600).reshape(40, 40)
    rows = replicates.units(*county(), {"train": 4, "validation": 1, "test": 1}, seed=0, patch=5)
    train = rows[rows["set"] == "train"]
    parcels = replicate.Parcels(array, train, ["a", "b"], size=5, seed=1, batch_size=8)
    assert len(parcels.labels) == train["parcel_id"].nunique()
    where = train.assign(number=40 * train["row"] + train["col"]).set_index("number")["parcel_id"]
    seen = set()
    for _ in range(30):
        for i in range(len(parcels)):
            seen |= set(parcels[i][0][:, 0, 2, 2, 0].astype(int))
        parcels.on_epoch_end()
    assert seen == set(where.index)
    shown = parcels.at(np.arange(len(parcels.labels)))
    centres = shown[0][:, 0, 2, 2, 0].astype(int)
    assert where.loc[centres].tolist() == parcels.samples["parcel_id"].tolist()
    np.testing.assert_array_equal(shown[0], parcels.at(np.arange(len(parcels.labels)))[0])


def county():
    """Parcels of 8 x 8 pixels, a block each, and no missing pixel."""
    import xarray as xr

    parcel = 1 + np.add.outer(5 * (np.arange(40) // 8), np.arange(40) // 8)
    layers = {"parcel": parcel, "block": parcel, "crop": (parcel % 2).astype(np.uint8)}
    reference = xr.Dataset({name: (("y", "x"), values) for name, values in layers.items()})
    return reference.assign_attrs(classes=("a", "b")), np.ones((40, 40), bool)


def test_every_profile_says_what_its_replicates_need(root):
    for file in (root / "params/profiles").glob("*.yaml"):
        profile = chapters.yaml.safe_load(file.read_text())
        chapters.check_profile(profile, chapters.all_chapters())
        plans = chapters.replicates(profile)
        assert len(plans) == profile.get("replicates", {}).get("count", 0)
    profile["replicates"] = {"count": 2}
    with pytest.raises(chapters.ChapterError, match="replicates need batch_size, cells, count, epochs"):
        chapters.check_profile(profile, chapters.all_chapters())


def test_a_build_tries_again_what_failed_or_is_damaged(tmp_path):
    folder = tmp_path / "replicates"
    folder.mkdir()
    for name, text in (("0", '{"failed": ""}'), ("1", '{"failed": "killed"}'), ("2", '{"fai')):
        (folder / f"{name}.json").write_text(text)
    (folder / "1.part").write_text("{}")
    build.forget(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["0.json", "1.part"]
