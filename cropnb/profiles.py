"""Seasonal signals of each crop, fitted to real field points: a mean, a covariance, and who shares what of it.

A crop's month x band vector is Gaussian, radar in dB, reflectance as its natural logarithm (positive and skewed by
residual cloud, whose logarithm is close to Gaussian). Its spread over the country is taken apart by who shares it:
a region, a county, a neighbourhood, each with all crops or with one crop only, a parcel, a pixel. A county of the
twin holds what varies inside one, and of the crops' own regional effects only the part that real regions support.
"""

import warnings
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from scipy.ndimage import maximum_filter, minimum_filter
from scipy.stats import multivariate_normal
from scipy.stats import t as student
from sklearn.covariance import LedoitWolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GroupKFold, cross_val_predict

from cropnb import files as artefacts
from cropnb.points import CROPS, FEATURES, features

RESOURCE = Path(str(files("cropnb"))) / "resources" / "crop_profiles.nc"
DARKEST = 0.005  # reflectance; below it the atmospheric correction decides, not the field
# Level -> what points have in common that share its effect. Cells are H3: level 3 (12,000 km2), 5 (250), 8 (0.7).
LEVELS = {
    "region": ("group",),
    "region_crop": ("group", "crop"),
    "county": ("cell",),
    "county_crop": ("cell", "crop"),
    "local": ("neighbourhood",),
    "parcel": ("neighbourhood", "crop"),
    "pixel": ("point",),
}
# Variance of a crop's own effect of the region, as a share of what lies between regions; chosen by `misfit` on every
# other of the regions, and never on those that test it.
PHI = 0.1
# Between pixels of one field, standard deviation, constant over the season and changing within weeks: dB, and of log
# reflectance. Measured by `within_fields` in Flanders (radar) and near Beziers (optical).
WITHIN_FIELD = {
    "vv_db": (0.51, 0.57),
    "vh_db": (0.45, 0.66),
    "red": (0.087, 0.131),
    "narrow_nir": (0.047, 0.063),
    "swir1": (0.048, 0.059),
}
# What varies between the parcels of a twin: "field" is the level of the pixel without what varies within a field.
INSIDE = ("local", "parcel", "field")
SCOPES = {"four crops": (CROPS, 1), "maize, soybean": (("maize", "soybean"), 15)}  # crops, points a crop at least
REGION_POINTS = 65  # fewer are too few for five folds


def fit(points: xr.Dataset, phi: float = PHI, crops: Sequence[str] = CROPS) -> xr.Dataset:
    """Mean and covariance of each crop, and the levels' shares, of points as `cropnb.points.read` gives them.

    The share of a level is the mean product of two points' standardised deviations from their crop's mean, over
    pairs that have this level in common and no finer one, averaged over the months; levels of one crop hold what
    pairs of the same crop share beyond pairs of different crops. `phi` moves variance between the two levels of
    the region; nothing else is chosen.

    Returns
    -------
    xarray.Dataset
        ``mean (crop, feature)`` and ``covariance (crop, feature, feature_)`` in dB and log reflectance, a feature
        a month and band; ``share (level, band_of, band_to)``, of the covariance of two bands, summing to one.

    Raises
    ------
    ValueError
        For a crop with under 50 points.
    """
    cube = _to_gaussian(points["values"]).transpose("point", "month", "band")
    table, name = cube.values.reshape(cube.sizes["point"], -1), points["crop"].values
    mean, covariance, deviation = [], [], np.zeros_like(table)
    for crop in crops:
        mine = name == crop
        if mine.sum() < 50:
            raise ValueError(f"{mine.sum()} points of {crop!r} are too few for a profile; leave the crop out.")
        mean.append(table[mine].mean(axis=0))
        scale = table[mine].std(axis=0)
        deviation[mine] = (table[mine] - mean[-1]) / scale
        covariance.append(LedoitWolf().fit(deviation[mine]).covariance_ * np.outer(scale, scale))
    band = cube["band"].values
    profiles = xr.Dataset(
        {
            "mean": (("crop", "feature"), np.stack(mean)),
            "covariance": (("crop", "feature", "feature_"), np.stack(covariance)),
            "share": (("level", "band_of", "band_to"), _shares(points, deviation, len(band), phi)),
        },
        {
            "crop": list(crops),
            "month": ("feature", np.repeat(cube["month"].values, len(band))),
            "band": ("feature", np.tile(band, cube.sizes["month"])),
            "level": list(LEVELS),
        },
    )
    profiles["mean"].attrs["units"] = "dB (vv_db, vh_db); log of reflectance (red, narrow_nir, swir1)"
    profiles.attrs |= dict(points.attrs) | {"points": int(points.sizes["point"]), "phi": phi}
    return profiles.astype("float32")


def write(profiles: xr.Dataset, path: str | Path = RESOURCE) -> None:
    """Write `profiles` as compressed NetCDF-4."""
    encoding = {name: {"zlib": True, "complevel": 9, "shuffle": True} for name in profiles.data_vars}
    with artefacts.whole(path) as partial:
        profiles.to_netcdf(partial, engine="h5netcdf", encoding=encoding)


def load(path: str | Path = RESOURCE) -> xr.Dataset:
    """The profiles in `path`, by default those that come with the package.

    Raises FileNotFoundError where there is none.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing; fit the profiles and write them there.")
    return xr.load_dataset(path, engine="h5netcdf")


def root(profiles: xr.Dataset, crop: str, level: str) -> np.ndarray:
    """Symmetric square root (feature, feature_) of the covariance of `crop` that lies at `level`, or at "field".

    Raises ValueError for a crop without a profile.
    """
    if crop not in profiles["crop"].values:
        raise ValueError(f"There is no profile of crop {crop!r}, only of {', '.join(profiles['crop'].values)}.")
    shares = profiles["share"].sel(level="pixel" if level == "field" else level).values
    band = pd.factorize(profiles["band"].values)[0]
    covariance = profiles["covariance"].sel(crop=crop).values.astype("float64") * shares[np.ix_(band, band)]
    if level == "field":
        within = np.array([np.sum(np.square(WITHIN_FIELD[str(name)])) for name in profiles["band"].values])
        left = np.sqrt((1 - within / np.diag(covariance)).clip(0))
        covariance *= np.outer(left, left)
    value, vector = np.linalg.eigh(covariance)
    return (vector * np.sqrt(value.clip(0))) @ vector.T


def signals(profiles: xr.Dataset, crops: np.ndarray, normals: Mapping[str, np.ndarray]) -> xr.DataArray:
    """Seasons of `crops` (sample): dims (sample, month, band), backscatter in dB, reflectance 0-1.

    `normals` has a standard normal vector (sample, feature) for each level that has an effect; samples that share
    the effect have the same vector. Reflectance over 1 is set to 1.
    """
    values = np.zeros((len(crops), profiles.sizes["feature"]))
    for crop in np.unique(crops):
        mine = crops == crop
        effects = [normal[mine] @ root(profiles, crop, level) for level, normal in normals.items()]
        values[mine] = profiles["mean"].sel(crop=crop).values + sum(effects)
    month, band = (pd.unique(profiles[name].values) for name in ("month", "band"))
    shape = len(crops), len(month), len(band)
    coords = {"month": month, "band": band.astype(str)}
    cube = xr.DataArray(values.reshape(shape), coords, ("sample", "month", "band"))
    return cube.where(_is_radar(cube), np.exp(cube).clip(max=1))


def simulate_like(points: xr.Dataset, profiles: xr.Dataset, rng: np.random.Generator) -> xr.Dataset:
    """Simulated points with the crops and cells of `points`: ``values (point, month, band)`` of a copy."""
    normals = {}
    for level, common in LEVELS.items():
        key = pd.MultiIndex.from_arrays([points[name].values for name in common]).factorize()[0]
        normals[level] = rng.standard_normal((key.max() + 1, profiles.sizes["feature"]))[key]
    values = signals(profiles, points["crop"].values, normals).sel(band=points["band"].values)
    return points.assign(values=(("point", "month", "band"), values.values))


def regions_of(points: xr.Dataset, scope: str) -> list[str]:
    """Regions with enough points for `scope`, the largest first: a key of `SCOPES`, or "country" for ``["all"]``."""
    if scope == "country":
        return ["all"]
    crops, least = SCOPES[scope]
    counts = pd.crosstab(points["group"].values, points["crop"].values).reindex(columns=CROPS, fill_value=0)
    counts = counts[(counts.sum(axis=1) >= REGION_POINTS) & (counts[list(crops)] >= least).all(axis=1)]
    return counts.sum(axis=1).sort_values(ascending=False, kind="stable").index.tolist()


def accuracy(
    points: xr.Dataset, name: str, scope: str, regions: Sequence[str], seed: int, trees: int | None = None
) -> float:
    """Share of points that a classifier of their own region gets right in five folds, over `regions` together.

    Folds keep neighbourhoods together. `name` is a feature set of `cropnb.points.FEATURES`, `scope` as in
    `regions_of`. The classifier is a forest of `trees`, or without them a linear discriminant with shrinkage.
    """
    group = points["group"].values if scope in SCOPES else np.full(points.sizes["point"], "all")
    table = features(_to_gaussian(points["values"]), name).values.reshape(len(group), -1)
    forest = RandomForestClassifier(trees or 1, class_weight="balanced", random_state=seed)
    rule = forest if trees else LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    right = []
    for region in regions:
        mine = (group == region) & np.isin(points["crop"].values, SCOPES.get(scope, (CROPS, 0))[0])
        crop, near = points["crop"].values[mine], points["neighbourhood"].values[mine]
        folds = GroupKFold(5, shuffle=True, random_state=seed)
        with warnings.catch_warnings():  # of a crop with one point in a region
            warnings.filterwarnings("ignore", "Only one sample")
            right.append(cross_val_predict(rule, table[mine], crop, groups=near, cv=folds) == crop)
    return float(np.concatenate(right).mean())


def fidelity(
    points: xr.Dataset,
    profiles: xr.Dataset,
    scope: str,
    regions: Sequence[str],
    seed: int,
    draws: int = 20,
    trees: int | None = None,
) -> pd.DataFrame:
    """Are simulated points as hard to recognise as real ones? A row a feature set; accuracies as fractions.

    Columns: ``real``, ``drawn`` (mean of `draws` simulated sets of the same crops and cells), ``difference`` (drawn
    - real) with its 95 % interval ``low``, ``high``: the spread of the simulated sets, which is what chance does to
    a set of this size, t-distributed. Other arguments as for `accuracy`.
    """
    rng = np.random.default_rng(seed)
    sets = [points, *(simulate_like(points, profiles, rng) for _ in range(draws))]
    rows = {}
    for name in FEATURES:
        real, *drawn = (accuracy(one, name, scope, regions, seed, trees) for one in sets)
        half = student.ppf(0.975, draws - 1) * np.std(drawn, ddof=1) * np.sqrt(1 + 1 / draws)
        difference = np.mean(drawn) - real
        rows[name] = real, np.mean(drawn), difference, difference - half, difference + half
    return pd.DataFrame.from_dict(rows, "index", columns=["real", "drawn", "difference", "low", "high"])


def misfit(points: xr.Dataset, phi: float, regions: Sequence[str], seed: int, draws: int = 10) -> float:
    """Root mean square difference of `fidelity` over scopes and feature sets in `regions`, with profiles of `phi`."""
    fitted = fit(points, phi)
    rows = [
        fidelity(points, fitted, scope, [r for r in regions_of(points, scope) if r in regions], seed, draws)
        for scope in SCOPES
    ]
    return float(np.sqrt((pd.concat(rows)["difference"] ** 2).mean()))


def between_months(times: Sequence, months: np.ndarray) -> np.ndarray:
    """Weights (time, month) of a signal that is linear between the middles of `months`."""
    when = pd.DatetimeIndex(list(times))
    return np.stack([np.interp(when.month + (when.day - 15) / 30.4, months, unit) for unit in np.eye(len(months))], 1)


def ceiling(
    profiles: xr.Dataset,
    shares: Mapping[str, float],
    radar: Sequence,
    optical: Sequence,
    seed: int,
    counties: int = 6,
    parcels: int = 2000,
    inside: Sequence[str] = INSIDE,
) -> pd.DataFrame:
    """What the twin's parcels can be told apart by at best: ``scenario``, ``kind``, ``estimate``, ``low``, ``high``.

    Parcels with crops of `shares` have their pure signal on the dates `radar` and `optical`: no speckle, no pixel
    and no sowing shift. Kinds: ``likelihood``, of the county's true distributions, which no classifier passes;
    ``discriminant``, a linear one from `parcels` others of the county. Means and 95 % t-intervals over `counties`.
    Parcels differ by the effects of the levels `inside`; a crop's own effects of other levels are the county's.
    """
    rng, share = np.random.default_rng(seed), np.array(list(shares.values()))
    months, bands = pd.unique(profiles["month"].values), pd.unique(profiles["band"].values)
    outside = [level for level in ("region_crop", "county_crop") if level not in inside]
    roots = [{level: root(profiles, crop, level) for level in (*inside, *outside)} for crop in shares]
    rows = []
    for name, wanted in FEATURES.items():
        dates = {band: optical if band in FEATURES["optical"] else radar for band in bands if band in wanted}
        seen = [np.kron(between_months(days, months), bands == band) for band, days in dates.items()]
        _, value, basis = np.linalg.svd(np.concatenate(seen), full_matrices=False)
        basis = basis[value > 1e-6 * value[0]]  # dates between the same two months say the same
        spread = [basis @ sum(r[level] @ r[level] for level in inside) @ basis.T for r in roots]
        right = []
        for _ in range(counties):
            label = rng.choice(len(share), 2 * parcels, p=share)
            signal, laws = np.zeros((2 * parcels, len(basis))), []
            for i, (crop, r) in enumerate(zip(shares, roots, strict=True)):
                own = sum(r[level] @ rng.standard_normal(len(r[level])) for level in outside)
                laws.append(multivariate_normal(basis @ (profiles["mean"].sel(crop=crop).values + own), spread[i]))
                signal[label == i] = laws[i].rvs((label == i).sum(), rng).reshape(-1, len(basis))
            score = np.stack([law.logpdf(signal) for law in laws], -1) + np.log(share)
            linear = LinearDiscriminantAnalysis().fit(signal[:parcels], label[:parcels]).predict(signal[parcels:])
            right.append([np.mean(p == label[parcels:]) for p in (score.argmax(-1)[parcels:], linear)])
        half = student.ppf(0.975, counties - 1) * np.std(right, axis=0, ddof=1) / np.sqrt(counties)
        for kind, mean, h in zip(("likelihood", "discriminant"), np.mean(right, axis=0), half, strict=True):
            rows.append((name, kind, mean, max(mean - h, 0.0), min(mean + h, 1.0)))
    return pd.DataFrame(rows, columns=["scenario", "kind", "estimate", "low", "high"])


def within_fields(values: xr.DataArray, parcels: np.ndarray) -> pd.Series:
    """How pixels of one field differ: standard deviations in the unit of `values` (time, y, x), NaN where not seen.

    `parcels (y, x)` numbers the fields from 1 on; 0 and pixels beside another field count for none. ``date``: on one
    date, noise and speckle with it; ``near``, ``far``: the square root of the covariance of a pixel's deviations
    from its field between dates 7 to 20, and over 30 days apart, which noise and speckle do not share;
    ``neighbour``: the correlation of two pixels beside each other.
    """
    inner = np.where(maximum_filter(parcels, 3) == minimum_filter(parcels, 3), parcels, 0)
    field, seen = inner[inner > 0], values.values[:, inner > 0]
    by_field = pd.DataFrame(seen.T).groupby(field)
    deviation = np.full(values.shape, np.nan)
    deviation[:, inner > 0] = seen - by_field.transform("mean").to_numpy().T
    freedom = len(field) / (len(field) - by_field.ngroups)  # a field's own mean takes one
    flat = pd.DataFrame(deviation[:, inner > 0].T)
    product = flat.cov(ddof=0).to_numpy() * freedom
    days = np.abs(np.subtract.outer(values["time"].values, values["time"].values)) / np.timedelta64(1, "D")
    parts = {"date": days == 0, "near": (days >= 7) & (days <= 20), "far": days > 30}
    spread = {name: np.sqrt(max(np.nanmean(product[pairs]), 0)) for name, pairs in parts.items()}
    beside = (inner[:, 1:] == inner[:, :-1]) & (inner[:, 1:] > 0)
    together = np.nanmean((deviation[..., 1:] * deviation[..., :-1])[:, beside])
    return pd.Series(spread | {"neighbour": together / np.nanmean(deviation**2)})


def _shares(points: xr.Dataset, deviation: np.ndarray, bands: int, phi: float) -> np.ndarray:
    """Shares (level, band, band) of the levels, of standardised deviations (point, feature)."""
    names = ("group", "cell", "neighbourhood", "crop")
    same = {name: points[name].values[:, None] == points[name].values for name in names}

    def together(outer: str, inner: str | None, alike: bool) -> np.ndarray:
        """Mean product by band of pairs in one `outer` cell and, if there is an `inner`, not in one of those."""
        pairs = same[outer] & (same["crop"] == alike) & ~(same[inner] if inner else np.eye(len(deviation), dtype=bool))
        weight = pairs / same[outer].sum(axis=1, keepdims=True)  # a large cell counts by its points, not its pairs
        product = (deviation * (weight @ deviation)).sum(axis=0) / weight.sum()
        return product.reshape(-1, bands).mean(axis=0)

    cells = [("group", "cell"), ("cell", "neighbourhood"), ("neighbourhood", None)]
    others, mates = (np.array([together(*pair, alike) for pair in cells]) for alike in (False, True))
    common = np.diff(others, axis=0, prepend=0).clip(0)
    own = np.diff(mates - others, axis=0, prepend=0).clip(0)
    between = common[0] + own[0]
    above = [(1 - phi) * between, phi * between, common[1], own[1], common[2]]
    share = [np.sqrt(np.outer(s, s)) for s in above]
    rest = _positive(np.ones((bands, bands)) - sum(share))
    parcel = np.sqrt(own[2] / np.diag(rest)).clip(max=1)
    parcel = rest * np.outer(parcel, parcel)
    return np.stack([*share, parcel, _positive(rest - parcel)])


def _positive(matrix: np.ndarray) -> np.ndarray:
    """The nearest positive semi-definite matrix."""
    value, vector = np.linalg.eigh(matrix)
    return (vector * value.clip(0)) @ vector.T


def _is_radar(cube: xr.DataArray) -> xr.DataArray:
    """True for the bands in decibels (named ``*_db``)."""
    return cube["band"].str.endswith("_db")


def _to_gaussian(values: xr.DataArray) -> xr.DataArray:
    """Radar as it is (dB), reflectance as its natural logarithm."""
    return values.where(_is_radar(values), np.log(values.where(~_is_radar(values), 1).clip(min=DARKEST)))
