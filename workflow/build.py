"""Build the book of a profile: run what is stale, render, and say where it is or why it is not.

One build at a time a working tree. A build that was interrupted, even by a power cut, goes on where it stopped.
"""

import argparse
import fcntl
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import artefacts
import chapters as book
import leash
import machine
import yaml

from cropnb import data, project, regions, schema

ROOT = Path(__file__).resolve().parent.parent
STATUSES = ("executed/*.ipynb", "cells/*.json", "replicates/*.json")  # what says how an execution ended
SNAKEMAKE = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile"]


def configure(profile: str, region: str) -> tuple[Path, Path]:
    """The configuration of a build, and its folder: the profile, or the profile on a region of one's own."""
    configuration = Path(f"params/profiles/{profile}.yaml")
    content = yaml.safe_load(configuration.read_text())
    build = Path(content["parameters"]["build"])
    if region:
        known = schema.read(region)
        build = build.with_name(f"{build.name}-{known.name}")
        content["parameters"] |= {"build": str(build), "region": region, "features": known.features}
        content |= {"lacks": known.lacks(), "without": known.without(), "replicates": {}}
    build.mkdir(parents=True, exist_ok=True)
    if region:
        configuration = build / "configuration.yaml"
        configuration.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return configuration, build


def forget(build: Path, thoroughly: bool = False) -> bool:
    """Forget what failed, and what is damaged or was changed by something else: it is made anew.

    Returns whether there was any of the second kind.
    """
    found = False
    for file in sorted(file for pattern in STATUSES for file in build.glob(pattern)):
        known = book.recorded(file)
        lost = artefacts.changed(book.run_of(known).get("wrote", {}), thoroughly)
        for name in lost:
            print(f"  changed   {name}, which is not as it was written: {file.stem} runs anew", flush=True)
        found |= bool(lost)
        if lost or not known or known.get("failed"):
            file.unlink()
            if file.parent.name == "cells":
                for gathered in (build / "sweep.json", *file.parent.glob("*.done")):
                    gathered.unlink(missing_ok=True)
    return found


class Sweep:
    """How much of the sweep is done, and how long the rest will take."""

    def __init__(self, configuration: Path, build: Path, cores: int):
        profile = yaml.safe_load(configuration.read_text())
        cells = book.cells(profile, book.all_chapters())
        self.pages = {cell.chapter.network: build / f"executed/{cell.chapter.name}.ipynb" for cell in cells}
        self.waiting = {cell.name: cell.chapter.network for cell in cells}
        self.total, self.cores, self.seconds = len(cells), cores, {}
        for file in (build / "cells").glob("*.json"):
            self.done(**book.recorded(file))

    def done(self, cell: str = "", seconds: float = 0.0, **_) -> None:
        """Take a cell off the list and learn from its time."""
        if network := self.waiting.pop(cell, None):
            self.seconds.setdefault(network, []).append(seconds)

    def page_seconds(self, network: str) -> float:
        """What the network's own page took, or a minute where it has not run."""
        return book.run_of(book.recorded(self.pages[network])).get("seconds", 60.0)

    def follow(self, line: str) -> str:
        """The line, with the time left where it reports a training."""
        if not (told := re.match(r"  trained   (\S+) in (\d+) s", line)):
            return line
        self.done(told[1], float(told[2]))
        means = {network: sum(known) / len(known) for network, known in self.seconds.items()}
        for network in set(self.waiting.values()) - set(means):  # until one has finished, its page says how long
            means[network] = self.page_seconds(network)
        left = sum(means[network] for network in self.waiting.values()) / self.cores / 60
        done = self.total - len(self.waiting)
        return f"{line}: {done} of {self.total} trainings, about {left:.0f} min left"


def is_free(lock) -> bool:
    """Take the lock of a build's folder, unless another build has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # of NFS without its lock service
        print(f"The file system of {lock.name} has no locks: run one build at a time.", file=sys.stderr)
    return True


@contextmanager
def locked(build: Path) -> Iterator:
    """The lock of a build's folder, as soon as no other build, and nothing that a killed one has left, holds it."""
    with (build / ".lock").open("w") as lock:
        for attempt in count():
            if is_free(lock):
                break
            if attempt == 10:
                print(f"Another build is running in {build}: waiting for its end.", file=sys.stderr, flush=True)
            time.sleep(0.2)
        yield lock


def make(configuration: Path, build: Path, cores: int, targets=(), options=()) -> int:
    """Run what is stale, all of the book or some targets, with further options of Snakemake, when nobody else does.

    Returns its status; what has failed is said already.
    """
    with locked(build) as lock:
        words = [*options, "--", *targets]
        status = _make(configuration, build, cores, words, lock)
        if status and forget(build, thoroughly=True):  # a file that went bad, and kept its looks
            return _make(configuration, build, cores, words, lock)
        return status


def _make(configuration: Path, build: Path, cores: int, words: list, lock) -> int:
    for reason in (build / "failed").glob("*.txt"):
        reason.unlink()
    forget(build)
    sweep = Sweep(configuration, build, cores)
    begin = time.perf_counter()
    # Snakemake's own lock outlives a killed build; ours does not, so its is switched off.
    command = [*SNAKEMAKE, "--configfile", configuration, "--cores", str(cores), "--quiet", "rules", "host", "reason"]
    command += ["--scheduler", "greedy", "--nolock", "--rerun-incomplete", "--keep-going", *words]
    log = build / "build.log"
    process = leash.start(command, lock, log)
    for line in leash.lines(process, log):
        if line.startswith("  ") and not line.startswith("   "):  # the chapters' own lines
            print(sweep.follow(line), flush=True)
    if status := process.returncode:
        print(f"\nNot finished ({time.perf_counter() - begin:.0f} s).", file=sys.stderr)
        reasons = sorted((build / "failed").glob("*.txt"))
        for reason in reasons:
            print(reason.read_text().rstrip(), file=sys.stderr)
        if not reasons:
            print("".join(log.read_text().splitlines(keepends=True)[-25:]), file=sys.stderr)
        print(f"Everything that was printed: {log}", file=sys.stderr)
    return status


def arguments_of(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Path, Path]:
    """The arguments that every command takes, with the configuration and the folder of the build they name."""
    profiles = sorted(path.stem for path in (ROOT / "params/profiles").glob("*.yaml"))
    parser.add_argument("--profile", default="demo", help=f"one of {', '.join(profiles)}")
    parser.add_argument("--region", default="", help="file of the region; none takes the simulated default")
    parser.add_argument("--cores", type=int, default=machine.chapters(), help="chapters that may run side by side")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    try:
        if arguments.profile not in profiles:
            raise ValueError(f"There is no profile '{arguments.profile}'; choose one of {', '.join(profiles)}.")
        return arguments, *configure(arguments.profile, arguments.region)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("options", nargs="*", help="of Snakemake, after --, such as -- --executor slurm")
    arguments, configuration, build = arguments_of(parser)
    leash.until_interrupted()
    try:
        if arguments.region:  # what can be said at once is not said after hours
            profile = yaml.safe_load(configuration.read_text())
            given = {"seed": profile["parameters"]["seed"]} | profile.get("chapters", {}).get("04_splitting", {})
            rules = {name: given[name] for name in ("patch", "seed") if name in given}
            regions.check(schema.read(arguments.region), **rules)
    except (OSError, ValueError, data.DataUnavailable) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"Building the book, profile {arguments.profile}, {arguments.cores} chapters side by side.", flush=True)
    begin = time.perf_counter()
    status = make(configuration, build, arguments.cores, options=arguments.options)
    if status == 0:
        whole = not any(Path(word).is_relative_to(build) for word in arguments.options)  # no part was asked for
        pages = f" Open {(build / 'html/index.html').resolve()}" * whole
        print(f"Done in {time.perf_counter() - begin:.0f} s.{pages}")
    return status


if __name__ == "__main__":
    project.command(main)
