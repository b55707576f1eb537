"""The workflow on a miniature book: what is stale, what is refused, what survives a kill."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import artefacts
import chapters
import machine
import nbformat
import psutil
import pytest
import run_chapter
import yaml

from cropnb import plotting

HEADER = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
cropnb: {declared}
---
# {title}

```{{code-cell}} ipython3
:tags: [parameters]
profile: str = "demo"  # profile
seed: int = 2017  # of every draw
build: str = "_build/demo"  # where results go
rate: float = 0.5  # a float
```

```{{code-cell}} ipython3
{code}
```
"""


def write_chapter(folder, name, code, declared="{}"):
    path = folder / "notebooks" / f"{name}.md"
    path.write_text(HEADER.format(title=name, code=code, declared=declared))
    return path


@pytest.fixture
def mini(root, tmp_path):
    """A book of two chapters with the real workflow; the second reads what the first writes."""
    for name in ("workflow", "cropnb", "params"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("data_manifest.yaml", "requirements.txt", "pyproject.toml"):
        shutil.copy(root / name, tmp_path)
    (tmp_path / "notebooks").mkdir()
    files = "".join(f"      - file: notebooks/{name}\n" for name in ("01_first", "02_second"))
    (tmp_path / "_toc.yml").write_text(f"format: jb-book\nroot: book/index\nparts:\n  - chapters:\n{files}")
    (tmp_path / "params/profiles/smoke.yaml").write_text(
        "parameters: {profile: smoke, seed: 1, build: _build/smoke}\nchapters: {}\n"
    )
    write_chapter(
        tmp_path,
        "01_first",
        'from pathlib import Path\nPath(build, "number.txt").write_text(str(seed));',
        "{writes: [number.txt]}",
    )
    write_chapter(tmp_path, "02_second", 'number = open(f"{build}/number.txt").read()', "{reads: [number.txt]}")
    return tmp_path


def build(folder, *targets, **popen):
    """Run the chapters of the miniature book, or what makes `targets`, without rendering."""
    command = [sys.executable, "workflow/build.py", "--profile", "smoke", "--cores", "2"]
    targets = targets or ("executed/01_first.ipynb", "executed/02_second.ipynb")
    command += [f"_build/smoke/{target}" for target in targets]
    environment = os.environ | {"PYTHONPATH": str(folder), "CROPNB_OFFLINE": "1"}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **popen,
    )


def finish(process):
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def test_runs_what_is_stale_and_nothing_else(mini):
    status, out, err = finish(build(mini))
    assert status == 0, err
    assert out.index("finished  01_first") < out.index("running   02_second")
    run = nbformat.read(mini / "_build/smoke/executed/01_first.ipynb", 4).metadata["cropnb"]["run"]
    assert run["parameters"] == {"profile": "smoke", "seed": 1, "build": "_build/smoke", "rate": 0.5}
    assert run["missing"] == []
    assert run["seconds"] > 0
    status, out, _ = finish(build(mini))
    assert status == 0
    assert "running" not in out
    # a change of the second chapter's parameters leaves the first alone
    profile = mini / "params/profiles/smoke.yaml"
    profile.write_text(profile.read_text().replace("chapters: {}", "chapters: {02_second: {rate: 0.25}}"))
    status, out, _ = finish(build(mini))
    assert "running   02_second" in out
    assert "01_first" not in out


def test_a_failing_cell_names_notebook_cell_and_error(mini):
    write_chapter(mini, "01_first", 'raise RuntimeError("no such field")', "{writes: [number.txt]}")
    status, out, err = finish(build(mini))
    assert status != 0
    assert "01_first.md, cell 3: RuntimeError: no such field" in err
    kept = mini / "_build/smoke/failed/01_first.ipynb"
    assert any("RuntimeError" in str(cell.get("outputs")) for cell in nbformat.read(kept, 4).cells)
    assert not (mini / "_build/smoke/executed/01_first.ipynb").exists()
    assert "02_second" not in out


def test_a_killed_build_resumes(mini):
    slow = 'import time\nnumber = open(f"{build}/number.txt").read()\ntime.sleep(600 if rate == 0.5 else 0)'
    write_chapter(mini, "02_second", slow, "{reads: [number.txt]}")
    process = build(mini, start_new_session=True)
    finished = mini / "_build/smoke/executed/01_first.ipynb"
    half = mini / "_build/smoke/failed/02_second.ipynb"
    deadline = time.monotonic() + 200
    while not half.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert finished.exists()
    assert not (mini / "_build/smoke/executed/02_second.ipynb").exists()
    before = finished.stat().st_mtime_ns
    profile = mini / "params/profiles/smoke.yaml"
    profile.write_text(profile.read_text().replace("chapters: {}", "chapters: {02_second: {rate: 0.25}}"))
    status, out, err = finish(build(mini))
    assert status == 0, err
    assert "01_first" not in out
    assert finished.stat().st_mtime_ns == before


def wait_for(file):
    deadline = time.monotonic() + 200
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert file.exists()


def test_the_lock_is_held_until_the_last_job_ends(mini):
    """A build that is killed alone finishes what is running; the next one waits for that, and takes it over."""
    slow = """import os, time
from pathlib import Path
Path(build, f"{os.getpid()}.start").touch()
while not Path("go").exists():
    time.sleep(0.1)
Path(build, "number.txt").write_text(str(seed))"""
    write_chapter(mini, "01_first", slow, "{writes: [number.txt]}")
    first, made = build(mini), mini / "_build/smoke"
    while not list(made.glob("*.start")):
        time.sleep(0.1)
    first.kill()
    first.communicate()
    second = build(mini)
    assert second.stderr.readline() == "Another build is running in _build/smoke: waiting for its end.\n"
    (mini / "go").touch()
    status, out, err = finish(second)
    assert status == 0, err
    assert "running   01_first" not in out
    assert "finished  02_second" in out
    assert "index.html" not in out  # no page was asked for
    assert len(list(made.glob("*.start"))) == 1


@pytest.mark.parametrize("command", ["build", "rerun"])
def test_ctrl_c_twice_leaves_nothing_behind(mini, command):
    slow = 'import os, time\nfrom pathlib import Path\nPath("here").write_text(str(os.getpid()))\ntime.sleep(200)'
    write_chapter(mini, "01_first", slow, "{writes: [number.txt]}")
    words = [f"workflow/{command}.py", "--profile", "smoke"]
    words += ["01_first"] if command == "rerun" else ["--", "_build/smoke/executed/01_first.ipynb"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen(
        [sys.executable, *words], cwd=mini, env=os.environ | {"PYTHONPATH": str(mini)}, **options
    )
    wait_for(mini / "here")
    time.sleep(0.5)
    kernel = int((mini / "here").read_text())
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.1)
    status, _, err = finish(process)
    assert status == 130
    assert err == "\nInterrupted. The same command goes on from here.\n"
    time.sleep(1)
    with suppress(psutil.NoSuchProcess):
        assert psutil.Process(kernel).status() == psutil.STATUS_ZOMBIE


def test_killed_at_any_moment_it_ends_with_the_same_results(mini):
    """Of all processes or a single one, at moments of chance; CROPNB_KILLS=20 tries more of them."""
    code = (
        'import time\nfrom pathlib import Path\nnumber = {}\ntime.sleep(1)\nPath(build, "{}").write_text(str(number));'
    )
    write_chapter(mini, "01_first", code.format("seed", "number.txt"), "{writes: [number.txt]}")
    twice = code.format("2 * int(open(f'{build}/number.txt').read())", "twice.txt")
    write_chapter(mini, "02_second", twice, "{reads: [number.txt], writes: [twice.txt]}")
    profile, rng, begin = mini / "params/profiles/smoke.yaml", random.Random(2017), time.monotonic()
    assert finish(build(mini))[0] == 0
    seconds = time.monotonic() - begin
    for seed in range(2, 2 + int(os.environ.get("CROPNB_KILLS", "4"))):
        profile.write_text(re.sub(r"seed: \d+", f"seed: {seed}", profile.read_text()))
        disturbed = build(mini)
        time.sleep(rng.uniform(0, seconds))
        alive = [known := psutil.Process(disturbed.pid), *known.children(recursive=True)]
        victims = alive if seed % 2 else [rng.choice(alive)]
        told = []
        for victim in victims:
            with suppress(psutil.NoSuchProcess):  # it has ended by itself
                told.append(" ".join(victim.cmdline())[-60:])
                victim.kill()
        status, _, err = finish(build(mini))
        disturbed.communicate()
        assert status == 0, (told, err)
        assert (mini / "_build/smoke/number.txt").read_text() == str(seed), told
        assert (mini / "_build/smoke/twice.txt").read_text() == str(2 * seed), told


def test_what_something_else_has_changed_is_made_anew(mini):
    write_chapter(mini, "02_second", 'assert open(f"{build}/number.txt").read() == "1"', "{reads: [number.txt]}")
    number = mini / "_build/smoke/number.txt"
    assert finish(build(mini))[0] == 0
    number.write_text("1")  # as a chapter that somebody runs again beside the book
    _, out, _ = finish(build(mini))
    assert "running" not in out
    number.write_text("999")  # the same with another value, or half a file
    status, out, err = finish(build(mini))
    assert status == 0, err
    assert "changed   _build/smoke/number.txt, which is not as it was written: 01_first runs anew" in out
    assert number.read_text() == "1"
    times = number.stat()
    number.write_text("7")  # a disk goes bad, and no date tells
    os.utime(number, ns=(times.st_atime_ns, times.st_mtime_ns))
    (mini / "_build/smoke/executed/02_second.ipynb").unlink()
    status, out, err = finish(build(mini))
    assert status == 0, err
    assert "changed   _build/smoke/number.txt" in out
    assert number.read_text() == "1"


def test_content_tells_and_not_dates(tmp_path):
    (tmp_path / "page.md").write_text("old")
    before = artefacts.content([tmp_path])
    os.utime(tmp_path / "page.md", (0, 0))
    assert artefacts.content([tmp_path]) == before
    (tmp_path / "page.md").write_text("new")
    os.utime(tmp_path / "page.md", (0, 0))
    assert artefacts.content([tmp_path]) != before


def test_missing_data_becomes_a_page_that_says_so(mini, monkeypatch):
    code = 'from cropnb import data\ndata.fetch("canada_2017_points")'
    source = write_chapter(mini, "02_second", code, "{datasets: [canada_2017_points]}")
    source.write_text(
        source.read_text().replace("# 02_second", "# 02_second\n\nA question?\nGain {glue:text}`gain:.2f`.")
    )
    monkeypatch.delenv("CROPNB_DATA", raising=False)
    status, _, err = finish(build(mini))
    assert status == 0, err
    page = nbformat.read(mini / "_build/smoke/executed/02_second.ipynb", 4)
    text = "\n".join(cell.source for cell in page.cells)
    assert "canada_2017_points" in text
    assert "A question?" in text
    assert "Gain" not in text
    assert page.metadata["cropnb"]["run"]["missing"]


NETWORK = """
import json
from pathlib import Path
if features == "broken":
    raise RuntimeError("no such band")
run = Path(build, folder, "tcnn", features, augmentation, f"seed-{seed}")
run.mkdir(parents=True, exist_ok=True)
(run / "run.json").write_text("{}")
with open(f"{build}/log.txt", "a") as log:
    log.write(f"{features} {seed}\\n")
"""


@pytest.fixture
def swept(mini):
    """The miniature book with a network's chapter and a sweep of three cells, one of which fails."""
    write_chapter(mini, "02_second", NETWORK, "{reads: [number.txt], network: tcnn}")
    source = mini / "notebooks/02_second.md"
    more = 'features: str = "a"  # f\naugmentation: str = "none"  # t\nfolder: str = "runs"  # r\n'
    source.write_text(source.read_text().replace("rate: float", more + "rate: float"))
    profile = mini / "params/profiles/smoke.yaml"
    profile.write_text(profile.read_text() + "sweep: [{features: [b, broken]}, {seed: 2}, {features: a}]\n")
    return mini


def sweep(folder):
    """Run the sweep of the miniature book: what was printed, and the status of every cell."""
    status, out, err = finish(build(folder, "sweep.json"))
    assert status == 0, err
    told = json.loads((folder / "_build/smoke/sweep.json").read_text())
    return out, {cell["cell"]: cell["failed"] for cell in told if "cell" in cell}


def test_a_failed_cell_fails_alone_and_is_tried_again(swept):
    out, cells = sweep(swept)
    assert cells == {"tcnn_b": "", "tcnn_broken": "02_second.md, cell 3: RuntimeError: no such band", "tcnn_2": ""}
    assert "2 of 3 trainings" in out
    assert "min left" in out
    trained = (swept / "_build/smoke/log.txt").read_text().split("\n")
    assert sorted(trained) == ["", "a 1", "a 2", "b 1"]  # the page's own cell is not run twice
    out, cells = sweep(swept)
    assert "tcnn_b " not in out
    assert "tcnn_broken" in out
    assert cells["tcnn_broken"]
    shutil.rmtree(swept / "_build/smoke/runs/tcnn/b")  # a run that is gone is trained again, no other
    out, _ = sweep(swept)
    assert "trained   tcnn_b in" in out
    assert "tcnn_2" not in out


def test_reruns_join_the_comparison_and_overwrite_nothing(swept):
    write_chapter(swept, "03_compare", "1;", "{reads: [sweep.json]}")
    with (swept / "_toc.yml").open("a") as toc:
        toc.write("      - file: notebooks/03_compare\n")
    (swept / "_config.yml").touch()

    def command(script, *words):
        words = [sys.executable, f"workflow/{script}.py", "--profile", "smoke", *words]
        environment = os.environ | {"PYTHONPATH": str(swept)}
        return subprocess.run(words, cwd=swept, env=environment, capture_output=True, text=True)

    made, compared = swept / "_build/smoke", "executed/03_compare.ipynb"
    asked = command("rerun", "second", "features=c", "seed=7")  # before there is anything
    assert asked.returncode == 0, asked.stderr
    assert "finished  01_first" in asked.stdout
    assert "joins the comparison" in asked.stdout
    assert (made / "runs/tcnn/c/none/seed-7/run.json").exists()
    assert finish(build(swept, compared))[0] == 0
    told = command("status").stdout
    assert "done      02_second" in told
    assert "failed    tcnn_broken: 02_second.md, cell 3: RuntimeError: no such band" in told
    assert "Sweep: 3 of 4 trainings done, 1 failed" in told  # that of make run is one of them
    asked = command("rerun", "02_second", "rate=0.25")  # no cell of the tables
    assert "apart from those" in asked.stdout
    assert (made / "reruns/runs/tcnn/a/none/seed-1/run.json").exists()
    source = swept / "notebooks/02_second.md"  # other code of the network: what make run added is trained again
    source.write_text(source.read_text().replace("no such band", "no band"))
    told = finish(build(swept, compared))[1]
    assert "trained   tcnn_c_none_7" in told
    asked = command("rerun", "01_first", "seed=5")
    assert asked.returncode == 0, asked.stderr
    assert (made / "number.txt").read_text() == "1"
    assert (made / "reruns/01_first/seed-5/number.txt").read_text() == "5"
    command("rerun", "02_second", "features=d")
    assert "stale     03_compare" in command("status").stdout


def test_a_chapter_is_found_by_name_or_number():
    from rerun import find

    assert find("05_tcnn") == find("tcnn") == find("05")
    with pytest.raises(chapters.ChapterError, match="did you mean '05_tcnn'"):
        find("05_tcn")


def test_words_and_comments_train_nothing_again(swept):
    sweep(swept)
    before = (swept / "_build/smoke/log.txt").read_text()
    for name in ("01_first", "02_second"):
        source = swept / f"notebooks/{name}.md"
        source.write_text(source.read_text().replace("# a float", "# a number") + "\nOne more sentence.\n")
    out, _ = sweep(swept)
    assert "running" not in out
    assert "trained" not in out
    source.write_text(source.read_text().replace("no such band", "no band"))  # code does
    out, _ = sweep(swept)
    assert "trained   tcnn_b" in out
    assert len((swept / "_build/smoke/log.txt").read_text()) > len(before)


def test_upstream_parameters_make_cells_stale(swept):
    sweep(swept)
    profile = swept / "params/profiles/smoke.yaml"
    profile.write_text(profile.read_text().replace("chapters: {}", "chapters: {01_first: {rate: 0.25}}"))
    out, _ = sweep(swept)
    assert "trained   tcnn_b" in out


def test_a_page_shows_its_text_as_it_reads_now(swept):
    from render import with_its_text

    sweep(swept)
    source = swept / "notebooks/02_second.md"
    source.write_text(source.read_text() + "\nOne more sentence.\n")
    executed = nbformat.read(swept / "_build/smoke/executed/02_second.ipynb", 4)
    chapters.read_notebook.cache_clear()
    page = with_its_text(executed, source)
    assert page.cells[-1].source == "One more sentence."
    assert [c.source for c in page.cells if c.cell_type == "code"] == [
        c.source for c in executed.cells if c.cell_type == "code"
    ]
    assert page.metadata["cropnb"]["run"]["parameters"]["seed"] == 1


def test_docstrings_are_no_change():
    assert chapters._meaning('def f():\n    "old"\n    return 1  # why') == chapters._meaning(
        'def f():\n    "new"\n    return 1'
    )
    assert chapters._meaning("x = 1") != chapters._meaning("x = 2")


def test_a_sweep_of_an_unknown_network_is_refused(swept):
    book = [chapters.load(swept / "notebooks/02_second.md")]
    profile = {"parameters": {"build": "x"}, "sweep": [{"networks": ["lstm"], "seed": 3}]}
    with pytest.raises(chapters.ChapterError, match="networks are tcnn"):
        chapters.cells(profile, book)


def test_cells_and_chapters_that_a_region_cannot_have_are_left_out(mini):
    source = mini / "notebooks/02_second.md"
    source.write_text(source.read_text() + '\n+++ {"tags": ["needs-twin"]}\n\nOf the twin.\n\n+++\n\nOf all.\n')
    chapters.read_notebook.cache_clear()
    assert [cell.source for cell in chapters.notebook_of(source, ["twin"]).cells[-1:]] == ["Of all."]
    assert "Of the twin." in [cell.source for cell in chapters.notebook_of(source, []).cells]
    book = [chapters.load(mini / f"notebooks/{name}.md") for name in ("01_first", "02_second")]
    assert chapters.left_out(book, {}) == {}
    assert chapters.left_out(book, {"number.txt": "no number"}) == {"01_first": "no number", "02_second": "no number"}


def test_a_region_of_ones_own_has_its_own_folder_and_leaves_chapters_out(mini):
    region = mini / "mine.yaml"
    region.write_text("{name: mine, source: points, dataset: canada_2017_points}\n")
    write_chapter(mini, "01_first", "raise ValueError('not to be run')", "{writes: [region]}")
    command = [sys.executable, "workflow/build.py", "--profile", "smoke", "--region", "mine.yaml", "--cores", "1"]
    target = "_build/smoke-mine/executed/01_first.ipynb"
    environment = os.environ | {"PYTHONPATH": str(mini)}
    done = subprocess.run([*command, target], cwd=mini, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = nbformat.read(mini / target, 4)
    assert "This chapter is left out for this region" in page.cells[1].source
    assert "has labelled points and no rasters" in page.cells[1].source
    region.write_text("{name: mine, source: points}\n")
    done = subprocess.run([*command, target], cwd=mini, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "mine.yaml, key 'dataset': missing, add it.\n"


def test_pages_name_the_region_of_their_build():
    from render import renamed

    said = "Crops of the simulated twin. On the twin, and in the twin's blocks. A map of the simulated twin of Bei'an."
    assert renamed(said, "mine") == "Crops of mine. In mine, and in mine's blocks. A map of mine."


def test_citations_lead_to_the_pages_own_list_or_to_the_books():
    from render import own_citations

    cell = nbformat.v4.new_markdown_cell
    page = nbformat.v4.new_notebook(cells=[cell("{cite:p}`liu2023, pelletier2019`")])
    own_citations(page, "01_first")  # a chapter left out, which has no list
    assert page.cells[0].source == "{cite:p}`liu2023, pelletier2019`"
    page.cells.append(cell("```{bibliography}\n:filter: docname in docnames\n```"))
    own_citations(page, "01_first")
    assert page.cells[0].source == "{cite:p}`01_first-liu2023,01_first-pelletier2019`"
    assert page.cells[1].source.startswith("```{bibliography}\n:keyprefix: 01_first-\n")


def refused(source, **given):
    with pytest.raises(chapters.ChapterError) as caught:
        chapters.check_parameters(source, given)
    return str(caught.value)


def test_jupyterlab_trusts_an_executed_notebook(tmp_path, monkeypatch):
    from run_chapter import NotebookNotary, trust

    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
    assert not NotebookNotary().check_signature(notebook)
    trust(notebook)
    assert NotebookNotary().check_signature(notebook)
    (tmp_path / "a file").touch()
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "a file"))
    trust(notebook)


def test_pages_share_one_bokehjs():
    from render import without_loaders

    html = f'<figure></figure><script class="{plotting.LOADER}">if (1) {{\n}}</script><script>draw()</script>'
    figure = nbformat.v4.new_output("display_data", {"text/html": html})
    scripts = nbformat.v4.new_output("display_data", {"application/vnd.holoviews_load.v0+json": ""})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[scripts, figure])])
    without_loaders(notebook)
    (left,) = notebook.cells[0].outputs
    assert left.data["text/html"] == "<figure></figure><script>draw()</script>"


def test_parameters_are_checked(mini):
    source = mini / "notebooks/01_first.md"
    assert refused(source, sed=3) == "01_first.md has no parameter 'sed'; did you mean 'seed'?"
    assert "takes int (default 2017)" in refused(source, seed="3")
    assert "takes int" in refused(source, seed=True)
    assert chapters.check_parameters(source, {"rate": 1}) == {"rate": 1}


def test_words_become_typed_parameters(mini):
    from run_chapter import typed

    source = mini / "notebooks/01_first.md"
    assert typed(source, ["seed=3", "rate=0.25", "profile=paper"]) == {
        "seed": 3,
        "rate": 0.25,
        "profile": "paper",
    }
    with pytest.raises(chapters.ChapterError, match="write name=value"):
        typed(source, ["seed"])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("rate: float = 1 / 2", "'rate: float = 1 / 2' in the parameters cell is not 'name: type = literal'"),
        ("rate = 0.5", "'rate = 0.5' in the parameters cell is not 'name: type = literal'"),
        ("rate: int = 0.5", "parameter rate says int, but its default 0.5 is of type float"),
    ],
)
def test_parameters_are_literals_of_a_named_type(mini, line, told):
    source = mini / "notebooks/01_first.md"
    source.write_text(source.read_text().replace("rate: float = 0.5", line))
    chapters.read_notebook.cache_clear()
    with pytest.raises(chapters.ChapterError, match=re.escape(told)):
        chapters.defaults(source)


def test_an_unknown_chapter_in_a_profile_is_refused(mini):
    book = [chapters.load(mini / "notebooks/01_first.md")]
    profile = {"parameters": {"profile": "smoke"}, "chapters": {"01_frist": {}}}
    with pytest.raises(chapters.ChapterError, match="did you mean '01_first'"):
        chapters.check_profile(profile, book)


def test_helper_files_follow_imports(tmp_path):
    source = tmp_path / "a.md"
    source.write_text(HEADER.format(title="a", declared="{}", code="from cropnb import points\n%matplotlib inline"))
    files = chapters.helper_files(source)
    assert "cropnb/points.py" in files
    assert "cropnb/data.py" in files  # points fetches through data
    assert "cropnb/plotting.py" not in files
    source = tmp_path / "b.md"
    source.write_text(HEADER.format(title="b", declared="{}", code="from cropnb import mapping"))
    files = chapters.helper_files(source)
    assert {"cropnb/cube.py", "cropnb/models/dense.py", "cropnb/models/convstar.py"} <= set(files)  # relative imports


def test_snakemake_takes_the_snakefile_with_a_gpu(mini):
    """A training chapter asks for the profile's GPUs, so a cluster executor can grant one."""
    write_chapter(mini, "01_first", "1;", "{writes: [number.txt], gpu: true}")
    profile = mini / "params/profiles/smoke.yaml"
    profile.write_text("gpu: 1\n" + profile.read_text())
    command = [sys.executable, "-m", "snakemake", "-s", "workflow/Snakefile", "-n", "-p"]
    command += ["--configfile", str(profile), "--cores", "1", "_build/smoke/executed/01_first.ipynb"]
    done = subprocess.run(command, cwd=mini, env=os.environ | {"PYTHONPATH": str(mini)}, capture_output=True, text=True)
    assert "gpu=1" in done.stdout + done.stderr
    assert json.dumps("smoke") in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("17_crop_profiles", ["rewrite=True"], {"rewrite": True}),
        ("17_crop_profiles", ["rewrite=false trees=1e2"], {"rewrite": False, "trees": 100}),
        ("18_real_fields", ["network_features=['optical']"], {"network_features": ["optical"]}),
        ("20_few_labels", ["labelled=[0,", "5]", "seed=3"], {"labelled": [0, 5], "seed": 3}),
        ("05_tcnn", ["features=backscatter", "width=1e-1"], {"features": "backscatter", "width": 0.1}),
    ],
)
def test_parameters_as_people_write_them(root, name, words, expected):
    source = root / f"notebooks/{name}.md"
    assert chapters.check_parameters(source, run_chapter.typed(source, words)) == expected


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("epochs", 0, "1 or more"),
        ("batch_size", 0, "1 or more"),
        ("width", -1.0, "from 0.01 to 8"),
        ("train_samples", 3, "0 (all) or 16 or more"),
    ],
)
def test_numbers_out_of_range_are_refused(root, name, value, said):
    with pytest.raises(chapters.ChapterError) as error:
        chapters.check_parameters(root / "notebooks/05_tcnn.md", {name: value})
    assert str(error.value) == f"05_tcnn.md: parameter {name} = {value!r} must be {said}."


def test_samples_of_zero_take_all(root):
    given = {"train_samples": 0}
    assert chapters.check_parameters(root / "notebooks/05_tcnn.md", given) == given


def test_machine_is_what_is_lent(monkeypatch):
    monkeypatch.setenv("CPU_LIMIT", "1.0")
    assert machine.cores() == 1
    monkeypatch.setenv("MEM_LIMIT", str(2**31))
    assert machine.memory() <= 2**31
    assert machine.chapters() == 1


def test_figures_ignore_a_matplotlibrc(root, tmp_path):
    (tmp_path / "matplotlibrc").write_text("image.origin: lower\ntext.usetex: True\n")
    code = "from cropnb import plotting; plotting.style(); rc = plotting.plt.rcParams\n"
    code += "assert (rc['image.origin'], rc['text.usetex']) == ('upper', False)"
    surroundings = os.environ | {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", code], env=surroundings, check=True)


def test_networks_ignore_a_keras_json(root, tmp_path):
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras/keras.json").write_text('{"image_data_format": "channels_first", "floatx": "float16"}')
    code = "import keras, cropnb\nassert keras.config.image_data_format() == 'channels_last'\n"
    code += "assert keras.config.floatx() == 'float32'"
    surroundings = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(root)}
    surroundings.pop("KERAS_HOME", None)
    subprocess.run([sys.executable, "-c", code], env=surroundings, check=True)


def test_build_without_locks_goes_on(mini, tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(
        "import errno, fcntl\ndef flock(*_):\n    raise OSError(errno.ENOLCK, 'No locks')\nfcntl.flock = flock\n"
    )
    command = [sys.executable, "workflow/build.py", "--profile", "smoke", "--cores", "1", "--"]
    surroundings = os.environ | {"PYTHONPATH": f"{site}:{mini}", "CROPNB_OFFLINE": "1"}
    command.append("_build/smoke/executed/01_first.ipynb")
    done = subprocess.run(command, cwd=mini, env=surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "has no locks" in done.stderr


@pytest.mark.parametrize("version", [(3, 10), (3, 14)])
def test_python_that_is_not_supported_is_named(root, version, tmp_path):
    fake = tmp_path / "a python"
    fake.write_text(
        f"""#!/bin/sh
case "$*" in
  *version_info*) exec "{sys.executable}" -c "import sys; sys.version_info = {version}; ${{2#import sys;}}" ;;
  *--version*) echo "Python {version[0]}.{version[1]}.0" ;;
  *) echo 1 ;;
esac
"""
    )
    fake.chmod(0o755)
    command = ["make", "-C", root, f"PYTHON={fake}", f"VENV={tmp_path}/venv", f"{tmp_path}/venv/.ready"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode
    assert "needs Python 3.11, 3.12 or 3.13" in done.stdout


def test_a_killed_kernel_is_named_and_the_rest_goes_on(mini):
    write_chapter(mini, "01_first", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "{writes: [number.txt]}")
    status, _, errors = finish(build(mini))
    assert status
    assert "01_first.md: its process was killed" in errors
    assert "Traceback" not in errors


def test_what_a_power_cut_left_empty_is_made_anew(mini):
    page, status = mini / "_build/smoke/executed/01_first.ipynb", mini / "_build/smoke/cells/tcnn_3.json"
    for file in (page, status):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    assert finish(build(mini, "executed/01_first.ipynb"))[0] == 0
    run = chapters.recorded(page)["metadata"]["cropnb"]["run"]
    assert run["versions"]["python"]
    assert run["device"]


def test_a_scratch_cell_moves_no_output():
    from render import with_its_text

    source = chapters.ROOT / "notebooks/17_crop_profiles.md"
    executed = chapters.notebook_of(source)
    executed.metadata["cropnb"]["run"] = {"missing": []}
    ours = [cell for cell in executed.cells if cell.cell_type == "code"]
    for cell in ours:
        cell.outputs = [nbformat.v4.new_output("stream", text=cell.source)]
    executed.cells.insert(0, nbformat.v4.new_code_cell("1 + 1"))
    page = with_its_text(executed, source)
    assert [c.outputs[0].text for c in page.cells if c.cell_type == "code"] == [c.source for c in ours]
    executed.cells.remove(ours[3])
    with pytest.raises(chapters.ChapterError, match="was edited"):
        with_its_text(executed, source)


def test_parameters_and_set_up_are_one_cell():
    from render import with_one_set_up

    notebook = chapters.notebook_of(chapters.ROOT / "notebooks/05_tcnn.md")
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    with_one_set_up(notebook)
    first, second = [cell for cell in notebook.cells if cell.cell_type == "code"][:2]
    assert first.source == "\n\n".join(code[:2])
    assert second.source == code[2]
    assert first.metadata["mystnb"]["code_prompt_show"] == "Set-up"


def test_a_page_that_is_left_out_is_no_run_that_is_missing():
    """A network that a region's dates cannot feed was never asked for."""
    found, profile = chapters.all_chapters(), yaml.safe_load(chapters.Path("params/profiles/smoke.yaml").read_text())
    everything = chapters.pages(profile, found)
    fewer = chapters.pages(profile | {"lacks": {"cnn3d2d": "too few dates"}}, found)
    assert set(everything) - set(fewer) == {run for run in everything if "cnn3d2d" in run} != set()
