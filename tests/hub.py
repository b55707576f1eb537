"""A chapter on a real JupyterHub, as a reader meets it. Run by `make live` after `make book PROFILE=smoke`.

A hub on this machine alone: the reader logs in, follows a link of nbgitpuller as the book's launch buttons have it,
types small parameters into the chapter, runs it, and saves it. No request leaves the machine.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import chapters as book
import pytest
import yaml
from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
PROXY = ROOT / "_build/npm/node_modules/.bin/configurable-http-proxy"
BUILT = ROOT / "_build/smoke"
CHAPTER = "notebooks/05_tcnn.md"
BROWSER = next((found for name in ("chromium", "chromium-browser") if (found := shutil.which(name))), None)
MINUTES = 60_000  # of Playwright's milliseconds

CONFIGURATION = """
c = get_config()
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allowed_users = {{"reader"}}
c.DummyAuthenticator.password = "{password}"
c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = "{home}"
c.Spawner.args = ["--allow-root"]  # where the tests run as root, as in containers
c.Spawner.environment = {{"JUPYTER_CONFIG_PATH": "{settings}", "MPLBACKEND": ""}}
c.Spawner.default_url = "/lab"
c.Spawner.start_timeout = c.Spawner.http_timeout = 120
c.JupyterHub.bind_url = "http://127.0.0.1:{public}"
c.JupyterHub.hub_bind_url = "http://127.0.0.1:{hub}"
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{proxy}"
c.ConfigurableHTTPProxy.command = ["{command}"]
"""


def free_ports(count):
    """Ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture
def repository(tmp_path):
    """A repository of its own with the chapters as they are in the working tree."""
    folder = tmp_path / "repository/cropnb"
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name in ("data_manifest.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    git = ["git", "-C", folder, "-c", "user.name=writer", "-c", "user.email=writer@example.org"]
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "The book"]):
        subprocess.run([*git, *words], check=True)
    return folder


@pytest.fixture
def home(tmp_path):
    """The reader's folder."""
    folder = tmp_path / "reader"
    folder.mkdir()
    return folder


@pytest.fixture
def hub(tmp_path, home):
    """Address of a running hub, which is gone with all it started when the test ends."""
    assert PROXY.exists(), f"{PROXY} is missing; make live installs it"
    assert (BUILT / "split.parquet").exists(), "run make book PROFILE=smoke first"
    public, own, proxy = free_ports(3)
    folder = tmp_path / "hub"
    folder.mkdir()
    words = {"public": public, "hub": own, "proxy": proxy, "home": home, "command": PROXY, "password": "tractor"}
    (folder / "jupyterhub_config.py").write_text(CONFIGURATION.format(settings=ROOT / "jupyterhub", **words))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    surroundings = os.environ | {"HOME": str(tmp_path), "PATH": path}
    with (folder / "log.txt").open("w") as log:
        command = [sys.executable, "-m", "jupyterhub", "-f", "jupyterhub_config.py"]
        process = subprocess.Popen(command, cwd=folder, env=surroundings, stdout=log, stderr=subprocess.STDOUT)
    try:
        address = f"http://127.0.0.1:{public}"
        wait_for(f"{address}/hub/api", process)
        yield address
    finally:
        process.terminate()  # the hub takes proxy and servers down with it
        process.wait(timeout=60)
        print((folder / "log.txt").read_text())  # noqa: T201 - pytest shows it when the test fails


def wait_for(address, process):
    """Wait until somebody answers there, for a minute at most."""
    for _ in range(120):
        assert process.poll() is None, "the hub has ended"
        try:
            return urlopen(address).close()
        except URLError:
            time.sleep(0.5)
    raise TimeoutError(f"Nobody answers at {address}.")


@pytest.fixture
def tab(tmp_path):
    """A tab of a browser that reaches this machine alone; what it shows is kept where the test fails."""
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1400, "height": 1000})
        tab.set_default_timeout(MINUTES)
        tab.route(re.compile(r"^https?://(?!127\.0\.0\.1)"), lambda route: route.abort())
        yield tab
        tab.screenshot(path=tmp_path / "last.png")
        browser.close()


def small(code):
    """The parameters cell with the values of the smoke profile, its comments kept."""
    profile = yaml.safe_load((ROOT / "params/profiles/smoke.yaml").read_text())
    for name, value in book.parameters(book.load(ROOT / CHAPTER), profile).items():
        code = re.sub(rf"(?m)^({name}: [^=]*= )[^#]*?(?=  #|$)", rf"\g<1>{value!r}", code)
    return code


def test_a_reader_runs_a_chapter(hub, tab, repository, home):
    tab.goto(f"{hub}/hub/login")
    tab.fill("#username_input", "reader")
    tab.fill("#password_input", "tractor")
    tab.click("#login_submit")
    tab.wait_for_url(re.compile("/user/reader/lab"), timeout=2 * MINUTES)

    wanted = {"repo": repository, "branch": "main", "urlpath": f"lab/tree/cropnb/{CHAPTER}"}
    tab.goto(f"{hub}/hub/user-redirect/git-pull?{urlencode(wanted)}")
    notebook = tab.locator(".jp-NotebookPanel")
    notebook.wait_for(timeout=2 * MINUTES)
    idle = tab.get_by_text("Python 3 (ipykernel) | Idle")
    idle.wait_for()
    clone = home / "cropnb"
    build = clone / "_build/smoke"  # what the chapters before this one have written
    build.mkdir(parents=True)
    for artefact in ("region", "cube.zarr", "split.parquet"):
        (build / artefact).symlink_to(BUILT / artefact)

    source = next(cell.source for cell in book.read_notebook(ROOT / CHAPTER).cells if book.is_parameters(cell))
    notebook.locator(".jp-CodeCell .cm-content").first.click()
    tab.keyboard.press("Control+a")
    tab.keyboard.insert_text(small(source))
    tab.get_by_role("menuitem", name="Run", exact=True).click()
    tab.get_by_text("Run All Cells", exact=True).click()

    prompts = notebook.locator(".jp-CodeCell .jp-InputPrompt")
    expect(prompts.first).to_have_text("[1]:", timeout=2 * MINUTES)
    expect(prompts.filter(has_text="*")).to_have_count(0, timeout=3 * MINUTES)
    assert notebook.locator(".jp-OutputArea-output").filter(has_text="Traceback").all_text_contents() == []
    assert [text for text in prompts.all_text_contents() if not re.fullmatch(r"\[\d+\]:", text)] == []
    table = notebook.locator("table").filter(has_text="overall_accuracy")
    assert re.search(r"overall_accuracy\s*[01]\.\d+", table.text_content())
    assert (build / "reruns/runs/tcnn/optical+m-chi/none/seed-2017/run.json").exists()

    tab.keyboard.press("Control+s")
    expect(tab.locator(".jp-mod-dirty")).to_have_count(0)
    saved, known = book.read_notebook(clone / CHAPTER), book.read_notebook(ROOT / CHAPTER)
    assert saved.metadata["cropnb"] == known.metadata["cropnb"]
    assert [cell.metadata for cell in saved.cells] == [cell.metadata for cell in known.cells]
    assert [cell.source for cell in saved.cells] == [
        small(source) if cell.source == source else cell.source for cell in known.cells
    ]

    tab.get_by_text("06_3d_cnn.md").dblclick()
    expect(notebook).to_have_count(2)
