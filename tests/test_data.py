"""cropnb.data: the manifest's schema, the cache, and every way a download can go wrong."""

import hashlib
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cropnb.data import DataUnavailable, cache_dir, fetch, is_available, load_manifest, main

ROOT = Path(__file__).parents[1]
MANIFEST = ROOT / "data_manifest.yaml"
SHARED = ROOT.parent / "shared" / "data"

GOOD = b"wheat, maize, soybean\n" * 5000
BAD = b"a page of a hotel's network"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def entry(**changes):
    """A manifest with one dataset of one file; `changes` go to the file, None removes a key."""
    file = {"path": "fields/a.csv", "sha256": sha256(GOOD), "bytes": len(GOOD)} | changes
    return {
        "version": 1,
        "datasets": {
            "parcels": {
                "what": "parcels",
                "licence": "MIT",
                "citation": "Somebody (2020)",
                "url": "https://example.org/data/",
                "files": [{key: value for key, value in file.items() if value is not None}],
            }
        },
    }


def write(folder, content):
    path = folder / "manifest.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), "utf-8")
    return path


def put(cache, content, path="fields/a.csv"):
    file = cache / "parcels" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.delenv("CROPNB_OFFLINE", raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # pooch waits before its second try


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("CROPNB_OFFLINE", "1")


@pytest.fixture
def server():
    """A server on the loopback playing `server.script`: good, bad, cut, stall or a status a request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            word = self.server.script.pop(0)
            if word == "stall":
                self.server.released.wait(5)
                return
            content = BAD if word == "bad" else GOOD
            self.send_response(word if isinstance(word, int) else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if word == "cut" else content)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.script, httpd.asked, httpd.released = [], [], threading.Event()
        httpd.url = f"http://127.0.0.1:{httpd.server_port}/data/"
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield httpd
        httpd.released.set()
        httpd.shutdown()
        thread.join()


@pytest.fixture
def served(server, tmp_path):
    """Manifest of a dataset that `server` has, and an empty cache."""
    content = entry()
    content["datasets"]["parcels"]["url"] = server.url
    return write(tmp_path, content), tmp_path / "cache"


# The manifest


def test_the_page_of_data_says_what_each_dataset_is_good_for():
    page = (ROOT / "book" / "data.md").read_text()
    assert [name for name in load_manifest(MANIFEST).datasets if f"- **`{name}`**" not in page] == []


def test_manifest_gives_addresses(tmp_path):
    dataset = load_manifest(write(tmp_path, entry())).datasets["parcels"]
    assert dataset.address(dataset.files[0]) == "https://example.org/data/fields/a.csv"
    dataset = load_manifest(write(tmp_path, entry(url="elsewhere/b.csv"))).datasets["parcels"]
    assert dataset.address(dataset.files[0]) == "https://example.org/data/elsewhere/b.csv"


@pytest.mark.parametrize("key", ["path", "sha256", "bytes"])
def test_missing_key_of_a_file(tmp_path, key):
    manifest = write(tmp_path, entry(**{key: None}))
    with pytest.raises(ValueError, match="missing") as error:
        load_manifest(manifest)
    assert str(error.value) == f"{manifest}, key 'datasets.parcels.files.0.{key}': missing, add it."


@pytest.mark.parametrize("key", ["what", "licence", "citation", "url", "files"])
def test_missing_key_of_a_dataset(tmp_path, key):
    content = entry()
    del content["datasets"]["parcels"][key]
    manifest = write(tmp_path, content)
    with pytest.raises(ValueError, match="missing") as error:
        load_manifest(manifest)
    assert str(error.value) == f"{manifest}, key 'datasets.parcels.{key}': missing, add it."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "abc123"}, "key 'datasets.parcels.files.0.sha256': is 'abc123': String should match pattern"),
        ({"sha256": "Z" * 64}, "String should match pattern '^[0-9a-f]{64}$'."),
        (
            {"url": "http://example.org/a.csv"},
            "the url 'http://example.org/a.csv' should start with https://.",
        ),
        ({"url": "file:///etc/passwd"}, "the url 'file:///etc/passwd' should start with https://."),
        ({"url": "http://127.0.0.1@example.org/a"}, "should start with https://."),
        ({"bytes": 0}, "files.0.bytes': is 0: Input should be greater than 0."),
        ({"md5": "0"}, "files.0.md5': not known; known are version, datasets."),
        ({"sha256": "1", "bytes": -1}, "(and 1 more)."),
    ],
)
def test_wrong_value(tmp_path, change, message):
    with pytest.raises(ValueError, match=r"key 'datasets\.parcels") as error:
        load_manifest(write(tmp_path, entry(**change)))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_duplicate_path(tmp_path):
    content = entry()
    listed = content["datasets"]["parcels"]["files"]
    listed.append(listed[0] | {"path": "fields/A.csv"})
    with pytest.raises(ValueError, match=r"key 'datasets.parcels': the path 'fields/A.csv' is there twice"):
        load_manifest(write(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "Input should be a valid dictionary"),
        ("version: 1", "key 'datasets': missing, add it."),
        ("version: 2\ndatasets: {}", "key 'version': is 2: Input should be 1."),
        ("datasets: [", "is not YAML in UTF-8: while parsing"),
        ("version: 2017-13-41", "is not YAML in UTF-8: month must be"),
        ("version: 1\ndatasets: {../up: {}}", "String should match pattern"),
    ],
)
def test_no_manifest_at_all(tmp_path, content, message):
    manifest = write(tmp_path, content)
    with pytest.raises(ValueError, match=r"manifest.yaml") as error:
        load_manifest(manifest)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_manifest_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no .*none.yaml: run from the root of the repository"):
        load_manifest(tmp_path / "none.yaml")


parts = st.sampled_from(["..", ".", "", "~", "a", "C:", "a.csv", " ", "%2e%2e", "\0", "é", "nul ", "-x", ".git"])
nasty = st.builds(str.join, st.sampled_from(["/", "\\", "//"]), st.lists(parts, max_size=5)) | st.text(max_size=20)


@settings(deadline=None, max_examples=50)
@given(path=nasty)
@example(path="../a")
@example(path="/etc/passwd")
@example(path="a/../../b")
@example(path="..\\a")
@example(path="C:\\a")
@example(path="C:a")
@example(path="\\\\server\\a")
@example(path="a\n")
@example(path="a/b.csv")
def test_no_path_leaves_the_cache(tmp_path_factory, path):
    manifest = write(tmp_path_factory.mktemp("manifest"), entry(path=path))
    try:
        (file,) = load_manifest(manifest).datasets["parcels"].files
    except ValueError as error:
        assert f"files.0.path': is {path!r}: String should match" in str(error)  # noqa: PT017, both ways are right
    else:
        folder = Path("/cache/parcels")
        assert Path(os.path.normpath(folder / file.path)) == folder / file.path
        assert (folder / file.path).is_relative_to(folder)
        assert not set(file.path) & set("\\:\0\n ~%")


@pytest.mark.parametrize("path", ["../a", "/etc/passwd", "a/../../b", "..\\a", "C:\\a", "C:a", "a\n", "", ".", "a//b"])
def test_path_that_leaves_the_cache(tmp_path, path):
    with pytest.raises(ValueError, match=r"key 'datasets.parcels.files.0.path': is .*: String should match pattern"):
        load_manifest(write(tmp_path, entry(path=path)))


# The cache


def test_cache_dir(monkeypatch):
    monkeypatch.setenv("CROPNB_DATA", "/somewhere")
    assert cache_dir() == Path("/somewhere")
    monkeypatch.delenv("CROPNB_DATA")
    assert cache_dir() == Path("_build/data")


def test_unknown_dataset(tmp_path):
    manifest = write(tmp_path, entry())
    with pytest.raises(ValueError, match="There is no dataset") as error:
        fetch("parcel", manifest=manifest)
    assert str(error.value) == (
        f"There is no dataset 'parcel' in {manifest} (did you mean 'parcels'?); known are parcels."
    )
    with pytest.raises(ValueError, match=r"There is no dataset 'radar' in .*yaml; known are parcels."):
        is_available("radar", manifest=manifest)


@pytest.mark.usefixtures("offline")
def test_cached_files_need_no_network_and_no_writing(tmp_path):
    manifest, cache = write(tmp_path, entry()), tmp_path / "cache"
    file = put(cache, GOOD)
    for folder in (file.parent, file.parent.parent, cache):
        folder.chmod(0o555)
    before = [(p, p.stat().st_mtime_ns) for p in sorted(cache.rglob("*"))]
    assert fetch("parcels", manifest=manifest, cache=cache) == {"fields/a.csv": file}
    assert is_available("parcels", manifest=manifest, cache=cache)
    assert [(p, p.stat().st_mtime_ns) for p in sorted(cache.rglob("*"))] == before


@pytest.mark.usefixtures("offline")
def test_a_change_in_the_cache_is_seen_at_the_next_fetch(tmp_path):
    manifest, cache = write(tmp_path, entry()), tmp_path / "cache"
    put(cache, GOOD)
    fetch("parcels", manifest=manifest, cache=cache)
    put(cache, GOOD.replace(b"wheat", b"wHeat", 1))
    assert not is_available("parcels", manifest=manifest, cache=cache)
    with pytest.raises(DataUnavailable, match="is wrong in the cache"):
        fetch("parcels", manifest=manifest, cache=cache)


@pytest.mark.usefixtures("offline")
def test_offline_says_where_to_put_the_file(tmp_path):
    manifest, cache = write(tmp_path, entry()), tmp_path / "cache"
    assert not is_available("parcels", manifest=manifest, cache=cache)
    with pytest.raises(DataUnavailable) as error:
        fetch("parcels", manifest=manifest, cache=cache)
    assert str(error.value) == (
        "parcels/fields/a.csv is not in the cache and CROPNB_OFFLINE forbids the network; "
        f"download https://example.org/data/fields/a.csv by hand and put it at {cache}/parcels/fields/a.csv."
    )
    assert not cache.exists()


@pytest.mark.usefixtures("offline")
def test_wrong_file_is_kept_under_another_name(tmp_path):
    manifest, cache = write(tmp_path, entry()), tmp_path / "cache"
    put(cache, BAD)
    assert not is_available("parcels", manifest=manifest, cache=cache)
    assert files(cache) == ["parcels/fields/a.csv"]
    with pytest.raises(DataUnavailable) as error:
        fetch("parcels", manifest=manifest, cache=cache)
    kept = f"parcels/fields/a.csv.wrong-{sha256(BAD)[:8]}"
    assert f"(sha256 {sha256(GOOD)} expected, {sha256(BAD)} found), is kept as {cache}/{kept}," in str(error.value)
    assert files(cache) == [kept]
    assert (cache / kept).read_bytes() == BAD


@pytest.mark.parametrize("content", [BAD, None])
def test_cache_that_cannot_be_written(tmp_path, monkeypatch, content):
    manifest, cache = write(tmp_path, entry()), tmp_path / "cache"
    cache.mkdir()

    def refuse(self, *_, **__):
        raise OSError(30, "Read-only file system", str(self))

    if content:
        put(cache, content)
    # root may write everywhere, so the file system's refusal is played
    monkeypatch.setattr(Path, "replace", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    before = files(cache)
    with pytest.raises(DataUnavailable) as error:
        fetch("parcels", manifest=manifest, cache=cache)
    wrong = f"is wrong in the cache (sha256 {sha256(GOOD)} expected, {sha256(BAD)} found)"
    state = wrong if content else "is not in the cache"
    assert str(error.value) == (
        f"parcels/fields/a.csv {state} and {cache} could not be read or written "
        "(Read-only file system); "
        "put the right file there by hand or set CROPNB_DATA to a folder of your own."
    )
    assert files(cache) == before


@pytest.mark.parametrize("linked", ["parcels", "parcels/fields", "parcels/fields/a.csv"])
def test_symbolic_link_out_of_the_cache(tmp_path, linked):
    manifest, cache, outside = write(tmp_path, entry()), tmp_path / "cache", tmp_path / "outside"
    put(outside, GOOD)
    link = cache / linked
    link.parent.mkdir(parents=True)
    link.symlink_to(outside / linked)
    assert not is_available("parcels", manifest=manifest, cache=cache)
    with pytest.raises(DataUnavailable) as error:
        fetch("parcels", manifest=manifest, cache=cache)
    assert str(error.value) == (
        f"{cache}/parcels/fields/a.csv leaves the cache by a symbolic link; put the file itself there."
    )
    assert files(outside) == ["parcels/fields/a.csv"]


def test_symbolic_links_that_go_nowhere(tmp_path):
    manifest, cache = write(tmp_path, entry()), tmp_path / "cache"
    link = cache / "parcels" / "fields"
    link.parent.mkdir(parents=True)
    link.symlink_to(link)
    with pytest.raises(DataUnavailable):
        fetch("parcels", manifest=manifest, cache=cache)
    link.unlink()
    link.symlink_to(tmp_path / "later")
    with pytest.raises(DataUnavailable, match="symbolic link"):
        fetch("parcels", manifest=manifest, cache=cache)
    assert not (tmp_path / "later").exists()


def test_the_cache_itself_may_be_a_link(tmp_path, monkeypatch):
    manifest, disk = write(tmp_path, entry()), tmp_path / "disk"
    put(disk, GOOD)
    (tmp_path / "cache").symlink_to(disk)
    monkeypatch.setenv("CROPNB_DATA", str(tmp_path / "cache"))
    assert fetch("parcels", manifest=manifest)["fields/a.csv"].read_bytes() == GOOD


@pytest.mark.usefixtures("offline")
def test_a_folder_where_a_file_should_be(tmp_path):
    manifest, cache = write(tmp_path, entry()), tmp_path / "cache"
    (cache / "parcels/fields/a.csv").mkdir(parents=True)
    with pytest.raises(DataUnavailable, match=r"a.csv should be a file and is something else; move it away."):
        fetch("parcels", manifest=manifest, cache=cache)


# Downloads, from a server on this machine


def test_download(server, served, capfd):
    manifest, cache = served
    server.script = ["good"]
    for _ in range(2):  # the second time from the cache
        paths = fetch("parcels", manifest=manifest, cache=cache)
        assert paths["fields/a.csv"].read_bytes() == GOOD
    assert server.asked == ["/data/fields/a.csv"]
    assert files(cache) == ["parcels/fields/a.csv"]
    assert "".join(capfd.readouterr()) == ""


def test_progress_goes_to_the_terminal(server, served, capfd, monkeypatch):
    monkeypatch.setattr("cropnb.project.watched", lambda: True)
    manifest, cache = served
    server.script = ["good"]
    fetch("parcels", manifest=manifest, cache=cache)
    out, err = capfd.readouterr()
    assert out == ""
    assert "a.csv" in err


def test_wrong_file_in_the_cache_is_replaced_by_the_right_one(server, served, caplog):
    manifest, cache = served
    put(cache, BAD)
    server.script = ["good"]
    assert fetch("parcels", manifest=manifest, cache=cache)["fields/a.csv"].read_bytes() == GOOD
    assert files(cache) == ["parcels/fields/a.csv", f"parcels/fields/a.csv.wrong-{sha256(BAD)[:8]}"]
    assert f"{sha256(GOOD)} expected, {sha256(BAD)} found" in caplog.text


def test_download_with_a_wrong_checksum(server, served):
    manifest, cache = served
    server.script = ["bad"]
    with pytest.raises(DataUnavailable) as error:
        fetch("parcels", manifest=manifest, cache=cache)
    kept = f"parcels/fields/a.csv.wrong-{sha256(BAD)[:8]}"
    assert str(error.value) == (
        f"parcels/fields/a.csv is not in the cache and {server.url}fields/a.csv gave a wrong file, "
        f"kept as {cache}/{kept}: sha256 {sha256(GOOD)} expected, {sha256(BAD)} found."
    )
    assert files(cache) == [kept]
    assert (cache / kept).read_bytes() == BAD


def test_interrupted_download(server, served):
    manifest, cache = served
    server.script = ["cut", "cut"]
    with pytest.raises(DataUnavailable) as error:
        fetch("parcels", manifest=manifest, cache=cache)
    assert str(error.value) == (
        "parcels/fields/a.csv is not in the cache and could not be downloaded (the connection was cut); "
        f"download {server.url}fields/a.csv by hand and put it at {cache}/parcels/fields/a.csv."
    )
    assert files(cache) == []
    server.script = ["good"]  # the next call starts again
    assert fetch("parcels", manifest=manifest, cache=cache)["fields/a.csv"].read_bytes() == GOOD


def test_one_more_try(server, served):
    manifest, cache = served
    server.script = ["cut", "good"]
    assert fetch("parcels", manifest=manifest, cache=cache)["fields/a.csv"].read_bytes() == GOOD
    assert len(server.asked) == 2


def test_server_that_does_not_answer(server, served, monkeypatch):
    manifest, cache = served
    monkeypatch.setattr("cropnb.data.TIMEOUT", (0.2, 0.2))
    server.script = ["stall", "stall"]
    with pytest.raises(DataUnavailable, match=r"could not be downloaded \(no answer in time\); "):
        fetch("parcels", manifest=manifest, cache=cache)


def test_file_that_is_gone(server, served):
    manifest, cache = served
    server.script = [404, 404]
    with pytest.raises(DataUnavailable, match=r"could not be downloaded \(the server answered 404 Not Found\); "):
        fetch("parcels", manifest=manifest, cache=cache)
    assert files(cache) == []


def test_no_network(tmp_path):
    content = entry()
    content["datasets"]["parcels"]["url"] = "http://127.0.0.1:9/data/"  # nobody listens there
    with pytest.raises(DataUnavailable, match=r"not in the cache and could not be downloaded \(no connection\); "):
        fetch("parcels", manifest=write(tmp_path, content), cache=tmp_path / "cache")


# make data


def test_module_fetches_everything(tmp_path):
    content = entry()
    content["datasets"]["radar"] = content["datasets"]["parcels"]
    write(tmp_path, content).rename(tmp_path / "data_manifest.yaml")
    put(tmp_path, GOOD)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CROPNB_OFFLINE": "1", "CROPNB_DATA": str(tmp_path)}
    command = [sys.executable, "-m", "cropnb.data"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    *lines, sentence = result.stdout.splitlines()
    assert lines == ["parcels: 1 files, 0.1 MB, verified", "radar: not available"]
    assert sentence.startswith("radar/fields/a.csv is not in the cache and CROPNB_OFFLINE forbids the network;")


@pytest.mark.parametrize(("content", "code"), [(GOOD, 0), (None, 1)])
@pytest.mark.usefixtures("offline")
def test_exit_code(tmp_path, monkeypatch, content, code):
    write(tmp_path, entry()).rename(tmp_path / "data_manifest.yaml")
    if content:
        put(tmp_path, content)
    monkeypatch.setenv("CROPNB_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main() == code


def test_module_with_a_bad_manifest(tmp_path, monkeypatch, caplog):
    (tmp_path / "data_manifest.yaml").write_text("version: 1")
    monkeypatch.chdir(tmp_path)
    assert main() == 1
    assert caplog.messages == ["data_manifest.yaml, key 'datasets': missing, add it."]


# The manifest of this book

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the real data is not beside the repository")


def test_the_manifest_of_the_book_is_good():
    manifest = load_manifest(MANIFEST)
    assert "canada_2017_points" in manifest.datasets
    for dataset in manifest.datasets.values():
        assert "https://github.com/" in dataset.citation


# What the book does not take: bands other than B04, B8A, B11 and the classification, an empty date, files of tools.
LEFT_AT_BEZIERS = (
    r"beziers_s2_2018/(AOI/.+|mask/.+|reference_data/(.+\.q..|nomenclature\.csv)|eodata/.+/2018/02/12/.+|"
    r"eodata/.+_B(02|03|08)_10m\.jp2|eodata/.+_B(05|06|07|12)_20m\.jp2)"
)


@needs_shared
def test_the_manifest_of_the_book_says_what_the_sources_say():
    sources = yaml.safe_load((SHARED / "sources.yaml").read_text("utf-8"))["datasets"]
    manifest = load_manifest(MANIFEST)
    ours = {
        f"{name}/{file.path}": ("" if dataset.by_hand else dataset.address(file), file.sha256, file.bytes)
        for name, dataset in manifest.datasets.items()
        for file in dataset.files
    }
    theirs = {f["path"]: (f.get("url", ""), f["sha256"], f["bytes"]) for d in sources.values() for f in d["files"]}
    assert ours == {name: known for name, known in theirs.items() if not re.fullmatch(LEFT_AT_BEZIERS, name)}
    for name, dataset in manifest.datasets.items():
        for address in re.findall(r"https://\S+", sources[name]["repository"]):
            assert re.search(rf"{re.escape(address)}(?![\w/-])", dataset.citation)  # the whole of it
        commit = sources[name].get("commit", "")
        assert not commit or f"commit {commit[:7]}" in dataset.citation


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", load_manifest(MANIFEST).datasets)
def test_every_dataset_is_there_and_right(name, monkeypatch):
    folder = Path(os.environ.get("CROPNB_DATA", SHARED))
    if not (folder / name).is_dir():
        pytest.skip(f"needs the dataset {name}: set CROPNB_DATA to the folder of real data")
    monkeypatch.setenv("CROPNB_DATA", str(folder))
    assert is_available(name, manifest=MANIFEST)
    dataset = load_manifest(MANIFEST).datasets[name]
    paths = fetch(name, manifest=MANIFEST)
    assert {path: file.stat().st_size for path, file in paths.items()} == {f.path: f.bytes for f in dataset.files}


def test_files_without_an_address_are_asked_for_by_hand(tmp_path):
    manifest = write(tmp_path, entry())
    text = manifest.read_text()
    manifest.write_text(text.replace("    files:", "    by_hand: ask the surveyor\n    files:", 1))
    with pytest.raises(DataUnavailable, match="is not in the cache: ask the surveyor"):
        fetch("parcels", manifest=manifest, cache=tmp_path / "cache")
