"""Whole or not at all: how every artefact of the book comes to its place on disk."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

ABANDONED = 86_400  # seconds after which what a killed process left behind is swept away


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A place beside `path` to write a file or a folder to, which takes its name when the block ends well.

    What was there before stays until then, and stays for good when the block raises: a reader finds the old
    artefact, the new one, or (for a folder, between two renames) none, and never a part of one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}-*.part"):
        if time.time() - left.stat().st_mtime > ABANDONED:
            shutil.rmtree(left, ignore_errors=True)
    room = Path(tempfile.mkdtemp(prefix=f".{path.name}-", suffix=".part", dir=path.parent))
    try:
        part = room / path.name
        yield part
        if part.is_file():
            with part.open("rb") as file:
                os.fsync(file.fileno())  # a power cut must not leave the name without its bytes
        if path.is_dir():  # a folder is replaced by nothing but an empty one
            path.rename(room / "old")
        os.replace(part, path)
    finally:
        shutil.rmtree(room, ignore_errors=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as JSON in UTF-8, whole or not at all."""
    with whole(path) as part:
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as Parquet with a checksum a page, whole or not at all."""
    with whole(path) as part:
        table.to_parquet(part, write_page_checksum=True)


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a Parquet table and compare its checksums.

    Raises FileNotFoundError where there is none, ValueError naming a file that is cut short or damaged.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing: run the build, which makes it.")
    try:
        return pd.read_parquet(path, page_checksum_verification=True)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged ({reason}): remove it and run the build, which makes it anew.") from None
