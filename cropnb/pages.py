"""What a page says: the values of its sentences, put into words in one place."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd


def say(**values: Any) -> None:
    """Give the page's sentences their values, each by the name of its ``{glue:text}``.

    A Series or mapping with ``estimate``, ``low`` and ``high`` is said by `percent`, a list of names by `listed`;
    numbers stay numbers, which a sentence may format (``{glue:text}`name:.1f```).
    """
    from myst_nb import glue  # imports Sphinx, which a helper outside the pages can do without

    for name, value in values.items():
        if isinstance(value, pd.Series | Mapping):
            value = percent(value)
        elif isinstance(value, list | tuple | pd.Index):
            value = listed(value)
        elif isinstance(value, np.generic):
            value = value.item()
        glue(name, value, display=False)


def percent(row: Mapping[str, float] | pd.Series, sign: str = "") -> str:
    """A fraction and its interval in per cent, "72.4 (65.1 to 78.8)"; a dash where a run is absent.

    With `sign` "+" it is a difference, in percentage points.
    """
    if np.isnan(row["estimate"]):
        return "–"
    estimate, low, high = (f"{100 * row[key]:{sign}.1f}" for key in ("estimate", "low", "high"))
    return f"{estimate} ({low} to {high})"


def listed(names: Iterable[str]) -> str:
    """Names in words: "a, b and c"; "none" where there is none."""
    *others, last = [*map(str, names)] or ["none"]
    return " and ".join(filter(None, [", ".join(others), last]))
