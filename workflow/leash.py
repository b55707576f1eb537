"""What ends with what: a build that is killed starts nothing more, and one that is interrupted ends at once."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil


def start(command: list, lock, log: Path) -> subprocess.Popen:
    """Start Snakemake, writing to `log`.

    Its standard input is the file of the `lock`: so the lock is held until the last of its jobs has come to an end.
    """
    end, _held = os.pipe()  # what is held here closes with this process, however it ends
    surroundings = os.environ | {"CROPNB_LEASH": str(end)}
    surroundings.pop("SNAKEMAKE_PROFILE", None)  # a profile is given to a build after --
    with log.open("w") as file:
        options = {"stdin": lock, "stdout": file, "stderr": file, "pass_fds": [end], "env": surroundings}
        return subprocess.Popen(command, **options)


def follow(workflow) -> None:
    """Let Snakemake start nothing more, and finish what is running, when the build that started it is no more."""

    def wait() -> None:
        os.read(end, 1)
        if workflow.scheduler is None:  # nothing is running yet
            os._exit(1)
        workflow.scheduler.exit_gracefully()

    if "CROPNB_LEASH" in os.environ:
        end = int(os.environ.pop("CROPNB_LEASH"))
        threading.Thread(target=wait, daemon=True).start()


def lines(process: subprocess.Popen, log: Path) -> Iterator[str]:
    """Lines of the `log` of a process as they come, until it ends."""
    rest = ""
    with log.open(errors="replace") as file:
        while True:
            ended = process.poll() is not None
            *whole, rest = (rest + file.read()).split("\n")
            yield from whole
            if ended:
                return
            time.sleep(0.2)


def until_interrupted() -> None:
    """Let Ctrl-C, once or twice, end this process and all that it has started, kernels too, with one sentence."""

    def stop(*_) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        print("\nInterrupted. The same command goes on from here.", file=sys.stderr, flush=True)
        os._exit(130)

    signal.signal(signal.SIGINT, stop)
