"""cropnb.sentinel.catalogue against a server on the loopback that speaks the services' protocols, failures included."""

import hashlib
import io
import json
import logging
import stat
import threading
import traceback
import zipfile
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pandas as pd
import pytest
import shapely
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cropnb.data import DataUnavailable
from cropnb.sentinel import catalogue, choice
from cropnb.sentinel.catalogue import download, elevation, read_lock, search, unpack, write_lock

USER, PASSWORD, TOKEN = "canary-user@example.org", "canary-Pa55&wört", "canary-token-{}"
BOUNDS = (126.7, 48.1, 126.9, 48.2)
EAST, WEST = (126.8, 48.0, 127.5, 48.5), (126.0, 48.0, 126.8, 48.5)  # halves
WHOLE = (126.0, 48.0, 127.0, 48.5)


def make_zip(folder="S1A_IW_SLC.SAFE", size=3000):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(f"{folder}/manifest.safe", "<xml/>")
        archive.writestr(f"{folder}/measurement/iw1-vv.tiff", np.random.default_rng(1).bytes(size))
    return content.getvalue()


GOOD = make_zip(size=300_000)
SIZE = len(GOOD)


def box(west, south, east, north):
    return {
        "type": "Polygon",
        "coordinates": [[[west, south], [east, south], [east, north], [west, north], [west, south]]],
    }


class Handler(BaseHTTPRequestHandler):
    """The catalogue (/v1), the identity service (/token), products (/odata) and the elevation bucket (/dem)."""

    protocol_version = "HTTP/1.1"

    def answer(self, status, content=b"", **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers["Content-Type"] = "application/json"
        self.send_response(status, headers.pop("reason", None))
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def handle_any(self):
        service, path = self.server, urlsplit(self.path).path
        body = self.body()
        service.asked.append((self.command, self.path, self.headers.get("Authorization"), self.headers.get("Range")))
        if service.script and (word := service.script.pop(0)) != "good":
            return self.fail(word, body)
        if path.startswith("/dem"):
            name = path.rsplit("/", 1)[1]
            size = service.tiles.get(name)
            return self.answer(200, b"x" * size, ETag=f'"{"ab" * 16}"') if size else self.answer(404)
        if path == "/token":
            form = parse_qs(body.decode())
            expected = {"client_id": "cdse-public", "grant_type": "password", "username": USER, "password": PASSWORD}
            if form != {name: [value] for name, value in expected.items()}:
                return self.answer(401, {"error": "invalid_grant", "error_description": body.decode()})
            service.tokens += 1
            return self.answer(200, {"access_token": TOKEN.format(service.tokens), "expires_in": 600})
        if path.startswith("/odata"):
            return self.product()
        return self.stac(path, body)

    do_GET = do_POST = do_HEAD = handle_any  # noqa: N815, the names of http.server

    def fail(self, word, body):
        service = self.server
        if word == "cut":
            return self.product(keep=0.5)
        if word == "wrong":
            return self.product(content=GOOD[:-1] + b"?")
        if word == "short":
            return self.product(content=GOOD[:-100])
        if word == "no ranges":
            return self.answer(200, GOOD)
        if word == "elsewhere":
            return self.answer(302, Location=f"http://localhost:{service.server_port}{self.path}")
        if word == "echo":  # repeats all that it was sent, in the reason too
            sent = f"{self.headers.get('Authorization')} {body.decode()}"
            return self.answer(400, sent.encode(), reason=sent.encode("ascii", "replace").decode(), X_Echo="no")
        if word == "not json":
            return self.answer(200, b"<html>maintenance</html>")
        if word == "expired":
            service.valid = TOKEN.format(service.tokens + 1)
            return self.answer(401, {"detail": "Expired signature!"})
        status, _, after = word.partition(" after ")
        return self.answer(int(status), **({"Retry-After": after} if after else {}))

    def product(self, content=GOOD, keep=1.0):
        if not (self.headers.get("Authorization") or "").startswith("Bearer canary-token-"):
            return self.answer(401, {"detail": "Unauthorized"})
        start, headers = 0, {}
        if ranged := self.headers.get("Range"):
            start = int(ranged.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                return self.answer(416, **{"Content-Range": f"bytes */{len(content)}"})
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        rest = content[start:]
        self.send_response(206 if ranged else 200)
        self.send_header("Content-Length", str(len(rest)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(rest[: int(len(rest) * keep)])
        self.close_connection = keep < 1
        return None

    def stac(self, path, body):
        service = self.server
        root = f"{service.url}/v1"
        if path == "/v1":
            conforms = [f"https://api.stacspec.org/v1.0.0/{part}" for part in ("core", "item-search", "collections")]
            links = [
                {"rel": "self", "href": root, "type": "application/json"},
                {"rel": "root", "href": root, "type": "application/json"},
                {"rel": "search", "href": f"{root}/search", "type": "application/geo+json", "method": "GET"},
                {"rel": "search", "href": f"{root}/search", "type": "application/geo+json", "method": "POST"},
            ]
            catalog = {"type": "Catalog", "id": "stac", "stac_version": "1.1.0", "description": "of the tests"}
            return self.answer(200, catalog | {"conformsTo": conforms, "links": links})
        query = json.loads(body)
        service.queries.append(query)
        first, last = (pd.Timestamp(each) for each in query["datetime"].split("/"))
        found = [
            item
            for item in service.items
            if item["collection"] in query["collections"]
            and first <= pd.Timestamp(item["properties"]["datetime"]) <= last
        ]
        page = int(query.get("token", 0))
        features, links = found[page : page + 2], []  # two a page
        if page + 2 < len(found):
            body = query | {"token": str(page + 2)}
            links = [{"rel": "next", "href": f"{root}/search", "method": "POST", "body": body, "merge": False}]
        return self.answer(200, {"type": "FeatureCollection", "features": features, "links": links})

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, *_):  # a client that hangs up is part of the play
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("CROPNB_OFFLINE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CDSE_USERNAME", USER)
    monkeypatch.setenv("CDSE_PASSWORD", PASSWORD)
    with Server(("127.0.0.1", 0), Handler) as httpd:
        httpd.script, httpd.asked, httpd.items, httpd.queries, httpd.tiles = [], [], [], [], {}
        httpd.tokens, httpd.pauses, httpd.url = 0, [], f"http://127.0.0.1:{httpd.server_port}"
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr("time.sleep", httpd.pauses.append)  # of this module and of urllib3
        yield httpd
        httpd.shutdown()
        thread.join()


def item(server, name, time, *, footprint=WHOLE, size=SIZE, content=GOOD, **properties):
    """An item as the catalogue of the Copernicus Data Space has it; the products of the tests are small."""
    radar = name.startswith("S1")
    common = {"datetime": time, "start_datetime": time, "end_datetime": time, "platform": name[:3].lower()}
    common |= {"sat:relative_orbit": 134 if radar else 89, "processing:datetime": "2017-06-01T00:00:00Z"}
    common |= {"sar:instrument_mode": "IW", "sar:polarizations": ["VV", "VH"]} if radar else {"eo:cloud_cover": 2.0}
    asset = {
        "href": f"{server.url}/odata/v1/Products(0c2a0d3e-2b1f-5f70-a1fd-1c0b3b1d2f4e)/$value",
        "type": "application/zip",
        "roles": ["data", "metadata", "archive"],
        "auth:refs": ["oidc"],
        "file:size": size,
        "file:checksum": f"d50110{hashlib.md5(content).hexdigest()}",
    }
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": name,
        "collection": "sentinel-1-slc" if radar else "sentinel-2-l2a",
        "geometry": box(*footprint),
        "bbox": list(footprint),
        "properties": common | properties,
        "assets": {"Product": asset, "safe_manifest": {"href": "s3://eodata/Sentinel-1/manifest.safe"}},
        "links": [],
    }


def radar(server, day, *, made="A1B2", **options):
    name = f"S1A_IW_SLC__1SDV_201705{day:02d}T214213_201705{day:02d}T214240_016447_01B4A6_{made}"
    return item(server, name, f"2017-05-{day:02d}T21:42:13.000000Z", **options)


def optical(server, day, *, tile="T52UCU", baseline="N0500", **options):
    name = f"S2A_MSIL2A_201705{day:02d}T023551_{baseline}_R089_{tile}_20230101T000000"
    return item(server, name, f"2017-05-{day:02d}T02:35:51.024000Z", **options)


def find(server, **options):
    options = {"sensors": ("sar",)} | options
    return search(BOUNDS, "2017-05-01", "2017-05-31", address=f"{server.url}/v1", **options)


# Search


def test_search_reads_every_page(server):
    server.items = [radar(server, day) for day in (29, 5, 17)] + [optical(server, 18), optical(server, 28)]
    table = find(server, sensors=("sar", "optical"))
    assert list(table.columns) == list(catalogue.Product.model_fields)
    assert list(table.sensor) == ["optical"] * 2 + ["sar"] * 3
    assert list(table.time.dt.strftime("%m-%d %H:%M")) == [
        "05-18 02:35", "05-28 02:35", "05-05 21:42", "05-17 21:42", "05-29 21:42",
    ]  # fmt: skip
    assert table.iloc[2].to_dict() | {"time": 0, "cloud_cover": 0} == {
        "time": 0,
        "sensor": "sar",
        "product": "S1A_IW_SLC__1SDV_20170505T214213_20170505T214240_016447_01B4A6_A1B2",
        "track": "134",
        "cloud_cover": 0,
        "covered": 1,
        "bytes": len(GOOD),
        "checksum": f"md5:{hashlib.md5(GOOD).hexdigest()}",
        "url": server.items[0]["assets"]["Product"]["href"],
    }
    assert table.cloud_cover[0] == 0.02
    assert np.isnan(table.cloud_cover[4])
    assert len(server.queries) == 3  # three pages: 2 + 1 radar, 2 optical
    assert server.queries[0]["datetime"] == "2017-05-01T00:00:00Z/2017-05-31T23:59:59Z"
    assert server.queries[0]["bbox"] == list(BOUNDS)
    assert server.tokens == 0  # no account is asked for


def test_rules_of_selection(server):
    server.items = [
        radar(server, 5),
        radar(server, 6, **{"sat:relative_orbit": 61}),
        radar(server, 7, **{"sar:instrument_mode": "SM"}),
        radar(server, 8, **{"sar:polarizations": ["VV"]}),
        radar(server, 9, footprint=WEST),
        radar(server, 10, size=None),
        optical(server, 11, **{"eo:cloud_cover": 8.1}),
        optical(server, 12, **{"eo:cloud_cover": 8.0}),
    ]
    assert list(find(server).time.dt.day) == [5, 6]
    assert list(find(server, orbits=(134,)).time.dt.day) == [5]
    assert list(find(server, min_covered=0.4).time.dt.day) == [5, 6, 9]
    assert list(find(server, sensors=("optical",)).time.dt.day) == [12]
    with pytest.raises(ValueError, match="no acquisition to use over") as error:
        find(server, orbits=(7,))
    for reason in (
        "1 without both VV and VH",
        "1 in another mode than IW",
        "3 of another track",
        "1 without a download",
    ):
        assert reason in str(error.value)


def test_products_that_cover_the_region_together_are_one_acquisition(server):
    halves = [radar(server, 5, footprint=EAST), radar(server, 5, footprint=WEST, made="C3D4")]
    halves[1]["id"] = halves[1]["id"].replace("214213", "214240")
    server.items = [*halves, radar(server, 17, footprint=EAST)]
    table = find(server)
    assert list(table.time.dt.day) == [5, 5]
    assert list(table.covered) == [0.5, 0.5]


@pytest.mark.parametrize(("wanted", "days"), [(0, [1, 3, 5, 7, 9]), (3, [1, 5, 9]), (2, [1, 9]), (99, [1, 3, 5, 7, 9])])
def test_dates_are_thinned_evenly(server, wanted, days):
    server.items = [radar(server, day) for day in (1, 3, 5, 7, 9)]
    assert list(find(server, dates={"sar": wanted}).time.dt.day) == days


def test_older_processings_are_left_out(server):
    old, new = (radar(server, 5, made=made) for made in ("FFFF", "0000"))
    new["properties"]["processing:datetime"] = "2021-01-01T00:00:00Z"
    server.items = [old, new, *(optical(server, 6, baseline=each) for each in ("N0205", "N0500", "N0204"))]
    table = find(server, sensors=("optical", "sar"))
    assert [name.split("_")[3] for name in table["product"][:1]] == ["N0500"]
    assert [name[-4:] for name in table["product"][1:]] == ["0000"]


def test_nothing_found(server):
    with pytest.raises(
        ValueError, match=r"sentinel-1-slc has no acquisition .* from 2017-05-01 to 2017-05-31 \(it lists"
    ):
        find(server)


@pytest.mark.parametrize("bounds", [(48.1, 126.7, 48.2, 126.9), (126.9, 48.1, 126.7, 48.2), (0, 0, 0, 1)])
def test_bounds_that_are_none(server, bounds):
    with pytest.raises(ValueError, match="west, south, east, north in degrees, in this order"):
        search(bounds, "2017-05-01", "2017-05-31", address=server.url)
    assert not server.asked


def test_a_busy_catalogue_is_asked_again_after_the_pause_it_wants(server):
    server.items = [radar(server, 5)]
    server.script = ["429 after 7", "503", "503", "good", f"429 after {formatdate(2e9, usegmt=True)}"]
    assert len(find(server)) == 1
    assert server.pauses[0] == 7
    assert server.pauses[1] < server.pauses[2]  # growing
    assert server.pauses[-1] == 300  # a server that asks for years gets minutes


@pytest.mark.parametrize(("words", "reason"), [(["503"] * 6, "answered 503"), (["not json"], "the answer is not STAC")])
def test_a_catalogue_that_does_not_answer(server, words, reason):
    server.script = words
    with pytest.raises(DataUnavailable, match=rf"could not be searched \({reason}\)"):
        find(server)
    assert not server.script


def test_nobody_listens(server):
    with pytest.raises(DataUnavailable, match="could not be searched"):
        search(BOUNDS, "2017-05-01", "2017-05-31", address="http://127.0.0.1:9/v1")


def test_offline(server, monkeypatch):
    monkeypatch.setenv("CROPNB_OFFLINE", "1")
    with pytest.raises(DataUnavailable, match="CROPNB_OFFLINE forbids the network"):
        find(server)
    assert not server.asked


def test_tiles_of_the_elevation_model(server):
    name = "Copernicus_DSM_COG_10_N48_00_E126_00_DEM"
    server.tiles = {f"{name}.tif": 700, "Copernicus_DSM_COG_10_N48_00_E127_00_DEM.tif": 800}
    table = elevation((126.7, 48.05, 126.95, 48.2), address=f"{server.url}/dem")
    assert list(table["product"]) == [name, name.replace("E126", "E127")]
    assert list(table.bytes) == [700, 800]
    assert list(table.covered) == [1, 0]
    assert table.checksum[0] == f"md5:{'ab' * 16}"
    assert table.url[0] == f"{server.url}/dem/{name}/{name}.tif"
    asked = {path.rsplit("10_", 1)[1][:11] for _, path, *_ in server.asked}
    assert asked == {"N47_00_E126", "N47_00_E127", "N48_00_E126", "N48_00_E127"}
    server.asked.clear()
    elevation((-0.5, -0.5, -0.2, -0.2), address=f"{server.url}/dem")
    assert [path.rsplit("10_", 1)[1][:14] for _, path, *_ in server.asked] == ["S01_00_W001_00"]


# The lock file


@pytest.fixture
def lock(server, tmp_path):
    """Two products of one content, listed in a lock file."""
    server.items = [radar(server, 5), radar(server, 17)]
    return write_lock(find(server), tmp_path / "region.lock.yaml")


@pytest.fixture
def one(server, tmp_path):
    """A lock file of one product."""
    server.items = [radar(server, 5)]
    return write_lock(find(server), tmp_path / "region.lock.yaml")


def test_the_lock_file_tells_sizes_and_days_and_is_stable(server, lock, tmp_path):
    record = yaml.safe_load(lock.read_text())
    assert record["total_bytes"] == 2 * len(GOOD)
    assert record["megabits_per_second"] == 50
    server.items.reverse()
    table = pd.concat([find(server)]).sample(frac=1, random_state=1)
    other = write_lock(table, tmp_path / "other.yaml")
    assert other.read_text() == lock.read_text()
    assert write_lock(table, lock) == lock  # the same again is no change
    table["bytes"] = 10**12
    large = yaml.safe_load(write_lock(table, tmp_path / "large.yaml").read_text())
    assert large["days"] == pytest.approx(2e12 / (50e6 / 8) / 86400, abs=1e-3)
    assert not list(tmp_path.glob("*.partial"))
    assert [product.time.day for product in read_lock(lock)] == [5, 17]


def test_elevation_tiles_stand_in_the_same_lock(server, tmp_path):
    server.items, server.tiles = [radar(server, 5)], {"Copernicus_DSM_COG_10_N48_00_E126_00_DEM.tif": 700}
    tiles = elevation(BOUNDS, address=f"{server.url}/dem")
    products = read_lock(write_lock(pd.concat([find(server), tiles]), tmp_path / "lock.yaml"))
    assert [product.sensor for product in products] == ["dem", "sar"]
    assert products[0].time is None
    assert products[0].file == "Copernicus_DSM_COG_10_N48_00_E126_00_DEM.tif"


def test_another_selection_does_not_replace_a_lock_silently(server, lock):
    before = lock.read_text()
    server.items = [radar(server, 5), radar(server, 29)]
    with pytest.raises(ValueError, match=r"lists other products: S1A.*0517.*0529.*\(2 in all\).* renew=True"):
        write_lock(find(server), lock)
    assert lock.read_text() == before
    write_lock(find(server), lock, renew=True)
    assert [product.time.day for product in read_lock(lock)] == [5, 29]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bytes": 0}, "key 'products.0.bytes': is 0: "),
        ({"product": "../../escape"}, "key 'products.0.product'"),
        ({"url": "http://example.org/a.zip"}, "key 'products.0.url': .*should start with https"),
        ({"checksum": "md5:12"}, "key 'products.0.checksum'"),
        ({"sensor": "sonar"}, "key 'products.0.sensor'"),
        ({"more": 1}, "key 'products.0.more': not known"),
    ],
)
def test_a_lock_file_that_was_damaged(lock, change, message):
    record = yaml.safe_load(lock.read_text())
    record["products"][0] |= change
    lock.write_text(yaml.safe_dump(record))
    with pytest.raises(ValueError, match=message):
        read_lock(lock)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "should be a valid dictionary"),
        ("version: 2\nproducts: []\n", "key 'version': is 2: Input should be 1"),
        ("a: [", "is not YAML in UTF-8"),
        ("- 1\n", "should be a valid dictionary"),
        ("version: 1\n", "key 'products': missing, add it"),
    ],
)
def test_a_file_that_is_no_lock(tmp_path, text, message):
    (tmp_path / "lock.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"lock\.yaml.*{message}"):
        read_lock(tmp_path / "lock.yaml")
    with pytest.raises(FileNotFoundError, match=r"There is no .*other\.yaml: write one from a search first"):
        read_lock(tmp_path / "other.yaml")


# Download


def fetch(server, lock, **options):
    server.asked.clear()
    server.script, server.pauses[:] = list(options.pop("script", [])), []
    return download(lock, lock.parent / "products", identity=f"{server.url}/token", **options)


def products_asked(server):
    return [request for request in server.asked if request[1].startswith("/odata")]


def test_download(server, lock):
    paths = fetch(server, lock)
    assert [path.name[-8:] for path in paths] == ["A1B2.zip"] * 2
    assert all(path.read_bytes() == GOOD for path in paths)
    assert server.tokens == 1  # one log-in for both
    assert len(products_asked(server)) == 2
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted(path.name for path in paths)
    fetch(server, lock)
    assert not server.asked  # what is there and right is not fetched again


def test_progress_goes_to_standard_error(server, one, capsys, monkeypatch):
    monkeypatch.setattr("cropnb.project.watched", lambda: True)
    fetch(server, one)
    printed = capsys.readouterr()
    assert not printed.out
    assert "S1A_IW_SLC" in printed.err


@pytest.mark.parametrize("script", [["good", "cut"], ["good", "cut", "cut", "cut"]])
def test_a_cut_connection_is_taken_up_where_it_stopped(server, one, script):
    (path,) = fetch(server, one, script=script)
    assert path.read_bytes() == GOOD
    ranges = [int((asked[3] or "bytes=0-")[6:-1]) for asked in products_asked(server)]
    assert ranges == sorted(ranges)
    assert len(ranges) == len(script)
    assert len(GOOD) // 2 - 2**14 < ranges[1] <= len(GOOD) // 2


def test_a_download_of_yesterday_goes_on(server, one):
    part = one.parent / "products" / f"{read_lock(one)[0].file}.part"
    part.parent.mkdir()
    part.write_bytes(GOOD[:1000])
    (path,) = fetch(server, one)
    assert path.read_bytes() == GOOD
    assert [asked[3] for asked in products_asked(server)] == ["bytes=1000-"]


def test_a_server_without_ranges_starts_over(server, one):
    (path,) = fetch(server, one, script=["good", "cut", "no ranges"])
    assert path.read_bytes() == GOOD
    assert not server.pauses


def test_busy_servers_are_waited_for(server, one):
    (path,) = fetch(server, one, script=["503", "good", "429 after 9", "503", "503", "502"])
    assert path.read_bytes() == GOOD
    assert server.pauses[server.pauses.index(9) :][:1] == [9]
    assert server.pauses[-1] > server.pauses[-2] > 0


@pytest.mark.parametrize("status", ["503", "429"])
def test_a_server_that_stays_away(server, one, status):
    with pytest.raises(DataUnavailable, match=rf"\(the server answered {status}\): run it again"):
        fetch(server, one, script=["good"] + [status] * 100)


def test_a_wrong_file_is_fetched_once_more_and_then_refused(server, one):
    (path,) = fetch(server, one, script=["good", "wrong"])
    assert path.read_bytes() == GOOD
    path.unlink()
    with pytest.raises(DataUnavailable, match=r"gave twice what is not S1A.* of the lock file"):
        fetch(server, one, script=["good", "wrong", "wrong"])
    assert not list(path.parent.iterdir())


def test_a_wrong_file_on_disk_is_kept_aside(server, one, caplog):
    path = one.parent / "products" / read_lock(one)[0].file
    path.parent.mkdir()
    path.write_bytes(b"mine")
    assert fetch(server, one) == [path]
    assert path.read_bytes() == GOOD
    (other,) = path.parent.glob("*.wrong-*")
    assert other.read_bytes() == b"mine"
    assert "is kept beside its place" in caplog.text


def test_a_product_that_is_shorter_than_the_lock_says(server, one):
    with pytest.raises(DataUnavailable, match=r"could not be downloaded .*write the lock file again"):
        fetch(server, one, script=["good", "short", "short"])


@pytest.mark.parametrize(("status", "hint"), [("404", "write the lock file again"), ("403", "set CDSE_USERNAME")])
def test_a_product_that_is_refused(server, one, status, hint):
    with pytest.raises(DataUnavailable, match=rf"\(the server answered {status}\): {hint}"):
        fetch(server, one, script=["good", status])
    assert not server.pauses


def test_the_disk_is_looked_at_first(server, one, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 1000}))
    with pytest.raises(DataUnavailable, match=r"products has 0\.0 GB free and the download needs"):
        fetch(server, one)
    assert not server.asked


def test_elevation_needs_no_account(server, tmp_path, monkeypatch):
    server.tiles = {"Copernicus_DSM_COG_10_N48_00_E126_00_DEM.tif": 700}
    table = elevation(BOUNDS, address=f"{server.url.replace('127.0.0.1', 'localhost')}/dem")
    table["checksum"] = f"sha256:{hashlib.sha256(b'x' * 700).hexdigest()}"
    monkeypatch.delenv("CDSE_PASSWORD")
    (path,) = fetch(server, write_lock(table, tmp_path / "lock.yaml"))
    assert path.read_bytes() == b"x" * 700
    assert [asked[2] for asked in server.asked] == [None]


# Credentials and tokens


def test_an_expired_token_is_renewed(server, lock):
    paths = fetch(server, lock, script=["good", "good", "expired"])
    assert all(path.read_bytes() == GOOD for path in paths)
    assert [asked[2] for asked in products_asked(server)] == [f"Bearer canary-token-{i}" for i in (1, 1, 2)]


def test_a_token_that_is_never_accepted(server, one):
    with pytest.raises(DataUnavailable, match=r"\(the server answered 401\): set CDSE_USERNAME and CDSE_PASSWORD"):
        fetch(server, one, script=["good", "401", "401", "401"])
    assert len(products_asked(server)) == 1


def test_no_credentials(server, one, monkeypatch, tmp_path):
    monkeypatch.delenv("CDSE_PASSWORD")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(DataUnavailable, match=r"There are no credentials: set CDSE_USERNAME .*netrc"):
        fetch(server, one)
    assert not server.asked


def test_credentials_of_netrc(server, one, monkeypatch, tmp_path):
    monkeypatch.delenv("CDSE_PASSWORD")
    (tmp_path / "netrc").write_text(f'machine 127.0.0.1 login "{USER}" password "{PASSWORD}"\n', "utf-8")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (path,) = fetch(server, one)
    assert path.read_bytes() == GOOD


def test_the_default_of_netrc_goes_nowhere(server, one, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("default login anyone password canary\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    find(server)
    with pytest.raises(DataUnavailable, match="the server answered 401"):
        fetch(server, one, script=["good", "elsewhere"])
    assert not any((asked[2] or "").startswith("Basic") for asked in server.asked)


def test_a_wrong_password(server, one, monkeypatch):
    monkeypatch.setenv("CDSE_PASSWORD", "another")
    with pytest.raises(DataUnavailable, match=r"127\.0\.0\.1 gave no access \(it answered 401\): set CDSE_USERNAME"):
        fetch(server, one)


def test_the_token_stays_with_the_service(server, one):
    with pytest.raises(DataUnavailable, match="the server answered 401"):
        fetch(server, one, script=["good", "elsewhere"])
    assert [asked[2] for asked in products_asked(server)] == ["Bearer canary-token-1", None]


def test_a_lock_file_cannot_lead_the_token_away(server, one, tmp_path):
    record = yaml.safe_load(one.read_text())
    record["products"][0]["url"] = record["products"][0]["url"].replace("127.0.0.1", "localhost")
    one.write_text(yaml.safe_dump(record))
    with pytest.raises(DataUnavailable, match="the server answered 401"):
        fetch(server, one)
    assert server.tokens == 0
    assert [asked[2] for asked in server.asked] == [None]


@pytest.mark.parametrize(
    ("url", "own"),
    [
        ("https://download.dataspace.copernicus.eu/odata/v1/Products(1)/$value", True),
        ("https://zipper.dataspace.copernicus.eu/odata/v1/Products(1)/$value", True),
        ("http://download.dataspace.copernicus.eu/odata", False),
        ("https://dataspace.copernicus.eu.example.org/", False),
        ("https://notdataspace.copernicus.eu/", False),
        ("https://copernicus-dem-30m.s3.amazonaws.com/a.tif", False),
    ],
)
def test_hosts_of_the_service(url, own):
    assert catalogue._Session().is_own(url) is own


FAILURES = [
    ["echo"],  # of the log-in
    ["good", "echo"],  # of the product
    ["401"],
    ["503"] * 100,
    ["not json"],
    ["good", "401"],
    ["good", "cut", "404"],
    ["good", "wrong", "wrong"],
    ["good", "elsewhere"],
    ["good"],
]


@pytest.mark.parametrize("script", FAILURES, ids=lambda script: "-".join(script[:3]))
def test_secrets_are_shown_nowhere(server, one, script, capfd, caplog, monkeypatch):
    monkeypatch.setattr("cropnb.project.watched", lambda: True)
    caplog.set_level(logging.DEBUG)  # urllib3 and all others
    shown, raised = [], None
    try:
        fetch(server, one, script=list(script))
    except DataUnavailable as error:
        raised = error
        chain = [error]
        while chain[-1].__cause__ or chain[-1].__context__:
            chain.append(chain[-1].__cause__ or chain[-1].__context__)
        for each in chain:
            shown += [str(each), repr(each), repr(vars(each))]
        shown += traceback.TracebackException.from_exception(error, capture_locals=True).format()
    assert (raised is None) == (script == ["good"])
    session = catalogue._Session(f"{server.url}/token")
    shown += [repr(each) for each in (session, session.auth, session.show_token, catalogue.__doc__)]
    shown += [caplog.text, *capfd.readouterr()]
    shown += [path.read_text("latin-1") for path in one.parent.rglob("*") if path.suffix in (".yaml", ".part")]
    text = "\n".join(shown)
    for secret in (USER, PASSWORD, "canary-Pa55", "canary-token", "canary"):
        assert secret not in text
    assert any(request[2] or request[1] == "/token" for request in server.asked)  # they were in use


# Unpack


@pytest.fixture
def product(tmp_path):
    path = tmp_path / "product.zip"
    path.write_bytes(make_zip())
    return path


def test_unpack(product, tmp_path):
    folder = unpack(product, tmp_path / "safe")
    assert folder == tmp_path / "safe" / "S1A_IW_SLC.SAFE"
    assert len((folder / "measurement" / "iw1-vv.tiff").read_bytes()) == 3000
    before = (folder / "manifest.safe").stat().st_mtime_ns
    assert unpack(product, tmp_path / "safe") == folder  # once
    assert (folder / "manifest.safe").stat().st_mtime_ns == before
    assert [path.name for path in (tmp_path / "safe").iterdir()] == [folder.name]


@pytest.mark.parametrize("keep", [0, 10, 1000, 3100])
def test_a_zip_cut_short(product, tmp_path, keep):
    product.write_bytes(product.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"product\.zip is cut short or damaged .*delete it and download it again"):
        unpack(product, tmp_path / "safe")
    assert not list(tmp_path.glob("safe/*"))


def test_a_zip_with_a_wrong_byte(product, tmp_path):
    content = bytearray(product.read_bytes())
    content[1500] ^= 255
    product.write_bytes(content)
    with pytest.raises(ValueError, match="is cut short or damaged"):
        unpack(product, tmp_path / "safe")
    assert not list(tmp_path.glob("safe/*"))
    product.unlink()
    with pytest.raises(FileNotFoundError, match="There is no product"):
        unpack(product, tmp_path / "safe")


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "a/../../b", "..", "../b", "C:/b", "a\\..\\..\\b", "a//b", "./b", "\\b"]
)
def test_members_that_leave_the_folder(product, tmp_path, name):
    with zipfile.ZipFile(product, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), "x")
    with pytest.raises(ValueError, match="a link or out of its folder"):
        unpack(product, tmp_path / "safe")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["product.zip"]


def test_links_and_several_folders_are_refused(product, tmp_path):
    link = zipfile.ZipInfo("S1A_IW_SLC.SAFE/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(product, "a") as archive:
        archive.writestr(link, "/etc")
    with pytest.raises(ValueError, match=r"has the member 'S1A_IW_SLC.SAFE/link', a link"):
        unpack(product, tmp_path / "safe")
    with zipfile.ZipFile(product, "w") as archive:
        archive.writestr("A.SAFE/a", "")
        archive.writestr("B.SAFE/b", "")
    with pytest.raises(ValueError, match="holds 2 folders and a product is one"):
        unpack(product, tmp_path / "safe")


def test_a_zip_that_unpacks_to_more_than_a_product_is_refused(product, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "LARGEST", 1000)
    with pytest.raises(ValueError, match=r"product\.zip unpacks to 0 GB, more than a product or the free disk"):
        unpack(product, tmp_path / "safe")
    assert not (tmp_path / "safe").exists()


@pytest.mark.parametrize("key", ["id", "geometry", "properties", "assets", "eo:cloud_cover", "datetime", "file:size"])
def test_a_null_leaves_its_item_out_and_stops_no_search(server, key):
    good, bad = optical(server, 15), optical(server, 5)
    place = bad if key in bad else bad["assets"]["Product"] if key.startswith("file") else bad["properties"]
    place[key] = None
    if key == "datetime":
        bad["properties"] |= {"start_datetime": None, "datetime": "2017-05-05T00:00:00Z", "sat:relative_orbit": None}
    server.items = [bad, good]
    if key == "properties":
        bad["properties"] = {"datetime": "2017-05-05T00:00:00Z"}
    assert 15 in set(find(server, sensors=("optical",)).time.dt.day)


PLACES = [(key,) for key in ("id", "geometry", "properties", "assets")]
PLACES += [("properties", key) for key in ("datetime", "start_datetime", "processing:datetime", "eo:cloud_cover")]
PLACES += [("properties", key) for key in ("sat:relative_orbit", "sar:instrument_mode", "sar:polarizations")]
PLACES += [("assets", "Product"), *(("assets", "Product", f"file:{key}") for key in ("size", "checksum"))]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([radar, optical]),
    st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from([None, "", "x", 0, -1, 2.5, float("nan"), [], {}]))),
)
def test_no_value_of_an_item_stops_the_search(made, changes):
    """Whatever stands in the place of a value, the item is used or says why it is not, and the next is looked at."""
    server = SimpleNamespace(url="https://example.org")
    sensor = "sar" if made is radar else "optical"
    bad, good = made(server, 5), made(server, 17)
    for keys, value in changes:
        place = bad
        for key in keys[:-1]:
            place = place.get(key) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[keys[-1]] = value
    region = shapely.box(*BOUNDS)
    rows = [catalogue._row(each, sensor, region) for each in (bad, good)]
    rules = {"season": (pd.Timestamp("2017-05-01"), pd.Timestamp("2017-05-31"))}
    passes = choice.choose(rows, region, "nothing", **rules)
    assert not rows[1]["why"]
    assert sum(len(one) for one in passes) == 1 + (not rows[0]["why"])
    catalogue._table([each for each in rows if not each["why"]])
