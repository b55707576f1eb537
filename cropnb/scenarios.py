"""Scenarios: which features of the cube a network sees on each date, and how they are scaled."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from cropnb.cube import open_cube, sensors

_BACKSCATTER = ("sar", ("vv_db", "vh_db", "cross_ratio_db"))
_M_CHI = ("sar", ("ps", "pd", "pv"))
_OPTICAL = ("optical", ("red", "narrow_nir", "swir1"))
_AMPLITUDE = ("sar", ("vv_amplitude", "vh_amplitude", "amplitude_ratio"))
# The paper's four scenarios, then the two controls. Each sensor's acquisitions show their own three channels.
SCENARIOS: dict[str, tuple] = {
    "backscatter": (_BACKSCATTER,),
    "m-chi": (_M_CHI,),
    "optical+backscatter": (_OPTICAL, _BACKSCATTER),
    "optical+m-chi": (_OPTICAL, _M_CHI),
    "optical": (_OPTICAL,),
    "amplitude": (_AMPLITUDE,),
}


def scenario(cube_path: str | Path, name: str) -> xr.DataArray:
    """A scenario of `SCENARIOS` as a lazy array (time, y, x, feature) in date order, unscaled.

    Coordinate `sensor` (time) says whose channels a step shows; attrs name the three channels of each sensor.
    """
    if name not in SCENARIOS:
        raise ValueError(f"Unknown scenario {name!r}: choose one of {list(SCENARIOS)}.")
    if reason := left_out(cube_path).get(name):
        others = [other for other in SCENARIOS if other not in left_out(cube_path)]
        raise ValueError(f"{cube_path} cannot give the scenario {name!r}, {reason}: choose one of {others}.")
    parts = []
    for sensor, channels in SCENARIOS[name]:
        group = open_cube(cube_path, sensor).drop_vars("cloud_cover", errors="ignore")
        if "amplitude_ratio" in channels:
            vv = group.vv_amplitude
            group = group.assign(amplitude_ratio=group.vh_amplitude / vv.where(vv > 0))
        part = group[list(channels)].to_dataarray("feature").assign_coords(feature=["1", "2", "3"])
        parts.append(part.assign_coords(sensor=("time", [sensor] * part.sizes["time"])))
    steps = xr.concat(parts, "time", join="exact", coords="minimal", compat="override").sortby("time")
    steps = steps.transpose("time", "y", "x", "feature").chunk(time=-1, feature=-1)
    steps.attrs = {"scenario": name, **{sensor: list(channels) for sensor, channels in SCENARIOS[name]}}
    return steps.rename("features")


def left_out(cube_path: str | Path) -> dict[str, str]:
    """Scenarios that a cube cannot give, and why: what it lacks."""
    held = {sensor: set(open_cube(cube_path, sensor).data_vars) for sensor in sensors(cube_path)}
    reasons = {}
    for name, parts in SCENARIOS.items():
        for sensor, channels in parts:
            if missing := sorted(set(channels) - {"amplitude_ratio"} - held.get(sensor, set())):
                lack = f"{sensor} acquisitions" if sensor not in held else " and ".join(missing)
                reasons[name] = f"the region has no {lack}"
    return reasons


def fit_scaler(steps: xr.DataArray, rows: Sequence[int], columns: Sequence[int], method: str = "min-max") -> dict:
    """Linear scale of each sensor's channels over all dates, from the training pixels alone.

    Parameters
    ----------
    steps
        Unscaled scenario (time, y, x, feature).
    rows, columns
        Pixels of the training samples, and of no other set.
    method
        "min-max" (paper, section 3.1): the smallest value becomes 0, the largest 1. "standard": the mean becomes
        0, the mean and a standard deviation 1.

    Returns
    -------
    dict
        sensor -> {"channels", "zero", "one"} (values that become 0 and 1), for `scale`.
    """
    if method not in ("min-max", "standard"):
        raise ValueError(f"Unknown scaling {method!r}: choose 'min-max' or 'standard'.")
    y, x = (xr.DataArray(np.asarray(index), dims="sample") for index in (rows, columns))
    picked = steps.isel(y=y, x=x).transpose("time", "sample", "feature").compute()
    scaler = {}
    for sensor in dict.fromkeys(picked.sensor.values.tolist()):
        values = picked.values[picked.sensor.values == sensor].reshape(-1, picked.sizes["feature"])
        if not np.isfinite(values).any(axis=0).all():
            raise ValueError(f"No training pixel has a valid {sensor} value: check the cube and the split.")
        if method == "min-max":
            fitted = MinMaxScaler().fit(values)
            zero, one = fitted.data_min_, fitted.data_max_
        else:
            fitted = StandardScaler().fit(values)
            zero, one = fitted.mean_, fitted.mean_ + fitted.scale_
        scaler[sensor] = {"channels": list(steps.attrs[sensor]), "zero": zero.tolist(), "one": one.tolist()}
    return scaler


def scale(steps: xr.DataArray, scaler: Mapping) -> xr.DataArray:
    """Scale a scenario by `fit_scaler`'s values; lazy."""
    sensors = steps.sensor.values.tolist()
    for sensor in dict.fromkeys(sensors):
        fitted, shown = scaler.get(sensor, {}), list(steps.attrs[sensor])
        if (channels := fitted.get("channels")) != shown:
            raise ValueError(f"The scaler was fitted to {channels} but {sensor} shows {shown}: fit it again.")
        if not {"zero", "one"} <= fitted.keys():
            raise ValueError(f"The scaler of {sensor} lacks its values for zero and one: fit it again.")
    low, high = (
        xr.DataArray(np.array([scaler[s][limit] for s in sensors], dtype="float32"), dims=("time", "feature"))
        for limit in ("zero", "one")
    )
    span = (high - low).where(high > low, 1)
    return ((steps - low) / span).transpose(*steps.dims).assign_attrs(steps.attrs, scaled=1)
