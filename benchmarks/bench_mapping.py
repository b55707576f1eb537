"""Mapping dense and patch by patch: pixels and square kilometres a second, and peak memory, at three areas.

Random values, an untrained network. Every measurement is a process of its own, in which the first tile, which
traces the network, is not timed; memory is the process's peak above what it had with the network loaded. Patch by
patch, which would take an hour at full width, is a sample: one tile of `--sample` pixels a side in the middle of the
area, whose pixels a second are taken for all of it (every patch costs the same). Ratios are by the clock. Last come
the dense rates with tiles of several sizes.

    python benchmarks/bench_mapping.py [--network conv3dstar] [--width 0.25] [--sides 64 128 256] [--tiles 64 128]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pandas as pd
import xarray as xr

from cropnb import acquisitions, mapping, models, project, runs

CLASSES = ["maize", "soybean", "wheat", "other"]
PATCH, PIXEL = 11, 10  # pixels, metres


def write_cube(path, side, dates):
    """A radar cube of side x side pixels, the same random values in each chunk."""
    chunk = np.random.default_rng(0).random((dates, 256, 256), "float32")
    repeats = -(-side // 256)
    planes = xr.DataArray(chunk, dims=("time", "y", "x")).chunk()
    planes = xr.concat([xr.concat([planes] * repeats, "y")] * repeats, "x")[:, :side, :side].chunk(y=256, x=256)
    group = xr.Dataset(dict.fromkeys(acquisitions.FEATURES["sar"], planes)).assign_coords(
        time=pd.date_range("2017-05-01", periods=dates, freq="6D"),
        y=5338315 - PIXEL * np.arange(side),
        x=333385 + PIXEL * np.arange(side),
    )
    group = group.rio.write_crs("EPSG:32652").rio.write_coordinate_system()
    group.to_zarr(path, group="sar", mode="w", consolidated=False)


def write_run(folder, options):
    limits = {"channels": ["ps", "pd", "pv"], "zero": [0.0] * 3, "one": [1.0] * 3}
    network = models.get(options.network)((options.dates, PATCH, PATCH, 3), len(CLASSES), options.width)
    return runs.write(
        folder, model=options.network, features="m-chi", augmentation="none", seed=0, width=options.width,
        network=network, history=pd.DataFrame({"loss": [0.0]}, pd.RangeIndex(1, 2, name="epoch")), metrics={},
        predictions=pd.DataFrame({"y": [0.0]}), scaler={"sar": limits}, seconds=0, classes=CLASSES, patch=PATCH,
    )  # fmt: skip


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(run_path, cube_path, is_dense, tile):
    """Pixels and seconds after the first pass over a tile, and peak memory in MB above the start.

    Of all tiles where they are dense, of the middle one patch by patch.
    """
    steps, network = mapping._inputs(runs.read(run_path), cube_path)
    start = peak_mb()
    predictor = mapping._Predictor(network, is_dense, tile)
    tiles = [*mapping._tiles(*steps.rio.shape, tile).values()]
    tiles = tiles if is_dense else [tiles[len(tiles) // 2 + int(len(tiles) ** 0.5) // 2]]
    mapping._map_tile(tiles[0], steps, None, predictor)
    began = time.perf_counter()
    pixels = sum((mapping._map_tile(each, steps, None, predictor)[0] != mapping.NO_DATA).sum() for each in tiles)
    return {"pixels": int(pixels), "seconds": time.perf_counter() - began, "memory": peak_mb() - start}


def in_child(run_path, cube_path, is_dense, tile):
    arguments = json.dumps([str(run_path), str(cube_path), is_dense, tile])
    command = [sys.executable, __file__, "--child", arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result = json.loads(output.splitlines()[-1])
    return result["pixels"] / result["seconds"], result["memory"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", default="conv3dstar", choices=models.DISPLAY_NAMES)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--dates", type=int, default=26)
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 128, 256], help="of the areas, pixels")
    parser.add_argument("--tiles", type=int, nargs="+", default=[64, 128, 256], help="sides tried for dense tiles")
    parser.add_argument("--tile", type=int, default=128, help="side of the tiles at the three areas")
    parser.add_argument("--sample", type=int, default=16, help="side of the tile mapped patch by patch, pixels")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(*json.loads(options.child))))
        return
    print(f"{models.DISPLAY_NAMES[options.network]}, width {options.width}, {options.dates} dates, {project.device()}")
    with tempfile.TemporaryDirectory() as folder:
        run = write_run(Path(folder) / "runs", options)
        cubes = {side: Path(folder) / f"{side}.zarr" for side in options.sides}
        for side, path in cubes.items():
            write_cube(path, side, options.dates)
            tile, area = min(side, options.tile), side * side * PIXEL**2 / 1e6
            dense, patches = in_child(run, path, True, tile), in_child(run, path, False, options.sample)
            for name, (rate, memory) in (("dense", dense), ("patch by patch (a sample)", patches)):
                speed = f"{rate:,.0f} pixels/s, {rate * PIXEL**2 / 1e6:.2f} km2/s"
                print(f"{area:.2f} km2, {name}: {speed}, {memory:,.0f} MB", flush=True)
            print(f"{area:.2f} km2, ratio {dense[0] / patches[0]:.1f}", flush=True)
        for tile in options.tiles:
            rate, memory = in_child(run, path, True, tile)
            print(f"dense tiles of {tile}: {rate:,.0f} pixels/s, {memory:,.0f} MB", flush=True)


if __name__ == "__main__":
    main()
