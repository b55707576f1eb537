"""A chapter finds the project's root from wherever its kernel starts, and knows whether somebody watches."""

from pathlib import Path
from types import SimpleNamespace

import IPython
import pytest

from cropnb import project


def test_enters_the_nearest_root_above(tmp_path, monkeypatch):
    (tmp_path / "data_manifest.yaml").touch()
    inside = tmp_path / "notebooks" / "drafts"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    project.enter()
    assert Path.cwd() == tmp_path


def test_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"No data_manifest\.yaml in .*; open the notebook inside a checkout"):
        project.enter()


def test_bars_are_shown_where_somebody_watches(monkeypatch):
    monkeypatch.delenv("CROPNB_STATIC", raising=False)
    assert not project.watched()  # pytest captures what would be a terminal
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=True))
    assert project.watched()
    monkeypatch.setenv("CROPNB_STATIC", "1")
    assert not project.watched()
