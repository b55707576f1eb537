"""Whether what chapters wrote is still what they wrote, whoever has been at it since."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

TIMESTAMP = ".snakemake_timestamp"  # by which Snakemake dates a folder
PASSED_OVER = {TIMESTAMP, "__pycache__", ".ipynb_checkpoints"}


def stamps(paths: list[Path]) -> dict[str, dict]:
    """What artefacts are recognised by: number, bytes and last change of their files, and a digest of their content."""
    return {str(path): {"look": _look(path), "sha256": content([path])} for path in paths}


def changed(known: dict[str, dict], thoroughly: bool = False) -> list[str]:
    """Artefacts that hold something other than at the time of their stamps; by their looks first, unless thoroughly.

    One that was written again as it was gets its date back, so that nothing after it is stale.
    """
    found = []
    for name, stamp in known.items():
        path = Path(name)
        if _look(path) == stamp["look"] and not thoroughly:
            continue
        if content([path]) != stamp["sha256"]:
            found.append(name)
            continue
        if path.is_dir():
            (path / TIMESTAMP).touch()
        for file in [*_files(path), *path.glob(TIMESTAMP)]:
            os.utime(file, ns=(stamp["look"][2],) * 2)
    return found


def content(paths: Iterable[Path]) -> str:
    """A digest of what files and folders hold."""
    whole = hashlib.sha256()
    for root in paths:
        for file in _files(root):
            whole.update(str(file.relative_to(root)).encode())
            with file.open("rb") as opened:
                whole.update(hashlib.file_digest(opened, "sha256").digest())
    return whole.hexdigest()


def _look(path: Path) -> list[int]:
    known = [file.stat() for file in _files(path)]
    return [len(known), sum(file.st_size for file in known), max((file.st_mtime_ns for file in known), default=0)]


def _files(path: Path) -> list[Path]:
    files = path.rglob("*") if path.is_dir() else [path]
    return sorted(file for file in files if file.is_file() and not PASSED_OVER & set(file.parts))
