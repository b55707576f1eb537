"""Single-look complex VV, VH -> C2 -> 5x5 -> m-chi: `cropnb.polarimetry` against plain numpy and scipy.

Both make the covariance, average it and return Ps, Pd, Pv in float32. The two run in turns in one process and their
medians are compared; a copy and a triad (a = b + 2c) measure the memory bandwidth in the same run. Traffic of the
decomposition is what it must move: 16 bytes of input and 12 bytes of output a pixel.
"""

import argparse
import time

import dask
import numba
import numpy as np
import xarray as xr
from numba import njit, prange
from scipy.ndimage import uniform_filter

from cropnb import polarimetry

BYTES = 2 * 8 + 3 * 4


def plain(vv, vh, window=5):
    """The textbook version: equations 5-9 as printed, scipy's box filter."""
    cross = vv * np.conj(vh)
    planes = (np.abs(vv) ** 2, np.abs(vh) ** 2, cross.real, cross.imag)
    c11, c22, real, imag = (uniform_filter(plane, window, mode="nearest") for plane in planes)
    s1, s2, s3, s4 = c11 + c22, c11 - c22, 2 * real, 2 * imag
    m = np.sqrt(s2**2 + s3**2 + s4**2) / s1
    sine = -s4 / (m * s1)
    return np.sqrt(m * s1 * (1 - sine) / 2), np.sqrt(m * s1 * (1 + sine) / 2), np.sqrt(s1 * (1 - m))


def ours(vv, vh, window=5):
    return polarimetry.m_chi(polarimetry.window_mean(polarimetry.covariance(vv, vh), window))[["ps", "pd", "pv"]]


@njit(parallel=True)
def triad(a, b, c):
    for i in prange(a.size):
        a[i] = b[i] + 2.0 * c[i]


def speckle(size, seed=0):
    rng = np.random.default_rng(seed)
    parts = rng.standard_normal((4, size, size), dtype="f4")
    images = parts[:2] + 1j * parts[2:]
    return [xr.DataArray(image, dims=("y", "x"), name=name) for image, name in zip(images, ("VV", "VH"), strict=True)]


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=3000, help="side of the image in pixels")
    parser.add_argument("--repeats", type=int, default=7, help="turns, after one to warm up")
    arguments = parser.parse_args()
    size = arguments.size
    vv, vh = speckle(size)
    strips = [data.chunk(y=-(-size // 8)) for data in (vv, vh)]
    a, b, c = (np.ones(5 * size * size, "f4") for _ in range(3))
    tasks = {
        "numpy and scipy": lambda: plain(vv.values, vh.values),
        "cropnb, one thread": lambda: ours(vv, vh),
        "cropnb, dask threads": lambda: dask.compute(ours(*strips)),
        "copy": lambda: np.copyto(a, b),
        "triad": lambda: triad(a, b, c),
    }
    runs = [{name: seconds(task) for name, task in tasks.items()} for _ in range(arguments.repeats + 1)][1:]
    median = {name: float(np.median([run[name] for run in runs])) for name in tasks}
    bandwidth = max(2 * a.nbytes / median["copy"], 3 * a.nbytes / median["triad"])
    print(f"{size} x {size}, complex64, window 5, {numba.config.NUMBA_NUM_THREADS} threads, {len(runs)} turns")
    print(f"{'':22}{'ms':>8}{'Mpixel/s':>10}{'ratio':>8}{'of bandwidth':>14}")
    for name in list(tasks)[:3]:
        rate = size * size / median[name]
        ratio = float(np.median([run["numpy and scipy"] / run[name] for run in runs]))
        print(f"{name:22}{1e3 * median[name]:8.0f}{rate / 1e6:10.1f}{ratio:8.2f}{rate * BYTES / bandwidth:14.1%}")
    for name, moved in (("copy", 2), ("triad", 3)):
        print(f"{name:22}{1e3 * median[name]:8.0f}{moved * a.nbytes / median[name] / 1e9:10.1f} GB/s")


if __name__ == "__main__":
    main()
