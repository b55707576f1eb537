"""Partition of the labelled pixels into training, validation and test sets that share nothing (section 3.2).

The paper groups parcels by a grid of 10 km blocks and gives whole blocks to a set, and is silent on patches:
the 11 x 11 pixels around a sample at the border of a block reach into the next. Here each set owns a
territory, its blocks with the whole of their parcels, and only pixels whose footprint (the patch around them)
lies inside the territory of their set are taken.

Where the parcels lie in too few blocks, a block size of 0 makes every parcel a block of its own: no parcel is
shared and no footprint holds a pixel of another set's parcel, but sets are neighbours, and what is found holds
for other parcels of this place, not for another place.
"""

import logging
from itertools import combinations
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import xarray as xr
from scipy.ndimage import distance_transform_edt, maximum_filter, minimum_filter
from scipy.spatial import cKDTree

from cropnb import parcels
from cropnb.parcels import NO_CROP

log = logging.getLogger(__name__)

SETS = ("train", "validation", "test")
SIZES = (10_000, 5_000, 2_000, 1_000, 500, 200)  # of blocks that are suggested, metres
ACROSS = 10_000  # a block's number is its row x ACROSS + its column
RESTARTS, TRIES = 40, 5  # of the search for an assignment, and how many are laid on the raster; all of parcels
HELP = "smaller blocks, another seed, a smaller fraction or patch, or merging classes would help"


def blocks(labels: xr.Dataset, parcels: gpd.GeoDataFrame, size_m: float) -> pd.Series:
    """Return the block of each parcel, by parcel_id: the grid cell that holds its representative point.

    labels: raster (y, x) at whose upper left corner the grid starts; of a parcel that leaves it, the part inside
    counts. A block's number is its row times 10,000 plus its column; with a size of 0 m it is the parcel's own.
    """
    if size_m == 0:
        return parcels.set_index("parcel_id", drop=False)["parcel_id"].rename("block")
    left, top = _corner(labels)
    right, bottom = labels["x"].values[-1], labels["y"].values[-1]  # half a pixel inside, and so in the last block
    part = parcels.geometry.clip_by_rect(left, bottom, right, top)
    point = part.where(~part.is_empty, parcels.geometry).representative_point()
    column, row = np.floor((point.x - left) / size_m), np.floor((top - point.y) / size_m)
    return pd.Series((row * ACROSS + column).to_numpy(np.int64), index=parcels["parcel_id"], name="block")


def reference(folder: str | Path, size_m: float) -> xr.Dataset:
    """Labels of a region folder as rasters (y, x): crop, parcel, and block, which is -1 outside parcels.

    Raises what `parcels.labelled` raises.
    """
    fields, labels = parcels.labelled(folder)
    of_parcel = blocks(labels, fields, size_m)
    ids, place = np.unique(labels["parcel"], return_inverse=True)
    block = of_parcel.reindex(ids, fill_value=-1).to_numpy()[place].reshape(labels["parcel"].shape)
    return labels.assign(block=(("y", "x"), block))


def require_split(labels: xr.Dataset, parcels: gpd.GeoDataFrame, block_size: float, patch: int, seed: int) -> None:
    """Raise ValueError, with the block size (m) that would do, where no split can be had even without clouds.

    patch: side in pixels of the largest patch; where every parcel is a block of its own it is 11 at most.
    """

    def fault(size: float) -> str:
        try:
            found = split(labels, parcels, block_size=size, patch=patch if size else min(patch, 11), seed=seed)
        except ValueError as error:
            return str(error)
        alone = found.loc[found["set"] == "test", "block"].nunique() < 2  # no interval can be had
        return f"with blocks of {size:g} m a single one is left to test, and an accuracy needs two or more" * alone

    if why := fault(block_size):
        fits = next((size for size in (*SIZES, 0) if not fault(size)), None)
        remedy = f"Set block_size to {fits} in the region's file"
        if fits is None:
            remedy = "No block size would do: give larger parcels, or such as lie 110 m apart, or merge classes"
        alone = ": every parcel is then a block of its own, see the chapter on the split" if fits == 0 else ""
        raise ValueError(f"{why[0].upper()}{why[1:]}. {remedy}{alone}.")


def split(
    labels: xr.Dataset,
    parcels: gpd.GeoDataFrame,
    *,
    block_size: float,
    fraction: float = 0.10,
    shares: tuple[float, float, float] = (0.6, 0.2, 0.2),
    patch: int = 11,
    complete: np.ndarray | None = None,
    tolerance: float = 0.01,
    seed: int,
) -> pd.DataFrame:
    """Draw `fraction` of the labelled pixels, by class and in the ratio `shares`, from sets of whole blocks.

    labels: parcel and crop (y, x) of `cropnb.parcels.rasterise`; blocks start at its upper left corner.
    block_size: in metres. patch: side of a sample in pixels, odd. complete (y, x): which pixels have values on
    all dates; a sample's whole patch must (section 4.4). tolerance: largest difference between the share of a
    class in a set and in all labelled pixels.

    Returns a row a pixel: y, x (m), row, col, parcel_id, block, crop, set. Its `attrs` hold the parameters
    and how many pixels were left out and why. Raises ValueError saying which constraint fails and what helps.
    """
    if patch % 2 == 0 or not 0 < fraction <= 1 or not np.isclose(sum(shares), 1) or min(shares) <= 0:
        raise ValueError(f"{patch=} must be odd, {fraction=} in (0, 1], {shares=} positive with the sum 1")
    rng, classes, parts = np.random.default_rng(seed), labels.attrs["classes"], np.asarray(shares)
    pixels = _labelled(labels, parcels, block_size)
    complete = np.ones(labels["crop"].shape, bool) if complete is None else np.asarray(complete)
    if complete.shape != labels["crop"].shape:
        raise ValueError(f"complete is {complete.shape}, the labels are {labels['crop'].shape}: give one grid")
    whole = minimum_filter(complete, patch)[pixels["row"], pixels["col"]]
    ids, block = np.unique(pixels["block"], return_inverse=True)
    counts = np.zeros((len(ids), len(classes)))
    np.add.at(counts, (block, pixels["code"]), 1)
    if few := {classes[c]: int(n) for c, n in enumerate((counts > 0).sum(axis=0)) if n < len(SETS)}:
        raise ValueError(f"classes lie in fewer than three blocks of {block_size:g} m (blocks of each: {few}): {HELP}")
    wanted = np.maximum(np.rint(fraction * parts[:, None] * counts.sum(axis=0)), 1).astype(int)
    found: list[tuple] = []
    for owner in _assignments(counts, parts, rng)[: None if block_size == 0 else TRIES]:
        pixels["set"] = owner[block]
        free, edge = _free(labels, pixels, dict(zip(ids, owner, strict=True)), block_size, patch)
        alone, free = free, free & whole
        available = np.zeros_like(wanted)
        np.add.at(available, (pixels["set"][free], pixels["code"][free]), 1)
        missing = np.clip(1 - available / wanted, 0, None).max()
        if not found or missing < found[0][0]:
            found = [(missing, np.minimum(wanted, available), pixels.assign(free=free, edge=edge, alone=alone))]
        if not missing:
            break
    ((_, taken, pixels),) = found
    where = f"with blocks of {block_size:g} m and {patch} x {patch} patches"
    if none := [f"{classes[c]} in {SETS[s]}" for s, c in np.argwhere(taken == 0)]:
        raise ValueError(f"{where} no pixel is left of {', '.join(none)}: {HELP}")
    if (differ := _deviation(taken, counts.sum(axis=0))) > tolerance:
        raise ValueError(f"{where} class shares differ by {differ:.3f}, more than {tolerance:g}: {HELP}")
    if short := int((wanted - taken).sum()):
        log.warning("%s %d of %d pixels could not be drawn: %s", where, short, wanted.sum(), HELP)
    drawn = _draw(pixels[pixels["free"]], taken, labels, rng)
    drawn.attrs = {"block_size": block_size, "fraction": fraction, "shares": parts.tolist(), "patch": patch}
    drawn.attrs |= {"tolerance": tolerance, "seed": seed, "labelled": len(pixels), "blocks": len(ids)}
    drawn.attrs |= {"footprint_leaves_the_grid": int(pixels["edge"].sum())}
    drawn.attrs |= {"footprint_reaches_another_set": int((~pixels["alone"] & ~pixels["edge"]).sum())}
    drawn.attrs |= {"footprint_has_missing_values": int((pixels["alone"] & ~whole).sum())}
    drawn.attrs |= {"available": int(pixels["free"].sum()), "short": short}
    return drawn


def random_split(
    labels: xr.Dataset, parcels: gpd.GeoDataFrame, like: pd.DataFrame, *, block_size: float, seed: int
) -> pd.DataFrame:
    """Draw as many pixels of each class and set as `like` has, anywhere: the split that leaks, to compare."""
    rng, classes = np.random.default_rng(seed), labels.attrs["classes"]
    wanted = np.array([[((like["set"] == s) & (like["crop"] == c)).sum() for c in classes] for s in SETS])
    pixels = _labelled(labels, parcels, block_size).sample(frac=1, random_state=rng)
    turn = pixels.groupby("code").cumcount().to_numpy()
    # the first of a class are for training, the next for validation, the next for the test
    pixels["set"] = (turn >= wanted.cumsum(axis=0)[:, pixels["code"]]).sum(axis=0)
    return _draw(pixels[pixels["set"] < len(SETS)], wanted, labels, rng)


def audit(
    split: pd.DataFrame,
    labels: xr.Dataset,
    parcels: gpd.GeoDataFrame,
    *,
    block_size: float,
    patch: int = 11,
    fraction: float = 0.10,
    shares: tuple[float, float, float] = (0.6, 0.2, 0.2),
    tolerance: float = 0.01,
) -> pd.DataFrame:
    """Check a split from its pixels alone, whatever made it: a row a check, what was found, what is allowed.

    Parcel, block and crop are looked up anew at each pixel, and the footprints painted on the raster.
    """
    parcel, crop = (labels[name].values for name in ("parcel", "crop"))
    classes, names = labels.attrs["classes"], np.full(256, "", object)
    names[: len(classes)] = classes
    row, col, group = split["row"].to_numpy(), split["col"].to_numpy(), split["set"].to_numpy()
    block = blocks(labels, parcels, block_size).reindex(parcel[row, col]).to_numpy()
    true = pd.DataFrame({"parcel": parcel[row, col], "block": block, "crop": names[crop[row, col]], "set": group})
    place = np.isclose(split["y"], labels["y"].values[row]) & np.isclose(split["x"], labels["x"].values[col])
    named = (split["parcel_id"].to_numpy() == true["parcel"]) & (split["crop"].to_numpy() == true["crop"])
    leaves = np.minimum(np.minimum(row, parcel.shape[0] - 1 - row), np.minimum(col, parcel.shape[1] - 1 - col))
    checks: list[tuple] = [
        ("pixels whose place, parcel or crop is not the raster's", (~(place & named)).sum(), "at most", 0),
        ("pixels drawn twice", split.duplicated(["row", "col"]).sum(), "at most", 0),
        ("patches that leave the grid", (leaves < patch // 2).sum(), "at most", 0),
    ]
    for name in ("parcel", "block"):
        pairs = true.drop_duplicates([name, "set"])
        several = pairs[name][pairs[name].duplicated()].nunique()
        checks.append((f"{name}s in more than one set", several, "at most", 0))
    footprint, centre = {}, {}
    for name in SETS:
        centre[name] = np.column_stack([row, col])[group == name]
        mask = np.zeros(parcel.shape, np.uint8)
        mask[tuple(centre[name].T)] = 1
        footprint[name] = maximum_filter(mask, patch, mode="constant").astype(bool)
        others = true["parcel"][group != name].unique()
        entered = np.isin(parcel[footprint[name]], others).sum()
        checks.append((f"pixels of other sets' parcels under {name} patches", entered, "at most", 0))
    for a, b in combinations(SETS, 2) if block_size else ():  # sets of parcels may share the ground between them
        both = (footprint[a] & footprint[b]).sum()
        distance = cKDTree(centre[a]).query(centre[b], p=np.inf)[0].min(initial=np.inf)
        checks.append((f"pixels under patches of both {a} and {b}", both, "at most", 0))
        checks.append((f"rows or columns between {a} and {b} centres", distance, "at least", patch))
    population = np.bincount(crop[crop != NO_CROP], minlength=len(classes))
    table = pd.crosstab(group, true["crop"]).reindex(index=SETS, columns=classes, fill_value=0).to_numpy()
    sizes, least = table.sum(axis=1) / len(split), (table + 0.5) / (fraction * np.outer(shares, population))
    most, enough = ("at most", tolerance), ("at least", fraction * (1 - tolerance))
    checks += [
        ("difference of a class share from that in all labels", _deviation(table, population), *most),
        ("difference of a set's share from the one asked for", abs(sizes - shares).max(), *most),
        ("share of labelled pixels drawn", len(split) / population.sum(), *enough),
        ("drawn of the asked, class and set with the least", min(least.min(), 1), "at least", 0.9),
    ]
    frame = pd.DataFrame(checks, columns=["check", "found", "rule", "bound"]).astype({"found": float, "bound": float})
    upper = frame["rule"] == "at most"
    frame["passed"] = np.where(upper, frame["found"] <= frame["bound"], frame["found"] >= frame["bound"])
    return frame


def _corner(labels: xr.Dataset) -> tuple[float, float]:
    """Left and top of the grid (m)."""
    x, y = labels["x"].values, labels["y"].values
    return float(x[0] - (x[1] - x[0]) / 2), float(y[0] - (y[1] - y[0]) / 2)


def _labelled(labels: xr.Dataset, parcels: gpd.GeoDataFrame, block_size: float) -> pd.DataFrame:
    """Return row, col, code (position in the classes), parcel_id and block of each labelled pixel."""
    row, col = np.nonzero(labels["crop"].values != NO_CROP)
    code, ids = labels["crop"].values[row, col], labels["parcel"].values[row, col]
    block = blocks(labels, parcels, block_size).reindex(ids).to_numpy(float)
    if not len(row) or np.isnan(block).any():
        raise ValueError("the labels hold no pixel, or parcels that are not given: rasterise these parcels")
    columns = {"row": row, "col": col, "code": code, "parcel_id": ids, "block": block.astype(np.int64)}
    return pd.DataFrame(columns)


def _deviation(table: np.ndarray, population: np.ndarray) -> float:
    """Largest difference between the share of a class in a set (row of `table`) and in the population."""
    return float(abs(table / table.sum(axis=1, keepdims=True) - population / population.sum()).max())


def _assignments(counts: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Return sets for the blocks, best first: every class as near to `shares` as whole blocks allow.

    A seeded search that moves one block at a time. StratifiedGroupKFold makes equal folds in one greedy pass;
    where borders leave a rare class too few pixels it has no second assignment to try.
    """
    target, one = shares[:, None] * counts.sum(axis=0), np.eye(len(SETS))
    found: dict[tuple, float] = {}
    for _ in range(RESTARTS):
        owner, changed = rng.choice(len(SETS), len(counts), p=shares), True
        totals = one[owner].T @ counts
        while changed:
            changed = False
            for i in rng.permutation(len(counts)):
                totals[owner[i]] -= counts[i]
                trial = totals + one[:, :, None] * counts[i]  # (choice, set, class)
                cost = ((trial / target - 1) ** 2 + 1e6 * (trial < 0.5)).sum(axis=(1, 2))
                if cost.min() < cost[owner[i]] - 1e-9:
                    owner[i], changed = cost.argmin(), True
                totals[owner[i]] += counts[i]
        found[tuple(owner)] = cost.min()
    return [np.array(owner) for owner in sorted(found, key=found.__getitem__)]


def _free(
    labels: xr.Dataset, pixels: pd.DataFrame, owners: dict[int, int], block_size: float, patch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return which pixels have their footprint in their own set's territory, and which leave the grid.

    The territories share out every pixel of the grid: a parcel's go with it, others with their block, and those
    of a block without parcels with the nearest that has some. So footprints in two territories share no pixel.
    """
    place = pixels["row"].to_numpy(), pixels["col"].to_numpy()
    if block_size:
        territory = _territories(labels, owners, block_size)
    else:
        territory = np.full(labels["crop"].shape, len(SETS), np.uint8)
    territory[place] = pixels["set"]
    others = np.where(territory == len(SETS), 0, territory)  # land of no set hinders nobody
    alone = minimum_filter(territory, patch) == maximum_filter(others, patch)
    margins = [np.minimum(at, size - 1 - at) for at, size in zip(place, territory.shape, strict=True)]
    edge = np.minimum(*margins) < patch // 2
    return alone[place] & ~edge, edge


def _territories(labels: xr.Dataset, owners: dict[int, int], block_size: float) -> np.ndarray:
    """The set of each pixel's block (y, x)."""
    left, top = _corner(labels)
    row = np.floor((top - labels["y"].values) / block_size).astype(int)
    column = np.floor((labels["x"].values - left) / block_size).astype(int)
    cells = np.full((row.max() + 1, column.max() + 1), len(SETS), np.uint8)
    for block, owner in owners.items():
        i, j = divmod(block, ACROSS)
        if 0 <= i < cells.shape[0] and 0 <= j < cells.shape[1]:
            cells[i, j] = owner
    nearest = distance_transform_edt(cells == len(SETS), return_distances=False, return_indices=True)
    return cells[tuple(nearest)][np.ix_(row, column)]


def _draw(pixels: pd.DataFrame, wanted: np.ndarray, labels: xr.Dataset, rng: np.random.Generator) -> pd.DataFrame:
    """Draw `wanted` (set, class) of the pixels without replacement, as a table of samples."""
    pixels = pixels.sample(frac=1, random_state=rng)
    turn = pixels.groupby(["set", "code"]).cumcount()
    drawn = pixels[turn < wanted[pixels["set"], pixels["code"]]].sort_values(["row", "col"])
    row, col = (drawn[name].to_numpy(np.int32) for name in ("row", "col"))
    table = {"y": labels["y"].values[row].astype(float), "x": labels["x"].values[col].astype(float)}
    table |= {"row": row, "col": col} | {name: drawn[name].to_numpy(np.int64) for name in ("parcel_id", "block")}
    table |= {"crop": np.array(labels.attrs["classes"], object)[drawn["code"]]}
    return pd.DataFrame(table | {"set": np.array(SETS, object)[drawn["set"]]})
