"""What of a build is done, running, stale, failed or still to do: `make status`."""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import artefacts
import chapters as book
import yaml
from build import SNAKEMAKE, arguments_of, is_free

from cropnb import project

WHY = {"Params": "its code or parameters have changed", "Code": "the workflow has changed"}


def waiting(configuration: Path) -> dict[str, str]:
    """Rules that a build would run now, and Snakemake's reason."""
    command = [*SNAKEMAKE, "--configfile", configuration, "--cores", "1", "--nolock", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise book.ChapterError(done.stderr.strip() or done.stdout.strip())
    told = re.findall(r"^(?:local)?rule (\S+):\n(?:    .*\n)*?    reason: (\w+)", done.stdout + done.stderr, re.M)
    return dict(told)


def is_building(build: Path) -> bool:
    """Whether a build holds the lock of its folder."""
    with (build / ".lock").open("w") as lock:
        return not is_free(lock)


def state(name: str, build: Path, stale: dict[str, str], building: bool) -> tuple[str, str]:
    """A chapter's state in one word, and a remark on it."""
    executed, failed = build / f"executed/{name}.ipynb", build / f"failed/{name}.txt"
    words = re.findall(rf"^  (\w+) +{name}\b", (build / "build.log").read_text(), re.M) if building else []
    if words[-1:] == ["running"]:
        return "running", ""
    if failed.exists():
        return "failed", failed.read_text().splitlines()[0]
    if not book.recorded(executed):
        return "to do", "its notebook is damaged" * executed.exists()
    if name in stale:
        return "stale", WHY.get(stale[name], "what it reads has changed")
    run = book.run_of(book.recorded(executed))
    if artefacts.changed(run.get("wrote", {})):
        return "stale", "what it wrote was changed by something else"
    return "done", f"{run['seconds']:.0f} s" + "".join(f", but: {missing}" for missing in run["missing"])


def main() -> int:
    arguments, configuration, build = arguments_of(argparse.ArgumentParser(description=__doc__))
    chapters, profile = book.all_chapters(), yaml.safe_load(configuration.read_text())
    building = is_building(build)
    try:
        stale = waiting(configuration)
    except book.ChapterError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Profile {arguments.profile} in {build}" + ", a build is running" * building)
    for chapter in chapters:
        word, remark = state(chapter.name, build, stale, building)
        print(f"  {word:9} {chapter.name:24} {remark}".rstrip())
    cells = book.cells(profile, chapters)
    known = [book.recorded(file) for file in (build / "cells").glob("*.json")]
    known = [cell for cell in known if cell.get("cell") in {cell.name for cell in cells}]
    failed = [cell for cell in known if cell["failed"]]
    print(f"Sweep: {len(known) - len(failed)} of {len(cells)} trainings done, {len(failed)} failed")
    for cell in failed:
        print(f"  failed    {cell['cell']}: {cell['failed']}")
    if asked := book.replicates(profile):
        known = [book.recorded(build / f"replicates/{number}.json") for number in asked]
        done = sum(record.get("failed") == "" for record in known)
        print(f"Replicates: {done} of {len(asked)} done")
    pages = build / "html/index.html"
    if not pages.exists():
        print("Pages: to do")
    else:
        print(f"Pages: {'stale' if 'html' in stale else 'done'}, {pages.resolve()}")
    return 0


if __name__ == "__main__":
    project.command(main)
