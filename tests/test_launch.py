"""Launch buttons of the rendered pages, and the files in ``jupyterhub/``."""

import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jsonschema
import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

HUB, BINDER, REPOSITORY = "hub.example.org", "binder.example.org", "https://github.com/somebody/cropnb"
# What our values use of the schema of Zero to JupyterHub (jupyterhub/values.schema.yaml there, chart 4), which refuses
# every key it does not know; and the settings of KubeSpawner 7.
TEXT = {"type": ["string", "null"]}
SINGLEUSER = {
    "image": {"type": "object", "required": ["name", "tag"], "properties": {"name": {"type": "string"}, "tag": TEXT}},
    "cmd": {"type": ["array", "string", "null"]},
    "defaultUrl": TEXT,
    "startTimeout": {"type": ["integer", "null"]},
    "storage": {"type": "object", "properties": {"capacity": TEXT}, "additionalProperties": False},
    "profileList": {"type": "array"},
}
PROFILE = {"display_name", "description", "default", "kubespawner_override"}
OVERRIDE = {"cpu_guarantee", "cpu_limit", "mem_guarantee", "mem_limit", "environment", "extra_resource_limits"}


@pytest.fixture
def render(root, tmp_path):
    """Render a page of prose and a chapter with the book's configuration, two hubs, and this repository."""

    def build(repository):
        (tmp_path / "notebooks").mkdir()
        shutil.copytree(root / "book/_ext", tmp_path / "book/_ext")
        (tmp_path / "book/_static").mkdir()
        shutil.copy(root / "book/references.bib", tmp_path / "book")
        shutil.copy(root / "book/_static/cropnb.css", tmp_path / "book/_static")
        config = yaml.safe_load((root / "_config.yml").read_text())
        config["repository"]["url"] = repository
        config["launch_buttons"] |= {"jupyterhub_url": f"https://{HUB}", "binderhub_url": f"https://{BINDER}"}
        (tmp_path / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False))
        (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: book/index\nchapters: [{file: notebooks/05_tcnn}]\n")
        (tmp_path / "book/index.md").write_text("# Prose\n")
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_markdown_cell("# TCNN")],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        )
        nbformat.write(notebook, tmp_path / "notebooks/05_tcnn.ipynb")
        command = [Path(sys.executable).with_name("jupyter-book"), "build", "-W", "--keep-going", tmp_path]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [(tmp_path / "_build/html" / page).read_text() for page in ("book/index.html", "notebooks/05_tcnn.html")]

    return build


def link(page, host):
    """The address on that host to which a page has a button."""
    return urlsplit("https://" + host + page.split(f'href="https://{host}')[1].split('"')[0].replace("&amp;", "&"))


def test_buttons_open_the_source(render):
    prose, chapter = render(REPOSITORY)
    assert HUB not in prose
    assert BINDER not in prose
    hub = link(chapter, HUB)
    assert hub.path == "/hub/user-redirect/git-pull"
    opened = {"repo": [REPOSITORY], "branch": ["main"], "urlpath": ["lab/tree/cropnb/notebooks/05_tcnn.md"]}
    assert parse_qs(hub.query) == opened
    binder = link(chapter, BINDER)
    assert binder.path == "/v2/gh/somebody/cropnb/main"
    assert parse_qs(binder.query) == {"urlpath": ["lab/tree/notebooks/05_tcnn.md"]}


def test_no_button_without_a_repository(render):
    for page in render(""):
        assert "launch-buttons" not in page
        assert HUB not in page


def test_chart_knows_the_values(root):
    values = yaml.safe_load((root / "jupyterhub/values.yaml").read_text())
    assert set(values) == {"singleuser"}
    jsonschema.validate(values["singleuser"], {"properties": SINGLEUSER, "additionalProperties": False})
    plain, gpu = values["singleuser"]["profileList"]
    for profile in (plain, gpu):
        assert set(profile) <= PROFILE
        assert set(profile["kubespawner_override"]) <= OVERRIDE
    assert plain["default"]
    assert "extra_resource_limits" not in plain["kubespawner_override"]
    assert gpu["kubespawner_override"]["extra_resource_limits"] == {"nvidia.com/gpu": "1"}


def test_image_copies_what_exists(root):
    lines = (root / "jupyterhub/Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1] if word[:2] != "--"]
    assert "requirements.txt" in copied
    assert [name for name in copied if not (root / name).exists()] == []


def test_steps_of_the_image_are_shell(root):
    text = (root / "jupyterhub/Dockerfile").read_text().replace("\\\n", "")
    steps = [line.removeprefix("RUN ") for line in text.splitlines() if line.startswith("RUN ")]
    assert len(steps) > 1
    for step in (*steps, (root / "postBuild").read_text()):
        subprocess.run(["bash", "-n", "-c", step], check=True)


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="no hadolint on this machine")
def test_a_linter_finds_nothing_in_the_image(root):
    subprocess.run(["hadolint", root / "jupyterhub/Dockerfile"], check=True)


@pytest.mark.parametrize("version", ["3.11.9", "3.12.3", "3.13.1"])
def test_the_image_constrains_each_package_once(root, version):
    step = next(line for line in (root / "jupyterhub/Dockerfile").read_text().splitlines() if "> pins.txt" in line)
    pins = subprocess.run(["bash", "-c", step.split(" >")[0]], cwd=root, capture_output=True, text=True).stdout
    python = {"python_full_version": version, "python_version": version.rpartition(".")[0]}
    wanted = [Requirement(line) for line in pins.splitlines()]
    names = [pin.name for pin in wanted if pin.marker is None or pin.marker.evaluate(python)]
    assert len(names) == len(set(names)) > 50
