"""Shared by the tests: the workflow's modules importable, and the folder of real data if there is one."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "workflow"))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as cropnb does, where a test imports keras first
os.environ["MPLBACKEND"] = "agg"
os.environ |= dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")  # tests ask no other machine


def pytest_addoption(parser):
    parser.addoption("--profile-built", default="smoke", help="whose rendered pages tests/pages.py looks at")


@pytest.fixture
def root() -> Path:
    """The folder of the project."""
    return ROOT
