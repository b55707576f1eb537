"""A chapter finds the project's root from wherever its kernel starts, and knows whether somebody watches."""

import subprocess
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


def test_a_copied_checkout_refuses_the_helper_module_of_another(tmp_path, monkeypatch):
    (tmp_path / "data_manifest.yaml").touch()
    (tmp_path / "cropnb").mkdir()
    (tmp_path / "cropnb/__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match=f"lies in {tmp_path}, but its kernel runs the helper module of"):
        project.enter()


def test_the_commit_is_of_this_checkout_alone(tmp_path, monkeypatch):
    assert project.commit() != ""
    git = ["git", "-C", tmp_path, "-c", "user.name=writer", "-c", "user.email=writer@example.org"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "Another project"]):
        subprocess.run([*git, *words], check=True)
    (tmp_path / "book").mkdir()
    monkeypatch.setattr(project, "HERE", tmp_path / "book")
    assert project.commit() == "unknown"  # a repository around it is another's
    monkeypatch.setattr(project, "HERE", tmp_path)
    assert len(project.commit()) >= 7
    monkeypatch.setenv("PATH", str(tmp_path))
    assert project.commit() == "unknown"


def test_a_gpu_that_is_not_used_is_not_named(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: H100 (UUID: 0)'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert "no GPU" in project.device()
