"""The rules by which products are chosen, for what a catalogue lists and for what lies in a folder alike."""

from collections import Counter
from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import shapely

SLICE = pd.Timedelta(seconds=5)  # two processings of one slice may start this far apart, two slices do not
PASS = pd.Timedelta(minutes=10)  # a satellite comes back after ninety; over midnight and the equator it is one pass


def row(product: str, sensor: str, **about: Any) -> dict:
    """A product as the rules see it; `why` it is not used is empty where it is."""
    known = {"time": pd.NaT, "track": "", "cloud_cover": None, "version": "", "footprint": shapely.Polygon()}
    return {"product": product, "sensor": sensor, "covered": 0.0, "why": ""} | known | about


def choose(
    rows: Sequence[dict],
    area: shapely.Geometry,
    what: str,
    season: Sequence[date],
    orbits: Sequence[int] = (),
    max_cloud: float = 1.0,
    dates: int = 0,
    min_covered: float = 0.99,
) -> list[list[dict]]:
    """The passes of one sensor to use, in order of time, each a list of its products; fills `why` and `covered`.

    Of several processings of the same data the newest is used. Products of one pass are one acquisition: it is used
    where they cover the area together. `dates` passes, spread evenly, are used; all where 0.
    Raises ValueError where none can be used: `what`, and why.
    """
    for each in rows:
        each["footprint"] = shapely.make_valid(each["footprint"]).intersection(area)
        each["covered"] = round(each["footprint"].area / area.area, 4)
        if not each["why"] and pd.isna(each["time"]):
            each["why"] = "without a time"
    fit = sorted((each for each in rows if not each["why"]), key=lambda each: (each["time"], each["product"]))
    named = [(each, *_data(each)) for each in fit]
    for each, start, data in named:
        newest = max(o["version"] for o, time, other in named if other == data and abs(time - start) <= SLICE)
        if each["version"] < newest:
            each["why"] = "of an older processing"
        elif not each["covered"]:
            each["why"] = "off the region"
        elif each["sensor"] == "optical" and each["cloud_cover"] is None:
            each["why"] = "of unknown cloud cover"
        elif each["sensor"] == "optical" and each["cloud_cover"] > max_cloud:
            each["why"] = f"above {max_cloud:.0%} cloud"
    passes: list[list[dict]] = []
    for each in (each for each in fit if not each["why"]):
        if passes and each["time"] - passes[-1][-1]["time"] <= PASS:
            passes[-1].append(each)
        else:
            passes.append([each])
    first, last = (pd.Timestamp(day) for day in season)
    for one in passes:
        union, tracks = shapely.union_all([each["footprint"] for each in one]), {each["track"] for each in one}
        if not first <= one[0]["time"] < last + pd.Timedelta(days=1):
            _tell(one, "out of the season")
        elif orbits and one[0]["sensor"] == "sar" and not tracks & set(map(str, orbits)):
            _tell(one, "of another track")
        elif union.area < min_covered * area.area:
            _tell(one, f"cover less than {min_covered:.0%} of the region")
    whole = [one for one in passes if not one[0]["why"]]
    if not whole:
        counted = sorted(Counter(each["why"] for each in rows).items())
        why = ", ".join(f"{count} {reason}" for reason, count in counted) or "it lists none"
        smaller = ", or draw the bounds inside what they cover" if "cover less" in why else ""
        days = f"from {first:%Y-%m-%d} to {last:%Y-%m-%d}"
        raise ValueError(f"{what} {days} ({why}): widen the season or the rules of selection{smaller}.")
    kept = np.linspace(0, len(whole) - 1, min(dates or len(whole), len(whole))).round()
    for one in (one for i, one in enumerate(whole) if i not in kept):
        _tell(one, f"more than the {dates} dates that are wanted")
    return [one for one in whole if not one[0]["why"]]


def _tell(one: Sequence[dict], why: str) -> None:
    for each in one:
        each["why"] = why


def _data(each: dict) -> tuple[pd.Timestamp, tuple[str, ...]]:
    """Start of a product, and what two processings of the same data share of their names."""
    name = each["product"].split("_")
    if name[0].startswith("S2"):  # satellite, level, time, baseline, orbit, tile, made
        return each["time"], (name[0], *name[4:6])
    if len(name) < 10:  # made by another tool
        return each["time"], tuple(name)
    return pd.Timestamp(name[5]), (*name[:5], *name[7:9])  # all but start, stop and checksum
