"""Run one chapter with other parameters, after what it reads: `make run CHAPTER=05_tcnn PARAMS="seed=3"`.

A network's chapter adds a cell to the sweep, and the pages that compare runs take it in at the next `make book`. Where
more differs than the cell of the tables and the seed, the run is kept apart, in the folder ``reruns``. Any other
chapter works in a folder of its own that looks like the build's, so that nothing the book stands on is overwritten.
"""

import argparse
import os
import shutil
import sys
import time
from difflib import get_close_matches
from pathlib import Path

import chapters as book
import leash
import yaml
from build import arguments_of, make
from run_cells import note
from run_chapter import FAILURES, execute, explain, prepare_environment, typed

from cropnb import files, project

COMPARABLE = ("features", "augmentation", "seed")  # what tells the cells of one comparison apart


def find(name: str) -> book.Chapter:
    """The chapter of that name, with or without its number."""
    known = {chapter.name: chapter for chapter in book.all_chapters()}
    fits = [chapter for full, chapter in known.items() if name in (full, full.partition("_")[2], full.split("_")[0])]
    if not fits:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"chapters are {', '.join(known)}."
        raise book.ChapterError(f"There is no chapter '{name}'; {hint}")
    return fits[0]


def beside(build: Path, folder: Path, writes: tuple[str, ...]) -> None:
    """Make `folder` look like `build`, by links, but for what a chapter writes there itself."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for entry in build.iterdir():
        own = [name for name in writes if Path(name).parts[0] == entry.name]
        if not own and entry.name not in ("reruns", "executed", "failed"):
            (folder / entry.name).symlink_to(entry.resolve())
        elif entry.is_dir() and entry.name not in own:  # the chapter writes into it
            (folder / entry.name).mkdir()
            for inner in entry.iterdir():
                if f"{entry.name}/{inner.name}" not in own:
                    (folder / entry.name / inner.name).symlink_to(inner.resolve())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapter", help="such as 05_tcnn")
    parser.add_argument("parameters", nargs="*", metavar="name=value", help="parameters that differ from the profile's")
    arguments, configuration, build = arguments_of(parser)
    leash.until_interrupted()
    prepare_environment()
    try:
        chapter, profile = find(arguments.chapter), yaml.safe_load(configuration.read_text())
        asked = book.check_parameters(chapter.source, typed(chapter.source, arguments.parameters))
        usual = book.defaults(chapter.source) | book.parameters(chapter, profile)
        if reason := book.left_out([chapter], profile.get("lacks", {})).get(chapter.name):
            raise book.ChapterError(f"{chapter.name} is left out for this region: {reason}")
    except book.ChapterError as error:
        print(f"  refused   {error}", file=sys.stderr)
        return 2
    differing = {name: value for name, value in asked.items() if value != usual[name]}
    slug = (
        "_".join(f"{name}-{value}" for name, value in sorted(differing.items())).replace("/", "-") or "as-in-the-book"
    )
    folder = build / "reruns" / chapter.name / slug
    reads = [str(build / name) for name in chapter.reads]
    if reads and (status := make(configuration, build, arguments.cores, reads)):
        return status
    given = usual | asked
    if not chapter.network:
        beside(build, folder, chapter.writes)
        given["build"] = str(folder)
    joins = chapter.network and differing and not set(differing) - set(COMPARABLE)
    if joins:
        known, cell = book.all_chapters(), book.cell_of(chapter, {name: given[name] for name in COMPARABLE}, profile)
        cell = next((other for other in book.cells(profile, known) if other.run == cell.run), cell)
        order = cell.order(profile, known)
        os.environ["CROPNB_ORDERED"] = "1"
    elif chapter.network and "folder" not in asked:
        given["folder"] = "reruns/runs"
    output, begin = folder / f"executed/{chapter.name}.ipynb", time.perf_counter()
    print(f"  running   {chapter.name} with {', '.join(arguments.parameters) or 'the parameters of the profile'}")
    try:
        execute(chapter.source, output, given, without=profile.get("without", ()))
    except FAILURES as error:
        print(f"  failed    {explain(chapter.source, error)}", file=sys.stderr)
        return 1
    seconds = round(time.perf_counter() - begin, 1)
    print(f"  finished  {chapter.name} in {seconds:.0f} s")
    print(f"Executed notebook: {output}")
    if joins:
        note(build / f"cells/{cell.name}.json", chapter.network, order, seconds)
        asked_for = {"networks": [chapter.network]} | {name: given[name] for name in COMPARABLE}
        files.write_json(book.asked_folder(profile) / f"{cell.name}.json", asked_for)
        print("Its run joins the comparison at the next make book.")
    elif chapter.network:
        print(f"Its run is in {build / given['folder']}, apart from those that the book compares.")
    return 0


if __name__ == "__main__":
    project.command(main)
