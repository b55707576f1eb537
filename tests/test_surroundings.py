"""Machines that are not ours: what somebody's surroundings lack or set reaches no result and ends in no traceback."""

import os
import subprocess
import sys
from pathlib import Path


def started(root, code, **variables):
    """Run code that imports the helper module, with other environment variables; what it printed."""
    surroundings = {name: value for name, value in os.environ.items() if name not in HOMES} | variables
    surroundings["PYTHONPATH"] = str(root)
    done = subprocess.run([sys.executable, "-c", code], env=surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


HOMES = ("XDG_CACHE_HOME", "MPLCONFIGDIR", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "NUMBA_CACHE_DIR")


def test_a_home_that_cannot_be_written_is_not_needed(root, tmp_path):
    code = f"import cropnb, os; print(*(os.environ.get(name, '-') for name in {HOMES}))"
    for home in ("/dev/null", "/nonexistent"):
        places = set(started(root, code, HOME=home, TMPDIR=str(tmp_path)).split())
        assert places == {str(tmp_path / f"cropnb-{os.getuid()}")}
        assert Path(*places).stat().st_mode & 0o777 == 0o700
    assert set(started(root, code, HOME=str(tmp_path)).split()) == {"-"}
