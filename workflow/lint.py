"""Style of code and chapters: ruff (lint and format) on both, spelling by codespell.

Chapters are checked as jupytext sees them: converted to notebooks in a temporary folder.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import jupytext

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def main() -> int:
    fix = "--fix" in sys.argv
    with tempfile.TemporaryDirectory() as folder:
        notebooks = Path(folder) / "notebooks"
        notebooks.mkdir()
        pairs = [(source, notebooks / f"{source.stem}.ipynb") for source in (ROOT / "notebooks").glob("*.md")]
        for source, notebook in pairs:
            jupytext.write(jupytext.read(source, fmt="md:myst"), notebook)
        settings = ["--config", ROOT / "pyproject.toml"]
        commands = [
            [BIN / "ruff", "check", "--quiet", *settings, *(["--fix"] if fix else []), ROOT, notebooks],
            [BIN / "ruff", "format", "--quiet", *settings, *([] if fix else ["--diff"]), ROOT, notebooks],
            [BIN / "codespell", ROOT],
        ]
        failed = [subprocess.run(command, cwd=ROOT).returncode for command in commands]
        if fix:
            for source, notebook in pairs:
                fixed = jupytext.read(notebook)
                if fixed.cells != jupytext.read(source, fmt="md:myst").cells:
                    jupytext.write(fixed, source, fmt="md:myst")
    if any(failed):
        print(
            "Style or spelling is off; `.venv/bin/python workflow/lint.py --fix` mends most of it.",
            file=sys.stderr,
        )
    return max(failed)


if __name__ == "__main__":
    sys.exit(main())
