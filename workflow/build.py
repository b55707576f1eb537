"""Build the book of a profile: run what is stale, render, and say where it is or why it is not.

One build at a time a working tree. A build that was interrupted, even by a power cut, goes on where it stopped.
"""

import argparse
import fcntl
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import chapters as book
import machine
import yaml

from cropnb import data, project, regions, schema

ROOT = Path(__file__).resolve().parent.parent
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


def forget_failures(build: Path) -> None:
    """Cells that failed, or whose run is gone, are tried again, and the sweep gathered anew; damaged files too."""
    for page in (build / "executed").glob("*.ipynb"):
        if not book.recorded(page):
            page.unlink()
    for file in (build / "cells").glob("*.json"):
        status = book.recorded(file)
        if not status or status["failed"] or not Path(status["run"], "run.json").exists():
            file.unlink()
            for gathered in (build / "sweep.json", *(build / "cells").glob("*.done")):
                gathered.unlink(missing_ok=True)
    for file in (build / "replicates").glob("*.json"):
        if book.recorded(file).get("failed", "damaged"):
            file.unlink()


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
        page = book.recorded(self.pages[network])
        return page["metadata"]["cropnb"]["run"]["seconds"] if page else 60.0

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
        return f"{line.rstrip()}: {done} of {self.total} trainings, about {left:.0f} min left\n"


def make(configuration: Path, build: Path, cores: int, targets=(), options=()) -> int:
    """Run what is stale, all of the book or some targets, with further options of Snakemake.

    Returns its status; what has failed is said already.
    """
    lock = (build / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"Another build is running in {build}.", file=sys.stderr)
        return 2
    except OSError:  # of NFS without its lock service
        print(f"The file system of {build} has no locks: take care to run one build at a time.", file=sys.stderr)
    for reason in (build / "failed").glob("*.txt"):
        reason.unlink()
    forget_failures(build)
    sweep = Sweep(configuration, build, cores)
    begin = time.perf_counter()
    # Snakemake's own lock outlives a killed build; ours does not, so its is switched off.
    command = [*SNAKEMAKE, "--configfile", configuration, "--cores", str(cores), "--quiet", "rules", "host", "reason"]
    command += ["--scheduler", "greedy", "--nolock", "--rerun-incomplete", "--keep-going", *options, "--", *targets]
    os.environ.pop("SNAKEMAKE_PROFILE", None)  # a profile is given to a build after --
    log = build / "build.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            for line in process.stdout:
                file.write(line)
                file.flush()  # `make status` reads it
                if line.startswith("  ") and not line.startswith("   "):  # the chapters' own lines
                    print(sweep.follow(line), end="", flush=True)
            status = process.wait()
        except KeyboardInterrupt:
            process.wait()
            print("\nInterrupted. The same command goes on from here.", file=sys.stderr)
            return 130
    if status:
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
        print(f"Done in {time.perf_counter() - begin:.0f} s. Open {(build / 'html/index.html').resolve()}")
    return status


if __name__ == "__main__":
    project.command(main)
