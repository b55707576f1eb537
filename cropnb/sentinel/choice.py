"""The rules by which products are chosen, for what a catalogue lists and for what lies in a folder alike."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import shapely

SLICE = pd.Timedelta(seconds=5)  # two processings of one slice may start this far apart, two slices do not
PASS = pd.Timedelta(minutes=10)  # a satellite comes back after ninety; over midnight and the equator it is one pass


def row(product: str, sensor: str, **about: Any) -> dict:
    """A product as the rules see it; `why` it is not used is empty where it is."""
    known = {"time": pd.NaT, "track": "", "cloud_cover": np.nan, "version": "", "footprint": shapely.Polygon()}
    return {"product": product, "sensor": sensor, "covered": 0.0, "why": ""} | known | about


def choose(
    rows: Sequence[dict],
    area: shapely.Geometry,
    *,
    season: Sequence,
    orbits: Sequence[int] = (),
    max_cloud: float = 1.0,
    dates: int = 0,
    min_covered: float = 0.99,
) -> list[list[dict]]:
    """The passes of one sensor to use, in order of time, each a list of its products; fills `why` and `covered`.

    Of several processings of the same data the newest is used. Products of one pass are one acquisition: it is used
    where they cover the area together. `dates` passes, spread evenly, are used; all where 0.
    """
    for each in rows:
        each["footprint"] = shapely.make_valid(each["footprint"]).intersection(area)
        each["covered"] = round(each["footprint"].area / area.area, 4)
        if not each["why"] and pd.isna(each["time"]):
            each["why"] = "without a time"
    fit = sorted((each for each in rows if not each["why"]), key=lambda each: (each["time"], each["product"]))
    for each in fit:
        (start, data), others = _data(each), [(_data(other), other) for other in fit]
        same = [other for (time, name), other in others if name == data and abs(time - start) <= SLICE]
        if each["version"] < max(o["version"] for o in same):
            each["why"] = "of an older processing"
        elif not each["covered"]:
            each["why"] = "off the region"
        elif each["sensor"] == "optical" and not each["cloud_cover"] <= max_cloud:
            unknown = np.isnan(each["cloud_cover"])
            each["why"] = "of unknown cloud cover" if unknown else f"above {max_cloud:.0%} cloud"
    passes: list[list[dict]] = []
    for each in (each for each in fit if not each["why"]):
        if passes and each["time"] - passes[-1][-1]["time"] <= PASS:
            passes[-1].append(each)
        else:
            passes.append([each])
    whole = []
    for one in passes:
        why, union = "", shapely.union_all([each["footprint"] for each in one])
        if not pd.Timestamp(season[0]) <= one[0]["time"] < pd.Timestamp(season[1]) + pd.Timedelta(days=1):
            why = "out of the season"
        elif orbits and not {each["track"] for each in one} & set(map(str, orbits)):
            why = "of another track"
        elif union.area < min_covered * area.area:
            why = f"cover less than {min_covered:.0%} of the region"
        for each in one:
            each["why"] = why
        whole += [] if why else [one]
    count = min(dates or len(whole), len(whole))
    kept = set(np.linspace(0, len(whole) - 1, count).round().astype(int)) if whole else set()
    for i, one in enumerate(whole):
        for each in one:
            each["why"] = "" if i in kept else f"more than the {dates} dates that are wanted"
    return [one for i, one in enumerate(whole) if i in kept]


def refuse(rows: Sequence[dict], what: str, season: Sequence) -> None:
    """Raise ValueError: nothing can be used, and why."""
    counted = Counter(each["why"] for each in rows)
    why = ", ".join(f"{count} {reason}" for reason, count in sorted(counted.items())) or "it lists none"
    smaller = ", or draw the bounds inside what they cover" if "cover less" in why else ""
    first, last = (f"{pd.Timestamp(day):%Y-%m-%d}" for day in season)
    raise ValueError(f"{what} from {first} to {last} ({why}): widen the season or the rules of selection{smaller}.")


def _data(each: dict) -> tuple[pd.Timestamp, tuple[str, ...]]:
    """Start of a product, and what two processings of the same data share of their names."""
    name = each["product"].split("_")
    if name[0].startswith("S2"):  # satellite, level, time, baseline, orbit, tile, made
        return each["time"], (name[0], *name[4:6])
    if len(name) < 10:  # made by another tool
        return each["time"], tuple(name)
    return pd.Timestamp(name[5]), (*name[:5], *name[7:9])  # all but start, stop and checksum
