"""From a run and a cube to a crop map with its probabilities, tile by tile, and what may be done to a map.

Memory follows the tile, never the area. A finished tile is kept on disk until the map is whole, so a map that was
interrupted goes on where it stopped.
"""

import hashlib
import itertools
import json
import logging
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import numpy as np
import odc.geo.xr  # noqa: F401  (the .odc accessor)
import pandas as pd
import rasterio
import rasterio.shutil
import xarray as xr
from odc.geo.geobox import GeoBox
from rasterio.features import sieve
from rasterio.warp import transform_bounds, transform_geom
from rasterio.windows import Window
from scipy.ndimage import minimum_filter
from tqdm import tqdm

from cropnb import colours, cube, files, project, rasters, runs, samples, scenarios
from cropnb.parcels import NO_PARCEL

if TYPE_CHECKING:  # who reads a map needs no Keras, which takes seconds
    import keras

log = logging.getLogger(__name__)

NO_DATA = 255
LEVELS = 250  # of a probability between 0 and 1
BATCH = 128  # patches
FILES = ("crop.tif", "crop.tif.aux.xml", "probability.tif", "item.json")


def write(
    run_path: str | Path,
    cube_path: str | Path,
    folder: str | Path,
    *,
    cropland: str | Path | None = None,
    dense: bool = True,
    tile: int = 128,
) -> Path:
    """Map a whole region with the network of a run and return `folder`, which is written whole or not at all.

    It holds cloud-optimised GeoTIFFs ``crop.tif`` (class number in the order of the run's classes, 255 without)
    and ``probability.tif`` (a band a class, in steps of 1/250, 255 without), and ``item.json``, a STAC item. A
    pixel has no class outside cropland and where its patch has missing values or leaves the region. An active
    dask client reads the cube; the network predicts in this process, on the GPU if Keras sees one.

    Parameters
    ----------
    run_path, cube_path : a run directory of `runs.write` and a cube of `cube.build`.
    folder : of the map; an earlier map in it is replaced.
    cropland : raster on the cube's grid, 1 where the map shall have a class.
    dense : evaluate whole tiles (`models.dense`), else patch by patch as in the paper.
    tile : side of a tile, pixels.

    Raises
    ------
    FileNotFoundError
        For a run, cube or cropland raster that is missing.
    ValueError
        For a cube that lacks the run's sensors or dates, a scaler of other channels, a network of other patches
        or classes, a cropland raster on another grid, a folder with other files, and where no pixel can have a class.
    OSError
        When the disk has no room for the map.
    """
    run, folder = runs.read(run_path), Path(folder)
    steps, network = _inputs(run, cube_path)
    if tile < 1:
        raise ValueError(f"A tile of {tile} pixels has no pixel; give a side from 1 on.")
    if folder.exists() and (others := sorted({path.name for path in folder.iterdir()} - set(FILES))):
        raise ValueError(f"{folder} holds {others[0]}, which is no part of a map; give a folder of its own.")
    if cropland is not None:
        _check_grid(cropland, steps)
    height, width = steps.odc.geobox.shape
    tile = min(tile, max(height, width))
    needed = 3 * height * width * (len(run.record["classes"]) + 1)  # as tiles, as one raster and compressed
    predictor = _Predictor(network, dense, tile)
    fingerprint = _fingerprint(run, cube_path, cropland, bool(dense), tile, predictor.halo)
    work = folder.with_name(f".{folder.name}-{fingerprint}")
    (work / "tiles").mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(work).free < needed:
        raise OSError(f"The map in {folder} needs {needed / 1e9:.1f} GB, more than is free on its disk.")
    tiles = _tiles(height, width, tile)
    for name in tqdm(tiles, desc=folder.name, unit="tile", file=sys.stderr, disable=not project.watched()):
        if not (path := work / "tiles" / name).is_file():
            with files.whole(path) as part:
                np.save(part, _map_tile(tiles[name], steps, cropland, predictor))
    with files.whole(folder) as part:
        _assemble(work, part, steps, run, dense, tiles)
    for leftover in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    log.info("map of %d x %d pixels in %s", height, width, folder)
    return folder


def majority(crop: np.ndarray, parcels: np.ndarray) -> np.ndarray:
    """Parcel majority vote: every pixel takes the class that most pixels of its parcel have.

    `crop` (y, x) uint8 with 255 where there is no class, which neither votes nor changes; `parcels` (y, x) whole
    numbers as of `cropnb.parcels.rasterise`, whose pixels of no parcel keep their class. Of classes with as many
    votes the first one wins. Raises ValueError where the rasters differ in shape.
    """
    if crop.shape != parcels.shape:
        raise ValueError(f"The map has {crop.shape} pixels and the parcels {parcels.shape}; give one grid.")
    voting = (crop != NO_DATA) & (parcels != NO_PARCEL)
    if not voting.any():
        return crop.copy()
    _, parcel = np.unique(parcels[voting], return_inverse=True)
    count = int(crop[voting].max()) + 1
    votes = np.bincount(parcel * count + crop[voting], minlength=(parcel.max() + 1) * count)
    result = crop.copy()
    result[voting] = votes.reshape(-1, count).argmax(axis=1)[parcel]
    return result


def minimum_unit(crop: np.ndarray, pixels: int) -> np.ndarray:
    """Minimum mapping unit: patches of fewer than `pixels` pixels take the class of their largest neighbour.

    `crop` (y, x) uint8; pixels are connected by their sides. 255 stays 255 and is nobody's neighbour, so a small
    patch with nothing else around it stays. Raises ValueError for less than one pixel.
    """
    if pixels < 1:
        raise ValueError(f"The minimum mapping unit is {pixels} pixels; give a number from 1 on.")
    valid = crop != NO_DATA
    return np.where(valid, sieve(crop, pixels, mask=valid, connectivity=4), crop)


def _inputs(run: runs.Run, cube_path: str | Path) -> tuple[xr.DataArray, "keras.Model"]:
    """The scaled scenario (time, y, x, feature) and the network of a run, which fit each other."""
    simulated = bool(cube.open_cube(cube_path).attrs.get("simulated"))
    steps = scenarios.scale(scenarios.scenario(cube_path, run.record["features"]), run.scaler).assign_attrs(
        simulated=simulated
    )
    network = runs.load_model(run.path)
    patch, classes = run.record["patch"], run.record["classes"]
    shapes = (steps.sizes["time"], patch, patch, 3), (len(classes),)
    if (network.input_shape[1:], network.output_shape[1:]) != shapes:
        raise ValueError(
            f"The network in {run.path} turns {network.input_shape[1:]} into {network.output_shape[1:]}, where its "
            f"record and {cube_path} say {shapes[0]} into {shapes[1]}; train it on this cube's dates."
        )
    if patch > min(steps.sizes["y"], steps.sizes["x"]):
        raise ValueError(f"{cube_path} is smaller than a patch of {patch} x {patch} pixels; map a larger region.")
    return steps, network


def _check_grid(path: str | Path, steps: xr.DataArray) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing: write the cropland raster first.")
    with rasterio.open(path) as file:
        theirs, ours = GeoBox.from_rio(file), steps.odc.geobox
    near = np.allclose(tuple(theirs.affine), tuple(ours.affine), rtol=0, atol=0.01)
    if not near or theirs.shape != ours.shape or theirs.crs != ours.crs:
        texts = (f"{g.height} x {g.width} pixels within {tuple(g.boundingbox)} in {g.crs}" for g in (theirs, ours))
        raise ValueError("{} has {}, the cube {}; resample it to the cube's grid.".format(path, *texts))


def _fingerprint(run: runs.Run, cube_path: str | Path, cropland: str | Path | None, *options: Any) -> str:
    """Of all that a tile depends on; a rebuilt cube has a new time even where its description is the same."""
    import keras

    digest = hashlib.sha256()
    for path in (run.path / "model.keras", cropland):
        digest.update(Path(path).read_bytes() if path else b"")
    described = [path for depth in ("", "*/", "*/*/") for path in sorted(Path(cube_path).glob(f"{depth}zarr.json"))]
    state = [(str(path.resolve()), path.read_text(), path.stat().st_mtime_ns) for path in described]
    code = keras.__version__, keras.backend.backend(), project.commit()
    digest.update(json.dumps((run.record, run.scaler, state, code, options)).encode())
    return digest.hexdigest()[:16]


def _tiles(height: int, width: int, side: int) -> dict[str, Window]:
    """The tiles of a map, by the names of their files."""
    corners = itertools.product(range(0, height, side), range(0, width, side))
    return {f"{y}-{x}.npy": Window(x, y, min(side, width - x), min(side, height - y)) for y, x in corners}


class _Predictor:
    """A network over windows (y, x, time, feature) that are `halo` pixels wider than a tile of `side` pixels."""

    def __init__(self, network: "keras.Model", is_dense: bool, side: int):
        from cropnb import training
        from cropnb.models.dense import DenseNetwork

        self.patch, self.classes = network.input_shape[2], network.output_shape[-1]
        self.network = DenseNetwork(network) if is_dense else network
        self.halo = getattr(self.network, "halo", self.patch // 2)
        self.is_dense, self.side = is_dense, side
        if not training.list_gpus():  # on a processor, compiling takes longer than it saves
            self.network.jit_compile = False

    def __call__(self, window: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Probabilities (pixel, class) of pixels of the tile in a window."""
        if self.is_dense:
            whole = np.where(np.isfinite(window), window, 0).transpose(2, 0, 1, 3)
            return np.asarray(self.network.predict_on_batch(whole[None]))[0, rows, columns]
        found = []
        for start in range(0, rows.size, BATCH):
            part = slice(start, start + BATCH)
            patches = samples.gather(window, self.halo + rows[part], self.halo + columns[part], self.patch)
            count = len(patches)
            patches.resize((BATCH, *patches.shape[1:]))  # batches of one size, so that the network is traced once
            found.append(np.asarray(self.network.predict_on_batch(patches))[:count])
        return np.concatenate(found)


def _map_tile(tile: Window, steps: xr.DataArray, cropland: str | Path | None, predictor: _Predictor) -> np.ndarray:
    """Class and probabilities of a tile, (1 + class, y, x) uint8."""
    halo, side = predictor.halo, predictor.side + 2 * predictor.halo
    values = np.full((1 + predictor.classes, tile.height, tile.width), NO_DATA, "uint8")
    wanted = np.ones((tile.height, tile.width), bool)
    if cropland is not None:
        with rasterio.open(cropland) as file:
            wanted = file.read(1, window=tile) == 1
    if wanted.any():
        window = _read(steps, tile.row_off - halo, tile.col_off - halo, side)
        whole = minimum_filter(np.isfinite(window).all((2, 3)), predictor.patch)
        wanted &= whole[halo : halo + tile.height, halo : halo + tile.width]
    if wanted.any():
        probabilities = predictor(window, *np.nonzero(wanted)).T
        values[0, wanted] = probabilities.argmax(axis=0)
        values[1:, wanted] = np.rint(LEVELS * probabilities)
    return values


def _read(steps: xr.DataArray, row: int, column: int, side: int) -> np.ndarray:
    """A window (y, x, time, feature) from that pixel on, with missing values beyond the region."""
    numbered = steps.assign_coords(y=np.arange(steps.sizes["y"]), x=np.arange(steps.sizes["x"]))
    window = numbered.reindex(y=np.arange(row, row + side), x=np.arange(column, column + side))
    return window.transpose("y", "x", "time", "feature").astype("float32").to_numpy()


def _assemble(
    work: Path, whole: Path, steps: xr.DataArray, run: runs.Run, is_dense: bool, tiles: dict[str, Window]
) -> None:
    """The finished tiles in `work` as the files of the map, in the new folder `whole`."""
    classes = run.record["classes"]
    whole.mkdir()
    about = {name: run.record[name] for name in ("model", "features", "augmentation", "seed")}
    about |= {"inference": "dense" if is_dense else "patch by patch", "simulated": bool(steps.attrs["simulated"])}
    grid, tags = steps.odc.geobox, {"classes": json.dumps(classes)} | about
    with (
        rasters.new(work / "crop.tif", grid, ["crop"], "uint8", NO_DATA, **tags) as crop,
        rasters.new(work / "probability.tif", grid, classes, "uint8", NO_DATA, **tags) as probability,
    ):
        shades = enumerate(colours.palette(classes).values())
        crop.write_colormap(1, {code: tuple(bytes.fromhex(shade[1:])) for code, shade in shades})
        probability.scales = len(classes) * (1 / LEVELS,)
        seen = False
        for name, tile in tiles.items():
            values = np.load(work / "tiles" / name)
            seen |= bool((values[0] != NO_DATA).any())
            crop.write(values[0], 1, window=tile)
            probability.write(values[1:], window=tile)
    if not seen:
        raise ValueError(
            f"No pixel of the {steps.sizes['time']} dates, inside cropland, has a patch with a value on every one, so "
            "that the map would be empty: leave out the date without values when the cube is made."
        )
    for name, overviews in (("crop.tif", "nearest"), ("probability.tif", "average")):
        options = {"compress": "deflate", "blocksize": 256, "bigtiff": "if_safer", "overview_resampling": overviews}
        rasterio.shutil.copy(work / name, whole / name, driver="COG", **options)
    # Class names have no place in a GeoTIFF; GDAL and QGIS read them from here.
    names = "".join(f"<Category>{escape(name)}</Category>" for name in classes)
    band = f'<PAMRasterBand band="1"><CategoryNames>{names}</CategoryNames></PAMRasterBand>'
    (whole / "crop.tif.aux.xml").write_text(f"<PAMDataset>{band}</PAMDataset>\n", encoding="utf-8")
    (whole / "item.json").write_text(json.dumps(_stac_item(steps, classes, about), indent=1) + "\n")


def _stac_item(steps: xr.DataArray, classes: list[str], about: dict) -> dict:
    """Where, when and what the map is, for catalogues: a STAC item."""
    grid = steps.odc.geobox
    towards = str(grid.crs), "EPSG:4326"
    first, last = (f"{pd.Timestamp(time):%Y-%m-%dT%H:%M:%SZ}" for time in steps.time.values[[0, -1]])
    legend = [
        {"value": code, "name": re.sub(r"\W", "_", name), "title": name, "color_hint": colour[1:]}
        for code, (name, colour) in enumerate(colours.palette(classes).items())
    ]
    legend.append({"value": NO_DATA, "name": "nodata", "title": "nodata", "nodata": True})
    cog = {"type": "image/tiff; application=geotiff; profile=cloud-optimized", "roles": ["data"]}
    step = {"data_type": "uint8", "nodata": NO_DATA, "scale": 1 / LEVELS}
    bands = [{"name": name, **step} for name in classes]
    extensions = ("projection/v1.1.0", "classification/v2.0.0", "raster/v1.1.0")
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [f"https://stac-extensions.github.io/{name}/schema.json" for name in extensions],
        "id": "-".join(str(about[name]) for name in ("model", "features", "augmentation", "seed")),
        "geometry": transform_geom(*towards, grid.extent.json),
        "bbox": transform_bounds(*towards, *grid.boundingbox),
        "properties": {
            "datetime": None,
            "start_datetime": first,
            "end_datetime": last,
            "proj:epsg": grid.crs.epsg,
            "proj:shape": [grid.height, grid.width],
            "proj:transform": grid.affine[:6],
            **about,
        },
        "links": [],
        "assets": {
            "crop": {"href": "./crop.tif", "title": "crop", **cog, "classification:classes": legend},
            "probability": {"href": "./probability.tif", "title": "class probabilities", **cog, "raster:bands": bands},
        },
    }
