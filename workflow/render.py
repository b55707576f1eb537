"""Stage the prose and the executed chapters, and render them with Jupyter Book.

Prose pages are Jinja templates: ``value`` and ``figure`` bring what a chapter computed, ``status``, ``versions`` and
``datasets`` make tables. So no number in the prose is typed.
"""

import ast
import base64
import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jinja2
import nbformat
import yaml
from chapters import ROOT, ChapterError, allowed, defaults, identity, is_parameters, notebook_of, table_of_contents
from papermill.translators import papermill_translators

from cropnb import data, plotting, schema

SIGNALS = ("17_crop_profiles", "18_real_fields")  # what the twin is drawn from, whatever the region


def glued(notebook) -> dict[str, object]:
    """Values that a chapter glued, by name."""
    found = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            name = output.get("metadata", {}).get("scrapbook", {}).get("name")
            if not name:
                continue
            text = next((t for mime, t in output["data"].items() if mime.endswith("text/plain")), None)
            try:
                found[name] = ast.literal_eval(text)
            except (ValueError, SyntaxError, TypeError):
                found[name] = text
    return found


def picture(notebook, name: str) -> bytes | None:
    """The PNG of the captioned figure `name`."""
    for cell in notebook.cells:
        if cell.metadata.get("mystnb", {}).get("figure", {}).get("name") == name:
            for output in cell.get("outputs", ()):
                if "image/png" in output.get("data", {}):
                    return base64.b64decode(output["data"]["image/png"])
    return None


def with_its_text(executed, source: Path):
    """The notebook of a source as it reads now, with the outputs of its execution."""
    if run_of(executed)["missing"]:
        return executed
    notebook = notebook_of(source, run_of(executed).get("without", ()))
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    given = [cell for cell in code if "injected-parameters" in cell.metadata.get("tags", ())]
    ran = {cell.id: cell for cell in code if cell.id.startswith(identity(cell.source))}
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            if cell.id not in ran:
                raise ChapterError(
                    f"A code cell of {source.name} is not in its executed notebook, which was edited: delete "
                    f"executed/{source.stem}.ipynb in the build's folder, and make book runs the chapter again."
                )
            cell.outputs = ran[cell.id].outputs
        cells.append(cell)
        if is_parameters(cell):
            cells += given
    notebook.cells, notebook.metadata = cells, executed.metadata
    return notebook


def with_one_set_up(notebook) -> None:
    """Show parameters, the values given for them, and the cell of imports after them as one, "Set-up", collapsed."""
    cells = notebook.cells
    start = end = next((index for index, cell in enumerate(cells) if is_parameters(cell)), len(cells))
    tags = set()
    for cell in cells[start + 1 :]:
        given = "injected-parameters" in cell.metadata.get("tags", ())
        if not given and not {"hide-input", "remove-stderr"} & set(cell.metadata.get("tags", ())):
            break
        end += 1
        cells[start].source += f"\n\n{cell.source}"
        cells[start].outputs += cell.outputs
        tags |= {tag for tag in cell.metadata["tags"] if tag.startswith("remove-")}
        if not given:
            break
    if start < len(cells):
        shown = {f"code_prompt_{word}": "Set-up" for word in ("show", "hide")}
        cells[start].metadata |= {"tags": ["hide-input", *sorted(tags)], "mystnb": shown}
    del cells[start + 1 : end + 1]


def renamed(text: str, region: str) -> str:
    """A page's words about the twin, for a build of the region of that name."""
    text = re.sub(r"(the )?simulated twin\b( of Bei'an)?", region, text)
    text = re.sub(r"\b(O|o)n the twin\b", lambda m: f"{'In' if m[1] == 'O' else 'in'} {region}", text)
    return re.sub(r"\b(the|The) twin\b", region, text)


def for_region(notebook, region: str) -> None:
    """Name the region of this build where the page speaks of the twin."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = renamed(cell.source, region)
        shown = cell.metadata.get("mystnb", {})
        for kind, key in (("figure", "caption"), ("image", "alt")):
            if key in shown.get(kind, {}):
                shown[kind][key] = renamed(shown[kind][key], region)


def region_of(build: Path) -> str:
    """The name of a build's region; empty for a simulated one, which the pages' own words name."""
    configuration = build / "configuration.yaml"
    if not configuration.exists():
        return ""
    region = schema.read(yaml.safe_load(configuration.read_text())["parameters"]["region"])
    return "" if isinstance(region, schema.Simulated) else region.name


def without_loaders(notebook) -> None:
    """Drop what HoloViews puts out to load its scripts from the net, and each figure's own BokehJS: pages share one."""
    library = re.compile(rf'<script class="{plotting.LOADER}">.*?</script>', re.DOTALL)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if not any("holoviews" in mime for mime in o.get("data", ()))]
            for output in cell.outputs:
                if "text/html" in output.get("data", ()):
                    output.data["text/html"] = library.sub("", output.data["text/html"])


def own_citations(notebook, name: str) -> None:
    """Give a chapter's citations keys of its own, so that they lead to the list at its end, not to another page's.

    The citations of a page without such a list, a chapter left out for one, lead to the book's list.
    """
    if not any("```{bibliography}" in cell.source for cell in notebook.cells):
        return
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(
                r"(\{cite(?::\w+)?\}`)([^`]+)`",
                lambda m: m[1] + ",".join(f"{name}-{key.strip()}" for key in m[2].split(",")) + "`",
                cell.source,
            )
            cell.source = cell.source.replace("```{bibliography}", f"```{{bibliography}}\n:keyprefix: {name}-")


def run_of(notebook) -> dict:
    """What is recorded of a chapter's run."""
    return notebook.metadata["cropnb"]["run"]


def run_line(name: str, run: dict) -> str:
    """A page's last line: which profile, when, how long, on what, from which commit."""
    return (
        f":::{{div}} cropnb-run\nProfile **{run['parameters']['profile']}**, seed {run['parameters']['seed']}, "
        f"run on {run['date'][:16].replace('T', ' ')} UTC in {run['seconds']:.0f} s on {run['device']}, "
        f"commit `{run['commit']}`. Source: `notebooks/{name}.md`. "
        "All chapters: {doc}`/book/status`.\n:::"
    )


def status_table(notebooks: dict) -> str:
    """Markdown table of every chapter's run."""
    rows = [
        "| Chapter | Profile | Seed | Date (UTC) | Seconds | Device | Commit | Missing |",
        "|---|---|--:|---|--:|---|---|---|",
    ]
    for name, notebook in notebooks.items():
        run = run_of(notebook)
        missing = " ".join(run["missing"]).replace("|", "\\|") or "nothing"
        cells = (
            f"{{doc}}`/notebooks/{name}`",
            run["parameters"]["profile"],
            str(run["parameters"]["seed"]),
            run["date"][:16].replace("T", " "),
            f"{run['seconds']:.0f}",
            run["device"],
            f"`{run['commit']}`",
            missing,
        )
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def checksums_table() -> str:
    """Markdown table of the real data sets of this build, each with one checksum of all its files."""
    rows = ["| Data set | In this build | Files | SHA-256 |", "|---|---|--:|---|"]
    for name, dataset in data.load_manifest().datasets.items():
        whole = hashlib.sha256("".join(sorted(file.sha256 for file in dataset.files)).encode()).hexdigest()
        there = "yes" if data.is_available(name) else "no"
        rows.append(f"| {name} | {there} | {len(dataset.files)} | `{whole[:16]}` |")
    return "\n".join(rows)


def parameter_tables(notebooks: dict) -> str:
    """Every chapter's parameters, described as `papermill --help-notebook` does, and what this build gave."""
    reader, parts = papermill_translators.find_translator("python3", "python"), []
    for source in table_of_contents():
        usual, given = defaults(source), run_of(notebooks[source.stem])["parameters"]
        differs = any(given[name] != value for name, value in usual.items())
        header = ["Parameter", "Type", "Default", *["This build"] * differs, ""]
        rows = [header, ["---"] * len(header)]
        for found in reader.inspect(next(c for c in notebook_of(source).cells if is_parameters(c))):
            value, default = given[found.name], usual[found.name]
            here = "" if value == default else f"`{value!r}`"
            words = ", ".join(filter(None, [found.help, allowed(found.name)]))
            row = [f"`{found.name}`", found.inferred_type_name, f"`{default!r}`", *[here] * differs, words]
            rows.append(row)
        rows = [f"| {' | '.join(row)} |" for row in rows]
        parts += [f"## {source.stem}", f"{{doc}}`/notebooks/{source.stem}`", "\n".join(rows)]
    return "\n\n".join(parts)


def versions_table(notebooks: dict) -> str:
    """Markdown table of the versions the chapters ran with."""
    seen = {}
    for notebook in notebooks.values():
        for package, version in run_of(notebook)["versions"].items():
            seen.setdefault(package, set()).add(version)
    rows = ["| Package | Version |", "|---|---|"]
    return "\n".join(rows + [f"| {package} | {', '.join(sorted(found))} |" for package, found in seen.items()])


def datasets_list() -> str:
    """Markdown definition list of the data manifest, with whether each data set was there."""
    entries = []
    for name, dataset in data.load_manifest().datasets.items():
        size = f"{len(dataset.files)} files, {sum(file.bytes for file in dataset.files) / 1e6:.1f} MB"
        there = "in this build" if data.is_available(name) else "not in this build"
        lines = (
            f"`{name}` ({size}, {there})",
            dataset.what,
            f"Licence: {dataset.licence}",
            f"Source: {dataset.citation}",
        )
        entries.append("\n: ".join(line.strip() for line in lines))
    return "\n\n".join(entries)


def stage(build: Path, folder: Path) -> None:
    """Write everything Jupyter Book reads into `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    names = [source.stem for source in table_of_contents()]
    notebooks = {
        source.stem: with_its_text(nbformat.read(build / f"executed/{source.stem}.ipynb", as_version=4), source)
        for source in table_of_contents()
    }
    shutil.copytree(ROOT / "book", folder / "book", ignore=shutil.ignore_patterns("__pycache__", "*.md"))
    shutil.copy(ROOT / "_toc.yml", folder)

    def value(chapter: str, name: str, form: str = "") -> str:
        return format(glued(notebooks[chapter])[name], form)

    def figure(chapter: str, name: str, alt: str, caption: str) -> str:
        (folder / f"book/_static/{name}.png").write_bytes(picture(notebooks[chapter], name))
        return f"```{{figure}} /book/_static/{name}.png\n:alt: {alt}\n\n{caption}\n```"

    profile = run_of(notebooks[names[0]])["parameters"]["profile"]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT), undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    region = region_of(build)
    environment.globals |= {
        "profile": profile,
        "region": region,
        "ran": lambda *chapters: not any(run_of(notebooks[chapter])["missing"] for chapter in chapters),
        "value": value,
        "figure": figure,
        "status": lambda: status_table(notebooks),
        "checksums": checksums_table,
        "parameters": lambda: parameter_tables(notebooks),
        "versions": lambda: versions_table(notebooks),
        "datasets": datasets_list,
    }
    for page in (ROOT / "book").glob("*.md"):
        text = environment.get_template(f"book/{page.name}").render()
        text = renamed(text, region) if region and page.stem == "index" else text
        (folder / "book" / page.name).write_text(text)
    (folder / "notebooks").mkdir()
    if (build / "map/crop.tif").exists():  # what the page of the map offers for download
        shutil.copy(build / "map/crop.tif", folder / "notebooks")
    for name, notebook in notebooks.items():
        without_loaders(notebook)
        with_one_set_up(notebook)
        own_citations(notebook, name)
        if region and name not in SIGNALS:
            for_region(notebook, region)
        notebook.cells.append(nbformat.v4.new_markdown_cell(run_line(name, run_of(notebook))))
        # Only what the page needs: the front matter's own keys would be rendered as page metadata.
        notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
        nbformat.write(notebook, folder / f"notebooks/{name}.ipynb")
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    if profile == "smoke":
        config["sphinx"]["config"]["html_theme_options"]["announcement"] = (
            "Smoke build: tiny data, few epochs. It shows that everything runs; its numbers mean nothing."
        )
    (folder / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def main(build: Path, output: Path) -> int:
    staged, rendered = build / "book", build / "rendered"
    print("  rendering the pages", flush=True)
    try:
        stage(build, staged)
    except ChapterError as error:
        print(f"  failed    {error}", file=sys.stderr)
        return 1
    shutil.rmtree(rendered, ignore_errors=True)
    command = ["jupyter-book", "build", "-W", "--keep-going", "--path-output", rendered, staged]
    command[0] = str(Path(sys.executable).with_name("jupyter-book"))
    log = build / "render.log"
    with log.open("w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        lines = log.read_text().splitlines()
        told = [line for line in lines if "WARNING" in line or "ERROR" in line] or lines[-20:]
        reason = "\n".join(["The pages have faults:", *told, f"All that was printed: {log}"])
        (build / "failed").mkdir(exist_ok=True)
        (build / "failed/rendering.txt").write_text(reason + "\n")
        print(f"  failed    {reason}", file=sys.stderr)
        return 1
    shutil.rmtree(output, ignore_errors=True)
    (rendered / "_build/html").rename(output)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
