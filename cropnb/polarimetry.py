"""From complex VV and VH to backscatter and to the m-chi decomposition (paper section 4.3, equations 5-9).

Everything takes and returns xarray with dimensions `y` and `x`, and any others before them, stays lazy on dask
and gives in blocks exactly what it gives in one piece. NaN spreads to every average it enters. The kernels run
on one thread each and free the interpreter lock: dask's threads are the parallelism.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import dask.array as da
import numpy as np
import xarray as xr
from numba import njit

C2 = ("c11", "c22", "c12_real", "c12_imag")
# S4 = sign x 2 Im<VV conj(VH)>: SNAP since 9.0.1, and Raney et al. (2012) as SNAP 7.0.2-9.0.0 read it.
SIGNS = {"snap": 1.0, "raney": -1.0}
_LONG_NAMES = {
    "c11": "backscatter of VV, <|VV|^2>",
    "c22": "backscatter of VH, <|VH|^2>",
    "c12_real": "real part of <VV conj(VH)>",
    "c12_imag": "imaginary part of <VV conj(VH)>",
    "m": "degree of polarisation",
    "ps": "single bounce, square root of power",
    "pd": "double bounce, square root of power",
    "pv": "volume scattering, square root of power",
}
Raster = TypeVar("Raster", xr.DataArray, xr.Dataset)


def covariance(vv: xr.DataArray, vh: xr.DataArray) -> xr.Dataset:
    """The 2x2 covariance matrix of each pixel, before any average: `c11`, `c22`, `c12_real`, `c12_imag`.

    vv, vh: complex scattering amplitude (..., y, x); the result is linear power. Raises ValueError for data that
    are not complex, lack y or x, differ in grid, or are named for another polarisation.
    """
    _check_slc(vv, vh)
    return _by_pixel(_covariance_pixels, C2, (vv, vh), vv.real.dtype)


def multilook(c2: xr.Dataset, y: int = 1, x: int = 4) -> xr.Dataset:
    """Average blocks of `y` by `x` pixels; an incomplete block at the far edge is dropped.

    The defaults are Sentinel-1's: four range looks of 2.5 m make a pixel of 10 m.
    """
    check_dims(c2)
    return c2.coarsen(y=y, x=x, boundary="trim").reduce(np.mean, keep_attrs=True)


def window_mean(data: Raster, size: int = 5) -> Raster:
    """Moving average over `size` by `size` pixels, the window clipped at the edge of the image, as in SNAP.

    A pixel is NaN where any pixel of its window is. Raises ValueError for an even size.
    """
    check_window(size)
    if isinstance(data, xr.Dataset):
        return data.map(window_mean, keep_attrs=True, size=size).assign_attrs(window=size)
    check_dims(data)

    def block(images: np.ndarray) -> np.ndarray:
        images = np.ascontiguousarray(images)  # one memory layout, so one compilation
        out = np.empty_like(images)
        for index in np.ndindex(images.shape[:-2]):
            _window_mean_image(images[index], size // 2, out[index])
        return out

    return by_block(block, data, halo=size // 2)


def stokes(c2: xr.Dataset, convention: str = "snap") -> xr.Dataset:
    """Stokes parameters `s1`, `s2`, `s3`, `s4` of the received wave, linear power.

    `convention` names the sign of S4: "snap" +2 Im<VV conj(VH)>, "raney" -2 Im<VV conj(VH)>.
    """
    check_c2(c2)
    c11, c22, real, imag = (c2[name] for name in C2)
    planes = {"s1": c11 + c22, "s2": c11 - c22, "s3": 2 * real, "s4": 2 * _sign(convention) * imag}
    return _described(planes, "Stokes parameter {}").assign_attrs(convention=convention)


def ellipticity(c2: xr.Dataset, convention: str = "snap") -> xr.DataArray:
    """Ellipticity chi in degrees, from -45 to 45, of an averaged covariance: sin 2 chi = -S4 / (m S1) (equation 6).

    NaN where S1 is 0. It is no part of `m_chi`, whose amplitudes do without the arctangent, dearer than all the rest.
    """
    s = stokes(c2, convention)
    chi = xr.DataArray(np.degrees(np.arctan2(-s.s4, np.hypot(s.s2, s.s3))) / 2)
    return chi.where(s.s1 > 0).rename("chi").assign_attrs(long_name="ellipticity", units="degree")


def m_chi(c2: xr.Dataset, convention: str = "snap") -> xr.Dataset:
    """Degree of polarisation `m` and the amplitudes `ps`, `pd`, `pv` (equations 5-9).

    c2: averaged covariance (..., y, x). Written without divisions: with P = m S1, Ps^2 = (P + S4)/2,
    Pd^2 = (P - S4)/2 and Pv^2 = S1 - P. Where S1 = 0 the amplitudes are 0 and m is NaN; NaN spreads.
    """
    check_c2(c2)
    names = ("m", "ps", "pd", "pv")
    result = _by_pixel(_m_chi_pixels, names, [c2[name] for name in C2], c2.c11.dtype, _sign(convention))
    return result.assign_attrs(c2.attrs, convention=convention)


def m_delta(c2: xr.Dataset, convention: str = "snap") -> xr.Dataset:
    """The m-delta decomposition of an averaged covariance: amplitudes `ps`, `pd`, `pv` (Raney 2007).

    Like `m_chi`, with the sine of the phase delta between the channels in the place of that of the ellipticity.
    """
    s, polarised = _polarised(c2, convention)
    sine = np.sin(np.arctan2(s.s4, s.s3))
    planes = {"ps": polarised * (1 + sine) / 2, "pd": polarised * (1 - sine) / 2, "pv": s.s1 - polarised}
    return _described({name: np.sqrt(power.clip(0)) for name, power in planes.items()})


def model_free(c2: xr.Dataset, convention: str = "snap") -> xr.Dataset:
    """Model-free powers `ps`, `pd`, `pv`, linear, of an averaged covariance (Dey et al. 2020, for compact radars)."""
    s, polarised = _polarised(c2, convention)
    same, opposite = (s.s1 - s.s4) / 2, (s.s1 + s.s4) / 2
    sine = np.sin(2 * np.arctan(polarised * (opposite - same) / (opposite * same + polarised**2)))
    planes = {"ps": polarised * (1 + sine) / 2, "pd": polarised * (1 - sine) / 2, "pv": s.s1 - polarised}
    return _described(planes, "model-free power {}")


def entropy_alpha(c2: xr.Dataset) -> xr.Dataset:
    """`entropy` (0 to 1) and mean `alpha` (degrees) of an averaged covariance, after Cloude and Pottier (1997)."""
    s, polarised = _polarised(c2)
    first = (1 + (polarised / s.s1).clip(0, 1)) / 2
    shares = xr.concat([first, 1 - first], "eigenvalue")
    entropy = -(shares * np.log2(shares.where(shares > 0, 1))).sum("eigenvalue", skipna=False)
    angle = np.degrees(np.arccos((s.s2 / polarised).clip(-1, 1))) / 2
    planes = _described({"entropy": entropy, "alpha": first * angle + (1 - first) * (90 - angle)}, "{}")
    planes.alpha.attrs["units"] = "degree"
    return planes


def shannon_entropy(c2: xr.Dataset) -> xr.Dataset:
    """Shannon entropy of an averaged covariance, `intensity` and `polarimetry`, whose sum it is (Réfrégier 2006)."""
    s, polarised = _polarised(c2)
    unpolarised = 1 - (polarised / s.s1) ** 2  # 0 for a single look, whose entropy is NaN
    parts = {
        "intensity": 2 * np.log(np.pi * math.e * s.s1 / 2),
        "polarimetry": np.log(unpolarised.where(unpolarised > 0)),
    }
    return _described(parts, "Shannon entropy, {}")


def dprvi(c2: xr.Dataset) -> xr.DataArray:
    """Dual-pol radar vegetation index, 0 to 1, of an averaged covariance (Mandal et al. 2020)."""
    s, polarised = _polarised(c2)
    m = polarised / s.s1
    return (1 - m * (1 + m) / 2).rename("dprvi").assign_attrs(long_name="DpRVI", units="1")


def coherence(first: xr.DataArray, second: xr.DataArray, size: int = 5) -> xr.DataArray:
    """Interferometric coherence of two complex images on one grid, 0 to 1, over `size` by `size` pixels.

    Raises ValueError as `covariance` and `window_mean` do.
    """
    c2 = window_mean(covariance(first.rename(None), second.rename(None)), size)
    ratio = xr.DataArray(np.hypot(c2.c12_real, c2.c12_imag) / np.sqrt(c2.c11 * c2.c22))
    return ratio.rename("coherence").assign_attrs(long_name="coherence", units="1")


def _polarised(c2: xr.Dataset, convention: str = "snap") -> tuple[xr.Dataset, xr.DataArray]:
    """Stokes parameters of a covariance and the power of their polarised part, P = m S1."""
    s = stokes(c2, convention)
    return s, np.sqrt(s.s2**2 + s.s3**2 + s.s4**2)


def decibel(sigma0: xr.DataArray) -> xr.DataArray:
    """10 log10(sigma0); zero and negative power are nodata, so NaN."""
    return xr.DataArray(10 * np.log10(sigma0.where(sigma0 > 0))).assign_attrs(sigma0.attrs, units="dB")


def cross_ratio(vv_db: xr.DataArray, vh_db: xr.DataArray) -> xr.DataArray:
    """VH minus VV, both in dB (paper section 3.1)."""
    return (vh_db - vv_db).assign_attrs(units="dB", long_name="cross ratio VH - VV")


def read_polsarpro(folder: str | Path) -> xr.Dataset:
    """A PolSARpro C2 folder (config.txt, C11.bin, C22.bin, C12_real.bin, C12_imag.bin; float32) as c2 (y, x).

    Raises FileNotFoundError for a missing file and ValueError for one of the wrong length.
    """
    config, planes = Path(folder, "config.txt"), {}
    files = {name: Path(folder, f"{name.capitalize()}.bin") for name in C2}
    for path in (config, *files.values()):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: a PolSARpro C2 folder holds config.txt and four .bin files.")
    words = config.read_text().split()
    shape = tuple(int(words[words.index(key) + 1]) for key in ("Nrow", "Ncol"))
    for name, path in files.items():
        plane = np.fromfile(path, "<f4")
        if plane.size != shape[0] * shape[1]:
            raise ValueError(f"{path} holds {plane.size} values but config.txt says {shape}: fetch it again.")
        planes[name] = xr.DataArray(plane.reshape(shape), dims=("y", "x"))
    return _described(planes)


def by_block(function: Callable[[np.ndarray], np.ndarray], array: xr.DataArray, halo: int) -> xr.DataArray:
    """Apply an array function that looks `halo` pixels around each pixel of the last two axes, y and x.

    Blocks of a dask array get their neighbours' margin; blocks smaller than it are merged first.
    """
    array = array.transpose(..., "y", "x")
    if array.chunks is None:
        return array.copy(data=function(array.values))
    depth = {array.ndim - 2: halo, array.ndim - 1: halo}
    meta = np.empty((0,) * array.ndim, array.dtype)
    return array.copy(data=da.map_overlap(function, array.data, depth=depth, boundary="none", meta=meta))


def check_window(size: int) -> None:
    """Raise ValueError unless `size` is a positive odd number."""
    if size < 1 or size % 2 == 0:
        raise ValueError(f"A window of {size} pixels has no centre: choose an odd size such as {size + 1}.")


def check_dims(data: xr.DataArray | xr.Dataset) -> None:
    """Raise ValueError unless `data` has dimensions y and x."""
    missing = [dim for dim in ("y", "x") if dim not in data.dims]
    if missing:
        raise ValueError(f"An image needs dimensions y and x: {missing} is missing from {tuple(data.dims)}.")


def check_c2(c2: xr.Dataset) -> None:
    """Raise ValueError unless `c2` holds the four elements of the covariance."""
    missing = [name for name in C2 if name not in c2]
    if missing:
        raise ValueError(f"The covariance lacks {missing}: make it with covariance(vv, vh), it has {list(c2)}.")


def _check_slc(vv: xr.DataArray, vh: xr.DataArray) -> None:
    for data, expected in ((vv, "VV"), (vh, "VH")):
        check_dims(data)
        if str(data.name).upper() in {"VV", "VH", "HH", "HV"} - {expected}:
            raise ValueError(f"The {expected} argument is named {data.name}: give VV first and VH second.")
        if data.dtype.kind != "c":
            raise ValueError(f"{expected} is {data.dtype}, not complex: give single-look complex data.")
    if vv.sizes != vh.sizes:
        raise ValueError(f"VV {dict(vv.sizes)} and VH {dict(vh.sizes)} differ: crop both to one grid.")


def _sign(convention: str) -> float:
    if convention not in SIGNS:
        raise ValueError(f"Unknown convention {convention!r} of S4: choose one of {list(SIGNS)}.")
    return SIGNS[convention]


def _by_pixel(
    kernel: Callable[..., None], names: Sequence[str], arrays: Sequence[xr.DataArray], dtype: Any, *options: float
) -> xr.Dataset:
    """Run `kernel(*flat arrays, *options, out (name, pixel))` on every block."""

    def block(*images: np.ndarray) -> tuple[np.ndarray, ...]:
        images = np.broadcast_arrays(*images)
        out = np.empty((len(names), images[0].size), dtype)
        kernel(*(image.ravel() for image in images), *options, out)
        return tuple(out.reshape(len(names), *images[0].shape))

    planes = xr.apply_ufunc(
        block,
        *arrays,
        output_core_dims=[[]] * len(names),
        dask="parallelized",
        dask_gufunc_kwargs={"meta": (np.empty(0, dtype),) * len(names)},
    )
    return _described(dict(zip(names, planes, strict=True)))


def _described(planes: dict[str, xr.DataArray], long_name: str = "") -> xr.Dataset:
    for name, plane in planes.items():
        plane.attrs = {"long_name": long_name.format(name) if long_name else _LONG_NAMES[name], "units": "1"}
    return xr.Dataset({name: plane.rename(None) for name, plane in planes.items()})


# Kernels. Sums run in float64 and in a fixed order, so that a pixel's value does not depend on its block;
# `error_model="numpy"`, because a test for division by zero would keep loops off the vector units.


@njit(nogil=True, cache=True, error_model="numpy")
def _covariance_pixels(vv: np.ndarray, vh: np.ndarray, out: np.ndarray) -> None:
    for i in range(vv.size):
        a, b = np.float64(vv[i].real), np.float64(vv[i].imag)
        c, d = np.float64(vh[i].real), np.float64(vh[i].imag)
        out[0, i], out[1, i] = a * a + b * b, c * c + d * d
        out[2, i], out[3, i] = a * c + b * d, b * c - a * d


@njit(nogil=True, cache=True, error_model="numpy")
def _add(total: np.ndarray, row: np.ndarray) -> None:
    for x in range(total.size):
        total[x] += row[x]


@njit(nogil=True, cache=True, error_model="numpy")
def _sum_along(column: np.ndarray, half: int, total: np.ndarray) -> None:
    """Sum of the values within `half` of each, clipped at the ends."""
    total[:] = 0.0
    n, reach = column.size, min(half, column.size - 1)
    for k in range(-reach, reach + 1):
        _add(total[max(0, -k) : n - max(0, k)], column[max(0, k) : n - max(0, -k)])


@njit(nogil=True, cache=True, error_model="numpy")
def _window_mean_image(image: np.ndarray, half: int, out: np.ndarray) -> None:
    ny, nx = image.shape
    column, total, across = np.empty(nx), np.empty(nx), np.empty(nx)
    _sum_along(np.ones(nx), half, across)  # pixels of a clipped window's row
    for i in range(ny):
        first, last = max(0, i - half), min(ny, i + half + 1)
        column[:] = 0.0
        for y in range(first, last):
            _add(column, image[y])
        _sum_along(column, half, total)
        for x in range(nx):
            out[i, x] = total[x] / ((last - first) * across[x])


@njit(nogil=True, cache=True, error_model="numpy")
def _m_chi_pixels(
    c11: np.ndarray, c22: np.ndarray, c12_real: np.ndarray, c12_imag: np.ndarray, sign: float, out: np.ndarray
) -> None:
    for i in range(c11.size):
        a, b, real, imag = np.float64(c11[i]), np.float64(c22[i]), np.float64(c12_real[i]), np.float64(c12_imag[i])
        s1, s2, s3, s4 = a + b, a - b, 2.0 * real, 2.0 * sign * imag
        p = np.sqrt(s2 * s2 + s3 * s3 + s4 * s4)
        out[0, i] = min(p / s1, 1.0) if s1 > 0.0 else np.nan
        # Rounding may leave a small negative; NaN fails the comparison and passes through.
        single, double, volume = 0.5 * (p + s4), 0.5 * (p - s4), s1 - p
        out[1, i] = np.sqrt(0.0 if single < 0.0 else single)
        out[2, i] = np.sqrt(0.0 if double < 0.0 else double)
        out[3, i] = np.sqrt(0.0 if volume < 0.0 else volume)
