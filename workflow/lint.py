"""Style of code and chapters: ruff (lint and format) on both, spelling by codespell; types of the helper by mypy.

Chapters are checked as jupytext sees them: converted to notebooks in a temporary folder.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import jupytext

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def take_code(source: Path, fixed) -> None:
    """Put the mended code cells into the chapter and leave every other byte of it alone."""
    text, place = source.read_text(), 0
    for old, new in zip(jupytext.read(source, fmt="md:myst").cells, fixed.cells, strict=True):
        place = text.index(old.source, place)
        text = text[:place] + new.source + text[place + len(old.source) :]
        place += len(new.source)
    if text != source.read_text():
        source.write_text(text)


def main() -> int:
    fix = "--fix" in sys.argv
    with tempfile.TemporaryDirectory() as folder:
        notebooks = Path(folder) / "notebooks"
        notebooks.mkdir()
        pairs = [(source, notebooks / f"{source.stem}.ipynb") for source in (ROOT / "notebooks").glob("*.md")]
        for source, notebook in pairs:
            jupytext.write(jupytext.read(source, fmt="md:myst"), notebook)
        settings = ["--quiet", "--config", ROOT / "pyproject.toml"]
        narrow = ["--line-length", "76"]  # what a page shows without scrolling
        check = [BIN / "ruff", "check", *settings, *(["--fix"] if fix else [])]
        formatting = [BIN / "ruff", "format", *settings, *([] if fix else ["--diff"])]
        commands = [
            [*check, ROOT],
            [*check, "--ignore", "B018,E402,E501,E703", notebooks],
            [*formatting, ROOT],
            [*formatting, *narrow, notebooks],
            [BIN / "codespell", ROOT],
            [BIN / "deptry", "--no-ansi", ".", notebooks],
            [BIN / "mypy", "--no-error-summary"],
        ]
        failed = [subprocess.run(command, cwd=ROOT).returncode for command in commands]
        if fix:
            for source, notebook in pairs:
                take_code(source, jupytext.read(notebook))
    if any(failed):
        print(
            "Style or spelling is off; `.venv/bin/python workflow/lint.py --fix` mends most of it.",
            file=sys.stderr,
        )
    return max(failed)


if __name__ == "__main__":
    sys.exit(main())
