"""Chapters run again with other parameters, on a book that is built. Run by `make live` after `make book`.

What the page of parameters promises: both commands work, the same parameters give the same numbers, and the comparison
takes the new run in.
"""

import html
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def profile(pytestconfig):
    return pytestconfig.getoption("--profile-built")


@pytest.fixture(scope="module")
def build(profile):
    folder = ROOT / "_build" / profile
    assert (folder / "html/index.html").exists(), f"run make book PROFILE={profile} first"
    return folder


def said(*command, **options):
    """What a command prints; it must succeed."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make_run(profile, chapter, parameters):
    """`make run`, and the executed notebook it prints the path of."""
    told = said("make", "run", f"PROFILE={profile}", f"CHAPTER={chapter}", f"PARAMS={parameters}")
    return ROOT / re.search(r"Executed notebook: (\S+)", told)[1]


def results(notebook):
    """What a notebook has put out, text, tables and pictures, but for how long it took."""
    cells = [cell for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"]
    found = [output for cell in cells for output in cell.outputs if output.output_type != "stream"]
    named = [(output.metadata.get("scrapbook", {}).get("name"), output.data) for output in found]
    assert any("image/png" in data for _, data in named)
    return [data for name, data in named if name != "seconds"]


def words(text):
    """Words alone, whatever quotation marks and entities stand between them."""
    return " ".join(re.findall(r"\w+", html.unescape(text)))


@pytest.fixture(scope="module")
def rerun(profile):
    """A network on features of its own choosing, with a seed that the book does not use."""
    return make_run(profile, "05_tcnn", "features=backscatter seed=31")


def test_two_runs_give_identical_numbers(rerun, profile, build):
    run = build / "runs/tcnn/backscatter/none/seed-31"
    before = {name: (run / name).read_bytes() for name in ("metrics.json", "history.csv", "predictions.parquet")}
    shown = results(rerun)
    assert make_run(profile, "tcnn", "seed=31 features=backscatter") == rerun
    assert {name: (run / name).read_bytes() for name in before} == before
    assert results(rerun) == shown


def test_the_comparison_takes_it_in(rerun, profile, build):
    target = f"_build/{profile}/executed/10_feature_comparison.ipynb"
    said(sys.executable, "workflow/build.py", "--profile", profile, target)
    table = pd.read_csv(build / "results/table1.csv").set_index(["model", "features", "measure"])
    seeds = {path.name for path in (build / "runs/tcnn/backscatter/none").iterdir()}
    assert {"seed-2017", "seed-31"} <= seeds
    assert table.loc[("TCNN", "backscatter", "overall_accuracy"), "seeds"] == len(seeds)


def test_bare_papermill(profile, tmp_path):
    notebook = said(BIN / "jupytext", "--to", "ipynb", "notebooks/05_tcnn.md", "-o", "-")
    told = said(BIN / "papermill", "--help-notebook", "-", input=notebook)
    page = words((ROOT / f"_build/{profile}/html/book/parameters.html").read_text())
    described = re.findall(r"^  (\w+): (\w+).*?\)\s+(.+)$", told, re.M)
    assert len(described) > 10
    for name, kind, comment in described:
        assert kind in ("int", "float", "str")
        assert name in page
        assert words(comment) in page
    values = {"build": f"_build/{profile}", "folder": "bare", "width": "0.03", "train_samples": "64"}
    values |= {"validation_samples": "32", "test_samples": "64", "epochs": "1", "features": "backscatter", "seed": "3"}
    given = [word for name, value in values.items() for word in ("-p", name, value)]
    said(BIN / "papermill", "-", str(tmp_path / "out.ipynb"), *given, input=notebook)
    run = ROOT / f"_build/{profile}/bare/tcnn/backscatter/none/seed-3"
    assert json.loads((run / "run.json").read_text())["seed"] == 3
    # Without a folder of its own it is kept apart: the run of the page stays.
    cell = "runs/tcnn/optical+m-chi/none/seed-2017"
    book = {file: file.stat().st_mtime_ns for file in (ROOT / f"_build/{profile}" / cell).iterdir()}
    given += ["-p", "folder", "runs", "-p", "features", "optical+m-chi", "-p", "seed", "2017"]
    said(BIN / "papermill", "-", str(tmp_path / "out.ipynb"), *given, input=notebook)
    assert book == {file: file.stat().st_mtime_ns for file in (ROOT / f"_build/{profile}" / cell).iterdir()}
    assert json.loads((ROOT / f"_build/{profile}/reruns" / cell / "run.json").read_text())["epochs"] == 1


def test_a_scenario_that_is_not_there_is_explained(profile):
    done = subprocess.run(
        ["make", "run", f"PROFILE={profile}", "CHAPTER=05_tcnn", "PARAMS=features=thermal"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert re.search(r"failed    05_tcnn.md, cell \d+: ValueError: .*thermal.*optical\+m-chi", done.stderr)


def test_rendering_again_gives_the_same_pages(build, tmp_path):
    for name in ("once", "again"):
        said(sys.executable, "workflow/render.py", str(build), str(tmp_path / name))
    pages = sorted((tmp_path / "once").rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        again = tmp_path / "again" / page.relative_to(tmp_path / "once")
        assert again.read_text() == page.read_text(), page
