"""Speckle filters on linear power: refined Lee, its polarimetric form, and the multi-temporal filter on top.

Everything takes and returns xarray with dimensions `y` and `x`, stays lazy on dask and gives in blocks exactly
what it gives in one piece. Pixels outside the image and NaN pixels are treated alike: windows use the valid
pixels they hold, and a NaN pixel stays NaN. Where one of the nine boxes that find the edge holds no valid pixel,
no direction is trusted and the whole window is used.
"""

from functools import partial

import numpy as np
import xarray as xr
from numba import njit

from cropnb.polarimetry import C2, by_block, check_c2, check_dims, check_window

# Window: side of the nine boxes and the step between them (Lee 1981 has 7: 3, 2).
_BOXES = {5: (3, 1), 7: (3, 2), 9: (5, 2), 11: (5, 3)}


def refined_lee(intensity: xr.DataArray, window: int = 7, looks: float | None = None) -> xr.DataArray:
    """Refined Lee filter of one intensity band (..., y, x), linear power.

    Nine boxes give four gradients; the steepest sets an edge, and the side of it whose mean is closer to the
    centre is averaged, with the weight of least mean square error. A gradient is the difference of the two boxes in
    the middle of its sides, as in SNAP, which the paper used; Lee (1981) takes three boxes a side. The variance of
    speckle is 1/`looks`; without `looks` it is the mean of the five smallest normalised variances of the nine boxes,
    as in SNAP too.
    Raises ValueError for an unknown window, a missing dimension, or an image without a valid pixel.
    """
    _check(intensity, window, looks)
    filtered = by_block(partial(_filter_bands, window=window, looks=looks), intensity, halo=window // 2)
    return filtered.assign_attrs(speckle_filter="refined Lee", speckle_window=window)


def refined_lee_c2(c2: xr.Dataset, looks: float, window: int = 7) -> xr.Dataset:
    """Polarimetric refined Lee filter of a covariance (..., y, x): edge and weight from the span c11 + c22.

    One weight for all four elements keeps the matrix a covariance. The darker side of the edge is always taken,
    which biases homogeneous areas low, and VV more than VH (chapter 03 measures it).
    """
    check_c2(c2)
    _check(c2.c11, window, looks)
    elements = c2[list(C2)].to_dataarray("element").transpose(..., "element", "y", "x")
    elements = elements.chunk(element=-1) if elements.chunks else elements
    smooth = by_block(partial(_filter_c2, window=window, looks=looks), elements, halo=window // 2)
    filtered = smooth.to_dataset("element")
    for name in C2:
        filtered[name].attrs = dict(c2[name].attrs)
    return filtered.assign_attrs(c2.attrs, speckle_filter="polarimetric refined Lee", speckle_window=window)


def multi_temporal(intensity: xr.DataArray, window: int = 7, looks: float | None = None) -> xr.DataArray:
    """Multi-temporal filter of one polarisation (time, y, x): J_k = F_k mean_j(I_j / F_j), F refined Lee of I.

    Source: Quegan and Yu (2001), for uncorrelated dates. A date missing at a pixel is left out of its mean and
    stays missing. All dates of a block are in memory together.
    """
    if "time" not in intensity.dims:
        raise ValueError(f"The multi-temporal filter needs a time dimension: it was given {tuple(intensity.dims)}.")
    _check(intensity, window, looks)
    series = intensity.transpose("time", "y", "x")
    chunked = series.chunk(time=-1) if series.chunks else series

    def filter_series(images: np.ndarray) -> np.ndarray:
        spatial = _filter_bands(images, window, looks)
        return (spatial * _mean_ratio(images, spatial)).astype(images.dtype)

    filtered = by_block(filter_series, chunked, halo=window // 2)
    return filtered.assign_attrs(speckle_filter="multi-temporal, refined Lee", speckle_window=window)


def equivalent_number_of_looks(intensity: xr.DataArray) -> xr.DataArray:
    """Mean squared over variance of the valid pixels of a homogeneous area, over y and x."""
    _check(intensity, 7, None)
    return (intensity.mean(("y", "x")) ** 2 / intensity.var(("y", "x"))).assign_attrs(units="1")


def _check(intensity: xr.DataArray, window: int, looks: float | None) -> None:
    check_dims(intensity)
    check_window(window)
    if window not in _BOXES:
        raise ValueError(f"The refined Lee filter has no window of {window} pixels: choose one of {list(_BOXES)}.")
    if looks is not None and not looks > 0:
        raise ValueError(f"The number of looks must be positive, not {looks}: Sentinel-1's C2 at 10 m has about 4.")
    if intensity.dtype.kind != "f":
        raise ValueError(f"A speckle filter needs real intensity, not {intensity.dtype}: give |S|^2 as floats.")
    # Looking at a lazy array would compute it; there an empty block simply stays empty.
    if intensity.chunks is None and not np.isfinite(intensity.values).any():
        raise ValueError("The image holds no valid pixel: leave this acquisition or area out.")


def _filter_bands(images: np.ndarray, window: int, looks: float | None) -> np.ndarray:
    """Each image (..., y, x) by its own edges."""
    return _filtered(images[..., np.newaxis, :, :], images, window, looks, darker=False)[..., 0, :, :]


def _filter_c2(images: np.ndarray, window: int, looks: float) -> np.ndarray:
    """All elements (..., element, y, x) by the edges of the span, which is NaN where any element is."""
    c11, c22, real, imag = np.moveaxis(images, -3, 0)
    return _filtered(images, c11 + c22 + 0 * (real + imag), window, looks, darker=True)


def _filtered(bands: np.ndarray, guides: np.ndarray, window: int, looks: float | None, darker: bool) -> np.ndarray:
    """Filter bands (..., band, y, x) with the edges and weights found in guides (..., y, x), padded with NaN."""
    half, noise, out = window // 2, np.nan if looks is None else 1 / looks, np.empty(bands.shape, bands.dtype)
    edge = ((half, half), (half, half))
    for index in np.ndindex(guides.shape[:-2]):
        guide = np.where(np.isfinite(guides[index]), guides[index], np.nan).astype("f8")
        guide = np.pad(guide, edge, constant_values=np.nan)
        planes = np.pad(bands[index].astype("f8"), ((0, 0), *edge), constant_values=np.nan)
        out[index] = _filter(planes, guide, *_offsets(half, guide.shape[1]), half, *_BOXES[window], noise, darker)
    return out


def _mean_ratio(images: np.ndarray, spatial: np.ndarray) -> np.ndarray:
    """Mean over dates of I / F, added date by date so that memory layout does not change the rounding."""
    total, count = np.zeros(images.shape[1:]), np.zeros(images.shape[1:])
    for image, mean in zip(images, spatial, strict=True):
        valid = mean > 0
        total[valid] += image[valid] / mean[valid]
        count += valid
    return total / np.where(count > 0, count, 1)  # where no date counts, F is 0 or NaN, and so is the product


def _offsets(half: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of a window, counted through an image of `width` from its centre: of the whole, and of its eight halves.

    Two halves (half, pixel) for each direction, each with the centre line.
    """
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    edges = (-x, x - y, -y, -x - y)  # left of a vertical edge, above a falling, a horizontal and a rising one
    step = y * width + x
    return step.ravel(), np.stack([step[edge * sign >= 0] for edge in edges for sign in (1, -1)])


# Kernels, on images padded with NaN by half a window.


@njit(nogil=True, cache=True, error_model="numpy")
def _box_statistics(image: np.ndarray, half: int, mean: np.ndarray, variance: np.ndarray) -> None:
    """Mean and normalised variance (n - 1) of the valid pixels of each box; NaN where there are too few."""
    for i in range(half, image.shape[0] - half):
        for j in range(half, image.shape[1] - half):
            n, total, squares = 0, 0.0, 0.0
            for y in range(i - half, i + half + 1):
                for x in range(j - half, j + half + 1):
                    if image[y, x] == image[y, x]:
                        n += 1
                        total += image[y, x]
            mean[i, j] = total / n if n > 0 else np.nan
            for y in range(i - half, i + half + 1):
                for x in range(j - half, j + half + 1):
                    if image[y, x] == image[y, x]:
                        squares += (image[y, x] - mean[i, j]) ** 2
            usable = n > 1 and mean[i, j] != 0.0
            variance[i, j] = squares / (n - 1) / mean[i, j] ** 2 if usable else np.nan


@njit(nogil=True, cache=True, error_model="numpy")
def _side(m: np.ndarray, darker: bool) -> int:
    """The half to use of `_offsets`, given the 3x3 box means row by row; -1 for the whole."""
    for mean in m:
        if np.isnan(mean):
            return -1
    # Sums of the boxes on the two sides of the edge, and the box in the middle of each side.
    sums = (
        (m[0] + m[3] + m[6], m[2] + m[5] + m[8], m[3], m[5]),
        (m[1] + m[2] + m[5], m[3] + m[6] + m[7], m[2], m[6]),
        (m[0] + m[1] + m[2], m[6] + m[7] + m[8], m[1], m[7]),
        (m[0] + m[1] + m[3], m[5] + m[7] + m[8], m[0], m[8]),
    )
    steepest, side = -1.0, -1
    for direction in range(4):
        first, second, a, b = sums[direction]
        gradient = abs(first - second) if darker else abs(a - b)  # as in SNAP, which looks at the middle boxes alone
        if gradient > steepest:
            steepest = gradient
            takes_first = first < second if darker else abs(a - m[4]) < abs(b - m[4])
            side = 2 * direction + (0 if takes_first else 1)
    return side


@njit(nogil=True, cache=True, error_model="numpy")
def _five_smallest(v: np.ndarray) -> float:
    """Mean of the five smallest values that are not NaN; 0 where there is none."""
    total, used = 0.0, 0
    for value in np.sort(v)[:5]:  # NaN last
        if value == value:
            total += value
            used += 1
    return total / used if used > 0 else 0.0


@njit(nogil=True, cache=True, error_model="numpy")
def _filter(
    bands: np.ndarray,
    guide: np.ndarray,
    whole: np.ndarray,
    halves: np.ndarray,
    half: int,
    box: int,
    step: int,
    noise: float,
    darker: bool,
) -> np.ndarray:
    count, ny, nx = bands.shape[0], bands.shape[1] - 2 * half, bands.shape[2] - 2 * half
    out = np.empty((count, ny, nx))
    flat, planes, width = guide.ravel(), bands.reshape(count, -1), guide.shape[1]
    mean_of, variance_of = np.full(guide.shape, np.nan), np.full(guide.shape, np.nan)
    _box_statistics(guide, box // 2, mean_of, variance_of)
    m, v, sums = np.empty(9), np.empty(9), np.empty(count)
    for i in range(ny):
        for j in range(nx):
            centre = (i + half) * width + j + half
            if np.isnan(flat[centre]):
                out[:, i, j] = np.nan
                continue
            for k in range(9):
                y, x = i + half + (k // 3 - 1) * step, j + half + (k % 3 - 1) * step
                m[k], v[k] = mean_of[y, x], variance_of[y, x]
            side = _side(m, darker)
            window = whole if side < 0 else halves[side]
            n, total, squares = 0, 0.0, 0.0
            sums[:] = 0.0
            for o in window:
                if flat[centre + o] == flat[centre + o]:
                    n += 1
                    total += flat[centre + o]
                    for b in range(count):
                        sums[b] += planes[b, centre + o]
            mean = total / n
            for o in window:
                if flat[centre + o] == flat[centre + o]:
                    squares += (flat[centre + o] - mean) ** 2
            variance = squares / (n - 1) if n > 1 else 0.0
            s2 = _five_smallest(v) if np.isnan(noise) else noise
            signal = (variance - mean * mean * s2) / (1.0 + s2)
            weight = signal / variance if variance > 0.0 and signal > 0.0 else 0.0
            for b in range(count):
                out[b, i, j] = sums[b] / n + weight * (planes[b, centre] - sums[b] / n)
    return out
