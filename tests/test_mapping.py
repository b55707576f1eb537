"""Maps are whole, resumable, the same however they are tiled; dense networks are the patch networks."""

import json
import shutil

import keras
import numpy as np
import pandas as pd
import pytest
import rasterio
import rasterio.shutil
import rioxarray
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cropnb import acquisitions, mapping, models, parcels, plotting, runs, scenarios
from cropnb.models.dense import DenseNetwork

# Keras reads TensorFlow variables in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
HEIGHT, WIDTH, DATES, PATCH = 40, 50, 6, 5
CLASSES = ["maize", "soybean", "wheat", "sugar <beet>"]
MISSING, EMPTY = (20, 31), (slice(0, 16), slice(32, 48))  # a pixel, and a whole tile of 16


def write_cube(path, sensors=("sar", "optical"), dates=DATES):
    """A cube as `cube.build` writes it, of smooth random values with gaps."""
    rng = np.random.default_rng(1)
    days = {"sar": pd.date_range("2017-05-01", periods=dates - 2, freq="12D"), "optical": ["2017-06-10", "2017-07-20"]}
    for sensor in sensors:
        time = pd.DatetimeIndex(days[sensor])
        values = {
            n: (("time", "y", "x"), rng.random((len(time), HEIGHT, WIDTH), "float32"))
            for n in acquisitions.FEATURES[sensor]
        }
        if sensor == "sar":
            values["ps"][1][0, *MISSING] = np.nan
            values["pd"][1][:, *EMPTY] = np.nan
        coords = {
            "time": time,
            "y": 5338320 - 10 * (np.arange(HEIGHT) + 0.5),
            "x": 333380 + 10 * (np.arange(WIDTH) + 0.5),
        }
        group = xr.Dataset(values, coords, {"simulated": 1}).chunk(y=32, x=32)
        group = group.rio.write_crs("EPSG:32652").rio.write_coordinate_system()
        group.to_zarr(path, group=sensor, mode="w", consolidated=False)
    return path


def write_run(folder, network, scaler, features="optical+m-chi", **record):
    record = {"classes": CLASSES, "patch": PATCH} | record
    return runs.write(
        folder, model=network.name, features=features, augmentation="none", seed=1, width=0.1, network=network,
        history=pd.DataFrame({"loss": [1.0]}, pd.RangeIndex(1, 2, name="epoch")), metrics={}, scaler=scaler, seconds=1,
        predictions=pd.DataFrame({"y": [1.0]}), **record,
    )  # fmt: skip


def build(name, dates=DATES, patch=PATCH, width=0.1, **readings):
    """A network as it starts, but with random biases, which start at zero."""
    keras.utils.set_random_seed(2)
    network = models.get(name)((dates, patch, patch, 3), len(CLASSES), width, **readings)
    rng = np.random.default_rng(2)
    weights = network.get_weights()
    network.set_weights([w + 0.5 * rng.random(w.shape, "float32") if w.ndim == 1 else w for w in weights])
    return network


@pytest.fixture(scope="module")
def cube_path(tmp_path_factory):
    return write_cube(tmp_path_factory.mktemp("cube") / "cube.zarr")


@pytest.fixture(scope="module")
def scaler(cube_path):
    return scenarios.fit_scaler(scenarios.scenario(cube_path, "optical+m-chi"), range(20), range(20))


@pytest.fixture(scope="module")
def quick(tmp_path_factory, scaler):
    return write_run(tmp_path_factory.mktemp("runs"), build("cnn3d"), scaler)


@pytest.fixture(scope="module", params=[True, False], ids=["dense", "patch by patch"])
def maps(request, cube_path, scaler, tmp_path_factory):
    """One tile, and tiles of 16 pixels, which do not divide the region, of a run that predicts several classes."""
    network, folder = build("conv3dstar"), tmp_path_factory.mktemp("maps")
    for layer in network.layers[-5:]:  # strong dense layers, and each class as likely on the average
        layer.set_weights([3 * w for w in layer.get_weights()])
    steps = scenarios.scale(scenarios.scenario(cube_path, "optical+m-chi"), scaler)[:, 24:, :24].values
    around = np.pad(steps, ((0, 0), (20, 20), (20, 20), (0, 0)))
    predicted = DenseNetwork(network)(around[None])[0] if request.param else patchwise(network, steps)
    kernel, bias = network.get_layer("crop").get_weights()
    network.get_layer("crop").set_weights([kernel, bias - np.log(np.mean(predicted, axis=(0, 1)))])
    run = write_run(folder / "runs", network, scaler)
    return [mapping.write(run, cube_path, folder / str(n), dense=request.param, tile=n) for n in (64, 16)]


def bands(path):
    with rasterio.open(path) as file:
        return file.read()


def whole_patches():
    valid = np.zeros((HEIGHT, WIDTH), bool)
    half = PATCH // 2
    valid[half : HEIGHT - half, half : WIDTH - half] = True
    valid[MISSING[0] - half : MISSING[0] + half + 1, MISSING[1] - half : MISSING[1] + half + 1] = False
    valid[: EMPTY[0].stop + half, EMPTY[1].start - half : EMPTY[1].stop + half] = False
    return valid


def patchwise(network, tile):
    """Predictions of every whole patch of a tile (time, y, x, feature), one by one."""
    side = network.input_shape[2]
    patches = np.lib.stride_tricks.sliding_window_view(tile, (side, side), axis=(1, 2))
    patches = patches.transpose(1, 2, 0, 4, 5, 3)
    predicted = network.predict_on_batch(patches.reshape(-1, *patches.shape[2:]).copy())
    return np.reshape(predicted, (*patches.shape[:2], -1))


def random_tile(dates, height, width):
    return np.random.default_rng(3).random((dates, height, width, 3), "float32")


# Dense networks


@pytest.mark.parametrize("name", ["tcnn", "cnn3d2d"])
def test_dense_equals_patch_by_patch_where_nothing_is_padded(name):
    network, tile = build(name, dates=13, patch=9), random_tile(13, 17, 15)
    result = DenseNetwork(network)(tile[None])
    assert result.shape == (1, 9, 7, len(CLASSES))
    np.testing.assert_allclose(result[0], patchwise(network, tile), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "readings"),
    [
        ("cnn3d", {}),
        ("cnn3d", {"pool_padding": "valid", "dense_units": (7,)}),
        ("convstar", {}),
        ("convstar", {"head": "average"}),
        ("convstar", {"head": "flatten"}),
        ("conv3dstar", {}),
        ("conv3dstar", {"final_state": "last_date", "merge": "sum", "conv2d_padding": "same"}),
    ],
)
def test_a_tile_of_one_patch_gives_the_patch(name, readings):
    """There the padding is the patch's own, so every layer has to agree."""
    network, patch = build(name, dates=3, patch=11, **readings), random_tile(3, 11, 11)
    whole = DenseNetwork(network)
    whole.halo, whole.margin = whole.patch // 2, 0  # as if nothing lay around the patch
    result = whole(patch[None])
    assert result.shape == (1, 1, 1, len(CLASSES))
    np.testing.assert_allclose(result[0, 0], network(patch[None]), atol=1e-5)


@pytest.mark.parametrize(("name", "last"), [("cnn3d", "pool_3"), ("convstar", "convstar_3"), ("conv3dstar", "relu_3")])
def test_padded_layers_see_the_neighbours_at_the_right_place(name, last):
    """Against the patch network's own layers, run on a large patch far from its border, cut out, then its own head."""
    network, large = (build(name, dates=3, patch=side) for side in (11, 49))
    for layer in network.layers[: network.layers.index(network.get_layer(last)) + 1]:
        large.get_layer(layer.name).set_weights(layer.get_weights())
    features = keras.Model(large.input, large.get_layer(last).output)
    head = keras.Model(network.get_layer(last).output, network.output)
    step, side = (8, 2) if name == "cnn3d" else (1, 11)
    tile, whole = random_tile(3, 60, 60), DenseNetwork(network)
    result, start = np.asarray(whole(tile[None]))[0], whole.halo - whole.patch // 2
    for row, column in ((20, 20), (21, 26), (27, 23)):
        seen = features(tile[None, :, row - 16 : row + 33, column - 16 : column + 33])
        first = 16 // step
        expected = head(seen[..., first : first + side, first : first + side, :])
        np.testing.assert_allclose(result[row - start, column - start], expected[0], atol=1e-5)


@pytest.mark.parametrize("name", models.DISPLAY_NAMES)
def test_nothing_beyond_the_halo_is_seen(name):
    network = build(name, dates=13, patch=9)
    whole = DenseNetwork(network)
    side = 2 * whole.halo + 1
    tile = random_tile(13, side + 8, side + 8)
    expected = np.asarray(whole(tile[None]))
    assert expected.shape == (1, 9, 9, len(CLASSES))
    alone = np.asarray(whole(tile[None, :, 4:-4, 4:-4]))
    np.testing.assert_allclose(alone[0, 0, 0], expected[0, 4, 4], atol=1e-5)


def test_what_cannot_be_dense_is_named():
    with pytest.raises(
        ValueError, match=r"'pool_1' .* cannot be evaluated on whole tiles; map this run patch by patch"
    ):
        DenseNetwork(build("cnn3d", pool="average"))
    a = keras.Input((3, 5, 5, 3))
    branched = keras.Model(a, keras.layers.Add()([keras.layers.ReLU()(a), a]))
    with pytest.raises(ValueError, match="is no chain of layers"):
        DenseNetwork(branched)


# Maps


def test_a_tiled_map_equals_the_untiled_one(maps):
    whole, tiled = maps
    np.testing.assert_array_equal(bands(whole / "crop.tif"), bands(tiled / "crop.tif"))
    apart = bands(whole / "probability.tif").astype(int) - bands(tiled / "probability.tif")
    assert abs(apart).max() <= 1  # one step, where rounding falls to either side


def test_classes_where_the_patch_is_whole_and_nowhere_else(maps):
    crop, probability = bands(maps[1] / "crop.tif")[0], bands(maps[1] / "probability.tif")
    valid = whole_patches()
    np.testing.assert_array_equal(crop != mapping.NO_DATA, valid)
    assert (probability[:, ~valid] == mapping.NO_DATA).all()
    assert (abs(probability[:, valid].sum(axis=0, dtype=int) - mapping.LEVELS) <= 2).all()
    assert len(np.unique(crop[valid])) > 1  # else equal maps would prove little
    best = np.take_along_axis(probability[:, valid], crop[valid][None].astype(int), axis=0)
    assert (best >= probability[:, valid]).all()


def test_patch_by_patch_is_what_the_network_says_of_each_patch(quick, cube_path, scaler, tmp_path):
    path = mapping.write(quick, cube_path, tmp_path / "map", dense=False, tile=30)
    steps = scenarios.scale(scenarios.scenario(cube_path, "optical+m-chi"), scaler).values
    expected, half, valid = patchwise(runs.load_model(quick), steps), PATCH // 2, whole_patches()
    probability = np.moveaxis(bands(path / "probability.tif"), 0, -1)[valid] / mapping.LEVELS
    np.testing.assert_allclose(probability, expected[valid[half:-half, half:-half]], atol=0.51 / mapping.LEVELS)


def test_files_are_georeferenced_coloured_and_named(maps, cube_path, tmp_path):
    path = maps[1]
    assert sorted(file.name for file in path.iterdir()) == sorted(mapping.FILES)
    steps = scenarios.scenario(cube_path, "optical+m-chi")
    with rioxarray.open_rasterio(path / "crop.tif", masked=True) as crop:
        assert crop.rio.crs == steps.rio.crs
        for axis in ("y", "x"):
            np.testing.assert_allclose(crop[axis], steps[axis])
        np.testing.assert_array_equal(crop.notnull()[0], whole_patches())
    with rasterio.open(path / "crop.tif") as file:
        colours = ["#{:02X}{:02X}{:02X}".format(*file.colormap(1)[code]) for code in range(len(CLASSES))]
        assert colours == list(plotting.palette(CLASSES).values())
        assert json.loads(file.tags()["classes"]) == CLASSES
        assert file.tags()["simulated"] == "True"
        assert (file.nodata, file.dtypes, file.count) == (255, ("uint8",), 1)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    with rasterio.open(path / "probability.tif") as file:
        assert (list(file.descriptions), set(file.scales), file.nodata) == (CLASSES, {1 / 250}, 255)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    rasterio.shutil.copy(path / "crop.tif", tmp_path / "crop.vrt", driver="VRT")  # where GDAL shows what it read
    assert "<Category>sugar &lt;beet&gt;</Category>" in (tmp_path / "crop.vrt").read_text()


def test_large_maps_have_overviews(tmp_path, quick):
    """Classes are never mixed, probabilities are averaged."""
    grid = {"y": 10.0 * np.arange(600, 0, -1), "x": 10.0 * np.arange(520)}
    steps = xr.DataArray(
        np.zeros((1, 600, 520)), {"time": [np.datetime64("2017-05-01", "ns")], **grid}, ("time", "y", "x")
    )
    steps = steps.rio.write_crs("EPSG:32652").assign_attrs(simulated=False)
    values = np.zeros((len(CLASSES) + 1, 600, 520), "uint8")
    values[0, ::2], values[1, ::2] = 3, 100
    (tmp_path / "tiles").mkdir()
    np.save(tmp_path / "tiles" / "0-0.npy", values)
    mapping._assemble(tmp_path, tmp_path / "map", steps, runs.read(quick), True, mapping._tiles(600, 520, 600))
    for name, number, levels in (("crop.tif", 0, {0, 3}), ("probability.tif", 1, {50})):
        with rasterio.open(tmp_path / "map" / name, overview_level=0) as file:
            assert file.shape == (300, 260)
            assert set(np.unique(file.read(1))) <= levels, number
        with rasterio.open(tmp_path / "map" / name) as file:
            assert file.overviews(1)[0] == 2


def test_stac_item(maps):
    item = json.loads((maps[0] / "item.json").read_text())
    assert (item["type"], item["stac_version"]) == ("Feature", "1.0.0")
    west, south, east, north = item["bbox"]
    assert 126 < west < east < 127 and 48 < south < north < 49  # noqa: PT018
    corners = np.array(item["geometry"]["coordinates"][0])
    np.testing.assert_allclose([*corners.min(axis=0), *corners.max(axis=0)], item["bbox"], atol=1e-6)
    about = item["properties"]
    assert (about["start_datetime"], about["end_datetime"]) == ("2017-05-01T00:00:00Z", "2017-07-20T00:00:00Z")
    assert (about["proj:epsg"], about["proj:shape"], about["simulated"]) == (32652, [HEIGHT, WIDTH], True)
    legend = item["assets"]["crop"]["classification:classes"]
    assert [(each["value"], each["title"]) for each in legend] == [*enumerate(CLASSES), (255, "nodata")]
    assert all(each["name"].replace("_", "").isalnum() for each in legend)
    for asset in item["assets"].values():
        assert (maps[0] / asset["href"]).is_file()


@pytest.mark.parametrize("is_dense", [True, False])
def test_an_interrupted_map_goes_on_and_ends_in_the_same_bytes(quick, cube_path, tmp_path, monkeypatch, is_dense):
    expected = mapping.write(quick, cube_path, tmp_path / "expected", dense=is_dense, tile=16)
    predict, done = mapping._Predictor.__call__, []

    def counted(self, *window):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(window)
        return predict(self, *window)

    monkeypatch.setattr(mapping._Predictor, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        mapping.write(quick, cube_path, tmp_path / "map", dense=is_dense, tile=16)
    assert [each.name[:5] for each in tmp_path.iterdir() if each != expected] == [".map-"]
    done.insert(0, None)
    path = mapping.write(quick, cube_path, tmp_path / "map", dense=is_dense, tile=16)
    assert len(done) == 1 + 8  # of 12 tiles, four have no whole patch
    assert sorted(each.name for each in tmp_path.iterdir()) == ["expected", "map"]
    for name in mapping.FILES:
        assert (path / name).read_bytes() == (expected / name).read_bytes()


def test_tiles_of_another_cube_are_not_reused(quick, cube_path, tmp_path, monkeypatch):
    path = shutil.copytree(cube_path, tmp_path / "cube.zarr")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(mapping, "_assemble", stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            mapping.write(quick, path, tmp_path / "map", tile=64)
        shutil.rmtree(path)
        write_cube(path)
    assert len(list(tmp_path.glob(".map-*"))) == 2


def test_a_map_is_replaced_when_the_new_one_is_whole(quick, cube_path, tmp_path, monkeypatch):
    path = mapping.write(quick, cube_path, tmp_path / "map", tile=64)
    before = (path / "item.json").read_bytes()

    def full(*_, **__):
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(rasterio.shutil, "copy", full)
        with pytest.raises(OSError, match="disk full"):
            mapping.write(quick, cube_path, path, tile=50)
    assert (path / "item.json").read_bytes() == before
    mapping.write(quick, cube_path, path, tile=20)
    assert [each.name for each in tmp_path.iterdir()] == ["map"]


def write_cropland(path, values, shift=0.0):
    transform = rasterio.Affine(10, 0, 333380 + shift, 0, -10, 5338320)
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": "EPSG:32652", "transform": transform}
    with rasterio.open(path, "w", height=values.shape[0], width=values.shape[1], **profile) as file:
        file.write(values.astype("uint8"), 1)
    return path


def test_only_cropland_is_mapped(quick, cube_path, tmp_path):
    cropland = np.random.default_rng(1).random((HEIGHT, WIDTH)) < 0.5
    cropland[:, :16] = False  # whole tiles
    raster = write_cropland(tmp_path / "cropland.tif", cropland)
    path = mapping.write(quick, cube_path, tmp_path / "map", cropland=raster, tile=16)
    crop = bands(path / "crop.tif")[0]
    np.testing.assert_array_equal(crop != 255, whole_patches() & cropland)


def test_a_map_without_any_class_is_refused(quick, tmp_path):
    """As of a cube, made by hand, with a date that has no value."""
    path = write_cube(tmp_path / "cube.zarr")
    zarr.open_group(path, path="sar")["ps"][2] = np.nan
    with pytest.raises(ValueError, match=r"No pixel of the 6 dates, .* the map would be empty: leave out the date"):
        mapping.write(quick, path, tmp_path / "map")
    assert not (tmp_path / "map").exists()


def test_an_active_dask_client_reads_the_cube(quick, cube_path, tmp_path):
    from distributed import Client

    expected = mapping.write(quick, cube_path, tmp_path / "alone", tile=64)
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        path = mapping.write(quick, cube_path, tmp_path / "shared", tile=64)
        assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.transition_counter)
    assert (path / "crop.tif").read_bytes() == (expected / "crop.tif").read_bytes()


# What cannot be mapped


def test_bad_input_is_named(quick, cube_path, scaler, tmp_path):
    def write(run=quick, cube=cube_path, folder=tmp_path / "map", **options):
        return mapping.write(run, cube, folder, **options)

    with pytest.raises(FileNotFoundError, match="is no whole run"):
        write(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="build the cube first"):
        write(cube=tmp_path / "none.zarr")
    with pytest.raises(ValueError, match=r"cannot give .*, the region has no optical acquisitions"):
        write(cube=write_cube(tmp_path / "sar.zarr", ["sar"]))
    with pytest.raises(ValueError, match="train it on this cube's dates"):
        write(cube=write_cube(tmp_path / "dates.zarr", dates=DATES + 1))
    network = build("tcnn")
    with pytest.raises(ValueError, match=r"record and .* say \(6, 7, 7, 3\)"):
        write(write_run(tmp_path / "runs", network, scaler, patch=7))
    with pytest.raises(ValueError, match=r"scaler was fitted to .*'ps', 'pd', 'pv'"):
        write(write_run(tmp_path / "runs", network, scaler, features="optical+backscatter"))
    large = write_run(tmp_path / "runs", build("tcnn", patch=41), scaler, patch=41)
    with pytest.raises(ValueError, match="smaller than a patch of 41 x 41"):
        write(large)
    with pytest.raises(ValueError, match="A tile of 0 pixels"):
        write(tile=0)
    with pytest.raises(FileNotFoundError, match="cropland raster first"):
        write(cropland=tmp_path / "none.tif")
    with pytest.raises(ValueError, match="resample it to the cube's grid"):
        write(cropland=write_cropland(tmp_path / "shifted.tif", np.ones((HEIGHT, WIDTH)), shift=5))
    with pytest.raises(ValueError, match="resample it to the cube's grid"):
        write(cropland=write_cropland(tmp_path / "small.tif", np.ones((HEIGHT, WIDTH - 1))))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ValueError, match=r"holds thesis\.txt, which is no part of a map"):
        write(folder=tmp_path / "mine")
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".")]


def test_a_full_disk_is_told_before_anything_is_computed(quick, cube_path, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(OSError, match="more than is free on its disk"):
        mapping.write(quick, cube_path, tmp_path / "map")


# What may be done to a map


@settings(deadline=None, max_examples=25)
@given(
    arrays("uint8", (6, 7), elements=st.sampled_from([0, 1, 2, 255])),
    arrays("int32", (6, 7), elements=st.integers(0, 4)),
)
def test_majority_is_the_commonest_class_of_each_parcel(crop, parcel):
    voted = mapping.majority(crop, parcel)
    assert voted.dtype == crop.dtype
    np.testing.assert_array_equal(voted == 255, crop == 255)
    np.testing.assert_array_equal(voted[parcel == parcels.NO_PARCEL], crop[parcel == parcels.NO_PARCEL])
    for number in range(1, 5):
        inside = (parcel == number) & (crop != 255)
        if inside.any():
            assert set(voted[inside]) == {np.bincount(crop[inside]).argmax()}


def test_minimum_unit_gives_small_patches_to_their_surroundings():
    crop = np.ones((9, 12), "uint8")
    crop[1, 1:3] = 2  # two pixels
    crop[4:7, 4:7] = 0  # nine
    crop[:, 9:] = 255
    crop[4, 10] = 3  # one, with nothing around
    sieved = mapping.minimum_unit(crop, 3)
    expected = crop.copy()
    expected[1, 1:3] = 1
    np.testing.assert_array_equal(sieved, expected)
    np.testing.assert_array_equal(mapping.minimum_unit(crop, 1), crop)
    expected[4:7, 4:7] = 1
    np.testing.assert_array_equal(mapping.minimum_unit(crop, 10), expected)


def test_bad_postprocessing_is_named():
    with pytest.raises(ValueError, match="give one grid"):
        mapping.majority(np.zeros((2, 2), "uint8"), np.zeros((2, 3), "int32"))
    with pytest.raises(ValueError, match="give a number from 1 on"):
        mapping.minimum_unit(np.zeros((2, 2), "uint8"), 0)


@pytest.mark.parametrize(("name", "halo"), [("convstar", 16), ("conv3dstar", 23)])
def test_the_halo_of_recurrent_layers_is_theirs_and_four_steps_of_their_states(name, halo):
    """Three layers of kernel 3 draw one pixel from their input and four from their states each: fifteen, and what
    other layers and the patch draw."""
    assert DenseNetwork(build(name, dates=3, patch=11)).halo == halo
