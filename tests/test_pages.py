"""What a page says."""

import numpy as np
import pandas as pd
import pytest

from cropnb import pages


def test_an_interval_in_words():
    row = pd.Series({"estimate": 0.7241, "low": 0.651, "high": 0.788})
    assert pages.percent(row) == "72.4 (65.1 to 78.8)"
    assert pages.percent(dict(row), sign="+") == "+72.4 (+65.1 to +78.8)"
    assert pages.percent(row * np.nan) == "–"


@pytest.mark.parametrize(
    ("names", "words"),
    [([], "none"), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")],
)
def test_names_in_words(names, words):
    assert pages.listed(names) == words


def test_values_reach_the_sentences(monkeypatch):
    said = {}
    monkeypatch.setattr("myst_nb.glue", lambda name, value, display: said.update({name: value}))
    row = pd.Series({"estimate": 0.5, "low": 0.4, "high": 0.6})
    pages.say(oa=row, blocks=np.int64(13), names=["a", "b"], share=0.25, word="maize")
    assert said == {"oa": "50.0 (40.0 to 60.0)", "blocks": 13, "names": "a and b", "share": 0.25, "word": "maize"}
    assert type(said["blocks"]) is int
