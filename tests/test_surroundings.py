"""Machines that are not ours: what somebody's surroundings lack or set reaches no result and ends in no traceback."""

import os
import shlex
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from cropnb import data
from cropnb.sentinel import catalogue


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


def test_make_takes_no_settings_of_pip(root):
    command = ["make", "-s", "-C", root, "--eval=shown: ; @echo $$PIP_USER $$PYTHONNOUSERSITE $$PIP_TARGET", "shown"]
    surroundings = os.environ | {"PIP_USER": "1", "PIP_TARGET": "elsewhere", "PYTHONHOME": "/nowhere"}
    assert subprocess.run(command, env=surroundings, capture_output=True, text=True).stdout == "0 1\n"


@pytest.fixture
def intercepted(tmp_path):
    """Address of a server whose certificate nobody has signed, like a company's proxy that opens encryption."""
    key = tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1", "-out", key]
    subprocess.run([*made, "-keyout", tmp_path / "own.pem"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(key, tmp_path / "own.pem")
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"https://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def ask(address, folder):
    """What is said by the data and by the catalogue where a server is asked in vain."""
    file = {"path": "a.csv", "sha256": "0" * 64, "bytes": 1}
    dataset = {"what": "a", "licence": "MIT", "citation": "A (2020)", "url": f"{address}/", "files": [file]}
    manifest = folder / "manifest.yaml"
    manifest.write_text(yaml.safe_dump({"version": 1, "datasets": {"fields": dataset}}))
    with pytest.raises(data.DataUnavailable) as first:
        data.fetch("fields", manifest=manifest, cache=folder / "cache")
    with pytest.raises(data.DataUnavailable) as second:
        catalogue.search((125, 48, 126, 49), "2017-05-01", "2017-05-31", sensors=("sar",), address=address)
    with pytest.raises(data.DataUnavailable) as third:
        catalogue.elevation((125, 48, 126, 49), address=address)
    return [str(error.value) for error in (first, second, third)]


def test_encryption_that_is_opened_on_the_way_is_named(intercepted, tmp_path, monkeypatch):
    monkeypatch.delenv("CROPNB_OFFLINE", raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # before a second try
    assert all("certificate is not trusted" in said for said in ask(intercepted, tmp_path))


def test_a_proxy_that_lets_nothing_through_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("CROPNB_OFFLINE", raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert all("the proxy of this machine" in said for said in ask("https://example.org", tmp_path))


def command(root, code, shell="{} -c {}", **variables):
    """Run code as the main function of a command, in a shell's pipeline."""
    code = f"import os, sys; from cropnb import project\ndef main():\n    {code}\nproject.command(main)"
    line = shell.format(shlex.quote(sys.executable), shlex.quote(code))
    surroundings = os.environ | {"PYTHONPATH": str(root)} | variables
    return subprocess.run(["bash", "-o", "pipefail", "-c", line], env=surroundings, capture_output=True, text=True)


def test_a_pipe_that_closes_is_no_fault(root):
    done = command(root, "return print('line\\n' * 100_000)", "{} -c {} | head -n 1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "line\n", "")
    log = "import logging; logging.basicConfig(stream=sys.stdout); [logging.error('x' * 99) for _ in range(9999)]"
    done = command(root, log, "{} -c {} | head -n 1")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_is_one_sentence(root):
    for code, shell in (
        ("open('/dev/full', 'w').write('x' * 99_999)", "{} -c {}"),
        ("print('x')", "{} -c {} > /dev/full"),
    ):
        done = command(root, code, shell)
        assert done.returncode == 1
        assert done.stderr == "The machine refuses: No space left on device. Mend that, and the same command goes on.\n"


def test_an_interrupted_command_goes_on_later(root):
    done = command(root, "raise KeyboardInterrupt")
    assert (done.returncode, done.stderr) == (1, "Interrupted. The same command goes on from here.\n")


def test_a_locale_of_one_byte_reads_and_writes_utf8(root):
    done = command(root, "print(sys.flags.utf8_mode, chr(0x2013))", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert (done.returncode, done.stdout) == (0, "1 –\n")


def test_every_command_ends_in_that_way(root):
    commands = [root / f"workflow/{name}.py" for name in ("build", "status", "rerun", "run_chapter")]
    for file in (*commands, root / "cropnb/data.py", root / "cropnb/sentinel/__main__.py"):
        assert file.read_text().endswith("    project.command(main)\n"), file
