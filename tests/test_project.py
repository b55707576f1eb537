"""The project's own files agree with each other."""

import re
import subprocess
import tomllib

import chapters
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@pytest.fixture
def pins(root):
    lines = (root / "requirements.txt").read_text().replace(" \\\n", " ").splitlines()
    return [Requirement(line.partition(" --hash")[0]) for line in lines if line.strip() and not line.startswith("#")]


@pytest.fixture
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


def test_every_requirement_is_pinned_exactly(pins):
    assert len(pins) > 50
    for pin in pins:
        assert [s.operator for s in pin.specifier] == ["=="], pin


def test_every_pin_has_a_hash(root):
    entries = re.split(r"(?m)^(?=[a-z])", (root / "requirements.txt").read_text())[1:]
    assert all("--hash=sha256:" in entry for entry in entries)


def test_requirements_name_no_index(root):
    assert not re.search(r"(?m)^\s*(-i\b|--(?!hash)|.*://)", (root / "requirements.txt").read_text())


def test_pins_satisfy_the_declared_dependencies(pins, project):
    pinned = {}
    for pin in pins:
        pinned.setdefault(canonicalize_name(pin.name), []).append(next(iter(pin.specifier)).version)
    for text in project["dependencies"] + project["optional-dependencies"]["dev"]:
        wanted = Requirement(text)
        versions = pinned[canonicalize_name(wanted.name)]
        assert all(wanted.specifier.contains(version) for version in versions), text


def test_environment_takes_the_same_pins(root, project):
    environment = yaml.safe_load((root / "environment.yml").read_text())
    installed = (root / "postBuild").read_text()
    assert "--no-deps -r requirements.txt" in installed
    assert "--no-deps -e ." in installed
    python = next(entry for entry in environment["dependencies"] if entry.startswith("python="))
    assert Requirement(f"python{project['requires-python']}").specifier.contains(f"{python.split('=')[1]}.0")


def test_every_chapter_is_in_the_table_of_contents(root):
    listed = [source.relative_to(root) for source in chapters.table_of_contents()]
    assert sorted(listed) == sorted(path.relative_to(root) for path in (root / "notebooks").glob("*.md"))


@pytest.mark.parametrize("name", ["smoke", "demo", "paper"])
def test_profiles_fit_the_chapters(root, name):
    profile = yaml.safe_load((root / f"params/profiles/{name}.yaml").read_text())
    assert profile["parameters"]["profile"] == name
    book = chapters.all_chapters()
    chapters.check_profile(profile, book)
    for chapter in book:
        given = chapters.parameters(chapter, profile)
        assert {"profile", "seed"} <= set(given)
        # whoever reads or writes artefacts does so below the profile's own folder
        assert "build" in given or not chapter.reads + chapter.writes
        assert given.get("build", f"_build/{name}") == f"_build/{name}"


def test_what_a_chapter_reads_another_writes():
    book = chapters.all_chapters()
    written = [name for chapter in book for name in chapter.writes]
    assert len(written) == len(set(written))
    written += ["sweep.json", "results/replicates.parquet"]  # by the workflow's own rules
    for chapter in book:
        assert set(chapter.reads) <= set(written), chapter.name


def test_nothing_generated_or_big_is_tracked(root):
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True).stdout
    paths = [root / name for name in tracked.split("\0") if name]
    assert not [path for path in paths if path.suffix == ".ipynb"]
    assert not [path for path in paths if path.exists() and path.stat().st_size > 500_000]
