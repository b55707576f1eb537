"""Outlines of fields by bounding box, from a file and from a server that gives parts of one."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from odc.geo.geobox import GeoBox
from shapely import box

from cropnb import vectors
from cropnb.data import DataUnavailable

GRID = GeoBox.from_bbox((335000, 5330000, 335400, 5330200), "EPSG:32652", resolution=10)


@pytest.fixture
def fields():
    """Two fields in the grid, the first one twice as later divided, and one far away, in degrees."""
    inside = [box(335000, 5330000, 335200, 5330200), box(335200, 5330000, 335400, 5330100)]
    halves = [box(335000, 5330000, 335100, 5330200), box(335100, 5330000, 335200, 5330200)]
    frame = gpd.GeoDataFrame(geometry=[*inside, *halves, box(400000, 5330000, 400100, 5330100)], crs=GRID.crs)
    frame["determination:datetime"] = np.array(["2024-07-01"] * 2 + ["2025-07-01"] * 3, "datetime64[us]")
    return frame.to_crs("EPSG:4326")


def write(frame, tmp_path, **options):
    frame.to_parquet(tmp_path / "fields.parquet", **{"write_covering_bbox": True} | options)
    return tmp_path / "fields.parquet"


def test_fields_become_numbers_on_the_grid(fields, tmp_path):
    found = vectors.outlines(write(fields.drop(columns="determination:datetime").iloc[[0, 1, 4]], tmp_path), GRID)
    assert (found.shape, found.dtype) == ((20, 40), "int32")
    assert (found[:, 1:19] == found[0, 1]).all()
    assert (found[11:, 21:39] == found[15, 30]).all()
    assert set(np.unique(found)) == {0, 1, 2}
    assert (found[:9, 21:] == 0).all()


def test_of_several_years_the_last_is_taken(fields, tmp_path):
    found = vectors.outlines(write(fields, tmp_path), GRID)
    assert found[10, 5] != found[10, 15]
    assert (found[:, 21:] == 0).all()


class Parts(BaseHTTPRequestHandler):
    """A file and the parts of it that are asked for."""

    def do_GET(self):
        if self.path != f"/{self.server.file.name}":
            self.send_error(404)
            return
        content = self.server.file.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = map(int, asked.groups()) if asked else (0, len(content) - 1)
        part = content[first : last + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self.server.sent.append(len(part))
            self.wfile.write(part)

    do_HEAD = do_GET  # noqa: N815, the names of http.server

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """A server on the loopback that has `server.file` and counts the bytes it has sent."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Parts) as httpd:
        httpd.sent, httpd.url = [], f"http://127.0.0.1:{httpd.server_port}"
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join()


def test_a_server_is_asked_for_what_the_region_needs(fields, tmp_path, server, monkeypatch):
    monkeypatch.delenv("CROPNB_OFFLINE", raising=False)
    monkeypatch.setitem(fsspec.config.conf, "http", {"block_size": 2**16})  # of 5 MB in the field, for larger files
    far = fields.iloc[np.full(150_000, 4)].assign(noise=np.random.default_rng(0).random(150_000))
    fields = pd.concat([fields.assign(noise=0.0), far])
    server.file = write(fields, tmp_path, row_group_size=10_000)
    found = vectors.outlines(f"{server.url}/fields.parquet", GRID)
    np.testing.assert_array_equal(found, vectors.outlines(server.file, GRID))
    assert 0 < sum(server.sent) < server.file.stat().st_size / 2
    with pytest.raises(ValueError, match=r"/none.parquet gives no outlines by bounding box \(.*none.parquet.*\); give"):
        vectors.outlines(f"{server.url}/none.parquet", GRID)


def test_offline_asks_nobody(monkeypatch):
    monkeypatch.setenv("CROPNB_OFFLINE", "1")
    with pytest.raises(DataUnavailable, match=r"forbids the network, and https://example.org/a.parquet needs it; give"):
        vectors.outlines("https://example.org/a.parquet", GRID)


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        (
            lambda f: f,
            {"write_covering_bbox": False},
            r"gives no outlines by bounding box \(.*\); give GeoParquet with one.",
        ),
        (lambda f: f.iloc[[4]], {}, "has no outline in the region; give the file of its country."),
        (lambda f: f.set_crs("EPSG:3857", allow_override=True), {}, "is not in degrees; write it in EPSG:4326."),
        (
            lambda f: f.set_geometry(f.boundary),
            {},
            "holds LineString, which outlines nothing; leave out all but polygons.",
        ),
    ],
    ids=["no bounding boxes", "elsewhere", "metres", "lines"],
)
def test_a_fault_is_one_sentence_that_names_the_file(fields, tmp_path, change, options, sentence):
    path = write(change(fields), tmp_path, **options)
    with pytest.raises(ValueError, match=f"^{path} {sentence}$"):
        vectors.outlines(path, GRID)
