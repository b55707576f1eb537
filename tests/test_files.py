"""Whole or not at all."""

import json
import os
import time

import numpy as np
import pandas as pd
import pytest

from cropnb import files


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("before", [False, True])
def test_an_artefact_appears_whole(tmp_path, kind, before):
    path = tmp_path / "deep" / "thing"

    def fill(place, text):
        if kind == "folder":
            place.mkdir()
            place = place / "inside"
        place.write_text(text)

    if before:
        with files.whole(path) as part:
            fill(part, "old")
    with files.whole(path) as part:
        fill(part, "new")
        assert path.exists() == before
    assert (path / "inside" if kind == "folder" else path).read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["thing"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_was_there_survives_a_failure(tmp_path, kind):
    path = tmp_path / "thing"
    if kind == "folder":
        path.mkdir()
        (path / "inside").write_text("old")
    else:
        path.write_text("old")

    def fail():
        with files.whole(path) as part:
            if kind == "folder":
                part.mkdir()
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert (path / "inside" if kind == "folder" else path).read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["thing"]


def test_what_a_killed_process_left_is_swept_away_after_a_day(tmp_path):
    old, young = tmp_path / ".thing-a.part", tmp_path / ".thing-b.part"
    old.mkdir()
    young.mkdir()
    os.utime(old, (time.time() - 2 * files.ABANDONED,) * 2)
    with files.whole(tmp_path / "thing") as part:
        part.write_text("new")
    assert sorted(p.name for p in tmp_path.iterdir()) == [young.name, "thing"]


def test_json_is_utf8_and_readable(tmp_path):
    files.write_json(tmp_path / "a.json", {"crop": "maïs"})
    text = (tmp_path / "a.json").read_text("utf-8")
    assert "maïs" in text
    assert json.loads(text) == {"crop": "maïs"}


def test_a_table_tells_every_flipped_byte_of_its_pages(tmp_path):
    table = pd.DataFrame({"x": np.random.default_rng(0).random(5000), "set": ["train", "test"] * 2500})
    path = tmp_path / "table.parquet"
    files.write_table(path, table)
    pd.testing.assert_frame_equal(files.read_table(path), table)
    content = path.read_bytes()
    for place in range(200, len(content) - 2000, len(content) // 23):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match=r"table\.parquet is damaged .*remove it and run the build"):
            files.read_table(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is damaged"):
        files.read_table(path)
    with pytest.raises(FileNotFoundError, match="is missing: run the build"):
        files.read_table(tmp_path / "none.parquet")
