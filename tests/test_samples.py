"""Patches are what they should be, once, whole, and the same whoever fetches them."""

import keras
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from cropnb import batches, samples

CLASSES = ("maize", "soybean", "wheat", "other")


def scaled(height=40, width=32, steps=5, seed=0):
    """A scenario whose every value is different, in chunks as the cube has them."""
    shape = (steps, height, width, 3)
    values = np.random.default_rng(seed).permutation(np.prod(shape)).reshape(shape).astype("float32")
    coords = {"y": 5000.0 - 10 * np.arange(height), "x": 300.0 + 10 * np.arange(width)}
    return xr.DataArray(values, dims=("time", "y", "x", "feature"), coords=coords).chunk(y=16, x=16)


def table(scenario, n=200, seed=1, margin=5):
    """A split of random pixels whose patches lie inside."""
    rng = np.random.default_rng(seed)
    row = rng.integers(margin, scenario.sizes["y"] - margin, n).astype("int32")
    col = rng.integers(margin, scenario.sizes["x"] - margin, n).astype("int32")
    return pd.DataFrame(
        {
            "y": scenario["y"].to_numpy()[row],
            "x": scenario["x"].to_numpy()[col],
            "row": row,
            "col": col,
            "crop": np.array(CLASSES)[np.arange(n) % 4],
            "set": np.array(["train", "train", "train", "validation", "test"])[np.arange(n) // 4 % 5],
        }
    )


def epoch(dataset):
    return [dataset[i] for i in range(len(dataset))]


def train_set(scenario, **options):
    split = table(scenario)
    array = samples.materialise(scenario)
    return batches.PatchDataset(array, split[split["set"] == "train"], CLASSES, **options)


@settings(deadline=None, max_examples=25)
@given(size=st.sampled_from([1, 3, 9, 11, 15, 21]), steps=st.integers(1, 6), seed=st.integers(0, 99))
def test_a_patch_is_the_neighbourhood_of_its_pixel(size, steps, seed):
    scenario = scaled(30, 25, steps, seed)
    rows, cols = np.random.default_rng(seed).integers(size // 2, 25 - size // 2, (2, 6))
    patches = samples.gather(samples.materialise(scenario), rows, cols, size)
    half = size // 2
    for patch, row, col in zip(patches, rows, cols, strict=True):
        around = {"y": slice(row - half, row + half + 1), "x": slice(col - half, col + half + 1)}
        np.testing.assert_array_equal(patch, scenario.isel(around).transpose("time", "y", "x", "feature"))
    assert patches.dtype == np.float32
    assert patches.flags.c_contiguous


def test_a_mapped_file_gives_the_same_samples(tmp_path):
    scenario = scaled()
    ours, theirs = (
        batches.PatchDataset(samples.materialise(scenario, path), table(scenario), CLASSES)
        for path in (None, tmp_path / "new" / "cube.npy")
    )
    assert isinstance(theirs.array, np.memmap)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["cube.npy"]
    for (a, b), (c, d) in zip(epoch(ours), epoch(theirs), strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)


def test_load_gives_every_sample_once_in_its_set_with_its_label():
    scenario = scaled()
    split = table(scenario)
    centre = scenario.transpose("y", "x", "time", "feature").to_numpy()
    for name, dataset in zip(samples.SETS, batches.load(scenario, split, CLASSES, seed=3, batch_size=17), strict=True):
        part = split[split["set"] == name]
        patches, labels = (np.concatenate(arrays) for arrays in zip(*epoch(dataset), strict=True))
        assert len(patches) == len(part)
        np.testing.assert_array_equal(labels.sum(axis=1), 1)
        seen = sorted(zip(patches[:, 0, 5, 5, 0], labels.argmax(axis=1), strict=True))
        expected = centre[part["row"], part["col"], 0, 0]
        assert seen == sorted(zip(expected, part["crop"].map(CLASSES.index), strict=True))
        if name != "train":  # predictions stand in the order of the table
            np.testing.assert_array_equal(patches[:, 0, 5, 5, 0], expected)
            pd.testing.assert_frame_equal(dataset.samples, part.reset_index(drop=True))


def test_order_follows_seed_and_epoch_alone():
    scenario = scaled()
    first, again, other = (train_set(scenario, seed=s, shuffle=True, batch_size=16) for s in (1, 1, 2))
    np.testing.assert_array_equal(first[2][0], again[2][0])
    assert not np.array_equal(first[2][0], other[2][0])
    before = first[0][0]
    first.on_epoch_end()
    assert not np.array_equal(before, first[0][0])
    again[1]  # what was fetched, in whatever order, changes nothing
    again.on_epoch_end()
    np.testing.assert_array_equal(first[0][0], again[0][0])


def test_training_is_the_same_with_any_number_of_workers():
    def weights(workers):
        keras.utils.set_random_seed(0)
        dataset = train_set(scaled() / 19200, seed=5, shuffle=True, batch_size=16, workers=workers)
        model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(4, activation="softmax")])
        model.compile(keras.optimizers.SGD(0.1), "categorical_crossentropy")
        model.fit(dataset, epochs=3, shuffle=False, verbose=0)
        return np.concatenate([array.ravel() for array in model.get_weights()])

    alone = weights(0)
    for workers in (1, 2, 4):
        np.testing.assert_array_equal(weights(workers), alone)


def test_unusable_patches_are_dropped_and_counted(caplog):
    scenario = scaled().compute()
    scenario[2, 25, 20, 1] = np.nan
    scenario[3, 10, 10, 0] = np.inf
    split = pd.DataFrame(
        # reaches up to the missing pixel, one short of it, the infinite one, then two borders, no ground truth
        {
            "row": [20, 19, 15, 4, 20, 20],
            "col": [15, 15, 5, 16, 27, 20],
            "crop": ["maize", "wheat", "maize", "maize", "soybean", None],
            "set": "test",
        }
    )
    with caplog.at_level("INFO", "cropnb.batches"):
        dataset = batches.PatchDataset(samples.materialise(scenario), split, CLASSES)
    assert dataset.dropped == {"without ground truth": 1, "leaving the region": 2, "with missing values": 2}
    assert dataset.samples["crop"].tolist() == ["wheat"]
    assert "1 of 6 test samples kept" in caplog.text


def test_a_scenario_without_three_features_is_refused():
    with pytest.raises(ValueError, match="three features"):
        samples.materialise(scaled().isel(feature=slice(2)))
    with pytest.raises(ValueError, match="three features"):
        samples.materialise(scaled().isel(time=0))


def test_a_full_disk_is_refused_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(samples.shutil, "disk_usage", lambda path: type("usage", (), {"free": 1000}))
    with pytest.raises(OSError, match=r"cube.npy needs .* GB, more than is free"):
        samples.materialise(scaled(), tmp_path / "cube.npy")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [10, 33, 0, -3])
def test_a_patch_size_that_does_not_fit_is_refused(size):
    with pytest.raises(ValueError, match="choose an odd size that fits"):
        batches.load(scaled(), table(scaled()), CLASSES, seed=0, size=size)


def test_gathering_beyond_the_region_is_refused():
    with pytest.raises(IndexError, match="leave the region of 40 x 32"):
        samples.gather(samples.materialise(scaled()), [35], [10], 11)


def test_only_training_samples_are_shuffled():
    split = table(scaled())
    with pytest.raises(ValueError, match="Only training samples are shuffled, these are of the set test"):
        batches.PatchDataset(samples.materialise(scaled()), split[split["set"] == "test"], CLASSES, shuffle=True)


def test_an_unknown_class_is_named():
    with pytest.raises(ValueError, match=r"crops \['other', 'wheat'\] beyond the classes"):
        batches.load(scaled(), table(scaled()), ("maize", "soybean"), seed=0)


def test_a_missing_set_is_named():
    split = table(scaled())
    with pytest.raises(ValueError, match="no validation samples"):
        batches.load(scaled(), split[split["set"] != "validation"], CLASSES, seed=0)


def test_a_split_of_another_grid_is_refused():
    split = table(scaled())
    with pytest.raises(ValueError, match=r"col 5 to .*, the cube 12; remake the split"):
        batches.load(scaled().isel(x=slice(12)), split, CLASSES, seed=0)
    with pytest.raises(ValueError, match="20 m off the cube along x; remake the split"):
        batches.load(scaled().assign_coords(x=320.0 + 10 * np.arange(32)), split, CLASSES, seed=0)


def test_a_scaler_that_holds_nan_is_named():
    broken = scaled().where((np.arange(3) != 1) | (np.arange(5)[:, None, None, None] != 3))
    with pytest.raises(ValueError, match="with missing values: feature 2 of time step 4 is missing everywhere"):
        batches.load(broken, table(scaled()), CLASSES, seed=0)


def test_thinning_keeps_the_mix_of_crops_and_at_least_one_of_each():
    crops = np.repeat(["maize", "soybean", "wheat"], [600, 395, 5])
    table = pd.DataFrame({"set": "train", "crop": crops})
    table = pd.concat([table, table.assign(set="test")], ignore_index=True)
    kept = samples.thin(table, train=100)
    counts = kept.groupby(["set", "crop"]).size()
    assert counts["train"].to_dict() == {"maize": 60, "soybean": 40, "wheat": 1}
    assert counts["test"].to_dict() == {"maize": 600, "soybean": 395, "wheat": 5}
    assert samples.thin(table, train=0, test=5000).equals(table)
    assert kept.index.is_monotonic_increasing
    pd.testing.assert_frame_equal(samples.thin(table, train=100), kept)
    for wrong in ({"train": -1}, {"all": 3}):
        with pytest.raises(ValueError, match="Samples to keep are"):
            samples.thin(table, **wrong)
