"""Seasonal signals of each crop as Gaussian mixtures, fitted to real field points.

A mixture describes one crop's month x band vector jointly: radar in dB, reflectance as its natural logarithm.
Reflectance is positive and skewed by residual cloud; its logarithm is close to Gaussian, the plain value is not.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from sklearn.ensemble import RandomForestClassifier
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from threadpoolctl import threadpool_limits

from cropnb.points import CROPS, FEATURES, features

RESOURCE = files("cropnb") / "resources" / "crop_profiles.nc"
DARKEST = 0.005  # reflectance; below it the atmospheric correction decides, not the field
COMPONENTS = (1, 2, 3, 4, 5, 6)
REGULARISATION = (0.01, 0.03, 0.1)  # added to the diagonal, in units of the variance of each feature


def fit(points: xr.Dataset, seed: int, crops: tuple[str, ...] = CROPS) -> xr.Dataset:
    """One Gaussian mixture a crop over month x band, of ``points`` as ``cropnb.points.read`` gives them.

    Per crop, the number of components and the covariance regularisation are those with the highest held-out
    log-likelihood over five random folds; no classifier has a say.  Returns ``weight (crop, component)``,
    ``mean (crop, component, feature)`` and ``covariance (crop, component, feature, feature_)`` in dB and
    log reflectance; unused components have weight 0.  Raises ValueError for a crop with under 50 points.
    """
    cube = _to_gaussian(points["values"]).transpose("point", "month", "band")
    table = cube.values.reshape(cube.sizes["point"], -1)
    month = np.repeat(cube["month"].values, cube.sizes["band"])
    band = np.tile(cube["band"].values, cube.sizes["month"])
    fitted = {}
    for crop in crops:
        sample = table[points["crop"].values == crop]
        if len(sample) < 50:
            raise ValueError(f"{len(sample)} points of {crop!r} are too few for a mixture; leave the crop out.")
        with threadpool_limits(1):  # matrices this small only lose by threads
            fitted[crop] = _choose(sample, seed)
    shape = (len(crops), max(COMPONENTS), len(band))
    weight, mean = np.zeros(shape[:2]), np.full(shape, np.nan)
    covariance = np.full((*shape, shape[-1]), np.nan)
    for i, (mixture, centre, scale, _) in enumerate(fitted.values()):
        k = mixture.n_components
        weight[i, :k], mean[i, :k] = mixture.weights_, mixture.means_ * scale + centre
        covariance[i, :k] = mixture.covariances_ * np.outer(scale, scale)
    profiles = xr.Dataset(
        {
            "weight": (("crop", "component"), weight),
            "mean": (("crop", "component", "feature"), mean),
            "covariance": (("crop", "component", "feature", "feature_"), covariance),
            "regularisation": ("crop", [f[0].reg_covar for f in fitted.values()]),
            "held_out_log_likelihood": ("crop", [f[3] for f in fitted.values()]),
        },
        coords={"crop": list(crops), "month": ("feature", month), "band": ("feature", band)},
    )
    profiles["mean"].attrs["units"] = "dB (vv_db, vh_db); log of reflectance (red, narrow_nir, swir1)"
    profiles["held_out_log_likelihood"].attrs["units"] = "nat a point, of standardised features"
    profiles.attrs |= dict(points.attrs) | {"points": int(points.sizes["point"]), "seed": seed}
    return profiles.astype("float32")


def write(profiles: xr.Dataset, path: str | Path = RESOURCE) -> None:
    """Write ``profiles`` as compressed NetCDF-4."""
    encoding = {name: {"zlib": True, "complevel": 9, "shuffle": True} for name in profiles.data_vars}
    profiles.to_netcdf(path, engine="h5netcdf", encoding=encoding)


def load(path: str | Path = RESOURCE) -> xr.Dataset:
    """The profiles in ``path``, by default those that come with the package."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing; fit the profiles and write them there.")
    return xr.load_dataset(path, engine="h5netcdf")


def draw(profiles: xr.Dataset, crop: str, n: int, rng: np.random.Generator) -> xr.DataArray:
    """``n`` random seasons of ``crop``: dims (sample, month, band), backscatter in dB, reflectance in 0-1.

    Reflectance is the exponential of its logarithm, so never negative; what exceeds 1 (bright cloud in the
    points) is set to 1.  Raises ValueError for a crop without a profile.
    """
    if crop not in profiles["crop"].values:
        raise ValueError(f"no profile for crop {crop!r}; there are {', '.join(profiles['crop'].values)}.")
    one = profiles.sel(crop=crop).astype("float64")
    weight = one["weight"].values
    component = rng.choice(len(weight), size=n, p=weight / weight.sum())
    normal = rng.standard_normal((n, profiles.sizes["feature"]))
    drawn = np.empty_like(normal)
    for k in np.unique(component):
        root = np.linalg.cholesky(one["covariance"].values[k])
        drawn[component == k] = one["mean"].values[k] + normal[component == k] @ root.T
    month, band = pd.unique(one["month"].values), pd.unique(one["band"].values).astype(str)
    cube = xr.DataArray(
        drawn.reshape(n, len(month), len(band)),  # fitted month by month, all bands of one beside each other
        coords={"month": month, "band": band},
        dims=("sample", "month", "band"),
    )
    cube = cube.where(_is_radar(cube), np.exp(cube).clip(max=1))
    cube.attrs = {"crop": crop, "units": "dB (vv_db, vh_db), reflectance 0-1 (red, narrow_nir, swir1)"}
    return cube


def draw_like(points: xr.Dataset, profiles: xr.Dataset, rng: np.random.Generator) -> xr.Dataset:
    """A drawn set with the crops of ``points``, point for point: ``values (point, month, band)``."""
    values = points["values"].copy()
    for crop in profiles["crop"].values:
        mine = points["crop"].values == crop
        values[mine] = draw(profiles, crop, int(mine.sum()), rng).sel(band=values["band"]).values
    return values.to_dataset(name="values")


def fidelity(points: xr.Dataset, profiles: xr.Dataset, seed: int, draws: int = 5, trees: int = 300):
    """Is the drawn crop as hard to recognise as the real one?  A frame with a row a feature set.

    A random forest is cross-validated over five random folds on the real points and, in the same folds, on
    ``draws`` drawn sets with the same crops.  Columns: overall accuracy ``real``, ``drawn`` (mean of draws),
    ``spread`` (standard deviation of draws), ``difference`` (drawn - real).  Profiles are fitted to all points
    on purpose: this compares two distributions and measures no classifier on unseen fields.
    """
    rng = np.random.default_rng(seed)
    sets = [draw_like(points, profiles, rng) for _ in range(draws)]
    rows = {}
    for name in FEATURES:
        real = forest_accuracy(points["values"], points["crop"].values, name, seed, trees)
        drawn = [forest_accuracy(one["values"], one["crop"].values, name, seed, trees) for one in sets]
        rows[name] = (real, np.mean(drawn), np.std(drawn, ddof=1), np.mean(drawn) - real)
    return pd.DataFrame.from_dict(rows, "index", columns=["real", "drawn", "spread", "difference"])


def forest_accuracy(
    values: xr.DataArray, crop: np.ndarray, name: str, seed: int, trees: int = 300, groups: np.ndarray | None = None
) -> float:
    """Overall accuracy of a random forest on feature set ``name``, over five folds that keep the crop shares.

    ``values (point, month, band)`` and ``crop (point)`` as in ``points``.  Folds are random, or keep the points
    of one group together where ``groups (point)`` are given.
    """
    table = features(values, name).values.reshape(len(crop), -1)
    forest = RandomForestClassifier(trees, class_weight="balanced", random_state=seed, n_jobs=-1)
    folds = (StratifiedKFold if groups is None else StratifiedGroupKFold)(5, shuffle=True, random_state=seed)
    return float(np.mean(cross_val_predict(forest, table, crop, groups=groups, cv=folds) == crop))


def _choose(sample: np.ndarray, seed: int) -> tuple[GaussianMixture, np.ndarray, np.ndarray, float]:
    """The mixture with the best held-out likelihood, fitted to all of ``sample`` (point, feature).

    Returns it in standardised features, with their centre and scale and the held-out log-likelihood a point.
    """
    centre, scale = sample.mean(axis=0), sample.std(axis=0)
    standard = (sample - centre) / scale
    folds = list(KFold(5, shuffle=True, random_state=seed).split(standard))
    scored = []
    for components in COMPONENTS:
        for regularisation in REGULARISATION:
            mixture = GaussianMixture(components, reg_covar=regularisation, random_state=seed)
            held_out = [mixture.fit(standard[a]).score(standard[b]) for a, b in folds]
            scored.append((float(np.mean(held_out)), mixture))
    best, mixture = max(scored, key=lambda pair: pair[0])
    # converged far beyond the default, so that another computer ends at the same numbers
    return mixture.set_params(tol=1e-5, max_iter=1000).fit(standard), centre, scale, best


def _is_radar(cube: xr.DataArray) -> xr.DataArray:
    """True for the bands in decibels (named ``*_db``)."""
    return cube["band"].str.endswith("_db")


def _to_gaussian(values: xr.DataArray) -> xr.DataArray:
    """Radar as it is (dB), reflectance as its natural logarithm."""
    return values.where(_is_radar(values), np.log(values.where(~_is_radar(values), 1).clip(min=DARKEST)))
