"""Build the book of a profile: run what is stale, render, and say where it is or why it is not.

One build at a time a working tree. A build that was interrupted, even by a power cut, goes on where it stopped.
"""

import argparse
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    profiles = sorted(path.stem for path in (ROOT / "params/profiles").glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="demo", help=f"one of {', '.join(profiles)}")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="chapters that may run side by side")
    arguments, snakemake = parser.parse_known_args()
    if arguments.profile not in profiles:
        print(
            f"There is no profile '{arguments.profile}'; choose one of {', '.join(profiles)}.",
            file=sys.stderr,
        )
        return 2
    os.chdir(ROOT)
    configuration = Path(f"params/profiles/{arguments.profile}.yaml")
    build = Path(yaml.safe_load(configuration.read_text())["parameters"]["build"])
    build.mkdir(parents=True, exist_ok=True)
    lock = (build / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"Another build of the {arguments.profile} profile is running in this folder.", file=sys.stderr)
        return 2
    for reason in (build / "failed").glob("*.txt"):
        reason.unlink()
    print(
        f"Building the book, profile {arguments.profile}, {arguments.cores} chapters side by side.",
        flush=True,
    )
    begin = time.perf_counter()
    # Snakemake's own lock outlives a killed build; ours does not, so its is switched off.
    command = [sys.executable, "-m", "snakemake", *snakemake, "--snakefile", "workflow/Snakefile"]
    command += ["--configfile", configuration, "--cores", str(arguments.cores), "--scheduler", "greedy"]
    command += ["--nolock", "--rerun-incomplete", "--keep-going", "--quiet", "rules", "host", "reason"]
    log = build / "build.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            for line in process.stdout:
                file.write(line)
                if line.startswith("  ") and not line.startswith("   "):  # the chapters' own lines
                    print(line, end="", flush=True)
            status = process.wait()
        except KeyboardInterrupt:
            process.wait()
            print("\nInterrupted. The same command goes on from here.", file=sys.stderr)
            return 130
    seconds = time.perf_counter() - begin
    if status == 0:
        print(f"Done in {seconds:.0f} s. Open {(build / 'html/index.html').resolve()}")
        return 0
    reasons = sorted((build / "failed").glob("*.txt"))
    print(f"\nThe book was not built ({seconds:.0f} s).", file=sys.stderr)
    for reason in reasons:
        print(reason.read_text().rstrip(), file=sys.stderr)
    if not reasons:
        print("".join(log.read_text().splitlines(keepends=True)[-25:]), file=sys.stderr)
    print(f"Everything that was printed: {log}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
